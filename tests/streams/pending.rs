//! Claims, leases, releases.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use steadfast_core::Delivery;

use crate::support::{Bed, ack, body, many, next, nothing, nothing_for, one};

#[tokio::test]
async fn a_release_is_taken_by_another_within_a_second_and_a_half_and_counts_nothing() {
    let mut bed = Bed::shared().await;
    bed.add(&["body", "1"]);
    let mut first = bed.subscribe(bed.group(), 1).await;
    let delivery = one(&mut *first).await;
    let mut second = bed.subscribe(bed.group(), 1).await;
    assert!(nothing(&mut *second, Duration::from_millis(50)).await);
    let start = Instant::now();
    // stopped, so that it does not take it again itself
    first.stop().await.expect("stops");
    delivery.release();
    let delivery = one(&mut *second).await;
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    let incoming = delivery.incoming();
    assert_eq!((incoming.delivery_count, incoming.attempt()), (Some(0), Ok(1)));
    assert!(incoming.redelivered);
    ack(&*second, vec![delivery]).await;
    first.close().await.expect("closes");
    second.close().await.expect("closes");
    bed.until("no name left", |bed| bed.consumers().is_empty()).await;
}

#[tokio::test]
async fn what_a_dead_consumer_left_is_claimed_with_its_count() {
    let mut bed = Bed::shared().await;
    let stream = bed.stream.clone();
    for n in 0..25 {
        bed.add(&["body", &n.to_string()]);
    }
    bed.raw::<()>(&["XGROUP", "CREATE", &stream, "billing", "0"]);
    bed.raw::<redis::Value>(&["XREADGROUP", "GROUP", "billing", "dead", "STREAMS", &stream, ">"]);
    // a trim that leaves a whole round of the claim empty
    bed.raw::<()>(&["XTRIM", &stream, "MAXLEN", "5"]);
    let mut subscription = bed.subscribe(bed.group().min_idle(Duration::from_millis(200)), 2).await;
    for n in 20..25 {
        let delivery = one(&mut *subscription).await;
        assert_eq!(body(&delivery), n.to_string().as_bytes());
        let incoming = delivery.incoming();
        assert_eq!((incoming.redelivered, incoming.delivery_count), (true, Some(1)));
        ack(&*subscription, vec![delivery]).await;
    }
    bed.until("nothing pending", |bed| bed.pending() == 0).await;
}

#[tokio::test]
async fn a_handler_slower_than_min_idle_runs_once() {
    let mut bed = Bed::shared().await;
    let source = bed.group().min_idle(Duration::from_millis(300));
    let mut slow = bed.subscribe(source.clone(), 10).await;
    assert!(nothing_for(&mut *slow, 10, Duration::from_millis(50)).await);
    for n in 0..10 {
        bed.add(&["body", &n.to_string()]);
    }
    let in_flight = many(&mut *slow, 4).await;
    bed.until("the rest in the buffer", |bed| bed.pending() == 10).await;
    let mut hungry = Vec::new();
    for _ in 0..3 {
        hungry.push(bed.subscribe(source.clone(), 10).await);
    }
    // ten times as long: four in a handler, six waiting in the buffer
    let waits = hungry.iter_mut().map(|hungry| nothing(&mut **hungry, Duration::from_secs(3)));
    assert!(join_all(waits).await.iter().all(|nothing| *nothing), "claimed from a living handler");
    ack(&*slow, in_flight).await;
    let rest = many(&mut *slow, 6).await;
    assert!(rest.iter().all(|delivery| !delivery.incoming().redelivered));
    ack(&*slow, rest).await;
    assert_eq!(bed.pending(), 0);
}

#[tokio::test]
async fn dropping_a_subscription_leaves_nothing_stranded() {
    let mut bed = Bed::shared().await;
    for n in 0..10 {
        bed.add(&["body", &n.to_string()]);
    }
    let mut first = bed.subscribe(bed.group(), 10).await;
    let mut in_flight = next(&mut *first, 10).await.expect("delivers");
    assert_eq!(in_flight.len(), 10);
    let rest = in_flight.split_off(4);
    rest.into_iter().for_each(Delivery::release);
    drop(first);
    let mut second = bed.subscribe(bed.group(), 10).await;
    let rest = many(&mut *second, 6).await;
    ack(&*second, rest).await;
    // deliveries that outlive their subscription can still be settled
    in_flight.into_iter().for_each(Delivery::ack);
    bed.until("nothing pending", |bed| bed.pending() == 0).await;
    bed.until("one name", |bed| bed.consumers().len() == 1).await;
}
