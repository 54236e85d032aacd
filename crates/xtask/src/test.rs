//! `cargo xtask test`: all tests, with one private broker of each kind for all of them.
//!
//! A run with other brokers names the same workspace and features as the first one, and only picks the targets of the
//! package with the broker tests. Picking that package alone would unify features anew and build everything again.

use std::path::Path;
use std::process::Command;

use steadfast_testbed::{BrokerSet, RedisServer, shared};

use crate::brokers::{self, Brokers};
use crate::runner::{Failure, Runner};
use crate::{install, metadata};

const BROKER_TESTS: &str = "steadfast-tests";
const EVERYTHING: [&str; 3] = ["test", "--workspace", "--all-features"];

/// A test, or a target of tests, with one of these in its name needs a server with Redis' protocol: they are what is run
/// with Valkey.
const REDIS_NAMES: [&str; 2] = ["redis", "streams"];

/// Minutes of kills at each command of a message's way, which are the same commands there.
const NOT_ON_VALKEY: &str = "steps";

/// The tests of Redis Streams, which can use a cluster instead of one server; and which of them would be no different there:
/// they have servers of their own kind.
const STREAMS: &str = "streams";
const OWN_KIND: [&str; 6] = ["cluster::", "moving::", "outages::", "sentinels::", "stale::", "tls::"];

pub(crate) fn run(runner: &mut Runner, brokers: Option<&Path>, arguments: &[String]) -> Result<(), Failure> {
    install::run(runner)?;
    // Anyone's choice of tests is run once and as it is; the build is only told apart from the tests when all are run.
    if arguments.is_empty() {
        let mut build = runner.cargo(&EVERYTHING);
        runner.run("build the tests", build.arg("--no-run"))?;
    }
    distribution(runner, arguments)?;
    if arguments.is_empty() {
        on_cluster(runner)?;
    }
    if let Some(folder) = brokers {
        let folder = std::path::absolute(folder)
            .map_err(|error| Failure::new(format!("--brokers {}: {error}", folder.display())))?;
        other_brokers(runner, &folder)?;
        valkey(runner, &folder)?;
    }
    Ok(())
}

/// `cargo test` as everybody knows it: libraries, programs, tests and examples, then the examples in the docs.
fn distribution(runner: &mut Runner, arguments: &[String]) -> Result<(), Failure> {
    let brokers = Brokers::start(runner, BrokerSet::distribution(), RedisServer::Redis)?;
    let chosen = arguments.iter().any(|argument| argument == "-p" || argument.starts_with("--package"));
    let mut command =
        if chosen { runner.cargo(&["test", "--all-features"]) } else { runner.cargo(&EVERYTHING) };
    brokers.name_in(command.args(arguments));
    runner.run(&format!("test with {brokers}"), &mut command)
}

fn on_cluster(runner: &mut Runner) -> Result<(), Failure> {
    let mut command = only(runner, &[STREAMS.to_owned()]);
    command.arg("--").args(OWN_KIND.iter().flat_map(|name| ["--skip", name]));
    command.env(shared::ON_CLUSTER, "1").env_remove(brokers::FOLDER).env_remove(brokers::REDIS_SERVER);
    runner.run("test Redis Streams on a cluster", &mut command)
}

fn other_brokers(runner: &mut Runner, folder: &Path) -> Result<(), Failure> {
    let targets = metadata::tests_of(runner, BROKER_TESTS)?;
    let brokers = Brokers::start(runner, BrokerSet::in_folder(folder), RedisServer::Redis)?;
    let mut command = only(runner, &targets);
    brokers.name_in(command.env(brokers::FOLDER, folder));
    runner.run(&format!("test with {brokers}"), &mut command)
}

fn valkey(runner: &mut Runner, folder: &Path) -> Result<(), Failure> {
    let is_redis = |name: &String| REDIS_NAMES.iter().any(|part| name.contains(part));
    let (whole, rest): (Vec<_>, Vec<_>) =
        metadata::tests_of(runner, BROKER_TESTS)?.into_iter().partition(is_redis);
    let rest: Vec<_> = rest.into_iter().filter(|name| name != NOT_ON_VALKEY).collect();
    let brokers = Brokers::start(runner, BrokerSet::in_folder(folder), RedisServer::Valkey)?;
    let mut names = vec!["--"];
    names.extend(REDIS_NAMES);
    for (targets, filter) in [(whole, &[][..]), (rest, &names[..])] {
        if !targets.is_empty() {
            let mut command = only(runner, &targets);
            command
                .args(filter)
                .env(brokers::FOLDER, folder)
                .env(brokers::REDIS_SERVER, RedisServer::Valkey.program());
            brokers.name_in(&mut command);
            runner.run(&format!("test with {brokers}"), &mut command)?;
        }
    }
    Ok(())
}

/// These test targets, in the build that there is already.
fn only(runner: &Runner, targets: &[String]) -> Command {
    let mut command = runner.cargo(&EVERYTHING);
    for target in targets {
        command.args(["--test", target]);
    }
    command
}
