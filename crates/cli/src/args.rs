//! What can be said on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use steadfast::Filter;

const EXITS: &str = "Exit codes: 0 done, 1 failed, 2 the command line makes no sense, 3 nothing fits, 4 some letters stay \
                     that were to go, 5 a redrive stopped by itself, 6 not confirmed, 7 the broker differs from the \
                     topology.";

/// Looks at queues and streams, and looks after dead letters. The same for RabbitMQ and Redis Streams.
#[derive(Debug, Parser)]
#[command(name = "steadfast", version, after_help = EXITS)]
pub(crate) struct Arguments {
    /// URL of the broker, `amqp://user:password@host:5672/vhost` or `redis://host:6379/0`
    #[arg(
        long,
        global = true,
        env = "STEADFAST_BROKER",
        hide_env_values = true,
        default_value = "amqp://localhost"
    )]
    pub(crate) broker: String,
    /// Machine-readable output: one JSON value, or one on each line where there may be many
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists, shows, redrives, discards, exports and imports dead letters
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Tells how deep a queue or a stream is, who takes from it, and how far behind they are
    Inspect(Source),
    /// Lists and claims pending entries of a consumer group (Redis)
    #[command(subcommand)]
    Pending(PendingCommand),
    /// Publishes one message, and waits until it is safe
    Publish(Publish),
    /// Compares a file of exchanges, queues and bindings with the broker, and declares them (RabbitMQ)
    #[command(subcommand)]
    Topology(TopologyCommand),
    /// Trims a stream, and never what a group still needs (Redis)
    Trim(Trim),
    /// Prints what is published from now on, without taking it from anybody
    Tail(Tail),
    /// Publishes and consumes on a queue or a stream of its own, tells how fast, and deletes it
    Bench(Bench),
    /// Prints completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadCommand {
    /// Lists dead letters, or groups of them
    List(List),
    /// Shows one letter whole
    Show(Show),
    /// Sends letters back to where they came from, as a job that can be stopped and resumed
    Redrive(Box<RedriveArgs>),
    /// Stops a redrive, wherever it runs: what is unsent stays in the dead letters
    Undo {
        /// The job's journal
        journal: PathBuf,
    },
    /// Deletes letters for good
    Discard(Discard),
    /// Writes letters to a file, as lines of JSON; they stay where they are
    Export(Export),
    /// Publishes exported letters again
    Import(Import),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PendingCommand {
    /// Lists what was delivered and not acknowledged
    List(PendingList),
    /// Gives entries that are idle for long to the next consumer that asks
    Claim(PendingClaim),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopologyCommand {
    /// Tells what is there, what is missing and what differs; changes nothing
    Plan(TopologyFile),
    /// Declares what is missing; refuses where something is there and differs
    Apply(TopologyApply),
    /// As plan, and tells only what is missing or differs
    Verify(TopologyFile),
}

#[derive(Debug, Args)]
pub(crate) struct TopologyFile {
    /// The file: JSON where its name ends so, else TOML
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct TopologyApply {
    #[command(flatten)]
    pub(crate) file: TopologyFile,
    #[command(flatten)]
    pub(crate) sure: Sure,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("retention").required(true).multiple(true).args(["last", "younger_than"]))]
pub(crate) struct Trim {
    /// The stream
    pub(crate) stream: String,
    /// Keep at most so many entries, the newest
    #[arg(long)]
    pub(crate) last: Option<u64>,
    /// Keep entries younger than this, as 7d
    #[arg(long, value_parser = duration)]
    pub(crate) younger_than: Option<Duration>,
    /// Only say how many would go, and what holds back the rest; the same as --dry-run
    #[arg(long)]
    pub(crate) preview: bool,
    #[command(flatten)]
    pub(crate) sure: Sure,
}

#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// Stream; with --exchange the routing key, or a pattern of it
    pub(crate) place: String,
    /// Exchange (RabbitMQ: what is published to a queue by its name cannot be followed)
    #[arg(long)]
    pub(crate) exchange: Option<String>,
    /// End after so many messages. Default: with Ctrl-C
    #[arg(long)]
    pub(crate) limit: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// How many messages
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) messages: u32,
    /// Bytes in each body, at least
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) size: u32,
    /// Publishes under way at once
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) window: u32,
    /// Messages handled at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) concurrency: u32,
    /// Only say what it would do
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Source {
    /// Queue or stream
    pub(crate) source: String,
    /// Consumer group (Redis)
    #[arg(long)]
    pub(crate) group: Option<String>,
}

impl Source {
    pub(crate) fn source(&self) -> steadfast::Source {
        let source = steadfast::Source::queue(self.source.as_str());
        match &self.group {
            Some(group) => source.group(group.as_str()),
            None => source,
        }
    }
}

/// Which letters: those that fit everything that is given.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which letters")]
pub(crate) struct Which {
    /// Why it is dead; several are alternatives
    #[arg(long, value_delimiter = ',')]
    reason: Vec<String>,
    /// Message id; several are alternatives
    #[arg(long)]
    id: Vec<String>,
    /// Fingerprint of the failure
    #[arg(long)]
    fingerprint: Option<String>,
    /// Message type
    #[arg(long = "type")]
    message_type: Option<String>,
    /// The consumer that gave up
    #[arg(long)]
    consumer: Option<String>,
    /// Failed at least so long ago, as 2h
    #[arg(long, value_parser = duration)]
    older_than: Option<Duration>,
    /// Failed at most so long ago, as 30m
    #[arg(long, value_parser = duration)]
    younger_than: Option<Duration>,
    /// A header that is there: NAME, or NAME=VALUE
    #[arg(long)]
    header: Vec<String>,
    /// A text that the body has somewhere
    #[arg(long)]
    text: Option<String>,
}

impl Which {
    pub(crate) fn filter(&self) -> Filter {
        let header = |text: &String| match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (text.clone(), None),
        };
        Filter {
            reasons: self.reason.clone(),
            ids: self.id.clone(),
            fingerprint: self.fingerprint.clone(),
            message_type: self.message_type.clone(),
            consumer: self.consumer.clone(),
            older_than: self.older_than,
            younger_than: self.younger_than,
            headers: self.header.iter().map(header).collect(),
            text: self.text.clone(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Queue or stream of the dead letters, as orders.dead
    pub(crate) place: String,
    /// One line for each kind of failure, by fingerprint
    #[arg(long)]
    pub(crate) group: bool,
    /// Most letters to list
    #[arg(long, default_value_t = 50)]
    pub(crate) limit: usize,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Queue or stream of the dead letters
    pub(crate) place: String,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct Sure {
    /// Only say how many it would be
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RedriveArgs {
    /// Queue or stream of the dead letters
    pub(crate) place: String,
    /// Name of the job; the same name is the same job. Default: a new one
    #[arg(long)]
    pub(crate) job: Option<String>,
    /// File that the job remembers in what it did: run it again with the same file to go on. Default: the job's name and
    /// `.journal`, here
    #[arg(long)]
    pub(crate) journal: Option<PathBuf>,
    /// Straight to the queue or stream that they were taken from, not through their exchange
    #[arg(long, conflicts_with = "to")]
    pub(crate) to_source: bool,
    /// To this queue or stream
    #[arg(long)]
    pub(crate) to: Option<String>,
    /// At most so many
    #[arg(long)]
    pub(crate) limit: Option<u64>,
    /// Messages per second, once the ramp is over. Default: as fast as the broker takes them
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// How many at first, and then; `none` begins with all
    #[arg(long, default_value = "1,2,5,10")]
    pub(crate) ramp: String,
    /// How long to wait after each step of the ramp for failures
    #[arg(long, value_parser = duration, default_value = "5s")]
    pub(crate) settle: Duration,
    /// Stop when more than this fraction failed again; 1 is never
    #[arg(long, default_value_t = 0.2)]
    pub(crate) stop_above: f64,
    /// Letters that were redriven so often already go to the parking lot
    #[arg(long)]
    pub(crate) park_after: Option<u32>,
    /// The parking lot. Default: the place and `.parked`
    #[arg(long, requires = "park_after")]
    pub(crate) parking: Option<String>,
    /// Send the body in this file in place of the letter's own, under a new message id; for one letter
    #[arg(long)]
    pub(crate) body: Option<PathBuf>,
    /// Also send what may have been sent before a crash
    #[arg(long)]
    pub(crate) resend_uncertain: bool,
    #[command(flatten)]
    pub(crate) sure: Sure,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct Discard {
    /// Queue or stream of the dead letters
    pub(crate) place: String,
    #[command(flatten)]
    pub(crate) sure: Sure,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Queue or stream of the dead letters
    pub(crate) place: String,
    /// The file; it must not be there yet
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) which: Which,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Queue or stream to publish them to
    pub(crate) place: String,
    /// The file
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) sure: Sure,
}

#[derive(Debug, Args)]
pub(crate) struct PendingList {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Most entries to list
    #[arg(long, default_value_t = 50)]
    pub(crate) limit: usize,
}

#[derive(Debug, Args)]
pub(crate) struct PendingClaim {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Pending for at least so long without a sign of life
    #[arg(long, value_parser = duration, default_value = "5m")]
    pub(crate) idle: Duration,
    /// Most entries
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: usize,
    #[command(flatten)]
    pub(crate) sure: Sure,
}

#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// Queue or stream; with --exchange the routing key
    pub(crate) to: String,
    /// The body; without it and --file it is read from standard input
    #[arg(long, conflicts_with = "file")]
    pub(crate) body: Option<String>,
    /// File with the body
    #[arg(long)]
    pub(crate) file: Option<PathBuf>,
    /// Exchange (RabbitMQ)
    #[arg(long)]
    pub(crate) exchange: Option<String>,
    /// Message type
    #[arg(long = "type")]
    pub(crate) message_type: Option<String>,
    /// Message id. Default: a new one
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// Correlation id
    #[arg(long)]
    pub(crate) correlation_id: Option<String>,
    /// Content type
    #[arg(long, default_value = "application/json")]
    pub(crate) content_type: String,
    /// A header, as NAME=VALUE
    #[arg(long)]
    pub(crate) header: Vec<String>,
    /// Only say what it would be
    #[arg(long)]
    pub(crate) dry_run: bool,
}

fn duration(text: &str) -> Result<Duration, Box<dyn std::error::Error + Send + Sync>> {
    steadfast::parse_duration(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Arguments::command().debug_assert();
    }
}
