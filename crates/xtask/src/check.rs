//! `cargo xtask check`: everything that can be said about the code without running it.

use std::time::{Duration, Instant};

use crate::metadata::{self, Reach};
use crate::runner::{self, Failure, Runner};

/// Each broker alone must build, so that a feature only ever adds.
const BROKERS: [&str; 3] = ["amqp", "streams", "embedded"];
/// The advisories come over the network, which may not be there; that must not hold up the rest.
const FETCH_WITHIN: Duration = Duration::from_secs(60);

pub(crate) fn run(runner: &mut Runner) -> Result<(), Failure> {
    format(runner)?;
    lints(runner)?;
    docs(runner)?;
    oldest_rust(runner)?;
    dependencies(runner)?;
    println!("\nAll checks passed.");
    Ok(())
}

fn format(runner: &mut Runner) -> Result<(), Failure> {
    let mut command = runner.cargo(&["fmt", "--all", "--check"]);
    runner.run("format", &mut command)
}

fn lints(runner: &mut Runner) -> Result<(), Failure> {
    let everything = ["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
    let mut command = runner.cargo(&everything);
    runner.run("lints", &mut command)?;
    let mut command =
        runner.cargo(&["clippy", "-p", "steadfast", "--no-default-features", "--", "-D", "warnings"]);
    runner.run("lints, no features", &mut command)?;
    for broker in BROKERS {
        let one = [
            "clippy",
            "-p",
            "steadfast",
            "--no-default-features",
            "--features",
            broker,
            "--",
            "-D",
            "warnings",
        ];
        let mut command = runner.cargo(&one);
        runner.run(&format!("lints, only {broker}"), &mut command)?;
    }
    Ok(())
}

fn docs(runner: &mut Runner) -> Result<(), Failure> {
    let mut command = runner.cargo(&["doc", "--workspace", "--no-deps", "--all-features"]);
    runner.run("docs, with RUSTDOCFLAGS=-Dwarnings", command.env("RUSTDOCFLAGS", "-Dwarnings"))
}

/// No dependency may ask for a newer Rust than we do, or ours is a promise we cannot keep.
fn oldest_rust(runner: &mut Runner) -> Result<(), Failure> {
    let start = Instant::now();
    println!("\n==> oldest Rust that the dependencies ask for");
    let packages = metadata::packages(runner, Reach::Resolved)?;
    let asks = |package: &serde_json::Value| package["rust_version"].as_str().map(str::to_owned);
    let ours = packages
        .iter()
        .find(|package| package["name"] == "steadfast")
        .and_then(asks)
        .ok_or_else(|| Failure::new("oldest Rust: the package steadfast states no rust-version"))?;
    let newer: Vec<String> = packages
        .iter()
        .filter_map(|package| Some((package, asks(package)?)))
        .filter(|(_, asked)| version(asked) > version(&ours))
        .map(|(package, asked)| {
            format!("{} {} asks for Rust {asked}", text(package, "name"), text(package, "version"))
        })
        .collect();
    runner.record("oldest Rust", start);
    if newer.is_empty() {
        println!("    {} packages, none asks for more than {ours}", packages.len());
        return Ok(());
    }
    Err(Failure::new(format!(
        "oldest Rust: the workspace states rust-version {ours}, but\n  {}",
        newer.join("\n  ")
    )))
}

fn dependencies(runner: &mut Runner) -> Result<(), Failure> {
    if !has_cargo_deny(runner) {
        // it runs for a second, and takes minutes to be optimised
        let mut install = runner.cargo(&["install", "cargo-deny", "--locked", "--debug"]);
        if let Err(failure) = runner.run("install cargo-deny", &mut install) {
            println!(
                "\nSKIPPED: bans, licences, sources and advisories, because cargo-deny is missing. {failure}"
            );
            return Ok(());
        }
    }
    let mut command = runner.cargo(&["deny", "check", "bans", "licenses", "sources"]);
    runner.run("bans, licences, sources", &mut command)?;
    advisories(runner)
}

fn has_cargo_deny(runner: &Runner) -> bool {
    runner.ask(&mut runner.cargo(&["deny", "--version"])).is_ok_and(|said| said.success)
}

fn advisories(runner: &mut Runner) -> Result<(), Failure> {
    let start = Instant::now();
    let mut command = runner.cargo(&["deny", "check", "advisories"]);
    // Nobody is there to type a password.
    command.env("GIT_TERMINAL_PROMPT", "0");
    let line = runner::line(&command);
    println!("\n==> advisories\n    {line}");
    let said = Runner::ask_within(FETCH_WITHIN, command)?;
    runner.record("advisories", start);
    match said {
        Some(said) if said.success => println!("    {}", said.err.trim()),
        Some(said) if said.err.contains("failed to fetch advisory database") => {
            let why = said.err.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            println!("    SKIPPED: the advisory database could not be fetched: {}", why.trim());
        }
        Some(said) => return Err(Failure::new(format!("advisories: failed: `{line}`\n{}", said.err))),
        None => println!("    SKIPPED: the advisory database was not there within {FETCH_WITHIN:?}"),
    }
    Ok(())
}

/// 1.88 and 1.88.0 are the same Rust.
fn version(text: &str) -> [u64; 3] {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

fn text<'v>(package: &'v serde_json::Value, key: &str) -> &'v str {
    package[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(version("1.88"), version("1.88.0"));
        assert!(version("1.100") > version("1.88.1"));
        assert!(version("1.63.0") < version("1.88"));
    }
}
