//! Three nodes, each with a part of the keys: connecting, the whole cycle, partitions, and what an operator does.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use redis::cmd;
use steadfast_core::{
    Broker, ConnectErrorKind, DeadLetter, Destination, Forward, Forwarded, Headers, Outgoing, Reason, Source,
    Walk,
};
use steadfast_streams::{HeldBack, Partitioned, Retention, connect, connect_lazy};
use steadfast_testbed::{ClusterOptions, RedisCluster, shared, unique};

use crate::protocols::whole_cycle;
use crate::rebalance::{PARTITIONS, come_and_go};
use crate::support::{Bed, ack, body, client, many, one, parts};

/// A cluster of the test's own, and a stream whose dead letters are on another node.
async fn bed() -> (RedisCluster, Bed) {
    let cluster = RedisCluster::start(&ClusterOptions::new()).expect("starts");
    let mut bed = Bed::at(&cluster.url()).await;
    let node = |key: &str| cluster.node_of(key).expect("answers");
    while node(&bed.stream) == node(&bed.dead()) {
        bed.stream = unique("orders");
    }
    (cluster, bed)
}

/// Dead letters of five messages, from the stream that gave them up.
async fn give_up_five(bed: &mut Bed) {
    let mut subscription = bed.subscribe(bed.group(), 10).await;
    for n in 0..5 {
        bed.add(&["body", &n.to_string()]);
        let (incoming, token) = parts(one(&mut *subscription).await);
        let mut headers = Headers::new();
        headers.set(steadfast_core::known::SOURCE, bed.stream.as_str());
        let letter = DeadLetter::from_headers(Reason::Rejected, headers);
        subscription.settler().dead_letter(&incoming, token, &letter).await.expect("stored");
    }
    subscription.close().await.expect("closes");
}

async fn bodies(walk: &dyn Walk) -> Vec<String> {
    let letters = walk.next(100).await.expect("reads");
    let text = |payload: &steadfast_core::Payload| match payload {
        steadfast_core::Payload::Body(body) => String::from_utf8(body.to_vec()).expect("text"),
        steadfast_core::Payload::Fields(fields) => panic!("flat fields: {fields:?}"),
    };
    letters.iter().map(|letter| text(&letter.message.payload)).collect()
}

#[tokio::test]
async fn one_node_in_the_url_is_enough_and_a_dead_one_costs_nothing() {
    let (cluster, bed) = bed().await;
    let [first, .., last] = cluster.nodes() else { panic!("three nodes") };
    // nobody listens on the port of a server that has gone
    let gone = RedisCluster::start(&ClusterOptions::new().nodes(1)).expect("starts");
    let hosts = gone.hosts();
    drop(gone);
    for hosts in [format!("127.0.0.1:{}", last.port()), format!("{hosts},127.0.0.1:{}", first.port())] {
        let broker = connect(&format!("redis+cluster://{hosts}")).await.expect("connects");
        assert!(broker.capabilities().server.contains(cluster.version()), "{:?}", broker.capabilities());
        let publisher = broker.publisher().await.expect("publishes");
        for place in [&bed.stream, &bed.dead()] {
            publisher.send(Outgoing::new(&**place, Bytes::from_static(b"x"))).await.expect("published");
        }
        broker.close().await;
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_url_is_said() {
    for url in [
        "redis+cluster://",
        "redis+cluster://:hunter2@",
        "redis+cluster://host:port",
        "redis+cluster://:hunter2@host:6379,host:port",
        "redis+cluster://:hunter2@host:6379/5",
    ] {
        let error = connect_lazy(url).map(drop).expect_err(url);
        assert_eq!(error.kind(), ConnectErrorKind::InvalidUrl, "{url}: {error}");
        assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
    }
    let one = shared::redis_url().replace("redis://", "redis+cluster://");
    let error = connect(&one).await.map(drop).expect_err("not a cluster");
    assert_eq!(error.kind(), ConnectErrorKind::InvalidUrl, "{error}");
    assert!(error.to_string().contains("no node of a cluster"), "{error}");
}

#[tokio::test]
async fn a_node_that_is_named_as_the_only_server_is_refused_with_the_way_out() {
    let cluster = RedisCluster::start(&ClusterOptions::new().nodes(1)).expect("starts");
    let error = connect(&cluster.nodes()[0].url()).await.map(drop).expect_err("a node");
    assert_eq!(error.kind(), ConnectErrorKind::InvalidUrl, "{error}");
    assert!(error.to_string().contains("redis+cluster://"), "{error}");
}

#[tokio::test]
async fn the_whole_cycle_with_dead_letters_on_another_node() {
    let (_cluster, mut bed) = bed().await;
    whole_cycle(&mut bed).await;
}

#[tokio::test]
async fn the_whole_cycle_with_dead_letters_beside_the_stream() {
    let (_cluster, mut bed) = bed().await;
    // what is in braces chooses the node
    bed.stream = format!("{{{}}}", bed.stream);
    whole_cycle(&mut bed).await;
}

#[tokio::test]
async fn the_whole_cycle_over_resp3() {
    let (cluster, bed) = bed().await;
    let mut other = Bed::at(&format!("{}/?protocol=resp3", cluster.url())).await;
    other.stream.clone_from(&bed.stream);
    whole_cycle(&mut other).await;
    let clients = cluster.nodes()[0].cli(&["CLIENT", "LIST"]).expect("lists");
    assert!(clients.lines().any(|client| client.contains("resp=3")), "{clients}");
}

#[tokio::test]
async fn a_trim_keeps_what_a_group_needs_wherever_the_stream_is() {
    let (cluster, mut bed) = bed().await;
    let retention = Retention::new().last(2);
    for node in 0..3 {
        bed.stream = cluster.unique_on(node, "orders").expect("answers");
        for n in 0..10 {
            bed.add(&["body", &n.to_string()]);
        }
        let mut subscription = bed.subscribe(bed.group(), 10).await;
        let mut read = many(&mut *subscription, 10).await;
        let held = read.split_off(5);
        ack(&*subscription, read).await;
        let trimmed = bed.broker.trim(&bed.stream, &retention).await.expect("trims");
        assert_eq!((trimmed.count, trimmed.held_back), (5, Some(HeldBack::Group("billing".into()))));
        ack(&*subscription, held).await;
        assert_eq!(bed.broker.trim(&bed.stream, &retention).await.expect("trims").count, 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_on_all_nodes_keep_their_order_while_members_come_and_go() {
    let (cluster, bed) = bed().await;
    let streams = Partitioned::new(&*bed.stream, PARTITIONS);
    let nodes: BTreeSet<usize> =
        streams.streams().map(|stream| cluster.node_of(&stream).expect("answers")).collect();
    assert_eq!(nodes.len(), 3, "the numbers of the partitions decide, and these differ enough");
    come_and_go(&cluster.url(), bed, 6).await;
}

#[tokio::test]
async fn an_operator_looks_walks_and_moves_letters_across_nodes() {
    let (_cluster, mut bed) = bed().await;
    give_up_five(&mut bed).await;
    let (stream, dead) = (bed.stream.clone(), bed.dead());
    let operator = bed.broker.operator().expect("has one");
    let source: Source = bed.group().into();
    let looked = operator.inspect(&source).await.expect("looks");
    assert_eq!((looked.length, looked.unsettled, looked.delayed), (Some(5), Some(0), Some(0)), "{looked:?}");
    assert_eq!(operator.inspect(&Source::queue(&*dead)).await.expect("looks").length, Some(5));

    let walk = operator.walk(&dead).await.expect("walks");
    assert!(!walk.atomic(), "two nodes are two steps");
    let letters = walk.next(100).await.expect("reads");
    assert_eq!((walk.total(), letters.len()), (5, 5));
    let forward = |to: &str| Forward {
        to: Destination::queue(to),
        restore: true,
        set: Headers::new(),
        payload: None,
        message_id: None,
    };
    let back = forward(&stream);
    assert_eq!(walk.forward(&letters[0], &back).await.expect("moves"), Forwarded::Moved);
    assert_eq!(walk.forward(&letters[0], &back).await.expect("looks"), Forwarded::Gone);
    assert!(walk.discard(letters[1].mark).await.expect("deletes"));
    assert!(!walk.discard(letters[1].mark).await.expect("looks"));
    // and within a node
    let parked = format!("{{{dead}}}.parked");
    assert_eq!(walk.forward(&letters[2], &forward(&parked)).await.expect("moves"), Forwarded::Moved);
    walk.close().await.expect("closes");
    assert_eq!(bodies(&*operator.walk(&dead).await.expect("walks")).await, ["3", "4"]);
    assert_eq!(bodies(&*operator.walk(&parked).await.expect("walks")).await, ["2"]);

    let mut subscription = bed.subscribe(bed.group(), 10).await;
    let again = one(&mut *subscription).await;
    assert_eq!((body(&again), again.incoming().attempt()), (&b"0"[..], Ok(1)));
    assert!(again.incoming().headers.get(steadfast_core::known::REASON).is_none(), "restored");
    let pending = operator.pending(&source, 10).await.expect("lists");
    assert_eq!(pending.len(), 1);
    ack(&*subscription, vec![again]).await;
    subscription.close().await.expect("closes");

    for place in [&stream, &dead, &parked] {
        operator.delete(&Source::queue(&**place)).await.expect("deletes");
        assert_eq!(bed.raw::<i64>(&["EXISTS", place]), 0);
    }
}

#[tokio::test]
async fn a_redrive_that_was_cut_short_between_two_nodes_keeps_the_letter() {
    let (cluster, mut bed) = bed().await;
    give_up_five(&mut bed).await;
    let operator = bed.broker.operator().expect("has one");
    let walk = operator.walk(&bed.dead()).await.expect("walks");
    let letters = walk.next(1).await.expect("reads");
    let to = cluster.node_of(&bed.stream).expect("answers");
    // the destination cannot take it
    cmd("CONFIG")
        .arg(&["SET", "maxmemory", "1"])
        .query::<()>(&mut *client(&cluster.nodes()[to].url()))
        .expect("sets");
    let back = Forward {
        to: Destination::queue(&*bed.stream),
        restore: true,
        set: Headers::new(),
        payload: None,
        message_id: None,
    };
    walk.forward(&letters[0], &back).await.expect_err("full");
    let left = tokio::time::timeout(Duration::from_secs(5), operator.walk(&bed.dead())).await;
    assert_eq!(bodies(&*left.expect("in time").expect("walks")).await.len(), 5, "the letter is where it was");
}
