//! PURE: what was delivered and not yet settled, and how few frames settle it.
//!
//! A slot per delivery, linked in the order of their tags. An acknowledgement only marks its slot; a flush acknowledges
//! the marked run at the head by one `multiple`, which is sound because everything the broker holds open up to that tag
//! is marked, and the marked ones behind an open delivery one by one. Slots are used again: nothing is allocated per
//! message, and a delivery that stays open for an hour costs one slot.

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

    /// Takes it out, because it is settled by other means. False where it is not open.
    pub(crate) fn remove(&mut self, tag: u64, slot: Slot) -> bool {
        let open = self.open(tag, slot).is_some();
        if open {
            self.unlink(slot.0);
        }
        open
    }

    /// Takes out all that are marked, and says how to acknowledge them.
    pub(crate) fn flush(&mut self, acks: &mut Vec<Ack>) {
        let (mut run, mut last) = (0_usize, 0);
        while let Some(at) = self.head.filter(|at| self.slots[*at].marked) {
            (run, last) = (run + 1, self.slots[at].tag);
            self.unlink(at);
        }
        if run > 0 {
            acks.push(Ack { tag: last, multiple: run > 1 });
        }
        let mut marked = std::mem::take(&mut self.marked);
        for (tag, at) in marked.drain(..) {
            if self.slots[at].tag == tag {
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
        (entry.tag, entry.marked, entry.payload) = (0, false, None);
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
        Flush,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Deliver),
            4 => (0_usize..64).prop_map(Step::Mark),
            1 => (0_usize..64).prop_map(Step::MarkAgain),
            1 => (0_usize..64).prop_map(Step::Remove),
            1 => Just(Step::Flush),
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
                    Step::Flush => {
                        unsettled.flush(&mut acks);
                        acks.drain(..).for_each(|ack| broker.take(ack));
                        prop_assert!(broker.acked.iter().eq(settled.keys()));
                        prop_assert!(broker.open.iter().eq(held.keys()));
                    }
                }
                prop_assert!(unsettled.slots.len() <= 400);
            }
            unsettled.flush(&mut acks);
            acks.drain(..).for_each(|ack| broker.take(ack));
            prop_assert!(broker.acked.iter().eq(settled.keys()));
        }
    }

    #[test]
    fn a_run_is_one_frame_and_slots_are_used_again() {
        let (mut unsettled, mut acks) = (Unsettled::new(), Vec::new());
        for tag in 1..=1000 {
            let slot = unsettled.insert(tag, ());
            unsettled.mark(tag, slot);
            if tag % 100 == 0 {
                unsettled.flush(&mut acks);
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
        unsettled.flush(&mut acks);
        assert_eq!(acks, [Ack { tag: 3, multiple: false }, Ack { tag: 2, multiple: false }]);
    }
}
