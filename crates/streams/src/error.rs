//! The client's errors as ours: one table of what each means.

use std::error::Error as StdError;
use std::fmt;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use steadfast_core::{
    BoxError, ConnectError, ConnectErrorKind, PublishError, PublishErrorKind, SettleError, SettleErrorKind,
    SubscribeError, SubscribeErrorKind,
};

/// What an error means for whoever waits for the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The connection is gone, or never came: what was sent may have been done.
    Cut,
    /// No answer in time: what was sent may have been done.
    Silent,
    /// The server is there but cannot serve now; it did nothing.
    Away,
    /// The server refuses to keep more; it did nothing.
    Full,
    /// Credentials or permissions.
    Refused,
    /// The stream or the group is not there.
    Missing,
    /// The key holds something that is not a stream.
    WrongType,
    /// The key is on another node of a cluster.
    Elsewhere,
    /// The keys of one command are on several nodes of a cluster.
    Split,
    /// Anything else that the server or the client said.
    Other,
}

pub(crate) fn trouble(error: &RedisError) -> Trouble {
    if error.is_timeout() {
        return Trouble::Silent;
    }
    match error.kind() {
        ErrorKind::Io | ErrorKind::Parse => Trouble::Cut,
        ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm) => Trouble::Refused,
        ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask) => Trouble::Elsewhere,
        ErrorKind::Server(ServerErrorKind::CrossSlot) => Trouble::Split,
        // said to a blocked reader when its server becomes a replica; the stream is where it was
        _ if error.code() == Some("UNBLOCKED")
            && error.detail().is_some_and(|detail| detail.contains("instance state changed")) =>
        {
            Trouble::Away
        }
        _ => by_code(error.code().unwrap_or_default()),
    }
}

/// Whether an error leaves its connection useless or suspect.
pub(crate) fn is_lost(error: &RedisError) -> bool {
    // a replica answers what it likes and does nothing: the master is elsewhere by now
    error.code() == Some("READONLY") || matches!(trouble(error), Trouble::Cut | Trouble::Silent)
}

/// Whether the key that was published to holds something that is not a stream.
pub(crate) fn is_wrong_type(error: &PublishError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<RedisError>());
    source.is_some_and(|error| matches!(trouble(error), Trouble::WrongType))
}

/// The server's own word for it, the first of an error reply.
fn by_code(code: &str) -> Trouble {
    match code {
        "LOADING" | "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY" => Trouble::Away,
        "OOM" | "MISCONF" | "NOREPLICAS" => Trouble::Full,
        "NOAUTH" | "WRONGPASS" | "NOPERM" => Trouble::Refused,
        // UNBLOCKED: Redis 7.0 says it to a reader whose stream is deleted
        "NOGROUP" | "UNBLOCKED" => Trouble::Missing,
        "WRONGTYPE" => Trouble::WrongType,
        _ => Trouble::Other,
    }
}

/// `what` was tried; adds the server's one word for why not. All that it said is in the source.
pub(crate) fn told(what: &str, error: &RedisError) -> String {
    match error.code() {
        Some(code @ ("MOVED" | "ASK")) => {
            format!(
                "{what}: the server answered {code}: it is a node of a cluster; connect by redis+cluster://"
            )
        }
        Some(code) => format!("{what}: the server answered {code}"),
        None if error.kind() == ErrorKind::InvalidClientConfig => format!("{what}: {error}"),
        None if error.is_timeout() => format!("{what}: no answer in time"),
        None => what.to_owned(),
    }
}

pub(crate) fn connect(what: &str, error: RedisError) -> ConnectError {
    let kind = match trouble(&error) {
        Trouble::Other if error.kind() == ErrorKind::InvalidClientConfig => ConnectErrorKind::InvalidUrl,
        // other: "DB index is out of range" and the like; the server answered and said no
        Trouble::Refused | Trouble::Other => ConnectErrorKind::Refused,
        Trouble::Cut
        | Trouble::Silent
        | Trouble::Away
        | Trouble::Full
        | Trouble::Missing
        | Trouble::WrongType
        | Trouble::Elsewhere
        | Trouble::Split => ConnectErrorKind::Unreachable,
    };
    ConnectError::new(kind, told(what, &error)).with_source(error)
}

/// `running` tells a subscription that worked from one that never began.
pub(crate) fn subscribe(what: &str, error: RedisError, running: bool) -> SubscribeError {
    let kind = match trouble(&error) {
        // a cut connection is the server's or the network's, as on every broker: it spends no restart
        Trouble::Other if running => SubscribeErrorKind::Ended,
        Trouble::Cut | Trouble::Silent | Trouble::Away | Trouble::Full => SubscribeErrorKind::Unreachable,
        Trouble::Refused | Trouble::Other => SubscribeErrorKind::Refused,
        Trouble::Missing => SubscribeErrorKind::NotFound,
        Trouble::WrongType => SubscribeErrorKind::Mismatch,
        Trouble::Elsewhere | Trouble::Split => SubscribeErrorKind::Unsupported,
    };
    SubscribeError::new(kind, told(what, &error)).with_source(error)
}

/// `sent` is whether the command may have reached the server.
pub(crate) fn publish(what: &str, error: RedisError, sent: bool) -> PublishError {
    let kind = match trouble(&error) {
        Trouble::Cut | Trouble::Silent if sent => PublishErrorKind::Unknown,
        Trouble::Cut | Trouble::Silent => PublishErrorKind::Unreachable,
        Trouble::Away if error.code() == Some("LOADING") => PublishErrorKind::Unreachable,
        Trouble::Away | Trouble::Full | Trouble::Other => PublishErrorKind::Rejected,
        Trouble::Refused if !sent => PublishErrorKind::Unreachable,
        Trouble::Refused | Trouble::Missing | Trouble::WrongType | Trouble::Elsewhere | Trouble::Split => {
            PublishErrorKind::Invalid
        }
    };
    PublishError::new(kind, told(what, &error)).with_source(error)
}

pub(crate) fn settle(what: &str, error: RedisError) -> SettleError {
    let kind = match trouble(&error) {
        Trouble::Missing => SettleErrorKind::Gone,
        Trouble::Cut
        | Trouble::Silent
        | Trouble::Away
        | Trouble::Full
        | Trouble::Refused
        | Trouble::WrongType
        | Trouble::Elsewhere
        | Trouble::Split
        | Trouble::Other => SettleErrorKind::NotStored,
    };
    SettleError::new(kind, told(what, &error)).with_source(error)
}

pub(crate) fn stream(what: &str, error: RedisError) -> StreamError {
    let kind = match trouble(&error) {
        Trouble::Cut | Trouble::Silent | Trouble::Away | Trouble::Full => StreamErrorKind::Unreachable,
        Trouble::Missing => StreamErrorKind::NotFound,
        Trouble::WrongType => StreamErrorKind::Mismatch,
        Trouble::Refused | Trouble::Elsewhere | Trouble::Split | Trouble::Other => StreamErrorKind::Refused,
    };
    StreamError { kind, what: told(what, &error), source: error.into() }
}

/// Looking at a stream or trimming it failed.
#[derive(Debug)]
pub struct StreamError {
    kind: StreamErrorKind,
    what: String,
    source: BoxError,
}

/// Why a stream could not be looked at or trimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamErrorKind {
    /// The server is away, or did not answer in time. Trying again does no harm.
    Unreachable,
    /// The server refused: permission, or a script that it cannot run.
    Refused,
    /// The stream or the group is not there.
    NotFound,
    /// The key holds something that is not a stream.
    Mismatch,
}

impl StreamError {
    /// What a caller can do about it.
    pub fn kind(&self) -> StreamErrorKind {
        self.kind
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl StdError for StreamError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(reply: &str) -> RedisError {
        let (code, detail) = reply.split_once(' ').unwrap_or((reply, ""));
        redis::make_extension_error(code.to_owned(), Some(detail.to_owned()))
    }

    #[test]
    fn each_code_has_its_meaning() {
        for (reply, meaning) in [
            ("LOADING Redis is loading the dataset in memory", Trouble::Away),
            ("OOM command not allowed when used memory > 'maxmemory'", Trouble::Full),
            ("NOGROUP No such key 'x' or consumer group 'y'", Trouble::Missing),
            ("UNBLOCKED the stream key no longer exists", Trouble::Missing),
            (
                "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
                Trouble::Away,
            ),
            ("WRONGPASS invalid username-password pair", Trouble::Refused),
            ("WHATEVER x", Trouble::Other),
        ] {
            assert_eq!(trouble(&server(reply)), meaning, "{reply}");
        }
    }

    /// The server's own restart is no fault of whoever reads from it.
    #[test]
    fn a_subscription_whose_connection_is_cut_is_out_of_reach() {
        let cut = || RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        for running in [false, true] {
            assert!(subscribe("x", cut(), running).is_outage());
        }
        assert_eq!(subscribe("x", server("WHATEVER x"), true).kind(), SubscribeErrorKind::Ended);
    }

    #[test]
    fn a_cut_connection_leaves_a_sent_message_unknown_and_an_unsent_one_unsent() {
        let cut = || RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(publish("x", cut(), true).kind(), PublishErrorKind::Unknown);
        assert_eq!(publish("x", cut(), false).kind(), PublishErrorKind::Unreachable);
        let full = publish("x", server("OOM command not allowed"), true);
        assert_eq!(full.kind(), PublishErrorKind::Rejected);
        assert!(full.to_string().contains("OOM"), "{full}");
    }
}
