//! What ends a subscription, and what comes after.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use steadfast_core::{Broker, ConnectErrorKind, Outgoing, PublishErrorKind, SubscribeErrorKind};
use steadfast_streams::{From, Options};
use steadfast_testbed::{Append, Redis, RedisOptions, shared};

use crate::support::{Bed, Server, ack, body, many, next, nothing, one, skipped_on_cluster};

#[tokio::test]
async fn a_group_that_is_destroyed_ends_the_subscription() {
    let mut bed = Bed::shared().await;
    let mut subscription = bed.subscribe(bed.group(), 10).await;
    bed.add(&["body", "1"]);
    let delivery = one(&mut *subscription).await;
    let stream = bed.stream.clone();
    bed.raw::<()>(&["XGROUP", "DESTROY", &stream, "billing"]);
    let error = next(&mut *subscription, 10).await.expect_err("ends");
    assert_eq!(error.kind(), SubscribeErrorKind::NotFound, "{error}");
    delivery.ack();
    // the group is made again, from the beginning
    let mut again = bed.subscribe(bed.group(), 10).await;
    let delivery = one(&mut *again).await;
    ack(&*again, vec![delivery]).await;
}

#[tokio::test]
async fn a_group_that_is_made_again_skips_nothing_and_repeats_nothing() {
    let mut bed = Bed::shared().await;
    let source = bed.group().start(From::End);
    let mut subscription = bed.subscribe(source.clone(), 10).await;
    bed.add(&["body", "1"]);
    let delivery = one(&mut *subscription).await;
    ack(&*subscription, vec![delivery]).await;
    let stream = bed.stream.clone();
    bed.raw::<()>(&["XGROUP", "DESTROY", &stream, "billing"]);
    next(&mut *subscription, 10).await.expect_err("ends");
    subscription.close().await.expect("closes");
    bed.add(&["body", "2"]);
    let mut again = bed.subscribe(source, 10).await;
    let delivery = one(&mut *again).await;
    assert_eq!(body(&delivery), b"2");
    ack(&*again, vec![delivery]).await;
    assert!(nothing(&mut *again, Duration::from_millis(100)).await);
}

#[tokio::test]
async fn a_stream_that_is_deleted_ends_the_subscription() {
    let mut bed = Bed::shared().await;
    let mut subscription = bed.subscribe(bed.group(), 10).await;
    let stream = bed.stream.clone();
    assert!(nothing(&mut *subscription, Duration::from_millis(100)).await, "an empty stream");
    bed.raw::<()>(&["DEL", &stream]);
    let error = next(&mut *subscription, 10).await.expect_err("ends");
    assert_eq!(error.kind(), SubscribeErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn a_killed_connection_ends_it_and_the_next_gets_its_pending_entries() {
    let server = Server::start(&RedisOptions::new());
    let mut bed = Bed::on(&server).await;
    let source = bed.group().consumer_name("till-1");
    for n in 0..10 {
        bed.add(&["body", &n.to_string()]);
    }
    let mut first = bed.subscribe(source.clone(), 10).await;
    let held = many(&mut *first, 3).await;
    let node = server.node(&bed.stream);
    node.cli(&["CLIENT", "KILL", "TYPE", "normal"]).expect("cuts all of them");
    bed.reconnect(&server.url());
    let error = loop {
        match next(&mut *first, 10).await {
            Ok(more) => more.into_iter().for_each(steadfast_core::Delivery::release),
            Err(error) => break error,
        }
    };
    assert!(matches!(error.kind(), SubscribeErrorKind::Ended | SubscribeErrorKind::Unreachable), "{error}");
    // acknowledged after the cut: it goes by the command connection, opened again
    ack(&*first, held).await;
    first.close().await.expect("closes");
    let mut again = bed.subscribe(source, 10).await;
    let mut rest = many(&mut *again, 7).await;
    rest.sort_by_key(|delivery| body(delivery).to_vec());
    assert!(rest.iter().map(body).eq((3..10).map(|n| n.to_string().into_bytes()).collect::<Vec<_>>()));
    ack(&*again, rest).await;
    assert_eq!(bed.pending(), 0);
}

#[tokio::test]
async fn a_server_that_goes_is_an_end_and_then_unreachable() {
    let server = Server::start(&RedisOptions::new());
    let bed = Bed::on(&server).await;
    let publisher = bed.broker.publisher().await.expect("connects");
    let mut subscription = bed.subscribe(bed.group(), 10).await;
    server.kill9(&bed.stream);
    let error = next(&mut *subscription, 10).await.expect_err("ends");
    assert!(matches!(error.kind(), SubscribeErrorKind::Ended | SubscribeErrorKind::Unreachable), "{error}");
    let error = bed.try_subscribe(bed.group(), 10).await.err().expect("nobody there");
    assert_eq!(error.kind(), SubscribeErrorKind::Unreachable, "{error}");
    assert!(error.is_outage());
    let start = Instant::now();
    // the first may find the old connection, of which nobody knows what became of what was sent
    let message = || Outgoing::new(&*bed.stream, Bytes::new());
    let first = publisher.send(message()).await.expect_err("nobody there").kind();
    assert!(matches!(first, PublishErrorKind::Unknown | PublishErrorKind::Unreachable), "{first:?}");
    let second = publisher.send(message()).await.expect_err("nobody there").kind();
    assert_eq!(second, PublishErrorKind::Unreachable);
    assert!(start.elapsed() < Duration::from_secs(6));
    server.restart(&bed.stream);
    publisher.send(message()).await.expect("published");
    let mut subscription = bed.subscribe(bed.group(), 10).await;
    let delivery = one(&mut *subscription).await;
    ack(&*subscription, vec![delivery]).await;
}

#[tokio::test]
async fn nothing_that_was_confirmed_is_lost_when_the_server_is_killed_again_and_again() {
    const ALL: usize = 3000;
    let server = Server::start(&RedisOptions::new().append(Append::Always));
    let mut bed = Bed::on(&server).await;
    let publisher = bed.broker.publisher().await.expect("connects");
    let sends = (0..ALL).map(|n| publisher.send(Outgoing::new(&*bed.stream, Bytes::from(n.to_string()))));
    assert!(join_all(sends).await.iter().all(Result::is_ok));
    let source = bed.group().min_idle(Duration::from_millis(500));
    let (mut seen, mut handled, mut kills) = (HashSet::new(), 0, 0);
    let mut subscription = bed.subscribe(source.clone(), 100).await;
    while seen.len() < ALL {
        match next(&mut *subscription, 100).await {
            Ok(batch) => {
                for delivery in batch {
                    seen.insert(body(&delivery).to_vec());
                    handled += 1;
                    delivery.ack();
                }
                subscription.settler().flush();
            }
            Err(error) => {
                assert_ne!(error.kind(), SubscribeErrorKind::NotFound, "{error}");
                subscription = bed.subscribe(source.clone(), 100).await;
            }
        }
        if kills < 3 && seen.len() > ALL / 4 * (kills + 1) {
            kills += 1;
            server.kill9(&bed.stream);
            server.restart(&bed.stream);
        }
    }
    subscription.settler().finish().await.expect("sent");
    // at most what was in flight at each kill
    assert!(handled <= ALL + 3 * 200, "{handled}");
    bed.reconnect(&server.url());
    bed.until("nothing pending", |bed| bed.pending() == 0).await;
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_unreachable_within_the_deadline() {
    if skipped_on_cluster("the other nodes answer") {
        return;
    }
    let server = Redis::start(&RedisOptions::new()).expect("starts");
    server.pause().expect("halts");
    let start = Instant::now();
    let options = Options::new(server.url()).connect_timeout(Duration::from_millis(300));
    let error = steadfast_streams::connect_with(options).await.expect_err("no answer");
    assert_eq!(error.kind(), ConnectErrorKind::Unreachable, "{error}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    server.resume().expect("goes on");
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_never_shown() {
    let server = Server::start(&RedisOptions::new());
    let mut bed = Bed::on(&server).await;
    bed.raw::<()>(&["ACL", "SETUSER", "app", "on", ">right", "~*", "+@all"]);
    let error = steadfast_streams::connect(&server.url_of("app:hunter2")).await.expect_err("wrong");
    assert_eq!(error.kind(), ConnectErrorKind::Refused, "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    let broker = steadfast_streams::connect(&server.url_of("app:right")).await.expect("right");
    let version = server.node(&bed.stream).version();
    assert!(broker.capabilities().server.contains(version), "{:?}", broker.capabilities());
}

#[tokio::test]
async fn a_database_that_is_not_there_is_refused() {
    if skipped_on_cluster("a cluster has no databases") {
        return;
    }
    let url = format!("{}/4711", shared::redis_url().trim_end_matches('/'));
    let error = steadfast_streams::connect(&url).await.expect_err("no such database");
    assert_eq!(error.kind(), ConnectErrorKind::Refused, "{error}");
}

#[tokio::test]
async fn acknowledgements_go_on_where_nothing_can_be_added() {
    let server = Server::start(&RedisOptions::new());
    let mut bed = Bed::on(&server).await;
    bed.add(&["body", "1"]);
    let mut subscription = bed.subscribe(bed.group(), 10).await;
    let delivery = one(&mut *subscription).await;
    bed.raw::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    ack(&*subscription, vec![delivery]).await;
    assert_eq!(bed.pending(), 0);
    bed.raw::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    bed.add(&["body", "2"]);
    let delivery = one(&mut *subscription).await;
    assert_eq!(body(&delivery), b"2");
    ack(&*subscription, vec![delivery]).await;
}

#[tokio::test]
async fn closing_the_broker_ends_its_subscriptions() {
    let bed = Bed::shared().await;
    let mut subscription = bed.subscribe(bed.group(), 10).await;
    bed.broker.close().await;
    let error = next(&mut *subscription, 1).await.expect_err("ends");
    assert_eq!(error.kind(), SubscribeErrorKind::Ended, "{error}");
    assert!(bed.try_subscribe(bed.group(), 1).await.is_err());
    assert!(bed.broker.publisher().await.is_err());
}
