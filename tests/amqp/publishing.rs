//! Publishing: what is confirmed is there, and what is not is an error of that message alone.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use futures_util::future::join_all;
use lapin::types::ShortString;
use steadfast_amqp::Queue;
use steadfast_core::{Broker, Destination, HeaderValue, Outgoing, Payload, PublishErrorKind, Publisher};

use crate::rig::{Rig, amqp};

async fn failing(publisher: &Arc<dyn Publisher>, message: Outgoing) -> (PublishErrorKind, String) {
    let error = publisher.send(message).await.expect_err("fails");
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn of_pipelined_publishes_exactly_the_unroutable_ones_fail() {
    let rounds = std::env::var("STEADFAST_ROUNDS").map_or(2, |rounds| rounds.parse().expect("a number"));
    let rig = Rig::new("unroutable").await;
    rig.broker.declare(&Queue::classic(rig.queue.as_str()).into()).await.expect("declares");
    let publisher = rig.broker.publisher().await.expect("publishes");
    for round in 0..rounds {
        let sent = (0..20_000).map(|nth| {
            let route = if nth % 2 == 0 { rig.queue.clone() } else { format!("{}.nowhere", rig.queue) };
            publisher.send(Outgoing::new(route, nth.to_string()))
        });
        for (nth, outcome) in join_all(sent).await.into_iter().enumerate() {
            let kind = outcome.err().map(|error| error.kind());
            let expected = (nth % 2 == 1).then_some(PublishErrorKind::Unroutable);
            assert_eq!(kind, expected, "message {nth} of round {round}");
        }
    }
    assert_eq!(rig.outside.ready(&rig.queue).await, rounds * 10_000);
}

#[tokio::test]
async fn a_message_arrives_as_it_was_published() {
    let rig = Rig::new("publish").await;
    rig.broker.declare(&Queue::quorum(rig.queue.as_str()).into()).await.expect("declares");
    let mut message = Outgoing::new(rig.queue.as_str(), "{}");
    message.message_type = Some("order.placed".into());
    message.correlation_id = Some("c-1".into());
    message.content_type = Some("application/json".into());
    message.headers.set("count", 7_i64).set("yes", true).set("text", "ä");
    message.headers.set("bytes", HeaderValue::Bytes(vec![0xff]));
    let (id, headers) = (message.message_id.clone(), message.headers.clone());
    rig.broker.publisher().await.expect("publishes").send(message).await.expect("published");
    let mut consuming = rig.subscribe(1).await;
    let delivery = consuming.one().await;
    let found = delivery.incoming();
    assert_eq!(found.message_id.as_deref(), Some(id.as_str()));
    assert_eq!(found.message_type.as_deref(), Some("order.placed"));
    assert_eq!(found.correlation_id.as_deref(), Some("c-1"));
    assert_eq!(found.content_type.as_deref(), Some("application/json"));
    for (name, value) in headers.iter() {
        assert_eq!(found.headers.get(name), Some(value), "{name}");
    }
    assert!(found.published_at.is_some());
    delivery.ack();
    consuming.finish().await;
}

#[tokio::test]
async fn every_property_is_written_as_what_it_is() {
    let rig = Rig::new("properties").await;
    let queue = Queue::classic(rig.queue.as_str()).max_priority(5);
    rig.broker.declare(&queue.into()).await.expect("declares");
    let mut message = Outgoing::new(rig.queue.as_str(), "late");
    message.timestamp = Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_900));
    (message.app_id, message.reply_to) = (Some("shop".into()), Some("answers".into()));
    (message.expiration, message.priority) = (Some(Duration::from_secs(60)), Some(3));
    message.persistent = false;
    let publisher = rig.broker.publisher().await.expect("publishes");
    let outcomes = publisher.send_batch(vec![Outgoing::new(rig.queue.as_str(), "plain"), message]).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let first = rig.outside.get(&rig.queue).await.delivery;
    assert_eq!(first.data, b"late", "a higher rank comes first");
    let found = &first.properties;
    assert_eq!((*found.timestamp(), *found.priority()), (Some(1_700_000_000), Some(3)));
    assert_eq!(found.app_id().as_ref().map(ShortString::as_str), Some("shop"));
    assert_eq!(found.reply_to().as_ref().map(ShortString::as_str), Some("answers"));
    assert_eq!(found.expiration().as_ref().map(ShortString::as_str), Some("60000"));
    assert_eq!(*found.delivery_mode(), Some(1));
    let plain = rig.outside.get(&rig.queue).await.delivery;
    assert_eq!((*plain.properties.delivery_mode(), *plain.properties.priority()), (Some(2), None));
}

#[tokio::test]
async fn a_missing_exchange_is_that_messages_error_and_the_publisher_goes_on() {
    let rig = Rig::new("exchange").await;
    rig.broker.declare(&Queue::classic(rig.queue.as_str()).into()).await.expect("declares");
    let publisher = rig.broker.publisher().await.expect("publishes");
    let (kind, _) =
        failing(&publisher, Outgoing::new(Destination::exchange("no-such-exchange", "k"), "1")).await;
    assert_eq!(kind, PublishErrorKind::Unroutable);
    publisher.send(Outgoing::new(rig.queue.as_str(), "2")).await.expect("published on a new channel");
}

#[tokio::test]
async fn what_cannot_be_written_is_not_sent() {
    let publisher = amqp().await.publisher().await.expect("publishes");
    let mut fields = Outgoing::new("q", "");
    fields.payload = Payload::Fields(vec![("id".into(), "1".into())]);
    let mut opaque = Outgoing::new("q", "");
    opaque.headers.set("when", HeaderValue::Opaque("timestamp"));
    let mut long_name = Outgoing::new("q".repeat(256), "");
    long_name.message_type = Some("t".into());
    let mut large = Outgoing::new("q", "");
    large.headers.set("large", "x".repeat(200_000));
    for (message, why) in
        [(fields, "codec"), (opaque, "`when`"), (long_name, "255 bytes"), (large, "headers take")]
    {
        let (kind, text) = failing(&publisher, message).await;
        assert_eq!(kind, PublishErrorKind::Invalid, "{text}");
        assert!(text.contains(why), "{text}");
    }
    let (kind, _) = failing(&publisher, Outgoing::new("no-such-queue", "")).await;
    assert_eq!(kind, PublishErrorKind::Unroutable, "the channel still works");
}
