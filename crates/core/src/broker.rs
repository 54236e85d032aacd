//! What a broker is: [`Broker`], [`Subscription`], [`Settler`], [`Publisher`]. The docs are the contract, and the
//! conformance suite holds every implementation to it.

use std::any::Any;
use std::fmt::{self, Debug};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::future::{BoxFuture, join_all};

use crate::dead_letter::DeadLetter;
use crate::delivery::{Delivery, Incoming, Payload, Token};
use crate::error::{ConnectError, PublishError, SettleError, SubscribeError};
use crate::headers::Headers;
use crate::operate::Operator;
use crate::settle::Requeue;

/// A broker, connected. Cheap to share; one of it serves a whole application.
///
/// An implementation promises: nothing blocks the calling thread; every call has a deadline of its own; no error text
/// carries a credential; a lost connection is opened again by the next call that needs it, never behind the back of a
/// subscription, which ends with an error instead.
pub trait Broker: Debug + Send + Sync + 'static {
    /// The URL scheme it is reached by: `amqp`, `redis`, `embedded`.
    fn scheme(&self) -> &'static str;

    /// What this broker can do, as found when it was connected.
    fn capabilities(&self) -> Capabilities;

    /// Makes sure that the source exists, as [`subscribe`](Self::subscribe) would. Doing it twice is no error; finding it
    /// declared otherwise is one, which names both values.
    fn declare<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, Result<(), SubscribeError>>;

    /// Starts taking messages: declares the source, the dead-letter destination and whatever a delayed retry needs, then
    /// subscribes on a channel or a reader that belongs to this subscription alone.
    fn subscribe(&self, request: Subscribe) -> BoxFuture<'_, Result<Box<dyn Subscription>, SubscribeError>>;

    /// A publisher. Publishers may share a connection, never with a subscription.
    fn publisher(&self) -> BoxFuture<'_, Result<Arc<dyn Publisher>, ConnectError>>;

    /// Opens the connections that are not open, and answers with what ends when one of them is lost, and says why. For
    /// [`Child::connection`](crate::Child::connection). By default a connection is taken to stand for ever.
    fn connection(&self) -> BoxFuture<'_, Result<BoxFuture<'static, ConnectError>, ConnectError>> {
        let lost: BoxFuture<'static, ConnectError> = Box::pin(std::future::pending());
        Box::pin(std::future::ready(Ok(lost)))
    }

    /// How many messages wait in the source for this consumer group: not delivered to anyone yet. None where the broker
    /// cannot tell. Asked every few seconds while a consumer is idle, to find one that has gone deaf.
    fn backlog<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, Option<u64>> {
        let _ = source;
        Box::pin(std::future::ready(None))
    }

    /// The operator's side: looking at queues and streams, and at dead letters. None where the broker has none.
    fn operator(&self) -> Option<Arc<dyn Operator>> {
        None
    }

    /// Ends every connection, after what is on its way has been written. Calls after this fail.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A running subscription: a channel with its consumer, or a slot in a consumer group.
///
/// It belongs to one consumer, is never restarted, and holds at most [`Subscribe::max_in_flight`] unsettled deliveries.
/// Dropping it gives up whatever it holds: the broker delivers that again.
pub trait Subscription: Send {
    /// Waits for deliveries and pushes at least one and at most `room` of them onto `batch`.
    ///
    /// The caller holds a permit for each of the `room`. An error is final: it says why the subscription ended, and
    /// after it this is not called again. A subscription that can deliver nothing more must say so by an error; to be
    /// pending for ever with a channel gone is the one thing that it must never be.
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        room: NonZeroUsize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Result<(), SubscribeError>>;

    /// Narrow: holds no unsettled delivery beyond those that `poll_next` handed out, gives back unharmed what it holds, and
    /// asks the broker for one at a time. Wide: up to [`Subscribe::max_in_flight`] again.
    ///
    /// A message that may take the whole process down is run alone, so that its neighbours are not counted as delivered
    /// once more. Returns at once; what is to be told to the broker is told by the next [`poll_next`](Self::poll_next).
    /// A subscription that takes nothing ahead of `poll_next` has nothing to do, and neither has one whose broker does not
    /// count deliveries.
    fn set_narrow(&mut self, narrow: bool) {
        let _ = narrow;
    }

    /// Who settles this subscription's deliveries.
    fn settler(&self) -> Arc<dyn Settler>;

    /// Stops taking, for a drain: tells the broker to send no more, and gives back unharmed, without an attempt, what the
    /// broker sent and `poll_next` did not hand out. Deliveries that were handed out can still be settled.
    fn stop(&mut self) -> BoxFuture<'_, Result<(), SubscribeError>>;

    /// Ends it, after [`Settler::finish`].
    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), SubscribeError>>;
}

/// Tells the broker how deliveries end. Shared by the deliveries of one subscription.
///
/// Each token is settled exactly once. Settling what is no longer ours (the channel is gone, another consumer claimed
/// it) must do nothing to anybody else's delivery.
pub trait Settler: Send + Sync {
    /// Acknowledges. Returns at once; it may be held back to be sent together with others until the next
    /// [`flush`](Self::flush).
    fn ack(&self, token: Token);

    /// Gives it back unharmed: delivered again at once, to anyone, counting as no attempt. Returns at once.
    fn release(&self, token: Token);

    /// Stores a copy of `message` that comes back to the same source (and the same group) after `requeue.after`, with
    /// `requeue.headers` set over its own and all else untouched. Only when the copy is known to be safe is the original
    /// acknowledged.
    fn requeue<'a>(
        &'a self,
        message: &'a Incoming,
        token: Token,
        requeue: &'a Requeue,
    ) -> BoxFuture<'a, Result<(), SettleError>>;

    /// Stores a copy of `message` in the dead letters, with the record's headers set over its own and all else untouched.
    /// Only when the copy is known to be safe is the original acknowledged.
    fn dead_letter<'a>(
        &'a self,
        message: &'a Incoming,
        token: Token,
        letter: &'a DeadLetter,
    ) -> BoxFuture<'a, Result<(), SettleError>>;

    /// Sends what was held back. Returns at once. The consumer calls it when it has nothing in flight, but at most
    /// once a millisecond for that; when half of `max_in_flight` is held back; and at the latest 5 ms after the first.
    fn flush(&self);

    /// Waits until everything that was settled before this call is with the broker. For a drain.
    fn finish(&self) -> BoxFuture<'_, Result<(), SettleError>>;
}

/// Publishes messages. Shared by all who publish through it.
pub trait Publisher: Send + Sync {
    /// Publishes one message, persistent, and waits until the broker says that it is safe in at least one queue or in the
    /// stream. Any number of calls may be under way at once: they share round trips.
    ///
    /// An error is never turned into success by a retry with another message id; see
    /// [`PublishErrorKind::Unknown`](crate::PublishErrorKind::Unknown).
    fn send(&self, message: Outgoing) -> BoxFuture<'_, Result<(), PublishError>>;

    /// Publishes many messages at once. One result for each, in their order: some may be safe while others are not.
    ///
    /// They share round trips, and are under way together as far as the publisher's window allows.
    fn send_batch(&self, messages: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        Box::pin(join_all(messages.into_iter().map(|message| self.send(message))))
    }
}

/// What is asked of [`Broker::subscribe`].
#[derive(Clone, Debug)]
pub struct Subscribe {
    /// Where from.
    pub source: Source,
    /// Name of the consumer, for the broker's own listings.
    pub consumer: Arc<str>,
    /// Most deliveries that may be unsettled at once.
    pub max_in_flight: NonZeroUsize,
    /// Begin as after [`Subscription::set_narrow`] with true.
    pub narrow: bool,
    /// Where dead letters go.
    pub dead_letter: Destination,
}

/// Where messages are taken from: a name that each broker gives a meaning to.
///
/// | | RabbitMQ | Redis Streams | embedded |
/// |---|---|---|---|
/// | name | durable queue | stream | queue |
/// | group | – | consumer group, default `steadfast` | – |
///
/// A broker crate's own type (`steadfast::amqp::Queue`, `steadfast::streams::Stream`) converts into it and says more.
///
/// ```
/// use steadfast_core::Source;
///
/// let source = Source::queue("orders").group("billing");
/// assert_eq!(&**source.name(), "orders");
/// ```
#[derive(Clone)]
pub struct Source {
    name: Arc<str>,
    group: Option<Arc<str>>,
    native: Option<Arc<dyn Any + Send + Sync>>,
}

impl Source {
    /// The queue or stream of this name.
    pub fn queue(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), group: None, native: None }
    }

    /// The consumer group, where the broker has such a thing.
    #[must_use]
    pub fn group(mut self, group: impl Into<Arc<str>>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Attaches what only one broker understands; for broker crates.
    #[must_use]
    pub fn with_native(mut self, native: impl Any + Send + Sync) -> Self {
        self.native = Some(Arc::new(native));
        self
    }

    /// The name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The consumer group, if one was named.
    pub fn group_name(&self) -> Option<&Arc<str>> {
        self.group.as_ref()
    }

    /// What a broker crate attached, if it is a `T`.
    pub fn native<T: Any>(&self) -> Option<&T> {
        self.native.as_deref().and_then(|native| native.downcast_ref())
    }

    /// Whether any broker crate attached something.
    pub fn has_native(&self) -> bool {
        self.native.is_some()
    }
}

impl Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("name", &self.name).field("group", &self.group).finish_non_exhaustive()
    }
}

impl From<&str> for Source {
    fn from(name: &str) -> Self {
        Self::queue(name)
    }
}

/// Where messages are sent to.
///
/// ```
/// use steadfast_core::Destination;
///
/// let queue = Destination::queue("orders");
/// let topic = Destination::exchange("shop", "order.placed");
/// assert_eq!((queue.exchange_name(), queue.name()), (None, "orders"));
/// assert_eq!(topic.to_string(), "shop/order.placed");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    exchange: Option<Arc<str>>,
    name: Arc<str>,
}

impl Destination {
    /// The queue or stream of this name.
    pub fn queue(name: impl Into<Arc<str>>) -> Self {
        Self { exchange: None, name: name.into() }
    }

    /// An AMQP exchange, with the routing key to publish with. Other brokers refuse it.
    pub fn exchange(exchange: impl Into<Arc<str>>, routing_key: impl Into<Arc<str>>) -> Self {
        Self { exchange: Some(exchange.into()), name: routing_key.into() }
    }

    /// The exchange, if one was named.
    pub fn exchange_name(&self) -> Option<&str> {
        self.exchange.as_deref()
    }

    /// Queue, stream or routing key.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl From<&str> for Destination {
    fn from(name: &str) -> Self {
        Self::queue(name)
    }
}

impl From<String> for Destination {
    fn from(name: String) -> Self {
        Self::queue(name)
    }
}

impl From<&Destination> for Destination {
    fn from(destination: &Destination) -> Self {
        destination.clone()
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.exchange {
            Some(exchange) => write!(f, "{exchange}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// A message to be published.
///
/// What a broker cannot carry it refuses with [`Invalid`](crate::PublishErrorKind::Invalid), rather than let it go by:
///
/// | | RabbitMQ | Redis Streams | embedded |
/// |---|---|---|---|
/// | `timestamp` | property, whole seconds | field, milliseconds | yes |
/// | `app_id`, `reply_to` | property | field | yes |
/// | `expiration` | property, milliseconds | refused: an entry has no time to live | refused |
/// | `priority` | property | refused: a stream has one order | refused |
/// | `persistent: false` | delivery mode 1 | means nothing | means nothing |
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Where to.
    pub destination: Destination,
    /// The content.
    pub payload: Payload,
    /// Headers that are not among the properties below.
    pub headers: Headers,
    /// Type name.
    pub message_type: Option<String>,
    /// Unique id; [`Outgoing::new`] makes one (UUID version 7).
    pub message_id: String,
    /// Correlation id.
    pub correlation_id: Option<String>,
    /// How the payload is encoded.
    pub content_type: Option<String>,
    /// When what it tells of happened. Default: when it is published.
    pub timestamp: Option<SystemTime>,
    /// The application that publishes it.
    pub app_id: Option<String>,
    /// Where an answer to it is expected.
    pub reply_to: Option<String>,
    /// How long it is worth being delivered, to the millisecond; the broker drops it after that, or dead-letters it.
    pub expiration: Option<Duration>,
    /// Its rank before others in the same queue: higher comes first, where the queue knows priorities. Default 0.
    pub priority: Option<u8>,
    /// The broker keeps it over a restart. Default true.
    pub persistent: bool,
}

impl Outgoing {
    /// A message with this content to this place, a new message id, and nothing else.
    pub fn new(destination: impl Into<Destination>, payload: impl Into<Payload>) -> Self {
        Self {
            destination: destination.into(),
            payload: payload.into(),
            headers: Headers::new(),
            message_type: None,
            message_id: uuid::Uuid::now_v7().to_string(),
            correlation_id: None,
            content_type: None,
            timestamp: None,
            app_id: None,
            reply_to: None,
            expiration: None,
            priority: None,
            persistent: true,
        }
    }

    /// What a broker refuses that delivers everything in order and lets nothing expire; for broker crates.
    pub fn ranked_or_expiring(&self) -> Option<&'static str> {
        match (self.priority, self.expiration) {
            (Some(_), _) => Some("there are no priorities here; leave `priority` out"),
            (None, Some(_)) => Some("no single message expires here; leave `expiration` out"),
            (None, None) => None,
        }
    }
}

/// What a broker can do. Each conformance property that needs one of these says so when it is skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "independent yes-or-no facts, not states")]
pub struct Capabilities {
    /// Product and version, as the server says: `RabbitMQ 3.10.8`.
    pub server: String,
    /// It counts deliveries of a message that were not settled ([`Incoming::delivery_count`]).
    pub delivery_count: bool,
    /// Giving a delivery back unharmed raises that count, too.
    pub release_counts: bool,
    /// It holds a delayed retry itself; otherwise Steadfast builds one from what it has.
    pub native_delay: bool,
    /// A delayed retry comes back within this of when it was due.
    pub delay_precision: Duration,
    /// It carries [`Payload::Fields`].
    pub fields: bool,
    /// Messages survive a restart of the broker.
    pub durable: bool,
    /// It carries headers that are not text ([`HeaderValue::Int`](crate::HeaderValue::Int) and the like) as what they are.
    pub typed_headers: bool,
    /// Each consumer group gets every message; otherwise the group of a [`Source`] says nothing.
    pub groups: bool,
    /// A message to a destination that does not exist is [`Unroutable`](crate::PublishErrorKind::Unroutable); otherwise
    /// the destination comes into being.
    pub routable_check: bool,
}

impl Capabilities {
    /// A server that can do nothing beyond the contract.
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            delivery_count: false,
            release_counts: false,
            native_delay: false,
            delay_precision: Duration::from_millis(50),
            fields: false,
            durable: true,
            typed_headers: true,
            groups: false,
            routable_check: false,
        }
    }
}
