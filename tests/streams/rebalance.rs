//! Members of a partitioned group that come, go and are killed under load: each key in order, and nothing lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::{Value, cmd};
use serde::{Deserialize, Serialize};
use steadfast::prelude::*;
use steadfast_core::{Broker, Outgoing, Tree, known};
use steadfast_streams::{Partitioned, PartitionedGroup};
use steadfast_testbed::RedisOptions;
use tokio::task::JoinHandle;

use crate::child::Process;
use crate::partitions::{pending_in, shares};
use crate::support::{AsyncClient, Bed, Server};

pub(crate) const PARTITIONS: u16 = 8;
const KEYS: usize = 50;
const CHANGES: usize = 20;

/// How many messages of each key come one right after the other.
const BURST: u64 = 4;

/// How long a change, and what is left at the end, may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than the test: whoever takes a partition was given it.
const NEVER: Duration = Duration::from_secs(600);

/// How long a member that was killed keeps its partitions.
pub(crate) const SHORT: Duration = Duration::from_secs(1);

#[derive(Serialize, Deserialize, Message)]
#[message(name = "step")]
struct Step {
    key: String,
    number: u64,
}

/// What a member reads, in whichever process it is.
pub(crate) fn group(stream: &str, lease: Duration) -> PartitionedGroup {
    Partitioned::new(stream, PARTITIONS).group("billing").lease(lease)
}

/// Where members write down what they handle: a list for each key.
fn ledger(stream: &str, key: &str) -> String {
    format!("{stream}.ledger.{key}")
}

/// A member, on connections of its own.
pub(crate) async fn member(url: &str, stream: &str, lease: Duration) -> (Supervisor, Arc<dyn Broker>) {
    let broker = steadfast::connect(url).await.expect("connects");
    // a failed attempt would come back out of order
    let raw = AsyncClient::connect(url, PATIENCE).await;
    let lists = Arc::<str>::from(stream);
    let handle = move || {
        let (raw, lists) = (raw.clone(), Arc::clone(&lists));
        handler_fn(move |step: Step, _: Context| {
            let (mut raw, lists) = (raw.clone(), Arc::clone(&lists));
            async move {
                let list = ledger(&lists, &step.key);
                // the later of two that ran side by side would often be the first to be written down
                tokio::time::sleep(Duration::from_millis(4 - step.number % BURST)).await;
                cmd("RPUSH").arg(list).arg(step.number).query_async::<Value>(&mut raw).await?;
                // in which it may be killed
                tokio::time::sleep(Duration::from_millis(2)).await;
                Ok(())
            }
        })
    };
    let consumer = Consumer::new("billing", group(stream, lease)).handler(handle).concurrency(16);
    (Supervisor::new("member").consumer(consumer), broker)
}

/// Publishes to all keys, each in order, until it is told to stop; returns how many each key got.
fn publish(broker: Arc<dyn Broker>, stream: &str) -> (Arc<AtomicBool>, JoinHandle<u64>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, stream) = (Arc::clone(&stop), stream.to_owned());
    let task = tokio::spawn(async move {
        let publisher = broker.publisher().await.expect("publishes");
        let mut number = 0;
        while !stopped.load(Ordering::Acquire) {
            for number in number..number + BURST {
                let round = (0..KEYS).map(|key| publisher.send(step(&stream, &format!("key-{key}"), number)));
                for sent in join_all(round).await {
                    sent.expect("stored");
                }
            }
            number += BURST;
            // under load, and not above what one member can do
            tokio::time::sleep(Duration::from_millis(120)).await;
        }
        number
    });
    (stop, task)
}

fn step(stream: &str, key: &str, number: u64) -> Outgoing {
    let step = Step { key: key.to_owned(), number };
    let mut message = Outgoing::new(stream, serde_json::to_string(&step).expect("text"));
    message.headers.set(known::KEY, key);
    message.headers.set(known::TYPE, "step");
    message
}

/// The even division among so many.
fn even(members: usize) -> Vec<usize> {
    let partitions = usize::from(PARTITIONS);
    let mut shares: Vec<usize> =
        (0..members).map(|rank| partitions / members + usize::from(rank < partitions % members)).collect();
    shares.sort_unstable();
    shares
}

/// Waits until all partitions are divided evenly among so many, while messages are handled.
async fn until_even(bed: &Bed, lease: Duration, members: usize) {
    let start = Instant::now();
    loop {
        let shares = shares(bed, &group(&bed.stream, lease)).await;
        if shares == even(members) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{shares:?} among {members}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What was handled of each key, when all of it is and nothing is pending.
async fn handled(bed: &mut Bed, each: u64) -> Vec<Vec<u64>> {
    let start = Instant::now();
    loop {
        let lists = (0..KEYS).map(|key| ledger(&bed.stream, &format!("key-{key}"))).collect::<Vec<_>>();
        let lists: Vec<Vec<u64>> = lists.iter().map(|list| bed.raw(&["LRANGE", list, "0", "-1"])).collect();
        let distinct = |list: &Vec<u64>| list.iter().collect::<BTreeSet<_>>().len() as u64;
        let missing: u64 = lists.iter().map(|list| each - distinct(list)).sum();
        let pending = pending_in(bed, PARTITIONS);
        if missing == 0 && pending == 0 {
            return lists;
        }
        assert!(start.elapsed() < PATIENCE, "{missing} not handled, {pending} pending");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Those that were handled for the first time, in this order.
fn firsts(list: &[u64]) -> Vec<u64> {
    let mut seen = BTreeSet::new();
    list.iter().copied().filter(|number| seen.insert(*number)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_is_handled_in_order_and_once_through_twenty_members_that_come_and_go() {
    let server = Server::start(&RedisOptions::new());
    come_and_go(&server.url(), Bed::on(&server).await, CHANGES).await;
}

/// So many members join and leave under load: each key is handled in order, and each message once.
pub(crate) async fn come_and_go(url: &str, mut bed: Bed, changes: usize) {
    let start = || async {
        let (supervisor, broker) = member(url, &bed.stream, NEVER).await;
        supervisor.start(broker).await.expect("starts")
    };
    let mut members: Vec<Tree> = vec![start().await];
    until_even(&bed, NEVER, 1).await;
    let (stop, publishing) = publish(Arc::clone(&bed.broker) as _, &bed.stream);
    // up to four, down to one, and so on
    for change in 0..changes {
        if change % 6 < 3 {
            members.push(start().await);
        } else {
            members.remove(change % members.len()).drain().await.expect("drains");
        }
        until_even(&bed, NEVER, members.len()).await;
    }
    stop.store(true, Ordering::Release);
    let each = publishing.await.expect("publishes");
    let lists = handled(&mut bed, each).await;
    println!("{} steps of {KEYS} keys", each * KEYS as u64);
    for list in lists {
        assert_eq!(list, (0..each).collect::<Vec<_>>());
    }
    until_even(&bed, NEVER, members.len()).await;
    for member in members {
        member.drain().await.expect("drains");
    }
    assert!(shares(&bed, &group(&bed.stream, NEVER)).await.is_empty(), "given up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_is_handled_in_order_while_members_are_killed() {
    let server = Server::start(&RedisOptions::new());
    let mut bed = Bed::on(&server).await;
    let start = || Process::start("member", &server.url(), &bed.stream);
    let mut members: Vec<Process> = (0..3).map(|_| start()).collect();
    until_even(&bed, SHORT, 3).await;
    let (stop, publishing) = publish(Arc::clone(&bed.broker) as _, &bed.stream);
    for change in 0..CHANGES {
        if change % 2 == 0 {
            members.remove(change / 2 % members.len()).kill9();
        } else {
            members.push(start());
        }
        until_even(&bed, SHORT, members.len()).await;
    }
    stop.store(true, Ordering::Release);
    let each = publishing.await.expect("publishes");
    let lists = handled(&mut bed, each).await;
    let handled: u64 = lists.iter().map(|list| list.len() as u64).sum();
    let all = each * KEYS as u64;
    println!("{all} steps of {KEYS} keys, {} of them again", handled - all);
    for list in lists {
        assert_eq!(firsts(&list), (0..each).collect::<Vec<_>>(), "{list:?}");
    }
    until_even(&bed, SHORT, members.len()).await;
}
