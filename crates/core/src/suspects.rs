//! Which messages may not run beside others, and how many may be at risk together.
//!
//! A message that takes its whole process down (abort, out of memory, a kill) says so only by the broker's count of its
//! deliveries, and whatever was unsettled beside it is counted along. So one that was delivered [`SUSPECT`] times before
//! runs alone, with nothing else unsettled: from there on only the one that is to blame is counted. A session begins with
//! a narrow window, since the process before it may have died of what comes first.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use crate::delivery::{Delivery, Incoming};

/// Delivered so often before and never settled, a message is a suspect. One loss of a connection makes none.
pub(crate) const SUSPECT: u32 = 2;
/// The least that a crash limit can be: at [`SUSPECT`] deliveries neighbours are counted, too.
pub(crate) const LEAST_LIMIT: u32 = SUSPECT + 1;

pub(crate) fn is_suspect(incoming: &Incoming) -> bool {
    incoming.delivery_count.is_some_and(|count| count >= SUSPECT)
}

/// Whether it was delivered so often that it is not tried again; how often it was, then.
pub(crate) fn crashed(incoming: &Incoming, limit: Option<u32>) -> Option<u32> {
    incoming.delivery_count.filter(|count| limit.is_some_and(|limit| *count >= limit))
}

/// How many deliveries may be unsettled at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// One.
    Narrow,
    /// As many as the consumer allows.
    Wide,
}

impl Window {
    /// What follows when deliveries were taken, with suspects among them or not.
    pub(crate) fn after(suspects: bool) -> Self {
        if suspects { Self::Narrow } else { Self::Wide }
    }

    /// How many more may be taken.
    pub(crate) fn room(self, limit: usize, held: usize) -> Option<NonZeroUsize> {
        match self {
            Self::Narrow if held == 0 => Some(NonZeroUsize::MIN),
            Self::Narrow => None,
            Self::Wide => NonZeroUsize::new(limit.saturating_sub(held)),
        }
    }
}

/// Deliveries that were taken and not started.
#[derive(Default)]
pub(crate) struct Waiting {
    others: VecDeque<Delivery>,
    suspects: VecDeque<Delivery>,
    /// A suspect runs.
    alone: bool,
    /// Suspects were given back because they came in company.
    put_off: bool,
}

/// What may be started.
pub(crate) enum Next {
    Beside(Delivery),
    Alone(Delivery),
}

impl Waiting {
    pub(crate) fn len(&self) -> usize {
        self.others.len() + self.suspects.len()
    }

    /// Whether a suspect among what was taken is kept. Not in company: it would wait until all others are done, and whatever
    /// ends the process meanwhile would be counted against it. Given back it comes alone, since the window is narrow then;
    /// where it comes in company all the same it is kept.
    pub(crate) fn keeps(&mut self, suspects: bool, alone: bool) -> bool {
        let keeps = alone || self.put_off;
        if suspects {
            self.put_off = !keeps;
        }
        keeps
    }

    /// Of several suspects one is kept at most, and none if not `keep`; unless giving back makes them more suspect.
    pub(crate) fn push(&mut self, delivery: Delivery, keep: bool, release_counts: bool) {
        if !is_suspect(delivery.incoming()) {
            self.others.push_back(delivery);
        } else if release_counts || (keep && self.suspects.is_empty()) {
            self.suspects.push_back(delivery);
        } else {
            delivery.release();
        }
    }

    /// What may be started beside so many that are with their handlers and so many that are being settled: in order of
    /// arrival those that are no suspects, and when nothing is unsettled one that is.
    pub(crate) fn next(&mut self, in_flight: usize, settling: usize, concurrency: usize) -> Option<Next> {
        let unsettled = in_flight + settling;
        self.alone &= unsettled > 0;
        if self.alone || in_flight >= concurrency {
            return None;
        }
        if let Some(delivery) = self.others.pop_front() {
            return Some(Next::Beside(delivery));
        }
        let suspect = if unsettled == 0 { self.suspects.pop_front() } else { None };
        self.alone = suspect.is_some();
        suspect.map(Next::Alone)
    }

    /// Gives all of them back.
    pub(crate) fn release(&mut self) {
        self.others.drain(..).chain(self.suspects.drain(..)).for_each(Delivery::release);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::delivery::Origin;

    fn delivered(count: Option<u32>) -> Incoming {
        let mut incoming = Incoming::new("", Origin::default());
        incoming.delivery_count = count;
        incoming
    }

    #[test]
    fn who_is_not_counted_is_no_suspect() {
        assert!(!is_suspect(&delivered(None)) && !is_suspect(&delivered(Some(1))));
        assert!(is_suspect(&delivered(Some(2))));
        assert_eq!(crashed(&delivered(None), Some(3)), None);
        assert_eq!(crashed(&delivered(Some(9)), None), None);
        assert_eq!(crashed(&delivered(Some(2)), Some(3)), None);
        assert_eq!(crashed(&delivered(Some(3)), Some(3)), Some(3));
    }

    proptest! {
        /// A queue, and processes that follow the rules one after the other: each takes until it dies of the message that
        /// kills. What was unsettled then is counted once more and comes back before the rest, in order.
        #[test]
        fn only_the_one_to_blame_reaches_the_limit(
            messages in 1_usize..120, killer in 0_usize..120, limit in LEAST_LIMIT..8, most in 1_usize..60,
        ) {
            let mut queue: VecDeque<usize> = (0..messages).collect();
            let mut counts: BTreeMap<usize, u32> = (0..messages).map(|message| (message, 0)).collect();
            let (mut deaths, mut dead) = (0, None);
            while !queue.is_empty() {
                let (mut window, mut held) = (Window::Narrow, VecDeque::new());
                let died = loop {
                    if let Some(room) = window.room(most, held.len()) {
                        let taken: Vec<_> = queue.drain(..room.get().min(queue.len())).collect();
                        if !taken.is_empty() {
                            window = Window::after(taken.iter().any(|message| counts[message] >= SUSPECT));
                            held.extend(taken);
                            continue;
                        }
                    }
                    let Some(message) = held.pop_front() else { break false };
                    if counts[&message] >= limit {
                        prop_assert_eq!(dead.replace(message), None);
                    } else if message == killer {
                        held.push_front(message);
                        break true;
                    }
                };
                if died {
                    deaths += 1;
                    for message in held.into_iter().rev() {
                        *counts.get_mut(&message).expect("counted") += 1;
                        queue.push_front(message);
                    }
                }
            }
            prop_assert_eq!(dead, (killer < messages).then_some(killer));
            prop_assert_eq!(deaths, if killer < messages { limit } else { 0 });
            prop_assert!(counts.iter().all(|(message, count)| *message == killer || *count <= SUSPECT));
        }

        /// The same with processes that die of something else, each after so many messages, and a broker that learns of it late,
        /// when others have taken what comes next: what only waited is counted twice at most.
        #[test]
        fn what_waits_is_counted_twice_at_most(
            messages in 1_usize..200, most in 1_usize..60,
            deaths in prop::collection::vec((0_usize..40, 0_usize..40), 1..20),
        ) {
            let mut queue: VecDeque<usize> = (0..messages).collect();
            let mut counts: BTreeMap<usize, u32> = (0..messages).map(|message| (message, 0)).collect();
            for (lives, late) in deaths {
                let (mut window, mut waiting, mut held) = (Window::Narrow, Waiting::default(), VecDeque::new());
                let mut handled = 0;
                let at_work = loop {
                    if let Some(room) = window.room(most, held.len()) {
                        let taken: Vec<_> = queue.drain(..room.get().min(queue.len())).collect();
                        if !taken.is_empty() {
                            let suspect = |message: &usize| counts[message] >= SUSPECT;
                            let alone = held.is_empty() && taken.len() == 1;
                            let keep = waiting.keeps(taken.iter().any(suspect), alone);
                            window = Window::after(taken.iter().any(suspect));
                            let (kept, back): (Vec<_>, Vec<_>) =
                                taken.into_iter().partition(|message| keep || !suspect(message));
                            held.extend(kept);
                            back.into_iter().rev().for_each(|message| queue.push_front(message));
                            continue;
                        }
                    }
                    // suspects after all others
                    let other = held.iter().position(|message| counts[message] < SUSPECT);
                    let Some(message) = held.remove(other.unwrap_or(0)) else { break None };
                    if handled == lives {
                        break Some(message);
                    }
                    handled += 1;
                };
                for message in held.iter().rev().chain(&at_work) {
                    *counts.get_mut(message).expect("counted") += 1;
                    queue.insert(late.min(queue.len()), *message);
                }
                prop_assert!(held.iter().all(|message| counts[message] <= SUSPECT), "{:?}", counts);
            }
        }
    }
}
