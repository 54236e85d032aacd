//! A part of a stream once more, under a group of its own.

use std::num::NonZeroU32;
use std::time::{Duration, Instant, UNIX_EPOCH};

use steadfast_streams::{From, Stream, Until};

use crate::support::{Bed, ack, body, many, next, nothing, one, retry};

async fn filled() -> Bed {
    let mut bed = Bed::shared().await;
    let stream = bed.stream.clone();
    for n in 1..=40 {
        bed.raw::<String>(&["XADD", &stream, &format!("{n}-0"), "body", &n.to_string()]);
    }
    bed
}

#[tokio::test]
async fn a_part_of_the_stream_is_replayed_with_its_retries_and_nothing_behind_it() {
    let mut bed = filled().await;
    let part = |name: &str| Stream::new(&*bed.stream).group(name).start(From::Id(10, 0));
    let by_id = part("by-id").until(Until::Id(14, 0));
    let by_time = part("by-time").until(Until::Time(UNIX_EPOCH + Duration::from_millis(15)));
    for (name, source) in [("by-id", by_id), ("by-time", by_time)] {
        let mut subscription = bed.subscribe(source, 10).await;
        let settler = subscription.settler();
        for n in 11..=14 {
            let delivery = one(&mut *subscription).await;
            assert_eq!(body(&delivery), n.to_string().as_bytes());
            if n == 12 {
                retry(&*settler, delivery, Duration::from_millis(50)).await;
            } else {
                ack(&*subscription, vec![delivery]).await;
            }
        }
        let again = one(&mut *subscription).await;
        assert_eq!((body(&again), again.incoming().attempt()), (&b"12"[..], Ok(2)));
        ack(&*subscription, vec![again]).await;
        bed.add(&["body", "new"]);
        assert!(nothing(&mut *subscription, Duration::from_millis(100)).await, "behind the end");
        let stream = bed.stream.clone();
        bed.until("all of it acknowledged", |bed| {
            bed.raw::<Vec<redis::Value>>(&["XPENDING", &stream, name])[0] == redis::Value::Int(0)
        })
        .await;
    }
}

#[tokio::test]
async fn a_replay_keeps_its_pace_and_acknowledges_meanwhile() {
    let mut bed = filled().await;
    let rate = NonZeroU32::new(20).expect("not zero");
    let start = Instant::now();
    let mut subscription = bed.subscribe(bed.group().rate(rate), 100).await;
    let mut left = 40;
    while left > 0 {
        let batch = next(&mut *subscription, left).await.expect("delivers");
        left -= batch.len();
        ack(&*subscription, batch).await;
    }
    let took = start.elapsed();
    // the first at once, the last of forty after 39 twentieths
    assert!(took >= Duration::from_millis(1_900), "{took:?}");
    assert_eq!(bed.pending(), 0);
    bed.add(&["body", "41"]);
    let rest = many(&mut *subscription, 1).await;
    ack(&*subscription, rest).await;
    subscription.stop().await.expect("stops");
}
