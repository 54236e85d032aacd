//! Drain on a signal.

use std::fmt;

use crate::actor::{StartError, Tree};
use crate::error::chain;

/// Runs the tree until SIGTERM or SIGINT, or until it ends by itself; then drains it. A second signal drops what is in
/// flight.
pub(crate) async fn until_signal(tree: Tree) -> Result<(), RunError> {
    let mut signals = Signals::listen().map_err(RunError::Signal)?;
    tokio::select! {
        // the broker is closed all the same
        ended = tree.ended() => return tree.drain().await.and(ended),
        name = signals.next() => tracing::info!(target: "steadfast", signal = name, "draining"),
    }
    let abandon = tree.abandoner();
    let drained = tree.drain();
    tokio::pin!(drained);
    tokio::select! {
        ended = &mut drained => return ended,
        name = signals.next() => tracing::warn!(target: "steadfast", signal = name, "second signal: dropping what is in flight"),
    }
    abandon();
    drained.await
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> &'static str {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        "Ctrl-C"
    }
}

/// A tree ended otherwise than by being told to.
#[non_exhaustive]
pub enum RunError {
    /// It was never started.
    Start(StartError),
    /// The root supervisor gave up; the text is the chain of reasons.
    GaveUp(String),
    /// The process cannot listen for signals.
    Signal(std::io::Error),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(_) => f.write_str("start the supervision tree"),
            Self::GaveUp(reason) => f.write_str(reason),
            Self::Signal(_) => f.write_str("listen for SIGTERM and SIGINT"),
        }
    }
}

/// The chain of reasons: what a program prints whose `main` returns it.
impl fmt::Debug for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(self))
    }
}

impl std::error::Error for RunError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Start(error) => Some(error),
            Self::Signal(error) => Some(error),
            Self::GaveUp(_) => None,
        }
    }
}
