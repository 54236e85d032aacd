//! The guard: a small shell that outlives whoever started it just long enough to clean up.
//!
//! A test process can end in ways that run no destructor: a panic in another thread, `abort`, `kill -9`, or an ordinary
//! exit with a broker in a `static`. In each of them the kernel closes the pipe that the guard reads.
//!
//! The guard ends processes by id and knows them by a mark in their environment, which all their children inherit. The
//! process group would not do: `epmd` leaves it to become a daemon.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::{fs, mem};

use crate::error::TestbedError;
use crate::unique::unique;

const MARK: &str = "STEADFAST_TESTBED_MARK";
const DISMISS: &str = "dismiss";

/// `$1` the marked variable, `$2` a folder to remove or nothing, `$3` the order to do neither.
///
/// Signals that a terminal sends to everyone are ignored, since the guard is needed most of all when they come.
///
/// It looks until it has found nothing three times in a row: a process may fork between the look and the kill, and one
/// that is just becoming another program has no environment for a moment. It looks no longer than some seconds, because a
/// process that hangs in the kernel cannot be killed. What `grep` returns is of no use: it reports an error whenever some
/// process of the machine ends under its eyes.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
IFS= read -r order && [ "$order" = "$3" ] && exit 0
rounds=0
quiet=0
while [ $rounds -lt 100 ] && [ $quiet -lt 3 ]; do
    quiet=$((quiet + 1))
    for environ in $(grep -lsxzF "$1" /proc/[0-9]*/environ); do
        pid=${environ#/proc/}
        kill -KILL "${pid%/environ}" 2>/dev/null
        quiet=0
    done
    rounds=$((rounds + 1))
    sleep 0.05
done
[ -z "$2" ] || rm -rf -- "$2"
"#;

/// Ends processes, and removes their folder, when this process drops it or is gone.
#[derive(Debug)]
pub struct Guard {
    mark: String,
    process: Option<Child>,
}

impl Guard {
    /// Starts a guard; it owns `folder`, if there is one, from here on.
    pub fn start(folder: Option<&Path>) -> Result<Self, TestbedError> {
        let mark = unique("guard");
        let process = Command::new("sh")
            .args(["-c", SCRIPT, "steadfast-testbed-guard"])
            .arg(format!("{MARK}={mark}"))
            .arg(folder.map_or(OsStr::new(""), Path::as_os_str))
            .arg(DISMISS)
            // A process of another guard may start this one; it must not be ended before it has done its own work.
            .env_remove(MARK)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| TestbedError::io("starting the guard of a broker (sh)", source))?;
        Ok(Self { mark, process: Some(process) })
    }

    /// Marks a command: whatever it starts is ended with the guard.
    pub fn watch<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env(MARK, &self.mark)
    }

    /// The processes under this guard that are alive now. One that is just becoming another program may be missing.
    pub fn watched(&self) -> Vec<u32> {
        let mark = format!("{MARK}={}", self.mark);
        let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
        processes
            .flatten()
            .filter_map(|process| {
                let pid = process.file_name().to_str()?.parse().ok()?;
                // Unreadable means gone, or another user's, which is none of ours.
                let environ = fs::read(process.path().join("environ")).ok()?;
                environ.split(|byte| *byte == 0).any(|pair| pair == mark.as_bytes()).then_some(pid)
            })
            .collect()
    }

    /// Lets the processes go on without a guard, and leaves the folder.
    pub fn dismiss(mut self) {
        if let Some(pipe) = self.process.as_mut().and_then(|process| process.stdin.as_mut()) {
            // A guard that is gone already has nothing to be told.
            let _ = writeln!(pipe, "{DISMISS}");
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut process) = mem::take(&mut self.process) {
            // `wait` closes the pipe first. Nothing can be done about a guard that cannot be waited for.
            let _ = process.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    fn endless(guard: &Guard) -> Child {
        guard.watch(Command::new("sleep").arg("1000")).spawn().expect("sleep starts")
    }

    #[test]
    fn ends_what_it_watches_and_removes_the_folder() {
        let folder = std::env::temp_dir().join(unique("steadfast-guard"));
        fs::create_dir(&folder).expect("a folder");
        let guard = Guard::start(Some(&folder)).expect("a guard");
        let (mut ours, mut other) =
            (endless(&guard), Command::new("sleep").arg("1000").spawn().expect("sleep"));
        // Polling a process that has yet to become `sleep`, up to a deadline.
        let give_up = Instant::now() + Duration::from_secs(10);
        while guard.watched() != [ours.id()] {
            assert!(Instant::now() < give_up, "watches {:?} and not {}", guard.watched(), ours.id());
            thread::sleep(Duration::from_millis(5));
        }

        drop(guard);

        assert_eq!(ours.wait().expect("waits").signal(), Some(9));
        assert!(!folder.exists());
        assert!(other.try_wait().expect("waits").is_none(), "a process without the mark is left alone");
        other.kill().expect("kills");
        other.wait().expect("waits");
    }

    #[test]
    fn leaves_everything_when_dismissed() {
        let guard = Guard::start(None).expect("a guard");
        let mut child = endless(&guard);
        guard.dismiss();
        assert!(child.try_wait().expect("waits").is_none());
        child.kill().expect("kills");
        child.wait().expect("waits");
    }
}
