//! One subscription's life: pull, run the pipeline, settle, until it ends or is told to stop.
//!
//! Everything a consumer has in flight runs on this one task: a permit and a poll for each message, no spawn. It never
//! asks the broker for more than it has permits for.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_buffered::FuturesUnordered;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::actor::{EventKind, Node, Trouble};
use crate::broker::{Settler, Subscription};
use crate::circuit::{Admits, Gate, Pass};
use crate::delivery::Delivery;
use crate::error::{BoxError, SubscribeError, chain};
use crate::handler::Dispatch;
use crate::held_back::HeldBack;
use crate::pipeline::{Handled, Panicked, Pipeline, Settling};
use crate::suspects::{Next, Waiting, Window, is_suspect};

/// Deliveries and completions handled before other tasks of the thread get their turn.
const TURN: u32 = 256;

/// What the session is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Take messages and handle them, so many at once.
    Run {
        /// How many.
        concurrency: usize,
    },
    /// Take no more, finish what is in flight, settle it, end.
    Drain,
    /// Drop what is in flight, settle what is done, end.
    Abandon,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// As told; everything is settled.
    Drained,
    /// The subscription ended by itself.
    Subscription(SubscribeError),
    /// A handler panicked and no fresh one could be made.
    Factory(BoxError),
}

impl Ended {
    /// What is wrong meanwhile: to settle what was handled may take a while, where the broker is away.
    fn why(&self) -> Option<String> {
        let (what, error): (_, &dyn std::error::Error) = match self {
            Self::Drained => return None,
            Self::Subscription(error) => ("subscription ended", error),
            Self::Factory(error) => ("no handler could be made after a panic", &**error),
        };
        Some(format!(
            "takes no more, and settles what it handled before it starts again: {what}: {}",
            chain(error)
        ))
    }
}

/// Makes a fresh handler.
pub(crate) type Factory =
    Arc<dyn Fn() -> BoxFuture<'static, Result<Arc<dyn Dispatch>, BoxError>> + Send + Sync>;

/// Told why a handler panicked; and true where it is the present one, had finished no message since it was made, and the
/// message that it panicked on had not failed before.
pub(crate) type OnPanicked = Box<dyn Fn(&str, bool) + Send>;

/// What a session is made of.
pub(crate) struct Setup {
    pub(crate) subscription: Box<dyn Subscription>,
    pub(crate) handler: Arc<dyn Dispatch>,
    pub(crate) factory: Factory,
    pub(crate) pipeline: Arc<Pipeline>,
    /// Its circuit breaker's, if it has one.
    pub(crate) gate: Option<Arc<Gate>>,
    pub(crate) max_in_flight: usize,
    /// A delivery that is given back counts as delivered once more.
    pub(crate) release_counts: bool,
    pub(crate) replace_on_panic: bool,
    /// Told of each panic.
    pub(crate) on_panic: OnPanicked,
    /// Where its progress is seen.
    pub(crate) node: Arc<Node>,
}

pub(crate) async fn run(setup: Setup, mut orders: watch::Receiver<Order>) -> Ended {
    let pipeline = Arc::clone(&setup.pipeline);
    let mut session = Session::new(setup, move |handler, generation, delivery, pass| {
        let run = Arc::clone(&pipeline).run(handler, delivery, pass);
        async move { (generation, run.await) }
    });
    let ended = loop {
        let Order::Run { concurrency } = *orders.borrow_and_update() else { break Ended::Drained };
        session.concurrency = concurrency;
        tokio::select! {
            biased;
            _ = orders.changed() => {}
            ended = std::future::poll_fn(|cx| session.poll(cx)) => break ended,
        }
    };
    session.say_without_handler(false);
    match ended {
        Ended::Drained => session.drain(orders).await,
        // what was handled is settled if the channel still stands, what was not is the broker's again
        Ended::Subscription(_) | Ended::Factory(_) => {
            let why = ended.why();
            session.setup.node.set_trouble(Trouble::Ending, why);
            session.abandon().await;
        }
    }
    ended
}

/// Generic over the pipeline's future, so that it need not be boxed for each message.
struct Session<S, F> {
    setup: Setup,
    concurrency: usize,
    start: S,
    settler: Arc<dyn Settler>,
    /// Taken, not started.
    waiting: Waiting,
    window: Window,
    /// What the subscription was told last.
    told: Window,
    /// What the circuit let through last.
    admits: Admits,
    /// When the next probe is due.
    probe_at: Pin<Box<Sleep>>,
    /// With their handlers: at most `concurrency`.
    in_flight: FuturesUnordered<F>,
    /// Handled, and not settled before a copy is stored: they keep their permits, and hold up nobody.
    settling: FuturesUnordered<Settling>,
    batch: Vec<Delivery>,
    /// Acknowledgments that the settler has not sent.
    held_back: HeldBack,
    /// A fresh handler on its way, after a panic.
    replacement: Option<BoxFuture<'static, Result<Arc<dyn Dispatch>, BoxError>>>,
    /// It keeps us waiting, and health says so.
    without_handler: bool,
    /// Which handler this is, counted from 0.
    generation: u64,
    /// It has finished a message since it was made.
    fruitful: bool,
}

impl<S, F> Session<S, F>
where
    S: Fn(Arc<dyn Dispatch>, u64, Delivery, Option<Pass>) -> F,
    F: Future<Output = (u64, Handled)>,
{
    fn new(setup: Setup, start: S) -> Self {
        Self {
            start,
            concurrency: 1,
            settler: setup.subscription.settler(),
            waiting: Waiting::default(),
            window: Window::Narrow,
            told: Window::Narrow,
            admits: Admits::All,
            probe_at: Box::pin(tokio::time::sleep(Duration::ZERO)),
            in_flight: FuturesUnordered::new(),
            settling: FuturesUnordered::new(),
            batch: Vec::new(),
            held_back: HeldBack::new(),
            replacement: None,
            without_handler: false,
            generation: 0,
            fruitful: false,
            setup,
        }
    }

    /// One turn on the thread; the node's pulse is odd while it lasts, which is how a blocked thread is found.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let node = Arc::clone(&self.setup.node);
        node.pulse.fetch_add(1, Ordering::Relaxed);
        let polled = self.poll_all(cx);
        node.pulse.fetch_add(1, Ordering::Relaxed);
        node.in_flight.store(self.held(), Ordering::Relaxed);
        polled
    }

    fn poll_all(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let mut turn = 0;
        loop {
            turn += match self.poll_in_flight(cx) {
                Ok(finished) => finished,
                Err(error) => return Poll::Ready(Ended::Factory(error)),
            };
            let settled = self.poll_settling(cx);
            let taken = match self.poll_subscription(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Ended::Subscription(error)),
                taken => taken.is_ready(),
            };
            let replaced = match self.poll_replacement(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(Ended::Factory(error)),
                replaced => replaced.is_ready(),
            };
            if settled == 0 && !taken && !replaced {
                break;
            }
            turn += settled.max(1);
            if turn >= TURN {
                cx.waker().wake_by_ref();
                break;
            }
        }
        let idle = self.held() == 0;
        if self.held_back.poll_due(cx, idle).is_ready() {
            self.flush();
        }
        Poll::Pending
    }

    /// Starts what waits and takes what is done, in order of arrival.
    fn poll_in_flight(&mut self, cx: &mut Context<'_>) -> Result<u32, BoxError> {
        let mut finished = 0;
        loop {
            while self.may_start()
                && let Some(delivery) = self.next()
            {
                let handler = Arc::clone(&self.setup.handler);
                let pass = self.setup.gate.as_ref().map(Gate::start);
                self.in_flight.push((self.start)(handler, self.generation, delivery, pass));
            }
            match self.in_flight.poll_next_unpin(cx) {
                Poll::Ready(Some((generation, handled))) => {
                    let (waits, panicked) = (handled.settling.is_some(), handled.panicked.is_some());
                    self.handled(generation, handled);
                    finished += 1;
                    if waits {
                        // at once: the broker stores the copy while the next message is handled
                        finished += self.poll_settling(cx);
                    }
                    if panicked && let Poll::Ready(made) = self.poll_replacement(cx) {
                        // most factories wait for nothing: what was taken goes on, and the broker need not be asked for more before
                        made?;
                    }
                }
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        if finished > 0 {
            self.setup.node.progress();
        }
        Ok(finished)
    }

    /// How many were settled: each makes room, and the last one may be what a suspect waits for.
    fn poll_settling(&mut self, cx: &mut Context<'_>) -> u32 {
        let mut settled = 0;
        while let Poll::Ready(Some(())) = self.settling.poll_next_unpin(cx) {
            settled += 1;
        }
        if settled > 0 {
            self.setup.node.progress();
        }
        settled
    }

    fn may_start(&mut self) -> bool {
        let admitted = match self.heed_circuit() {
            Admits::All => true,
            Admits::Probe => self.in_flight.is_empty(),
            Admits::Later(_) | Admits::Nothing => false,
        };
        admitted && self.replacement.is_none()
    }

    /// What the circuit breaker lets through. When it opens, what was taken and not started goes back, and one at a time is
    /// asked for; where giving back counts as a delivery, it waits here.
    fn heed_circuit(&mut self) -> Admits {
        let Some(gate) = &self.setup.gate else { return Admits::All };
        let admits = gate.admits(Instant::now());
        let (was_open, open) = (self.admits != Admits::All, admits != Admits::All);
        self.admits = admits;
        if was_open != open {
            if open && !self.setup.release_counts {
                self.waiting.release();
            }
            self.tell_window();
        }
        admits
    }

    fn tell_window(&mut self) {
        let window = if self.admits == Admits::All { self.window } else { Window::Narrow };
        if std::mem::replace(&mut self.told, window) != window {
            self.setup.subscription.set_narrow(window == Window::Narrow);
        }
    }

    /// What may be started now. Before a suspect is, what is done is sent: it is not to be counted along.
    fn next(&mut self) -> Option<Delivery> {
        match self.waiting.next(self.in_flight.len(), self.settling.len(), self.concurrency)? {
            Next::Beside(delivery) => Some(delivery),
            Next::Alone(suspect) => {
                if !self.held_back.is_empty() {
                    self.flush();
                }
                let (incoming, consumer) = (suspect.incoming(), &self.setup.pipeline.scene.consumer);
                tracing::warn!(target: "steadfast", id = %incoming.id(), %consumer, deliveries = incoming.delivery_count, "message.suspect");
                Some(suspect)
            }
        }
    }

    /// Taken and not settled.
    fn held(&self) -> usize {
        self.in_flight.len() + self.settling.len() + self.waiting.len()
    }

    /// `generation` is that of the handler it ran on; one that was replaced meanwhile says nothing about the present one.
    fn handled(&mut self, generation: u64, Handled { settling, panicked }: Handled) {
        let present = generation == self.generation;
        if let Some(settling) = settling {
            self.settling.push(settling);
        } else if self.held_back.add() >= self.setup.max_in_flight.div_ceil(2) {
            self.flush();
        }
        let Some(Panicked { why, first }) = panicked else {
            self.fruitful |= present;
            return;
        };
        (self.setup.on_panic)(&why, present && first && !self.fruitful);
        if self.setup.replace_on_panic && present && self.replacement.is_none() {
            self.replacement = Some((self.setup.factory)());
        }
    }

    /// Ready where a fresh handler took its place just now.
    fn poll_replacement(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let Some(coming) = &mut self.replacement else { return Poll::Pending };
        let Poll::Ready(made) = coming.as_mut().poll(cx) else {
            self.say_without_handler(true);
            return Poll::Pending;
        };
        self.replacement = None;
        self.say_without_handler(false);
        self.setup.handler = made?;
        self.generation += 1;
        self.fruitful = false;
        self.setup.node.emit(EventKind::HandlerReplaced);
        Poll::Ready(Ok(()))
    }

    fn say_without_handler(&mut self, without: bool) {
        if std::mem::replace(&mut self.without_handler, without) != without {
            let text = || "its handler panicked, and the next one is not made yet".to_owned();
            self.setup.node.set_trouble(Trouble::NoHandler, without.then(text));
        }
    }

    fn poll_subscription(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SubscribeError>> {
        let before = self.admits;
        let admits = self.heed_circuit();
        if admits != before {
            // what waits here may be startable by now
            return Poll::Ready(Ok(()));
        }
        let window = match admits {
            Admits::All => self.window,
            Admits::Probe => Window::Narrow,
            Admits::Nothing => return Poll::Pending,
            Admits::Later(at) => {
                if self.probe_at.deadline() != at {
                    self.probe_at.as_mut().reset(at);
                }
                return self.probe_at.as_mut().poll(cx).map(Ok);
            }
        };
        let Some(room) = window.room(self.setup.max_in_flight, self.held()) else {
            return Poll::Pending;
        };
        std::task::ready!(self.setup.subscription.poll_next(cx, room, &mut self.batch))?;
        self.sort_batch();
        Poll::Ready(Ok(()))
    }

    /// Sets suspects apart, and narrows the window with the first of them.
    fn sort_batch(&mut self) {
        let suspects = self.batch.iter().any(|delivery| is_suspect(delivery.incoming()));
        let alone = self.batch.len() == 1 && self.held() == 0;
        let keep = self.waiting.keeps(suspects, alone);
        self.window = Window::after(suspects);
        self.tell_window();
        for delivery in self.batch.drain(..) {
            self.waiting.push(delivery, keep, self.setup.release_counts);
        }
    }

    fn flush(&mut self) {
        self.settler.flush();
        self.held_back.go();
    }

    /// Takes no more, lets what is in flight finish, settles it.
    async fn drain(mut self, mut orders: watch::Receiver<Order>) {
        if let Err(error) = self.setup.subscription.stop().await {
            tracing::warn!(target: "steadfast", %error, consumer = %self.setup.pipeline.scene.consumer, "stop taking");
        }
        self.waiting.release();
        while self.held() > 0 && *orders.borrow_and_update() != Order::Abandon {
            tokio::select! {
                biased;
                changed = orders.changed() => if changed.is_err() { break },
                Some((generation, handled)) = self.in_flight.next() => self.handled(generation, handled),
                Some(()) = self.settling.next() => {}
            }
        }
        self.abandon().await;
    }

    /// Drops what is in flight, settles what is done, closes.
    async fn abandon(mut self) {
        self.setup.pipeline.abandoning.store(true, Ordering::Relaxed);
        self.in_flight = FuturesUnordered::new();
        self.settling = FuturesUnordered::new();
        self.setup.node.in_flight.store(0, Ordering::Relaxed);
        self.waiting.release();
        self.settler.flush();
        let consumer = Arc::clone(&self.setup.pipeline.scene.consumer);
        if let Err(error) = self.settler.finish().await {
            tracing::warn!(target: "steadfast", %error, %consumer, "settle the last deliveries");
        }
        if let Err(error) = self.setup.subscription.close().await {
            tracing::debug!(target: "steadfast", %error, %consumer, "close the subscription");
        }
    }
}
