//! The circuit of a running consumer: lets attempts start, hears how they end, and tells the node.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Admits, Change, Circuit, Signal, Ticket};
use crate::actor::{EventKind, Node, Trouble};
use crate::outcome::{Failure, Outcome};
use crate::telemetry::add;

/// One session's side of its consumer's circuit.
pub(crate) struct Gate {
    circuit: Arc<Mutex<Circuit>>,
    node: Arc<Node>,
}

/// An attempt under way. Dropped without a word, it makes way for the next.
pub(crate) struct Pass {
    gate: Arc<Gate>,
    ticket: Option<Ticket>,
}

impl Gate {
    pub(crate) fn new(circuit: Arc<Mutex<Circuit>>, node: Arc<Node>) -> Self {
        let gate = Self { circuit, node };
        if gate.circuit().is_open() {
            gate.say("its circuit is open since before it was started anew");
        }
        gate
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn admits(&self, now: Instant) -> Admits {
        self.circuit().admits(now)
    }

    /// An attempt starts, as [`admits`](Self::admits) allows.
    pub(crate) fn start(self: &Arc<Self>) -> Pass {
        Pass { ticket: Some(self.circuit().start()), gate: Arc::clone(self) }
    }

    fn say(&self, what: &str) {
        self.node.set_trouble(Trouble::CircuitOpen, Some(what.to_owned()));
    }

    fn tell(&self, change: Change, outcome: &Outcome) {
        let why = match outcome {
            Outcome::Ack => String::new(),
            Outcome::Failed(failure) => failure.chain(),
        };
        match change {
            Change::Opened { failures, probe_in } => {
                self.say(&format!("what it depends on is down: {failures} failures in a row: {why}"));
                add(&self.node.counters().outages);
                self.node.emit(EventKind::CircuitOpened { failures, why, probe_in });
            }
            Change::ProbeFailed { probes, probe_in } => {
                self.say(&format!("what it depends on is down: {probes} probes failed: {why}"));
                let path = &*self.node.path;
                tracing::debug!(target: "steadfast", path, probes, ?probe_in, why, "consumer.probe_failed");
            }
            Change::Closed { down, probes } => {
                self.node.set_trouble(Trouble::CircuitOpen, None);
                self.node.emit(EventKind::CircuitClosed { down, probes });
            }
        }
    }
}

impl Pass {
    /// How the attempt ended; `tried` where it got as far as the handler. For how long the message is put off without an
    /// attempt, if the circuit says so.
    pub(crate) fn end(mut self, outcome: &Outcome, tried: bool) -> Option<Duration> {
        let ticket = self.ticket.take()?;
        let ruling = {
            let mut circuit = self.gate.circuit();
            let signal = Signal::of(outcome, tried, &circuit.breaker);
            circuit.observe(ticket, signal, Instant::now())
        };
        if let Some(change) = ruling.change {
            self.gate.tell(change, outcome);
        }
        if ruling.held.is_some() {
            add(&self.gate.node.counters().held);
        }
        ruling.held
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.gate.circuit().lose(ticket, Instant::now());
        }
    }
}

/// The failure of an attempt that is put off, in the log.
pub(crate) fn held(id: &str, after: Duration, failure: &Failure) {
    let error = failure.chain();
    tracing::debug!(target: "steadfast", id, ?after, error, "message.held");
}
