//! One delivery at a time, for messages that may take the whole process down.

use std::time::Duration;

use steadfast_core::Delivery;
use steadfast_streams::RELEASED;

use crate::support::{Bed, ack, body, many, next, nothing, nothing_for, one};

#[tokio::test]
async fn a_narrow_subscription_holds_one_and_only_for_who_waits() {
    let mut bed = Bed::shared().await;
    for n in 0..5 {
        bed.add(&["body", &n.to_string()]);
    }
    let mut subscription = bed.subscribe_narrow(10).await;
    for n in 0..3 {
        let batch = next(&mut *subscription, 10).await.expect("delivers");
        assert_eq!(batch.len(), 1);
        assert_eq!(body(&batch[0]), n.to_string().as_bytes());
        // somebody asks too early
        assert!(nothing_for(&mut *subscription, 10, Duration::from_millis(50)).await, "a second one");
        assert_eq!(bed.pending(), 1);
        ack(&*subscription, batch).await;
    }
    subscription.set_narrow(false);
    let rest = many(&mut *subscription, 2).await;
    ack(&*subscription, rest).await;
    assert_eq!(bed.pending(), 0);
}

#[tokio::test]
async fn narrowing_gives_back_what_is_buffered_without_an_attempt() {
    let mut bed = Bed::shared().await;
    let mut first = bed.subscribe(bed.group(), 10).await;
    assert!(nothing_for(&mut *first, 10, Duration::from_millis(50)).await);
    for n in 0..10 {
        bed.add(&["body", &n.to_string()]);
    }
    let in_flight = many(&mut *first, 3).await;
    bed.until("the rest in the buffer", |bed| bed.pending() == 10).await;
    first.set_narrow(true);
    bed.until("seven given back", |bed| {
        let pending = bed.pending_by_name();
        pending.iter().any(|(name, count)| name == RELEASED && *count == 7) && pending.len() == 2
    })
    .await;
    let mut second = bed.subscribe(bed.group(), 10).await;
    let rest = many(&mut *second, 7).await;
    assert!(rest.iter().all(|delivery| delivery.incoming().delivery_count == Some(0)), "charged");
    ack(&*second, rest).await;
    ack(&*first, in_flight).await;
    assert_eq!(bed.pending(), 0);
}

#[tokio::test]
async fn narrowing_ends_a_read_for_many_that_waits_at_the_server() {
    let mut bed = Bed::shared().await;
    bed.add(&["body", "suspect"]);
    let mut subscription = bed.subscribe(bed.group(), 10).await;
    let alone = one(&mut *subscription).await;
    // room for nine more: the reader waits at the server
    assert!(nothing_for(&mut *subscription, 9, Duration::from_millis(100)).await);
    subscription.set_narrow(true);
    for n in 0..5 {
        bed.add(&["body", &n.to_string()]);
    }
    // whatever the read brought before it ended has gone back
    let stays =
        |bed: &mut Bed| bed.pending_by_name().iter().all(|(name, count)| name == RELEASED || *count == 1);
    bed.until("one held", stays).await;
    assert!(nothing(&mut *subscription, Duration::from_millis(100)).await, "a second one beside it");
    assert!(stays(&mut bed));
    ack(&*subscription, vec![alone]).await;
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for _ in 0..5 {
        let delivery = one(&mut *subscription).await;
        assert_eq!(delivery.incoming().delivery_count, Some(0));
        seen.push(body(&delivery).to_vec());
        ack(&*subscription, vec![delivery]).await;
    }
    seen.sort();
    assert_eq!(seen, [b"0", b"1", b"2", b"3", b"4"]);
}

#[tokio::test]
async fn a_narrow_claim_takes_one_after_the_other() {
    let mut bed = Bed::shared().await;
    let stream = bed.stream.clone();
    for n in 0..20 {
        bed.add(&["body", &n.to_string()]);
    }
    let mut first = bed.subscribe(bed.group(), 20).await;
    many(&mut *first, 20).await.into_iter().for_each(Delivery::release);
    first.stop().await.expect("stops");
    first.close().await.expect("closes");
    let mut subscription = bed.subscribe_narrow(20).await;
    for n in 0..20 {
        let delivery = one(&mut *subscription).await;
        assert_eq!(body(&delivery), n.to_string().as_bytes(), "the oldest first");
        let counted: Vec<(String, String, i64, i64)> =
            bed.raw(&["XPENDING", &stream, "billing", "-", "+", "100"]);
        let charged = counted.iter().filter(|(_, _, _, deliveries)| *deliveries > 0).count();
        assert_eq!(charged, 1, "only what runs is counted: {counted:?}");
        ack(&*subscription, vec![delivery]).await;
    }
}
