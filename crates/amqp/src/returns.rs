//! PURE: which publishes came back unroutable.
//!
//! The broker returns an unroutable message and confirms it after that. lapin puts returned messages into one queue and
//! hands the oldest of them to whichever confirm comes next, so a pipelined confirm may carry somebody else's message,
//! and a confirm that carries none says nothing about its own. What does hold:
//!
//! - messages come back in the order in which they were published, and each before its own confirm;
//! - every confirm takes a waiting returned message if there is one.
//!
//! Hence a publish whose confirm is in was routed, once nothing can be waiting that came back before it: its confirm
//! carried nothing itself; or a later confirm carried nothing; or everything published before it is confirmed. Each of
//! these says something about the confirms that lapin completed until then, so it counts only when all of those have been
//! looked at: that is the end of a round.

use std::collections::{HashMap, VecDeque};

/// What became of one publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Routed,
    Returned,
    Refused,
}

/// One channel's publishes.
#[derive(Debug, Default)]
pub(crate) struct Returns {
    /// Publishes from `first` on, in order: whether they are confirmed.
    confirmed: VecDeque<bool>,
    first: u64,
    /// Returned messages that no publish was found for yet, by what identifies a message.
    returned: HashMap<u64, u32>,
    undecided: Vec<Undecided>,
    /// Undecided ones before this index were confirmed in an earlier round.
    earlier: usize,
    /// A confirm of this round carried nothing.
    saw_none: bool,
}

#[derive(Clone, Copy, Debug)]
struct Undecided {
    publish: u64,
    slot: usize,
    key: u64,
    carried_none: bool,
}

impl Returns {
    /// A message was published. The answer counts up from 0.
    pub(crate) fn published(&mut self) -> u64 {
        self.confirmed.push_back(false);
        self.first + self.confirmed.len() as u64 - 1
    }

    /// A publish was confirmed, or refused. `key` identifies its message and `carried` the one that came with the confirm;
    /// `slot` is the caller's own name for it.
    pub(crate) fn confirmed(
        &mut self,
        publish: u64,
        slot: usize,
        key: u64,
        accepted: bool,
        carried: Option<u64>,
    ) -> Option<Verdict> {
        let at = publish.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(confirmed) = at.and_then(|at| self.confirmed.get_mut(at)) {
            *confirmed = true;
        }
        while self.confirmed.front() == Some(&true) {
            self.confirmed.pop_front();
            self.first += 1;
        }
        match carried {
            Some(key) => *self.returned.entry(key).or_default() += 1,
            None => self.saw_none = true,
        }
        if !accepted {
            return Some(Verdict::Refused);
        }
        self.undecided.push(Undecided { publish, slot, key, carried_none: carried.is_none() });
        None
    }

    /// Every confirm that lapin has completed is known: decides what can be.
    pub(crate) fn end_round(&mut self, mut decide: impl FnMut(usize, Verdict)) {
        let (mut at, earlier) = (0, if self.saw_none { self.earlier } else { 0 });
        let (first, returned) = (self.first, &mut self.returned);
        self.undecided.retain(|undecided| {
            let of_earlier_round = at < earlier;
            at += 1;
            if take(returned, undecided.key) {
                decide(undecided.slot, Verdict::Returned);
                return false;
            }
            let routed = undecided.carried_none || of_earlier_round || undecided.publish < first;
            if routed {
                decide(undecided.slot, Verdict::Routed);
            }
            !routed
        });
        self.earlier = self.undecided.len();
        self.saw_none = false;
    }
}

fn take(returned: &mut HashMap<u64, u32>, key: u64) -> bool {
    if returned.is_empty() {
        return false;
    }
    let Some(count) = returned.get_mut(&key) else { return false };
    *count -= 1;
    if *count == 0 {
        returned.remove(&key);
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// lapin and a broker: publishes, some unroutable, whose returns and confirms come in any order that is allowed.
    #[derive(Default)]
    struct Wire {
        waiting: VecDeque<u64>,
        /// Published, not yet handled by the broker.
        sent: VecDeque<u64>,
        /// Handled, not yet confirmed.
        handled: Vec<u64>,
        /// Completed, not yet looked at: publish and what its confirm carried.
        completed: Vec<(u64, Option<u64>)>,
    }

    fn index(publish: u64) -> usize {
        usize::try_from(publish).expect("small")
    }

    impl Wire {
        fn handle(&mut self, routable: &[bool]) {
            if let Some(publish) = self.sent.pop_front() {
                if !routable[index(publish)] {
                    self.waiting.push_back(publish);
                }
                self.handled.push(publish);
            }
        }

        fn confirm(&mut self, nth: usize) {
            if !self.handled.is_empty() {
                let publish = self.handled.remove(nth % self.handled.len());
                self.completed.push((publish, self.waiting.pop_front()));
            }
        }

        fn is_done(&self) -> bool {
            self.sent.is_empty() && self.handled.is_empty() && self.completed.is_empty()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn exactly_the_unroutable_ones_are_returned(
            routable in prop::collection::vec(any::<bool>(), 1..60),
            moves in prop::collection::vec((0_u8..5, any::<usize>()), 0..400),
        ) {
            let (mut returns, mut wire, mut next) = (Returns::default(), Wire::default(), 0);
            let mut decided = HashMap::new();
            let finish = (0_u8..5).cycle().zip(std::iter::repeat(0)).take(routable.len() * 20);
            for (step, nth) in moves.into_iter().chain(finish) {
                match step {
                    0 if next < routable.len() => {
                        wire.sent.push_back(returns.published());
                        next += 1;
                    }
                    0 | 1 => wire.handle(&routable),
                    2 | 3 => wire.confirm(nth),
                    _ => {
                        // within a round they are looked at in any order
                        let mut completed = std::mem::take(&mut wire.completed);
                        let middle = if completed.is_empty() { 0 } else { nth % completed.len() };
                        completed.rotate_left(middle);
                        for (publish, carried) in completed {
                            prop_assert_eq!(returns.confirmed(publish, index(publish), publish, true, carried), None);
                        }
                        returns.end_round(|publish, verdict| {
                            assert!(decided.insert(publish, verdict).is_none(), "{publish} decided twice");
                        });
                    }
                }
            }
            prop_assert!(wire.is_done() && next == routable.len());
            for (publish, routable) in routable.iter().enumerate() {
                let expected = if *routable { Verdict::Routed } else { Verdict::Returned };
                prop_assert_eq!(decided.get(&publish), Some(&expected));
            }
            prop_assert!(returns.returned.is_empty() && returns.undecided.is_empty());
        }
    }

    #[test]
    fn without_returns_a_round_decides_all_it_saw() {
        let mut returns = Returns::default();
        let (first, second) = (returns.published(), returns.published());
        let mut decided = Vec::new();
        assert_eq!(returns.confirmed(second, 7, 2, true, None), None);
        returns.end_round(|publish, verdict| decided.push((publish, verdict)));
        assert_eq!(decided, [(7, Verdict::Routed)]);
        assert_eq!(returns.confirmed(first, 8, 1, false, None), Some(Verdict::Refused));
    }
}
