//! Runs commands one after another, says which, and how long each took.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{env, fmt, thread};

use steadfast_testbed::{Guard, TestbedError};

/// Why a task ended early, in one text for a person: a command line that failed, or what to do about something missing.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<TestbedError> for Failure {
    fn from(error: TestbedError) -> Self {
        let source =
            std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        Self(format!("{error}{source}"))
    }
}

/// What a command said, when that is wanted instead of shown.
pub(crate) struct Said {
    pub(crate) success: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(Output { status, stdout, stderr }: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { success: status.success(), out: text(&stdout), err: text(&stderr) }
    }
}

pub(crate) struct Runner {
    root: PathBuf,
    /// Ends what runs if we are ended ourselves, cargo and all that it started.
    guard: Guard,
    took: Vec<(String, Duration)>,
}

impl Runner {
    pub(crate) fn start() -> Result<Self, Failure> {
        // Cargo says where this package is; run by hand, we take the folder we are in.
        let root = env::var_os("CARGO_MANIFEST_DIR")
            .and_then(|package| Some(Path::new(&package).ancestors().nth(2)?.to_path_buf()))
            .unwrap_or_else(|| PathBuf::from("."));
        Ok(Self { root, guard: Guard::start(None)?, took: Vec::new() })
    }

    /// A command that runs in the root of the workspace.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).stdin(Stdio::null());
        command
    }

    /// The cargo that runs us.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let cargo = env::var("CARGO").unwrap_or_else(|_| String::from("cargo"));
        let mut command = self.command(&cargo);
        command.args(arguments);
        command
    }

    /// Runs a command to its end, in the open.
    pub(crate) fn run(&mut self, phase: &str, command: &mut Command) -> Result<(), Failure> {
        let line = line(command);
        println!("\n==> {phase}\n    {line}");
        let start = Instant::now();
        let status = self
            .guard
            .watch(command)
            .status()
            .map_err(|error| Failure(format!("{phase}: could not run `{line}`: {error}")))?;
        self.record(phase, start);
        if status.success() { Ok(()) } else { Err(Failure(format!("{phase}: failed ({status}): `{line}`"))) }
    }

    /// Runs a command to its end and returns what it said.
    pub(crate) fn ask(&self, command: &mut Command) -> Result<Said, Failure> {
        let line = line(command);
        let output = self
            .guard
            .watch(command)
            .output()
            .map_err(|error| Failure(format!("could not run `{line}`: {error}")))?;
        Ok(output.into())
    }

    /// As [`Runner::ask`], but gives up after a while, with `None`, and ends whatever the command has started.
    pub(crate) fn ask_within(limit: Duration, mut command: Command) -> Result<Option<Said>, Failure> {
        let line = line(&command);
        let guard = Guard::start(None)?;
        guard.watch(&mut command);
        let (sender, receiver) = mpsc::channel();
        // The thread ends with the command, which ends with its guard; nobody listening is how a limit looks to it.
        thread::spawn(move || sender.send(command.output()).is_ok());
        match receiver.recv_timeout(limit) {
            Ok(Ok(output)) => Ok(Some(output.into())),
            Ok(Err(error)) => Err(Failure(format!("could not run `{line}`: {error}"))),
            Err(_) => Ok(None),
        }
    }

    pub(crate) fn record(&mut self, phase: &str, start: Instant) {
        self.took.push((phase.to_owned(), start.elapsed()));
    }

    /// Says how long everything took.
    pub(crate) fn finish(self) {
        println!();
        for (phase, took) in &self.took {
            println!("{:>8.1} s  {phase}", took.as_secs_f64());
        }
        let all: Duration = self.took.iter().map(|(_, took)| *took).sum();
        println!("{:>8.1} s  altogether", all.as_secs_f64());
        // Everything we ran has ended. What it left running on purpose, such as a compiler cache, is not ours to end.
        self.guard.dismiss();
    }
}

/// The command as a person would type it, without the variables, which are said where they are set.
pub(crate) fn line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_else(|| command.get_program());
    let words = std::iter::once(program).chain(command.get_args()).map(|word| {
        let word = word.to_string_lossy();
        if word.contains('\n') {
            // A script of ours; its lines say nothing to whom reads which command failed.
            return String::from("…");
        }
        if word.is_empty() || word.contains(char::is_whitespace) {
            format!("'{word}'")
        } else {
            word.into_owned()
        }
    });
    words.collect::<Vec<_>>().join(" ")
}
