//! Steadfast and the bare clients, doing the same work in alternation. `cargo xtask bench` runs this; docs/speed.md says
//! what the rows mean.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command says to a person what it found")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use steadfast_benches::{
    BoxError, ConsumeRabbit, ConsumeRedis, Contest, Embedded, Filler, Panics, Plan, Prefetch, PublishRabbit,
    PublishRedis, Publishing, compare, json, table,
};

/// How fast Steadfast is, beside the bare clients.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only the benches whose name contains this.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Rounds that count; one more before them warms up.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Messages of each round, in place of each bench's own number.
    #[arg(long, value_name = "N")]
    messages: Option<u64>,
    /// Who publishes what is consumed.
    #[arg(long, value_enum, default_value_t = Fill::Bare)]
    fill: Fill,
    /// Where to write the figures as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The RabbitMQ to use.
    #[arg(long, env = "SUT_AMQP_URL", hide_env_values = true)]
    amqp: Option<String>,
    /// The Redis to use.
    #[arg(long, env = "SUT_REDIS_URL", hide_env_values = true)]
    redis: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Fill {
    /// The bare client: a body, and nothing said of it.
    Bare,
    /// Steadfast's publisher: an id, a type and a content type travel along.
    Steadfast,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("throughput: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), BoxError> {
    let plan = Plan { rounds: arguments.rounds.max(1), messages: arguments.messages };
    let wanted = |name: &str| arguments.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let start = Instant::now();
    let mut rows = Vec::new();
    for contest in contests(&arguments).into_iter().filter(|contest| wanted(contest.name())) {
        println!("{} …", contest.name());
        rows.extend(compare(&*contest, plan).await.map_err(|error| format!("{}: {error}", contest.name()))?);
    }
    if rows.is_empty() {
        return Err("there is nothing to measure: name a broker by SUT_AMQP_URL or SUT_REDIS_URL, or run `cargo xtask \
                    bench`; and check what `--only` names"
            .into());
    }
    println!("\n{}", table(&rows));
    println!("{} rounds after one to warm up, {:.0} s", plan.rounds, start.elapsed().as_secs_f64());
    if let Some(file) = &arguments.json {
        std::fs::write(file, json(&rows)?).map_err(|error| format!("write {}: {error}", file.display()))?;
    }
    Ok(())
}

/// Those whose broker is named.
fn contests(arguments: &Arguments) -> Vec<Box<dyn Contest>> {
    let filler = match arguments.fill {
        Fill::Bare => Filler::Bare,
        Fill::Steadfast => Filler::Steadfast,
    };
    let mut contests: Vec<Box<dyn Contest>> = Vec::new();
    if let Some(url) = &arguments.amqp {
        for prefetch in [Prefetch::Usual, Prefetch::Default] {
            contests.push(Box::new(ConsumeRabbit { url: url.clone(), filler, prefetch }));
        }
        for work in [Publishing::Same, Publishing::Quorum, Publishing::BodyOnly] {
            contests.push(Box::new(PublishRabbit { url: url.clone(), work }));
        }
        contests.push(Box::new(Panics::new("panics-rabbitmq", url, 40_000)));
    }
    if let Some(url) = &arguments.redis {
        contests.push(Box::new(ConsumeRedis { url: url.clone(), filler }));
        contests.push(Box::new(PublishRedis { url: url.clone() }));
        contests.push(Box::new(Panics::new("panics-redis", url, 160_000)));
    }
    contests.push(Box::new(Embedded));
    contests.push(Box::new(Panics::new("panics-embedded", "embedded:", 400_000)));
    contests
}
