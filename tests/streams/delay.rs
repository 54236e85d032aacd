//! The delay set: what was published for later, and who moves it.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::StreamExt;
use steadfast_core::{Broker, Destination, Outgoing, PublishErrorKind};
use steadfast_streams::{From, Stream};
use steadfast_testbed::RedisOptions;

use crate::child::Process;
use crate::support::{Bed, Server, ack, body, many, next, nothing, one, whole};

/// Milliseconds since 1970 by the server's clock.
fn server_time(bed: &mut Bed) -> u64 {
    let (seconds, micros): (u64, u64) = bed.raw(&["TIME"]);
    seconds * 1000 + micros / 1000
}

fn local_time() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("not that far")
}

/// Four processes beside the consumer move what is due, two of them with a clock that is an hour off, where this machine
/// has `faketime`.
#[tokio::test]
async fn many_come_back_once_each_and_never_early_with_movers_whose_clocks_are_wrong() {
    let (all, span) = (whole(100_000, 20_000), u64::try_from(whole(60_000, 6_000)).expect("small"));
    let server = Server::start(&RedisOptions::new());
    let mut bed = Bed::on(&server).await;
    let stream = bed.stream.clone();
    let skewed = |offset: &str| Process::start_skewed("mover", &server.url(), &stream, offset);
    let (fast, slow) = (skewed("+1h"), skewed("-1h"));
    let movers: Vec<Process> =
        (0..2).map(|_| Process::start("mover", &server.url(), &stream)).chain(fast).chain(slow).collect();
    println!("{} movers beside the consumer", movers.len());
    let mut subscription = bed.subscribe(bed.group(), 1000).await;
    let first = server_time(&mut bed) + 2_000 + u64::try_from(all / 10).expect("small");
    let due = |n: usize| first + u64::try_from(n).expect("small") * 7_919 % span;
    // in no order, and what is published after it was due says nothing about lateness
    let late = publish(&bed, all, due).await;
    let (mut seen, mut moved, mut arrived) = (HashSet::new(), Vec::new(), Vec::new());
    while seen.len() < all {
        let batch = next(&mut *subscription, 1000).await.expect("delivers");
        let now = local_time();
        for delivery in &batch {
            let n: usize = std::str::from_utf8(body(delivery)).expect("text").parse().expect("a number");
            assert!(seen.insert(n), "{n} came twice");
            let id = delivery.incoming().origin.entry_id.clone().expect("an entry");
            let at: u64 = id.split('-').next().expect("ms").parse().expect("a number");
            assert!(at >= due(n), "{n} came {} ms early", due(n) - at);
            if !late.contains(&n) {
                moved.push(at - due(n));
                arrived.push(now.saturating_sub(due(n)));
            }
        }
        batch.into_iter().for_each(steadfast_core::Delivery::ack);
        subscription.settler().flush();
    }
    assert!(nothing(&mut *subscription, Duration::from_millis(300)).await, "one came twice");
    subscription.settler().finish().await.expect("sent");
    for (what, mut times) in [("moved", moved), ("arrived", arrived)] {
        times.sort_unstable();
        let at = |share: usize| times.get((times.len() * share / 100).min(times.len() - 1)).copied();
        println!("{what} late by, in ms: median {:?}, 99 of 100 {:?}, most {:?}", at(50), at(99), at(100));
    }
    assert_eq!(bed.raw::<usize>(&["XLEN", &stream]), all);
    assert_eq!(bed.raw::<i64>(&["EXISTS", &bed.group().delay_key()]), 0);
}

/// Returns those whose time had come before they were stored.
async fn publish(bed: &Bed, all: usize, due: impl Fn(usize) -> u64) -> HashSet<usize> {
    let send = |n: usize| {
        let (at, due) = (UNIX_EPOCH + Duration::from_millis(due(n)), due(n));
        async move {
            let message = Outgoing::new(&*bed.stream, Bytes::from(n.to_string()));
            bed.broker.publish_at(message, at).await.expect("stored");
            (n, local_time() >= due)
        }
    };
    let stored = futures_util::stream::iter(0..all).map(send).buffer_unordered(256);
    stored.filter_map(|(n, late)| async move { late.then_some(n) }).collect().await
}

#[tokio::test]
async fn a_scheduled_message_reaches_every_group_whole_and_once() {
    let mut bed = Bed::shared().await;
    let mut groups = Vec::new();
    for group in ["billing", "shipping"] {
        groups.push(bed.subscribe(Stream::new(&*bed.stream).group(group), 1).await);
    }
    let mut message = Outgoing::new(&*bed.stream, Bytes::from_static(b"\x00\xff{}"));
    message.message_type = Some("order.placed".into());
    message.headers.set("tenant", "acme");
    let after = Duration::from_millis(400);
    let start = Instant::now();
    bed.broker.publish_after(message.clone(), after).await.expect("stored");
    // nobody knows whether it was stored: once more
    bed.broker.publish_after(message.clone(), after).await.expect("stored");
    let set = Stream::new(&*bed.stream).delay_key();
    assert_eq!(bed.raw::<i64>(&["ZCARD", &set]), 1);
    for subscription in &mut groups {
        let delivery = one(&mut **subscription).await;
        assert!(start.elapsed() >= after, "early: {:?}", start.elapsed());
        let incoming = delivery.incoming();
        assert_eq!(body(&delivery), b"\x00\xff{}");
        assert_eq!(incoming.message_id.as_deref(), Some(&*message.message_id));
        assert_eq!(incoming.message_type.as_deref(), Some("order.placed"));
        assert_eq!(incoming.headers.text("tenant"), Ok(Some("acme")));
        assert_eq!((incoming.attempt(), incoming.redelivered), (Ok(1), false));
        ack(&**subscription, vec![delivery]).await;
    }
    let past = SystemTime::now() - Duration::from_secs(60);
    bed.broker.publish_at(Outgoing::new(&*bed.stream, Bytes::new()), past).await.expect("stored");
    for subscription in &mut groups {
        let delivery = one(&mut **subscription).await;
        ack(&**subscription, vec![delivery]).await;
    }
    let nowhere = Outgoing::new(Destination::exchange("shop", "x"), Bytes::new());
    let error = bed.broker.publish_after(nowhere, after).await.expect_err("no exchanges");
    assert_eq!(error.kind(), PublishErrorKind::Invalid);
}

#[tokio::test]
async fn a_group_begins_at_a_time() {
    let mut bed = Bed::shared().await;
    let stream = bed.stream.clone();
    for ms in [1_000, 2_000, 3_000] {
        bed.raw::<String>(&["XADD", &stream, &format!("{ms}-0"), "body", &ms.to_string()]);
    }
    for (group, ms, first) in [("at", 2_000, "2000"), ("between", 2_001, "3000"), ("before", 0, "1000")] {
        let start = From::Time(UNIX_EPOCH + Duration::from_millis(ms));
        let mut subscription = bed.subscribe(Stream::new(&*stream).group(group).start(start), 1).await;
        let delivery = many(&mut *subscription, 1).await.pop().expect("one");
        assert_eq!(body(&delivery), first.as_bytes(), "{group}");
        ack(&*subscription, vec![delivery]).await;
    }
    let publisher = bed.broker.publisher().await.expect("connects");
    let mut now =
        bed.subscribe(Stream::new(&*stream).group("now").start(From::Time(SystemTime::now())), 1).await;
    publisher.send(Outgoing::new(&*stream, Bytes::from_static(b"new"))).await.expect("published");
    let delivery = one(&mut *now).await;
    assert_eq!(body(&delivery), b"new");
    ack(&*now, vec![delivery]).await;
}
