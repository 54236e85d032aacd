//! A slot in a consumer group: what the subscription, its settler, its reader and its keeper share.
//!
//! Owns the one lock, and every rule about who may read how much and who sends the acknowledgements. Sends nothing itself.

mod state;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use steadfast_core::{SettleError, SettleErrorKind, SubscribeError, SubscribeErrorKind, Token};
use tokio::sync::Notify;

use crate::connection::Line;
use crate::group::Group;
use crate::names::Owner;
use crate::resume::before;
use crate::settle::Carried;

pub(crate) use state::{Back, Read};
use state::{Reader, State};

/// How long the reader waits for room once there is something to send, so that it goes with a read.
const LINGER: Duration = Duration::from_millis(1);

pub(crate) struct Slot {
    pub(crate) group: Group,
    pub(crate) consumer: Arc<str>,
    pub(crate) delay_key: String,
    pub(crate) dead: Arc<str>,
    /// The shared command connection.
    pub(crate) line: Arc<Line>,
    pub(crate) command_timeout: Duration,
    /// Most that may be held.
    max: AtomicUsize,
    /// Who has the consumer name, if it is a stable one; until the reading ends.
    owner: Option<Owner>,
    state: Mutex<State>,
    /// Rung for the reader: room, a flush, or the stop.
    reader_bell: Notify,
    /// Rung for the keeper: something to send, or the end.
    keeper_bell: Notify,
    /// Rung when something was sent, and at the ends of reader and keeper.
    news: Notify,
}

/// What a slot is made of.
pub(crate) struct Setup {
    pub(crate) group: Group,
    pub(crate) consumer: Arc<str>,
    pub(crate) owner: Option<Owner>,
    pub(crate) dead: Arc<str>,
    pub(crate) max: usize,
    pub(crate) narrow: bool,
}

/// What the reader does next.
pub(crate) enum Step {
    /// Reads at most `count`, after sending `acks`.
    Read { count: usize, acks: Vec<Token>, block: bool },
    /// Sends acknowledgements, or copies, alone: there is no room to read.
    Acks(Vec<Token>),
    /// Ends.
    Stop,
}

/// What the reader finds when it looks.
enum Found {
    Work(Step),
    /// Acknowledgements or copies are to go soon, with a read if there is room in time.
    Linger,
    Nothing,
}

/// What the keeper has to send.
#[derive(Default)]
pub(crate) struct Errands {
    pub(crate) acks: Vec<Token>,
    pub(crate) releases: Vec<Back>,
    /// The reader waits at the server and is to stop.
    pub(crate) unblock: bool,
    /// Everything is done, for ever.
    pub(crate) over: bool,
    /// It is all that is left to do.
    pub(crate) last: bool,
}

impl Slot {
    pub(crate) fn new(setup: Setup, line: Arc<Line>, command_timeout: Duration) -> Self {
        let Setup { group, consumer, owner, dead, max, narrow } = setup;
        let delay_key = group.delay_key();
        let (reader_bell, keeper_bell, news) = (Notify::new(), Notify::new(), Notify::new());
        let state = Mutex::new(State { narrow, ..State::default() });
        Self {
            group,
            consumer,
            delay_key,
            dead,
            line,
            command_timeout,
            max: AtomicUsize::new(max),
            owner,
            state,
            reader_bell,
            keeper_bell,
            news,
        }
    }

    // ---- the subscription

    /// Takes at most `room` out of the buffer; none there: remembers who waits, and lets the reader read.
    pub(crate) fn take(&self, room: usize, waker: &Waker) -> Result<Vec<Read>, SubscribeError> {
        let mut state = self.lock();
        if state.buffer.is_empty() && (state.stopping || state.ended.is_some()) {
            return Err(state.ended.take().unwrap_or_else(|| self.stopped()));
        }
        let handed_out = state.held.len() - state.buffer.len();
        state.window = state.window.max(handed_out + room).min(self.max.load(Ordering::Relaxed));
        let room = if state.narrow { 1 } else { room };
        let here = state.buffer.len().min(room);
        let taken: Vec<Read> = state.buffer.drain(..here).collect();
        state.wanted = taken.is_empty();
        if taken.is_empty() {
            match &mut state.waker {
                Some(old) => old.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
        let ring = state.reader == Reader::Idle && state.credit() > 0;
        drop(state);
        if ring {
            self.reader_bell.notify_one();
        }
        Ok(taken)
    }

    /// One at a time from now on, or as many as there is room for.
    pub(crate) fn set_narrow(&self, narrow: bool) {
        let mut state = self.lock();
        state.narrow = narrow;
        if narrow {
            state.give_back_buffer();
        }
        drop(state);
        self.reader_bell.notify_one();
        self.keeper_bell.notify_one();
    }

    /// Takes no more from the server. What is not handed out goes back.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        self.retire();
        if state.reader == Reader::Gone {
            state.give_back_buffer();
        }
        drop(state);
        self.reader_bell.notify_one();
        self.keeper_bell.notify_one();
    }

    /// Waits for the reader's end.
    pub(crate) async fn reader_gone(&self) {
        self.until(|state| state.reader == Reader::Gone).await;
    }

    /// Ends the slot as soon as nothing is held; waits for that if nothing is.
    pub(crate) async fn close(&self) {
        self.lock().closed = true;
        self.keeper_bell.notify_one();
        self.until(|state| state.keeper_gone || !state.last()).await;
    }

    // ---- the settler

    pub(crate) fn ack(&self, token: Token) {
        let mut state = self.lock();
        // one that is not held is no longer ours
        if state.held.remove(&token) {
            state.acks.push(token);
        }
    }

    pub(crate) fn release(&self, token: Token) {
        let mut state = self.lock();
        if state.held.remove(&token) {
            state.give_back(Back { token, delivered: false });
            if state.in_order {
                // what was read behind it must not overtake it
                state.give_back_buffer();
            }
            drop(state);
            self.keeper_bell.notify_one();
            self.reader_bell.notify_one();
        }
    }

    /// It was settled by a script, or is no longer ours.
    pub(crate) fn settled(&self, token: Token) {
        let mut state = self.lock();
        state.held.remove(&token);
        let ring = state.reader == Reader::Idle && state.credit() > 0;
        drop(state);
        if ring {
            self.reader_bell.notify_one();
        }
    }

    /// Leaves a copy to the reader, which sends it with its next command; gives it back where that may take a while, or
    /// never come. One that is left and then not sent is dropped.
    pub(crate) fn carry(&self, copy: Carried) -> Result<(), Carried> {
        let mut state = self.lock();
        let goes = matches!(state.reader, Reader::Idle | Reader::Busy) && !state.in_order;
        if !goes || state.stopping || state.ended.is_some() {
            return Err(copy);
        }
        state.copies.push(copy);
        let ring = state.reader == Reader::Idle;
        drop(state);
        if ring {
            self.reader_bell.notify_one();
        }
        Ok(())
    }

    /// A retry was stored that is due then.
    pub(crate) fn delayed(&self, after: Duration) {
        let Some(due) = Instant::now().checked_add(after) else { return };
        let mut state = self.lock();
        if state.due.is_none_or(|known| due < known) {
            state.due = Some(due);
            drop(state);
            self.keeper_bell.notify_one();
        }
    }

    pub(crate) fn flush(&self) {
        let mut state = self.lock();
        if state.acks.is_empty() {
            return;
        }
        state.flush = true;
        let reader = state.reader;
        drop(state);
        match reader {
            Reader::Idle => self.reader_bell.notify_one(),
            // it comes back at once and takes them along
            Reader::Busy => {}
            Reader::Blocked | Reader::Gone => self.keeper_bell.notify_one(),
        }
    }

    /// Waits until all that was settled is with the server.
    pub(crate) async fn finish(&self) -> Result<(), SettleError> {
        self.flush();
        self.keeper_bell.notify_one();
        let sent =
            self.until(|state| state.acks.is_empty() && state.releases.is_empty() && state.sending == 0);
        tokio::time::timeout(self.command_timeout, sent).await.map_err(|elapsed| {
            let what = format!(
                "send the last acknowledgements of stream `{}`: the server takes none; it will deliver those again",
                self.group.stream
            );
            SettleError::new(SettleErrorKind::NotStored, what).with_source(elapsed)
        })
    }

    /// The last one who could settle is gone.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.abandoned = true;
        state.give_up();
        drop(state);
        self.stop();
    }

    /// The connections go: nothing that is held can be settled after this.
    pub(crate) fn give_up(&self) {
        self.lock().give_up();
        self.keeper_bell.notify_one();
    }

    // ---- the reader

    /// Waits for what the reader is to do next. `drained`: the last read brought less than it asked for. `hold`: no reading
    /// before this.
    pub(crate) async fn next_step(&self, drained: bool, hold: Option<Instant>) -> Step {
        let mut lingered = false;
        loop {
            let hold = hold.filter(|until| *until > Instant::now());
            match (self.find_step(drained, lingered, hold.is_some()), hold) {
                (Found::Work(step), _) => return step,
                (Found::Nothing, None) => self.reader_bell.notified().await,
                (Found::Nothing, Some(until)) => {
                    _ = tokio::time::timeout_at(until.into(), self.reader_bell.notified()).await;
                }
                (Found::Linger, _) => {
                    _ = tokio::time::timeout(LINGER, self.reader_bell.notified()).await;
                    lingered = true;
                }
            }
        }
    }

    fn find_step(&self, drained: bool, lingered: bool, hold: bool) -> Found {
        let mut state = self.lock();
        state.reader = Reader::Idle;
        if state.stopping || state.ended.is_some() {
            return Found::Work(Step::Stop);
        }
        let count = if hold { 0 } else { state.credit() };
        if count == 0 && !state.flush && state.copies.is_empty() {
            return Found::Nothing;
        }
        // where all that is held waits for its copy, only that makes room
        let only_copies = !state.copies.is_empty() && state.held.len() <= state.copies.len();
        if count == 0 && !lingered && !only_copies {
            return Found::Linger;
        }
        // a script that the server does not know is sent again, and must not wait behind a read that waits
        let block = drained && count > 0 && state.copies.is_empty();
        state.asked = count;
        state.reader = if block { Reader::Blocked } else { Reader::Busy };
        let acks = state.take_acks();
        Found::Work(if count == 0 { Step::Acks(acks) } else { Step::Read { count, acks, block } })
    }

    /// What goes along with the command that is sent now.
    pub(crate) fn take_copies(&self) -> Vec<Carried> {
        std::mem::take(&mut self.lock().copies)
    }

    /// Hands over what was read.
    pub(crate) fn deliver(&self, read: Vec<Read>) {
        let mut state = self.lock();
        for read in read {
            state.take_in(read);
        }
        let waker = state.waker.take();
        let back = !state.releases.is_empty();
        drop(state);
        if back {
            self.keeper_bell.notify_one();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The last entry of those read before which nothing is left to settle; none where nothing was read.
    pub(crate) fn settled_up_to(&self) -> Option<Token> {
        let state = self.lock();
        state.held.iter().min().copied().map(before).or(state.last_read)
    }

    /// Whether it is handed out or buffered already.
    pub(crate) fn holds(&self, token: Token) -> bool {
        self.lock().held.contains(&token)
    }

    /// To be acknowledged without having been handed out.
    pub(crate) fn skip(&self, tokens: Vec<Token>) {
        let mut state = self.lock();
        state.acks.extend(tokens);
        state.flush = true;
    }

    /// The subscription ends with this, after what is buffered. The first one counts.
    pub(crate) fn end(&self, error: SubscribeError) {
        let mut state = self.lock();
        if !state.stopping {
            state.ended.get_or_insert(error);
        }
        self.retire();
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.reader_bell.notify_one();
    }

    pub(crate) fn reader_ends(&self) {
        let mut state = self.lock();
        state.reader = Reader::Gone;
        let unsent = std::mem::take(&mut state.copies);
        if state.stopping {
            state.give_back_buffer();
        }
        drop(state);
        drop(unsent);
        self.news.notify_waiters();
        self.keeper_bell.notify_one();
    }

    // ---- a partition's

    /// What goes back is read again before anything that comes after it.
    pub(crate) fn in_order(self) -> Self {
        self.lock().in_order = true;
        self
    }

    /// Most that may be held from now on.
    pub(crate) fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// How many are held.
    pub(crate) fn holding(&self) -> usize {
        self.lock().held.len()
    }

    /// Whether something went back since the last rewind.
    pub(crate) fn wants_rewind(&self) -> bool {
        self.lock().rewind
    }

    /// Waits until what went back is with the server, and can be read again.
    pub(crate) async fn rewind(&self) {
        self.lock().rewind = false;
        self.keeper_bell.notify_one();
        self.until(|state| state.stopping || (state.releases.is_empty() && state.sending == 0)).await;
    }

    /// The partition is another's: nothing that is held can be settled, and nothing goes back.
    pub(crate) fn forfeit(&self) {
        let mut state = self.lock();
        state.held.clear();
        state.buffer.clear();
        state.releases.clear();
        drop(state);
        self.stop();
    }

    /// Ends the slot as soon as nothing is held, and waits for that.
    pub(crate) async fn over(&self) {
        self.lock().closed = true;
        self.keeper_bell.notify_one();
        self.until(|state| state.keeper_gone).await;
    }

    // ---- the keeper

    /// What is to be sent now.
    pub(crate) fn errands(&self) -> Errands {
        let mut state = self.lock();
        let mine = matches!(state.reader, Reader::Blocked | Reader::Gone);
        let acks = if mine && (state.flush || state.last()) { state.take_acks() } else { Vec::new() };
        let releases = std::mem::take(&mut state.releases);
        state.sending += usize::from(!releases.is_empty());
        let over = state.last() && state.reader == Reader::Gone && state.sending == 0 && acks.is_empty();
        let unblock = state.unblock();
        Errands { acks, releases, unblock, over, last: state.last() }
    }

    /// A batch of acknowledgements is with the server, or is to be sent again.
    pub(crate) fn acks_sent(&self, failed: Vec<Token>) {
        let mut state = self.lock();
        state.sending -= 1;
        state.flush |= !failed.is_empty();
        state.acks.extend(failed);
        drop(state);
        self.news.notify_waiters();
    }

    /// The same for a batch given back.
    pub(crate) fn releases_sent(&self, failed: Vec<Back>) {
        let mut state = self.lock();
        state.sending -= 1;
        state.releases.extend(failed);
        drop(state);
        self.news.notify_waiters();
    }

    /// What is held now.
    pub(crate) fn held(&self) -> HashSet<Token> {
        self.lock().held.iter().copied().collect()
    }

    /// Another consumer has them by now: our settling them must do nothing.
    pub(crate) fn lost(&self, tokens: &[Token]) {
        let mut state = self.lock();
        for token in tokens {
            state.held.remove(token);
        }
        state.rewind |= state.in_order;
        state.buffer.retain(|(_, token)| !tokens.contains(token));
    }

    /// When the next retry of our own is due, told once.
    pub(crate) fn take_due(&self) -> Option<Instant> {
        self.lock().due.take()
    }

    pub(crate) async fn keeper_rung(&self) {
        self.keeper_bell.notified().await;
    }

    pub(crate) fn keeper_ends(&self) {
        self.lock().keeper_gone = true;
        self.news.notify_waiters();
    }

    // ----

    /// A successor in this process may have the name.
    fn retire(&self) {
        if let Some(owner) = &self.owner {
            owner.retire();
        }
    }

    fn stopped(&self) -> SubscribeError {
        let what = format!("read stream `{}`: the subscription was stopped", self.group.stream);
        SubscribeError::new(SubscribeErrorKind::Ended, what)
    }

    async fn until(&self, reached: impl Fn(&State) -> bool) {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            // enabled before the look: what happens in between is not missed
            news.as_mut().enable();
            if reached(&self.lock()) {
                return;
            }
            news.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
