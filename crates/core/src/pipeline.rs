//! THE path of a message: decode -> layers -> handler -> decide -> settle.
//!
//! A plain async function over one delivery: it needs no actor and no broker to be tested. What waits for the broker at its
//! end is handed back, so that the next message need not wait for it, too.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::actor::DeadLetters;
use crate::circuit::{Pass, held};
use crate::codec::Codec;
use crate::dead_letter::{DeadLetter, Reason, Scene};
use crate::delivery::{Delivery, Incoming};
use crate::envelope::{Context, Outlet};
use crate::handler::{Call, Dispatch, panicked};
use crate::headers::known;
use crate::last_chance::{self, LastChance};
use crate::middleware::{Attempt, Layers};
use crate::outcome::{Cause, Failure, Outcome};
use crate::reply;
use crate::retry::{Retry, decide};
use crate::settle::{self, Patience, Requeue, Settlement};
use crate::suspects;
use crate::telemetry::{Counters, add};

/// What every message of one consumer meets.
pub(crate) struct Pipeline {
    pub(crate) codec: Codec,
    pub(crate) layers: Option<Layers>,
    pub(crate) timeout: Option<Duration>,
    /// The handler blocks its thread: it gets one of the blocking pool's.
    pub(crate) blocking: bool,
    pub(crate) retry: Retry,
    pub(crate) crash_limit: Option<u32>,
    pub(crate) outlet: Arc<Outlet>,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) scene: Arc<Scene>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) patience: Patience,
    /// Set when in-flight work is dropped at a deadline, so that what it held is released under its right name.
    pub(crate) abandoning: AtomicBool,
}

/// How one message's way through its handler ended, as far as the consumer cares.
pub(crate) struct Handled {
    /// How it is settled, where that waits for a copy to be stored; none where it was acknowledged, which the settler may
    /// hold back until the next flush.
    pub(crate) settling: Option<Settling>,
    pub(crate) panicked: Option<Panicked>,
}

/// Settles a message, or finds that it is no longer ours. Needs the permit of its delivery, and the handler no more.
pub(crate) type Settling = BoxFuture<'static, ()>;

/// The handler panicked.
pub(crate) struct Panicked {
    /// What it said.
    pub(crate) why: Box<str>,
    /// The message had not failed before: what has, says nothing new about the handler.
    pub(crate) first: bool,
}

impl Pipeline {
    /// Takes one delivery through its handler. `pass` is of the consumer's circuit breaker, where it has one.
    pub(crate) async fn run(
        self: Arc<Self>,
        handler: Arc<dyn Dispatch>,
        delivery: Delivery,
        pass: Option<Pass>,
    ) -> Handled {
        let held = Held { delivery: Some(delivery), pipeline: &self };
        let (attempt, outcome, tried) = match self.decode(&*handler, held.incoming()) {
            Ok((attempt, call)) => (attempt, self.handle(held.incoming(), attempt, call).await, true),
            Err(poison) => (held.incoming().attempt().unwrap_or(1), Outcome::Failed(poison), false),
        };
        let mut panic = match &outcome {
            Outcome::Failed(failure) => last_chance::panicked(failure),
            Outcome::Ack => None,
        };
        let put_off = pass.and_then(|pass| pass.end(&outcome, tried));
        let settlement = self.decide(held.incoming(), attempt, outcome, put_off);
        let mut unheard = None;
        if let Settlement::DeadLetter(reason, failure) = &settlement {
            unheard = self.last_chance(&*handler, held.incoming(), attempt, *reason, failure).await;
            panic = panic.or_else(|| last_chance::panicked(unheard.as_ref()?));
        }
        let panicked = panic.map(|why| Panicked { why, first: attempt <= 1 });
        Handled { settling: Self::settle(&self, held.take(), attempt, settlement, unheard), panicked }
    }

    fn decide(
        &self,
        incoming: &Incoming,
        attempt: u32,
        outcome: Outcome,
        put_off: Option<Duration>,
    ) -> Settlement {
        let failed = match (outcome, put_off) {
            (Outcome::Ack, _) => return Settlement::Ack,
            (Outcome::Failed(failure), Some(after)) => {
                held(&incoming.id(), after, &failure);
                return Settlement::Snooze(after);
            }
            (failed @ Outcome::Failed(_), None) => failed,
        };
        let age = incoming.published_at.and_then(|at| at.elapsed().ok());
        decide(&self.retry, failed, attempt, age, fastrand::f64())
    }

    /// Lets the handler hear of a message that goes to the dead letters; how that failed, if it did.
    async fn last_chance(
        &self,
        handler: &dyn Dispatch,
        incoming: &Arc<Incoming>,
        attempt: u32,
        reason: Reason,
        failure: &Arc<Failure>,
    ) -> Option<Failure> {
        if !last_chance::is_due(reason) {
            return None;
        }
        let cx = Context::new(Arc::clone(incoming), attempt, Arc::clone(&self.outlet));
        let asking = LastChance { codec: self.codec, timeout: self.timeout, blocking: self.blocking };
        let failed = asking.ask(handler, incoming, cx, failure).await?;
        let (consumer, error) = (&self.scene.consumer, failed.chain());
        tracing::error!(target: "steadfast", id = %incoming.id(), %consumer, error, "message.on_dead_failed");
        Some(failed)
    }

    fn decode(&self, handler: &dyn Dispatch, incoming: &Arc<Incoming>) -> Result<(u32, Call), Failure> {
        if let Some(times) = suspects::crashed(incoming, self.crash_limit) {
            let why = format!(
                "delivered {times} times and never settled: each time its process died, or lost the broker"
            );
            return Err(Failure::poison(Cause::Crashed, why));
        }
        if let Some(why) = incoming.headers.get(known::UNREADABLE) {
            return Err(Failure::poison(Cause::BadHeaders, why.to_string()));
        }
        let attempt = incoming.attempt().map_err(|error| Failure::poison(Cause::BadHeaders, error))?;
        let cx = Context::new(Arc::clone(incoming), attempt, Arc::clone(&self.outlet));
        Ok((attempt, handler.prepare(incoming, self.codec, cx)?))
    }

    async fn handle(&self, incoming: &Arc<Incoming>, number: u32, call: Call) -> Outcome {
        let result = match &self.layers {
            None if !self.blocking => self.in_time(call).await,
            layers => self.in_time(self.around(layers.as_ref(), incoming, number, call)).await,
        };
        result.into()
    }

    async fn in_time(&self, attempt: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
        let Some(limit) = self.timeout else { return attempt.await };
        tokio::time::timeout(limit, attempt).await.unwrap_or_else(|_| Err(Failure::timeout(limit)))
    }

    /// The call on a thread of its own, or through layers, which may panic themselves.
    async fn around(
        &self,
        layers: Option<&Layers>,
        incoming: &Arc<Incoming>,
        number: u32,
        call: Call,
    ) -> Result<(), Failure> {
        let call = if self.blocking { on_blocking_pool(call) } else { call };
        let Some(layers) = layers else { return call.await };
        let through = layers.call(Attempt { incoming: Arc::clone(incoming), number, call });
        AssertUnwindSafe(through).catch_unwind().await.unwrap_or_else(|panic| Err(panicked(&*panic)))
    }

    /// Acknowledges, or says how it is settled otherwise. `unheard` is how the last chance failed.
    fn settle(
        this: &Arc<Self>,
        delivery: Delivery,
        attempt: u32,
        settlement: Settlement,
        unheard: Option<Failure>,
    ) -> Option<Settling> {
        let counters = &*this.counters;
        match settlement {
            Settlement::Ack => {
                delivery.ack();
                add(&counters.handled);
                None
            }
            Settlement::Drop(failure) => {
                tracing::info!(target: "steadfast", id = %delivery.incoming().id(), why = %failure, "message.dropped");
                delivery.ack();
                add(&counters.dropped);
                None
            }
            Settlement::Snooze(after) => {
                Some(
                    Arc::clone(this).requeue(delivery, Requeue::snoozed(after), |counters| &counters.snoozed),
                )
            }
            Settlement::Retry { after, failure } => {
                let requeue = Requeue::failed(&delivery, after, &failure, SystemTime::now());
                let id = delivery.incoming().id();
                tracing::debug!(target: "steadfast", %id, attempt, ?after, error = %failure.chain(), "message.retry");
                Some(Arc::clone(this).requeue(delivery, requeue, |counters| &counters.retried))
            }
            Settlement::DeadLetter(reason, failure) => {
                let now = SystemTime::now();
                let mut letter = DeadLetter::new(reason, &failure, &delivery, attempt, &this.scene, now);
                if let Some(failed) = unheard {
                    letter.last_chance_failed(&failed.chain());
                }
                Some(Arc::clone(this).bury(delivery, letter, failure))
            }
        }
    }

    fn requeue(
        self: Arc<Self>,
        delivery: Delivery,
        requeue: Requeue,
        count: fn(&Counters) -> &AtomicU64,
    ) -> Settling {
        Box::pin(async move {
            let held = Held { delivery: Some(delivery), pipeline: &self };
            let stored = settle::requeue(held.delivery(), &requeue, &self.patience).await;
            let delivery = held.take();
            match stored {
                Ok(()) => add(count(&self.counters)),
                Err(error) => self.late(delivery.incoming(), &error),
            }
            delivery.disarm();
        })
    }

    fn bury(self: Arc<Self>, delivery: Delivery, letter: DeadLetter, failure: Arc<Failure>) -> Settling {
        Box::pin(async move {
            let reason = letter.reason();
            let incoming = Arc::clone(delivery.incoming());
            match self.dead_letters.bury(delivery, letter, self.patience.clone()).await {
                Ok(()) => {
                    self.counters.dead(reason);
                    reply::refuse(&self.outlet, &incoming, reason, &failure).await;
                }
                Err(error) => self.late(&incoming, &error),
            }
        })
    }

    fn late(&self, incoming: &Incoming, error: &dyn std::error::Error) {
        add(&self.counters.late);
        tracing::warn!(target: "steadfast", id = %incoming.id(), consumer = %self.scene.consumer, %error, "message.late");
    }
}

/// Runs the handler on a thread that it may block.
pub(crate) fn on_blocking_pool(call: Call) -> Call {
    Box::pin(async move {
        let runtime = tokio::runtime::Handle::current();
        match tokio::task::spawn_blocking(move || runtime.block_on(call)).await {
            Ok(result) => result,
            // the runtime is shutting down
            Err(error) => Err(error.into()),
        }
    })
}

/// A delivery while its handler runs or its retry is being stored. When the work is dropped at the deadline of a stop, it names the message and gives
/// it back.
struct Held<'a> {
    delivery: Option<Delivery>,
    pipeline: &'a Pipeline,
}

impl Held<'_> {
    #[expect(
        clippy::unwrap_used,
        reason = "filled when it is made, and emptied only by `take`, which consumes it"
    )]
    fn delivery(&self) -> &Delivery {
        self.delivery.as_ref().unwrap()
    }

    fn incoming(&self) -> &Arc<Incoming> {
        self.delivery().incoming()
    }

    #[expect(clippy::unwrap_used, reason = "filled when it is made, and emptied only here")]
    fn take(mut self) -> Delivery {
        self.delivery.take().unwrap()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let Some(delivery) = self.delivery.take() else { return };
        if self.pipeline.abandoning.load(Ordering::Relaxed) {
            let (id, consumer) = (delivery.incoming().id(), &self.pipeline.scene.consumer);
            tracing::warn!(target: "steadfast", %id, %consumer, handler = self.pipeline.scene.handler, "message.abandoned");
        }
        delivery.release();
    }
}
