//! RabbitMQ: durable queues, persistent messages; classic ones, where nothing else is said.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::protocol::basic::AMQPProperties;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, Consumer};
use steadfast::amqp::Queue;
use steadfast::{Envelope, PublisherExt, Source};

use crate::contest::{Contest, Side};
use crate::meter::{Meter, Spent};
use crate::order::Order;
use crate::{BoxError, Filler, counting, crowd};

/// How many the bare optimum acknowledges at once.
const MULTIPLE: u64 = 100;
const PUBLISHERS: u64 = 1_000;

/// Consuming, with the same prefetch on all sides.
///
/// The bare optimum acknowledges 100 by one `multiple`; the usual loop awaits the acknowledgement of each.
#[derive(Debug)]
pub struct ConsumeRabbit {
    /// Where the broker is.
    pub url: String,
    /// Who published what is consumed.
    pub filler: Filler,
    /// How many unacknowledged messages the broker lets each side have.
    pub prefetch: Prefetch,
}

/// What a broker may send ahead decides how well either side does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// 100, which is what most people set.
    Usual,
    /// 400, which is Steadfast's default.
    Default,
}

impl Prefetch {
    fn most(self) -> u16 {
        match self {
            Self::Usual => 100,
            Self::Default => 400,
        }
    }
}

/// Publishing, 1,000 at once, each confirmed.
///
/// The bare optimum does the same over one channel; the usual loop publishes, and waits for the confirmation, one by one.
#[derive(Debug)]
pub struct PublishRabbit {
    /// Where the broker is.
    pub url: String,
    /// What the bare client publishes, and where to.
    pub work: Publishing,
}

/// Three comparisons, because most of what a publish costs is the broker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publishing {
    /// The same message on both sides: mandatory, with an id, a type, a content type and a time.
    Same,
    /// The same, to a quorum queue, which is what Steadfast declares by default.
    Quorum,
    /// The bare client publishes the body and nothing else, and is not told of a message that no queue takes.
    BodyOnly,
}

impl Publishing {
    fn queue(self) -> (&'static str, &'static str) {
        match self {
            Self::Same | Self::BodyOnly => ("benches.publish", "classic"),
            Self::Quorum => ("benches.publish.quorum", "quorum"),
        }
    }

    /// How the bare client publishes.
    fn bare(self) -> (BasicPublishOptions, AMQPProperties) {
        match self {
            Self::Same | Self::Quorum => {
                let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
                let properties = persistent()
                    .with_message_id("0198c2a0-7f2e-7c60-a5b8-2f6f1d0f4b11".into())
                    .with_type("order.placed".into())
                    .with_content_type("application/json".into())
                    .with_timestamp(1_750_000_000);
                (mandatory, properties)
            }
            Self::BodyOnly => (BasicPublishOptions::default(), persistent()),
        }
    }
}

impl Contest for ConsumeRabbit {
    fn name(&self) -> &'static str {
        match self.prefetch {
            Prefetch::Usual => "consume-rabbitmq",
            Prefetch::Default => "consume-rabbitmq-default",
        }
    }

    fn messages(&self) -> u64 {
        40_000
    }

    fn usual_divisor(&self) -> Option<u64> {
        Some(8)
    }

    fn run(&self, side: Side, messages: u64) -> BoxFuture<'_, Result<Spent, BoxError>> {
        Box::pin(async move {
            let admin = Admin::open(&self.url, "benches.consume", "classic").await?;
            match self.filler {
                Filler::Bare => fill(&admin, messages).await?,
                Filler::Steadfast => drop(publish_ours(&self.url, admin.queue, messages).await?),
            }
            admin.holds(messages).await?;
            let (url, most) = (&self.url, self.prefetch.most());
            let spent = match side {
                Side::Ours => {
                    let source: Source = Queue::classic(admin.queue).into();
                    let broker = steadfast::connect(url).await?;
                    // the default is left as it is, so that it is the default that is measured
                    let most = (self.prefetch == Prefetch::Usual).then_some(most);
                    counting::consume(broker, source, messages, most).await?
                }
                Side::Bare => {
                    bare(url, admin.queue, most, |consumer| take(consumer, messages, MULTIPLE)).await?
                }
                Side::Usual => bare(url, admin.queue, most, |consumer| take(consumer, messages, 1)).await?,
            };
            admin.holds(0).await?;
            admin.close().await?;
            Ok(spent)
        })
    }
}

impl Contest for PublishRabbit {
    fn name(&self) -> &'static str {
        match self.work {
            Publishing::Same => "publish-rabbitmq",
            Publishing::Quorum => "publish-rabbitmq-quorum",
            Publishing::BodyOnly => "publish-rabbitmq-body",
        }
    }

    fn messages(&self) -> u64 {
        30_000
    }

    /// One by one, a quorum queue takes a hundredth: it writes to its disk for each.
    fn usual_divisor(&self) -> Option<u64> {
        match self.work {
            Publishing::Same => Some(20),
            Publishing::Quorum => Some(100),
            Publishing::BodyOnly => None,
        }
    }

    fn run(&self, side: Side, messages: u64) -> BoxFuture<'_, Result<Spent, BoxError>> {
        Box::pin(async move {
            let (queue, kind) = self.work.queue();
            let admin = Admin::open(&self.url, queue, kind).await?;
            let spent = match side {
                Side::Ours => publish_ours(&self.url, queue, messages).await?,
                Side::Bare => publish_bare(&self.url, self.work, PUBLISHERS, messages).await?,
                Side::Usual => publish_bare(&self.url, self.work, 1, messages).await?,
            };
            admin.holds(messages).await?;
            admin.close().await?;
            Ok(spent)
        })
    }
}

/// An empty queue, watched on a connection of its own.
struct Admin {
    connection: Connection,
    channel: Channel,
    queue: &'static str,
}

impl Admin {
    async fn open(url: &str, queue: &'static str, kind: &str) -> Result<Self, BoxError> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        channel.queue_declare(queue.into(), durable, arguments).await?;
        channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await?;
        Ok(Self { connection, channel, queue })
    }

    /// Fails where the queue holds another number of messages: then a side did not do the work.
    async fn holds(&self, expected: u64) -> Result<(), BoxError> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.channel.queue_declare(self.queue.into(), passive, FieldTable::default()).await?;
        let found = u64::from(queue.message_count());
        if found == expected {
            return Ok(());
        }
        Err(format!("queue `{}` holds {found} messages, not {expected}", self.queue).into())
    }

    async fn close(self) -> Result<(), BoxError> {
        for queue in [self.queue.to_owned(), format!("{}.dead", self.queue)] {
            self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        }
        self.connection.close(200, "done".into()).await?;
        Ok(())
    }
}

async fn fill(admin: &Admin, messages: u64) -> Result<(), BoxError> {
    let channel = admin.connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    for number in 0..messages {
        let body = Order::new(number).encode()?;
        let publish = channel.basic_publish(
            "".into(),
            admin.queue.into(),
            BasicPublishOptions::default(),
            &body,
            persistent(),
        );
        drop(publish.await?);
    }
    channel.wait_for_confirms().await?;
    channel.close(200, "done".into()).await?;
    Ok(())
}

fn persistent() -> AMQPProperties {
    AMQPProperties::default().with_delivery_mode(2)
}

/// A consumer on a connection of its own, driven by a task as any service would.
async fn bare<F>(
    url: &str,
    queue: &str,
    prefetch: u16,
    drive: impl FnOnce((Channel, Consumer)) -> F,
) -> Result<Spent, BoxError>
where
    F: Future<Output = Result<Spent, BoxError>> + Send + 'static,
{
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.into(), "bare".into(), options, FieldTable::default()).await?;
    let spent = tokio::spawn(drive((channel.clone(), consumer))).await??;
    channel.close(200, "done".into()).await?;
    connection.close(200, "done".into()).await?;
    Ok(spent)
}

async fn take(
    (channel, mut consumer): (Channel, Consumer),
    messages: u64,
    together: u64,
) -> Result<Spent, BoxError> {
    let (meter, spent) = Meter::new(messages);
    let mut taken = 0;
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery?;
        let order: Order = serde_json::from_slice(&delivery.data)?;
        std::hint::black_box(&order);
        let last = meter.count();
        taken += 1;
        if taken % together == 0 || last {
            let options = BasicAckOptions { multiple: together > 1 };
            channel.basic_ack(delivery.delivery_tag, options).await?;
        }
        if last {
            break;
        }
    }
    let spent = spent.await?;
    // else it cancels itself when it is dropped, in whatever state the channel is then
    channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
    Ok(spent)
}

async fn publish_ours(url: &str, queue: &'static str, messages: u64) -> Result<Spent, BoxError> {
    let broker = steadfast::connect(url).await?;
    let publisher = broker.publisher().await?;
    let spent = crowd::publish(PUBLISHERS, messages, || {
        let publisher = Arc::clone(&publisher);
        move |order: Order| {
            let publisher = Arc::clone(&publisher);
            async move { Ok(publisher.publish(Envelope::new(&order).to(queue)).await?) }
        }
    })
    .await?;
    broker.close().await;
    Ok(spent)
}

async fn publish_bare(
    url: &str,
    work: Publishing,
    publishers: u64,
    messages: u64,
) -> Result<Spent, BoxError> {
    let queue = work.queue().0;
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let spent = crowd::publish(publishers, messages, || {
        let channel = channel.clone();
        move |order: Order| {
            let channel = channel.clone();
            async move {
                let (body, (options, properties)) = (order.encode()?, work.bare());
                let confirm =
                    channel.basic_publish("".into(), queue.into(), options, &body, properties).await?;
                confirm.await?;
                Ok(())
            }
        }
    })
    .await?;
    connection.close(200, "done".into()).await?;
    Ok(spent)
}
