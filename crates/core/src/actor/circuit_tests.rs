//! A consumer whose dependency goes away and comes back, over a scripted broker, under paused time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::*;
use crate::scripted::{Scripted, Told};
use crate::{
    CircuitBreaker, Consumer, Context, DurationExt, Failure, FailureClass, Message, Retry, Source,
    SubscribeErrorKind, handler_fn, known,
};

#[derive(Serialize, Deserialize)]
struct Call {}

impl Message for Call {
    const NAME: &'static str = "call";
}

/// What the handler depends on.
#[derive(Default)]
struct Bank {
    down: AtomicBool,
    calls: AtomicU32,
}

impl Bank {
    fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }

    fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }
}

fn consumer(bank: &Arc<Bank>) -> Consumer {
    let bank = Arc::clone(bank);
    let handler = move |_: Call, _: Context| {
        bank.calls.fetch_add(1, Ordering::Relaxed);
        let down = bank.down.load(Ordering::Relaxed);
        async move { if down { Err(Failure::retry("refused").class("bank-down")) } else { Ok(()) } }
    };
    Consumer::new("c", Source::queue("q"))
        .handler(move || handler_fn(handler.clone()))
        .retry(Retry::fixed(600.secs()).max_attempts(2))
        .circuit_breaker(
            CircuitBreaker::on(FailureClass::tag("bank-down")).threshold(3).probes(1.secs()..8.secs()),
        )
}

async fn start(broker: &Scripted, consumer: Consumer) -> Tree {
    let tree = Supervisor::new("s").consumer(consumer).start(Arc::new(broker.clone())).await.expect("starts");
    tree.until_ready().await.expect("ready");
    tree
}

/// How many copies were stored that count an attempt, and how many that do not.
fn copies(told: &[Told]) -> (usize, usize) {
    let counted = |told: &Told| match told {
        Told::Requeued(_, requeue) => Some(requeue.headers.get(known::RETRY_COUNT).is_some()),
        _ => None,
    };
    let all: Vec<_> = told.iter().filter_map(counted).collect();
    (all.iter().filter(|counted| **counted).count(), all.iter().filter(|counted| !**counted).count())
}

#[tokio::test(start_paused = true)]
async fn while_the_dependency_is_down_only_probes_are_made_and_none_is_charged() {
    let (broker, bank) = (Scripted::new(), Arc::new(Bank::default()));
    let tree = start(&broker, consumer(&bank)).await;
    let mut events = tree.monitor().events();
    bank.set_down(true);
    for _ in 0..20 {
        broker.body("{}");
    }
    broker.until(|told| copies(told) == (2, 1)).await;
    let opened = Instant::now();
    assert_eq!(bank.calls(), 3);
    let told = broker.until(|told| told.last() == Some(&Told::Narrowed(true))).await;
    let released = told.iter().filter(|told| matches!(told, Told::Released(_))).count();
    assert_eq!((released, broker.script().ready.len()), (17, 0), "what was taken goes back");
    let health = tree.health();
    assert!(health.live && !health.ready, "{health}");
    assert!(health.why[0].contains("what it depends on is down: 3 failures in a row: refused"), "{health}");
    for _ in 0..20 {
        broker.body("{}");
    }
    // probes after 1 s, then 2, 4, 8 and 8 s more
    for (probes, at) in [(1, 1), (2, 3), (3, 7), (4, 15), (5, 23)] {
        broker.until(|told| copies(told) == (2, 1 + probes)).await;
        assert_eq!(opened.elapsed().as_secs(), at);
        assert_eq!(bank.calls(), 3 + u32::try_from(probes).expect("few"));
    }
    bank.set_down(false);
    broker.until(|told| told.iter().filter(|told| matches!(told, Told::Acked(_))).count() == 15).await;
    assert_eq!(opened.elapsed().as_secs(), 31, "the next probe closes it, and the rest follows at once");
    assert!(tree.health().ready, "{}", tree.health());
    let stats = tree.child("c").expect("there").stats;
    assert_eq!((stats.retried, stats.held, stats.snoozed, stats.outages), (2, 6, 6, 1));
    assert_eq!((stats.dead_total(), stats.handled), (0, 15));
    let mut said = Vec::new();
    while let Ok(event) = events.try_recv() {
        said.push(event.what);
    }
    let opened = EventKind::CircuitOpened { failures: 3, why: "refused".to_owned(), probe_in: 1.secs() };
    assert!(said.contains(&opened), "{said:?}");
    assert!(said.contains(&EventKind::CircuitClosed { down: 31.secs(), probes: 6 }), "{said:?}");
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn where_giving_back_counts_what_was_taken_waits_here() {
    let (broker, bank) = (Scripted::new(), Arc::new(Bank::default()));
    broker.script().release_counts = true;
    let tree = start(&broker, consumer(&bank)).await;
    bank.set_down(true);
    for _ in 0..6 {
        broker.body("{}");
    }
    broker.until(|told| copies(told) == (2, 2)).await;
    assert_eq!(bank.calls(), 4, "the first probe is one that waited");
    assert!(!broker.told().iter().any(|told| matches!(told, Told::Released(_))));
    bank.set_down(false);
    broker.until(|told| told.contains(&Told::Acked(5)) && told.contains(&Told::Acked(6))).await;
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_outlives_the_subscription_and_silence_is_no_deafness() {
    let (broker, bank) = (Scripted::new(), Arc::new(Bank::default()));
    let breaker =
        CircuitBreaker::on(FailureClass::tag("bank-down")).threshold(1).probes(1.hours()..1.hours());
    let tree = start(&broker, consumer(&bank).circuit_breaker(breaker)).await;
    bank.set_down(true);
    broker.body("{}");
    broker.until(|told| copies(told) == (0, 1)).await;
    broker.script().backlog = Some(7);
    tree.restart("c").await.expect("restarts");
    broker.until(|told| told.iter().filter(|told| **told == Told::Subscribed).count() == 2).await;
    broker.body("{}");
    tokio::time::sleep(50.minutes()).await;
    assert_eq!(bank.calls(), 1, "no probe is due");
    assert!(!tree.health().ready);
    assert_eq!(tree.child("c").expect("there").stats.restarts, 0, "it is not taken for deaf");
    // the subscription's end is seen with the next probe, which then goes to another one
    broker.end(SubscribeErrorKind::Unreachable);
    bank.set_down(false);
    broker.until(|told| told.contains(&Told::Acked(2))).await;
    assert!(tree.health().ready, "{}", tree.health());
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_makes_way_for_another() {
    let (broker, bank) = (Scripted::new(), Arc::new(Bank::default()));
    let handler = {
        let bank = Arc::clone(&bank);
        move |_: Call, _: Context| {
            let call = bank.calls.fetch_add(1, Ordering::Relaxed);
            async move {
                match call {
                    0 => Err(Failure::retry("refused").class("bank-down")),
                    1 => std::future::pending().await,
                    _ => Ok(()),
                }
            }
        }
    };
    let breaker = CircuitBreaker::on(FailureClass::tag("bank-down")).threshold(1).probes(1.secs()..1.secs());
    let consumer = consumer(&bank).handler(move || handler_fn(handler.clone())).circuit_breaker(breaker);
    let tree = start(&broker, consumer).await;
    for _ in 0..3 {
        broker.body("{}");
    }
    broker.until(|told| copies(told) == (0, 1)).await;
    broker.body("{}");
    tokio::time::sleep(5.secs()).await;
    assert_eq!(bank.calls(), 2, "the probe hangs");
    broker.end(SubscribeErrorKind::Ended);
    tree.restart("c").await.expect("restarts");
    broker.body("{}");
    broker.until(|told| told.iter().any(|told| matches!(told, Told::Acked(_)))).await;
    tree.drain().await.expect("drains");
}

#[tokio::test(start_paused = true)]
async fn a_probe_waits_for_those_that_were_started_before_and_their_success_closes_nothing() {
    let (broker, bank) = (Scripted::new(), Arc::new(Bank::default()));
    broker.script().release_counts = true;
    let handler = {
        let bank = Arc::clone(&bank);
        move |_: Call, _: Context| {
            let call = bank.calls.fetch_add(1, Ordering::Relaxed);
            async move {
                match call {
                    0 => {
                        tokio::time::sleep(5.secs()).await;
                        Ok(())
                    }
                    1 | 2 => Err(Failure::retry("refused").class("bank-down")),
                    _ => Ok(()),
                }
            }
        }
    };
    let breaker = CircuitBreaker::on(FailureClass::tag("bank-down")).threshold(1).probes(1.secs()..1.secs());
    let consumer = consumer(&bank).handler(move || handler_fn(handler.clone())).circuit_breaker(breaker);
    let tree = start(&broker, consumer.concurrency(2)).await;
    broker.body("{}");
    broker.body("{}");
    broker.body("{}");
    broker.until(|told| copies(told) == (0, 1)).await;
    tokio::time::sleep(3.secs()).await;
    assert_eq!(bank.calls(), 2, "a probe runs with nothing beside it");
    broker.until(|told| told.contains(&Told::Acked(1))).await;
    assert!(!tree.health().ready, "what began before it opened says nothing about now");
    broker.until(|told| copies(told) == (0, 2)).await;
    assert_eq!(tree.child("c").expect("there").stats.outages, 1, "the probe was one");
    tree.drain().await.expect("drains");
}
