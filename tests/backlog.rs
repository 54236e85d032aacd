//! How many messages wait, as each broker tells the watchdog that looks for deaf consumers.
#![expect(clippy::expect_used, reason = "a test says what it expected")]

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::sync::Arc;

use steadfast::{Broker, Destination, Outgoing, Source, Subscribe};

async fn counts_what_waits(broker: Arc<dyn Broker>) {
    let source = Source::queue(steadfast_testbed::unique("backlog"));
    broker.declare(&source).await.expect("declares");
    assert_eq!(broker.backlog(&source).await, Some(0));
    let publisher = broker.publisher().await.expect("connects");
    for _ in 0..7 {
        publisher.send(Outgoing::new(&**source.name(), "{}")).await.expect("is safe");
    }
    assert_eq!(broker.backlog(&source).await, Some(7));

    let request = Subscribe {
        source: source.clone(),
        consumer: "backlog".into(),
        max_in_flight: NonZeroUsize::new(3).expect("is not zero"),
        narrow: false,
        dead_letter: Destination::queue(format!("{}.dead", source.name())),
    };
    let mut subscription = broker.subscribe(request).await.expect("subscribes");
    let mut batch = Vec::new();
    while batch.len() < 3 {
        let room = NonZeroUsize::new(3 - batch.len()).expect("is not zero");
        poll_fn(|cx| subscription.poll_next(cx, room, &mut batch)).await.expect("delivers");
    }
    assert_eq!(broker.backlog(&source).await, Some(4), "what was taken does not wait");
    batch.into_iter().for_each(steadfast::Delivery::release);
    subscription.close().await.expect("closes");
    broker.close().await;
}

#[tokio::test]
async fn on_embedded() {
    counts_what_waits(steadfast::connect("embedded:").await.expect("is there")).await;
}

#[tokio::test]
async fn on_rabbitmq() {
    let broker = steadfast::connect(steadfast_testbed::shared::rabbit_url()).await.expect("is there");
    counts_what_waits(broker).await;
}

#[tokio::test]
async fn on_redis() {
    let broker = steadfast::connect(steadfast_testbed::shared::redis_url()).await.expect("is there");
    counts_what_waits(broker).await;
}
