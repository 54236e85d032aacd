//! PURE: what was delivered and not yet settled, and how few frames settle it.
//!
//! A slot per delivery, linked in the order of their tags. An acknowledgement only marks its slot; a flush acknowledges
//! the marked run at the head by one `multiple`, which is sound because everything the broker holds open up to that tag
//! is marked, and the marked ones behind an open delivery one by one. An open delivery that is expected to be marked soon
//! keeps those behind it, to go along in its `multiple`. Slots are used again: nothing is allocated per message, and a
//! delivery that stays open for an hour costs one slot.

/// One `basic.ack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) tag: u64,
    /// Everything that is open up to the tag.
    pub(crate) multiple: bool,
}

/// Where a delivery is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(pub(crate) usize);

#[derive(Debug)]
pub(crate) struct Unsettled<P> {
    slots: Vec<Entry<P>>,
    free: Vec<usize>,
    /// Marked, in the order in which they were; some may have been sent since by a `multiple`.
    marked: Vec<(u64, usize)>,
    head: Option<usize>,
    tail: Option<usize>,
    /// Counts up as time goes by.
    age: u32,
}

#[derive(Debug)]
struct Entry<P> {
    /// 0 where the slot is free: delivery tags count from 1.
    tag: u64,
    marked: bool,
    /// It is marked soon.
    expected: bool,
    payload: Option<P>,
    /// The age it came in at.
    born: u32,
    before: Option<usize>,
    after: Option<usize>,
}

impl<P> Unsettled<P> {
    pub(crate) const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), marked: Vec::new(), head: None, tail: None, age: 0 }
    }

    /// A delivery came in. Tags come in ascending order.
    pub(crate) fn insert(&mut self, tag: u64, payload: P) -> Slot {
        let entry = Entry {
            tag,
            marked: false,
            expected: false,
            payload: Some(payload),
            born: self.age,
            before: self.tail,
            after: None,
        };
        let at = self.free.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(at) {
            Some(free) => *free = entry,
            None => self.slots.push(entry),
        }
        match self.tail.replace(at) {
            Some(before) => self.slots[before].after = Some(at),
            None => self.head = Some(at),
        }
        Slot(at)
    }

    /// What was kept with a delivery that is still open.
    pub(crate) fn get(&self, tag: u64, slot: Slot) -> Option<&P> {
        self.open(tag, slot)?.payload.as_ref()
    }

    /// Marks it as acknowledged, for the next flush. False where it is not open.
    pub(crate) fn mark(&mut self, tag: u64, slot: Slot) -> bool {
        if self.open(tag, slot).is_none() {
            return false;
        }
        let entry = &mut self.slots[slot.0];
        entry.marked = true;
        entry.payload = None;
        self.marked.push((tag, slot.0));
        true
    }

    /// Whether it is expected to be marked soon.
    pub(crate) fn expect(&mut self, tag: u64, slot: Slot, soon: bool) {
        if self.open(tag, slot).is_some() {
            self.slots[slot.0].expected = soon;
        }
    }

    /// Takes it out, because it is settled by other means. False where it is not open.
    pub(crate) fn remove(&mut self, tag: u64, slot: Slot) -> bool {
        let open = self.open(tag, slot).is_some();
        if open {
            self.unlink(slot.0);
        }
        open
    }

    /// Takes out all that are marked, and says how to acknowledge them. Where `hold`, those stay that are behind an open
    /// delivery which is expected to be marked soon.
    pub(crate) fn flush(&mut self, hold: bool, acks: &mut Vec<Ack>) {
        let (mut run, mut last) = (0_usize, 0);
        while let Some(at) = self.head.filter(|at| self.slots[*at].marked) {
            (run, last) = (run + 1, self.slots[at].tag);
            self.unlink(at);
        }
        if run > 0 {
            acks.push(Ack { tag: last, multiple: run > 1 });
        }
        let mut marked = std::mem::take(&mut self.marked);
        marked.retain(|(tag, at)| self.slots[*at].tag == *tag);
        if !hold || !self.head.is_some_and(|at| self.slots[at].expected) {
            for (tag, at) in marked.drain(..) {
                acks.push(Ack { tag, multiple: false });
                self.unlink(at);
            }
        }
        self.marked = marked;
    }

    /// Time goes by. The tags of what is open for so many of these steps just now.
    pub(crate) fn grow_older(&mut self, steps: u32) -> Vec<u64> {
        self.age = self.age.wrapping_add(1);
        let (mut old, mut next) = (Vec::new(), self.head);
        while let Some(entry) = next.and_then(|at| self.slots.get(at)) {
            let age = self.age.wrapping_sub(entry.born);
            if age < steps {
                break;
            }
            if age == steps && !entry.marked {
                old.push(entry.tag);
            }
            next = entry.after;
        }
        old
    }

    fn open(&self, tag: u64, slot: Slot) -> Option<&Entry<P>> {
        self.slots.get(slot.0).filter(|entry| entry.tag == tag && tag != 0 && !entry.marked)
    }

    fn unlink(&mut self, at: usize) {
        let (before, after) = (self.slots[at].before.take(), self.slots[at].after.take());
        match before {
            Some(before) => self.slots[before].after = after,
            None => self.head = after,
        }
        match after {
            Some(after) => self.slots[after].before = before,
            None => self.tail = before,
        }
        let entry = &mut self.slots[at];
        (entry.tag, entry.marked, entry.expected, entry.payload) = (0, false, false, None);
        self.free.push(at);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Deliver,
        Mark(usize),
        MarkAgain(usize),
        Remove(usize),
        Expect(usize, bool),
        Flush(bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Deliver),
            4 => (0_usize..64).prop_map(Step::Mark),
            1 => (0_usize..64).prop_map(Step::MarkAgain),
            1 => (0_usize..64).prop_map(Step::Remove),
            1 => (0_usize..64, any::<bool>()).prop_map(|(nth, soon)| Step::Expect(nth, soon)),
            1 => any::<bool>().prop_map(Step::Flush),
        ];
        prop::collection::vec(step, 0..400)
    }

    /// The broker, as far as this is concerned: which tags it holds open, and what an ack does to them.
    #[derive(Default)]
    struct Broker {
        open: BTreeSet<u64>,
        acked: BTreeSet<u64>,
    }

    impl Broker {
        fn take(&mut self, ack: Ack) {
            assert!(
                self.open.contains(&ack.tag),
                "unknown delivery tag {}: the channel would close",
                ack.tag
            );
            let first = if ack.multiple { 0 } else { ack.tag };
            let gone: Vec<_> = self.open.range(first..=ack.tag).copied().collect();
            for tag in gone {
                self.open.remove(&tag);
                assert!(self.acked.insert(tag), "{tag} was acknowledged twice");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn exactly_what_was_settled_is_acknowledged_and_once(steps in steps()) {
            let (mut unsettled, mut broker, mut tag) = (Unsettled::new(), Broker::default(), 0_u64);
            let (mut held, mut settled) = (BTreeMap::new(), BTreeMap::new());
            let mut expected = BTreeSet::new();
            let mut acks = Vec::new();
            for step in steps {
                match step {
                    Step::Deliver => {
                        tag += 1;
                        broker.open.insert(tag);
                        held.insert(tag, unsettled.insert(tag, tag));
                    }
                    Step::Mark(nth) => if let Some((tag, slot)) = held.iter().nth(nth).map(|(t, s)| (*t, *s)) {
                        prop_assert_eq!(unsettled.get(tag, slot), Some(&tag));
                        prop_assert!(unsettled.mark(tag, slot));
                        held.remove(&tag);
                        settled.insert(tag, slot);
                    },
                    Step::MarkAgain(nth) => if let Some((tag, slot)) = settled.iter().nth(nth) {
                        prop_assert!(!unsettled.mark(*tag, *slot) && !unsettled.remove(*tag, *slot));
                        prop_assert_eq!(unsettled.get(*tag, *slot), None);
                    },
                    Step::Remove(nth) => if let Some((tag, slot)) = held.iter().nth(nth).map(|(t, s)| (*t, *s)) {
                        prop_assert!(unsettled.remove(tag, slot));
                        held.remove(&tag);
                        broker.open.remove(&tag);
                    },
                    Step::Expect(nth, soon) => if let Some((tag, slot)) = held.iter().nth(nth) {
                        unsettled.expect(*tag, *slot, soon);
                        if soon { expected.insert(*tag) } else { expected.remove(tag) };
                    },
                    Step::Flush(hold) => {
                        unsettled.flush(hold, &mut acks);
                        acks.drain(..).for_each(|ack| broker.take(ack));
                        let first = held.keys().next();
                        let holds = hold && first.is_some_and(|tag| expected.contains(tag));
                        // what is ahead of all that is open goes in any case
                        let goes = |tag: &&u64| !holds || first.is_none_or(|first| *tag < first);
                        prop_assert!(settled.keys().filter(goes).all(|tag| broker.acked.contains(tag)));
                        prop_assert!(broker.acked.iter().all(|tag| settled.contains_key(tag)));
                        prop_assert_eq!(broker.open.len() + broker.acked.len(), held.len() + settled.len());
                    }
                }
                prop_assert!(unsettled.slots.len() <= 400);
            }
            unsettled.flush(false, &mut acks);
            acks.drain(..).for_each(|ack| broker.take(ack));
            prop_assert!(broker.acked.iter().eq(settled.keys()));
            prop_assert!(broker.open.iter().eq(held.keys()));
        }
    }

    #[test]
    fn a_run_is_one_frame_and_slots_are_used_again() {
        let (mut unsettled, mut acks) = (Unsettled::new(), Vec::new());
        for tag in 1..=1000 {
            let slot = unsettled.insert(tag, ());
            unsettled.mark(tag, slot);
            if tag % 100 == 0 {
                unsettled.flush(true, &mut acks);
            }
        }
        assert_eq!(acks, (1..=10).map(|n| Ack { tag: n * 100, multiple: true }).collect::<Vec<_>>());
        assert_eq!(unsettled.slots.len(), 100);
    }

    #[test]
    fn what_stays_open_for_long_is_named_once() {
        let mut unsettled = Unsettled::new();
        unsettled.insert(1, ());
        let second = unsettled.insert(2, ());
        assert!(unsettled.grow_older(2).is_empty());
        unsettled.insert(3, ());
        unsettled.mark(2, second);
        let named: Vec<_> = (0..4).map(|_| unsettled.grow_older(2)).collect();
        assert_eq!(named, [vec![1], vec![3], vec![], vec![]]);
    }

    #[test]
    fn an_open_delivery_at_the_head_holds_nothing_back() {
        let (mut unsettled, mut acks) = (Unsettled::new(), Vec::new());
        let slots: Vec<_> = (1..=3).map(|tag| unsettled.insert(tag, ())).collect();
        unsettled.mark(3, slots[2]);
        unsettled.mark(2, slots[1]);
        unsettled.flush(true, &mut acks);
        assert_eq!(acks, [Ack { tag: 3, multiple: false }, Ack { tag: 2, multiple: false }]);
    }

    #[test]
    fn what_is_behind_one_that_is_expected_goes_along_with_it() {
        let (mut unsettled, mut acks) = (Unsettled::new(), Vec::new());
        let slots: Vec<_> = (1..=4).map(|tag| unsettled.insert(tag, ())).collect();
        unsettled.expect(2, slots[1], true);
        [1, 3, 4].into_iter().zip([0, 2, 3]).for_each(|(tag, at)| assert!(unsettled.mark(tag, slots[at])));
        unsettled.flush(true, &mut acks);
        assert_eq!(acks, [Ack { tag: 1, multiple: false }]);
        unsettled.mark(2, slots[1]);
        unsettled.flush(true, &mut acks);
        assert_eq!(acks[1..], [Ack { tag: 4, multiple: true }]);
    }
}
