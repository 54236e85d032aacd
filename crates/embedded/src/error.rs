//! The sentences of this broker's errors: what was tried, on what, and the way out.

use steadfast_core::{
    ConnectError, ConnectErrorKind, Destination, PublishError, PublishErrorKind, SettleError,
    SettleErrorKind, Source, SubscribeError, SubscribeErrorKind,
};

use crate::hub::Limits;

pub(crate) fn invalid_url(url: &str, why: &str) -> ConnectError {
    let text = format!(
        "connect to `{url}`: {why}; write `embedded:` for a broker of your own, or `embedded:name`, with letters, \
         digits, `-`, `_` and `.`, for one that is shared by all in this process who name it"
    );
    ConnectError::new(ConnectErrorKind::InvalidUrl, text)
}

pub(crate) fn closed_for_connecting(what: &str) -> ConnectError {
    let text = format!("{what}: this connection to the embedded broker was closed; connect again");
    ConnectError::new(ConnectErrorKind::Unreachable, text)
}

pub(crate) fn closed_for_subscribing(source: &str) -> SubscribeError {
    let text = format!(
        "subscribe to queue `{source}`: this connection to the embedded broker was closed; connect again"
    );
    SubscribeError::new(SubscribeErrorKind::Unreachable, text)
}

pub(crate) fn foreign_source(source: &Source) -> SubscribeError {
    let text = format!(
        "subscribe to `{}`: the source says what only another broker understands; give the embedded broker a plain \
         `Source::queue(\"{0}\")`",
        source.name()
    );
    SubscribeError::new(SubscribeErrorKind::Unsupported, text)
}

pub(crate) fn dead_letters_to_exchange(source: &str, destination: &Destination) -> SubscribeError {
    let text = format!(
        "subscribe to queue `{source}`: its dead letters are to go to exchange `{destination}`, and the embedded broker \
         has no exchanges; name a queue"
    );
    SubscribeError::new(SubscribeErrorKind::Unsupported, text)
}

pub(crate) fn ended(queue: &str) -> SubscribeError {
    let text = format!(
        "subscription to queue `{queue}` ended: its connection was closed; connect and subscribe again"
    );
    SubscribeError::new(SubscribeErrorKind::Ended, text)
}

pub(crate) fn stopped(queue: &str) -> SubscribeError {
    let text = format!("subscription to queue `{queue}` was stopped and takes nothing more; subscribe again");
    SubscribeError::new(SubscribeErrorKind::Ended, text)
}

pub(crate) fn closed_for_publishing(destination: &Destination) -> PublishError {
    let text = format!(
        "publish to `{destination}`: this connection to the embedded broker was closed; connect again"
    );
    PublishError::new(PublishErrorKind::Unreachable, text)
}

pub(crate) fn publish_to_exchange(destination: &Destination) -> PublishError {
    let text = format!(
        "publish to exchange `{destination}`: the embedded broker has no exchanges; publish to the queue by \
         `Destination::queue(\"{}\")`",
        destination.name()
    );
    PublishError::new(PublishErrorKind::Invalid, text)
}

pub(crate) fn not_carried(destination: &Destination, why: &str) -> PublishError {
    PublishError::new(PublishErrorKind::Invalid, format!("publish to `{destination}`: {why}"))
}

pub(crate) fn unroutable(destination: &Destination) -> PublishError {
    let text = format!(
        "publish to `{destination}`: there is no such queue; declare it, or subscribe to it, before publishing"
    );
    PublishError::new(PublishErrorKind::Unroutable, text)
}

pub(crate) fn full(queue: &str, limits: &Limits) -> PublishError {
    let text = format!(
        "publish to queue `{queue}`: it held {} messages and none left for {:?}; consume faster, publish less, or raise \
         `Limits::capacity`",
        limits.capacity, limits.publish_timeout
    );
    PublishError::new(PublishErrorKind::Rejected, text)
}

pub(crate) fn gone(queue: &str) -> SettleError {
    let text = format!(
        "settle a message of queue `{queue}`: it is no longer held by this subscription; it is delivered again"
    );
    SettleError::new(SettleErrorKind::Gone, text)
}

pub(crate) fn dead_letters_full(queue: &str, dead: &str) -> SettleError {
    let text = format!(
        "dead-letter a message of queue `{queue}`: queue `{dead}` is full; take messages from it, or raise \
         `Limits::capacity`"
    );
    SettleError::new(SettleErrorKind::NotStored, text)
}
