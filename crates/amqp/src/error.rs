//! From what lapin says to what core's callers can do about it.

use std::time::Duration;

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use steadfast_core::{
    ConnectError, ConnectErrorKind, SettleError, SettleErrorKind, SubscribeError, SubscribeErrorKind,
};

/// Why a request to the broker came to nothing.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// There is no connection.
    Connect(Fault),
    /// The broker did not answer within this.
    Late(Duration),
    /// lapin, or the broker through lapin, said no.
    Client(lapin::Error),
}

/// A failed connection attempt, told to everybody who waited for it.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: ConnectErrorKind,
    pub(crate) what: String,
    pub(crate) source: Option<lapin::Error>,
}

/// What kind of thing went wrong, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    /// The connection, or the way to the broker.
    Away,
    /// Permission, a limit, or somebody else's exclusive use.
    Refused,
    NotFound,
    /// 406.
    Precondition,
    /// The broker does not know how.
    Unsupported,
    /// This channel.
    Channel,
}

impl Trouble {
    pub(crate) fn sort(&self) -> Sort {
        match self {
            Self::Connect(fault) => match fault.kind {
                ConnectErrorKind::Refused => Sort::Refused,
                // the kind is core's and may grow: what is not known is waited out
                _ => Sort::Away,
            },
            Self::Late(_) => Sort::Away,
            Self::Client(error) => sort(error),
        }
    }

    pub(crate) fn subscribing(self, what: impl Into<String>) -> SubscribeError {
        let kind = match self.sort() {
            Sort::Away => SubscribeErrorKind::Unreachable,
            Sort::Refused => SubscribeErrorKind::Refused,
            Sort::NotFound => SubscribeErrorKind::NotFound,
            Sort::Precondition => SubscribeErrorKind::Mismatch,
            Sort::Unsupported => SubscribeErrorKind::Unsupported,
            Sort::Channel => SubscribeErrorKind::Ended,
        };
        match self {
            Self::Connect(fault) => SubscribeError::new(kind, what).with_source(ConnectError::from(fault)),
            Self::Late(limit) => SubscribeError::new(kind, late(what, limit)),
            Self::Client(error) => SubscribeError::new(kind, what).with_source(error),
        }
    }

    pub(crate) fn not_stored(self, what: impl Into<String>) -> SettleError {
        let kind = SettleErrorKind::NotStored;
        match self {
            Self::Connect(fault) => SettleError::new(kind, what).with_source(ConnectError::from(fault)),
            Self::Late(limit) => SettleError::new(kind, late(what, limit)),
            Self::Client(error) => SettleError::new(kind, what).with_source(error),
        }
    }

    /// The broker's own words, where it said anything.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Client(error) => text(error),
            Self::Connect(_) | Self::Late(_) => "",
        }
    }
}

impl From<lapin::Error> for Trouble {
    fn from(error: lapin::Error) -> Self {
        Self::Client(error)
    }
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Self::Connect(fault)
    }
}

impl From<Fault> for ConnectError {
    fn from(fault: Fault) -> Self {
        let error = Self::new(fault.kind, fault.what);
        match fault.source {
            Some(source) => error.with_source(source),
            None => error,
        }
    }
}

fn late(what: impl Into<String>, limit: Duration) -> String {
    format!("{}: the broker did not answer within {limit:?}", what.into())
}

/// The text of a `connection.close` or `channel.close`.
pub(crate) fn text(error: &lapin::Error) -> &str {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.get_message().as_str(),
        _ => "",
    }
}

/// Whether it is what the broker said in a `connection.close` or `channel.close`.
pub(crate) fn is_the_brokers(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(_))
}

/// Exhaustive over the protocol's codes; lapin's own kinds may grow, and an unknown one costs the channel.
pub(crate) fn sort(error: &lapin::Error) -> Sort {
    match error.kind() {
        ErrorKind::IOError(_)
        | ErrorKind::RuntimeShutdownError(_)
        | ErrorKind::MissingHeartbeatError
        | ErrorKind::InvalidConnectionState(_)
        | ErrorKind::ParsingError(_)
        | ErrorKind::SerialisationError(_) => Sort::Away,
        ErrorKind::ChannelsLimitReached | ErrorKind::AuthProviderError(_) => Sort::Refused,
        ErrorKind::InvalidProtocolVersion(_) => Sort::Unsupported,
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(soft) => sort_soft(soft),
            AMQPErrorKind::Hard(hard) => sort_hard(hard),
        },
        _ => Sort::Channel,
    }
}

fn sort_soft(error: &AMQPSoftError) -> Sort {
    match error {
        AMQPSoftError::ACCESSREFUSED | AMQPSoftError::RESOURCELOCKED => Sort::Refused,
        AMQPSoftError::NOTFOUND | AMQPSoftError::NOROUTE | AMQPSoftError::NOCONSUMERS => Sort::NotFound,
        AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::CONTENTTOOLARGE => Sort::Precondition,
    }
}

fn sort_hard(error: &AMQPHardError) -> Sort {
    match error {
        // an operator closed the connection, a node stops, a virtual host is down: it passes
        AMQPHardError::CONNECTIONFORCED
        | AMQPHardError::INTERNALERROR
        | AMQPHardError::RESOURCEERROR
        | AMQPHardError::FRAMEERROR
        | AMQPHardError::UNEXPECTEDFRAME
        | AMQPHardError::CHANNELERROR => Sort::Away,
        AMQPHardError::INVALIDPATH | AMQPHardError::NOTALLOWED => Sort::Refused,
        AMQPHardError::NOTIMPLEMENTED | AMQPHardError::COMMANDINVALID | AMQPHardError::SYNTAXERROR => {
            Sort::Unsupported
        }
    }
}

/// What `declare` was told about a queue or an exchange that is there already, declared otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch<'a> {
    pub(crate) argument: &'a str,
    pub(crate) ours: &'a str,
    pub(crate) theirs: &'a str,
}

/// Reads `inequivalent arg 'x' for queue 'q' in vhost '/': received 'a' but current is 'b'`.
pub(crate) fn mismatch(text: &str) -> Option<Mismatch<'_>> {
    let (_, rest) = text.split_once("inequivalent arg '")?;
    let (argument, rest) = rest.split_once('\'')?;
    let (_, rest) = rest.split_once(": received ")?;
    let (ours, theirs) = rest.split_once(" but current is ")?;
    let value = |text| match (argument, value(text)) {
        // a queue that does not say is a classic one
        ("x-queue-type", "none") => "classic",
        (_, value) => value,
    };
    Some(Mismatch { argument, ours: value(ours), theirs: value(theirs) })
}

/// `'a'`, `the value 'a' of type 'longstr'` or `none`.
fn value(text: &str) -> &str {
    match text.split_once('\'') {
        Some((_, rest)) => rest.split_once('\'').map_or(rest, |(value, _)| value),
        None => text.trim(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_values_are_read_from_a_mismatch() {
        let old = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received \
                   'quorum' but current is 'classic'";
        let expected = Mismatch { argument: "x-queue-type", ours: "quorum", theirs: "classic" };
        assert_eq!(mismatch(old), Some(expected.clone()));
        let long = "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received the \
                    value '5' of type 'signedint' but current is none";
        assert_eq!(mismatch(long), Some(Mismatch { argument: "x-max-length", ours: "5", theirs: "none" }));
        let unsaid = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received the \
                      value 'quorum' of type 'longstr' but current is none";
        assert_eq!(mismatch(unsaid), Some(expected));
        assert_eq!(mismatch("NOT_FOUND - no queue 'q' in vhost '/'"), None);
    }
}
