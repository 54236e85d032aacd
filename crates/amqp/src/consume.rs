//! One consumer on a channel: how it is started, with how much ahead, and how it is left.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use lapin::Consumer;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use steadfast_core::{Subscribe, SubscribeError};

use crate::declare::{Found, short};
use crate::error::Trouble;
use crate::queue::{Queue, QueueKind};
use crate::settle::AmqpSettler;

/// What is asked of `basic.consume`, each time.
pub(crate) struct Consume {
    queue: ShortString,
    consumer: Arc<str>,
    exclusive: bool,
    priority: Option<i32>,
    /// It may take one at a time, and another number later. That takes another consumer, so it is not done where the queue
    /// would go to somebody else meanwhile; nor where deliveries are not counted.
    pub(crate) narrows: bool,
}

/// What came of a change.
pub(crate) struct Changed {
    /// With whether it is narrow.
    pub(crate) consumer: Option<(Consumer, bool)>,
    /// What the broker had sent to the one that is gone.
    pub(crate) left: Vec<Delivery>,
}

impl Consume {
    pub(crate) fn new(request: &Subscribe, found: Found) -> Result<Self, SubscribeError> {
        let name = request.source.name();
        let native = request.source.native::<Queue>();
        let exclusive = native.is_some_and(|queue| queue.exclusive);
        Ok(Self {
            queue: short(name, &format!("consume from queue `{name}`"))?,
            consumer: Arc::clone(&request.consumer),
            exclusive,
            priority: native.and_then(|queue| queue.priority),
            narrows: found.kind != QueueKind::Classic && !found.single && !exclusive,
        })
    }

    /// Sets the prefetch first: the client's own buffer has no bound.
    pub(crate) async fn start(&self, settler: &AmqpSettler, narrow: bool) -> Result<Consumer, Trouble> {
        let prefetch = if narrow { 1 } else { settler.prefetch };
        let channel = &settler.channel;
        settler.live.request(channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions { exclusive: self.exclusive, ..BasicConsumeOptions::default() };
        let rank = self.priority.map(|rank| ("x-priority".into(), AMQPValue::LongInt(rank)));
        let arguments = FieldTable::from(rank.into_iter().collect::<BTreeMap<_, _>>());
        let tag = ShortString::try_new(tag(&self.consumer)).unwrap_or_default();
        settler.live.request(channel.basic_consume(self.queue.clone(), tag, options, arguments)).await
    }
}

/// Cancels it. After the broker's answer nothing more comes, and the stream ends behind what came before.
pub(crate) async fn leave(settler: &AmqpSettler, mut consumer: Consumer) -> Result<Vec<Delivery>, Trouble> {
    let cancel = settler.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
    settler.live.request(cancel).await?;
    let mut left = Vec::new();
    while let Some(delivery) = consumer.next().await {
        left.push(delivery?);
    }
    Ok(left)
}

/// Never the same twice: a duplicate on one connection closes the whole connection.
fn tag(consumer: &str) -> String {
    let mut end = consumer.len().min(200);
    while !consumer.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}-{}", consumer.get(..end).unwrap_or_default(), uuid::Uuid::now_v7())
}
