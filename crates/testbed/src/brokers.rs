//! Which brokers: those of the distribution, or a folder with others, such as a newer generation.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::{TestbedError, TestbedErrorKind};

/// The variable that names the folder of [`BrokerSet::from_env`].
pub const BROKERS: &str = "STEADFAST_BROKERS";
/// The variable that names the server of [`RedisServer::from_env`].
pub const REDIS_SERVER: &str = "STEADFAST_REDIS_SERVER";

/// Debian's `/usr/sbin/rabbitmq-server` changes to the user `rabbitmq` and to that user's folders, so the script behind
/// it comes first. The others are where systems keep servers that are not on everybody's PATH.
const USUAL_FOLDERS: [&str; 4] = ["/usr/lib/rabbitmq/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Where the programs of the brokers come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BrokerSet {
    folder: Option<PathBuf>,
}

/// Which server speaks the Redis protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RedisServer {
    /// `redis-server`
    #[default]
    Redis,
    /// `valkey-server`
    Valkey,
}

impl BrokerSet {
    /// The brokers that the system's packages installed.
    pub fn distribution() -> Self {
        Self { folder: None }
    }

    /// The brokers in `folder`, whose `bin` holds `rabbitmq-server`, `rabbitmqctl`, `redis-server`, `redis-cli` and, for
    /// [`RedisServer::Valkey`], `valkey-server`. They may live in a root of their own, as long as `/tmp` is the same.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()) }
    }

    /// The folder named by the variable `STEADFAST_BROKERS`, otherwise the distribution's.
    pub fn from_env() -> Self {
        Self { folder: env::var_os(BROKERS).filter(|folder| !folder.is_empty()).map(PathBuf::from) }
    }

    /// Whether a program of this set is there.
    pub fn has(&self, program: &str) -> bool {
        self.find(program).is_ok()
    }

    /// Where the data folders go: a set that lives in a root of its own shares no other folder with us.
    pub(crate) fn temporary_folder(&self) -> PathBuf {
        self.folder.as_ref().map_or_else(env::temp_dir, |_| PathBuf::from("/tmp"))
    }

    pub(crate) fn find(&self, program: &str) -> Result<PathBuf, TestbedError> {
        let found = match &self.folder {
            Some(folder) => Some(folder.join("bin").join(program)).filter(|path| path.is_file()),
            None => find_in_system(program),
        };
        found.ok_or_else(|| TestbedError::new(TestbedErrorKind::Missing, self.missing(program)))
    }

    fn missing(&self, program: &str) -> String {
        match &self.folder {
            Some(folder) => {
                format!("no {program} in {}, the folder that {BROKERS} names", folder.join("bin").display())
            }
            None => format!(
                "no {program} on this machine: `cargo xtask test` installs it where it can, or install the Debian \
                 packages redis-server and rabbitmq-server"
            ),
        }
    }
}

impl RedisServer {
    /// The server named by the variable `STEADFAST_REDIS_SERVER`: `valkey-server`, otherwise `redis-server`.
    pub fn from_env() -> Self {
        match env::var(REDIS_SERVER) {
            Ok(name) if name == Self::Valkey.program() => Self::Valkey,
            Ok(_) | Err(_) => Self::Redis,
        }
    }

    /// The name of the program, which is also what `STEADFAST_REDIS_SERVER` is set to.
    pub fn program(self) -> &'static str {
        match self {
            Self::Redis => "redis-server",
            Self::Valkey => "valkey-server",
        }
    }

    /// What its makers call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Redis => "Redis",
            Self::Valkey => "Valkey",
        }
    }
}

fn find_in_system(program: &str) -> Option<PathBuf> {
    let [rabbitmq, rest @ ..] = USUAL_FOLDERS.map(Path::new);
    let path = env::var_os("PATH").unwrap_or_default();
    std::iter::once(rabbitmq.to_path_buf())
        .chain(env::split_paths(&path))
        .chain(rest.map(Path::to_path_buf))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_says_what_to_do() {
        let error = BrokerSet::distribution().find("no-such-server").expect_err("there is no such server");
        assert_eq!(error.kind(), TestbedErrorKind::Missing);
        assert!(error.to_string().contains("cargo xtask test"), "{error}");
        assert!(error.to_string().contains("rabbitmq-server"), "{error}");
    }

    #[test]
    fn a_folder_without_the_program_is_named() {
        let error =
            BrokerSet::in_folder("/nowhere").find("redis-server").expect_err("there is no such folder");
        assert!(error.to_string().contains("/nowhere/bin"), "{error}");
    }
}
