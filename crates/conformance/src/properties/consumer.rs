//! The whole path: a supervised consumer over the broker, from the subscription to the settlement.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use steadfast_core::{
    ChildStatus, Consumer, Context, Failure, Message, Outgoing, Payload, Reason, Retry, Supervisor, Tree,
    handler_fn, known,
};
use tokio::sync::watch;

use crate::message::same_payload;
use crate::report::Violation;
use crate::trial::Trial;

#[derive(Serialize, Deserialize)]
struct Order {
    nth: usize,
}

impl Message for Order {
    const NAME: &'static str = "conformance.order";
}

/// What the handler saw: how often each order came, and a signal at every change.
#[derive(Clone)]
struct Seen {
    times: Arc<Mutex<BTreeMap<usize, usize>>>,
    changed: Arc<watch::Sender<()>>,
}

impl Seen {
    fn new() -> Self {
        Self { times: Arc::default(), changed: Arc::new(watch::channel(()).0) }
    }

    fn note(&self, nth: usize) {
        *self.times.lock().unwrap_or_else(PoisonError::into_inner).entry(nth).or_default() += 1;
        self.changed.send_replace(());
    }

    fn times(&self) -> BTreeMap<usize, usize> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn orders(trial: &Trial<'_>, count: usize) -> Vec<Outgoing> {
    (0..count).map(|nth| order(trial, format!("{{\"nth\":{nth}}}"))).collect()
}

fn order(trial: &Trial<'_>, body: String) -> Outgoing {
    let mut message = Outgoing::new(trial.name(), body);
    message.message_type = Some(Order::NAME.to_owned());
    message.content_type = Some("application/json".to_owned());
    message
}

/// A tree with one consumer on a connection of its own; `takes` is how long an order takes.
async fn start(
    trial: &Trial<'_>,
    seen: &Seen,
    takes: Duration,
    answer: fn() -> Result<(), Failure>,
) -> Result<Tree, Violation> {
    let seen = seen.clone();
    let handler = move || {
        let seen = seen.clone();
        handler_fn(move |order: Order, _: Context| {
            let seen = seen.clone();
            async move {
                tokio::time::sleep(takes).await;
                seen.note(order.nth);
                answer()
            }
        })
    };
    let consumer = Consumer::new("consumer", trial.source())
        .handler(handler)
        .concurrency(4)
        .max_in_flight(20)
        .retry(Retry::fixed(Duration::from_millis(50)).max_attempts(ATTEMPTS))
        .dead_letter(trial.dead());
    let tree = Supervisor::new("conformance").consumer(consumer).start(trial.connect().await?);
    let tree = trial.within("starting the tree", tree).await?;
    trial.within("the consumer's start", tree.until_ready()).await?;
    Ok(tree)
}

const ATTEMPTS: u32 = 3;

/// Waits until the consumer has done `enough`.
async fn until(
    trial: &Trial<'_>,
    tree: &Tree,
    seen: &Seen,
    enough: impl Fn(&ChildStatus) -> bool,
) -> Result<(), Violation> {
    let mut changed = seen.changed.subscribe();
    let reached = async {
        loop {
            if tree.child("consumer").is_some_and(|status| enough(&status)) {
                return;
            }
            // what is counted after the handler, a dead letter for one, has no signal here: look again soon
            let _ = tokio::time::timeout(Duration::from_millis(20), changed.changed()).await;
        }
    };
    match tokio::time::timeout(trial.deadline(), reached).await {
        Ok(()) => Ok(()),
        Err(_) => Err(trial.violated(format!(
            "within {:?} it came no further than {}",
            trial.deadline(),
            tree.status()
        ))),
    }
}

pub(crate) async fn handled(trial: &Trial<'_>) -> Result<(), Violation> {
    let (sent, seen) = (orders(trial, 200), Seen::new());
    trial.declare().await?;
    let tree = start(trial, &seen, Duration::ZERO, || Ok(())).await?;
    trial.publish(&sent).await?;
    until(trial, &tree, &seen, |status| status.stats.handled >= 200).await?;
    trial.within("draining the tree", tree.drain()).await?;
    exactly_once(trial, &seen, 200)?;
    let broker = trial.connect().await?;
    trial.subscribe(&*broker, 10).await?.nothing("a consumer acknowledged everything").await
}

fn exactly_once(trial: &Trial<'_>, seen: &Seen, count: usize) -> Result<(), Violation> {
    let times = seen.times();
    for nth in 0..count {
        let times = times.get(&nth).copied().unwrap_or(0);
        trial.ensure(times == 1, || format!("order {nth} was handled {times} times"))?;
    }
    Ok(())
}

pub(crate) async fn attempts(trial: &Trial<'_>) -> Result<(), Violation> {
    let (sent, seen) = (orders(trial, 3), Seen::new());
    trial.declare().await?;
    let tree = start(trial, &seen, Duration::ZERO, || Err(Failure::retry("always"))).await?;
    trial.publish(&sent).await?;
    until(trial, &tree, &seen, |status| status.stats.dead_total() >= 3).await?;
    trial.within("draining the tree", tree.drain()).await?;
    for (nth, times) in seen.times() {
        trial.ensure(times == ATTEMPTS as usize, || {
            format!("order {nth} was tried {times} times, not {ATTEMPTS}")
        })?;
    }
    dead(trial, &sent, Reason::Exhausted, ATTEMPTS).await
}

pub(crate) async fn undecodable(trial: &Trial<'_>) -> Result<(), Violation> {
    let bodies = ["{", "", "{\"nth\":\"one\"}", "\u{0}\u{fffd}"];
    let sent: Vec<_> = bodies.into_iter().map(|body| order(trial, body.to_owned())).collect();
    let seen = Seen::new();
    trial.declare().await?;
    let tree = start(trial, &seen, Duration::ZERO, || Ok(())).await?;
    trial.publish(&sent).await?;
    until(trial, &tree, &seen, |status| status.stats.dead_total() >= 4).await?;
    trial.within("draining the tree", tree.drain()).await?;
    dead(trial, &sent, Reason::Undecodable, 1).await
}

/// Each of `sent` is in the dead letters, once, for this reason, its body as it was.
async fn dead(trial: &Trial<'_>, sent: &[Outgoing], reason: Reason, attempts: u32) -> Result<(), Violation> {
    let mut taker = trial.subscribe_dead(sent.len()).await?;
    let got = taker.take(sent.len()).await?;
    for delivery in &got {
        let incoming = delivery.incoming();
        let known = sent.iter().find(|message| message.message_id == *incoming.id());
        let body = known.map_or(&Payload::Fields(Vec::new()), |message| &message.payload).clone();
        same_payload(&body, &incoming.payload).map_err(|seen| trial.violated(seen))?;
        let header = |name| incoming.headers.get(name).map(ToString::to_string).unwrap_or_default();
        for (name, want) in [(known::REASON, reason.to_string()), (known::ATTEMPTS, attempts.to_string())] {
            let found = header(name);
            trial.ensure(found == want, || {
                format!("header `{name}` of a dead letter is {found:?}, not {want:?}")
            })?;
        }
        trial.ensure(!header(known::ERROR).is_empty(), || "a dead letter has no `x-error`".to_owned())?;
    }
    taker.ack(got).await?;
    taker.nothing("each was dead-lettered once").await?;
    let broker = trial.connect().await?;
    trial.subscribe(&*broker, 10).await?.nothing("everything is in the dead letters").await
}

pub(crate) async fn drained(trial: &Trial<'_>) -> Result<(), Violation> {
    let (sent, seen) = (orders(trial, 60), Seen::new());
    trial.declare().await?;
    trial.publish(&sent).await?;
    let first = start(trial, &seen, Duration::from_millis(30), || Ok(())).await?;
    until(trial, &first, &seen, |status| status.stats.handled >= 5).await?;
    trial.within("draining the first tree", first.drain()).await?;
    let done = seen.times().len();
    trial.ensure(done < 60, || "everything was handled before the drain: it shows nothing".to_owned())?;
    let second = start(trial, &seen, Duration::ZERO, || Ok(())).await?;
    until(trial, &second, &seen, |status| status.stats.handled >= (60 - done) as u64).await?;
    trial.within("draining the second tree", second.drain()).await?;
    exactly_once(trial, &seen, 60)
}
