//! `steadfast`, the operator's command: looks at queues and streams, and looks after dead letters, on every broker.
//!
//! | file | owns |
//! |---|---|
//! | `args` | what can be said on the command line |
//! | `dead` | `dead list`, `show`, `discard`, `export`, `import` |
//! | `redrive` | `dead redrive`, `dead undo` |
//! | `look` | `inspect`, `pending` |
//! | `publish` | `publish` |
//! | `topology`, `trim` | what only one broker has |
//! | `tail` | `tail` |
//! | `bench` | `bench` |
//! | `export` | letters as lines of JSON |
//! | `output` | tables, JSON, questions, progress |

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser};
use steadfast::{Broker, Operator};

use crate::args::{Arguments, Command, DeadCommand, PendingCommand};

mod args;
mod bench;
mod dead;
mod export;
mod look;
mod output;
mod publish;
mod redrive;
mod tail;
mod topology;
mod trim;

/// How a command ended, for scripts. 1 is an error, 2 (from clap) a command line that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Done = 0,
    /// Nothing fits.
    Nothing = 3,
    /// Some letters stay that were to go.
    Partly = 4,
    /// A redrive stopped by itself: too many failed again.
    Stopped = 5,
    /// The question was answered with no, or nobody was there to answer it.
    NotConfirmed = 6,
    /// The broker has something otherwise, or not at all.
    Differs = 7,
}

type Outcome = Result<Exit, Box<dyn Error + Send + Sync>>;

/// The broker, and what an operator can ask of it.
struct Session {
    broker: Arc<dyn Broker>,
    operator: Arc<dyn Operator>,
    /// Where another connection goes to.
    url: String,
    json: bool,
}

impl Session {
    async fn open(url: &str, json: bool) -> Result<Self, Box<dyn Error + Send + Sync>> {
        if url.starts_with("embedded:") {
            return Err("an embedded broker lives inside its process and cannot be reached from here; ask that process \
                        by `Broker::operator`, or name a server: amqp://… or redis://…"
                .into());
        }
        let broker = steadfast::connect(url).await?;
        let operator = broker.operator().ok_or("this broker has nothing for an operator")?;
        Ok(Self { broker, operator, url: url.to_owned(), json })
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments).await {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(error) => {
            let mut text = format!("steadfast: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                // a client may say again what its own cause says
                if !text.ends_with(&cause_text) {
                    text = format!("{text}: {cause_text}");
                }
                source = cause.source();
            }
            // a standard error that is closed leaves nobody to tell
            let _ = writeln!(std::io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}

async fn run(Arguments { broker, json, command }: Arguments) -> Outcome {
    let command = match command {
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "steadfast", &mut std::io::stdout());
            return Ok(Exit::Done);
        }
        Command::Dead(DeadCommand::Undo { journal }) => return redrive::undo(&journal),
        Command::Topology(topology) => return topology::run(&broker, json, &topology).await,
        Command::Trim(trim) => return trim::run(&broker, json, &trim).await,
        command => command,
    };
    let session = Session::open(&broker, json).await?;
    let outcome = on_broker(&session, command).await;
    session.operator.close().await;
    session.broker.close().await;
    outcome
}

async fn on_broker(session: &Session, command: Command) -> Outcome {
    match command {
        Command::Dead(DeadCommand::List(list)) => dead::list(session, &list).await,
        Command::Dead(DeadCommand::Show(show)) => dead::show(session, &show).await,
        Command::Dead(DeadCommand::Redrive(redrive)) => redrive::run(session, *redrive).await,
        Command::Dead(DeadCommand::Discard(discard)) => dead::discard(session, &discard).await,
        Command::Dead(DeadCommand::Export(export)) => dead::export(session, &export).await,
        Command::Dead(DeadCommand::Import(import)) => dead::import(session, &import).await,
        Command::Inspect(inspect) => look::inspect(session, &inspect).await,
        Command::Pending(PendingCommand::List(list)) => look::pending(session, &list).await,
        Command::Pending(PendingCommand::Claim(claim)) => look::claim(session, &claim).await,
        Command::Publish(publish) => publish::run(session, publish).await,
        Command::Tail(tail) => tail::run(session, tail).await,
        Command::Bench(bench) => bench::run(session, bench).await,
        // answered before: they need no broker, or one of a kind
        Command::Completions { .. }
        | Command::Dead(DeadCommand::Undo { .. })
        | Command::Topology(_)
        | Command::Trim(_) => Ok(Exit::Done),
    }
}
