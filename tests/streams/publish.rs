//! Publishing.

use bytes::Bytes;
use futures_util::future::join_all;
use steadfast_core::{Broker, Destination, HeaderValue, Outgoing, Payload, PublishErrorKind, known};
use steadfast_streams::Options;
use steadfast_testbed::RedisOptions;

use crate::support::{Bed, Server, body, one, shared_url};

#[tokio::test]
async fn what_is_published_arrives_whole() {
    let bed = Bed::shared().await;
    let publisher = bed.broker.publisher().await.expect("connects");
    let mut message = Outgoing::new(&*bed.stream, Bytes::from_static(b"\x00\xff{}"));
    message.message_type = Some("order.placed".into());
    message.correlation_id = Some("c-1".into());
    message.content_type = Some("application/x-odd".into());
    message.headers.set("tenant", "acme").set("n", 7_i64).set(known::FIRST_FAILURE, 8_i64).set("yes", true);
    publisher.send(message.clone()).await.expect("published");
    let mut subscription = bed.subscribe(bed.group(), 1).await;
    let delivery = one(&mut *subscription).await;
    assert_eq!(body(&delivery), b"\x00\xff{}");
    let incoming = delivery.incoming();
    assert_eq!(incoming.message_id, Some(message.message_id));
    assert_eq!(incoming.message_type, message.message_type);
    assert_eq!(incoming.correlation_id, message.correlation_id);
    assert_eq!(incoming.content_type, message.content_type);
    // Redis has no types: what core does not know by name comes as text
    let want: [(&str, HeaderValue); 4] = [
        ("tenant", "acme".into()),
        ("n", "7".into()),
        (known::FIRST_FAILURE, 8_i64.into()),
        ("yes", "true".into()),
    ];
    for (name, value) in want {
        assert_eq!(incoming.headers.get(name), Some(&value), "{name}");
    }
    assert_eq!(incoming.headers.len(), 4);
    delivery.ack();
}

#[tokio::test]
async fn ten_thousand_at_once_are_all_there() {
    let mut bed = Bed::shared().await;
    let publisher = bed.broker.publisher().await.expect("connects");
    let sends = (0..10_000).map(|n| publisher.send(Outgoing::new(&*bed.stream, Bytes::from(n.to_string()))));
    assert!(join_all(sends).await.iter().all(Result::is_ok));
    let stream = bed.stream.clone();
    assert_eq!(bed.raw::<i64>(&["XLEN", &stream]), 10_000);
}

#[tokio::test]
async fn flat_fields_are_published_as_fields() {
    let bed = Bed::shared().await;
    let publisher = bed.broker.publisher().await.expect("connects");
    let fields =
        vec![("id".to_owned(), Bytes::from_static(b"7")), ("odd".to_owned(), Bytes::from_static(b"\xff"))];
    publisher.send(Outgoing::new(&*bed.stream, Payload::Fields(fields.clone()))).await.expect("published");
    let mut subscription = bed.subscribe(bed.group(), 1).await;
    let delivery = one(&mut *subscription).await;
    assert_eq!(delivery.incoming().payload, Payload::Fields(fields));
    delivery.ack();
}

#[tokio::test]
async fn an_exchange_is_refused() {
    let bed = Bed::shared().await;
    let publisher = bed.broker.publisher().await.expect("connects");
    let message = Outgoing::new(Destination::exchange("shop", "x"), Bytes::new());
    assert_eq!(publisher.send(message).await.expect_err("no exchanges").kind(), PublishErrorKind::Invalid);
}

#[tokio::test]
async fn a_full_server_rejects() {
    let server = Server::start(&RedisOptions::new());
    let mut bed = Bed::on(&server).await;
    let publisher = bed.broker.publisher().await.expect("connects");
    bed.raw::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = publisher.send(Outgoing::new(&*bed.stream, Bytes::new())).await.expect_err("full");
    assert_eq!(error.kind(), PublishErrorKind::Rejected);
    assert!(error.to_string().contains("OOM"), "{error}");
    bed.raw::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    publisher.send(Outgoing::new(&*bed.stream, Bytes::new())).await.expect("published");
}

#[tokio::test]
async fn a_batch_larger_than_the_window_has_a_result_for_each() {
    let mut bed = Bed::shared().await;
    let options = Options::new(shared_url()).publish_window(16);
    let broker = steadfast_streams::connect_with(options).await.expect("connects");
    let publisher = broker.publisher().await.expect("connects");
    let message = |n: usize| match n {
        700 => Outgoing::new(Destination::exchange("shop", "x"), Bytes::new()),
        n => Outgoing::new(&*bed.stream, Bytes::from(n.to_string())),
    };
    let sent = publisher.send_batch((0..3000).map(message).collect()).await;
    assert_eq!(sent.len(), 3000);
    let failed: Vec<usize> =
        sent.iter().enumerate().filter(|(_, sent)| sent.is_err()).map(|(n, _)| n).collect();
    assert_eq!(failed, [700]);
    let stream = bed.stream.clone();
    assert_eq!(bed.raw::<usize>(&["XLEN", &stream]), 2999);
}
