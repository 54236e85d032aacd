//! Queues that are there, that are not, and that are declared otherwise.

use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable};
use steadfast_amqp::{Exchange, Overflow, Queue};
use steadfast_core::{Broker, Destination, PublishErrorKind, Source, SubscribeErrorKind};
use steadfast_testbed::unique;

use crate::rig::{Rig, amqp, subscribe};

async fn refused(rig: &Rig, source: Source) -> (SubscribeErrorKind, String) {
    let error = rig.broker.declare(&source).await.expect_err("refuses");
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn the_server_says_who_it_is() {
    let capabilities = amqp().await.capabilities();
    assert!(
        capabilities.server.starts_with("RabbitMQ ") && capabilities.server.len() > 12,
        "{capabilities:?}"
    );
    assert!(capabilities.delivery_count && !capabilities.fields);
}

#[tokio::test]
async fn declaring_twice_is_no_error() {
    let rig = Rig::new("declare").await;
    for source in [
        Source::queue(unique("plain")),
        Queue::quorum(unique("quorum")).delivery_limit(7).into(),
        Queue::classic(unique("classic")).max_length(9).message_ttl(Duration::from_secs(60)).into(),
        Queue::quorum(unique("bound")).bind(Exchange::topic(unique("shop")), "order.*").into(),
    ] {
        for _ in 0..2 {
            rig.broker.declare(&source).await.expect("declares");
        }
        assert_eq!(rig.outside.ready(source.name()).await, 0);
    }
}

#[tokio::test]
async fn a_queue_declared_otherwise_is_named_with_both_values() {
    let rig = Rig::new("mismatch").await;
    rig.outside.declare(&rig.queue, FieldTable::default()).await;
    let (kind, text) = refused(&rig, Queue::quorum(rig.queue.as_str()).into()).await;
    assert_eq!(kind, SubscribeErrorKind::Mismatch);
    assert!(text.contains("classic") && text.contains("quorum") && text.contains(&rig.queue), "{text}");
    let (kind, text) = refused(&rig, Queue::classic(rig.queue.as_str()).max_length(5).into()).await;
    assert_eq!(kind, SubscribeErrorKind::Mismatch);
    assert!(text.contains("x-max-length") && text.contains('5') && text.contains("none"), "{text}");
}

#[tokio::test]
async fn a_plain_source_takes_a_durable_queue_as_it_is() {
    let rig = Rig::new("plain").await;
    let mut limited = FieldTable::default();
    limited.insert("x-max-length".into(), AMQPValue::LongInt(100));
    rig.outside.declare(&rig.queue, limited).await;
    let mut consuming = rig.subscribe(5).await;
    rig.publish([1]).await;
    let delivery = consuming.one().await;
    assert_eq!(delivery.incoming().delivery_count, None, "classic queues do not count");
    delivery.ack();
    consuming.finish().await;
    assert!(rig.outside.try_get(&rig.queue).await.is_none());
}

#[tokio::test]
async fn a_passive_queue_must_be_there() {
    let rig = Rig::new("passive").await;
    let (kind, text) = refused(&rig, Queue::passive(rig.queue.as_str()).into()).await;
    assert_eq!(kind, SubscribeErrorKind::NotFound);
    assert!(text.contains(&rig.queue));
    rig.outside.declare(&rig.queue, FieldTable::default()).await;
    rig.broker.declare(&Queue::passive(rig.queue.as_str()).into()).await.expect("is there");
}

#[tokio::test]
async fn another_brokers_words_are_not_understood() {
    let rig = Rig::new("foreign").await;
    let (kind, text) = refused(&rig, Source::queue("orders").with_native(7_u8)).await;
    assert_eq!(kind, SubscribeErrorKind::Unsupported);
    assert!(text.contains("amqp::Queue"), "{text}");
}

#[tokio::test]
async fn a_missing_dead_letter_exchange_is_found_at_the_start() {
    let rig = Rig::new("dlx").await;
    let mut request = subscribe(Source::queue(rig.queue.as_str()), "-", 1);
    request.dead_letter = Destination::exchange("no-such-exchange", "dead");
    let error = rig.broker.subscribe(request).await.err().expect("refuses");
    assert_eq!(error.kind(), SubscribeErrorKind::NotFound);
    assert!(error.to_string().contains("no-such-exchange"), "{error}");
}

#[tokio::test]
async fn a_full_queue_that_refuses_is_an_error_of_the_publish() {
    let rig = Rig::new("full").await;
    let queue = Queue::classic(rig.queue.as_str()).max_length(2).overflow(Overflow::RejectPublish);
    rig.broker.declare(&queue.into()).await.expect("declares");
    rig.publish([1, 2]).await;
    let publisher = rig.broker.publisher().await.expect("publishes");
    let message = steadfast_core::Outgoing::new(rig.queue.as_str(), "3");
    let error = publisher.send(message).await.expect_err("full");
    assert_eq!(error.kind(), PublishErrorKind::Rejected);
}
