//! One server process with its folder and its guard: what `RabbitMQ` and Redis have in common.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::brokers::BrokerSet;
use crate::error::{TestbedError, TestbedErrorKind};
use crate::guard::Guard;
use crate::unique::unique;

/// How often a server that is starting or stopping is looked at: it has no way to tell us.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How long a server may take to say something once it has accepted a connection, before we ask again.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const STOP_WITHIN: Duration = Duration::from_secs(30);
const QUOTED_LINES: usize = 30;

#[derive(Debug)]
pub(crate) struct Server {
    name: &'static str,
    port: u16,
    deadline: Duration,
    folder: PathBuf,
    guard: Guard,
    child: Mutex<Option<Child>>,
}

impl Server {
    /// Makes the folder and its guard; nothing runs yet.
    pub(crate) fn prepare(
        name: &'static str,
        brokers: &BrokerSet,
        port: u16,
        deadline: Duration,
    ) -> Result<Self, TestbedError> {
        let folder = brokers.temporary_folder().join(unique(&format!("steadfast-{}", name.to_lowercase())));
        DirBuilder::new().mode(0o700).create(&folder).map_err(|source| {
            TestbedError::io(format!("creating the folder {}", folder.display()), source)
        })?;
        let guard = Guard::start(Some(&folder))?;
        Ok(Self { name, port, deadline, folder, guard, child: Mutex::new(None) })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn processes(&self) -> Vec<u32> {
        self.guard.watched()
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// Starts the server and waits until `probe` has its version from it.
    pub(crate) fn run(
        &self,
        mut command: Command,
        probe: impl Fn(TcpStream) -> io::Result<Option<String>>,
    ) -> Result<String, TestbedError> {
        let log = self.log()?;
        let errors = log.try_clone().map_err(|source| self.io("writing the log of", source))?;
        // A process group of its own: a terminal's Ctrl-C is for the test process; the guard ends the server after it.
        command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
        let child = self.guard.watch(&mut command).spawn().map_err(|source| self.io("starting", source))?;
        *self.child() = Some(child);
        self.wait_until_ready(probe).inspect_err(|_| {
            // The first error is the one to report.
            let _ = self.kill9();
        })
    }

    /// SIGKILL: what a crash of the machine looks like to the server's data.
    pub(crate) fn kill9(&self) -> Result<(), TestbedError> {
        if let Some(mut child) = self.child().take() {
            child.kill().map_err(|source| self.io("killing", source))?;
            child.wait().map_err(|source| self.io("waiting for", source))?;
        }
        Ok(())
    }

    /// SIGTERM: the server puts its house in order first.
    pub(crate) fn stop(&self) -> Result<(), TestbedError> {
        if self.pid().is_none() {
            return Ok(());
        }
        // A paused process takes no notice of SIGTERM until it goes on.
        self.signal("CONT")?;
        self.signal("TERM")?;
        let give_up = Instant::now() + STOP_WITHIN;
        while Instant::now() < give_up {
            if self.exited()?.is_some() {
                *self.child() = None;
                return Ok(());
            }
            // Polling an external process, up to the deadline above.
            thread::sleep(LOOK_EVERY);
        }
        self.kill9()?;
        Err(self.failed(
            TestbedErrorKind::Deadline,
            &format!("did not stop within {STOP_WITHIN:?} and was killed"),
        ))
    }

    /// The standard library has no safe way to send a signal other than SIGKILL, hence the command.
    pub(crate) fn signal(&self, signal: &str) -> Result<(), TestbedError> {
        let pid = self.pid().ok_or_else(|| {
            self.failed(TestbedErrorKind::Ended, &format!("does not run, cannot send it SIG{signal}"))
        })?;
        run_command(Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string())).map(|_| ())
    }

    fn wait_until_ready(
        &self,
        probe: impl Fn(TcpStream) -> io::Result<Option<String>>,
    ) -> Result<String, TestbedError> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let give_up = Instant::now() + self.deadline;
        let mut last = String::from("nothing listened");
        while Instant::now() < give_up {
            if let Some(status) = self.exited()? {
                return Err(
                    self.failed(TestbedErrorKind::Ended, &format!("ended before it answered ({status})"))
                );
            }
            match connect(address).and_then(&probe) {
                Ok(Some(version)) => return Ok(version),
                Ok(None) => last = String::from("it said that it is not ready"),
                Err(error) => last = error.to_string(),
            }
            // Polling an external process, up to the deadline above.
            thread::sleep(LOOK_EVERY);
        }
        let what = format!("did not answer on {address} within {:?} (last: {last})", self.deadline);
        Err(self.failed(TestbedErrorKind::Deadline, &what))
    }

    fn exited(&self) -> Result<Option<String>, TestbedError> {
        let mut child = self.child();
        let Some(child) = child.as_mut() else { return Ok(Some(String::from("killed"))) };
        let status = child.try_wait().map_err(|source| self.io("waiting for", source))?;
        Ok(status.map(|status| status.to_string()))
    }

    /// The child is only ever replaced as a whole, so a panic elsewhere leaves nothing half done in it.
    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> Result<File, TestbedError> {
        let path = self.folder.join("server.log");
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|source| TestbedError::io(format!("opening {}", path.display()), source))
    }

    fn io(&self, doing: &str, source: io::Error) -> TestbedError {
        TestbedError::io(format!("{doing} {}", self.name), source)
    }

    fn failed(&self, kind: TestbedErrorKind, what: &str) -> TestbedError {
        TestbedError::new(kind, format!("{} {what}\n{}", self.name, self.quoted_logs()))
    }

    fn quoted_logs(&self) -> String {
        let mut logs = vec![self.folder.join("server.log")];
        logs.extend(
            fs::read_dir(self.folder.join("log")).into_iter().flatten().flatten().map(|entry| entry.path()),
        );
        let quoted: Vec<String> = logs
            .iter()
            .filter_map(|path| Some((path, fs::read(path).ok()?)))
            .map(|(path, bytes)| {
                let text = String::from_utf8_lossy(&bytes);
                let lines: Vec<&str> = text.lines().collect();
                let last = &lines[lines.len().saturating_sub(QUOTED_LINES)..];
                format!("--- the end of {}:\n{}", path.display(), last.join("\n"))
            })
            .collect();
        quoted.join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The guard, which is dropped next, ends whatever this does not.
        let _ = self.kill9();
    }
}

/// Runs `start` again while it fails because somebody else took the port in between.
pub(crate) fn with_other_ports<T>(start: impl Fn() -> Result<T, TestbedError>) -> Result<T, TestbedError> {
    let taken = |error: &TestbedError| {
        let text = error.to_string().to_lowercase();
        text.contains("eaddrinuse") || text.contains("already in use")
    };
    (0..3)
        .find_map(|_| Some(start()).filter(|result| !result.as_ref().is_err_and(taken)))
        .unwrap_or_else(start)
}

/// Waits for something that servers do among themselves.
pub(crate) fn until(
    what: &str,
    deadline: Duration,
    mut reached: impl FnMut() -> Result<bool, TestbedError>,
) -> Result<(), TestbedError> {
    let give_up = Instant::now() + deadline;
    while !reached()? {
        if Instant::now() > give_up {
            return Err(TestbedError::new(
                TestbedErrorKind::Deadline,
                format!("not within {deadline:?}: {what}"),
            ));
        }
        // Polling external processes, up to the deadline above.
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Runs a command to its end and returns what it wrote.
pub(crate) fn run_command(command: &mut Command) -> Result<String, TestbedError> {
    let line = format!("{command:?}");
    let Output { status, stdout, stderr } = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| TestbedError::io(format!("running {line}"), source))?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&stderr);
    Err(TestbedError::new(TestbedErrorKind::Refused, format!("{line} failed ({status})\n{stdout}{stderr}")))
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    Ok(stream)
}
