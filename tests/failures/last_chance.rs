//! `on_dead`: told before the dead letter is stored, and unable to lose it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use steadfast::prelude::*;
use steadfast::{EventKind, known};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::rig::{PATIENCE, Rig};

#[derive(Serialize, Deserialize, Message)]
struct Charge {
    order: u32,
}

/// Undoes a charge. To the queue that its dead letters have beside them.
#[derive(Serialize, Deserialize, Message)]
struct Undo {
    order: u32,
}

#[derive(Handler)]
#[handler(Charge)]
struct Billing {
    undo_to: String,
    told: Arc<watch::Sender<u32>>,
    /// Dead letters that were there when it was told.
    charged: Arc<AtomicU32>,
}

impl Handle<Charge> for Billing {
    async fn handle(&self, charge: Charge, _: &Context) -> Result<(), Failure> {
        self.charged.fetch_add(1, Ordering::Relaxed);
        Err(Failure::retry(format!("order {} was refused", charge.order)).class("refused"))
    }

    async fn on_dead(&self, charge: Charge, failure: &Failure, cx: &Context) -> Result<(), Failure> {
        assert_eq!((failure.class_name(), cx.attempt()), (Some("refused"), 2));
        cx.publish(Envelope::new(&Undo { order: charge.order }).to(self.undo_to.as_str())).await?;
        self.told.send_modify(|told| *told += 1);
        match charge.order {
            0 => Ok(()),
            1 => Err(Failure::reject("the post office is closed")),
            _ => panic!("told to panic"),
        }
    }
}

async fn told_and_kept(rig: Rig) {
    let undo_to = format!("{}.undo", rig.source.name());
    rig.broker.declare(&Source::queue(undo_to.as_str())).await.expect("declares");
    let (told, charged) = (Arc::new(watch::channel(0).0), Arc::new(AtomicU32::new(0)));
    let factory = {
        let (undo_to, told, charged) = (undo_to.clone(), Arc::clone(&told), Arc::clone(&charged));
        move || Billing { undo_to: undo_to.clone(), told: Arc::clone(&told), charged: Arc::clone(&charged) }
    };
    let consumer = Consumer::new("billing", rig.source.clone())
        .handler(factory)
        .retry(Retry::fixed(50.millis()).max_attempts(2));
    let tree = Supervisor::new("shop").consumer(consumer).start(rig.connect().await).await.expect("starts");
    let mut events = tree.monitor().events();
    rig.publish((0..3).map(|order| Charge { order })).await;
    timeout(PATIENCE, told.subscribe().wait_for(|told| *told == 3)).await.expect("in time").expect("is told");
    let panicked = async { while events.recv().await.expect("events").what != EventKind::HandlerReplaced {} };
    timeout(PATIENCE, panicked).await.expect("a fresh handler takes its place");
    tree.drain().await.expect("drains");

    assert_eq!(charged.load(Ordering::Relaxed), 6, "two attempts each");
    assert_eq!(rig.left().await, 0);
    assert_eq!(rig.letters(&undo_to).await.len(), 3);
    let letters = rig.letters(&rig.dead()).await;
    let mut failed: Vec<_> = letters
        .iter()
        .map(|letter| {
            assert_eq!(
                (letter.reason(), letter.error().map(|error| error.contains("was refused"))),
                (Some("exhausted"), Some(true))
            );
            letter.message.headers.text(known::ON_DEAD_ERROR).expect("is text").map(str::to_owned)
        })
        .collect();
    failed.sort();
    assert_eq!(
        failed,
        [None, Some("the post office is closed".to_owned()), Some("told to panic".to_owned())]
    );
}

#[tokio::test]
async fn quorum_the_last_chance_is_told_and_loses_nothing() {
    told_and_kept(Rig::quorum().await).await;
}

#[tokio::test]
async fn redis_the_last_chance_is_told_and_loses_nothing() {
    told_and_kept(Rig::redis().await).await;
}

#[tokio::test]
async fn embedded_the_last_chance_is_told_and_loses_nothing() {
    told_and_kept(Rig::embedded().await).await;
}
