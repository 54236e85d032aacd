//! Connections that go, and brokers that are away. These have brokers of their own.

use std::io::Read;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use steadfast_amqp::{Options, connect_lazy, connect_with};
use steadfast_core::{Broker, ConnectErrorKind, Outgoing, PublishErrorKind, Source, SubscribeErrorKind};
use steadfast_testbed::{Rabbit, RabbitOptions};

use crate::rig::{Consuming, body, eventually, subscribe};

async fn private() -> Arc<Rabbit> {
    let start = || Rabbit::start(&RabbitOptions::new()).expect("starts");
    Arc::new(tokio::task::spawn_blocking(start).await.expect("starts"))
}

async fn on<T: Send + 'static>(rabbit: &Arc<Rabbit>, act: impl FnOnce(&Rabbit) -> T + Send + 'static) -> T {
    let rabbit = Arc::clone(rabbit);
    tokio::task::spawn_blocking(move || act(&rabbit)).await.expect("acts")
}

#[tokio::test]
async fn a_lost_connection_ends_the_subscription_and_the_next_call_opens_another() {
    let rabbit = private().await;
    let broker = steadfast_amqp::connect(&rabbit.url()).await.expect("connects");
    let start = async || broker.subscribe(subscribe(Source::queue("orders"), "orders.dead", 5)).await;
    let mut consuming = Consuming(start().await.expect("subscribes"));
    let publisher = broker.publisher().await.expect("publishes");
    publisher.send(Outgoing::new("orders", "1")).await.expect("published");
    let held = consuming.one().await;

    on(&rabbit, |rabbit| rabbit.ctl(&["close_all_connections", "tired"]).expect("closes")).await;
    let error = consuming.end().await;
    assert_eq!(error.kind(), SubscribeErrorKind::Unreachable, "{error:?}");
    held.ack();
    publisher.send(Outgoing::new("orders", "2")).await.expect("published on a new connection");
    let mut consuming = Consuming(start().await.expect("subscribes again"));
    let mut bodies: Vec<_> = consuming.take(2).await.iter().map(body).collect();
    bodies.sort();
    assert_eq!(bodies, ["1", "2"], "what was acknowledged too late came back");

    on(&rabbit, |rabbit| rabbit.kill9().expect("kills")).await;
    assert_eq!(consuming.end().await.kind(), SubscribeErrorKind::Unreachable);
    let error = publisher.send(Outgoing::new("orders", "3")).await.expect_err("nobody is there");
    assert!(matches!(error.kind(), PublishErrorKind::Unreachable | PublishErrorKind::Unknown), "{error:?}");
    let error = start().await.err().expect("nobody is there");
    assert!(error.is_outage(), "{error:?}");

    on(&rabbit, |rabbit| rabbit.restart().expect("restarts")).await;
    let consuming = eventually("a subscription", async || start().await.ok()).await;
    let mut bodies: Vec<_> = Consuming(consuming).take(2).await.iter().map(body).collect();
    bodies.sort();
    assert_eq!(bodies, ["1", "2"], "confirmed is confirmed");
    broker.close().await;
    assert!(start().await.err().expect("closed").is_outage());
}

#[tokio::test]
async fn a_broker_short_of_memory_is_waited_for_until_the_deadline() {
    let rabbit = private().await;
    let limit = Duration::from_secs(2);
    let options = Options::new(&rabbit.url()).expect("parses").publish_deadline(limit).publish_window(4);
    let broker = connect_with(options).await.expect("connects");
    let request = subscribe(Source::queue("orders"), "orders.dead", 50);
    let mut consuming = Consuming(broker.subscribe(request).await.expect("subscribes"));
    let publisher = broker.publisher().await.expect("publishes");
    publisher.send(Outgoing::new("orders", "before")).await.expect("published");

    on(&rabbit, |rabbit| rabbit.ctl(&["set_vm_memory_high_watermark", "0.00001"]).expect("alarms")).await;
    let began = Instant::now();
    let waiting = (0..20).map(|nth| publisher.send(Outgoing::new("orders", nth.to_string())));
    let outcomes = futures_util::future::join_all(waiting).await;
    let took = began.elapsed();
    assert!(took >= limit && took < limit * 4, "{took:?}");
    for outcome in outcomes {
        let kind = outcome.expect_err("nothing is read").kind();
        assert!(matches!(kind, PublishErrorKind::Unknown | PublishErrorKind::Unreachable), "{kind:?}");
    }
    // consuming goes on meanwhile
    let before = consuming.one().await;
    assert_eq!(body(&before), "before");
    before.ack();
    consuming.0.settler().finish().await.expect("settles");

    on(&rabbit, |rabbit| rabbit.ctl(&["set_vm_memory_high_watermark", "0.4"]).expect("calms")).await;
    let after = async || publisher.send(Outgoing::new("orders", "after")).await.ok();
    eventually("a confirmed publish", after).await;
    while body(&consuming.one().await) != "after" {}
}

#[tokio::test]
async fn a_publish_that_nobody_waits_for_keeps_its_place_until_the_broker_answers() {
    let rabbit = private().await;
    let limit = Duration::from_secs(2);
    let options = Options::new(&rabbit.url()).expect("parses").publish_deadline(limit).publish_window(2);
    let broker = connect_with(options).await.expect("connects");
    let request = subscribe(Source::queue("orders"), "orders.dead", 50);
    let mut consuming = Consuming(broker.subscribe(request).await.expect("subscribes"));
    let publisher = broker.publisher().await.expect("publishes");
    publisher.send(Outgoing::new("orders", "before")).await.expect("published");

    on(&rabbit, |rabbit| rabbit.ctl(&["set_vm_memory_high_watermark", "0.00001"]).expect("alarms")).await;
    for body in ["1", "2"] {
        // handed over by the first poll, and dropped
        assert!(publisher.send(Outgoing::new("orders", body)).now_or_never().is_none());
    }
    let error = publisher.send(Outgoing::new("orders", "3")).await.expect_err("no place is free");
    assert_eq!(error.kind(), PublishErrorKind::Unreachable, "it was not written: {error:?}");

    on(&rabbit, |rabbit| rabbit.ctl(&["set_vm_memory_high_watermark", "0.4"]).expect("calms")).await;
    let after = async || publisher.send(Outgoing::new("orders", "4")).await.ok();
    eventually("a confirmed publish", after).await;
    let bodies: Vec<_> = consuming.take(4).await.iter().map(body).collect();
    assert_eq!(bodies, ["before", "1", "2", "4"]);
    // and the places are free again
    let sent = (0..50).map(|nth| publisher.send(Outgoing::new("orders", nth.to_string())));
    assert!(futures_util::future::join_all(sent).await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn closing_waits_for_what_is_under_way() {
    let rig = crate::rig::Rig::new("close").await;
    let consuming = rig.subscribe(1).await;
    let publisher = rig.broker.publisher().await.expect("publishes");
    let sent = (0..200).map(|nth| publisher.send(Outgoing::new(rig.queue.as_str(), nth.to_string())));
    let (outcomes, ()) = tokio::join!(futures_util::future::join_all(sent), rig.broker.close());
    let failed: Vec<_> = outcomes.into_iter().filter_map(Result::err).take(1).collect();
    assert!(failed.is_empty(), "{failed:?}");
    let error = publisher.send(Outgoing::new(rig.queue.as_str(), "late")).await.expect_err("closed");
    assert_eq!(error.kind(), PublishErrorKind::Unreachable);
    drop(consuming);
    let left = async || rig.outside.ready(&rig.queue).await;
    crate::rig::eventually_equal("what was published", 200, left).await;
}

#[tokio::test]
async fn a_broker_that_does_not_answer_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("listens");
    let port = silent.local_addr().expect("is bound").port();
    let url = format!("amqp://user:secret@127.0.0.1:{port}");
    let patience = Duration::from_millis(300);
    let options = Options::new(&url).expect("parses").connect_timeout(patience);
    let began = Instant::now();
    let error = connect_with(options).await.expect_err("nobody answers");
    assert_eq!(error.kind(), ConnectErrorKind::Unreachable);
    assert!(began.elapsed() >= patience && began.elapsed() < patience * 10, "{:?}", began.elapsed());
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    // and the client holds on to nothing: neither the socket nor the thread that reads it
    let (mut socket, _) = silent.accept().expect("somebody called");
    socket.set_read_timeout(Some(crate::rig::PATIENCE)).expect("sets");
    let mut said = Vec::new();
    socket.read_to_end(&mut said).expect("the client hung up");
    assert_eq!(said, b"AMQP\0\0\x09\x01");
}

#[tokio::test]
async fn a_broker_that_is_away_is_an_outage() {
    let nobody =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let broker = connect_lazy(&format!("amqp://{nobody}")).expect("parses");
    let began = Instant::now();
    let error = broker.subscribe(subscribe(Source::queue("q"), "q.dead", 1)).await.err().expect("away");
    assert!(error.is_outage(), "{error:?}");
    let error = broker.publisher().await.err().expect("away");
    assert_eq!(error.kind(), ConnectErrorKind::Unreachable);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn another_node_is_tried_where_the_first_cannot_be_reached() {
    let nobody =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let port = crate::rig::url().await.rsplit_once(':').expect("has a port").1;
    let port = port.split('/').next().and_then(|port| port.parse().ok()).expect("a number");
    let away = format!("amqp://{nobody}");
    let options = |url: &str| Options::new(url).expect("parses");
    let broker = connect_with(options(&away).or_node("127.0.0.1", nobody.port()).or_node("127.0.0.1", port));
    let broker = broker.await.expect("connects to the third");
    assert!(broker.capabilities().server.starts_with("RabbitMQ "));
    let stranger = away.replacen("://", "://nobody:secret@", 1);
    let error = connect_with(options(&stranger).or_node("127.0.0.1", port)).await.expect_err("refuses");
    assert_eq!(error.kind(), ConnectErrorKind::Refused, "{error:?}");
}

#[tokio::test]
async fn wrong_credentials_are_refused() {
    let url = crate::rig::url().await.replacen("://", "://nobody:secret@", 1).replacen(
        "secret@guest:guest@",
        "secret@",
        1,
    );
    let error = steadfast_amqp::connect(&url).await.expect_err("refuses");
    assert_eq!(error.kind(), ConnectErrorKind::Refused, "{error:?}");
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
}
