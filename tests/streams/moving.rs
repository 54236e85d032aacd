//! Slots that move from node to node, and masters that replicas take over from, while streams are read and written.

use std::time::Duration;

use steadfast::prelude::*;
use steadfast_streams::{Partitioned, connect};
use steadfast_testbed::{ClusterOptions, RedisCluster, unique};
use tokio::task::block_in_place;
use tokio::time::Instant;

use crate::load::Load;
use crate::rebalance::{PARTITIONS, endure};
use crate::support::{Bed, client};

/// The work that must go on after each move.
const AFTER_EACH: usize = 100;

fn start() -> RedisCluster {
    RedisCluster::start(&ClusterOptions::new()).expect("starts")
}

fn load() -> Load {
    let stream = unique("orders");
    let dead = format!("{stream}.dead");
    Load::new(stream, dead)
}

/// A tree that may not restart for anything but an outage.
async fn consume(cluster: &RedisCluster, load: &Load) -> Tree {
    let broker = steadfast::connect(&cluster.url()).await.expect("connects");
    let none = RestartIntensity::new(0, Duration::from_secs(3600));
    let supervisor = Supervisor::new("tree").intensity(none).consumer(load.consumer("billing"));
    let tree = supervisor.start(broker).await.expect("starts");
    tree.until_ready().await.expect("ready");
    tree
}

/// The other nodes, each twice, beginning with the one after the key's own.
fn tour(cluster: &RedisCluster, key: &str) -> Vec<usize> {
    let (first, nodes) = (cluster.node_of(key).expect("answers"), cluster.nodes().len());
    (1..=2 * nodes).map(|step| (first + step) % nodes).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_moves_under_load_loses_nothing_and_goes_on_where_it_is() {
    let cluster = block_in_place(start);
    let load = load();
    let broker = steadfast::connect(&cluster.url()).await.expect("connects");
    let tree = consume(&cluster, &load).await;
    let publishing = load.publish(broker);
    load.until_done(AFTER_EACH).await;
    let tour = tour(&cluster, &load.stream);
    for to in &tour {
        block_in_place(|| {
            let moving = cluster.begin_move(&load.stream, *to).expect("begins");
            // one key after the other: each command meets every state that there is
            while moving.migrate(1).expect("moves") > 0 {}
            moving.finish().expect("ends");
        });
        assert_eq!(cluster.node_of(&load.stream).expect("answers"), *to);
        let moved = Instant::now();
        load.until_done(load.count() + AFTER_EACH).await;
        println!("worked {:?} after a move", load.done_after(moved).await - moved);
    }
    tree.until_ready().await.expect("ready");
    let mut raw = client(&cluster.url());
    load.close(&mut *raw, tour.len()).await;
    publishing.await.expect("publishes");
    tree.drain().await.expect("drains");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_for_later_moves_along_and_comes_when_it_is_due() {
    const ALL: u64 = 300;
    let cluster = block_in_place(start);
    let load = load();
    let broker = connect(&cluster.url()).await.expect("connects");
    let tree = consume(&cluster, &load).await;
    let mut due = Vec::new();
    for id in 1..=ALL {
        let after = Duration::from_millis(1_000 + id * 7_919 % 2_000);
        due.push((id, Instant::now() + after));
        load.publish_after(&broker, id, after).await;
    }
    let tour = tour(&cluster, &load.stream);
    for to in &tour {
        block_in_place(|| cluster.move_slot(&load.stream, *to).expect("moves"));
        // some become due wherever it is
        load.until_done((load.count() + 20).min(200)).await;
    }
    // all but those that die
    load.until_done(270).await;
    for (id, due) in due {
        if let Some(at) = load.done_at(id) {
            assert!(at >= due, "{id} came {:?} early", due - at);
        }
    }
    let mut raw = client(&cluster.url());
    load.close(&mut *raw, tour.len()).await;
    tree.drain().await.expect("drains");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_half_way_holds_up_what_needs_both_halves_and_loses_nothing() {
    let cluster = block_in_place(start);
    let load = load();
    let broker = connect(&cluster.url()).await.expect("connects");
    let publisher = broker.publisher().await.expect("publishes");
    let tree = consume(&cluster, &load).await;
    load.publish_these(&*publisher, 1..=20).await;
    load.until_done(18).await;
    // one that waits, so that the set of those that wait is there to be moved
    load.publish_after(&broker, 21, Duration::from_secs(4)).await;
    let from = cluster.node_of(&load.stream).expect("answers");
    let (there, back) = ((from + 1) % 3, from);

    // the set has gone, and the stream has not: what needs no retry goes on
    let moving = cluster.begin_move(&load.stream, there).expect("begins");
    moving.migrate_key(&load.group().delay_key()).expect("moves");
    let (smooth, rough): (Vec<u64>, Vec<u64>) = (22..=40).partition(|id| id % 5 > 1);
    load.publish_these(&*publisher, smooth.into_iter()).await;
    load.until_done(30).await;
    load.publish_these(&*publisher, rough.into_iter()).await;
    moving.finish().expect("ends");
    load.until_done(35).await;

    // the stream has gone, and the set has not: the reader finds it where it is
    load.publish_after(&broker, 41, Duration::from_secs(4)).await;
    let moving = cluster.begin_move(&load.stream, back).expect("begins");
    moving.migrate_key(&load.stream).expect("moves");
    let (smooth, rough): (Vec<u64>, Vec<u64>) = (42..=60).partition(|id| id % 5 > 1);
    load.publish_these(&*publisher, smooth.into_iter()).await;
    load.until_done(35 + 12).await;
    load.publish_these(&*publisher, rough.into_iter()).await;
    moving.finish().expect("ends");
    load.until_done(54).await;

    tree.until_ready().await.expect("ready");
    let mut raw = client(&cluster.url());
    load.close(&mut *raw, 2).await;
    tree.drain().await.expect("drains");
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_move_under_load_keep_their_order_and_lose_nothing() {
    let cluster = block_in_place(start);
    let bed = Bed::at(&cluster.url()).await;
    let streams: Vec<String> = Partitioned::new(&*bed.stream, PARTITIONS).streams().take(4).collect();
    let moves = streams.iter().map(|stream| {
        || {
            let to = (cluster.node_of(stream).expect("answers") + 1) % 3;
            let moving = cluster.begin_move(stream, to).expect("begins");
            while moving.migrate(1).expect("moves") > 0 {}
            moving.finish().expect("ends");
        }
    });
    endure(&cluster.url(), bed, moves).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_takes_over_from_its_master_under_load_loses_nothing() {
    let mut cluster = block_in_place(start);
    let load = load();
    let master = cluster.node_of(&load.stream).expect("answers");
    let replica = block_in_place(|| cluster.add_replica(master).expect("starts"));
    let broker = steadfast::connect(&cluster.url()).await.expect("connects");
    let tree = consume(&cluster, &load).await;
    let publishing = load.publish(broker);
    load.until_done(AFTER_EACH).await;
    for to in [replica, master] {
        block_in_place(|| cluster.fail_over(to).expect("takes over"));
        let taken = Instant::now();
        load.until_done(load.count() + AFTER_EACH).await;
        println!("worked {:?} after another master was there", load.done_after(taken).await - taken);
    }
    tree.until_ready().await.expect("ready");
    let mut raw = client(&cluster.url());
    load.close(&mut *raw, 2).await;
    publishing.await.expect("publishes");
    tree.drain().await.expect("drains");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_takes_over_from_a_master_that_died() {
    let mut cluster = block_in_place(start);
    let load = load();
    let master = cluster.node_of(&load.stream).expect("answers");
    let replica = block_in_place(|| cluster.add_replica(master).expect("starts"));
    let broker = steadfast::connect(&cluster.url()).await.expect("connects");
    let publisher = broker.publisher().await.expect("publishes");
    let tree = consume(&cluster, &load).await;
    load.publish_these(&*publisher, 1..=20).await;
    load.until_done(18).await;
    // a master does not wait for its replica, and sends a new one nothing for up to a second
    block_in_place(|| cluster.until_replicated(master, replica).expect("replicates"));
    block_in_place(|| cluster.kill9(master).expect("kills"));
    // until the others have elected the replica nobody takes it
    load.publish_these(&*publisher, 21..=40).await;
    load.until_done(36).await;
    assert_eq!(cluster.node_of(&load.stream).expect("answers"), replica);
    tree.until_ready().await.expect("ready");
    let mut raw = client(&cluster.url());
    load.close(&mut *raw, 1).await;
    tree.drain().await.expect("drains");
    broker.close().await;
}
