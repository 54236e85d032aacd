//! Nodes of a cluster that are lost and come back, and whom that concerns.

use std::sync::Arc;
use std::time::Duration;

use steadfast::prelude::*;
use steadfast_core::{Event, EventKind, Health};
use steadfast_streams::{Options, connect_with};
use steadfast_testbed::{Append, ClusterOptions, RedisCluster, RedisOptions};
use tokio::sync::broadcast::Receiver;
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::{Instant, timeout};

use crate::load::{Load, PATIENCE};
use crate::support::client;

/// How long a node may take to answer, so that one that is halted is found out soon.
const ANSWER: Duration = Duration::from_secs(1);
const NAMES: [&str; 3] = ["first", "second", "third"];
/// The node that is lost.
const LOST: usize = 1;

/// A stream on each of three nodes, with its dead letters beside it, all under one tree.
struct Stage {
    cluster: RedisCluster,
    tree: Tree,
    events: Receiver<Event>,
    loads: Vec<Load>,
    publishing: Vec<JoinHandle<()>>,
}

impl Stage {
    async fn open(full_coverage: bool) -> Self {
        let node = RedisOptions::new().append(Append::Always);
        let options = ClusterOptions::new().node(node).full_coverage(full_coverage);
        let cluster = block_in_place(|| RedisCluster::start(&options).expect("starts"));
        let loads: Vec<Load> = (0..NAMES.len())
            .map(|node| {
                let stream = cluster.unique_on(node, "orders").expect("answers");
                let dead = format!("{{{stream}}}.dead");
                Load::new(stream, dead)
            })
            .collect();
        let supervisor = loads.iter().zip(NAMES).fold(
            Supervisor::new("tree").intensity(RestartIntensity::new(0, Duration::from_secs(3600))),
            |supervisor, (load, name)| supervisor.consumer(load.consumer(name)),
        );
        let tree = supervisor.start(broker(&cluster).await).await.expect("starts");
        tree.until_ready().await.expect("ready");
        let events = tree.events();
        let mut publishing = Vec::new();
        for load in &loads {
            publishing.push(load.publish(broker(&cluster).await));
            load.until_done(50).await;
        }
        Self { cluster, tree, events, loads, publishing }
    }

    /// The next event of this child that is wanted; and that no other child had one before, if they are to be left alone.
    async fn until(&mut self, child: &str, alone: bool, wanted: impl Fn(&EventKind) -> bool) -> EventKind {
        let found = async {
            loop {
                let event = self.events.recv().await.expect("the tree is here");
                if event.path.ends_with(child) && wanted(&event.what) {
                    return event.what;
                }
                assert!(!alone || event.path.ends_with(child), "{event:?}");
            }
        };
        timeout(PATIENCE, found).await.expect("an event")
    }

    async fn until_health(&self, wanted: impl Fn(&Health) -> bool) -> Health {
        let start = Instant::now();
        loop {
            let health = self.tree.health();
            if wanted(&health) {
                return health;
            }
            assert!(start.elapsed() < PATIENCE, "{health}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How long it took from now on until this load goes on.
    async fn works_again(&self, load: usize) -> Duration {
        let back = Instant::now();
        self.loads[load].done_after(back).await - back
    }

    /// The longest wait that this child was told so far; nothing has happened to any other.
    fn longest_wait(&mut self, child: &str) -> Duration {
        let mut longest = Duration::ZERO;
        while let Ok(event) = self.events.try_recv() {
            assert!(event.path.ends_with(child), "{event:?}");
            if let EventKind::BackingOff { after, .. } = event.what {
                longest = longest.max(after);
            }
        }
        longest
    }

    async fn close(self) {
        self.tree.until_ready().await.expect("ready");
        let mut raw = client(&self.cluster.url());
        for load in self.loads {
            load.close(&mut *raw, 1).await;
        }
        for publishing in self.publishing {
            publishing.await.expect("publishes");
        }
        self.tree.drain().await.expect("drains");
    }
}

async fn broker(cluster: &RedisCluster) -> Arc<dyn Broker> {
    let options = Options::new(cluster.url()).connect_timeout(ANSWER).command_timeout(ANSWER);
    connect_with(options.publish_deadline(ANSWER)).await.expect("connects")
}

fn failed(what: &EventKind) -> bool {
    matches!(what, EventKind::Failed { outage: true, .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_is_an_outage_of_its_own_streams_only() {
    let mut stage = Stage::open(false).await;
    block_in_place(|| stage.cluster.kill9(LOST).expect("kills"));
    stage.until(NAMES[LOST], true, failed).await;
    stage.until_health(|health| !health.ready).await;
    // those of the other nodes go on as ever, long enough for the other nodes to have given the dead one up
    for load in [0, 2] {
        stage.loads[load].until_done(stage.loads[load].count() + 1_000).await;
    }
    let health = stage.tree.health();
    assert!(health.live && !health.ready && health.why.len() == 1, "{health}");
    assert!(health.why[0].starts_with("tree/second: broker unreachable"), "{health}");

    block_in_place(|| stage.cluster.restart(LOST).expect("restarts"));
    let took = stage.works_again(LOST).await;
    let wait = stage.longest_wait(NAMES[LOST]);
    println!("worked {took:?} after the node was back; the longest wait was {wait:?}");
    assert!(took <= wait + Duration::from_secs(1), "{took:?} with waits of {wait:?}");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stands_still_is_an_outage_until_it_goes_on() {
    let mut stage = Stage::open(false).await;
    block_in_place(|| stage.cluster.nodes()[LOST].pause().expect("halts"));
    stage.until(NAMES[LOST], true, failed).await;
    let health = stage.until_health(|health| !health.ready).await;
    assert!(health.why.len() == 1 && health.why[0].starts_with("tree/second: "), "{health}");
    for load in [0, 2] {
        stage.loads[load].until_done(stage.loads[load].count() + 200).await;
    }
    block_in_place(|| stage.cluster.nodes()[LOST].resume().expect("goes on"));
    let took = stage.works_again(LOST).await;
    println!("worked {took:?} after the node went on");
    stage.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_wants_all_of_its_slots_is_away_as_a_whole_until_they_are_back() {
    let mut stage = Stage::open(true).await;
    block_in_place(|| stage.cluster.kill9(LOST).expect("kills"));
    stage.until(NAMES[0], false, failed).await;
    stage.until_health(|health| health.why.len() == NAMES.len()).await;
    block_in_place(|| stage.cluster.restart(LOST).expect("restarts"));
    for load in 0..NAMES.len() {
        let took = stage.works_again(load).await;
        println!("{} worked {took:?} after the cluster was well", NAMES[load]);
    }
    stage.close().await;
}
