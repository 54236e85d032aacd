//! The workspace's own commands. What continuous integration runs is `cargo xtask check` and `cargo xtask test`, so what
//! passes here passes there.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command says to a person what it does")]

mod bench;
mod brokers;
mod check;
mod install;
mod metadata;
mod runner;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::runner::{Failure, Runner};

/// The workspace's own commands.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Everything that needs no broker: format, lints, docs, licences, the arrows of dependencies, the oldest Rust.
    Check,
    /// All tests, with private brokers that are installed where they are missing.
    Test {
        /// Once more with the brokers in DIR/bin: rabbitmq-server, rabbitmqctl, redis-server, redis-cli, valkey-server.
        #[arg(long, value_name = "DIR")]
        brokers: Option<PathBuf>,
        /// Goes to `cargo test`.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// The throughput benches, with private brokers.
    Bench {
        /// Where to write the figures as well.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Goes to the bench.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("\nxtask: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<(), Failure> {
    let mut runner = Runner::start()?;
    let result = match task {
        Task::Check => check::run(&mut runner),
        Task::Test { brokers, arguments } => test::run(&mut runner, brokers.as_deref(), &arguments),
        Task::Bench { json, arguments } => bench::run(&mut runner, json.as_deref(), &arguments),
    };
    runner.finish();
    result
}
