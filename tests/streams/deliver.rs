//! Groups, reading, and what an entry becomes.

use std::time::Duration;

use bytes::Bytes;
use steadfast_core::{
    Broker, Delivery, Destination, HeaderValue, Payload, Source, Subscribe, SubscribeErrorKind,
};
use steadfast_streams::{From, Stream};

use crate::support::{Bed, DEADLINE, ack, body, many, next, nothing, one};

#[tokio::test]
async fn declaring_a_group_twice_is_no_error() {
    let bed = Bed::shared().await;
    let source: Source = bed.group().into();
    for _ in 0..2 {
        bed.broker.declare(&source).await.expect("declares");
    }
    drop(bed.subscribe(bed.group(), 1).await);
}

#[tokio::test]
async fn what_is_delivered_and_acknowledged_leaves_nothing_pending() {
    let mut bed = Bed::shared().await;
    for n in 0..500 {
        bed.add(&["body", &n.to_string()]);
    }
    let mut subscription = bed.subscribe(bed.group(), 100).await;
    for n in 0..500 {
        let delivery = one(&mut *subscription).await;
        assert_eq!(body(&delivery), n.to_string().as_bytes(), "in order");
        assert!(!delivery.incoming().redelivered);
        assert_eq!(delivery.incoming().delivery_count, Some(0));
        delivery.ack();
        if n % 50 == 49 {
            subscription.settler().flush();
        }
    }
    subscription.settler().finish().await.expect("sent");
    assert_eq!(bed.pending(), 0);
}

#[tokio::test]
async fn acknowledgements_are_sent_while_the_reader_waits_at_the_server() {
    let mut bed = Bed::shared().await;
    let mut subscription = bed.subscribe(bed.group(), 10).await;
    for n in 0..20 {
        bed.add(&["body", &n.to_string()]);
        one(&mut *subscription).await.ack();
        subscription.settler().flush();
        bed.until("the acknowledgement", |bed| bed.pending() == 0).await;
    }
}

#[tokio::test]
async fn no_more_is_held_than_there_is_room_for() {
    let mut bed = Bed::shared().await;
    for n in 0..50 {
        bed.add(&["body", &n.to_string()]);
    }
    let mut subscription = bed.subscribe(bed.group(), 8).await;
    let mut held = many(&mut *subscription, 8).await;
    assert!(nothing(&mut *subscription, Duration::from_millis(200)).await, "a ninth");
    assert_eq!(bed.pending(), 8);
    ack(&*subscription, held.split_off(4)).await;
    held.extend(many(&mut *subscription, 4).await);
    assert!(nothing(&mut *subscription, Duration::from_millis(200)).await, "a ninth");
    assert_eq!(bed.pending(), 8);
    ack(&*subscription, held).await;
}

#[tokio::test]
async fn flat_fields_come_as_fields_and_known_names_as_headers() {
    let mut bed = Bed::shared().await;
    let stream = bed.stream.clone();
    let mut add = redis::cmd("XADD");
    add.arg(&*stream).arg("*").arg("id").arg("7").arg("odd").arg(&b"\xff\x00"[..]);
    add.arg("x-retry-count").arg("3").arg("steadfast-type").arg("order.placed").arg("id").arg("8");
    let id: String = add.query(&mut *bed.raw).expect("adds");
    let mut subscription = bed.subscribe(&*stream, 1).await;
    let delivery = one(&mut *subscription).await;
    let incoming = delivery.incoming();
    let fields = [("id", &b"7"[..]), ("odd", b"\xff\x00"), ("id", b"8")];
    let fields = fields.map(|(name, value)| (name.to_owned(), Bytes::from_static(value)));
    assert_eq!(incoming.payload, Payload::Fields(fields.to_vec()));
    assert_eq!(incoming.headers.retry_count(), Ok(3));
    assert_eq!(incoming.message_type.as_deref(), Some("order.placed"));
    assert_eq!(incoming.origin.entry_id, Some(id));
    assert_eq!(&*incoming.origin.source, stream);
    delivery.ack();
}

#[tokio::test]
async fn a_retry_count_that_is_no_number_is_left_for_core_to_judge() {
    let mut bed = Bed::shared().await;
    bed.add(&["body", "{}", "x-retry-count", "many"]);
    let mut subscription = bed.subscribe(bed.group(), 1).await;
    let delivery = one(&mut *subscription).await;
    assert_eq!(delivery.incoming().headers.get("x-retry-count"), Some(&HeaderValue::Text("many".into())));
    assert!(delivery.incoming().attempt().is_err());
    delivery.ack();
}

#[tokio::test]
async fn a_group_begins_where_it_is_told() {
    let mut bed = Bed::shared().await;
    let first = bed.add(&["body", "1"]);
    bed.add(&["body", "2"]);
    let (ms, sequence) = first.split_once('-').expect("an id");
    let after = From::Id(ms.parse().expect("a number"), sequence.parse().expect("a number"));
    let stream = || Stream::new(&*bed.stream);
    let mut after = bed.subscribe(stream().group("after").start(after), 1).await;
    let mut end = bed.subscribe(stream().group("end").start(From::End), 1).await;
    bed.add(&["body", "3"]);
    let two = one(&mut *after).await;
    let three = one(&mut *end).await;
    assert_eq!((body(&two), body(&three)), (&b"2"[..], &b"3"[..]));
    two.ack();
    three.ack();
}

#[tokio::test]
async fn what_redis_cannot_do_is_refused_with_the_way_out() {
    let mut bed = Bed::shared().await;
    let error = bed.try_subscribe(Source::queue("q").with_native(1_u8), 1).await.err().expect("foreign");
    assert_eq!(error.kind(), SubscribeErrorKind::Unsupported);
    assert!(error.to_string().contains("streams::Stream"), "{error}");
    let request = Subscribe {
        source: bed.group().into(),
        consumer: "test".into(),
        max_in_flight: std::num::NonZeroUsize::MIN,
        narrow: false,
        dead_letter: Destination::exchange("dlx", "orders"),
    };
    let error = bed.broker.subscribe(request).await.err().expect("an exchange");
    assert_eq!(error.kind(), SubscribeErrorKind::Unsupported);
    let (stream, dead) = (bed.stream.clone(), bed.dead());
    bed.raw::<()>(&["SET", &dead, "x"]);
    let error = bed.try_subscribe(bed.group(), 1).await.err().expect("no stream");
    assert_eq!(error.kind(), SubscribeErrorKind::Mismatch, "{error}");
    bed.raw::<()>(&["DEL", &dead]);
    bed.raw::<()>(&["DEL", &stream]);
    bed.raw::<()>(&["SET", &stream, "x"]);
    let error = bed.try_subscribe(bed.group(), 1).await.err().expect("no stream");
    assert_eq!(error.kind(), SubscribeErrorKind::Mismatch, "{error}");
}

#[tokio::test]
async fn own_pending_entries_come_first_under_a_stable_name() {
    let mut bed = Bed::shared().await;
    let source = bed.group().consumer_name("till-1");
    let stream = bed.stream.clone();
    for n in 0..30 {
        bed.add(&["body", &n.to_string()]);
    }
    bed.raw::<()>(&["XGROUP", "CREATE", &stream, "billing", "0"]);
    let read = ["XREADGROUP", "GROUP", "billing", "till-1", "COUNT", "25", "STREAMS", &stream, ">"];
    bed.raw::<redis::Value>(&read);
    // one of them is trimmed meanwhile
    let ids: Vec<(String, redis::Value)> = bed.raw(&["XRANGE", &stream, "-", "+", "COUNT", "1"]);
    bed.raw::<()>(&["XDEL", &stream, &ids[0].0]);
    let mut subscription = bed.subscribe(source, 10).await;
    for n in 1..30 {
        let delivery = one(&mut *subscription).await;
        assert_eq!(body(&delivery), n.to_string().as_bytes());
        let incoming = delivery.incoming();
        assert_eq!((incoming.redelivered, incoming.delivery_count), (n < 25, Some(u32::from(n < 25))));
        ack(&*subscription, vec![delivery]).await;
    }
    assert_eq!(bed.pending(), 0, "the trimmed one as well");
}

#[tokio::test]
async fn stop_gives_back_what_was_not_handed_out() {
    let mut bed = Bed::shared().await;
    for n in 0..10 {
        bed.add(&["body", &n.to_string()]);
    }
    let mut subscription = bed.subscribe(bed.group(), 10).await;
    let first = next(&mut *subscription, 10).await.expect("delivers");
    let rest = first.len();
    first.into_iter().for_each(Delivery::release);
    subscription.stop().await.expect("stops");
    subscription.close().await.expect("closes");
    assert!(rest > 0);
    let mut other = bed.subscribe(bed.group(), 10).await;
    let all = many(&mut *other, 10).await;
    assert!(
        all.iter().all(|delivery| delivery.incoming().delivery_count == Some(0)),
        "no attempt was counted"
    );
    ack(&*other, all).await;
    other.close().await.expect("closes");
    bed.until("no name left", |bed| bed.consumers().is_empty()).await;
}

#[tokio::test]
async fn stop_ends_an_idle_read_at_once_and_the_name_goes() {
    let mut bed = Bed::shared().await;
    let mut subscription = bed.subscribe(bed.group().block(Duration::from_secs(5)), 10).await;
    bed.add(&["body", "1"]);
    one(&mut *subscription).await.ack();
    assert_eq!(bed.consumers().len(), 1);
    let start = std::time::Instant::now();
    subscription.stop().await.expect("stops");
    subscription.close().await.expect("closes");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(start.elapsed() < DEADLINE);
    assert_eq!((bed.pending(), bed.consumers().len()), (0, 0));
}
