//! PURE: from what the handler said to what the broker is told.
//!
//! Owns the retry policy and the decision. Time and chance come in as arguments; nothing here waits or talks.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de};

pub use self::class::FailureClass;
use crate::dead_letter::Reason;
use crate::duration::{optional_text, text, texts};
use crate::outcome::{Cause, Failure, Outcome, Verdict};
use crate::settle::Settlement;

mod class;

/// When a failed message is tried again, and how often.
///
/// The default is `exponential(1 s..60 s)` with 5 attempts. Attempts are counted in the message (`x-retry-count`), so
/// any number of processes count together.
///
/// ```
/// use steadfast_core::{DurationExt, FailureClass, Retry};
///
/// let retry = Retry::exponential(200.millis()..30.secs()).max_attempts(5);
/// assert_eq!(retry.delay(1, 0.0), 200.millis());
/// assert_eq!(retry.delay(2, 0.0), 400.millis());
/// assert_eq!(retry.delay(20, 0.0), 30.secs());
///
/// // by class: a rate limit wants patience, and a text that does not parse today will not parse tomorrow
/// let retry = retry
///     .immediately(1)
///     .on(FailureClass::tag("rate-limited"), Retry::fixed(60.secs()).max_attempts(30))
///     .reject(FailureClass::of::<std::num::ParseIntError>());
/// # let _ = retry;
/// ```
///
/// It is data, for a config file. Durations are texts; what is left out has its default:
///
/// ```
/// # use steadfast_core::{DurationExt, Retry};
/// let retry: Retry = serde_json::from_str(r#"{
///     "schedule": { "exponential": { "first": "200ms", "cap": "30s" } },
///     "max_attempts": 5,
///     "jitter": 0.5,
///     "max_age": "2h",
///     "immediate": 1,
///     "classes": [ { "class": { "tag": "rate-limited" }, "retry": { "schedule": { "fixed": "1m" }, "max_attempts": 30 } } ],
///     "reject": [ { "type": "core::num::error::ParseIntError" } ]
/// }"#)?;
/// assert_eq!(retry.delay(2, 0.0), 200.millis());
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    schedule: Schedule,
    #[serde(default = "five", deserialize_with = "attempts")]
    max_attempts: u32,
    #[serde(default, deserialize_with = "fraction")]
    jitter: f64,
    #[serde(default, with = "optional_text", skip_serializing_if = "Option::is_none")]
    max_age: Option<Duration>,
    #[serde(default)]
    immediate: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    classes: Vec<ClassPolicy>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    reject: Vec<FailureClass>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Schedule {
    Exponential {
        #[serde(with = "text")]
        first: Duration,
        #[serde(with = "text")]
        cap: Duration,
    },
    Fixed(#[serde(with = "text")] Duration),
    Listed(#[serde(with = "texts")] Vec<Duration>),
}

/// A policy of their own for failures of one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassPolicy {
    class: FailureClass,
    retry: Retry,
}

const fn five() -> u32 {
    5
}

fn attempts<'de, D: Deserializer<'de>>(input: D) -> Result<u32, D::Error> {
    match u32::deserialize(input)? {
        0 => Err(de::Error::custom("`max_attempts` counts the first attempt, so it is at least 1")),
        attempts => Ok(attempts),
    }
}

fn fraction<'de, D: Deserializer<'de>>(input: D) -> Result<f64, D::Error> {
    match f64::deserialize(input)? {
        fraction if fraction.is_finite() && fraction >= 0.0 => Ok(fraction),
        odd => {
            Err(de::Error::custom(format!("`jitter` is a fraction from 0, such as 0.5, and cannot be {odd}")))
        }
    }
}

/// Jitter takes this many values, so that brokers which need a queue per delay need few of them.
const JITTER_STEPS: f64 = 4.0;

impl Default for Retry {
    fn default() -> Self {
        Self::exponential(Duration::from_secs(1)..Duration::from_secs(60))
    }
}

impl Retry {
    /// First after `delays.start`, then twice as long each time, never longer than `delays.end`.
    pub fn exponential(delays: Range<Duration>) -> Self {
        Self::new(Schedule::Exponential { first: delays.start, cap: delays.end.max(delays.start) }, 5)
    }

    /// Always after `delay`.
    pub fn fixed(delay: Duration) -> Self {
        Self::new(Schedule::Fixed(delay), 5)
    }

    /// After each of `delays` in turn; one attempt more than there are delays.
    pub fn listed(delays: impl IntoIterator<Item = Duration>) -> Self {
        let delays: Vec<_> = delays.into_iter().collect();
        let attempts = u32::try_from(delays.len()).unwrap_or(u32::MAX).saturating_add(1);
        Self::new(Schedule::Listed(delays), attempts)
    }

    /// Never: the first failure is the last.
    pub fn none() -> Self {
        Self::new(Schedule::Fixed(Duration::ZERO), 1)
    }

    fn new(schedule: Schedule, max_attempts: u32) -> Self {
        Self {
            schedule,
            max_attempts,
            jitter: 0.0,
            max_age: None,
            immediate: 0,
            classes: Vec::new(),
            reject: Vec::new(),
        }
    }

    /// Attempts in all, the first included; at least 1. Default 5.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts.max(1);
        self
    }

    /// Lengthens each delay by up to this fraction of it, chosen at random; it never shortens. Default 0.
    #[must_use]
    pub fn jitter(mut self, fraction: f64) -> Self {
        self.jitter = if fraction.is_finite() { fraction.max(0.0) } else { 0.0 };
        self
    }

    /// A message older than this at its next attempt is dead-lettered instead. Default: no limit.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// The first so many retries come back without a delay; the schedule begins after them. They count as attempts.
    /// Default 0.
    ///
    /// ```
    /// # use steadfast_core::{DurationExt, Retry};
    /// let retry = Retry::fixed(10.secs()).immediately(1);
    /// assert_eq!((retry.delay(1, 0.0), retry.delay(2, 0.0)), (0.secs(), 10.secs()));
    /// ```
    #[must_use]
    pub fn immediately(mut self, retries: u32) -> Self {
        self.immediate = retries;
        self
    }

    /// A policy of its own for failures of this class, in place of this one altogether: its attempts, its age. The first
    /// class that fits counts. The attempts of a message are one number, whatever they failed of.
    #[must_use]
    pub fn on(mut self, class: FailureClass, retry: Retry) -> Self {
        self.classes.push(ClassPolicy { class, retry });
        self
    }

    /// No retry for failures of this class: to the dead letters at once, as [`Failure::reject`] does. It comes before any
    /// class of [`on`](Self::on). A handler that names a delay itself ([`Failure::retry_after`]) is not overruled.
    #[must_use]
    pub fn reject(mut self, class: FailureClass) -> Self {
        self.reject.push(class);
        self
    }

    /// The policy that decides about this failure; none where it is to be rejected at once.
    fn policy_for(&self, failure: &Failure) -> Option<&Self> {
        if self.reject.iter().any(|class| class.fits(failure)) {
            return None;
        }
        match self.classes.iter().find(|rule| rule.class.fits(failure)) {
            Some(rule) => rule.retry.policy_for(failure),
            None => Some(self),
        }
    }

    /// Attempts in all, the first included.
    pub fn attempts(&self) -> u32 {
        self.max_attempts
    }

    /// How long to wait after attempt number `attempt` (from 1) failed; `chance` is from 0 to 1 and moves the jitter.
    pub fn delay(&self, attempt: u32, chance: f64) -> Duration {
        if attempt <= self.immediate {
            return Duration::ZERO;
        }
        let nth = attempt.saturating_sub(1).saturating_sub(self.immediate);
        let base = match &self.schedule {
            Schedule::Exponential { first, cap } => {
                first.saturating_mul(2_u32.saturating_pow(nth.min(31))).min(*cap)
            }
            Schedule::Fixed(delay) => *delay,
            Schedule::Listed(delays) => {
                let at = usize::try_from(nth).unwrap_or(usize::MAX).min(delays.len().saturating_sub(1));
                delays.get(at).copied().unwrap_or_default()
            }
        };
        let step = (chance.clamp(0.0, 1.0) * JITTER_STEPS).round() / JITTER_STEPS;
        let longer = base.as_secs_f64() * self.jitter * step;
        base.saturating_add(Duration::try_from_secs_f64(longer).unwrap_or_default())
    }
}

/// What the broker is to be told after attempt number `attempt` (from 1) of a message that is `age` old.
pub(crate) fn decide(
    policy: &Retry,
    outcome: Outcome,
    attempt: u32,
    age: Option<Duration>,
    chance: f64,
) -> Settlement {
    let failure = match outcome {
        Outcome::Ack => return Settlement::Ack,
        Outcome::Failed(failure) => failure,
    };
    let (policy, after) = match (failure.verdict(), policy.policy_for(&failure)) {
        (Verdict::Drop, _) => return Settlement::Drop(failure),
        (Verdict::Snooze(after), _) => return Settlement::Snooze(after),
        (Verdict::Reject, _) | (Verdict::Retry, None) => {
            return Settlement::DeadLetter(rejected(&failure), Arc::new(failure));
        }
        (Verdict::RetryAfter(after), found) => (found.unwrap_or(policy), after),
        (Verdict::Retry, Some(policy)) => (policy, policy.delay(attempt, chance)),
    };
    if attempt >= policy.max_attempts {
        return Settlement::DeadLetter(exhausted(&failure), Arc::new(failure));
    }
    match (policy.max_age, age) {
        (Some(limit), Some(age)) if age.saturating_add(after) > limit => {
            Settlement::DeadLetter(Reason::Expired, Arc::new(failure))
        }
        _ => Settlement::Retry { after, failure },
    }
}

fn rejected(failure: &Failure) -> Reason {
    match failure.cause() {
        Cause::Undecodable => Reason::Undecodable,
        Cause::UnknownType => Reason::UnknownType,
        Cause::BadHeaders => Reason::BadHeaders,
        Cause::Crashed => Reason::Crashed,
        Cause::Error | Cause::Panic | Cause::Timeout => Reason::Rejected,
    }
}

fn exhausted(failure: &Failure) -> Reason {
    match failure.cause() {
        Cause::Panic => Reason::Panicked,
        Cause::Timeout => Reason::TimedOut,
        Cause::Error | Cause::Undecodable | Cause::UnknownType | Cause::BadHeaders | Cause::Crashed => {
            Reason::Exhausted
        }
    }
}

#[cfg(test)]
mod tests;
