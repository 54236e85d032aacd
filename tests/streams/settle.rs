//! Retries, dead letters, and settling what is no longer ours.

use std::time::{Duration, Instant};

use redis::Value;
use steadfast_core::{DeadLetter, Headers, Reason, Requeue, SettleErrorKind, known};
use steadfast_streams::Stream;

use crate::support::{Bed, ack, body, nothing, one, parts, retry};

const AFTER: Duration = Duration::from_millis(400);

#[tokio::test]
async fn a_retry_comes_back_once_and_not_early_with_three_movers() {
    let mut bed = Bed::shared().await;
    bed.add(&["body", "{}", "tenant", "acme", "steadfast-id", "m-1"]);
    let mut subscription = bed.subscribe(bed.group(), 10).await;
    let delivery = one(&mut *subscription).await;
    // subscriptions of other groups move what is due as well, and never see it
    let stream = Stream::new(&*bed.stream);
    let mut others = Vec::new();
    for group in ["shipping", "audit"] {
        let mut other = bed.subscribe(stream.clone().group(group), 10).await;
        let theirs = one(&mut *other).await;
        ack(&*other, vec![theirs]).await;
        others.push(other);
    }
    let published = delivery.incoming().published_at;
    let start = Instant::now();
    retry(&*subscription.settler(), delivery, AFTER).await;
    assert_eq!(bed.pending(), 0);
    let again = one(&mut *subscription).await;
    let away = start.elapsed();
    assert!(away >= AFTER && away < AFTER + Duration::from_millis(400), "{away:?}");
    let incoming = again.incoming();
    assert_eq!(incoming.attempt(), Ok(2));
    assert_eq!(incoming.headers.text("tenant"), Ok(Some("acme")));
    assert_eq!(incoming.message_id.as_deref(), Some("m-1"));
    assert_eq!(incoming.published_at, published, "when it was published first");
    assert!(incoming.headers.get("steadfast-group").is_none());
    ack(&*subscription, vec![again]).await;
    for other in &mut others {
        assert!(nothing(&mut **other, Duration::from_millis(100)).await, "another group's retry");
    }
    let (stream, set) = (bed.stream.clone(), bed.group().delay_key());
    assert_eq!(bed.raw::<i64>(&["XLEN", &stream]), 2, "the message and one retry of it");
    assert_eq!(bed.raw::<i64>(&["EXISTS", &set]), 0);
    for group in ["shipping", "audit"] {
        let pending: Vec<Value> = bed.raw(&["XPENDING", &stream, group]);
        assert_eq!(pending[0], Value::Int(0), "{group} has acknowledged it unseen");
    }
}

#[tokio::test]
async fn a_thousand_retries_come_back_once_each_with_three_movers() {
    let mut bed = Bed::shared().await;
    for n in 0..1000 {
        bed.add(&["body", &n.to_string()]);
    }
    let mut subscription = bed.subscribe(bed.group(), 1000).await;
    let idle = [bed.subscribe(bed.group(), 1).await, bed.subscribe(bed.group(), 1).await];
    let settler = subscription.settler();
    for delivery in crate::support::many(&mut *subscription, 1000).await {
        retry(&*settler, delivery, Duration::from_millis(50)).await;
    }
    let mut seen = std::collections::HashSet::new();
    for delivery in crate::support::many(&mut *subscription, 1000).await {
        assert!(seen.insert(body(&delivery).to_vec()), "twice");
        ack(&*subscription, vec![delivery]).await;
    }
    assert!(nothing(&mut *subscription, Duration::from_millis(300)).await);
    let stream = bed.stream.clone();
    assert_eq!(bed.raw::<i64>(&["XLEN", &stream]), 2000);
    drop(idle);
}

#[tokio::test]
async fn a_retry_without_delay_comes_back_at_once() {
    let mut bed = Bed::shared().await;
    bed.add(&["id", "7"]);
    let mut subscription = bed.subscribe(bed.group(), 1).await;
    let delivery = one(&mut *subscription).await;
    let first = delivery.incoming().clone();
    retry(&*subscription.settler(), delivery, Duration::ZERO).await;
    let again = one(&mut *subscription).await;
    assert_eq!(again.incoming().payload, first.payload);
    assert_eq!(again.incoming().attempt(), Ok(2));
    ack(&*subscription, vec![again]).await;
}

#[tokio::test]
async fn a_dead_letter_keeps_every_field_as_it_was() {
    let mut bed = Bed::shared().await;
    let odd: &[(&[u8], &[u8])] =
        &[(b"id", b"7"), (b"\xff\xfe", b"\x00\xff"), (b"id", b"8"), (b"empty", b""), (b"x-error", b"old")];
    let mut add = redis::cmd("XADD");
    add.arg(&*bed.stream).arg("*");
    for (name, value) in odd {
        add.arg(*name).arg(*value);
    }
    let id: String = add.query(&mut *bed.raw).expect("adds");
    let mut subscription = bed.subscribe(bed.group(), 1).await;
    let (incoming, token) = parts(one(&mut *subscription).await);
    let mut headers = Headers::new();
    headers.set(known::REASON, "rejected").set(known::ERROR, "new").set(known::ATTEMPTS, 3_u32);
    let letter = DeadLetter::from_headers(Reason::Rejected, headers);
    subscription.settler().dead_letter(&incoming, token, &letter).await.expect("stored");
    assert_eq!(bed.pending(), 0);
    let dead = bed.dead();
    let entries: Vec<(String, Vec<Vec<u8>>)> = bed.raw(&["XRANGE", &dead, "-", "+"]);
    assert_eq!(entries.len(), 1);
    assert_ne!(entries[0].0, id);
    let fields: Vec<(&[u8], &[u8])> = entries[0].1.chunks(2).map(|pair| (&*pair[0], &*pair[1])).collect();
    assert_eq!(&fields[..4], &odd[..4]);
    let rest: &[(&[u8], &[u8])] = &[
        (b"x-error", b"new"),
        (b"steadfast-reason", b"rejected"),
        (b"steadfast-attempts", b"3"),
        (b"steadfast-source-group", b"billing"),
    ];
    assert_eq!(&fields[4..], rest);
}

#[tokio::test]
async fn settling_what_another_consumer_owns_by_now_does_nothing() {
    let mut bed = Bed::shared().await;
    let id = bed.add(&["body", "1"]);
    let mut subscription = bed.subscribe(bed.group(), 4).await;
    let (incoming, token) = parts(one(&mut *subscription).await);
    let (stream, dead, set) = (bed.stream.clone(), bed.dead(), bed.group().delay_key());
    bed.raw::<Value>(&["XCLAIM", &stream, "billing", "thief", "0", &id]);
    let settler = subscription.settler();
    let requeue = Requeue { after: AFTER, headers: Headers::new() };
    let error = settler.requeue(&incoming, token, &requeue).await.expect_err("not ours");
    assert_eq!(error.kind(), SettleErrorKind::Gone, "{error}");
    let letter = DeadLetter::from_headers(Reason::Rejected, Headers::new());
    let error = settler.dead_letter(&incoming, token, &letter).await.expect_err("not ours");
    assert_eq!(error.kind(), SettleErrorKind::Gone, "{error}");
    settler.release(token);
    settler.finish().await.expect("sent");
    assert_eq!(bed.raw::<i64>(&["EXISTS", &dead, &set]), 0);
    let theirs: Vec<Value> = bed.raw(&["XPENDING", &stream, "billing", "-", "+", "9", "thief"]);
    assert_eq!(theirs.len(), 1);
}

#[tokio::test]
async fn an_entry_that_was_trimmed_meanwhile_is_retried_from_what_was_read() {
    let mut bed = Bed::shared().await;
    let id = bed.add(&["body", "1", "tenant", "acme"]);
    let mut subscription = bed.subscribe(bed.group(), 1).await;
    let delivery = one(&mut *subscription).await;
    let stream = bed.stream.clone();
    bed.raw::<()>(&["XDEL", &stream, &id]);
    retry(&*subscription.settler(), delivery, Duration::ZERO).await;
    let again = one(&mut *subscription).await;
    assert_eq!(body(&again), b"1");
    assert_eq!(again.incoming().headers.text("tenant"), Ok(Some("acme")));
    ack(&*subscription, vec![again]).await;
}

#[tokio::test]
async fn scripts_come_back_after_a_flush_of_them() {
    let mut bed = Bed::shared().await;
    let mut subscription = bed.subscribe(bed.group(), 1).await;
    for _ in 0..3 {
        bed.add(&["body", "1"]);
        let delivery = one(&mut *subscription).await;
        bed.raw::<()>(&["SCRIPT", "FLUSH"]);
        retry(&*subscription.settler(), delivery, Duration::from_millis(20)).await;
        let again = one(&mut *subscription).await;
        ack(&*subscription, vec![again]).await;
    }
}
