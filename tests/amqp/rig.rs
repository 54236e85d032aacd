//! What the tests hold on to: our broker, one consumer's subscription, and a bare client that looks on from outside.

use std::fmt::Debug;
use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lapin::message::BasicGetMessage;
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::protocol::basic::AMQPProperties;
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use steadfast_amqp::Amqp;
use steadfast_core::{
    Broker, Delivery, Destination, Outgoing, Source, Subscribe, SubscribeError, Subscription,
};
use steadfast_testbed::{shared, unique};
use tokio::time::{Instant, sleep, timeout};

/// Long enough for a busy machine; whatever is waited for ends the wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn url() -> &'static str {
    tokio::task::spawn_blocking(shared::rabbit_url).await.expect("starts")
}

pub(crate) async fn amqp() -> Arc<Amqp> {
    steadfast_amqp::connect(url().await).await.expect("connects")
}

/// A consumer of one queue, and the dead-letter queue that goes with it.
pub(crate) struct Rig {
    pub(crate) broker: Arc<Amqp>,
    pub(crate) queue: String,
    pub(crate) outside: Outside,
}

impl Rig {
    pub(crate) async fn new(prefix: &str) -> Self {
        let broker = amqp().await;
        let outside = Outside::connect(shared::rabbit_url()).await;
        Self { broker, queue: unique(prefix), outside }
    }

    pub(crate) fn dead(&self) -> String {
        format!("{}.dead", self.queue)
    }

    pub(crate) async fn subscribe(&self, max_in_flight: usize) -> Consuming {
        self.subscribe_to(Source::queue(self.queue.as_str()), max_in_flight).await
    }

    pub(crate) async fn subscribe_to(&self, source: Source, max_in_flight: usize) -> Consuming {
        let request = subscribe(source, &self.dead(), max_in_flight);
        Consuming(self.broker.subscribe(request).await.expect("subscribes"))
    }

    /// Publishes these bodies to the queue, confirmed.
    pub(crate) async fn publish(&self, bodies: impl IntoIterator<Item = usize>) {
        let publisher = self.broker.publisher().await.expect("publishes");
        for body in bodies {
            let message = Outgoing::new(self.queue.as_str(), body.to_string());
            publisher.send(message).await.expect("published");
        }
    }
}

pub(crate) fn subscribe(source: Source, dead: &str, max_in_flight: usize) -> Subscribe {
    Subscribe {
        source,
        consumer: "test".into(),
        max_in_flight: NonZeroUsize::new(max_in_flight).expect("not zero"),
        narrow: false,
        dead_letter: Destination::queue(dead),
    }
}

pub(crate) struct Consuming(pub(crate) Box<dyn Subscription>);

impl Consuming {
    /// Waits for the next batch of at most `room`.
    pub(crate) async fn next(&mut self, room: usize) -> Result<Vec<Delivery>, SubscribeError> {
        let mut batch = Vec::new();
        let room = NonZeroUsize::new(room).expect("not zero");
        let next = poll_fn(|cx| self.0.poll_next(cx, room, &mut batch));
        timeout(PATIENCE, next).await.expect("the subscription delivers, or says why not")?;
        assert!((1..=room.get()).contains(&batch.len()));
        Ok(batch)
    }

    pub(crate) async fn one(&mut self) -> Delivery {
        self.next(1).await.expect("delivers").pop().expect("one")
    }

    pub(crate) async fn take(&mut self, count: usize) -> Vec<Delivery> {
        let mut taken = Vec::new();
        while taken.len() < count {
            taken.extend(self.next(count - taken.len()).await.expect("delivers"));
        }
        taken
    }

    pub(crate) async fn end(&mut self) -> SubscribeError {
        loop {
            match self.next(100).await {
                Ok(batch) => batch.into_iter().for_each(Delivery::release),
                Err(error) => return error,
            }
        }
    }

    pub(crate) async fn finish(self) {
        self.0.settler().finish().await.expect("settles");
        self.0.close().await.expect("closes");
    }
}

pub(crate) fn body(delivery: &Delivery) -> String {
    match &delivery.incoming().payload {
        steadfast_core::Payload::Body(body) => String::from_utf8_lossy(body).into_owned(),
        fields @ steadfast_core::Payload::Fields(_) => panic!("{fields:?}"),
    }
}

/// The bare client.
pub(crate) struct Outside {
    url: String,
    _connection: Connection,
    pub(crate) channel: Channel,
}

impl Outside {
    pub(crate) async fn connect(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("connects");
        let channel = connection.create_channel().await.expect("opens");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        Self { url: url.to_owned(), _connection: connection, channel }
    }

    pub(crate) async fn publish(&self, queue: &str, body: &[u8], properties: AMQPProperties) {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let sent = self.channel.basic_publish("".into(), queue.into(), options, body, properties).await;
        let answer = sent.expect("written").await.expect("confirmed");
        assert_eq!(answer, lapin::Confirmation::Ack(None));
    }

    /// The next message, acknowledged by being fetched; waits for one.
    pub(crate) async fn get(&self, queue: &str) -> BasicGetMessage {
        eventually(&format!("a message in {queue}"), async || self.try_get(queue).await).await
    }

    pub(crate) async fn try_get(&self, queue: &str) -> Option<BasicGetMessage> {
        let another;
        let channel = if self.channel.status().connected() {
            &self.channel
        } else {
            another = Self::connect(&self.url).await;
            &another.channel
        };
        match channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await {
            Ok(found) => found,
            // a quorum queue that is being declared has no leader yet: the broker ends the connection for it
            Err(error) if error.to_string().contains("noproc") => None,
            Err(error) => panic!("asks: {error:?}"),
        }
    }

    /// Messages in the queue that no consumer holds.
    pub(crate) async fn ready(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = self.channel.queue_declare(queue.into(), options, FieldTable::default()).await;
        declared.expect("it is there").message_count()
    }

    pub(crate) async fn declare(&self, queue: &str, arguments: FieldTable) {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), options, arguments).await.expect("declares");
    }
}

/// Asks until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < until, "waited {PATIENCE:?} for {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn eventually_equal<T: PartialEq + Debug>(
    what: &str,
    expected: T,
    mut ask: impl AsyncFnMut() -> T,
) {
    eventually(&format!("{what} to be {expected:?}"), async || (ask().await == expected).then_some(())).await;
}
