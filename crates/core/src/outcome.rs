//! What a handler says of a message: [`Outcome`], and [`Failure`] for all but success.
//!
//! What follows from it is [`retry::decide`](crate::retry::decide)'s.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::Location;
use std::time::Duration;

use crate::error::BoxError;

/// What a handler said.
#[derive(Debug)]
pub enum Outcome {
    /// Done.
    Ack,
    /// Not done, and why.
    Failed(Failure),
}

impl From<Result<(), Failure>> for Outcome {
    fn from(result: Result<(), Failure>) -> Self {
        result.map_or_else(Self::Failed, |()| Self::Ack)
    }
}

/// Why a message was not handled, and what the handler wants done about it.
///
/// Any error becomes one by `?` and means "retry by policy"; the constructors say something else.
///
/// ```
/// use steadfast_core::{Failure, Verdict};
///
/// fn parse(text: &str) -> Result<u64, Failure> {
///     Ok(text.parse::<u64>()?)
/// }
///
/// let failure = parse("twelve").unwrap_err();
/// assert_eq!(failure.verdict(), Verdict::Retry);
/// assert_eq!(Failure::reject("no such customer").verdict(), Verdict::Reject);
/// ```
pub struct Failure {
    verdict: Verdict,
    cause: Cause,
    error: BoxError,
    fingerprint: u64,
    type_name: &'static str,
    class: Option<Cow<'static, str>>,
}

/// What is to be done with a message that was not handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Try again by the consumer's policy. Counts as an attempt.
    Retry,
    /// Try again after this long. Counts as an attempt.
    RetryAfter(Duration),
    /// Not now, nothing failed: again after this long, without counting an attempt.
    Snooze(Duration),
    /// Poison: no retry will help. To the dead letters at once.
    Reject,
    /// Deliberately ignored: acknowledged, with an event that says so.
    Drop,
}

/// How a message came to fail; becomes the dead letter's [`Reason`](crate::Reason) when no attempt is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Error,
    Panic,
    Timeout,
    Undecodable,
    UnknownType,
    BadHeaders,
    Crashed,
}

impl Failure {
    /// Try again by policy; the same as `?` on an error, for a plain text or a boxed error.
    #[track_caller]
    pub fn retry(error: impl Into<BoxError>) -> Self {
        Self::with(Verdict::Retry, Cause::Error, error.into(), "retry")
    }

    /// Try again after `delay` in place of the policy's own.
    #[track_caller]
    pub fn retry_after(delay: Duration, error: impl Into<BoxError>) -> Self {
        Self::with(Verdict::RetryAfter(delay), Cause::Error, error.into(), "retry_after")
    }

    /// Not now: deliver it again after `delay`. Nothing failed, so no attempt is counted.
    #[track_caller]
    pub fn snooze(delay: Duration) -> Self {
        Self::with(Verdict::Snooze(delay), Cause::Error, "snoozed".into(), "snooze")
    }

    /// Poison: no retry will help. The message goes to the dead letters at once.
    #[track_caller]
    pub fn reject(error: impl Into<BoxError>) -> Self {
        Self::with(Verdict::Reject, Cause::Error, error.into(), "reject")
    }

    /// Ignore the message on purpose: it is acknowledged, and an event says why.
    #[track_caller]
    pub fn ignore(why: impl Into<BoxError>) -> Self {
        Self::with(Verdict::Drop, Cause::Error, why.into(), "ignore")
    }

    pub(crate) fn panic(text: String) -> Self {
        Self::with(Verdict::Retry, Cause::Panic, text.into(), "panic")
    }

    pub(crate) fn timeout(limit: Duration) -> Self {
        Self::with(
            Verdict::Retry,
            Cause::Timeout,
            format!("handler took longer than {limit:?}").into(),
            "timeout",
        )
    }

    pub(crate) fn poison(cause: Cause, error: impl Into<BoxError>) -> Self {
        Self::with(Verdict::Reject, cause, error.into(), "poison")
    }

    #[track_caller]
    fn with(verdict: Verdict, cause: Cause, error: BoxError, type_name: &'static str) -> Self {
        let place = Location::caller();
        let mut hasher = Fnv::default();
        (type_name, place.file(), place.line(), place.column()).hash(&mut hasher);
        if cause != Cause::Error {
            // made in this file: the place says nothing, so the text without its numbers has to
            for letter in error.to_string().chars().filter(|letter| !letter.is_ascii_digit()) {
                letter.hash(&mut hasher);
            }
        }
        Self { verdict, cause, error, fingerprint: hasher.finish(), type_name, class: None }
    }

    /// Puts it into a class that a [`Retry`](crate::Retry) policy, a circuit breaker or an operator can tell from others.
    ///
    /// ```
    /// use steadfast_core::Failure;
    ///
    /// let failure = Failure::retry("429 Too Many Requests").class("rate-limited");
    /// assert_eq!(failure.class_name(), Some("rate-limited"));
    /// ```
    #[must_use]
    pub fn class(mut self, class: impl Into<Cow<'static, str>>) -> Self {
        self.class = Some(class.into());
        self
    }

    /// The class it was put into.
    pub fn class_name(&self) -> Option<&str> {
        self.class.as_deref()
    }

    /// The Rust type of the error that `?` made it of, as [`std::any::type_name`] has it; for a failure made by a
    /// constructor the constructor's name: `retry`, `retry_after`, `reject`, `panic`, `timeout`.
    pub fn error_type(&self) -> &'static str {
        self.type_name
    }

    /// What is to be done with the message.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The error behind it.
    pub fn error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        &*self.error
    }

    /// The error and its sources, outermost first, separated by `: `.
    pub fn chain(&self) -> String {
        crate::error::chain(&*self.error)
    }

    /// The same for failures of the same error type at the same place in the code, whatever ids stand in the text.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(crate) fn cause(&self) -> Cause {
        self.cause
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Failure {
    #[track_caller]
    fn from(error: E) -> Self {
        Self::with(Verdict::Retry, Cause::Error, Box::new(error), std::any::type_name::<E>())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure")
            .field("verdict", &self.verdict)
            .field("error", &self.chain())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

/// FNV-1a: the same number in every process and every version, which the standard hasher does not promise.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_one_place(id: u64) -> Failure {
        Failure::retry(format!("order {id} failed"))
    }

    #[test]
    fn fingerprint_follows_place_and_type_not_text() {
        assert_eq!(at_one_place(1).fingerprint(), at_one_place(2).fingerprint());
        assert_ne!(at_one_place(1).fingerprint(), Failure::retry("order 1 failed").fingerprint());
        assert_eq!(Failure::panic("id 1".into()).fingerprint(), Failure::panic("id 22".into()).fingerprint());
        assert_ne!(Failure::panic("id 1".into()).fingerprint(), Failure::panic("key 1".into()).fingerprint());
    }

    #[test]
    fn question_mark_keeps_the_place() {
        fn first() -> Result<(), Failure> {
            Err(fmt::Error)?;
            Ok(())
        }
        fn second() -> Result<(), Failure> {
            Err(fmt::Error)?;
            Ok(())
        }
        let (a, b) = (first().expect_err("fails"), second().expect_err("fails"));
        assert_ne!(a.fingerprint(), b.fingerprint());
    }

    #[test]
    fn chain_names_every_source() {
        let inner = std::io::Error::other("disk on fire");
        let outer = crate::PublishError::new(crate::PublishErrorKind::Unknown, "publish to orders")
            .with_source(inner);
        assert_eq!(Failure::from(outer).chain(), "publish to orders: disk on fire");
    }
}
