//! Queues as values. What is done with them is [`declare`](crate::declare)'s.

use std::sync::Arc;
use std::time::Duration;

use steadfast_core::{HeaderValue, Source};

use crate::argument::{Argument, Arguments};
use crate::exchange::{Binding, Exchange, Match};

/// A durable queue: what it is called, of what type it is, with what arguments it is declared (`queue.declare`), and how
/// it is consumed.
///
/// It converts into a [`Source`]. A plain `Source::queue("orders")` means [`Queue::quorum`], and takes the queue as it is
/// where it is there already and declared otherwise; a `Queue` insists on what it says.
///
/// | set by | argument | default |
/// |---|---|---|
/// | [`message_ttl`](Self::message_ttl) | `x-message-ttl` | messages stay |
/// | [`expires`](Self::expires) | `x-expires` | the queue stays |
/// | [`max_length`](Self::max_length) | `x-max-length` | no limit |
/// | [`max_bytes`](Self::max_bytes) | `x-max-length-bytes` | no limit |
/// | [`overflow`](Self::overflow) | `x-overflow` | the oldest message goes |
/// | [`delivery_limit`](Self::delivery_limit) | `x-delivery-limit` | none |
/// | [`dead_letter_exchange`](Self::dead_letter_exchange) | `x-dead-letter-exchange` | nowhere |
/// | [`dead_letter_routing_key`](Self::dead_letter_routing_key) | `x-dead-letter-routing-key` | the message's own |
/// | [`dead_letter_strategy`](Self::dead_letter_strategy) | `x-dead-letter-strategy` | at most once |
/// | [`single_active_consumer`](Self::single_active_consumer) | `x-single-active-consumer` | all consumers take |
/// | [`max_priority`](Self::max_priority) | `x-max-priority` | one level; quorum queues have two |
///
/// ```
/// use std::time::Duration;
/// use steadfast_amqp::{Exchange, Match, Overflow, Queue};
/// use steadfast_core::Source;
///
/// let orders = Queue::quorum("orders")
///     .max_length(1_000_000)
///     .overflow(Overflow::RejectPublish)
///     .message_ttl(Duration::from_secs(86_400))
///     .bind(Exchange::topic("shop"), "order.*")
///     .bind_headers(Exchange::headers("regions"), Match::All, [("region", "eu"), ("kind", "order")]);
/// let source = Source::from(orders);
/// assert_eq!(&**source.name(), "orders");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    pub(crate) name: Arc<str>,
    pub(crate) kind: QueueKind,
    pub(crate) arguments: Arguments,
    pub(crate) bindings: Vec<Binding>,
    pub(crate) priority: Option<i32>,
    pub(crate) exclusive: bool,
}

/// Of what type a queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueKind {
    Quorum,
    Classic,
    /// Somebody else's; it is not declared.
    Passive,
}

/// What happens to a publish when the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overflow {
    /// The oldest message is dropped, or goes to the queue's own dead-letter exchange. RabbitMQ's default.
    DropHead,
    /// The publish fails with [`Rejected`](steadfast_core::PublishErrorKind::Rejected).
    RejectPublish,
    /// As [`RejectPublish`](Self::RejectPublish), and the message goes to the queue's own dead-letter exchange. Classic
    /// queues only.
    RejectPublishDeadLetter,
}

/// How sure a quorum queue is of what it hands over to its dead-letter exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeadLetterStrategy {
    /// It is sent and forgotten. RabbitMQ's default.
    AtMostOnce,
    /// It is kept until it was confirmed. Needs [`Overflow::RejectPublish`] and RabbitMQ 3.10 or later.
    AtLeastOnce,
}

impl Queue {
    /// A replicated queue that counts deliveries. RabbitMQ 3.8 and later; 3.10 and later for
    /// [`message_ttl`](Self::message_ttl).
    pub fn quorum(name: impl Into<Arc<str>>) -> Self {
        Self::new(name, QueueKind::Quorum)
    }

    /// A durable classic queue: one node, no count of deliveries.
    pub fn classic(name: impl Into<Arc<str>>) -> Self {
        Self::new(name, QueueKind::Classic)
    }

    /// A queue that its operators own: it must be there, and is taken as it is.
    pub fn passive(name: impl Into<Arc<str>>) -> Self {
        Self::new(name, QueueKind::Passive)
    }

    fn new(name: impl Into<Arc<str>>, kind: QueueKind) -> Self {
        Self {
            name: name.into(),
            kind,
            arguments: Arguments::new(),
            bindings: Vec::new(),
            priority: None,
            exclusive: false,
        }
    }

    /// Quorum queues: after this many deliveries that were not acknowledged the broker drops the message, or sends it to
    /// the queue's own dead-letter exchange. Default: no limit on RabbitMQ before 4.0; 4.0 and later have one of 20, which
    /// Steadfast lifts, because it would drop messages after consumers died 20 times.
    #[must_use]
    pub fn delivery_limit(self, deliveries: u32) -> Self {
        self.with("x-delivery-limit", i64::from(deliveries))
    }

    /// Messages older than this, to the millisecond, leave the queue. Default: none do.
    #[must_use]
    pub fn message_ttl(self, age: Duration) -> Self {
        self.with("x-message-ttl", whole_millis(age))
    }

    /// The broker deletes the queue, messages and all, when for so long it had no consumer and was not declared. At least
    /// 1 ms. Default: it stays.
    #[must_use]
    pub fn expires(self, unused: Duration) -> Self {
        self.with("x-expires", whole_millis(unused))
    }

    /// Most messages in the queue; see [`overflow`](Self::overflow). Default: no limit.
    #[must_use]
    pub fn max_length(self, messages: u32) -> Self {
        self.with("x-max-length", i64::from(messages))
    }

    /// Most bytes of message bodies in the queue; see [`overflow`](Self::overflow). Default: no limit.
    #[must_use]
    pub fn max_bytes(self, bytes: u64) -> Self {
        self.with("x-max-length-bytes", i64::try_from(bytes).unwrap_or(i64::MAX))
    }

    /// What happens when the queue is full. Default: [`Overflow::DropHead`].
    #[must_use]
    pub fn overflow(self, overflow: Overflow) -> Self {
        let word = match overflow {
            Overflow::DropHead => "drop-head",
            Overflow::RejectPublish => "reject-publish",
            Overflow::RejectPublishDeadLetter => "reject-publish-dlx",
        };
        self.with("x-overflow", word)
    }

    /// Where the *broker* sends what it drops: expired, too many, delivered too often. What Steadfast dead-letters goes to
    /// the consumer's dead-letter destination instead. Default: nowhere.
    #[must_use]
    pub fn dead_letter_exchange(self, exchange: impl AsRef<str>) -> Self {
        self.with("x-dead-letter-exchange", exchange.as_ref())
    }

    /// The routing key for [`dead_letter_exchange`](Self::dead_letter_exchange). Default: the message's own.
    #[must_use]
    pub fn dead_letter_routing_key(self, routing_key: impl AsRef<str>) -> Self {
        self.with("x-dead-letter-routing-key", routing_key.as_ref())
    }

    /// Quorum queues: how sure the broker is of what it sends to
    /// [`dead_letter_exchange`](Self::dead_letter_exchange). Default: [`DeadLetterStrategy::AtMostOnce`].
    #[must_use]
    pub fn dead_letter_strategy(self, strategy: DeadLetterStrategy) -> Self {
        let word = match strategy {
            DeadLetterStrategy::AtMostOnce => "at-most-once",
            DeadLetterStrategy::AtLeastOnce => "at-least-once",
        };
        self.with("x-dead-letter-strategy", word)
    }

    /// Of all consumers only one takes messages, and another one takes over when it is gone. Default: all of them take.
    ///
    /// The consumers that wait are ready and silent. So that none is called deaf for it, messages that wait in such a queue
    /// do not count as [`backlog`](steadfast_core::Broker::backlog); and a message that may kill its process is set apart
    /// by its count of deliveries only, because running it alone would hand the queue to another consumer.
    #[must_use]
    pub fn single_active_consumer(self) -> Self {
        self.with("x-single-active-consumer", true)
    }

    /// Classic queues: messages of a higher [`priority`](steadfast_core::Envelope::priority) are delivered first, in so
    /// many levels; 1 to 10 are sensible, 255 is the most. Default: one level. Quorum queues have two levels of themselves
    /// on RabbitMQ 4.0 and later, and refuse this.
    #[must_use]
    pub fn max_priority(self, levels: u8) -> Self {
        self.with("x-max-priority", i64::from(levels))
    }

    /// Binds it to `exchange`, which is declared before it (`queue.bind`). `routing_key` is a pattern where the exchange
    /// says so.
    #[must_use]
    pub fn bind(mut self, exchange: Exchange, routing_key: impl Into<Arc<str>>) -> Self {
        self.bindings.push(Binding::new(exchange, routing_key));
        self
    }

    /// Binds it to an exchange of type headers: it gets the messages that have [`all`](Match::All) or
    /// [`any`](Match::Any) of these headers, with these values. Values are numbers, texts or flags.
    #[must_use]
    pub fn bind_headers<N: Into<String>, V: Into<HeaderValue>>(
        mut self,
        exchange: Exchange,
        matching: Match,
        headers: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.bindings.push(Binding::by_headers(exchange, matching, headers));
        self
    }

    /// As a source: the consumer's rank (`x-priority`). Consumers of a lower one get messages only while those of a higher
    /// one hold as many as they may. Default 0.
    #[must_use]
    pub fn consumer_priority(mut self, priority: i32) -> Self {
        self.priority = Some(priority);
        self
    }

    /// As a source: no other consumer may take from the queue meanwhile (`exclusive` of `basic.consume`); whoever comes
    /// later is refused. Classic queues only: quorum queues have
    /// [`single_active_consumer`](Self::single_active_consumer). Default: shared.
    #[must_use]
    pub fn exclusive_consumer(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<Argument>) -> Self {
        self.arguments.insert(name.to_owned(), value.into());
        self
    }

    /// Another queue of the same type; of a queue whose type is not known, the safer one.
    pub(crate) fn like(kind: QueueKind, name: impl Into<Arc<str>>) -> Self {
        match kind {
            QueueKind::Quorum | QueueKind::Passive => Self::quorum(name),
            QueueKind::Classic => Self::classic(name),
        }
    }

    pub(crate) fn is_single(&self) -> bool {
        self.arguments.get("x-single-active-consumer") == Some(&Argument::Flag(true))
    }

    /// What `server` is to be told.
    pub(crate) fn arguments(&self, server: &str) -> Arguments {
        let mut arguments = self.arguments.clone();
        match self.kind {
            QueueKind::Quorum => {
                arguments.insert("x-queue-type".to_owned(), Argument::from("quorum"));
                if lifts_limit(server) {
                    arguments.entry("x-delivery-limit".to_owned()).or_insert(Argument::Number(-1));
                }
            }
            QueueKind::Classic | QueueKind::Passive => {}
        }
        arguments
    }

    /// What cannot work, whoever the broker is.
    pub(crate) fn check(&self) -> Result<(), String> {
        let says = |name: &str| self.arguments.contains_key(name);
        let kind = self.kind;
        if self.name.is_empty() {
            return Err("it needs a name, because a retry must find its way back to it".to_owned());
        }
        if kind == QueueKind::Quorum && says("x-max-priority") {
            return Err(
                "a quorum queue has no `max_priority`: leave it out, or use `Queue::classic`".to_owned()
            );
        }
        if kind == QueueKind::Quorum && self.exclusive {
            let why =
                "a quorum queue lets others take beside an exclusive consumer: use `single_active_consumer`";
            return Err(why.to_owned());
        }
        for name in ["x-delivery-limit", "x-dead-letter-strategy"] {
            if kind == QueueKind::Classic && says(name) {
                return Err(format!("a classic queue has no `{name}`: leave it out, or use `Queue::quorum`"));
            }
        }
        if says("x-dead-letter-routing-key") && !says("x-dead-letter-exchange") {
            return Err("`dead_letter_routing_key` needs `dead_letter_exchange`".to_owned());
        }
        if self.arguments.get("x-expires") == Some(&Argument::Number(0)) {
            return Err("`expires` must be at least 1 ms".to_owned());
        }
        let at_least_once = self.arguments.get("x-dead-letter-strategy") == Some(&"at-least-once".into());
        if at_least_once && self.arguments.get("x-overflow") != Some(&"reject-publish".into()) {
            let why = "`DeadLetterStrategy::AtLeastOnce` needs `Overflow::RejectPublish`: with the queue free to drop \
                       its oldest message the broker silently does without";
            return Err(why.to_owned());
        }
        Ok(())
    }
}

impl From<Queue> for Source {
    fn from(queue: Queue) -> Self {
        Self::queue(Arc::clone(&queue.name)).with_native(queue)
    }
}

/// RabbitMQ 4.0 gave quorum queues a limit of their own, and `-1` to lift it.
fn lifts_limit(server: &str) -> bool {
    version(server).is_some_and(|(major, _)| major >= 4)
}

/// Before 4.3 what is given back unharmed (`basic.nack`) counts as delivered once more.
pub(crate) fn release_counts(server: &str) -> bool {
    version(server).is_none_or(|version| version < (4, 3))
}

/// Major and minor of a RabbitMQ; none of anything else.
pub(crate) fn version(server: &str) -> Option<(u32, u32)> {
    let mut parts = server.strip_prefix("RabbitMQ ")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Milliseconds, begun ones counted whole.
pub(crate) fn whole_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_lifted_where_there_is_one() {
        assert!(lifts_limit("RabbitMQ 4.3.6") && lifts_limit("RabbitMQ 10.0.0"));
        assert!(!lifts_limit("RabbitMQ 3.10.8") && !lifts_limit("RabbitMQ") && !lifts_limit("LavinMQ 4.0"));
        assert!(release_counts("RabbitMQ 3.10.8") && release_counts("") && !release_counts("RabbitMQ 4.3.6"));
    }

    #[test]
    fn a_limit_that_was_asked_for_stays() {
        let arguments = Queue::quorum("q").delivery_limit(3).arguments("RabbitMQ 4.3.6");
        assert_eq!(arguments.get("x-delivery-limit"), Some(&Argument::Number(3)));
    }

    #[test]
    fn begun_milliseconds_count() {
        assert_eq!(whole_millis(Duration::from_micros(1)), 1);
        assert_eq!(whole_millis(Duration::from_millis(7)), 7);
        assert_eq!(whole_millis(Duration::MAX), i64::MAX);
    }

    #[test]
    fn what_cannot_work_is_said_with_the_way_out() {
        let refused = |queue: Queue| queue.check().expect_err("refused");
        assert!(refused(Queue::quorum("")).contains("name"));
        assert!(refused(Queue::quorum("q").max_priority(3)).contains("Queue::classic"));
        assert!(refused(Queue::quorum("q").exclusive_consumer()).contains("single_active_consumer"));
        assert!(refused(Queue::classic("q").delivery_limit(3)).contains("Queue::quorum"));
        assert!(refused(Queue::quorum("q").dead_letter_routing_key("k")).contains("dead_letter_exchange"));
        assert!(refused(Queue::quorum("q").expires(Duration::ZERO)).contains("expires"));
        let unsure = Queue::quorum("q").dead_letter_strategy(DeadLetterStrategy::AtLeastOnce);
        assert!(refused(unsure.clone()).contains("RejectPublish"));
        assert_eq!(unsure.overflow(Overflow::RejectPublish).check(), Ok(()));
    }
}
