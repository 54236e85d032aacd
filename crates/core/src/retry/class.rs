//! Which failures a rule is for.

use serde::{Deserialize, Serialize};

use crate::outcome::{Cause, Failure};

/// A class of failures, to give a [`Retry`](super::Retry) policy of its own.
///
/// ```
/// use steadfast_core::{Failure, FailureClass};
///
/// let down = FailureClass::tag("database-down");
/// assert!(down.fits(&Failure::retry("connection refused").class("database-down")));
/// assert!(!down.fits(&Failure::retry("connection refused")));
/// assert!(FailureClass::of::<std::fmt::Error>().fits(&Failure::from(std::fmt::Error)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureClass {
    /// Put into the class of this name by [`Failure::class`].
    Tag(String),
    /// Made by `?` of an error of this Rust type, as [`std::any::type_name`] has it. The name is as stable as the paths in
    /// the crate that the type is from.
    Type(String),
    /// With this [`Failure::fingerprint`], in hexadecimal, as dead letters show it.
    Fingerprint(String),
    /// The handler panicked.
    Panic,
    /// The handler took longer than its time limit.
    Timeout,
}

impl FailureClass {
    /// Failures that [`Failure::class`] put into this class.
    pub fn tag(name: impl Into<String>) -> Self {
        Self::Tag(name.into())
    }

    /// Failures that `?` made of an error of this type.
    pub fn of<E>() -> Self {
        Self::Type(std::any::type_name::<E>().to_owned())
    }

    /// Whether the failure is of this class.
    pub fn fits(&self, failure: &Failure) -> bool {
        match self {
            Self::Tag(name) => failure.class_name() == Some(name),
            Self::Type(name) => failure.error_type() == name,
            Self::Fingerprint(hex) => {
                u64::from_str_radix(hex.trim(), 16).is_ok_and(|hex| hex == failure.fingerprint())
            }
            Self::Panic => failure.cause() == Cause::Panic,
            Self::Timeout => failure.cause() == Cause::Timeout,
        }
    }
}
