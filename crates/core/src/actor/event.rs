//! Lifecycle events: to `tracing`, and to whoever subscribes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::broadcast;

/// One step in the life of a child.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// Which child: names from the root down, separated by `/`.
    pub path: Arc<str>,
    /// What happened.
    pub what: EventKind,
}

/// What happened to a child.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// It was started. A consumer is on its way to a subscription.
    Started,
    /// A consumer takes messages; a connection or a publisher stands.
    Running,
    /// A consumer takes no more, and finishes what is in flight.
    Draining,
    /// A consumer was told to take no more for now.
    Paused,
    /// It ended as told, or was done.
    Stopped,
    /// It ended with a fault; what follows is another event.
    Failed {
        /// The chain of reasons.
        why: String,
        /// Whether the broker is away, which spends no restart intensity.
        outage: bool,
    },
    /// It is started again after a while.
    BackingOff {
        /// How long.
        after: Duration,
        /// Restarts within the period that counts, this one included.
        restarts: u32,
        /// How many are allowed.
        limit: u32,
    },
    /// Its supervisor gave up: one restart too many.
    GaveUp {
        /// The chain of reasons.
        why: String,
    },
    /// A handler panicked. Its message has been charged with a failed attempt.
    HandlerPanicked {
        /// What it said.
        why: String,
    },
    /// A fresh handler took the place of one that panicked.
    HandlerReplaced,
    /// A handler blocks its thread: nothing else of its consumer goes on.
    HandlerBlocked {
        /// The handler's type.
        handler: &'static str,
        /// For how long so far.
        since: Duration,
    },
    /// The handler that blocked its thread went on.
    HandlerUnblocked,
    /// A consumer takes nothing although its source has messages.
    Silent {
        /// Messages that wait.
        backlog: u64,
    },
    /// Its circuit breaker opened: what its handler depends on is down. It takes one message at a time until that is back.
    CircuitOpened {
        /// Failures without a success in between.
        failures: u32,
        /// What the last of them said: the chain of reasons.
        why: String,
        /// How long until the first probe.
        probe_in: Duration,
    },
    /// Its circuit breaker closed: a message was handled.
    CircuitClosed {
        /// For how long it was open.
        down: Duration,
        /// How many probes it took.
        probes: u32,
    },
    /// It did not stop in time: what it had in flight was dropped, and is named in the log.
    Abandoned,
    /// It did not end even so, and was killed.
    Killed,
}

/// Where events go. A subscriber that falls behind misses the oldest; nothing waits for it.
#[derive(Clone, Debug)]
pub(crate) struct Bus(broadcast::Sender<Event>);

/// Events kept for a subscriber that is slow.
const KEPT: usize = 1024;

impl Bus {
    pub(crate) fn new() -> Self {
        Self(broadcast::channel(KEPT).0)
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }

    pub(crate) fn emit(&self, path: &Arc<str>, what: EventKind) {
        log(path, &what);
        // nobody has to listen
        let _ = self.0.send(Event { at: SystemTime::now(), path: Arc::clone(path), what });
    }
}

fn log(path: &str, what: &EventKind) {
    match what {
        EventKind::Started => tracing::debug!(target: "steadfast", path, "child.started"),
        EventKind::Running => tracing::info!(target: "steadfast", path, "consumer.running"),
        EventKind::Draining => tracing::info!(target: "steadfast", path, "consumer.draining"),
        EventKind::Paused => tracing::info!(target: "steadfast", path, "consumer.paused"),
        EventKind::Stopped => tracing::info!(target: "steadfast", path, "child.stopped"),
        EventKind::Failed { why, outage } => {
            tracing::warn!(target: "steadfast", path, why, outage, "child.failed");
        }
        EventKind::BackingOff { after, restarts, limit } => {
            tracing::warn!(target: "steadfast", path, ?after, restarts, limit, "child.backing_off");
        }
        EventKind::GaveUp { why } => tracing::error!(target: "steadfast", path, why, "supervisor.gave_up"),
        EventKind::HandlerPanicked { why } => {
            tracing::error!(target: "steadfast", path, why, "consumer.handler_panicked");
        }
        EventKind::HandlerReplaced => tracing::warn!(target: "steadfast", path, "consumer.handler_replaced"),
        EventKind::HandlerBlocked { handler, since } => {
            tracing::error!(target: "steadfast", path, handler, ?since, "consumer.handler_blocked");
        }
        EventKind::HandlerUnblocked => {
            tracing::warn!(target: "steadfast", path, "consumer.handler_unblocked");
        }
        EventKind::Silent { backlog } => {
            tracing::error!(target: "steadfast", path, backlog, "consumer.silent");
        }
        EventKind::CircuitOpened { failures, why, probe_in } => {
            tracing::error!(target: "steadfast", path, failures, why, ?probe_in, "consumer.circuit_opened");
        }
        EventKind::CircuitClosed { down, probes } => {
            tracing::warn!(target: "steadfast", path, ?down, probes, "consumer.circuit_closed");
        }
        EventKind::Abandoned => tracing::warn!(target: "steadfast", path, "child.abandoned"),
        EventKind::Killed => tracing::error!(target: "steadfast", path, "child.killed"),
    }
}
