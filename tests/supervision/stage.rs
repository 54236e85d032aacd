//! Two consumers of one tree, each with a queue of its own that is published to all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use steadfast::{Broker, Child, Consumer, DurationExt, RestartIntensity, Retry, Supervisor, Tree};
use steadfast_testbed::unique;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::ledger::{Ledger, Order, PATIENCE, Worker};
use crate::log::Log;
use crate::server::Server;

pub(crate) const VICTIM: &str = "victim";
pub(crate) const SIBLING: &str = "sibling";
/// Most deliveries of one consumer that may come again after a fault.
pub(crate) const IN_FLIGHT: usize = 8;

pub(crate) struct Stage {
    pub(crate) server: Arc<Server>,
    pub(crate) tree: Tree,
    pub(crate) log: Arc<Log>,
    pub(crate) victim: Queue,
    pub(crate) sibling: Queue,
    pub(crate) maker: Arc<Maker>,
    broker: Arc<dyn Broker>,
    /// Whether to publish more; held for writing, nobody publishes.
    load: Arc<RwLock<bool>>,
    publishers: JoinSet<()>,
}

#[derive(Clone)]
pub(crate) struct Queue {
    pub(crate) name: String,
    pub(crate) ledger: Arc<Ledger>,
}

/// Makes the victim's handlers, when it can and may.
pub(crate) struct Maker {
    pub(crate) fails: AtomicU32,
    pub(crate) gate: Semaphore,
}

impl Maker {
    fn new() -> Arc<Self> {
        Arc::new(Self { fails: AtomicU32::new(0), gate: Semaphore::new(1) })
    }

    async fn make(&self, ledger: Arc<Ledger>) -> Result<Worker, &'static str> {
        let _open = self.gate.acquire().await.map_err(|_| "the gate is gone")?;
        match self.fails.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |fails| fails.checked_sub(1)) {
            Ok(_) => Err("the ledger's database is away"),
            Err(_) => Ok(Worker(ledger)),
        }
    }
}

impl Stage {
    /// A tree that may restart `budget` times in all, at work and under load.
    pub(crate) async fn open(server: &Arc<Server>, budget: u32) -> Self {
        let queue = |name| Queue { name: unique(name), ledger: Arc::new(Ledger::new()) };
        let (victim, sibling) = (queue(VICTIM), queue(SIBLING));
        let maker = Maker::new();
        let broker = server.connect().await;
        let load = Arc::new(RwLock::new(true));
        let tree = Supervisor::new("tree")
            .intensity(RestartIntensity::new(budget, Duration::from_secs(3600)))
            .consumer(consumer(server, SIBLING, &sibling, Maker::new()))
            .start(server.connect().await)
            .await
            .expect("starts");
        let log = Log::of(&tree);
        tree.until_ready().await.expect("ready");
        let mut publishers = JoinSet::new();
        publishers.spawn(publish(Arc::clone(&broker), sibling.clone(), Arc::clone(&load)));
        sibling.ledger.until_handled(1).await;
        // last, so that the youngest connection is the one that it reads from
        let child = Child::consumer(consumer(server, VICTIM, &victim, Arc::clone(&maker)));
        tree.add("", child).await.expect("added");
        log.until(0, VICTIM, |what| *what == steadfast::EventKind::Running).await;
        publishers.spawn(publish(Arc::clone(&broker), victim.clone(), Arc::clone(&load)));
        victim.ledger.until_handled(20).await;
        Self { server: Arc::clone(server), tree, log, victim, sibling, maker, broker, load, publishers }
    }

    /// One message with an order to the victim's handler.
    pub(crate) async fn order(&self, order: Order) {
        let publisher = self.broker.publisher().await.expect("publishes");
        self.victim.ledger.publish(&*publisher, &self.victim.name, order).await;
    }

    /// Waits until the tree is not ready, and says this of it.
    pub(crate) async fn until_health(&self, why: &str) {
        let said = async {
            while !self.tree.health().to_string().contains(why) {
                // a trouble is not an event, and nothing else tells of it from outside
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, said).await.expect("the tree says so");
        assert!(!self.tree.health().ready);
    }

    /// Publishes no more until the answer is dropped, and waits until both queues are empty.
    pub(crate) async fn quiet(&self) -> OwnedRwLockWriteGuard<bool> {
        let quiet = Arc::clone(&self.load).write_owned().await;
        self.victim.ledger.settle(0).await;
        self.sibling.ledger.settle(0).await;
        quiet
    }

    /// Ends the load, waits for the rest of the work, and holds that nothing is lost and little was done twice.
    pub(crate) async fn close(mut self) {
        *self.load.write().await = false;
        while let Some(ended) = self.publishers.join_next().await {
            ended.expect("publishes to its end");
        }
        self.victim.ledger.settle(IN_FLIGHT).await;
        self.sibling.ledger.settle(IN_FLIGHT).await;
        assert!(self.tree.health().ready, "{}", self.tree.health());
        self.tree.drain().await.expect("drains");
        self.broker.close().await;
    }
}

fn consumer(server: &Server, name: &'static str, queue: &Queue, maker: Arc<Maker>) -> Consumer {
    let ledger = Arc::clone(&queue.ledger);
    Consumer::new(name, server.source(&queue.name))
        .try_handler(move || {
            let (maker, ledger) = (Arc::clone(&maker), Arc::clone(&ledger));
            async move { maker.make(ledger).await }
        })
        .concurrency(2)
        .max_in_flight(IN_FLIGHT)
        .retry(Retry::fixed(100.millis()).max_attempts(5))
}

async fn publish(broker: Arc<dyn Broker>, queue: Queue, load: Arc<RwLock<bool>>) {
    let publisher = broker.publisher().await.expect("publishes");
    loop {
        let more = load.read().await;
        if !*more {
            return;
        }
        queue.ledger.publish(&*publisher, &queue.name, Order::Work).await;
        drop(more);
        // the pace of the load
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
