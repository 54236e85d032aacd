//! Retries and dead letters: copies that are published, confirmed, and only then is the original acknowledged.

use std::time::{Duration, Instant};

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeleteOptions};
use lapin::protocol::basic::AMQPProperties;
use lapin::types::{AMQPValue, FieldTable, LongString};
use steadfast_amqp::Queue;
use steadfast_core::{
    Broker, DeadLetter, Delivery, Destination, Headers, Reason, Requeue, SettleErrorKind, Source, known,
};

use crate::rig::{Consuming, Rig, body, subscribe};

fn retry(after: Duration, count: u32) -> Requeue {
    let mut headers = Headers::new();
    headers.set(known::RETRY_COUNT, count).set(known::ERROR, "no ledger");
    Requeue { after, headers }
}

fn letter() -> DeadLetter {
    let mut headers = Headers::new();
    headers.set(known::REASON, "rejected").set(known::ATTEMPTS, 3_u32);
    DeadLetter::from_headers(Reason::Rejected, headers)
}

async fn requeue(consuming: &Consuming, delivery: Delivery, requeue: &Requeue) {
    let settler = consuming.0.settler();
    let (message, token) = delivery.into_parts();
    settler.requeue(&message, token, requeue).await.expect("stored");
}

/// Everything that a publisher can set, and that must come back.
fn rich() -> AMQPProperties {
    let mut nested = FieldTable::default();
    nested.insert("deep".into(), AMQPValue::Double(0.5));
    let mut headers = FieldTable::default();
    headers.insert("tenant".into(), AMQPValue::LongString("acme".into()));
    headers.insert("nested".into(), AMQPValue::FieldTable(nested));
    headers.insert("x-death".into(), AMQPValue::LongString("forged".into()));
    AMQPProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("identity".into())
        .with_delivery_mode(2)
        .with_priority(4)
        .with_correlation_id("c".into())
        .with_reply_to("answers".into())
        .with_expiration("3600000".into())
        .with_timestamp(1_700_000_000)
        .with_type("order.placed".into())
        .with_user_id("guest".into())
        .with_app_id("shop".into())
        .with_headers(headers)
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

#[tokio::test]
async fn a_retry_comes_back_not_early_and_otherwise_unchanged() {
    for quorum in [true, false] {
        let rig = Rig::new("retry").await;
        let name = rig.queue.as_str();
        let queue = if quorum { Queue::quorum(name) } else { Queue::classic(name) };
        let mut consuming = rig.subscribe_to(queue.into(), 5).await;
        rig.outside.publish(name, b"{\"id\":1}", rich()).await;
        let mut delivery = consuming.one().await;
        let original = delivery.incoming().clone();
        for (count, after) in [(1, 300), (2, 50), (3, 0), (4, 300)] {
            let (began, after) = (Instant::now(), Duration::from_millis(after));
            requeue(&consuming, delivery, &retry(after, count)).await;
            delivery = consuming.one().await;
            let took = began.elapsed();
            assert!(took >= after && took <= after + Duration::from_millis(500), "{took:?} for {after:?}");
            let message = delivery.incoming();
            assert_eq!(message.headers.retry_count(), Ok(count));
            assert_eq!(message.headers.text(known::ERROR), Ok(Some("no ledger")));
            assert_eq!(message.headers.text("tenant"), Ok(Some("acme")));
            assert_eq!(message.headers.len(), 4, "nothing grows: {:?}", message.headers);
            assert_eq!((&message.payload, &message.origin), (&original.payload, &original.origin));
            assert_eq!((&message.message_id, &message.message_type), (&None, &original.message_type));
        }
        let (message, token) = delivery.into_parts();
        consuming.0.settler().dead_letter(&message, token, &letter()).await.expect("stored");
        consuming.finish().await;
        assert!(rig.outside.try_get(name).await.is_none());
        let dead = rig.outside.get(&rig.dead()).await.delivery;
        assert_eq!(dead.data, b"{\"id\":1}");
        let (found, sent) = (&dead.properties, rich());
        assert_eq!(found.content_encoding(), sent.content_encoding());
        assert_eq!((found.priority(), found.reply_to()), (sent.priority(), sent.reply_to()));
        assert_eq!((found.timestamp(), found.app_id()), (sent.timestamp(), sent.app_id()));
        assert_eq!((found.kind(), found.message_id()), (sent.kind(), &None));
        assert_eq!((found.user_id(), found.expiration()), (&None, &None), "kept in headers instead");
        let headers = found.headers().as_ref().expect("has headers").inner();
        assert_eq!(
            headers.get("nested"),
            sent.headers().as_ref().and_then(|sent| sent.inner().get("nested"))
        );
        assert_eq!(headers.get(known::REASON), Some(&text("rejected")));
        assert_eq!(headers.get(known::ROUTING_KEY), Some(&text(name)));
        assert_eq!(headers.get("steadfast-amqp-expiration"), Some(&text("3600000")));
        assert_eq!(headers.get("steadfast-amqp-user-id"), Some(&text("guest")));
        assert!(!headers.contains_key("x-death"), "{headers:?}");
    }
}

#[tokio::test]
async fn a_retry_queue_that_went_away_is_declared_again() {
    let rig = Rig::new("rung").await;
    let mut consuming = rig.subscribe(5).await;
    rig.publish([1]).await;
    for count in 1..=2 {
        let delivery = consuming.one().await;
        requeue(&consuming, delivery, &retry(Duration::from_millis(20), count)).await;
        let delivery = consuming.one().await;
        let rung = format!("{}.retry.20", rig.queue);
        rig.outside.channel.queue_delete(rung.into(), QueueDeleteOptions::default()).await.expect("deletes");
        delivery.release();
    }
    consuming.one().await.ack();
    consuming.finish().await;
}

#[tokio::test]
async fn many_retries_share_round_trips_with_and_without_ids() {
    let rig = Rig::new("retries").await;
    let mut consuming = rig.subscribe(200).await;
    for _ in 0..100 {
        rig.outside.publish(&rig.queue, b"same", AMQPProperties::default()).await;
    }
    rig.publish(0..100).await;
    let settler = consuming.0.settler();
    let taken: Vec<_> = consuming.take(200).await.into_iter().map(Delivery::into_parts).collect();
    let again = retry(Duration::from_millis(100), 1);
    let stored = taken.iter().map(|(message, token)| settler.requeue(message, *token, &again));
    let stored = futures_util::future::join_all(stored).await;
    assert!(stored.iter().all(Result::is_ok), "{stored:?}");
    let again = consuming.take(200).await;
    assert!(again.iter().all(|delivery| delivery.incoming().headers.retry_count() == Ok(1)));
    assert_eq!(again.iter().filter(|delivery| body(delivery) == "same").count(), 100);
    again.into_iter().for_each(Delivery::ack);
    consuming.finish().await;
    assert!(rig.outside.try_get(&rig.queue).await.is_none());
}

#[tokio::test]
async fn dead_letters_go_through_an_exchange_if_one_is_named() {
    let rig = Rig::new("dlx").await;
    let (exchange, bound) = (format!("{}.x", rig.queue), format!("{}.bound", rig.queue));
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let channel = &rig.outside.channel;
    let declared = channel.exchange_declare(
        exchange.as_str().into(),
        ExchangeKind::Direct,
        options,
        FieldTable::default(),
    );
    declared.await.expect("declares");
    let mut request = subscribe(Source::queue(rig.queue.as_str()), "-", 5);
    request.dead_letter = Destination::exchange(exchange.as_str(), "dead");
    let mut consuming = Consuming(rig.broker.subscribe(request).await.expect("subscribes"));
    rig.publish([1]).await;
    let (message, token) = consuming.one().await.into_parts();
    let settler = consuming.0.settler();
    let error = settler.dead_letter(&message, token, &letter()).await.expect_err("bound to nothing");
    assert_eq!(error.kind(), SettleErrorKind::NotStored);
    rig.outside.declare(&bound, FieldTable::default()).await;
    let options = QueueBindOptions::default();
    let binding = channel.queue_bind(
        bound.as_str().into(),
        exchange.as_str().into(),
        "dead".into(),
        options,
        FieldTable::default(),
    );
    binding.await.expect("binds");
    settler.dead_letter(&message, token, &letter()).await.expect("stored");
    assert_eq!(rig.outside.get(&bound).await.delivery.data, b"1");
    consuming.finish().await;
}

#[tokio::test]
async fn a_dead_letter_queue_that_went_away_is_declared_again() {
    let rig = Rig::new("dead").await;
    let mut consuming = rig.subscribe(5).await;
    rig.publish([1]).await;
    let dead = rig.dead();
    let deleted = rig.outside.channel.queue_delete(dead.as_str().into(), QueueDeleteOptions::default());
    deleted.await.expect("deletes");
    let (message, token) = consuming.one().await.into_parts();
    let settler = consuming.0.settler();
    let error = settler.dead_letter(&message, token, &letter()).await.expect_err("it is gone");
    assert_eq!(error.kind(), SettleErrorKind::NotStored);
    settler.dead_letter(&message, token, &letter()).await.expect("it is back");
    let error = settler.dead_letter(&message, token, &letter()).await.expect_err("settled once");
    assert_eq!(error.kind(), SettleErrorKind::Gone);
    consuming.finish().await;
    assert_eq!(rig.outside.get(&dead).await.delivery.data, b"1");
    assert!(rig.outside.try_get(&dead).await.is_none());
}
