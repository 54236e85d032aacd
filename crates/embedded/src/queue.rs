//! One queue: the messages that nobody holds, and who waits for them.
//!
//! Leaves alone what was handed out; that is [`Held`](crate::settle::Held)'s. No lock of this crate is taken while
//! another is held, and no waker is called under one.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use steadfast_core::Incoming;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::delay::{DelaySet, due};

/// A message in its place.
#[derive(Debug)]
pub(crate) struct Stored {
    /// Grows along the queue; one that comes back finds its old place by it.
    pub(crate) position: u64,
    pub(crate) message: Arc<Incoming>,
    /// Whether it was handed out before.
    pub(crate) redelivered: bool,
    /// How often a subscription ended while it held this.
    pub(crate) returns: u32,
}

#[derive(Debug)]
pub(crate) struct Queue {
    name: Arc<str>,
    capacity: usize,
    /// One permit for each message that still fits. A message keeps its permit while it is ready, delayed or unsettled;
    /// the semaphore's own queue makes waiting publishers take turns.
    room: Semaphore,
    backlog: Mutex<Backlog>,
}

#[derive(Debug, Default)]
struct Backlog {
    /// In order of position.
    ready: VecDeque<Stored>,
    delayed: DelaySet,
    next_position: u64,
    /// Subscriptions that found nothing, longest wait first. Each message wakes one; a woken one leaves the map, and
    /// owes it to the others to wake the next if it leaves messages behind.
    waiting: BTreeMap<Ticket, Waker>,
    next_ticket: u64,
}

/// A place among the waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

impl Queue {
    pub(crate) fn new(name: Arc<str>, capacity: usize) -> Self {
        let capacity = capacity.clamp(1, Semaphore::MAX_PERMITS);
        Self { name, capacity, room: Semaphore::new(capacity), backlog: Mutex::default() }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Messages in it: ready, delayed and unsettled.
    pub(crate) fn depth(&self) -> usize {
        self.capacity.saturating_sub(self.room.available_permits())
    }

    /// Messages that nobody holds and that are not delayed.
    pub(crate) fn ready(&self) -> usize {
        self.lock().ready.len()
    }

    /// Messages that wait for their time.
    pub(crate) fn delayed(&self) -> usize {
        self.lock().delayed.len()
    }

    /// How many messages nobody holds, and the position that the next one gets.
    pub(crate) fn extent(&self) -> (usize, u64) {
        let backlog = self.lock();
        (backlog.ready.len(), backlog.next_position)
    }

    /// Messages that nobody holds, at these positions, at most `limit`. They stay.
    pub(crate) fn browse(&self, positions: Range<u64>, limit: usize) -> Vec<(u64, Arc<Incoming>)> {
        let backlog = self.lock();
        let from = backlog.ready.partition_point(|stored| stored.position < positions.start);
        let within = backlog.ready.range(from..).take_while(|stored| stored.position < positions.end);
        within.take(limit).map(|stored| (stored.position, Arc::clone(&stored.message))).collect()
    }

    /// Takes the message at this position out, if nobody holds it; its room is the caller's.
    pub(crate) fn remove(&self, position: u64) -> Option<Arc<Incoming>> {
        let mut backlog = self.lock();
        let at = backlog.ready.binary_search_by_key(&position, |stored| stored.position).ok()?;
        backlog.ready.remove(at).map(|stored| stored.message)
    }

    /// Takes room for one message, in turn; false where there was none for so long.
    pub(crate) async fn reserve(&self, patience: Duration) -> bool {
        if self.try_reserve() {
            return true;
        }
        match tokio::time::timeout(patience, self.room.acquire()).await {
            Ok(Ok(permit)) => {
                permit.forget();
                true
            }
            Ok(Err(_)) | Err(_) => false,
        }
    }

    pub(crate) fn try_reserve(&self) -> bool {
        self.room.try_acquire().map(tokio::sync::SemaphorePermit::forget).is_ok()
    }

    /// Gives back the room of messages that are gone.
    pub(crate) fn free(&self, messages: usize) {
        if messages > 0 {
            self.room.add_permits(messages);
        }
    }

    /// Appends a message that has room.
    pub(crate) fn push(&self, message: Arc<Incoming>) {
        let waker = {
            let mut backlog = self.lock();
            backlog.append(message);
            backlog.next_waker()
        };
        wake(waker);
    }

    /// Appends a message that has room once `after` has passed.
    pub(crate) fn push_after(&self, message: Arc<Incoming>, after: Duration) {
        if after.is_zero() {
            return self.push(message);
        }
        let due = due(Instant::now(), after);
        let wakers = {
            let mut backlog = self.lock();
            // every subscription sets its own timer to the earliest, so each has to look again
            let earliest = backlog.delayed.insert(due, message);
            if earliest { std::mem::take(&mut backlog.waiting) } else { BTreeMap::new() }
        };
        wakers.into_values().for_each(Waker::wake);
    }

    /// Puts messages back into their old places, before all that were published later.
    pub(crate) fn give_back(&self, mut messages: Vec<Stored>) {
        let Some(last) = messages.iter().map(|stored| stored.position).max() else { return };
        let waker = {
            let mut backlog = self.lock();
            // the few that came back before these, and belong between them
            while backlog.ready.front().is_some_and(|front| front.position < last) {
                messages.extend(backlog.ready.pop_front());
            }
            messages.sort_unstable_by_key(|stored| stored.position);
            for stored in messages.into_iter().rev() {
                backlog.ready.push_front(stored);
            }
            backlog.next_waker()
        };
        wake(waker);
    }

    /// Moves at most `room` messages onto `into`. Where there are none the waker is kept, and the answer is when the
    /// next delayed message is due.
    pub(crate) fn take(
        &self,
        room: usize,
        into: &mut Vec<Stored>,
        ticket: &mut Option<Ticket>,
        waker: &Waker,
    ) -> Option<Instant> {
        let next = {
            let mut backlog = self.lock();
            backlog.ripen();
            let count = room.min(backlog.ready.len());
            if count == 0 {
                backlog.wait(ticket, waker);
                return backlog.delayed.next_due();
            }
            into.extend(backlog.ready.drain(..count));
            backlog.stop_waiting(ticket);
            backlog.next_waker()
        };
        wake(next);
        None
    }

    /// Forgets who waited under this ticket; if it was woken for a message, the next one is.
    pub(crate) fn leave(&self, ticket: &mut Option<Ticket>) {
        let waker = {
            let mut backlog = self.lock();
            backlog.stop_waiting(ticket);
            backlog.next_waker()
        };
        wake(waker);
    }

    fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backlog {
    fn append(&mut self, message: Arc<Incoming>) {
        let position = self.next_position;
        self.next_position += 1;
        self.ready.push_back(Stored { position, message, redelivered: false, returns: 0 });
    }

    /// Moves what is due to the end of the queue.
    fn ripen(&mut self) {
        if self.delayed.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(message) = self.delayed.pop(now) {
            self.append(message);
        }
    }

    /// Who is to be woken, if there is something for it.
    fn next_waker(&mut self) -> Option<Waker> {
        if self.ready.is_empty() {
            return None;
        }
        self.waiting.pop_first().map(|(_, waker)| waker)
    }

    fn wait(&mut self, ticket: &mut Option<Ticket>, waker: &Waker) {
        if let Some(kept) = ticket.and_then(|ticket| self.waiting.get_mut(&ticket)) {
            kept.clone_from(waker);
            return;
        }
        let fresh = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.waiting.insert(fresh, waker.clone());
        *ticket = Some(fresh);
    }

    fn stop_waiting(&mut self, ticket: &mut Option<Ticket>) {
        if let Some(ticket) = ticket.take() {
            self.waiting.remove(&ticket);
        }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
