//! A partitioned stream: its name, its publishers, and what one subscription holds of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::Value;
use steadfast_core::{
    Broker, Delivery, Headers, Incoming, Outgoing, PublishErrorKind, Requeue, SettleErrorKind, Source,
    SubscribeErrorKind, known,
};
use steadfast_streams::{FENCE, Partitioned, PartitionedGroup, Stream};

use crate::support::{Bed, DEADLINE, ack, body, many, nothing_for, one, parts, retry};

/// Longer than any test: what goes on does so without a lease having lapsed.
const NEVER: Duration = Duration::from_secs(600);

fn group(bed: &Bed, partitions: u16) -> PartitionedGroup {
    Partitioned::new(&*bed.stream, partitions).group("billing").lease(NEVER)
}

fn message(bed: &Bed, key: &str, content: &str) -> Outgoing {
    let mut message = Outgoing::new(&*bed.stream, content.to_owned());
    if !key.is_empty() {
        message.headers.set(known::KEY, key);
    }
    message
}

async fn publish(bed: &Bed, key: &str, content: &str) {
    let publisher = bed.broker.publisher().await.expect("publishes");
    publisher.send(message(bed, key, content)).await.expect("stored");
}

/// Keys that share a partition.
fn keys_of_one_partition(streams: &Partitioned, count: usize) -> Vec<String> {
    let keys = (0..).map(|n| format!("key-{n}")).filter(|key| streams.partition(key) == 1);
    keys.take(count).collect()
}

fn key(incoming: &Incoming) -> &str {
    incoming.headers.text(known::KEY).expect("text").expect("a key")
}

/// Pending entries in all partitions.
pub(crate) fn pending_in(bed: &mut Bed, partitions: u16) -> i64 {
    let streams = Partitioned::new(&*bed.stream, partitions);
    let of = |stream: String| match &bed.raw::<Vec<Value>>(&["XPENDING", &stream, "billing"])[..] {
        [Value::Int(count), ..] => *count,
        other => panic!("XPENDING said {other:?}"),
    };
    streams.streams().map(of).sum()
}

/// How many partitions each member has.
pub(crate) async fn shares(bed: &Bed, group: &PartitionedGroup) -> Vec<usize> {
    let mut shares: BTreeMap<String, usize> = BTreeMap::new();
    for owner in bed.broker.owners(group).await.expect("looks").into_iter().filter_map(|one| one.owner) {
        *shares.entry(owner.split('#').next().expect("a name").to_owned()).or_default() += 1;
    }
    let mut shares: Vec<usize> = shares.into_values().collect();
    shares.sort_unstable();
    shares
}

async fn until_shared(bed: &Bed, group: &PartitionedGroup, expected: &[usize]) {
    let start = Instant::now();
    loop {
        let shares = shares(bed, group).await;
        if shares == expected {
            return;
        }
        assert!(start.elapsed() < DEADLINE, "{shares:?}, and not {expected:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn another_number_of_partitions_is_refused_with_both_numbers() {
    let mut bed = Bed::shared().await;
    bed.broker.declare(&group(&bed, 8).into()).await.expect("declares");
    bed.broker.declare(&group(&bed, 8).into()).await.expect("the same again");
    let error = bed.broker.declare(&group(&bed, 16).into()).await.expect_err("not the same");
    assert_eq!(error.kind(), SubscribeErrorKind::Mismatch);
    assert!(error.to_string().contains("has 8 partitions, and 16 are"), "{error}");
    // who takes it for a stream is told
    let error =
        bed.try_subscribe(Stream::new(&*bed.stream).group("billing"), 1).await.err().expect("no stream");
    assert_eq!(error.kind(), SubscribeErrorKind::Mismatch, "{error}");
    // and who takes a stream for it
    bed.stream.push_str("-plain");
    bed.add(&["body", "x"]);
    let error = bed.broker.declare(&group(&bed, 8).into()).await.expect_err("a stream");
    assert_eq!(error.kind(), SubscribeErrorKind::Mismatch);
    assert!(error.to_string().contains("is a stream"), "{error}");
    let owned = bed.group().consumer_name("till-1");
    let error = bed.try_subscribe(group(&bed, 8).each(|_| owned), 1).await.err().expect("refused");
    assert_eq!(error.kind(), SubscribeErrorKind::Unsupported, "{error}");
}

#[tokio::test]
async fn a_publisher_that_knows_nothing_of_partitions_publishes_by_key() {
    let mut bed = Bed::shared().await;
    let streams = Partitioned::new(&*bed.stream, 8);
    bed.broker.declare(&group(&bed, 8).into()).await.expect("declares");
    // another process, as far as the server knows
    let other = Bed { stream: bed.stream.clone(), ..Bed::shared().await };
    for key in ["ann", "bob", "cleo"] {
        publish(&other, key, key).await;
        let later = message(&other, key, "later");
        other.broker.publish_after(later, Duration::ZERO).await.expect("stored");
    }
    for key in ["ann", "bob", "cleo"] {
        let stream = streams.stream(streams.partition(key));
        let entries: Vec<(String, BTreeMap<String, String>)> = bed.raw(&["XRANGE", &stream, "-", "+"]);
        assert!(entries.iter().any(|(_, fields)| fields["body"] == key), "{entries:?}");
        let delayed: usize = bed.raw(&["ZCARD", &Stream::new(stream).delay_key()]);
        assert!(delayed >= 1);
    }
    // side by side, before the first has found it out
    let third = Bed { stream: bed.stream.clone(), ..Bed::shared().await };
    let publisher = third.broker.publisher().await.expect("publishes");
    let first = (0..50).map(|n| publisher.send(message(&third, &format!("key-{n}"), "-")));
    join_all(first).await.into_iter().for_each(|sent| sent.expect("stored"));
    // those without a key go everywhere
    for _ in 0..8 {
        publish(&other, "", "-").await;
    }
    for stream in streams.streams() {
        assert!(bed.raw::<usize>(&["XLEN", &stream]) >= 1, "{stream}");
    }
    // what is no stream and not partitioned is refused as ever
    let name = format!("{}-text", bed.stream);
    bed.raw::<()>(&["SET", &name, "x"]);
    let publisher = other.broker.publisher().await.expect("publishes");
    let error = publisher.send(Outgoing::new(&*name, "x")).await.expect_err("no stream");
    assert_eq!(error.kind(), PublishErrorKind::Invalid);
}

#[tokio::test]
async fn of_each_key_one_is_handed_out_and_other_keys_go_on() {
    let mut bed = Bed::shared().await;
    let keys = keys_of_one_partition(&Partitioned::new(&*bed.stream, 4), 3);
    let mut subscription = bed.subscribe(group(&bed, 4), 100).await;
    for n in 0..3 {
        for key in &keys {
            publish(&bed, key, &n.to_string()).await;
        }
    }
    let mut held = many(&mut *subscription, 3).await;
    let distinct: BTreeSet<String> = held.iter().map(|one| key(one.incoming()).to_owned()).collect();
    assert_eq!(distinct.len(), 3);
    assert!(held.iter().all(|one| body(one) == b"0"));
    assert!(nothing_for(&mut *subscription, 10, Duration::from_millis(200)).await);
    // whichever is settled, the next of its key is next
    for n in 1..3 {
        for _ in 0..3 {
            let first = held.remove(0);
            let of = key(first.incoming()).to_owned();
            first.ack();
            let second = one(&mut *subscription).await;
            assert_eq!((key(second.incoming()), body(&second)), (&*of, n.to_string().as_bytes()));
            held.push(second);
        }
    }
    ack(&*subscription, held).await;
    assert_eq!(pending_in(&mut bed, 4), 0);
}

#[tokio::test]
async fn what_goes_back_is_read_again_before_what_follows_it() {
    let mut bed = Bed::shared().await;
    let mut subscription = bed.subscribe(group(&bed, 1), 100).await;
    for n in 0..5 {
        publish(&bed, "ann", &n.to_string()).await;
        publish(&bed, "bob", &n.to_string()).await;
    }
    let [ann, bob] = <[Delivery; 2]>::try_from(many(&mut *subscription, 2).await).expect("two");
    assert_eq!((key(ann.incoming()), key(bob.incoming())), ("ann", "bob"));
    // and more comes while it is on its way
    ann.release();
    publish(&bed, "ann", "5").await;
    publish(&bed, "bob", "5").await;
    ack(&*subscription, vec![bob]).await;
    let mut order: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for _ in 0..11 {
        let delivery = one(&mut *subscription).await;
        order.entry(key(delivery.incoming()).to_owned()).or_default().extend(body(&delivery));
        ack(&*subscription, vec![delivery]).await;
    }
    assert_eq!((&order["ann"][..], &order["bob"][..]), (&b"012345"[..], &b"12345"[..]));
    assert_eq!(pending_in(&mut bed, 1), 0);
}

#[tokio::test]
async fn a_partition_is_given_up_when_what_was_handed_out_is_settled_and_not_before() {
    let mut bed = Bed::shared().await;
    let mut old = bed.subscribe(group(&bed, 2), 100).await;
    until_shared(&bed, &group(&bed, 2), &[2]).await;
    let streams = Partitioned::new(&*bed.stream, 2);
    let keys: Vec<String> = (0..2).map(|partition| key_of(&streams, partition)).collect();
    for n in 0..3 {
        for key in &keys {
            publish(&bed, key, &n.to_string()).await;
        }
    }
    let held = many(&mut *old, 2).await;
    let fence = |delivery: &Delivery| delivery.incoming().headers.int(FENCE).expect("a number");
    assert!(held.iter().all(|one| fence(one) == Some(1)));
    let mut new = bed.subscribe(group(&bed, 2), 100).await;
    // it has joined, and is due one: it gets it when that is settled
    assert!(nothing_for(&mut *new, 10, Duration::from_secs(2)).await);
    assert_eq!(shares(&bed, &group(&bed, 2)).await, [2]);
    ack(&*old, held).await;
    until_shared(&bed, &group(&bed, 2), &[1, 1]).await;
    for n in 1..3 {
        let next = one(&mut *new).await;
        assert_eq!((body(&next), fence(&next)), (n.to_string().as_bytes(), Some(2)));
        ack(&*new, vec![next]).await;
        let kept = one(&mut *old).await;
        assert_eq!((body(&kept), fence(&kept)), (n.to_string().as_bytes(), Some(1)));
        ack(&*old, vec![kept]).await;
    }
    // all of it again for the one that stays
    new.close().await.expect("closes");
    until_shared(&bed, &group(&bed, 2), &[2]).await;
    old.close().await.expect("closes");
    assert_eq!(shares(&bed, &group(&bed, 2)).await, [0; 0]);
    assert_eq!(pending_in(&mut bed, 2), 0);
}

#[tokio::test]
async fn whoever_lost_its_lease_settles_nothing_and_the_successor_has_it_all_in_order() {
    let mut bed = Bed::shared().await;
    let mut old = bed.subscribe(group(&bed, 1), 100).await;
    for n in 0..3 {
        publish(&bed, "ann", &n.to_string()).await;
    }
    let (late, token) = parts(one(&mut *old).await);
    let settler = old.settler();
    // as if it had stood still until its lease had lapsed, and another had taken it
    let streams = Partitioned::new(&*bed.stream, 1);
    let lease = format!("{{{}}}:lease:billing", streams.stream(0));
    bed.raw::<()>(&["SET", &lease, "another#2"]);
    let other = Bed { stream: bed.stream.clone(), ..Bed::shared().await };
    let mut new = other.subscribe(group(&other, 1), 100).await;
    bed.raw::<()>(&["DEL", &lease]);
    old.close().await.expect("closes");
    let mut first = Some(one(&mut *new).await);
    let again = Requeue { after: Duration::ZERO, headers: Headers::new() };
    let error = settler.requeue(&late, token, &again).await.expect_err("another's");
    assert_eq!(error.kind(), SettleErrorKind::Gone);
    settler.ack(token);
    for n in 0..3 {
        let next = match first.take() {
            Some(first) => first,
            None => one(&mut *new).await,
        };
        assert_eq!(body(&next), n.to_string().as_bytes());
        ack(&*new, vec![next]).await;
    }
    assert_eq!((bed.raw::<usize>(&["XLEN", &streams.stream(0)]), pending_in(&mut bed, 1)), (3, 0));
}

#[tokio::test]
async fn all_partitions_are_looked_at_as_one() {
    let mut bed = Bed::shared().await;
    let mut subscription = bed.subscribe(group(&bed, 4), 100).await;
    for n in 0..20 {
        publish(&bed, &format!("key-{n}"), "x").await;
    }
    let mut held = many(&mut *subscription, 20).await;
    retry(&*subscription.settler(), held.pop().expect("one"), NEVER).await;
    let operator = bed.broker.operator().expect("there");
    let looked = operator.inspect(&Source::queue(&*bed.stream).group("billing")).await.expect("looks");
    assert_eq!(
        (looked.length, looked.unsettled, looked.delayed),
        (Some(20), Some(19), Some(1)),
        "{looked:?}"
    );
    assert_eq!(
        looked.groups.iter().map(|group| (&*group.name, group.pending)).collect::<Vec<_>>(),
        [("billing", 19)]
    );
    assert_eq!(looked.groups[0].consumers.len(), 4);
    ack(&*subscription, held).await;
    assert_eq!(pending_in(&mut bed, 4), 0);
}

/// A key of this partition.
fn key_of(streams: &Partitioned, partition: u16) -> String {
    (0..1_000).map(|n| format!("key-{n}")).find(|key| streams.partition(key) == partition).expect("one")
}
