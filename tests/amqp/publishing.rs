//! Publishing: what is confirmed is there, and what is not is an error of that message alone.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, UNIX_EPOCH};

use futures_util::future::join_all;
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use lapin::protocol::basic::AMQPProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use steadfast_amqp::{Options, Queue, connect_with};
use steadfast_core::{
    Broker, Destination, Forward, HeaderValue, Headers, Outgoing, Payload, PublishErrorKind, Publisher,
};

use crate::rig::{PATIENCE, Rig, amqp, url};

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

/// Two at a time have one id, and only one of them has a queue.
#[tokio::test]
async fn the_same_id_twice_is_told_apart_by_where_it_goes() {
    let rig = Rig::new("twice").await;
    rig.broker.declare(&Queue::classic(rig.queue.as_str()).into()).await.expect("declares");
    let publisher = rig.broker.publisher().await.expect("publishes");
    let sent = (0..3_000).map(|nth| {
        let nowhere = format!("{}.nowhere", rig.queue);
        let route = if nth % 3 == 0 { rig.queue.clone() } else { nowhere };
        let mut message = Outgoing::new(route, "");
        message.message_id = format!("m-{}", nth / 3);
        publisher.send(message)
    });
    for (nth, outcome) in join_all(sent).await.into_iter().enumerate() {
        let kind = outcome.err().map(|error| error.kind());
        assert_eq!(kind, (nth % 3 != 0).then_some(PublishErrorKind::Unroutable), "message {nth}");
    }
    assert_eq!(rig.outside.ready(&rig.queue).await, 1_000);
}

/// Letters that nobody gave an id, sent on to one place, where half of them have no queue.
#[tokio::test]
async fn without_an_id_a_message_is_known_by_its_body() {
    const LETTERS: usize = 200;
    let rig = Rig::new("no-id").await;
    let (exchange, target) = (format!("{}.by-header", rig.queue), format!("{}.target", rig.queue));
    rig.outside.declare(&rig.queue, FieldTable::default()).await;
    rig.outside.declare(&target, FieldTable::default()).await;
    let outside = &rig.outside.channel;
    let options = ExchangeDeclareOptions::default();
    let declared = outside.exchange_declare(
        exchange.as_str().into(),
        ExchangeKind::Headers,
        options,
        FieldTable::default(),
    );
    declared.await.expect("declares");
    let mut wanted = FieldTable::default();
    wanted.insert("wanted".into(), AMQPValue::Boolean(true));
    let (to, from) = (target.as_str().into(), exchange.as_str().into());
    outside.queue_bind(to, from, "".into(), QueueBindOptions::default(), wanted).await.expect("binds");
    for nth in 0..LETTERS {
        rig.outside.publish(&rig.queue, nth.to_string().as_bytes(), AMQPProperties::default()).await;
    }
    let operator = rig.broker.operator().expect("has one");
    let walk = operator.walk(&rig.queue).await.expect("walks");
    let mut letters = Vec::new();
    while letters.len() < LETTERS {
        letters.extend(walk.next(LETTERS).await.expect("reads"));
    }
    let sent = letters.iter().map(async |letter| {
        let Payload::Body(body) = &letter.message.payload else { panic!("{:?}", letter.message.payload) };
        let nth: usize = std::str::from_utf8(body).ok().and_then(|nth| nth.parse().ok()).expect("a number");
        let mut set = Headers::new();
        set.set("wanted", nth.is_multiple_of(2));
        let to = Destination::exchange(exchange.as_str(), "same");
        let forward = Forward { to, restore: true, set, payload: None, message_id: None };
        (nth, walk.forward(letter, &forward).await.is_ok())
    });
    for (nth, sent) in join_all(sent).await {
        assert_eq!(sent, nth.is_multiple_of(2), "letter {nth}");
    }
    assert_eq!(rig.outside.ready(&target).await, 100);
    walk.close().await.expect("gives back");
}

/// Through a window so small that nearly all of them wait.
#[tokio::test]
async fn the_order_of_calls_is_the_order_in_the_queue() {
    let rig = Rig::new("order").await;
    let options = Options::new(url().await).expect("parses").publish_window(3);
    let broker = connect_with(options).await.expect("connects");
    broker.declare(&Queue::classic(rig.queue.as_str()).into()).await.expect("declares");
    let publisher = broker.publisher().await.expect("publishes");
    let sent = (0..500).map(|nth| publisher.send(Outgoing::new(rig.queue.as_str(), nth.to_string())));
    assert!(join_all(sent).await.iter().all(Result::is_ok));
    for nth in 0..500 {
        assert_eq!(rig.outside.get(&rig.queue).await.delivery.data, nth.to_string().as_bytes());
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The least that can be called an executor.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park_timeout(PATIENCE),
        }
    }
}

#[tokio::test]
async fn publishing_needs_no_runtime_of_the_callers() {
    let rig = Rig::new("executor").await;
    rig.broker.declare(&Queue::classic(rig.queue.as_str()).into()).await.expect("declares");
    let publisher = rig.broker.publisher().await.expect("publishes");
    let queue = rig.queue.clone();
    let outside = thread::spawn(move || {
        let sent = (0..3_000).map(|nth| publisher.send(Outgoing::new(queue.as_str(), nth.to_string())));
        block_on(join_all(sent)).into_iter().find_map(Result::err)
    });
    let error = tokio::task::spawn_blocking(|| outside.join()).await.expect("ends").expect("publishes");
    assert!(error.is_none(), "{error:?}");
    assert_eq!(rig.outside.ready(&rig.queue).await, 3_000);
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
    let mut batch: Vec<_> = (0..200).map(|nth| Outgoing::new(rig.queue.as_str(), nth.to_string())).collect();
    batch.insert(100, Outgoing::new(Destination::exchange("no-such-exchange", "k"), "lost"));
    for (nth, outcome) in publisher.send_batch(batch).await.into_iter().enumerate() {
        let kind = outcome.err().map(|error| error.kind());
        match nth {
            100 => assert_eq!(kind, Some(PublishErrorKind::Unroutable)),
            // those before it may have been confirmed
            _ => assert!(matches!(kind, None | Some(PublishErrorKind::Unknown)), "message {nth}: {kind:?}"),
        }
    }
    publisher.send(Outgoing::new(rig.queue.as_str(), "3")).await.expect("published on a third channel");
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
