//! The circuit breaker: what the handler depends on is down for a while.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use steadfast::prelude::*;
use steadfast::{CircuitBreaker, Event, EventKind, FailureClass, Stats};
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;

use crate::rig::{PATIENCE, Rig};

const THRESHOLD: u32 = 5;
const CONCURRENCY: usize = 8;
const FIRST: Duration = Duration::from_millis(200);

#[derive(Serialize, Deserialize, Message)]
struct Charge {
    order: u32,
}

/// What the handler depends on, and what it saw of it.
#[derive(Default)]
struct Bank(Mutex<Books>);

#[derive(Default)]
struct Books {
    down: bool,
    /// When it was called while it was down.
    refused: Vec<Instant>,
    /// Attempts that it took until an order was charged.
    charged: BTreeMap<u32, u32>,
    changed: watch::Sender<()>,
}

impl Bank {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().expect("whole")
    }

    fn charge(&self, order: u32, attempt: u32) -> Result<(), Failure> {
        let mut books = self.books();
        books.changed.send_replace(());
        if books.down {
            books.refused.push(Instant::now());
            return Err(Failure::retry("connection refused").class("bank-down"));
        }
        books.charged.insert(order, attempt);
        Ok(())
    }

    /// Few attempts were counted, and there was no call but a probe after the first `dense`, and none too soon after another.
    fn audit(&self, stats: &Stats, dense: usize) {
        let books = self.books();
        let soon = books.refused.windows(2).skip(dense).find(|pair| pair[1] - pair[0] < FIRST);
        assert_eq!(soon, None);
        assert_eq!(books.refused.len() as u64, stats.retried + stats.held, "{stats:?}");
        assert_eq!((stats.retried, stats.outages), (u64::from(THRESHOLD) - 1, 1), "counted before it opened");
        let again = books.charged.values().filter(|attempts| **attempts > 1).count();
        assert!(again < THRESHOLD as usize, "{again}");
        assert_eq!(stats.dead_total(), 0, "{stats:?}");
    }

    async fn until(&self, what: &str, reached: impl Fn(&Books) -> bool) {
        let mut changed = self.books().changed.subscribe();
        let wait = async {
            while !reached(&self.books()) {
                changed.changed().await.expect("the bank is here");
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| unreachable!("not in time: {what}"));
    }
}

async fn until(events: &mut broadcast::Receiver<Event>, is_it: impl Fn(&EventKind) -> bool) {
    let wait = async { while !is_it(&events.recv().await.expect("events").what) {} };
    timeout(PATIENCE, wait).await.expect("in time");
}

/// All messages are handled, none is dead, and while the bank is down it is asked by probes alone.
async fn rides_out_an_outage(rig: Rig) {
    let bank = Arc::new(Bank::default());
    let factory = {
        let bank = Arc::clone(&bank);
        move || {
            let bank = Arc::clone(&bank);
            handler_fn(move |charge: Charge, cx: Context| {
                std::future::ready(bank.charge(charge.order, cx.attempt()))
            })
        }
    };
    let consumer = Consumer::new("billing", rig.source.clone())
        .handler(factory)
        .concurrency(CONCURRENCY)
        .retry(Retry::fixed(50.millis()).max_attempts(2))
        .circuit_breaker(
            CircuitBreaker::on(FailureClass::tag("bank-down")).threshold(THRESHOLD).probes(FIRST..FIRST * 4),
        );
    let tree = Supervisor::new("shop").consumer(consumer).start(rig.connect().await).await.expect("starts");
    let mut events = tree.monitor().events();
    rig.publish((0..20).map(|order| Charge { order })).await;
    bank.until("all is well", |books| books.charged.len() == 20).await;

    bank.books().down = true;
    rig.publish((20..100).map(|order| Charge { order })).await;
    until(&mut events, |what| matches!(what, EventKind::CircuitOpened { .. })).await;
    let health = tree.health();
    assert!(health.live && !health.ready && health.to_string().contains("connection refused"), "{health}");
    // those that were in flight when it opened, and then probes
    let dense = THRESHOLD as usize + CONCURRENCY - 1;
    bank.until("probes", |books| books.refused.len() >= dense + 5).await;
    bank.books().down = false;
    until(&mut events, |what| matches!(what, EventKind::CircuitClosed { .. })).await;
    bank.until("the rest", |books| books.charged.len() == 100).await;
    assert!(tree.health().ready, "{}", tree.health());
    let stats = tree.child("billing").expect("is there").stats;
    tree.drain().await.expect("drains");

    bank.audit(&stats, dense);
    assert_eq!((rig.left().await, rig.letters(&rig.dead()).await.len()), (0, 0));
}

#[tokio::test]
async fn quorum_an_outage_of_the_dependency_burns_no_attempts() {
    rides_out_an_outage(Rig::quorum().await).await;
}

#[tokio::test]
async fn classic_an_outage_of_the_dependency_burns_no_attempts() {
    rides_out_an_outage(Rig::classic().await).await;
}

#[tokio::test]
async fn redis_an_outage_of_the_dependency_burns_no_attempts() {
    rides_out_an_outage(Rig::redis().await).await;
}

#[tokio::test]
async fn embedded_an_outage_of_the_dependency_burns_no_attempts() {
    rides_out_an_outage(Rig::embedded().await).await;
}
