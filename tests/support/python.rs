//! A Python with the clients that other services use, in a virtual environment of the tests' own.
#![expect(clippy::panic, reason = "a program on the other side that fails has said why")]

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::programs::profile_folder;

const CLIENTS: [&str; 2] = ["aio-pika>=9.4,<10", "redis>=5,<8"];
const IMPORTS: &str = "import aio_pika, redis";

/// A Python that has `aio-pika` and `redis-py`.
#[derive(Clone, Debug)]
pub struct Python {
    program: PathBuf,
}

impl Python {
    /// Makes the environment, or takes the one of an earlier run. None, and a line on stderr that says why, where there is
    /// no Python or nowhere to install from.
    ///
    /// # Panics
    /// Instead of that in continuous integration (`CI=true`), where a test that is skipped would never be missed.
    pub fn find() -> Option<&'static Self> {
        static FOUND: OnceLock<Result<Python, String>> = OnceLock::new();
        match FOUND.get_or_init(Self::make) {
            Ok(python) => Some(python),
            Err(reason) => {
                let ci = std::env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1");
                assert!(!ci, "no Python with aio-pika and redis-py, and this is CI: {reason}");
                // not `eprintln`, which the test harness would swallow
                drop(writeln!(io::stderr(), "SKIPPED: the programs in Python: {reason}"));
                None
            }
        }
    }

    fn make() -> Result<Self, String> {
        let target = profile_folder().parent().map(Path::to_path_buf).unwrap_or_default();
        let folder = target.join("tmp").join("python");
        let program = folder.join("bin").join("python");
        if run(Command::new(&program).args(["-c", IMPORTS])).is_ok() {
            return Ok(Self { program });
        }
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|error| format!("remove {}: {error}", folder.display()))?;
        }
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        run(Command::new(&program)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(CLIENTS))?;
        run(Command::new(&program).args(["-c", IMPORTS]))?;
        Ok(Self { program })
    }

    /// Runs a program of `tests/python` to its end; what it printed, line by line.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&self, script: &str, arguments: &[&str]) -> Vec<String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(script);
        let mut command = Command::new(&self.program);
        match run(command.arg("-B").arg(script).args(arguments)) {
            Ok(output) => output.lines().map(str::to_owned).collect(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn run(command: &mut Command) -> Result<String, String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
