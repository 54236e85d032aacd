//! The compiled examples, and processes whose output is waited for line by line.
#![expect(clippy::panic, reason = "a test whose programs cannot be built or started cannot go on")]

use std::env;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// The example of this name, compiled as the tests are.
///
/// # Panics
/// If the examples do not compile.
pub fn example(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(build_examples).join(name)
}

/// The operator's command, compiled as the tests are.
///
/// # Panics
/// If it does not compile.
pub fn operator() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| build(&["--bin", "steadfast"])).join("steadfast")
}

/// Builds what `cargo test --workspace --all-features` has built already, so that after it there is nothing to do, and a
/// test that is run by itself does not meet an old example.
fn build_examples() -> PathBuf {
    build(&["--examples"]).join("examples")
}

/// Builds these, and returns the folder that they are in.
fn build(what: &[&str]) -> PathBuf {
    let profile = profile_folder();
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--workspace", "--all-features"]).args(what);
    if profile.ends_with("release") {
        build.arg("--release");
    }
    match build.output() {
        Ok(output) if output.status.success() => profile,
        Ok(output) => panic!("build {what:?}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => panic!("start cargo to build {what:?}: {error}"),
    }
}

/// `target/debug` or its like: a test lives in `deps` below it.
pub(crate) fn profile_folder() -> PathBuf {
    match env::current_exe() {
        Ok(path) => path.ancestors().nth(2).map(PathBuf::from).unwrap_or_default(),
        Err(error) => panic!("find the running test: {error}"),
    }
}

/// Sends SIGTERM.
///
/// # Panics
/// If there is no such process.
pub fn terminate(pid: u32) {
    let status = Command::new("kill").args(["-TERM", &pid.to_string()]).status();
    assert!(status.is_ok_and(|status| status.success()), "send SIGTERM to process {pid}");
}

/// A process, and what it prints. It is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    /// Starts it with its stdout to be read here.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let mut child = match command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => panic!("start {command:?}: {error}"),
        };
        let (send, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                let lines = BufReader::new(stdout).lines().map_while(Result::ok);
                // a test that has seen enough drops the other end
                lines.take_while(|line| send.send(line.clone()).is_ok()).for_each(drop);
            });
        }
        Self { child, lines }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line; none when it has closed its stdout.
    ///
    /// # Panics
    /// If nothing comes for a minute.
    pub fn line(&self) -> Option<String> {
        match self.lines.recv_timeout(Duration::from_secs(60)) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("process {} has been silent for a minute", self.pid()),
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If its parent may not wait for it.
    pub fn wait(mut self) -> ExitStatus {
        match self.child.wait() {
            Ok(status) => status,
            Err(error) => panic!("wait for process {}: {error}", self.pid()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // one that has ended is neither killed nor waited for again
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
