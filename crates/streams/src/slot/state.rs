//! What a [`Slot`](super::Slot) keeps under its lock, and the rules that need nothing else.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use steadfast_core::{Incoming, SubscribeError, Token};

use crate::settle::Carried;

/// What was read, behind a pointer from the beginning: buffers of whole messages are so large that the allocator gives their
/// pages back each time one is freed.
pub(crate) type Read = (Arc<Incoming>, Token);

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, not states")]
pub(super) struct State {
    /// Read and not handed out.
    pub(super) buffer: VecDeque<Read>,
    /// The most that `poll_next` ever had room for, what it had handed out included: what is held never exceeds it.
    pub(super) window: usize,
    /// One at a time, and only for a `poll_next` that waits.
    pub(super) narrow: bool,
    /// A `poll_next` found nothing and waits.
    pub(super) wanted: bool,
    /// How many entries the reader's last read asked for.
    pub(super) asked: usize,
    /// Handed out or buffered, and not settled.
    pub(super) held: HashSet<Token, BuildHasherDefault<TokenHasher>>,
    /// The highest ID that was read.
    pub(super) last_read: Option<Token>,
    /// Acknowledged, not yet sent.
    pub(super) acks: Vec<Token>,
    /// They are not to be held back any longer.
    pub(super) flush: bool,
    /// To go along with the reader's next command.
    pub(super) copies: Vec<Carried>,
    /// Given back, not yet sent.
    pub(super) releases: Vec<Back>,
    /// What goes back has to be read again before anything else is: the slot of a partition.
    pub(super) in_order: bool,
    /// Something went back.
    pub(super) rewind: bool,
    /// Batches of either that are on their way.
    pub(super) sending: usize,
    /// When the next retry that we stored ourselves is due.
    pub(super) due: Option<Instant>,
    pub(super) reader: Reader,
    pub(super) waker: Option<Waker>,
    pub(super) ended: Option<SubscribeError>,
    pub(super) stopping: bool,
    /// Nobody waits for more, and what is not held is settled.
    pub(super) closed: bool,
    /// Nobody is left who could settle anything.
    pub(super) abandoned: bool,
    pub(super) keeper_gone: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Reader {
    /// Waits for its bell.
    #[default]
    Idle,
    /// In a round trip that ends at once.
    Busy,
    /// In a read that may wait at the server.
    Blocked,
    Gone,
}

/// An entry that goes back.
#[derive(Clone, Copy)]
pub(crate) struct Back {
    pub(crate) token: Token,
    /// It counts as delivered: it was handed out, and nobody said that it is unharmed.
    pub(crate) delivered: bool,
}

impl State {
    /// What the reader may ask for, which goes ahead of the handlers: no more than is free of the room that it was given,
    /// and not in crumbs. While acknowledgements are held back more is on its way, and half of it is worth a round trip.
    pub(super) fn credit(&self) -> usize {
        if self.narrow {
            return usize::from(self.wanted && self.held.is_empty());
        }
        let credit = self.window.saturating_sub(self.held.len());
        let worth_it = credit * 2 >= self.window || self.flush || self.acks.is_empty();
        if worth_it { credit } else { 0 }
    }

    /// Nothing will be settled any more but what waits to be sent.
    pub(super) fn last(&self) -> bool {
        self.abandoned || (self.closed && self.held.is_empty())
    }

    /// The read that waits at the server is to end: nobody wants what it would bring, or not that much at once.
    pub(super) fn unblock(&self) -> bool {
        let too_much = self.narrow && (self.asked > 1 || !self.held.is_empty());
        self.reader == Reader::Blocked && (self.stopping || too_much || self.rewind)
    }

    /// Takes in what was read. While narrow one, if nothing else is held: the rest goes back. So does what was read before
    /// something that went back is there again.
    pub(super) fn take_in(&mut self, (incoming, token): Read) {
        self.last_read = self.last_read.max(Some(token));
        if self.held.contains(&token) {
            return;
        }
        if self.rewind || (self.narrow && !self.held.is_empty()) {
            self.give_back(Back { token, delivered: false });
        } else {
            self.held.insert(token);
            self.buffer.push_back((incoming, token));
        }
    }

    pub(super) fn take_acks(&mut self) -> Vec<Token> {
        self.flush = false;
        self.sending += usize::from(!self.acks.is_empty());
        std::mem::take(&mut self.acks)
    }

    pub(super) fn give_back_buffer(&mut self) {
        for (_, token) in std::mem::take(&mut self.buffer) {
            self.held.remove(&token);
            self.give_back(Back { token, delivered: false });
        }
    }

    pub(super) fn give_back(&mut self, back: Back) {
        self.rewind |= self.in_order;
        self.releases.push(back);
    }

    /// What is handed out will not be settled any more.
    pub(super) fn give_up(&mut self) {
        let buffered: HashSet<Token> = self.buffer.iter().map(|(_, token)| *token).collect();
        let handed_out: Vec<Token> =
            self.held.iter().filter(|token| !buffered.contains(token)).copied().collect();
        for token in handed_out {
            self.held.remove(&token);
            self.releases.push(Back { token, delivered: true });
        }
    }
}

/// Entry IDs are not chosen by an adversary, and hashing one is on the path of every message.
#[derive(Default)]
pub(super) struct TokenHasher(u64);

impl Hasher for TokenHasher {
    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}
