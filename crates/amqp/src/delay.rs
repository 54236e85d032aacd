//! Delayed retries: a queue per delay step, whose messages expire back into the source queue.
//!
//! All messages of a step have the same delay, so none waits behind a longer one. A step's queue is of the source's type,
//! declared when it is first needed, and goes away a day after it was last declared. As long as it is used it is declared
//! again once an hour: an expiring queue takes its messages with it, so it must outlive every message by far. The hop
//! back is the broker's; on quorum queues it is at-least-once, and the step refuses messages rather than drop any.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use steadfast_core::{SettleError, SettleErrorKind};
use tokio::sync::Mutex;

use crate::connection::Lane;
use crate::declare;
use crate::link::ServerName;
use crate::queue::{DeadLetterStrategy, Overflow, Queue, QueueKind, whole_millis};

/// How long a step's queue outlives its delay when nobody declares it again.
const LEASE_MILLIS: i64 = 24 * 60 * 60 * 1000;
/// After how long it is declared again.
const RENEW: Duration = Duration::from_secs(60 * 60);
/// The longest delay: with the lease it is still within what the broker takes for an expiry, 32 bits of milliseconds.
const MAX_MILLIS: i64 = 4_000_000_000;

/// The steps of one source queue.
#[derive(Debug)]
pub(crate) struct Delays {
    lane: Arc<Lane>,
    server: ServerName,
    queue: Arc<str>,
    kind: QueueKind,
    declared: Mutex<HashMap<i64, Instant>>,
}

impl Delays {
    pub(crate) fn new(lane: Arc<Lane>, server: ServerName, queue: Arc<str>, kind: QueueKind) -> Self {
        Self { lane, server, queue, kind, declared: Mutex::default() }
    }

    /// The queue to publish to for this delay; it is there.
    pub(crate) async fn queue_for(&self, after: Duration) -> Result<Arc<str>, SettleError> {
        let step = step(after);
        if step == 0 {
            return Ok(Arc::clone(&self.queue));
        }
        let queue = self.step_queue(step);
        let mut declared = self.declared.lock().await;
        if declared.get(&step).is_none_or(|at| at.elapsed() >= RENEW) {
            let server = self.server.get().map_or("", String::as_str);
            declare::declare(&self.lane, server, &queue, true).await.map_err(|error| {
                let what = format!("declare the queue that delays retries of `{}` by {step} ms", self.queue);
                SettleError::new(SettleErrorKind::NotStored, what).with_source(error)
            })?;
            declared.insert(step, Instant::now());
        }
        Ok(Arc::clone(queue.name()))
    }

    /// The queue of this delay is not there any more.
    pub(crate) async fn forget(&self, after: Duration) {
        self.declared.lock().await.remove(&step(after));
    }

    fn step_queue(&self, step: i64) -> Queue {
        let queue = Queue::like(self.kind, format!("{}.retry.{step}", self.queue))
            .with("x-message-ttl", step)
            .with("x-expires", step + LEASE_MILLIS)
            .dead_letter_exchange("")
            .dead_letter_routing_key(&self.queue);
        match self.kind {
            QueueKind::Quorum | QueueKind::Passive => {
                queue.dead_letter_strategy(DeadLetterStrategy::AtLeastOnce).overflow(Overflow::RejectPublish)
            }
            QueueKind::Classic => queue,
        }
    }
}

/// The delay in milliseconds, never shorter, and longer by at most a fortieth: a policy's round delays are steps as they
/// are, and delays that handlers make up cannot make more than some hundred queues.
fn step(after: Duration) -> i64 {
    let millis = whole_millis(after).min(MAX_MILLIS);
    let decade = 10_i64.pow(millis.checked_ilog10().unwrap_or(0));
    let width = match millis / decade {
        ..=1 => decade / 50,
        2..=4 => decade / 20,
        _ => decade / 10,
    };
    let width = width.max(1);
    (millis + width - 1) / width * width
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_step_is_never_early_and_hardly_late(millis in 0_u64..4_000_000_000) {
            let step = u64::try_from(step(Duration::from_millis(millis))).expect("not negative");
            prop_assert!(step >= millis && step - millis <= millis / 40 + 1, "{} for {}", step, millis);
        }
    }

    #[test]
    fn steps_are_few_and_round_delays_are_steps() {
        for round in [0, 1, 50, 200, 400, 800, 1000, 1600, 3200, 30_000, 60_000, 3_600_000] {
            assert_eq!(step(Duration::from_millis(round)), i64::try_from(round).expect("small"));
        }
        let steps: BTreeSet<_> =
            (0..10_000_000).step_by(97).map(|ms| step(Duration::from_millis(ms))).collect();
        assert!(steps.len() < 900, "{}", steps.len());
        assert_eq!(step(Duration::MAX), MAX_MILLIS);
    }
}
