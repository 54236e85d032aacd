//! The operator's side of a broker: [`Operator`] looks, [`Walk`] goes through dead letters. The docs are the contract.
//!
//! Owns what an operator can ask of any broker. How letters are chosen and in which pace they go is [`redrive`](crate::Redrive)'s.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::Serialize;

use crate::broker::{Destination, Source};
use crate::delivery::{Incoming, Payload, Token};
use crate::error::{OperateError, OperateErrorKind};
use crate::headers::Headers;
use crate::letter::Letter;

/// What an operator can ask of a broker; from [`Broker::operator`](crate::Broker::operator).
///
/// An implementation promises: nothing is changed by looking, every call has a deadline of its own, and no error text
/// carries a credential.
///
/// ```
/// # use steadfast_core::{Broker, OperateError, Source};
/// # async fn example(broker: &dyn Broker) -> Result<(), OperateError> {
/// let Some(operator) = broker.operator() else { return Ok(()) };
/// let orders = operator.inspect(&Source::queue("orders")).await?;
/// println!("{} ready: {:?}", orders.name, orders.ready);
/// let walk = operator.walk("orders.dead").await?;
/// for letter in walk.next(10).await? {
///     println!("{} {:?}", letter.id(), letter.reason());
///     walk.keep(letter.mark);
/// }
/// walk.close().await
/// # }
/// ```
pub trait Operator: Debug + Send + Sync {
    /// How deep the source is, who takes from it, and how far behind they are, as far as the broker tells.
    fn inspect<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, Result<Inspection, OperateError>>;

    /// Begins a walk through the messages of a queue or a stream, oldest first, as many as are there now.
    fn walk<'a>(&'a self, place: &'a str) -> BoxFuture<'a, Result<Arc<dyn Walk>, OperateError>>;

    /// Entries of a consumer group that were delivered and not acknowledged, oldest first, at most `limit`.
    fn pending<'a>(
        &'a self,
        source: &'a Source,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Pending>, OperateError>> {
        let _ = limit;
        Box::pin(std::future::ready(Err(no_groups(source))))
    }

    /// Gives entries that were pending for at least `idle` to the next consumer that asks, at most `limit` of them; returns
    /// how many. Nothing is counted as an attempt.
    fn claim<'a>(
        &'a self,
        source: &'a Source,
        idle: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<u64, OperateError>> {
        let _ = (idle, limit);
        Box::pin(std::future::ready(Err(no_groups(source))))
    }

    /// Begins to look on at what is published to this place from now on, without taking any of it from anybody.
    ///
    /// | | RabbitMQ | Redis Streams |
    /// |---|---|---|
    /// | place | an exchange with a routing key; a queue cannot be looked into without taking from it | a stream |
    /// | how | a queue of its own, which goes with it and drops the oldest beyond 1,000 messages | `XRANGE`, four times a second |
    fn follow<'a>(&'a self, place: &'a Destination) -> BoxFuture<'a, Result<Arc<dyn Follow>, OperateError>> {
        Box::pin(std::future::ready(Err(unsupported("follow", place.name()))))
    }

    /// Deletes a queue or a stream, with everything in it and what Steadfast keeps beside it (Redis: its retries). One that
    /// has consumers is refused on RabbitMQ. One that is not there is no error.
    fn delete<'a>(&'a self, place: &'a Source) -> BoxFuture<'a, Result<(), OperateError>> {
        Box::pin(std::future::ready(Err(unsupported("delete", place.name()))))
    }

    /// Ends its connections. Walks that are still open end with them.
    fn close(&self) -> BoxFuture<'_, ()>;
}

fn unsupported(what: &str, place: &str) -> OperateError {
    OperateError::new(OperateErrorKind::Unsupported, format!("{what} `{place}`: this broker cannot do that"))
}

fn no_groups(source: &Source) -> OperateError {
    let what = format!(
        "look at the pending entries of `{}`: this broker has no consumer groups; `inspect` tells what is unsettled",
        source.name()
    );
    OperateError::new(OperateErrorKind::Unsupported, what)
}

/// Looks on at what is published somewhere; from [`Operator::follow`]. Dropping it ends it.
///
/// ```
/// # use steadfast_core::{Broker, Destination, OperateError};
/// # async fn example(broker: &dyn Broker) -> Result<(), OperateError> {
/// let Some(operator) = broker.operator() else { return Ok(()) };
/// let follow = operator.follow(&Destination::exchange("shop", "order.*")).await?;
/// for message in follow.next().await? {
///     println!("{} {:?}", message.id(), message.message_type);
/// }
/// # Ok(()) }
/// ```
pub trait Follow: Send + Sync {
    /// Waits for the next messages, in their order; at most 100 at a time. An error is final.
    fn next(&self) -> BoxFuture<'_, Result<Vec<Arc<Incoming>>, OperateError>>;
}

/// A walk through a queue or a stream, for dead letters.
///
/// Each letter that [`next`](Self::next) hands out is dealt with by one of `forward`, `discard` and `keep`. What is not
/// dealt with stays where it is when the walk ends, however that happens.
pub trait Walk: Send + Sync {
    /// How many letters were there when the walk began.
    fn total(&self) -> u64;

    /// Whether [`forward`](Self::forward) is one step at the broker, so that a letter that is still there was not sent;
    /// and marks are the same on every walk.
    fn atomic(&self) -> bool;

    /// The next letters, at least one and at most `limit`; none at the end of the walk.
    fn next(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Letter>, OperateError>>;

    /// Stores the letter, changed as `forward` says, at its destination; only when that is known to be safe the letter is
    /// taken out of here.
    fn forward<'a>(
        &'a self,
        letter: &'a Letter,
        forward: &'a Forward,
    ) -> BoxFuture<'a, Result<Forwarded, OperateError>>;

    /// Takes the letter out for good. False where it was not there any more.
    fn discard(&self, mark: Token) -> BoxFuture<'_, Result<bool, OperateError>>;

    /// Leaves the letter where it is.
    fn keep(&self, mark: Token);

    /// How many letters of this redrive job came (back) here since the walk began. A broker that cannot show the end of a
    /// queue counts everything that came.
    fn returned<'a>(&'a self, job: &'a str) -> BoxFuture<'a, Result<u64, OperateError>>;

    /// Ends it, after everything that was done is with the broker.
    fn close(&self) -> BoxFuture<'_, Result<(), OperateError>>;
}

/// What became of a letter that was forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Forwarded {
    /// It is at its destination, and not here any more.
    Moved,
    /// It is at its destination, and could not be taken out here: the way to the broker was lost in between.
    Copied,
    /// It was not here any more: somebody else took it.
    Gone,
}

/// How a letter is sent on.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// Where to.
    pub to: Destination,
    /// Whether the dead letter's record, the count of attempts and whatever else Steadfast added is taken off, so that it
    /// is again as it was published. Otherwise all stays as it is.
    pub restore: bool,
    /// Headers to set over its own.
    pub set: Headers,
    /// Another content.
    pub payload: Option<Payload>,
    /// Another message id.
    pub message_id: Option<String>,
}

/// What a broker tells about a queue or a stream. None is what it cannot tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// Its name.
    pub name: String,
    /// `queue` or `stream`.
    pub kind: String,
    /// Messages in all that it holds, acknowledged stream entries included.
    pub length: Option<u64>,
    /// Messages that were not delivered to anyone.
    pub ready: Option<u64>,
    /// Messages that were delivered and not settled.
    pub unsettled: Option<u64>,
    /// Retries that wait for their time.
    pub delayed: Option<u64>,
    /// Consumers that take from it.
    pub consumers: Option<u64>,
    /// Its consumer groups.
    pub groups: Vec<GroupInspection>,
}

impl Inspection {
    /// Of what kind it is and what it is called; nothing else known.
    pub fn new(kind: &str, name: &str) -> Self {
        Self { name: name.to_owned(), kind: kind.to_owned(), ..Self::default() }
    }
}

/// One consumer group of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GroupInspection {
    /// Its name.
    pub name: String,
    /// Entries that were not delivered to it.
    pub lag: Option<u64>,
    /// Entries that were delivered and not acknowledged.
    pub pending: u64,
    /// ID of the last entry that was delivered to it.
    pub last_delivered: String,
    /// Its consumers.
    pub consumers: Vec<ConsumerInspection>,
}

/// One consumer of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConsumerInspection {
    /// Its name.
    pub name: String,
    /// Entries that it holds.
    pub pending: u64,
    /// Milliseconds since it last asked for anything.
    pub idle_ms: u64,
}

/// One pending entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pending {
    /// Entry ID.
    pub id: String,
    /// Who holds it.
    pub consumer: String,
    /// Milliseconds since its consumer gave a sign of life for it.
    pub idle_ms: u64,
    /// How often it was delivered.
    pub deliveries: u64,
}
