//! One error type per operation, each `{ kind, what, source }`.
//!
//! `kind` says what a caller can do about it, the text says what was tried, on what, and the way out, and the
//! source is the client's own error, never turned into a string.

use std::error::Error as StdError;
use std::fmt;

/// Any error, boxed.
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

macro_rules! operation_error {
    ($(#[$doc:meta])* $name:ident, $kind:ident) => {
        $(#[$doc])*
        pub struct $name {
            kind: $kind,
            what: String,
            source: Option<BoxError>,
        }

        impl $name {
            /// An error of `kind`; `what` says what was tried, on what, and the way out.
            pub fn new(kind: $kind, what: impl Into<String>) -> Self {
                Self { kind, what: what.into(), source: None }
            }

            /// Adds the error that caused this one.
            #[must_use]
            pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
                self.source = Some(source.into());
                self
            }

            /// What a caller can do about it.
            pub fn kind(&self) -> $kind {
                self.kind
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.what)
            }
        }

        /// The chain of reasons and the kind: what a program prints whose `main` returns it.
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} ({:?})", chain(self), self.kind)
            }
        }

        impl StdError for $name {
            fn source(&self) -> Option<&(dyn StdError + 'static)> {
                self.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
            }
        }
    };
}

/// The error and its sources, outermost first, separated by `: `.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

operation_error! {
    /// Connecting to a broker failed.
    ///
    /// ```
    /// use steadfast_core::{ConnectError, ConnectErrorKind};
    ///
    /// let error = ConnectError::new(ConnectErrorKind::InvalidUrl, "connect to `kafka://x`: unknown scheme");
    /// assert_eq!(error.kind(), ConnectErrorKind::InvalidUrl);
    /// ```
    ConnectError, ConnectErrorKind
}

/// Why connecting failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectErrorKind {
    /// The URL or an option in it is wrong. Trying again will not help.
    InvalidUrl,
    /// The broker did not answer in time, or refused the connection. Trying again may help.
    Unreachable,
    /// The broker answered and said no: credentials, virtual host, permission, TLS.
    Refused,
}

operation_error! {
    /// Subscribing to a source failed, or a running subscription ended.
    SubscribeError, SubscribeErrorKind
}

/// Why a subscription failed or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscribeErrorKind {
    /// The broker cannot be reached, or is still starting. It is nobody's fault: wait and try again.
    Unreachable,
    /// The broker refused: permission, or exclusive use by another.
    Refused,
    /// The queue, exchange, stream or group is not there, or went away.
    NotFound,
    /// It exists, but is declared otherwise; the text names both values.
    Mismatch,
    /// This broker cannot do what was asked; the text names what it can.
    Unsupported,
    /// The subscription worked and then ended, with its connection still standing: channel closed, broker closed by this
    /// program.
    Ended,
}

impl SubscribeError {
    /// Whether the broker is away, which spends no restart intensity.
    pub fn is_outage(&self) -> bool {
        matches!(self.kind, SubscribeErrorKind::Unreachable)
    }
}

operation_error! {
    /// Publishing a message failed, or its fate is unknown.
    PublishError, PublishErrorKind
}

/// Why a message was not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublishErrorKind {
    /// The message could not be encoded. It was not sent.
    Encode,
    /// The message or its destination is not acceptable. It was not sent.
    Invalid,
    /// The broker cannot be reached. The message was not sent.
    Unreachable,
    /// No queue is bound for it. The broker did not keep it.
    Unroutable,
    /// The broker refused to keep it: queue full, out of memory.
    Rejected,
    /// It was sent and no answer came: the broker may or may not have it. Publish it again with the same
    /// message id, so that consumers can recognise the second copy.
    Unknown,
}

operation_error! {
    /// A retry or a dead letter could not be made safe; the delivery is still unsettled.
    SettleError, SettleErrorKind
}

/// Why a delivery could not be settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SettleErrorKind {
    /// The delivery is no longer ours: its channel is gone or another consumer claimed it. It will be delivered
    /// again; there is nothing more to do with this one.
    Gone,
    /// The copy could not be stored for now (destination missing, broker full, no answer). The delivery is still
    /// held: try again.
    NotStored,
}

operation_error! {
    /// An operator's look at a broker, or a change that it was to make, failed.
    ///
    /// ```
    /// use steadfast_core::{OperateError, OperateErrorKind};
    ///
    /// let error = OperateError::new(OperateErrorKind::NotFound, "look at queue `ordres`: it is not there");
    /// assert_eq!(error.kind(), OperateErrorKind::NotFound);
    /// ```
    OperateError, OperateErrorKind
}

/// Why an operator's call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OperateErrorKind {
    /// The broker cannot be reached. Nothing was changed.
    Unreachable,
    /// The broker refused: permission, or exclusive use by another.
    Refused,
    /// There is no such queue, stream or group.
    NotFound,
    /// This broker cannot do what was asked.
    Unsupported,
    /// The destination does not take the message; the letter is where it was.
    NotStored,
    /// It was sent and no answer came: it may be at its destination, and the letter is where it was.
    Unknown,
}
