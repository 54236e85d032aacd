//! `cargo xtask bench`: the throughput benches, which print their own table.

use std::path::Path;

use steadfast_testbed::{BrokerSet, RedisServer};

use crate::brokers::Brokers;
use crate::install;
use crate::runner::{Failure, Runner};

const BENCH: [&str; 8] =
    ["run", "--quiet", "--release", "--package", "steadfast-benches", "--bin", "throughput", "--"];

pub(crate) fn run(runner: &mut Runner, json: Option<&Path>, arguments: &[String]) -> Result<(), Failure> {
    install::brokers(runner)?;
    let brokers = Brokers::start(runner, BrokerSet::from_env(), RedisServer::from_env())?;
    let mut command = runner.cargo(&BENCH);
    if let Some(file) = json {
        // Where the caller stands is not where the command runs.
        let file = std::path::absolute(file)
            .map_err(|error| Failure::new(format!("--json {}: {error}", file.display())))?;
        command.arg("--json").arg(file);
    }
    command
        .args(arguments)
        .env("SUT_AMQP_URL", brokers.rabbit.url())
        .env("SUT_REDIS_URL", brokers.redis.url());
    runner.run(&format!("bench with {brokers}"), &mut command)
}
