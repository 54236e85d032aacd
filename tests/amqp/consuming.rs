//! Deliveries and their acknowledgement.

use steadfast_amqp::Queue;
use steadfast_core::{Delivery, HeaderValue, SubscribeErrorKind};

use lapin::options::QueueDeleteOptions;
use lapin::protocol::basic::AMQPProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::rig::{Rig, body, eventually_equal};

#[tokio::test]
async fn what_is_acknowledged_is_gone_and_nothing_else() {
    for concurrent in [false, true] {
        let rig = Rig::new("ack").await;
        let mut consuming = rig.subscribe(50).await;
        rig.publish(0..120).await;
        let settler = consuming.0.settler();
        let mut held = Vec::new();
        for nth in 0..120 {
            let delivery = consuming.one().await;
            assert_eq!(body(&delivery), nth.to_string());
            // out of order, with some that stay open for long
            match nth {
                3 | 40 | 77 => held.push(delivery),
                _ if concurrent && nth % 2 == 0 => held.push(delivery),
                _ => delivery.ack(),
            }
            if held.len() > 20 {
                held.drain(3..).rev().for_each(Delivery::ack);
            }
            if nth % 7 == 0 || nth % 50 > 40 {
                settler.flush();
            }
        }
        let kept: Vec<_> = held.drain(..3).map(|delivery| (body(&delivery), delivery)).collect();
        held.into_iter().for_each(Delivery::ack);
        settler.finish().await.expect("settles");
        drop(consuming);
        drop(settler);
        for (kept, delivery) in kept {
            let again = rig.outside.get(&rig.queue).await;
            assert_eq!(String::from_utf8_lossy(&again.delivery.data), kept);
            assert!(again.delivery.redelivered);
            delivery.ack();
        }
        let mut left = Vec::new();
        while let Some(message) = rig.outside.try_get(&rig.queue).await {
            left.push(String::from_utf8_lossy(&message.delivery.data).into_owned());
        }
        assert!(left.is_empty(), "acknowledged, and delivered again: {left:?}, concurrent: {concurrent}");
    }
}

#[tokio::test]
async fn no_more_is_held_than_was_asked_for() {
    let rig = Rig::new("prefetch").await;
    let mut consuming = rig.subscribe(3).await;
    rig.publish(0..10).await;
    let held = consuming.take(3).await;
    assert_eq!(rig.outside.ready(&rig.queue).await, 7);
    held.into_iter().for_each(Delivery::ack);
    consuming.0.settler().flush();
    consuming.take(3).await.into_iter().for_each(Delivery::ack);
    eventually_equal("what is left", 4, async || rig.outside.ready(&rig.queue).await).await;
    consuming.finish().await;
    eventually_equal("what is left", 4, async || rig.outside.ready(&rig.queue).await).await;
}

#[tokio::test]
async fn properties_and_headers_arrive_as_what_they_are() {
    let rig = Rig::new("properties").await;
    let mut consuming = rig.subscribe(3).await;
    let mut headers = FieldTable::default();
    headers.insert("text".into(), AMQPValue::LongString("ä".into()));
    headers.insert("bytes".into(), AMQPValue::LongString(vec![0xff, 0].into()));
    headers.insert("count".into(), AMQPValue::ShortUInt(7));
    headers.insert("yes".into(), AMQPValue::Boolean(true));
    headers.insert("when".into(), AMQPValue::Timestamp(5));
    headers.insert("x-delivery-count".into(), AMQPValue::LongInt(99));
    let properties = AMQPProperties::default()
        .with_type("order.placed".into())
        .with_message_id("id-1".into())
        .with_correlation_id("c-1".into())
        .with_content_type("application/json".into())
        .with_timestamp(1_700_000_000)
        .with_headers(headers);
    rig.outside.publish(&rig.queue, b"{}", properties).await;
    let delivery = consuming.one().await;
    let message = delivery.incoming();
    assert_eq!(message.message_type.as_deref(), Some("order.placed"));
    assert_eq!(message.message_id.as_deref(), Some("id-1"));
    assert_eq!(message.correlation_id.as_deref(), Some("c-1"));
    assert_eq!(message.content_type.as_deref(), Some("application/json"));
    let published =
        message.published_at.expect("stamped").duration_since(std::time::UNIX_EPOCH).expect("after");
    assert_eq!(published.as_secs(), 1_700_000_000);
    assert_eq!(message.headers.get("text"), Some(&HeaderValue::from("ä")));
    assert_eq!(message.headers.get("bytes"), Some(&HeaderValue::Bytes(vec![0xff, 0])));
    assert_eq!(message.headers.get("count"), Some(&HeaderValue::Int(7)));
    assert_eq!(message.headers.get("yes"), Some(&HeaderValue::Bool(true)));
    assert_eq!(message.headers.get("when"), Some(&HeaderValue::Opaque("timestamp")));
    assert_eq!(message.headers.len(), 5);
    assert_eq!(
        (message.redelivered, message.delivery_count),
        (false, Some(0)),
        "what a client says does not count"
    );
    assert_eq!(message.origin.routing_key.as_deref(), Some(rig.queue.as_str()));
    delivery.ack();
    consuming.finish().await;
}

#[tokio::test]
async fn a_release_is_delivered_again_at_once() {
    let rig = Rig::new("release").await;
    let mut consuming = rig.subscribe_to(Queue::quorum(rig.queue.as_str()).into(), 5).await;
    rig.publish([1]).await;
    for nth in 0..3 {
        let delivery = consuming.one().await;
        assert_eq!(delivery.incoming().redelivered, nth > 0);
        assert!(delivery.incoming().headers.is_empty());
        delivery.release();
    }
    consuming.one().await.ack();
    consuming.finish().await;
    assert!(rig.outside.try_get(&rig.queue).await.is_none());
}

#[tokio::test]
async fn stopping_gives_back_what_was_not_handed_out() {
    let rig = Rig::new("stop").await;
    let mut consuming = rig.subscribe(10).await;
    rig.publish(0..8).await;
    eventually_equal("what the broker holds", 0, async || rig.outside.ready(&rig.queue).await).await;
    let held = consuming.take(2).await;
    consuming.0.stop().await.expect("stops");
    eventually_equal("what came back", 6, async || rig.outside.ready(&rig.queue).await).await;
    consuming.0.stop().await.expect("is stopped");
    assert_eq!(consuming.next(1).await.expect_err("is stopped").kind(), SubscribeErrorKind::Ended);
    held.into_iter().for_each(Delivery::ack);
    consuming.finish().await;
    assert_eq!(rig.outside.ready(&rig.queue).await, 6, "what was handed out could still be settled");
}

#[tokio::test]
async fn dropping_a_subscription_gives_back_what_it_held() {
    let rig = Rig::new("drop").await;
    let mut consuming = rig.subscribe(10).await;
    rig.publish(0..4).await;
    let held = consuming.take(2).await;
    drop(consuming);
    eventually_equal("what came back", 4, async || rig.outside.ready(&rig.queue).await).await;
    // settling what is no longer ours touches nobody else's
    let mut other = rig.subscribe(10).await;
    let again = other.take(4).await;
    held.into_iter().for_each(Delivery::ack);
    again.into_iter().for_each(Delivery::release);
    other.take(4).await.into_iter().for_each(Delivery::ack);
    other.finish().await;
}

#[tokio::test]
async fn a_deleted_queue_ends_the_subscription() {
    for queue in [Queue::quorum("q"), Queue::classic("c")] {
        let rig = Rig::new("deleted").await;
        let quorum = queue == Queue::quorum("q");
        let name = rig.queue.as_str();
        let queue = if quorum { Queue::quorum(name) } else { Queue::classic(name) };
        let mut consuming = rig.subscribe_to(queue.into(), 5).await;
        rig.publish([1]).await;
        let held = consuming.one().await;
        rig.outside.channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.expect("deletes");
        let error = consuming.end().await;
        assert_eq!(error.kind(), SubscribeErrorKind::NotFound, "{error}");
        held.ack();
        // declared anew by the next incarnation
        let mut again = rig.subscribe(5).await;
        rig.publish([2]).await;
        again.one().await.ack();
        again.finish().await;
    }
}
