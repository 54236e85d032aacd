//! What can go wrong with a private broker. The text quotes the server's own log, because a test that fails in a build
//! log has nothing else to show for it.

use std::{fmt, io};

/// Why a private broker could not be started or told something.
#[derive(Debug)]
pub struct TestbedError {
    kind: TestbedErrorKind,
    text: String,
    source: Option<io::Error>,
}

/// What went wrong, for a caller that decides by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TestbedErrorKind {
    /// A program of the broker set is not there.
    Missing,
    /// The server ended before it answered.
    Ended,
    /// The server did not answer, or did not end, in time.
    Deadline,
    /// A command said no, such as `rabbitmqctl` or `redis-cli`.
    Refused,
    /// The machine said no: a file, a process or a port.
    Io,
}

impl TestbedError {
    pub(crate) fn new(kind: TestbedErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), source: None }
    }

    pub(crate) fn io(text: impl Into<String>, source: io::Error) -> Self {
        Self { kind: TestbedErrorKind::Io, text: text.into(), source: Some(source) }
    }

    /// What went wrong, for a caller that decides by it.
    pub fn kind(&self) -> TestbedErrorKind {
        self.kind
    }
}

impl fmt::Display for TestbedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for TestbedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
