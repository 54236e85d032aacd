//! Every event name and every counter, in one table.
//!
//! | event (`tracing` target `steadfast`) | level | when |
//! |---|---|---|
//! | `child.started` | debug | a child is started |
//! | `consumer.running` | info | a subscription, a connection or a publisher stands; a supervisor started |
//! | `consumer.draining` | info | a consumer takes no more, and finishes what is in flight |
//! | `consumer.paused` | info | a consumer was told to take no more for now |
//! | `child.stopped` | info | a child ended as told, or was done |
//! | `child.failed` | warn | a child ended with a fault; the reason is in `why` |
//! | `child.backing_off` | warn | a supervisor waits before it starts a child again |
//! | `supervisor.gave_up` | error | more restarts than the intensity allows |
//! | `consumer.handler_panicked` | error | a handler panicked; what it said is in `why` |
//! | `consumer.handler_replaced` | warn | a fresh handler took the place of one that panicked |
//! | `consumer.handler_blocked` | error | a handler keeps its thread |
//! | `consumer.handler_unblocked` | warn | it went on |
//! | `consumer.silent` | error | a consumer takes nothing although messages wait |
//! | `child.abandoned` | warn | a consumer did not stop in time: what it had in flight is dropped |
//! | `child.killed` | error | a child did not end even so |
//! | `consumer.circuit_opened` | error | a circuit breaker opened: what the handler depends on is down |
//! | `consumer.probe_failed` | debug | it is still down |
//! | `consumer.circuit_closed` | warn | it is back |
//! | `message.retry` | debug | an attempt failed, and another follows |
//! | `message.dead` | warn | a message is safe in the dead letters |
//! | `message.on_dead_failed` | error | a handler's `on_dead` failed; the message goes to the dead letters all the same |
//! | `message.held` | debug | an attempt failed while the circuit was open, and is not counted |
//! | `message.suspect` | warn | a message that was delivered twice and never settled runs alone |
//! | `message.overdue` | warn | RabbitMQ: a delivery is unsettled for four fifths of the broker's consumer timeout |
//! | `message.republished` | debug | a publish whose outcome is unknown is made again |
//! | `message.dropped` | info | a handler ignored a message on purpose |
//! | `message.late` | warn | a settlement came after the delivery was no longer ours |
//! | `message.abandoned` | warn | a handler did not finish before the deadline of a stop |
//! | `message.not_stored` | warn | a retry or a dead letter cannot be stored, and is tried again |

use std::sync::atomic::{AtomicU64, Ordering};

use crate::dead_letter::Reason;

/// What a consumer has done since its supervisor was started; restarts do not reset it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Messages acknowledged after a handler said Ok.
    pub handled: u64,
    /// Attempts that failed and will be made again.
    pub retried: u64,
    /// Messages put off without an attempt.
    pub snoozed: u64,
    /// Of those put off, how many failed while the circuit was open ([`CircuitBreaker`](crate::CircuitBreaker)).
    pub held: u64,
    /// How often the circuit opened.
    pub outages: u64,
    /// Messages ignored on purpose.
    pub dropped: u64,
    /// Messages that are safe in the dead letters, by reason; reasons without any are left out.
    pub dead: Vec<(Reason, u64)>,
    /// Attempts that panicked.
    pub panics: u64,
    /// Restarts: of the consumer after a fault, and of its handler after a panic.
    pub restarts: u64,
    /// Settlements that came after the delivery was no longer ours; the broker delivers those messages again.
    pub late: u64,
}

impl Stats {
    /// Dead letters of all reasons.
    pub fn dead_total(&self) -> u64 {
        self.dead.iter().map(|(_, count)| count).sum()
    }
}

/// The counters behind [`Stats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) handled: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) snoozed: AtomicU64,
    pub(crate) held: AtomicU64,
    pub(crate) outages: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) restarts: AtomicU64,
    pub(crate) late: AtomicU64,
    dead: [AtomicU64; Reason::ALL.len()],
}

impl Counters {
    pub(crate) fn dead(&self, reason: Reason) {
        if let Some(at) = Reason::ALL.iter().position(|known| *known == reason) {
            add(&self.dead[at]);
        }
    }

    /// Adds what another has counted.
    pub(crate) fn inherit(&self, other: &Self) {
        for (ours, theirs) in self.all().zip(other.all()) {
            ours.fetch_add(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn all(&self) -> impl Iterator<Item = &AtomicU64> {
        let Self { handled, retried, snoozed, held, outages, dropped, panics, restarts, late, dead } = self;
        [handled, retried, snoozed, held, outages, dropped, panics, restarts, late].into_iter().chain(dead)
    }

    pub(crate) fn snapshot(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            handled: read(&self.handled),
            retried: read(&self.retried),
            snoozed: read(&self.snoozed),
            held: read(&self.held),
            outages: read(&self.outages),
            dropped: read(&self.dropped),
            dead: Reason::ALL
                .iter()
                .copied()
                .zip(self.dead.iter().map(read))
                .filter(|(_, n)| *n > 0)
                .collect(),
            panics: read(&self.panics),
            restarts: read(&self.restarts),
            late: read(&self.late),
        }
    }
}

pub(crate) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
