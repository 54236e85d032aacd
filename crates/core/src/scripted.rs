//! A broker for tests of this crate: does what the test says, and writes down what it was told.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::{
    Broker, Capabilities, ConnectError, ConnectErrorKind, DeadLetter, Delivery, Incoming, Origin, Outgoing,
    PublishError, PublishErrorKind, Publisher, Reason, Requeue, SettleError, SettleErrorKind, Settler,
    Source, Subscribe, SubscribeError, SubscribeErrorKind, Subscription, Token,
};

/// What the broker was told, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    Subscribed,
    Stopped,
    Closed,
    Narrowed(bool),
    Acked(u64),
    Released(u64),
    Requeued(u64, Requeue),
    Dead(u64, Reason),
    Flushed,
}

#[derive(Default)]
pub(crate) struct Script {
    pub(crate) ready: VecDeque<Incoming>,
    pub(crate) next_token: u64,
    pub(crate) told: Vec<Told>,
    /// Answers to the next subscribes; empty means Ok.
    pub(crate) subscribe: VecDeque<SubscribeErrorKind>,
    /// For ever, once `subscribe` is used up.
    pub(crate) away: Option<SubscribeErrorKind>,
    /// Ends the running subscription.
    pub(crate) end: Option<SubscribeErrorKind>,
    /// Answers to the next copies that are to be stored; empty means Ok.
    pub(crate) store: VecDeque<SettleErrorKind>,
    /// What came into the dead letters.
    pub(crate) letters: Vec<DeadLetter>,
    /// What is given back counts as delivered once more.
    pub(crate) release_counts: bool,
    pub(crate) most_room: usize,
    pub(crate) backlog: Option<u64>,
    /// Why no connection and no publisher can be had, for ever.
    pub(crate) closed: Option<ConnectErrorKind>,
    /// Answers to the next publishes; empty means Ok.
    pub(crate) publish: VecDeque<PublishErrorKind>,
    /// Whether the last settlements stay unsent.
    pub(crate) stuck: bool,
    waker: Option<Waker>,
}

/// A scripted broker; clones share the script.
#[derive(Clone)]
pub(crate) struct Scripted {
    script: Arc<Mutex<Script>>,
    changed: Arc<watch::Sender<()>>,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

impl Scripted {
    pub(crate) fn new() -> Self {
        Self { script: Arc::default(), changed: Arc::new(watch::channel(()).0) }
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, told: Told) {
        self.script().told.push(told);
        self.changed.send_replace(());
    }

    pub(crate) fn wake(&self) {
        if let Some(waker) = self.script().waker.take() {
            waker.wake();
        }
    }

    pub(crate) fn deliver(&self, incoming: Incoming) {
        self.script().ready.push_back(incoming);
        self.wake();
    }

    pub(crate) fn body(&self, body: &str) {
        self.deliver(Incoming::new(body.to_owned(), Origin { source: "q".into(), ..Origin::default() }));
    }

    pub(crate) fn end(&self, kind: SubscribeErrorKind) {
        self.script().end = Some(kind);
        self.wake();
    }

    pub(crate) fn told(&self) -> Vec<Told> {
        self.script().told.clone()
    }

    /// Waits until what was told satisfies `enough`.
    pub(crate) async fn until(&self, enough: impl Fn(&[Told]) -> bool) -> Vec<Told> {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                let told = self.told();
                if enough(&told) {
                    return told;
                }
                changed.changed().await.expect("sender is held here");
            }
        };
        let limit = std::time::Duration::from_secs(3600);
        tokio::time::timeout(limit, wait).await.unwrap_or_else(|_| panic!("only {:?}", self.told()))
    }

    /// Connections and publishers are not to be had, and those that are out are lost.
    pub(crate) fn close_connections(&self, kind: Option<ConnectErrorKind>) {
        self.script().closed = kind;
        self.changed.send_replace(());
    }

    /// Whether the last settlements of a subscription that ends stay unsent.
    pub(crate) fn stick(&self, stuck: bool) {
        self.script().stuck = stuck;
        self.changed.send_replace(());
    }

    fn refusal(&self) -> Result<(), ConnectError> {
        self.script().closed.map_or(Ok(()), |kind| Err(ConnectError::new(kind, "scripted")))
    }

    fn store(&self, told: Told) -> Result<(), SettleError> {
        let answer = self.script().store.pop_front();
        if let Some(kind) = answer {
            return Err(SettleError::new(kind, "scripted"));
        }
        self.tell(told);
        Ok(())
    }
}

impl Broker for Scripted {
    fn scheme(&self) -> &'static str {
        "scripted"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new("scripted");
        capabilities.release_counts = self.script().release_counts;
        capabilities
    }

    fn declare<'a>(&'a self, _: &'a Source) -> BoxFuture<'a, Result<(), SubscribeError>> {
        async { Ok(()) }.boxed()
    }

    fn subscribe(&self, _: Subscribe) -> BoxFuture<'_, Result<Box<dyn Subscription>, SubscribeError>> {
        async {
            let refusal = {
                let mut script = self.script();
                script.subscribe.pop_front().or(script.away)
            };
            if let Some(kind) = refusal {
                return Err(SubscribeError::new(kind, "scripted"));
            }
            self.tell(Told::Subscribed);
            Ok(Box::new(self.clone()) as Box<dyn Subscription>)
        }
        .boxed()
    }

    fn publisher(&self) -> BoxFuture<'_, Result<Arc<dyn Publisher>, ConnectError>> {
        async {
            self.refusal()?;
            Ok(Arc::new(self.clone()) as Arc<dyn Publisher>)
        }
        .boxed()
    }

    fn connection(&self) -> BoxFuture<'_, Result<BoxFuture<'static, ConnectError>, ConnectError>> {
        async {
            self.refusal()?;
            let (broker, mut changed) = (self.clone(), self.changed.subscribe());
            let lost = async move {
                loop {
                    if let Err(error) = broker.refusal() {
                        return error;
                    }
                    changed.changed().await.expect("sender is held here");
                }
            };
            Ok(lost.boxed())
        }
        .boxed()
    }

    fn backlog<'a>(&'a self, _: &'a Source) -> BoxFuture<'a, Option<u64>> {
        async { self.script().backlog }.boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}

impl Publisher for Scripted {
    fn send(&self, _: Outgoing) -> BoxFuture<'_, Result<(), PublishError>> {
        let answer = self.script().publish.pop_front();
        let answer = answer.map_or(Ok(()), |kind| Err(PublishError::new(kind, "scripted")));
        std::future::ready(answer).boxed()
    }
}

impl Subscription for Scripted {
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        room: NonZeroUsize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Result<(), SubscribeError>> {
        let mut script = self.script();
        script.most_room = script.most_room.max(room.get());
        if let Some(kind) = script.end.take() {
            return Poll::Ready(Err(SubscribeError::new(kind, "scripted end")));
        }
        let take = room.get().min(script.ready.len());
        if take == 0 {
            script.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        for _ in 0..take {
            script.next_token += 1;
            let token = Token(script.next_token, 0);
            let incoming = script.ready.pop_front().expect("counted above");
            batch.push(Delivery::new(incoming, token, Arc::new(self.clone())));
        }
        Poll::Ready(Ok(()))
    }

    fn set_narrow(&mut self, narrow: bool) {
        self.tell(Told::Narrowed(narrow));
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::new(self.clone())
    }

    fn stop(&mut self) -> BoxFuture<'_, Result<(), SubscribeError>> {
        self.tell(Told::Stopped);
        async { Ok(()) }.boxed()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), SubscribeError>> {
        self.tell(Told::Closed);
        async { Ok(()) }.boxed()
    }
}

impl Settler for Scripted {
    fn ack(&self, token: Token) {
        self.tell(Told::Acked(token.0));
    }

    fn release(&self, token: Token) {
        self.tell(Told::Released(token.0));
    }

    fn requeue<'a>(
        &'a self,
        _: &'a Incoming,
        token: Token,
        requeue: &'a Requeue,
    ) -> BoxFuture<'a, Result<(), SettleError>> {
        async move { self.store(Told::Requeued(token.0, requeue.clone())) }.boxed()
    }

    fn dead_letter<'a>(
        &'a self,
        _: &'a Incoming,
        token: Token,
        letter: &'a DeadLetter,
    ) -> BoxFuture<'a, Result<(), SettleError>> {
        async move {
            self.store(Told::Dead(token.0, letter.reason()))?;
            self.script().letters.push(letter.clone());
            Ok(())
        }
        .boxed()
    }

    fn flush(&self) {
        self.tell(Told::Flushed);
    }

    fn finish(&self) -> BoxFuture<'_, Result<(), SettleError>> {
        async {
            let mut changed = self.changed.subscribe();
            while self.script().stuck {
                // the sender is held here
                _ = changed.changed().await;
            }
            Ok(())
        }
        .boxed()
    }
}
