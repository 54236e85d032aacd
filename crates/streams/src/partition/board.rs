//! What a subscription, its settler, its steward and the readers of its partitions share: which partitions are owned, what
//! of them is handed out, and in which order the rest may be.
//!
//! Its lock is taken before a slot's, never the other way round.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use steadfast_core::{SubscribeError, SubscribeErrorKind, Token, known};
use tokio::sync::{MutexGuard as TurnGuard, Notify, watch};

use super::PartitionedGroup;
use super::lanes::{Key, Lanes};
use super::part::Part;
use crate::slot::Read;

pub(crate) struct Board {
    pub(crate) group: PartitionedGroup,
    /// What consumer names begin with.
    pub(crate) consumer: Arc<str>,
    pub(crate) dead: Arc<str>,
    max: usize,
    narrow: AtomicBool,
    /// Whose reader may read while narrow.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// Rung for the steward: a partition was lost, or this is the end.
    pub(crate) bell: Arc<Notify>,
    /// No partition is ours, for ever.
    over: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    owned: BTreeMap<u16, Owned>,
    /// By the first half of the token that was handed out.
    flights: HashMap<u64, Flight>,
    /// The next of these tokens.
    next: u64,
    /// The partition that was served last.
    served: u16,
    waker: Option<Waker>,
    ended: Option<SubscribeError>,
    stopping: bool,
}

struct Owned {
    part: Arc<Part>,
    lanes: Lanes<Read>,
    /// The when of its taking, as a number.
    since: i64,
    /// It is on its way to the next owner.
    leaving: bool,
}

/// A delivery that was handed out.
struct Flight {
    part: Arc<Part>,
    token: Token,
    key: Key,
}

impl Board {
    pub(crate) fn new(
        group: PartitionedGroup,
        consumer: Arc<str>,
        dead: Arc<str>,
        max: usize,
        narrow: bool,
    ) -> Self {
        Self {
            group,
            consumer,
            dead,
            max,
            narrow: AtomicBool::new(narrow),
            turn: tokio::sync::Mutex::default(),
            state: Mutex::default(),
            bell: Arc::default(),
            over: watch::channel(false).0,
        }
    }

    // ---- the subscription

    /// Takes at most `room` that may be handed out; none there: remembers who waits, and lets the readers read.
    pub(crate) fn take(&self, room: usize, waker: &Waker) -> Result<Vec<Read>, SubscribeError> {
        let mut state = self.lock();
        if let Some(ended) = state.ended.take() {
            return Err(ended);
        }
        if state.stopping {
            return Err(self.stopped());
        }
        let room = if self.is_narrow() { room.min(1) } else { room };
        if state.ready() < room {
            state.take_in(self.max, waker)?;
        }
        let mut taken = Vec::with_capacity(room.min(state.ready()));
        while taken.len() < room
            && let Some(next) = state.hand_out()
        {
            taken.push(next);
        }
        if taken.is_empty() {
            match &mut state.waker {
                Some(old) => old.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
        Ok(taken)
    }

    /// One at a time from now on, or as many as there is room for.
    pub(crate) fn set_narrow(&self, narrow: bool) {
        self.narrow.store(narrow, Ordering::Release);
        let mut state = self.lock();
        for owned in state.owned.values_mut() {
            if narrow {
                owned.give_back();
            }
            owned.part.slot.set_narrow(narrow);
        }
    }

    pub(crate) fn is_narrow(&self) -> bool {
        self.narrow.load(Ordering::Acquire)
    }

    /// Takes no more from the server. What is not handed out goes back, and the steward gives up all partitions.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        for owned in state.owned.values_mut() {
            owned.leave();
        }
        drop(state);
        self.bell.notify_one();
    }

    /// Ends it with this, at the next look.
    pub(crate) fn end(&self, error: SubscribeError) {
        let mut state = self.lock();
        state.ended.get_or_insert(error);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Nobody is left who could settle anything.
    pub(crate) fn abandon(&self) {
        self.stop();
        let state = self.lock();
        state.owned.values().for_each(|owned| owned.part.slot.abandon());
    }

    /// The same for a broker that is closed while deliveries are out.
    pub(crate) fn give_up(&self) {
        self.parts().iter().for_each(|part| part.slot.give_up());
    }

    /// Waits until no partition is ours any more.
    pub(crate) async fn over(&self) {
        // the sender is ours: it is there
        _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    // ---- the settler

    /// Where a delivery that was handed out is.
    pub(crate) fn find(&self, token: Token) -> Option<(Arc<Part>, Token)> {
        let state = self.lock();
        state.flights.get(&token.0).map(|flight| (Arc::clone(&flight.part), flight.token))
    }

    pub(crate) fn ack(&self, token: Token) {
        let mut state = self.lock();
        let Some(flight) = state.flights.remove(&token.0) else { return };
        flight.part.slot.ack(flight.token);
        landed(state, &flight);
    }

    /// Goes back; and with it what was read behind it, to be read again in order.
    pub(crate) fn release(&self, token: Token) {
        let mut state = self.lock();
        let Some(flight) = state.flights.remove(&token.0) else { return };
        if let Some(owned) = state.owned_by(&flight) {
            owned.give_back();
        }
        flight.part.slot.release(flight.token);
        landed(state, &flight);
    }

    /// It was settled by a script, or is no longer ours.
    pub(crate) fn settled(&self, token: Token) {
        let mut state = self.lock();
        let Some(flight) = state.flights.remove(&token.0) else { return };
        landed(state, &flight);
    }

    // ---- the readers

    /// Narrow, and one message is held already.
    pub(crate) fn is_taken_up(&self) -> bool {
        self.is_narrow() && self.parts().iter().any(|part| part.slot.holding() > 0)
    }

    pub(crate) async fn narrow_turn(&self) -> TurnGuard<'_, ()> {
        self.turn.lock().await
    }

    // ---- the steward

    pub(crate) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// One more is ours; false where it came too late.
    pub(crate) fn add(&self, part: &Arc<Part>, since: i64) -> bool {
        let mut state = self.lock();
        if state.stopping {
            return false;
        }
        let owned = Owned { part: Arc::clone(part), lanes: Lanes::new(), since, leaving: false };
        state.owned.insert(part.partition, owned);
        state.divide(self.max);
        let waker = state.waker.take();
        drop(state);
        // whoever waits has to ask it, too
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    pub(crate) fn parts(&self) -> Vec<Arc<Part>> {
        self.lock().owned.values().map(|owned| Arc::clone(&owned.part)).collect()
    }

    pub(crate) fn owns(&self, partition: u16) -> bool {
        self.lock().owned.contains_key(&partition)
    }

    /// Those that are served, oldest first.
    pub(crate) fn serving(&self) -> Vec<u16> {
        let state = self.lock();
        let mut serving: Vec<(i64, u16)> = state
            .owned
            .iter()
            .filter(|(_, owned)| !owned.leaving)
            .map(|(partition, owned)| (owned.since, *partition))
            .collect();
        serving.sort_unstable();
        serving.into_iter().map(|(_, partition)| partition).collect()
    }

    /// Those that are on their way to the next owner.
    pub(crate) fn leaving(&self) -> Vec<Arc<Part>> {
        let state = self.lock();
        let leaving = state.owned.values().filter(|owned| owned.leaving);
        leaving.map(|owned| Arc::clone(&owned.part)).collect()
    }

    /// It is to be handed over.
    pub(crate) fn leave(&self, partition: u16) {
        let mut state = self.lock();
        if let Some(owned) = state.owned.get_mut(&partition) {
            owned.leave();
        }
        state.divide(self.max);
    }

    pub(crate) fn remove(&self, part: &Arc<Part>) {
        let mut state = self.lock();
        if state.owned.get(&part.partition).is_some_and(|owned| Arc::ptr_eq(&owned.part, part)) {
            state.owned.remove(&part.partition);
        }
        state.divide(self.max);
        drop(state);
        self.bell.notify_one();
    }

    pub(crate) fn set_over(&self) {
        self.over.send_replace(true);
    }

    fn stopped(&self) -> SubscribeError {
        let what = format!(
            "read the partitioned stream `{}`: the subscription was stopped",
            self.group.streams.name
        );
        SubscribeError::new(SubscribeErrorKind::Ended, what)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn ready(&self) -> usize {
        self.owned.values().map(Owned::ready).sum()
    }

    /// Each partition that is served may hold an even share, and one at least.
    fn divide(&self, max: usize) {
        let serving = || self.owned.values().filter(|owned| !owned.leaving);
        let share = (max / serving().count().max(1)).max(1);
        serving().for_each(|owned| owned.part.slot.set_max(share));
    }

    /// Takes what was read into the lanes.
    fn take_in(&mut self, max: usize, waker: &Waker) -> Result<(), SubscribeError> {
        for owned in self.owned.values_mut().filter(|owned| !owned.leaving && !owned.part.is_lost()) {
            loop {
                let taken = match owned.part.slot.take(max, waker) {
                    Ok(taken) => taken,
                    // lost in this moment: the steward knows
                    Err(_) if owned.part.is_lost() => break,
                    Err(ended) => return Err(ended),
                };
                // only one that brings nothing leaves the waker there
                if taken.is_empty() {
                    break;
                }
                for (incoming, token) in taken {
                    let key = incoming.headers.text(known::KEY).ok().flatten().map(Arc::from);
                    owned.lanes.push(key, (incoming, token));
                }
            }
        }
        Ok(())
    }

    /// The next, from the next partition that has one.
    fn hand_out(&mut self) -> Option<Read> {
        let after = self.owned.range(self.served.saturating_add(1)..).map(|(partition, _)| *partition);
        let rest = self.owned.range(..=self.served).map(|(partition, _)| *partition);
        let has_one = |partition: &u16| self.owned[partition].ready() > 0;
        let partition = after.chain(rest).find(has_one)?;
        self.served = partition;
        let owned = self.owned.get_mut(&partition)?;
        let (key, (incoming, token)) = owned.lanes.next()?;
        self.next += 1;
        let flight = Flight { part: Arc::clone(&owned.part), token, key };
        self.flights.insert(self.next, flight);
        Some((incoming, Token(self.next, u64::from(partition))))
    }

    /// The partition as it was when this was handed out, if it is still ours under the same lease.
    fn owned_by(&mut self, flight: &Flight) -> Option<&mut Owned> {
        self.owned.get_mut(&flight.part.partition).filter(|owned| Arc::ptr_eq(&owned.part, &flight.part))
    }
}

impl Owned {
    /// How many may be handed out; none where another may have them by now.
    fn ready(&self) -> usize {
        if self.part.is_lost() { 0 } else { self.lanes.ready() }
    }

    /// What is not handed out goes back, and is read again.
    fn give_back(&mut self) {
        for (_, token) in self.lanes.take_back() {
            self.part.slot.release(token);
        }
    }

    fn leave(&mut self) {
        self.leaving = true;
        self.give_back();
        self.part.slot.stop();
    }
}

/// The next of its key may go.
fn landed(mut state: MutexGuard<'_, State>, flight: &Flight) {
    let more = state.owned_by(flight).is_some_and(|owned| owned.lanes.settled(&flight.key));
    let waker = if more { state.waker.take() } else { None };
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}
