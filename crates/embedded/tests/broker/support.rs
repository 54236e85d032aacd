//! What the tests of this broker do over and over.

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::sync::Arc;

use futures_util::FutureExt;
use steadfast_core::{
    BoxError, Broker, Delivery, Destination, Outgoing, Payload, PublishError, Source, Subscribe,
    SubscribeError, Subscription,
};
use steadfast_embedded::Embedded;

pub(crate) type Tested = Result<(), BoxError>;

pub(crate) fn request(queue: &str, max_in_flight: usize) -> Subscribe {
    Subscribe {
        source: Source::queue(queue),
        consumer: "test".into(),
        max_in_flight: NonZeroUsize::new(max_in_flight).unwrap_or(NonZeroUsize::MIN),
        narrow: false,
        dead_letter: Destination::queue(format!("{queue}.dead")),
    }
}

pub(crate) async fn subscribe(
    broker: &Embedded,
    queue: &str,
    max_in_flight: usize,
) -> Result<Box<dyn Subscription>, SubscribeError> {
    broker.subscribe(request(queue, max_in_flight)).await
}

pub(crate) async fn publish(broker: &Embedded, queue: &str, bodies: &[&'static str]) -> Tested {
    let publisher = broker.publisher().await?;
    for body in bodies {
        publisher.send(Outgoing::new(queue, *body)).await?;
    }
    Ok(())
}

pub(crate) async fn send(
    broker: &Arc<Embedded>,
    queue: &'static str,
    body: &'static str,
) -> Result<(), PublishError> {
    let Ok(publisher) = broker.publisher().await else { return Ok(()) };
    publisher.send(Outgoing::new(queue, body)).await
}

/// Waits for deliveries.
pub(crate) async fn next(
    subscription: &mut dyn Subscription,
    room: usize,
) -> Result<Vec<Delivery>, SubscribeError> {
    let room = NonZeroUsize::new(room).unwrap_or(NonZeroUsize::MIN);
    let mut batch = Vec::new();
    poll_fn(|cx| subscription.poll_next(cx, room, &mut batch)).await?;
    Ok(batch)
}

/// What can be had without waiting.
pub(crate) fn at_once(
    subscription: &mut dyn Subscription,
    room: usize,
) -> Result<Vec<Delivery>, SubscribeError> {
    next(subscription, room).now_or_never().unwrap_or_else(|| Ok(Vec::new()))
}

pub(crate) fn bodies(batch: &[Delivery]) -> Vec<String> {
    batch.iter().map(|delivery| body(&delivery.incoming().payload)).collect()
}

fn body(payload: &Payload) -> String {
    match payload {
        Payload::Body(body) => String::from_utf8_lossy(body).into_owned(),
        Payload::Fields(fields) => format!("{} fields", fields.len()),
    }
}
