//! Looking on at what is published to an exchange: a queue of one's own, bound beside the others.

use std::sync::Arc;

use futures_util::future::{BoxFuture, pending};
use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Consumer};
use steadfast_core::{Destination, Follow, Incoming, OperateError, OperateErrorKind, Source};

use crate::connection::Live;
use crate::error::{Sort, Trouble};
use crate::headers;
use crate::operate::{AmqpOperator, LOOK, RETURNS, close, counts, operating};
use crate::queue::QueueKind;
use crate::runtime::{self, within};

/// Messages that the broker keeps for one who looks on slowly; beyond them the oldest go.
const KEPT: i64 = 1000;
/// Messages handed out at once, and held by the client.
const PAGE: u16 = 100;

struct AmqpFollow {
    live: Arc<Live>,
    channel: Channel,
    place: String,
    queue: Arc<str>,
    consumer: tokio::sync::Mutex<Consumer>,
}

impl AmqpOperator {
    pub(crate) async fn look_on(&self, place: &Destination) -> Result<Arc<dyn Follow>, OperateError> {
        let what = || format!("follow `{place}`");
        let exchange = place.exchange_name().filter(|exchange| !exchange.is_empty()).ok_or_else(|| {
            let why = "RabbitMQ shows what is in a queue only by delivering it; name the exchange that feeds it, and a \
                       routing key. What is published to a queue by its name cannot be followed";
            OperateError::new(OperateErrorKind::Unsupported, format!("{}: {why}", what()))
        })?;
        let (live, channel) = self.looking.channel().await.map_err(|trouble| operating(trouble, what()))?;
        let started = start(&live, &channel, exchange, place.name()).await;
        let (queue, consumer) = started.map_err(|trouble| operating(trouble, what()))?;
        let (place, consumer) = (place.to_string(), tokio::sync::Mutex::new(consumer));
        Ok(Arc::new(AmqpFollow { live, channel, place, queue, consumer }))
    }

    /// `queue.delete`, where a passive `queue.declare` tells of no consumer: quorum queues do not know `if-unused`.
    pub(crate) async fn remove(&self, place: &Source) -> Result<(), OperateError> {
        let what = || format!("delete queue `{}`", place.name());
        let (live, channel) = self.looking.channel().await.map_err(|trouble| operating(trouble, what()))?;
        let consumers = match until_unused(&live, &channel, place.name()).await {
            Ok(consumers) => consumers,
            Err(trouble) if trouble.sort() == Sort::NotFound => return Ok(()),
            Err(trouble) => return Err(operating(trouble, what())),
        };
        if consumers > 0 {
            close(&live, &channel).await;
            let what = format!("{}: it has {consumers} consumers; stop them first", what());
            return Err(OperateError::new(OperateErrorKind::Refused, what));
        }
        let name = ShortString::try_new(&**place.name()).unwrap_or_default();
        let deleted = live.request(channel.queue_delete(name, QueueDeleteOptions::default())).await;
        deleted.map_err(|trouble| operating(trouble, what()))?;
        close(&live, &channel).await;
        Ok(())
    }
}

/// Consumers that stay: a queue takes a moment to hear of one that has gone.
async fn until_unused(live: &Live, channel: &Channel, queue: &str) -> Result<u64, Trouble> {
    for _ in 1..RETURNS {
        if counts(live, channel, queue).await?.1 == 0 {
            return Ok(0);
        }
        // the time always runs out: nothing else is to happen meanwhile
        let _ = within(LOOK, pending::<()>()).await;
    }
    Ok(counts(live, channel, queue).await?.1)
}

async fn start(
    live: &Live,
    channel: &Channel,
    exchange: &str,
    key: &str,
) -> Result<(Arc<str>, Consumer), Trouble> {
    let short = |name: &str| ShortString::try_new(name).unwrap_or_default();
    let options =
        QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(KEPT));
    let queue = live.request(channel.queue_declare(ShortString::default(), options, arguments)).await?;
    let name = queue.name().clone();
    let none = FieldTable::default;
    let bind =
        channel.queue_bind(name.clone(), short(exchange), short(key), QueueBindOptions::default(), none());
    live.request(bind).await?;
    live.request(channel.basic_qos(PAGE, BasicQosOptions::default())).await?;
    let consume =
        channel.basic_consume(name.clone(), ShortString::default(), BasicConsumeOptions::default(), none());
    Ok((name.as_str().into(), live.request(consume).await?))
}

impl AmqpFollow {
    fn ended(&self, error: Option<lapin::Error>) -> OperateError {
        let what = format!("follow `{}`: the way to the broker was lost", self.place);
        let ended = OperateError::new(OperateErrorKind::Unreachable, what);
        match error {
            Some(error) => ended.with_source(error),
            None => ended,
        }
    }

    async fn page(&self) -> Result<Vec<Arc<Incoming>>, OperateError> {
        let mut consumer = self.consumer.lock().await;
        let mut page = Vec::new();
        let mut next = consumer.next().await;
        loop {
            let delivery = match next {
                Some(Ok(delivery)) => delivery,
                Some(Err(error)) => return Err(self.ended(Some(error))),
                None => return Err(self.ended(None)),
            };
            let tag = delivery.delivery_tag;
            page.push(Arc::new(headers::incoming(delivery, &self.queue, QueueKind::Passive).0));
            let more = if page.len() < usize::from(PAGE) { consumer.next().now_or_never() } else { None };
            let Some(more) = more else {
                // should it not arrive, the channel is gone, and the next call says so
                let _ = self.channel.basic_ack(tag, BasicAckOptions { multiple: true }).await;
                return Ok(page);
            };
            next = more;
        }
    }
}

impl Follow for AmqpFollow {
    fn next(&self) -> BoxFuture<'_, Result<Vec<Arc<Incoming>>, OperateError>> {
        self.page().boxed()
    }
}

impl Drop for AmqpFollow {
    fn drop(&mut self) {
        // its queue goes with the consumer, and the consumer with the channel
        if let Ok(runtime) = runtime::handle() {
            let (live, channel) = (Arc::clone(&self.live), self.channel.clone());
            runtime.spawn(async move { close(&live, &channel).await });
        }
    }
}
