//! Consumer names: one living owner each, and none left behind.

use std::time::{Duration, Instant};

use futures_util::future::join;
use redis::{Value, cmd};
use steadfast_core::SubscribeErrorKind;

use crate::support::{AsyncClient, Bed, DEADLINE, ack, body, next, one, shared_url};

const ROUNDS: usize = 10_000;

#[tokio::test]
async fn a_stable_name_has_one_living_owner() {
    let (bed, mut other) = (Bed::shared().await, Bed::shared().await);
    other.stream.clone_from(&bed.stream);
    let source = bed.group().consumer_name("till-1");
    let first = bed.subscribe(source.clone(), 1).await;
    for bed in [&bed, &other] {
        let error = bed.try_subscribe(source.clone(), 1).await.err().expect("taken");
        assert_eq!(error.kind(), SubscribeErrorKind::Refused, "{error}");
        let process = format!(":{}:", std::process::id());
        assert!(error.to_string().contains("till-1") && error.to_string().contains(&process), "{error}");
    }
    drop(other.subscribe(source.clone().consumer_name("till-2"), 1).await);
    first.close().await.expect("closes");
    drop(other.subscribe(source.clone(), 1).await);
    let lease = bed.group().lease_key("till-1");
    other.until("the lease ended", |bed| bed.raw::<i64>(&["EXISTS", &lease]) == 0).await;
}

#[tokio::test]
async fn a_lease_that_lapses_is_taken_over_with_what_was_pending() {
    let mut bed = Bed::shared().await;
    let source = bed.group().consumer_name("till-1");
    let (stream, lease) = (bed.stream.clone(), source.lease_key("till-1"));
    bed.add(&["body", "1"]);
    bed.raw::<()>(&["XGROUP", "CREATE", &stream, "billing", "0"]);
    bed.raw::<Value>(&["XREADGROUP", "GROUP", "billing", "till-1", "STREAMS", &stream, ">"]);
    bed.raw::<()>(&["SET", &lease, "elsewhere:7:dead", "PX", "1500"]);
    let start = Instant::now();
    let mut subscription = bed.subscribe(source, 1).await;
    assert!(start.elapsed() >= Duration::from_secs(1), "it did not wait: {:?}", start.elapsed());
    let delivery = one(&mut *subscription).await;
    assert_eq!(delivery.incoming().delivery_count, Some(1));
    ack(&*subscription, vec![delivery]).await;
}

#[tokio::test]
async fn who_lost_its_lease_reads_no_more() {
    let mut bed = Bed::shared().await;
    let mut subscription = bed.subscribe(bed.group().consumer_name("till-1"), 1).await;
    let lease = bed.group().lease_key("till-1");
    assert_eq!(bed.raw::<i64>(&["EXISTS", &lease]), 1);
    bed.raw::<()>(&["SET", &lease, "elsewhere:7:alive", "PX", "60000"]);
    let error = next(&mut *subscription, 1).await.expect_err("ends");
    assert_eq!(error.kind(), SubscribeErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("elsewhere:7:alive"), "{error}");
    subscription.close().await.expect("closes");
    assert_eq!(bed.raw::<String>(&["GET", &lease]), "elsewhere:7:alive", "another's lease was ended");
}

#[tokio::test]
async fn a_successor_in_the_same_process_has_the_name_at_once() {
    let mut bed = Bed::shared().await;
    let source = bed.group().consumer_name("till-1");
    bed.add(&["body", "1"]);
    let mut first = bed.subscribe(source.clone(), 1).await;
    let in_flight = one(&mut *first).await;
    drop(first);
    let start = Instant::now();
    let mut second = bed.subscribe(source, 1).await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    in_flight.ack();
    bed.until("acknowledged", |bed| bed.pending() == 0).await;
    bed.add(&["body", "2"]);
    // it may have read its own pending entry before that was acknowledged
    loop {
        let delivery = one(&mut *second).await;
        let last = body(&delivery) == b"2";
        ack(&*second, vec![delivery]).await;
        if last {
            break;
        }
    }
    let lease = bed.group().lease_key("till-1");
    assert_eq!(bed.raw::<i64>(&["EXISTS", &lease]), 1, "the predecessor ended its successor's lease");
}

#[tokio::test]
async fn names_of_the_dead_go_and_those_with_something_pending_stay() {
    let mut bed = Bed::shared().await;
    let stream = bed.stream.clone();
    bed.add(&["body", "1"]);
    bed.raw::<()>(&["XGROUP", "CREATE", &stream, "billing", "0"]);
    let owes = "billing@gone:12:0123456789ab";
    bed.raw::<Value>(&["XREADGROUP", "GROUP", "billing", owes, "STREAMS", &stream, ">"]);
    for name in ["billing@gone:13:0123456789ab", "a@b@gone:14:0123456789ab", "legacy", "legacy@host:x"] {
        bed.raw::<i64>(&["XGROUP", "CREATECONSUMER", &stream, "billing", name]);
    }
    let source = bed.group().reap_after(Duration::from_millis(300));
    let mut subscription = bed.subscribe(source, 1).await;
    bed.until("two names gone", |bed| bed.consumers().len() == 3).await;
    let names = bed.consumers();
    for name in [owes, "legacy", "legacy@host:x"] {
        assert!(names.iter().any(|left| left == name), "{name} has gone: {names:?}");
    }
    assert_eq!(bed.pending(), 1);
    bed.add(&["body", "2"]);
    let delivery = one(&mut *subscription).await;
    assert_eq!(body(&delivery), b"2");
    ack(&*subscription, vec![delivery]).await;
}

/// Each round one entry, a sleeper that reads it, blocked at the server or not, and a reaper beside it.
#[tokio::test]
async fn a_consumer_that_wakes_up_under_the_reaper_loses_nothing() {
    const SLEEPER: &str = "billing@here:1:0123456789ab";
    let mut bed = Bed::shared().await;
    let (stream, group) = (bed.stream.clone(), bed.group());
    bed.raw::<()>(&["XGROUP", "CREATE", &stream, "billing", "0", "MKSTREAM"]);
    let mut sleeper = AsyncClient::connect(shared_url(), DEADLINE).await;
    let mut writer = AsyncClient::connect(shared_url(), DEADLINE).await;
    let (mut reaped, mut held) = (0, Vec::new());
    for round in 0..ROUNDS {
        let waking = read_as(&mut sleeper, &stream, SLEEPER);
        let reaping = async {
            let before = bed.broker.reap(&group, Duration::ZERO).await.expect("reaps");
            let added: String = cmd("XADD")
                .arg(&*stream)
                .arg("*")
                .arg("n")
                .arg(round)
                .query_async(&mut writer)
                .await
                .expect("adds");
            (before + bed.broker.reap(&group, Duration::ZERO).await.expect("reaps"), added)
        };
        let (read, (count, added)) = join(waking, reaping).await;
        assert_eq!(read, added, "round {round}");
        reaped += count;
        held.push(read);
        if round % 3 == 2 {
            let done: i64 = cmd("XACK")
                .arg(&*stream)
                .arg("billing")
                .arg(&held)
                .query_async(&mut writer)
                .await
                .expect("ok");
            assert_eq!(done, 3, "round {round}: a pending entry went with its consumer's name");
            held.clear();
        }
    }
    assert_eq!(bed.pending(), i64::try_from(held.len()).expect("small"));
    // otherwise there was no race
    assert!(reaped > ROUNDS / 10, "{reaped}");
}

async fn read_as(connection: &mut AsyncClient, stream: &str, name: &str) -> String {
    loop {
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP").arg("billing").arg(name).arg("COUNT").arg(1).arg("BLOCK").arg(100);
        let answer: Option<redis::streams::StreamReadReply> =
            read.arg("STREAMS").arg(stream).arg(">").query_async(connection).await.expect("reads");
        if let Some(mut answer) = answer
            && let Some(mut key) = answer.keys.pop()
            && let Some(entry) = key.ids.pop()
        {
            return entry.id;
        }
    }
}
