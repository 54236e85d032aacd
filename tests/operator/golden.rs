//! What a consumer gave up comes back as it was published: bytes, properties, routing.

use std::collections::BTreeMap;

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
};
use lapin::protocol::basic::AMQPProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use steadfast::{Consumer, Context, Failure, Source, Supervisor, handler_fn};

use crate::rig::Rig;

#[derive(serde::Serialize, serde::Deserialize)]
struct Refused {}

impl steadfast::Message for Refused {
    const NAME: &'static str = "refused";
}

/// A consumer that rejects what is in the source, until it is dead.
async fn reject_all(rig: &Rig) {
    let consumer = Consumer::new("billing", Source::queue(rig.queue.as_str())).handler(|| {
        handler_fn(|_: Refused, _: Context| async { Err(Failure::reject("closed").class("ledger")) })
    });
    // a tree that drains closes its broker
    let broker = steadfast::connect(rig.url).await.expect("connects");
    let tree = Supervisor::new("shop").consumer(consumer).start(broker).await.expect("starts");
    rig.until("it is dead", async || rig.ready(&rig.dead()).await == 1).await;
    tree.drain().await.expect("drains");
}

fn properties() -> AMQPProperties {
    let mut inner = FieldTable::default();
    inner.insert("deep".into(), AMQPValue::Double(1.5));
    let mut headers = FieldTable::default();
    headers.insert("tenant".into(), AMQPValue::LongString("acme".into()));
    headers.insert("short".into(), AMQPValue::ShortInt(7));
    headers.insert("table".into(), AMQPValue::FieldTable(inner));
    headers.insert("traceparent".into(), AMQPValue::LongString("00-1-2-01".into()));
    AMQPProperties::default()
        .with_headers(headers)
        .with_type("refused".into())
        .with_message_id("golden".into())
        .with_correlation_id("c-1".into())
        .with_content_type("application/json".into())
        .with_content_encoding("identity".into())
        .with_reply_to("answers".into())
        .with_app_id("shop".into())
        .with_delivery_mode(2)
        .with_priority(3)
        .with_timestamp(1_700_000_000)
        .with_expiration("3600000".into())
}

#[tokio::test]
async fn rabbit_a_redriven_letter_is_as_it_was_published() {
    let rig = Rig::rabbit().await;
    let connection = Connection::connect(rig.url, ConnectionProperties::default()).await.expect("connects");
    let channel = connection.create_channel().await.expect("opens");
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let (exchange, queue) =
        (ShortString::from(format!("{}.x", rig.queue)), ShortString::from(rig.queue.as_str()));
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel
        .exchange_declare(exchange.clone(), ExchangeKind::Topic, options, FieldTable::default())
        .await
        .expect("declares");
    channel
        .queue_bind(
            queue.clone(),
            exchange.clone(),
            "a.*".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .expect("binds");
    let body = b"{ }\x20\n";
    let publish = channel.basic_publish(
        exchange.clone(),
        "a.b".into(),
        BasicPublishOptions::default(),
        body,
        properties(),
    );
    publish.await.expect("written").await.expect("confirmed");
    reject_all(&rig).await;

    let ran = rig.run(&["dead", "redrive", &rig.dead(), "--yes", "--job", "j", "--ramp", "none"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let got =
        channel.basic_get(queue, BasicGetOptions { no_ack: true }).await.expect("asks").expect("is back");
    assert_eq!(got.delivery.data, body);
    assert_eq!((&got.delivery.exchange, got.delivery.routing_key.as_str()), (&exchange, "a.b"));
    let mut expected = properties().headers().clone().expect("has some");
    expected.insert("steadfast-redrive-count".into(), AMQPValue::LongLongInt(1));
    expected.insert("steadfast-redrive-job".into(), AMQPValue::LongString("j".into()));
    let mut found = got.delivery.properties.headers().clone().expect("has some").inner().clone();
    // the queue's own, on every delivery
    found.remove("x-delivery-count");
    let found = got.delivery.properties.with_headers(found.into());
    assert_eq!(found, properties().with_headers(expected));
    connection.close(200, "done".into()).await.expect("closes");
}

/// Straight to its queue: nobody else who is bound gets it again, and the handler still sees where it was published to.
#[tokio::test]
async fn rabbit_a_letter_can_go_to_its_queue_alone() {
    let rig = Rig::rabbit().await;
    rig.letters(1).await;
    let ran = rig.run(&["dead", "redrive", &rig.dead(), "--yes", "--to-source", "--ramp", "none"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(rig.ids(&rig.queue).await, ["m-0"]);
}

#[tokio::test]
async fn redis_a_redriven_letter_is_as_it_was_published() {
    let rig = Rig::redis().await;
    let mut raw = redis::Client::open(rig.url).expect("valid").get_connection().expect("connects");
    let published: [(&str, &[u8]); 5] = [
        ("body", b"{ }\x20\n"),
        ("steadfast-type", b"refused"),
        ("steadfast-id", b"golden"),
        ("tenant", b"acme"),
        ("odd", &[0xff, 0, 7]),
    ];
    let mut add = redis::cmd("XADD");
    add.arg(&rig.queue).arg("*");
    for (name, value) in published {
        add.arg(name).arg(value);
    }
    let original: String = add.query(&mut raw).expect("added");
    reject_all(&rig).await;

    let ran = rig.run(&["dead", "redrive", &rig.dead(), "--yes", "--job", "j", "--ramp", "none"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let entries: Vec<(String, BTreeMap<String, Vec<u8>>)> = redis::cmd("XRANGE")
        .arg(&rig.queue)
        .arg(format!("({original}"))
        .arg("+")
        .query(&mut raw)
        .expect("reads");
    let mut expected: BTreeMap<String, Vec<u8>> =
        published.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
    for (name, value) in [
        ("steadfast-redrive-count", "1"),
        ("steadfast-redrive-job", "j"),
        // no other group is to see it again
        ("steadfast-group", "steadfast"),
    ] {
        expected.insert(name.to_owned(), value.as_bytes().to_vec());
    }
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].1, expected);
    let left: u64 = redis::cmd("XLEN").arg(rig.dead()).query(&mut raw).expect("counts");
    assert_eq!(left, 0);
}
