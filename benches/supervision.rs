//! What supervision costs at rest: starting 10,000 children, and the memory of an idle one, beside bare ractor actors.
//!
//! `cargo run --release -p steadfast-benches --bin supervision`. Each figure comes from a process of its own, so that what
//! one frees is not there for the next.
#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde::{Deserialize, Serialize};
use steadfast::prelude::*;
use steadfast::{BoxError, Tree};

const CHILDREN: usize = 10_000;
const ROUNDS: usize = 5;

/// An actor that does nothing.
struct Bare;

impl Actor for Bare {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

#[derive(Serialize, Deserialize, Message)]
struct Nothing {}

#[handler]
async fn ignore(_: Nothing) -> Result<(), Failure> {
    Ok(())
}

async fn actors() -> Result<(), BoxError> {
    for _ in 0..CHILDREN {
        Actor::spawn(None, Bare, ()).await?;
    }
    Ok(())
}

async fn tree(supervisor: Supervisor) -> Result<Tree, BoxError> {
    let broker = steadfast::connect("embedded:").await?;
    let tree = supervisor.start(Arc::clone(&broker)).await?;
    tree.until_ready().await?;
    Ok(tree)
}

fn tasks() -> Supervisor {
    let idle = std::future::pending::<Result<(), std::io::Error>>;
    (0..CHILDREN)
        .fold(Supervisor::new("tasks"), |supervisor, nth| supervisor.task(format!("task-{nth}"), idle))
}

fn consumers() -> Supervisor {
    (0..CHILDREN).fold(Supervisor::new("consumers"), |supervisor, nth| {
        let consumer = Consumer::new(format!("consumer-{nth}"), Source::queue(format!("queue-{nth}")));
        supervisor.consumer(consumer.handler(|| ignore))
    })
}

/// Bytes that are resident, as Linux counts them.
fn resident() -> Result<u64, BoxError> {
    let pages = fs::read_to_string("/proc/self/statm")?;
    let resident: u64 = pages.split_whitespace().nth(1).ok_or("statm has one number only")?.parse()?;
    Ok(resident * 4096)
}

/// Starts 10,000 of `what`, and says how long that took and how much each holds.
async fn measure(what: &str) -> Result<(), BoxError> {
    let supervisor = match what {
        "actors" => None,
        "tasks" => Some(tasks()),
        "consumers" => Some(consumers()),
        other => return Err(format!("nothing is called `{other}`").into()),
    };
    let (before, began) = (resident()?, Instant::now());
    let tree = match supervisor {
        None => {
            actors().await?;
            None
        }
        Some(supervisor) => Some(tree(supervisor).await?),
    };
    let took = began.elapsed();
    let each = resident()?.saturating_sub(before) / CHILDREN as u64;
    println!("{} {each}", took.as_micros());
    drop(tree);
    // the process ends with all of them: what is measured is their life, not their end
    std::process::exit(0);
}

/// Medians over processes: milliseconds to start them all, bytes for each.
fn ask(what: &str) -> Result<(f64, u64), BoxError> {
    let (mut starts, mut sizes) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let output = Command::new(std::env::current_exe()?).arg(what).output()?;
        let text = String::from_utf8(output.stdout)?;
        let (start, size) =
            text.trim().split_once(' ').ok_or_else(|| format!("measuring {what} printed {text:?}"))?;
        starts.push(start.parse::<u32>()?);
        sizes.push(size.parse::<u64>()?);
    }
    starts.sort_unstable();
    sizes.sort_unstable();
    Ok((f64::from(starts[ROUNDS / 2]) / 1e3, sizes[ROUNDS / 2]))
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    if let Some(what) = std::env::args().nth(1) {
        return measure(&what).await;
    }
    let (bare_start, bare_size) = ask("actors")?;
    println!("{CHILDREN} of each, medians of {ROUNDS} processes\n");
    println!("| | start, ms | ÷ bare | bytes each | ÷ bare |");
    println!("|---|---|---|---|---|");
    println!("| bare ractor actors | {bare_start:.0} | 1 | {bare_size} | 1 |");
    for (what, name) in
        [("tasks", "supervised tasks"), ("consumers", "supervised consumers, embedded broker")]
    {
        let (start, size) = ask(what)?;
        #[expect(clippy::cast_precision_loss, reason = "a ratio of kilobytes")]
        let sizes = size as f64 / bare_size.max(1) as f64;
        println!("| {name} | {start:.0} | {:.1} | {size} | {sizes:.2} |", start / bare_start);
    }
    Ok(())
}
