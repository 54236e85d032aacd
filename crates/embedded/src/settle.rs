//! What one subscription holds, and how it ends: the broker's [`Settler`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::future::BoxFuture;
use steadfast_core::{
    DeadLetter, Delivery, Headers, Incoming, Requeue, SettleError, Settler, SubscribeError, Token,
};

use crate::error;
use crate::queue::{Queue, Stored};

/// The unsettled messages of one subscription.
#[derive(Debug)]
pub(crate) struct Held {
    queue: Arc<Queue>,
    dead: Arc<Queue>,
    max_in_flight: usize,
    ledger: Mutex<Ledger>,
}

#[derive(Debug)]
struct Ledger {
    phase: Phase,
    /// As many as were ever held at once, reused; a slot whose message was settled is on the free list.
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Acknowledged and not yet let go: they leave together.
    acked: Vec<Token>,
    /// Number of the last hand-out. It makes each token unique, so that a stale one finds nothing.
    serial: u64,
    waker: Option<Waker>,
    /// The subscription waits because it holds as much as it may.
    full: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Taking,
    /// Takes nothing more; what it holds can be settled.
    Stopped,
    /// Holds nothing, for good.
    Ended,
}

#[derive(Debug)]
struct Slot {
    serial: u64,
    stored: Option<Stored>,
}

impl Held {
    pub(crate) fn new(queue: Arc<Queue>, dead: Arc<Queue>, max_in_flight: usize) -> Self {
        let ledger = Ledger {
            phase: Phase::Taking,
            slots: Vec::new(),
            free: Vec::new(),
            acked: Vec::new(),
            serial: 0,
            waker: None,
            full: false,
        };
        Self { queue, dead, max_in_flight, ledger: Mutex::new(ledger) }
    }

    pub(crate) fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// How many more may be taken, up to `room`. Whatever ends the subscription later wakes the caller.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>, room: usize) -> Poll<Result<usize, SubscribeError>> {
        let mut ledger = self.lock();
        match ledger.phase {
            Phase::Taking => {}
            Phase::Stopped => return Poll::Ready(Err(error::stopped(self.queue.name()))),
            Phase::Ended => return Poll::Ready(Err(error::ended(self.queue.name()))),
        }
        let gone = ledger.let_go();
        match &mut ledger.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            waker @ None => *waker = Some(cx.waker().clone()),
        }
        let room = room.min(self.max_in_flight.saturating_sub(ledger.unsettled()));
        ledger.full = room == 0;
        drop(ledger);
        self.queue.free(gone);
        if room == 0 { Poll::Pending } else { Poll::Ready(Ok(room)) }
    }

    /// Makes deliveries of what was taken, unless the subscription ended meanwhile.
    pub(crate) fn hand_out(
        &self,
        taken: &mut Vec<Stored>,
        settler: &Arc<dyn Settler>,
        batch: &mut Vec<Delivery>,
    ) -> Result<(), SubscribeError> {
        let mut ledger = self.lock();
        if ledger.phase == Phase::Ended {
            drop(ledger);
            self.queue.give_back(std::mem::take(taken));
            return Err(error::ended(self.queue.name()));
        }
        for mut stored in taken.drain(..) {
            if stored.redelivered {
                // only now, when the consumer that had it before has most likely let go of it, and it need not be copied
                let message = Arc::make_mut(&mut stored.message);
                message.redelivered = true;
                message.delivery_count = Some(stored.returns);
            }
            let message = Arc::clone(&stored.message);
            batch.push(Delivery::from_shared(message, ledger.insert(stored), Arc::clone(settler)));
        }
        Ok(())
    }

    /// Takes nothing more.
    pub(crate) fn stop(&self) {
        let mut ledger = self.lock();
        if ledger.phase == Phase::Taking {
            ledger.phase = Phase::Stopped;
        }
    }

    /// Gives back what is unsettled; from now on settling does nothing.
    pub(crate) fn end(&self) {
        let mut ledger = self.lock();
        ledger.phase = Phase::Ended;
        let gone = ledger.let_go();
        let unsettled = ledger.slots.drain(..).filter_map(|slot| slot.stored).map(|mut stored| {
            stored.redelivered = true;
            stored.returns = stored.returns.saturating_add(1);
            stored
        });
        let unsettled = unsettled.collect();
        ledger.free.clear();
        let waker = ledger.waker.take();
        drop(ledger);
        self.queue.free(gone);
        self.queue.give_back(unsettled);
        waker.into_iter().for_each(Waker::wake);
    }

    /// Takes a message out by its token, and wakes the subscription if it waited for that.
    fn take(&self, token: Token) -> Option<Stored> {
        let mut ledger = self.lock();
        let stored = ledger.remove(token)?;
        let waker = ledger.wake_if_full();
        drop(ledger);
        waker.into_iter().for_each(Waker::wake);
        Some(stored)
    }

    fn requeue_now(&self, message: &Incoming, token: Token, requeue: &Requeue) -> Result<(), SettleError> {
        // the copy takes over the room of the original, so it always fits
        self.take(token).ok_or_else(|| error::gone(self.queue.name()))?;
        self.queue.push_after(copy(message, &requeue.headers, &self.queue), requeue.after);
        Ok(())
    }

    fn dead_letter_now(
        &self,
        message: &Incoming,
        token: Token,
        letter: &DeadLetter,
    ) -> Result<(), SettleError> {
        if !self.dead.try_reserve() {
            if self.lock().holds(token) {
                return Err(error::dead_letters_full(self.queue.name(), self.dead.name()));
            }
            return Err(error::gone(self.queue.name()));
        }
        if self.take(token).is_none() {
            self.dead.free(1);
            return Err(error::gone(self.queue.name()));
        }
        self.dead.push(copy(message, letter.headers(), &self.dead));
        self.queue.free(1);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settler for Held {
    fn ack(&self, token: Token) {
        let mut ledger = self.lock();
        if ledger.phase == Phase::Ended {
            return;
        }
        ledger.acked.push(token);
        // a caller that never flushes must not make the list grow without end
        if ledger.acked.len() < self.max_in_flight {
            return;
        }
        drop(ledger);
        self.flush();
    }

    fn release(&self, token: Token) {
        if let Some(stored) = self.take(token) {
            self.queue.give_back(vec![Stored { redelivered: true, ..stored }]);
        }
    }

    fn requeue<'a>(
        &'a self,
        message: &'a Incoming,
        token: Token,
        requeue: &'a Requeue,
    ) -> BoxFuture<'a, Result<(), SettleError>> {
        Box::pin(async move { self.requeue_now(message, token, requeue) })
    }

    fn dead_letter<'a>(
        &'a self,
        message: &'a Incoming,
        token: Token,
        letter: &'a DeadLetter,
    ) -> BoxFuture<'a, Result<(), SettleError>> {
        Box::pin(async move { self.dead_letter_now(message, token, letter) })
    }

    fn flush(&self) {
        let mut ledger = self.lock();
        let gone = ledger.let_go();
        let waker = if gone > 0 { ledger.wake_if_full() } else { None };
        drop(ledger);
        self.queue.free(gone);
        waker.into_iter().for_each(Waker::wake);
    }

    fn finish(&self) -> BoxFuture<'_, Result<(), SettleError>> {
        Box::pin(async move {
            self.flush();
            Ok(())
        })
    }
}

impl Ledger {
    fn unsettled(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn insert(&mut self, stored: Stored) -> Token {
        self.serial += 1;
        let slot = Slot { serial: self.serial, stored: Some(stored) };
        let at = if let Some(at) = self.free.pop() {
            self.slots[at] = slot;
            at
        } else {
            self.slots.push(slot);
            self.slots.len() - 1
        };
        Token(self.serial, at as u64)
    }

    fn holds(&self, token: Token) -> bool {
        let slot = usize::try_from(token.1).ok().and_then(|at| self.slots.get(at));
        slot.is_some_and(|slot| slot.serial == token.0 && slot.stored.is_some())
    }

    fn remove(&mut self, token: Token) -> Option<Stored> {
        let at = usize::try_from(token.1).ok()?;
        let stored = self.slots.get_mut(at).filter(|slot| slot.serial == token.0)?.stored.take()?;
        self.free.push(at);
        Some(stored)
    }

    /// Lets go of what was acknowledged; says how many there were.
    fn let_go(&mut self) -> usize {
        let mut acked = std::mem::take(&mut self.acked);
        let gone = acked.drain(..).filter_map(|token| self.remove(token)).count();
        self.acked = acked;
        gone
    }

    fn wake_if_full(&mut self) -> Option<Waker> {
        if std::mem::take(&mut self.full) { self.waker.take() } else { None }
    }
}

/// A new message of the same content, with `headers` over its own, that is to be taken from `queue`.
fn copy(message: &Incoming, headers: &Headers, queue: &Queue) -> Arc<Incoming> {
    let mut copy = message.clone();
    copy.headers.merge(headers);
    copy.redelivered = false;
    copy.delivery_count = Some(0);
    copy.origin.source = Arc::clone(queue.name());
    Arc::new(copy)
}
