//! PURE: the circuit breaker. While what the handlers depend on is down, one message at a time finds out whether it is back,
//! and no attempt is counted.
//!
//! Owns the setting and the states. Time comes in as an argument; who is told, and who waits, is [`gate`]'s and the session's.

use std::ops::Range;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub(crate) use self::gate::{Gate, Pass, held};
use crate::duration::text;
use crate::outcome::{Cause, Failure, Outcome, Verdict};
use crate::retry::FailureClass;

mod gate;
#[cfg(test)]
mod tests;

/// When a consumer takes it that what its handler depends on is down, and how it finds out that it is back.
///
/// | setting | default |
/// |---|---|
/// | [`threshold`](Self::threshold) | 5 failures in a row |
/// | [`probes`](Self::probes) | after 1 s, then twice as long each time, up to 30 s |
///
/// Failures of its classes are counted until a message is handled. At the threshold the circuit opens: the message that
/// failed last and those that are still in flight and fail likewise are put off (as by [`Failure::snooze`]) without an attempt
/// counted, what was taken and not started goes back, and nothing more is taken but one message at a time, a probe. It
/// closes with the first probe that is handled. Failures before it opens, one less than the threshold, are attempts as
/// any other. Other failures say nothing about the dependency: they are decided by the retry policy, open or not.
///
/// While it is open the consumer is not ready; see also [`EventKind::CircuitOpened`](crate::EventKind::CircuitOpened). Each
/// process has a circuit of its own.
///
/// ```
/// use steadfast_core::{CircuitBreaker, Consumer, DurationExt, Failure, FailureClass};
///
/// // the handler says so: `client.charge(..).await.map_err(|error| Failure::retry(error).class("bank-down"))?`
/// let breaker = CircuitBreaker::on(FailureClass::tag("bank-down"))
///     .or(FailureClass::Timeout)
///     .threshold(3)
///     .probes(500.millis()..30.secs());
/// let consumer = Consumer::new("billing", "orders").circuit_breaker(breaker);
/// # let _ = consumer;
/// ```
///
/// It is data, for a config file; what is left out has its default:
///
/// ```
/// # use steadfast_core::{CircuitBreaker, FailureClass};
/// let breaker: CircuitBreaker = serde_json::from_str(r#"{
///     "classes": [ { "tag": "bank-down" }, "timeout" ],
///     "threshold": 3,
///     "probes": { "first": "500ms", "cap": "30s" }
/// }"#)?;
/// # assert_ne!(breaker, CircuitBreaker::on(FailureClass::tag("bank-down")));
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CircuitBreaker {
    classes: Vec<FailureClass>,
    #[serde(default = "five")]
    threshold: u32,
    #[serde(default)]
    probes: Probes,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Probes {
    #[serde(with = "text")]
    first: Duration,
    #[serde(with = "text")]
    cap: Duration,
}

impl Default for Probes {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), cap: Duration::from_secs(30) }
    }
}

const fn five() -> u32 {
    5
}

/// No probe follows another sooner.
const SOONEST: Duration = Duration::from_millis(10);

impl CircuitBreaker {
    /// Opens by failures of this class. A panic is the handler's fault and not its dependency's, so
    /// [`FailureClass::Panic`] is refused when the consumer starts.
    pub fn on(class: FailureClass) -> Self {
        Self { classes: vec![class], threshold: five(), probes: Probes::default() }
    }

    /// And by failures of this one; they are counted together.
    #[must_use]
    pub fn or(mut self, class: FailureClass) -> Self {
        self.classes.push(class);
        self
    }

    /// How many failures without a success in between open it; at least 1. Default 5.
    #[must_use]
    pub fn threshold(mut self, failures: u32) -> Self {
        self.threshold = failures;
        self
    }

    /// How long to wait for the first probe, and at most for a later one: each that fails doubles it. At least 10 ms.
    /// Default 1 s to 30 s.
    #[must_use]
    pub fn probes(mut self, delays: Range<Duration>) -> Self {
        self.probes = Probes { first: delays.start, cap: delays.end };
        self
    }

    /// How long after the probe that failed as number `failed` (0: after it opened) the next one goes.
    fn delay(&self, failed: u32) -> Duration {
        let longest = self.probes.cap.max(self.probes.first);
        self.probes.first.saturating_mul(2_u32.saturating_pow(failed.min(31))).min(longest).max(SOONEST)
    }

    /// Whether the failure says that the dependency is down.
    pub(crate) fn is_tripped_by(&self, failure: &Failure) -> bool {
        let by_dependency = match failure.cause() {
            Cause::Error | Cause::Timeout => true,
            Cause::Panic | Cause::Undecodable | Cause::UnknownType | Cause::BadHeaders | Cause::Crashed => {
                false
            }
        };
        let to_be_retried = match failure.verdict() {
            Verdict::Retry | Verdict::RetryAfter(_) => true,
            Verdict::Snooze(_) | Verdict::Reject | Verdict::Drop => false,
        };
        by_dependency && to_be_retried && self.classes.iter().any(|class| class.fits(failure))
    }

    /// What is wrong with it, if anything, and the way out.
    fn problem(&self) -> Option<&'static str> {
        if self.classes.is_empty() {
            return Some("has no class of failures: name at least one");
        }
        let panics = self.classes.contains(&FailureClass::Panic);
        panics.then_some("is to open by panics, which are no sign of a dependency: name another class")
    }
}

/// What an attempt said about the dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// It was handled.
    Up,
    /// It failed as the breaker's classes say.
    Down,
    /// It ended otherwise.
    Neither,
    /// It did not get as far as the handler.
    Untried,
}

impl Signal {
    fn of(outcome: &Outcome, tried: bool, breaker: &CircuitBreaker) -> Self {
        match outcome {
            Outcome::Ack => Self::Up,
            Outcome::Failed(_) if !tried => Self::Untried,
            Outcome::Failed(failure) if breaker.is_tripped_by(failure) => Self::Down,
            Outcome::Failed(_) => Self::Neither,
        }
    }
}

/// How many attempts may be started now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admits {
    All,
    /// One, with nothing beside it.
    Probe,
    /// None before that.
    Later(Instant),
    /// None: a probe is under way.
    Nothing,
}

/// Under what circumstances an attempt was started: what it says later is about those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    epoch: u64,
    probe: bool,
}

/// What follows from what an attempt said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ruling {
    /// Its message is put off for so long, and no attempt is counted.
    pub(crate) held: Option<Duration>,
    pub(crate) change: Option<Change>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Opened { failures: u32, probe_in: Duration },
    ProbeFailed { probes: u32, probe_in: Duration },
    Closed { down: Duration, probes: u32 },
}

/// One consumer's circuit. It outlives its sessions.
#[derive(Debug)]
pub(crate) struct Circuit {
    breaker: CircuitBreaker,
    state: State,
    /// Counts openings and closings.
    epoch: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed {
        row: u32,
    },
    Open {
        since: Instant,
        probes: u32,
        /// When the next probe is due; none while one is under way.
        next: Option<Instant>,
    },
}

impl Circuit {
    pub(crate) fn new(breaker: CircuitBreaker) -> Self {
        Self { breaker, state: State::Closed { row: 0 }, epoch: 0 }
    }

    /// What is wrong with its setting, if anything.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        self.breaker.problem()
    }

    pub(crate) fn is_open(&self) -> bool {
        match self.state {
            State::Closed { .. } => false,
            State::Open { .. } => true,
        }
    }

    pub(crate) fn admits(&self, now: Instant) -> Admits {
        match self.state {
            State::Closed { .. } => Admits::All,
            State::Open { next: None, .. } => Admits::Nothing,
            State::Open { next: Some(at), .. } if at <= now => Admits::Probe,
            State::Open { next: Some(at), .. } => Admits::Later(at),
        }
    }

    /// An attempt starts, as [`admits`](Self::admits) allows.
    pub(crate) fn start(&mut self) -> Ticket {
        let probe = match &mut self.state {
            State::Closed { .. } => false,
            State::Open { next, .. } => next.take().is_some(),
        };
        Ticket { epoch: self.epoch, probe }
    }

    /// An attempt that was started ends without a word: a probe is due again.
    pub(crate) fn lose(&mut self, ticket: Ticket, now: Instant) {
        if let State::Open { next, .. } = &mut self.state
            && ticket.probe
            && ticket.epoch == self.epoch
        {
            *next = Some(now);
        }
    }

    pub(crate) fn observe(&mut self, ticket: Ticket, signal: Signal, now: Instant) -> Ruling {
        let held = |after| Ruling { held: Some(after), change: None };
        let nothing = Ruling { held: None, change: None };
        match (self.state, signal) {
            (State::Closed { row }, _) if ticket.epoch == self.epoch => self.in_closed(row, signal, now),
            (State::Open { since, probes, .. }, _) if ticket.probe && ticket.epoch == self.epoch => {
                self.in_probe(since, probes, signal, now)
            }
            // started before it opened, or before it closed: its failure is that outage's, its success tells nothing new
            (State::Closed { .. }, Signal::Down) => held(self.breaker.delay(0)),
            (State::Open { probes, .. }, Signal::Down) => held(self.breaker.delay(probes)),
            (State::Closed { .. } | State::Open { .. }, Signal::Up | Signal::Neither | Signal::Untried) => {
                nothing
            }
        }
    }

    fn in_closed(&mut self, row: u32, signal: Signal, now: Instant) -> Ruling {
        let nothing = Ruling { held: None, change: None };
        let row = match signal {
            Signal::Up => 0,
            Signal::Down => row.saturating_add(1),
            Signal::Neither | Signal::Untried => return nothing,
        };
        self.state = State::Closed { row };
        if row == 0 || row < self.breaker.threshold {
            return nothing;
        }
        let probe_in = self.breaker.delay(0);
        self.state = State::Open { since: now, probes: 0, next: Some(now + probe_in) };
        self.epoch += 1;
        Ruling { held: Some(probe_in), change: Some(Change::Opened { failures: row, probe_in }) }
    }

    fn in_probe(&mut self, since: Instant, probes: u32, signal: Signal, now: Instant) -> Ruling {
        let mut again = |probes, wait| {
            self.state = State::Open { since, probes, next: Some(now + wait) };
        };
        match signal {
            Signal::Up => {
                self.state = State::Closed { row: 0 };
                self.epoch += 1;
                let down = now.saturating_duration_since(since);
                Ruling { held: None, change: Some(Change::Closed { down, probes: probes.saturating_add(1) }) }
            }
            Signal::Down => {
                let probes = probes.saturating_add(1);
                let probe_in = self.breaker.delay(probes);
                again(probes, probe_in);
                Ruling { held: Some(probe_in), change: Some(Change::ProbeFailed { probes, probe_in }) }
            }
            Signal::Neither => {
                again(probes, self.breaker.delay(probes));
                Ruling { held: None, change: None }
            }
            Signal::Untried => {
                again(probes, Duration::ZERO);
                Ruling { held: None, change: None }
            }
        }
    }
}
