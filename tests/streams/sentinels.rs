//! A master that sentinels know, and what a change of the master costs.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use steadfast_core::{Broker, Outgoing, SubscribeError, SubscribeErrorKind, Subscription};
use steadfast_streams::{Group, Stream, Streams, connect};
use steadfast_testbed::{Redis, Sentinels};

use crate::support::{ack, body, many, next, skipped_on_cluster};

pub(crate) const WHY: &str = "sentinels know no clusters";

/// Longest wait for another master: the sentinels see the loss after 3 s, and agree.
const ELECTION: Duration = Duration::from_secs(60);

fn group() -> Group {
    Stream::new("orders").group("billing").min_idle(Duration::from_secs(1))
}

pub(crate) async fn subscribe(broker: &Streams) -> Result<Box<dyn Subscription>, SubscribeErrorKind> {
    let request = steadfast_core::Subscribe {
        source: group().into(),
        consumer: "test".into(),
        max_in_flight: 100.try_into().expect("not zero"),
        narrow: false,
        dead_letter: steadfast_core::Destination::queue("orders.dead"),
    };
    broker.subscribe(request).await.map_err(|error| {
        assert!(error.is_outage(), "only an outage is expected: {error}");
        error.kind()
    })
}

/// As a supervisor does: again, until there is a master.
async fn subscribe_again(broker: &Streams) -> Box<dyn Subscription> {
    let start = Instant::now();
    loop {
        match subscribe(broker).await {
            Ok(subscription) => return subscription,
            Err(kind) => assert!(start.elapsed() < ELECTION, "no master within {ELECTION:?}: {kind:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn publish(broker: &Streams, names: impl Iterator<Item = u32>) {
    let publisher = broker.publisher().await.expect("connects");
    for n in names {
        let message = Outgoing::new("orders", Bytes::from(n.to_string()));
        publisher.send(message).await.expect("published");
    }
}

/// Waits until the replica has all that was written before.
fn replicated(master: &Redis) {
    // replication has one order: what the replica has of this it has of all before
    let known = master.cli(&["EVAL", "redis.call('SET', 'mark', '1') return 1", "0"]).expect("written");
    assert_eq!(known.trim(), "1");
    let start = Instant::now();
    loop {
        let info = master.cli(&["INFO", "replication"]).expect("answers");
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let ours = field("master_repl_offset:").expect("told");
        let replica = field("slave0:").expect("a replica");
        if replica.split(',').any(|part| part.trim() == format!("offset={}", ours.trim())) {
            return;
        }
        assert!(start.elapsed() < ELECTION, "the replica does not follow: {info}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the subscription ends with; what was read ahead may still come before.
pub(crate) async fn end(subscription: &mut dyn Subscription) -> SubscribeError {
    let room = 100.try_into().expect("not zero");
    let ended = async {
        loop {
            let mut batch = Vec::new();
            if let Err(error) = poll_fn(|cx| subscription.poll_next(cx, room, &mut batch)).await {
                return error;
            }
        }
    };
    tokio::time::timeout(ELECTION, ended).await.expect("ends")
}

/// Twenty published, five done, five held, then `change`: the old subscription ends as an outage, and what was not done
/// comes from the new master, once.
async fn survives(change: impl Fn(&Sentinels)) {
    let sentinels = Sentinels::start().expect("starts");
    let broker: Arc<Streams> = connect(&sentinels.url()).await.expect("connects");
    let mut subscription = subscribe(&broker).await.expect("subscribes");
    publish(&broker, 0..20).await;
    let done = many(&mut *subscription, 5).await;
    ack(&*subscription, done).await;
    let held = many(&mut *subscription, 5).await;
    let before = sentinels.master().expect("a master");
    let port = before.port();
    replicated(before);

    change(&sentinels);

    let error = end(&mut *subscription).await;
    assert!(error.is_outage(), "{error}");
    drop((held, subscription));
    let mut subscription = subscribe_again(&broker).await;
    assert_ne!(sentinels.master().expect("a master").port(), port);
    publish(&broker, 20..25).await;
    let left: BTreeSet<u32> = (5..25).collect();
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    while seen != left {
        for delivery in next(&mut *subscription, 100).await.expect("delivers") {
            let n: u32 = std::str::from_utf8(body(&delivery)).expect("text").parse().expect("a number");
            assert!(left.contains(&n), "{n} was done before");
            assert!(seen.insert(n), "{n} twice from one master");
            all.push(delivery);
        }
    }
    ack(&*subscription, all).await;
    assert_eq!(broker.backlog(&group().into()).await, Some(0));
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_dies_is_replaced() {
    if skipped_on_cluster(WHY) {
        return;
    }
    survives(|sentinels| sentinels.master().expect("a master").kill9().expect("killed")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_becomes_a_replica_is_left() {
    if skipped_on_cluster(WHY) {
        return;
    }
    survives(|sentinels| sentinels.fail_over().expect("begun")).await;
}

#[tokio::test]
async fn dead_sentinels_cost_nothing_and_a_wrong_name_is_told() {
    if skipped_on_cluster(WHY) {
        return;
    }
    let sentinels = Sentinels::start().expect("starts");
    sentinels.kill_first_sentinel().expect("killed");
    connect(&sentinels.url()).await.expect("two are enough");
    let wrong = format!("redis+sentinel://{}/nobody", sentinels.hosts());
    let error = connect(&wrong).await.map(drop).expect_err("no such master");
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(source.contains("nobody"), "{error}: {source}");
}

#[tokio::test]
async fn sentinels_with_a_password_of_their_own_are_given_it() {
    let sentinels = Sentinels::start().expect("starts");
    sentinels.demand("watch", "s3@cret").expect("set");
    let error = connect(&sentinels.url()).await.map(drop).expect_err("they want a password");
    assert_eq!(error.kind(), steadfast_core::ConnectErrorKind::Refused, "{error}");
    let url = format!("{}?sentinel_user=watch&sentinel_password=s3%40cret", sentinels.url());
    connect(&url).await.expect("connects");
}
