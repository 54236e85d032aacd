//! What travels around a message: [`Envelope`] on the way out, [`Context`] on the way in.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use tokio::sync::OnceCell;

use crate::broker::{Broker, Destination, Outgoing, Publisher};
use crate::codec::Codec;
use crate::delivery::{Incoming, Origin};
use crate::error::{PublishError, PublishErrorKind};
use crate::headers::{HeaderValue, Headers, known};
use crate::message::Message;

/// A message with what else is to be said of it when it is published. A plain `&message` becomes one by itself.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use steadfast_core::{Envelope, Message};
/// # #[derive(Serialize, Deserialize)] struct OrderPlaced { id: u64 }
/// # impl Message for OrderPlaced { const NAME: &'static str = "order.placed"; }
/// let order = OrderPlaced { id: 7 };
/// let envelope = Envelope::new(&order).to("orders").header("tenant", "acme");
/// # let _ = envelope;
/// ```
#[derive(Debug)]
pub struct Envelope<'a, M> {
    message: &'a M,
    destination: Option<Destination>,
    headers: Headers,
    message_id: Option<String>,
    correlation_id: Option<String>,
    extra: Extra,
    republish: u32,
    codec: Codec,
}

/// What most messages do without.
#[derive(Debug, Default)]
struct Extra {
    timestamp: Option<SystemTime>,
    app_id: Option<String>,
    reply_to: Option<String>,
    expiration: Option<Duration>,
    priority: Option<u8>,
    transient: bool,
}

impl<'a, M: Message> Envelope<'a, M> {
    /// The message, to where its type goes: [`Message::DESTINATION`], else the queue or stream named as the type.
    pub fn new(message: &'a M) -> Self {
        Self {
            message,
            destination: None,
            headers: Headers::new(),
            message_id: None,
            correlation_id: None,
            extra: Extra::default(),
            republish: 0,
            codec: Codec::default(),
        }
    }

    /// Sends it here instead.
    #[must_use]
    pub fn to(mut self, destination: impl Into<Destination>) -> Self {
        self.destination = Some(destination.into());
        self
    }

    /// Sets a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<HeaderValue>) -> Self {
        self.headers.set(name.into(), value);
        self
    }

    /// Sets the message id, in place of a new one. Publish again with the same id what may have been published before.
    #[must_use]
    pub fn message_id(mut self, id: impl Into<String>) -> Self {
        self.message_id = Some(id.into());
        self
    }

    /// Sets the correlation id.
    #[must_use]
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.correlation_id = Some(id.into());
        self
    }

    /// When what it tells of happened. Default: when it is published. RabbitMQ keeps whole seconds.
    #[must_use]
    pub fn timestamp(mut self, at: SystemTime) -> Self {
        self.extra.timestamp = Some(at);
        self
    }

    /// The application that publishes it.
    #[must_use]
    pub fn app_id(mut self, id: impl Into<String>) -> Self {
        self.extra.app_id = Some(id.into());
        self
    }

    /// Where an answer to it is expected: a queue or a stream.
    #[must_use]
    pub fn reply_to(mut self, name: impl Into<String>) -> Self {
        self.extra.reply_to = Some(name.into());
        self
    }

    /// How long it is worth being delivered, to the millisecond. RabbitMQ only; other brokers refuse it. Default: for ever.
    #[must_use]
    pub fn expiration(mut self, after: Duration) -> Self {
        self.extra.expiration = Some(after);
        self
    }

    /// Its rank before others in the same queue, where that knows priorities. RabbitMQ only; other brokers refuse it.
    /// Default 0, the lowest.
    #[must_use]
    pub fn priority(mut self, rank: u8) -> Self {
        self.extra.priority = Some(rank);
        self
    }

    /// Whether the broker keeps it over a restart. Default true. Quorum queues and Redis keep it in any case.
    #[must_use]
    pub fn persistent(mut self, persistent: bool) -> Self {
        self.extra.transient = !persistent;
        self
    }

    /// Publishes it again, up to so many times, as long as its outcome is [`Unknown`](PublishErrorKind::Unknown): with the
    /// same message id, by which consumers can recognise a second copy. The first time after 100 ms, then after twice as
    /// long each time, 5 s at most. Default 0.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use steadfast_core::{Envelope, Message};
    /// # #[derive(Serialize, Deserialize)] struct OrderPlaced { id: u64 }
    /// # impl Message for OrderPlaced { const NAME: &'static str = "order.placed"; }
    /// # let order = OrderPlaced { id: 7 };
    /// let envelope = Envelope::new(&order).app_id("shop").priority(5).republish(3);
    /// # let _ = envelope;
    /// ```
    #[must_use]
    pub fn republish(mut self, times: u32) -> Self {
        self.republish = times;
        self
    }

    /// Encodes with this codec. Default JSON.
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Encodes it, as it is handed to [`Publisher::send`]; for broker crates. How often it may be
    /// [published again](Self::republish) is left out.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use steadfast_core::{Envelope, Message};
    /// # #[derive(Serialize, Deserialize)] struct OrderPlaced { id: u64 }
    /// # impl Message for OrderPlaced { const NAME: &'static str = "order.placed"; }
    /// let outgoing = Envelope::new(&OrderPlaced { id: 7 }).to("orders").into_outgoing()?;
    /// assert_eq!(outgoing.destination.name(), "orders");
    /// # Ok::<_, steadfast_core::PublishError>(())
    /// ```
    pub fn into_outgoing(self) -> Result<Outgoing, PublishError> {
        self.encode().map(|(outgoing, _)| outgoing)
    }

    fn encode(self) -> Result<(Outgoing, u32), PublishError> {
        let destination =
            self.destination.unwrap_or_else(|| Destination::queue(M::DESTINATION.unwrap_or(M::NAME)));
        let body = self.codec.encode(self.message).map_err(|error| {
            let what = format!("encode a message of type {:?} for {destination}", M::NAME);
            PublishError::new(PublishErrorKind::Encode, what).with_source(error)
        })?;
        let mut outgoing = Outgoing::new(destination, body);
        outgoing.headers = self.headers;
        if let Some(key) = self.message.key() {
            outgoing.headers.set(known::KEY, key.into_owned());
        }
        if M::VERSION != 1 {
            outgoing.headers.set(known::VERSION, M::VERSION);
        }
        outgoing.message_type = Some(M::NAME.to_owned());
        outgoing.content_type = Some(self.codec.content_type().to_owned());
        outgoing.correlation_id = self.correlation_id;
        if let Some(id) = self.message_id {
            outgoing.message_id = id;
        }
        let Extra { timestamp, app_id, reply_to, expiration, priority, transient } = self.extra;
        (outgoing.timestamp, outgoing.app_id, outgoing.reply_to) = (timestamp, app_id, reply_to);
        (outgoing.expiration, outgoing.priority, outgoing.persistent) = (expiration, priority, !transient);
        Ok((outgoing, self.republish))
    }
}

impl<'a, M: Message> From<&'a M> for Envelope<'a, M> {
    fn from(message: &'a M) -> Self {
        Self::new(message)
    }
}

/// Publishes typed messages through any [`Publisher`].
///
/// ```no_run
/// # use serde::{Deserialize, Serialize};
/// # use steadfast_core::{Broker, Envelope, Message, PublisherExt};
/// # #[derive(Serialize, Deserialize)] struct OrderPlaced { id: u64 }
/// # impl Message for OrderPlaced { const NAME: &'static str = "order.placed"; }
/// # async fn example(broker: &dyn Broker) -> Result<(), Box<dyn std::error::Error>> {
/// let publisher = broker.publisher().await?;
/// let order = OrderPlaced { id: 7 };
/// publisher.publish(&order).await?;
/// publisher.publish(Envelope::new(&order).to("orders").header("tenant", "acme")).await?;
/// # Ok(()) }
/// ```
pub trait PublisherExt: Publisher {
    /// Publishes one message and waits until it is safe; see [`Publisher::send`].
    fn publish<'a, M: Message>(
        &self,
        envelope: impl Into<Envelope<'a, M>>,
    ) -> impl Future<Output = Result<(), PublishError>> + Send {
        let outgoing = envelope.into().encode();
        async move {
            let (outgoing, times) = outgoing?;
            send(self, outgoing, times).await
        }
    }

    /// Publishes many at once; see [`Publisher::send_batch`]. One result for each, in their order.
    ///
    /// ```no_run
    /// # use serde::{Deserialize, Serialize};
    /// # use steadfast_core::{Message, Publisher, PublisherExt};
    /// # #[derive(Serialize, Deserialize)] struct OrderPlaced { id: u64 }
    /// # impl Message for OrderPlaced { const NAME: &'static str = "order.placed"; }
    /// # async fn example(publisher: &dyn Publisher, orders: &[OrderPlaced]) {
    /// for (order, outcome) in orders.iter().zip(publisher.publish_batch(orders).await) {
    ///     if let Err(error) = outcome {
    ///         eprintln!("order {}: {error}", order.id);
    ///     }
    /// }
    /// # }
    /// ```
    fn publish_batch<'a, M: Message>(
        &self,
        envelopes: impl IntoIterator<Item = impl Into<Envelope<'a, M>>>,
    ) -> impl Future<Output = Vec<Result<(), PublishError>>> + Send {
        let encoded: Vec<_> = envelopes.into_iter().map(|envelope| envelope.into().encode()).collect();
        async move {
            let sent = encoded.into_iter().map(async |encoded| {
                let (outgoing, times) = encoded?;
                send(self, outgoing, times).await
            });
            join_all(sent).await
        }
    }
}

/// The longest wait before a message whose outcome is unknown is published again.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Once, and again up to so many times as long as nobody knows what became of it.
async fn send<P: Publisher + ?Sized>(
    publisher: &P,
    outgoing: Outgoing,
    times: u32,
) -> Result<(), PublishError> {
    let mut wait = Duration::from_millis(100);
    for _ in 0..times {
        match publisher.send(outgoing.clone()).await {
            Err(error) if error.kind() == PublishErrorKind::Unknown => {
                tracing::debug!(target: "steadfast", %error, id = %outgoing.message_id, "message.republished");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_WAIT);
            }
            outcome => return outcome,
        }
    }
    publisher.send(outgoing).await
}

impl<P: Publisher + ?Sized> PublisherExt for P {}

/// What a handler can know and do beyond the message itself. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    incoming: Arc<Incoming>,
    attempt: u32,
    outlet: Option<Arc<Outlet>>,
}

impl Context {
    pub(crate) fn new(incoming: Arc<Incoming>, attempt: u32, outlet: Arc<Outlet>) -> Self {
        Self { incoming, attempt, outlet: Some(outlet) }
    }

    /// A context without a broker, to call a handler in a unit test; publishing through it fails.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use steadfast_core::{Context, Incoming, Origin};
    ///
    /// let cx = Context::detached(Arc::new(Incoming::new("{}", Origin::default())));
    /// assert_eq!(cx.attempt(), 1);
    /// ```
    pub fn detached(incoming: Arc<Incoming>) -> Self {
        let attempt = incoming.attempt().unwrap_or(1);
        Self { incoming, attempt, outlet: None }
    }

    /// Number of this attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether the broker delivered this message before: then an earlier attempt may have done its work without being
    /// acknowledged.
    pub fn redelivered(&self) -> bool {
        self.incoming.redelivered
    }

    /// The message's id, the same on every attempt; none from services that do not send one.
    pub fn message_id(&self) -> Option<&str> {
        self.incoming.message_id.as_deref()
    }

    /// The message's ordering and partitioning key.
    pub fn key(&self) -> Option<&str> {
        self.headers().text(known::KEY).ok().flatten()
    }

    /// The message's headers.
    pub fn headers(&self) -> &Headers {
        &self.incoming.headers
    }

    /// Where it was taken from.
    pub fn origin(&self) -> &Origin {
        &self.incoming.origin
    }

    /// All that was delivered.
    pub fn incoming(&self) -> &Incoming {
        &self.incoming
    }

    /// Publishes a message and waits until it is safe; see [`Publisher::send`]. It carries this one's trace, its
    /// correlation id (or its message id, where it starts a correlation), and its message id as causation.
    pub async fn publish<'a, M: Message>(
        &self,
        envelope: impl Into<Envelope<'a, M>>,
    ) -> Result<(), PublishError> {
        let encoded = envelope.into().encode();
        let Some(outlet) = &self.outlet else {
            let what = "publish from a detached context: it has no broker";
            return Err(PublishError::new(PublishErrorKind::Unreachable, what));
        };
        let (outgoing, times) = encoded?;
        send(&**outlet.publisher().await?, self.caused(outgoing), times).await
    }

    fn caused(&self, mut outgoing: Outgoing) -> Outgoing {
        let id = self.message_id();
        if outgoing.correlation_id.is_none() {
            outgoing.correlation_id = self.incoming.correlation_id.as_deref().or(id).map(str::to_owned);
        }
        if let Some(id) = id {
            outgoing.headers.set(known::CAUSATION, id);
        }
        if let (None, Some(trace)) =
            (outgoing.headers.get(known::TRACEPARENT), self.headers().get(known::TRACEPARENT))
        {
            outgoing.headers.set(known::TRACEPARENT, trace.clone());
        }
        outgoing
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("incoming", &self.incoming)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// Where a consumer's handlers publish: one publisher, made when the first of them asks.
pub(crate) struct Outlet {
    broker: Arc<dyn Broker>,
    publisher: OnceCell<Arc<dyn Publisher>>,
}

impl Outlet {
    pub(crate) fn new(broker: Arc<dyn Broker>) -> Self {
        Self { broker, publisher: OnceCell::new() }
    }

    pub(crate) async fn publisher(&self) -> Result<&Arc<dyn Publisher>, PublishError> {
        self.publisher.get_or_try_init(|| self.broker.publisher()).await.map_err(|error| {
            PublishError::new(PublishErrorKind::Unreachable, "open a publisher for a handler")
                .with_source(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::future::BoxFuture;
    use tokio::time::Instant;

    use super::*;

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Order(u64);

    impl Message for Order {
        const NAME: &'static str = "order";
    }

    /// Answers with these kinds in turn, and then with success.
    #[derive(Default)]
    struct Unsure {
        answers: Mutex<Vec<PublishErrorKind>>,
        ids: Mutex<Vec<String>>,
    }

    impl Publisher for Unsure {
        fn send(&self, message: Outgoing) -> BoxFuture<'_, Result<(), PublishError>> {
            self.ids.lock().expect("held by nobody").push(message.message_id);
            let answer = self.answers.lock().expect("held by nobody").pop();
            let answer = answer.map_or(Ok(()), |kind| Err(PublishError::new(kind, "as told")));
            Box::pin(std::future::ready(answer))
        }
    }

    fn unsure(answers: &[PublishErrorKind]) -> Unsure {
        Unsure { answers: Mutex::new(answers.iter().rev().copied().collect()), ids: Mutex::default() }
    }

    async fn publish(publisher: &Unsure, times: u32) -> (Result<(), PublishErrorKind>, usize) {
        let order = Order(1);
        let outcome = publisher.publish(Envelope::new(&order).republish(times)).await;
        let ids = publisher.ids.lock().expect("held by nobody").clone();
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        (outcome.map_err(|error| error.kind()), ids.len())
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_outcome_is_published_again_with_the_same_id_and_not_for_ever() {
        use PublishErrorKind::{Rejected, Unknown};
        let began = Instant::now();
        assert_eq!(publish(&unsure(&[Unknown, Unknown]), 2).await, (Ok(()), 3));
        assert_eq!(began.elapsed(), Duration::from_millis(300));
        assert_eq!(publish(&unsure(&[Unknown; 9]), 3).await, (Err(Unknown), 4));
        assert_eq!(publish(&unsure(&[Unknown, Rejected]), 5).await, (Err(Rejected), 2));
        assert_eq!(publish(&unsure(&[Unknown]), 0).await, (Err(Unknown), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_has_a_result_for_each() {
        let publisher = unsure(&[PublishErrorKind::Unroutable]);
        let orders = [Order(1), Order(2), Order(3)];
        let kinds: Vec<_> =
            publisher.publish_batch(&orders).await.into_iter().map(|o| o.err().map(|e| e.kind())).collect();
        assert_eq!(kinds, [Some(PublishErrorKind::Unroutable), None, None]);
    }
}
