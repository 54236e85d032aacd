//! The embedded broker: the whole path in memory, from a publish to a settled message.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use steadfast::{Broker, Outgoing, Source};
use tokio::sync::mpsc;

use crate::contest::{Contest, Side};
use crate::meter::{Meter, Spent};
use crate::order::Order;
use crate::{BoxError, counting};

const QUEUE: &str = "orders";
/// Messages that may lie between the two ends of the bare channel.
const CHANNEL: usize = 1_024;

/// One publisher and one consumer, at the same time; the body is encoded once. The bare side is a channel of bodies and a
/// loop that decodes them: no ids, no headers, nothing to settle.
#[derive(Debug)]
pub struct Embedded;

impl Contest for Embedded {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn messages(&self) -> u64 {
        1_000_000
    }

    fn run(&self, side: Side, messages: u64) -> BoxFuture<'_, Result<Spent, BoxError>> {
        Box::pin(async move {
            let body = Bytes::from(Order::new(1).encode()?);
            match side {
                Side::Ours => ours(body, messages).await,
                Side::Bare | Side::Usual => bare(body, messages).await,
            }
        })
    }
}

async fn ours(body: Bytes, messages: u64) -> Result<Spent, BoxError> {
    let broker: Arc<dyn Broker> = steadfast::connect("embedded:").await?;
    broker.declare(&Source::queue(QUEUE)).await?;
    let publisher = broker.publisher().await?;
    let publishing = tokio::spawn(async move {
        for _ in 0..messages {
            publisher.send(Outgoing::new(QUEUE, body.clone())).await?;
        }
        Ok::<_, BoxError>(())
    });
    let spent = counting::consume(broker, Source::queue(QUEUE), messages, None).await?;
    publishing.await??;
    Ok(spent)
}

async fn bare(body: Bytes, messages: u64) -> Result<Spent, BoxError> {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(CHANNEL);
    let (meter, spent) = Meter::new(messages);
    let consuming = tokio::spawn(async move {
        while let Some(body) = receiver.recv().await {
            let order: Order = serde_json::from_slice(&body)?;
            std::hint::black_box(&order);
            meter.count();
        }
        Ok::<_, BoxError>(())
    });
    let publishing = tokio::spawn(async move {
        for _ in 0..messages {
            sender.send(body.clone()).await?;
        }
        Ok::<_, BoxError>(())
    });
    publishing.await??;
    consuming.await??;
    Ok(spent.await?)
}
