//! Order by key: of each key at most one is out at a time. Pure.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// A key, as the message carries it; none: no order is asked for.
pub(crate) type Key = Option<Arc<str>>;

/// What was read of one partition and not handed out, and which keys are out.
pub(crate) struct Lanes<T> {
    /// May be handed out, in the order in which it may.
    ready: VecDeque<(Key, T)>,
    /// Each key that has one ready or out, and what follows it.
    behind: HashMap<Arc<str>, VecDeque<T>>,
}

impl<T> Lanes<T> {
    pub(crate) fn new() -> Self {
        Self { ready: VecDeque::new(), behind: HashMap::new() }
    }

    /// Takes in what was read next.
    pub(crate) fn push(&mut self, key: Key, item: T) {
        let Some(key) = key else { return self.ready.push_back((None, item)) };
        if let Some(behind) = self.behind.get_mut(&key) {
            return behind.push_back(item);
        }
        self.behind.insert(Arc::clone(&key), VecDeque::new());
        self.ready.push_back((Some(key), item));
    }

    /// How many may be handed out.
    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Hands one out.
    pub(crate) fn next(&mut self) -> Option<(Key, T)> {
        self.ready.pop_front()
    }

    /// One that was out is settled. True where another may be handed out for that.
    pub(crate) fn settled(&mut self, key: &Key) -> bool {
        let Some(key) = key else { return false };
        match self.behind.get_mut(key).map(VecDeque::pop_front) {
            Some(Some(next)) => {
                self.ready.push_back((Some(Arc::clone(key)), next));
                true
            }
            Some(None) => {
                self.behind.remove(key);
                false
            }
            None => false,
        }
    }

    /// Takes back all that is not out. Keys that are out stay so.
    pub(crate) fn take_back(&mut self) -> Vec<T> {
        let mut back = Vec::new();
        for (key, item) in std::mem::take(&mut self.ready) {
            back.push(item);
            if let Some(behind) = key.and_then(|key| self.behind.remove(&key)) {
                back.extend(behind);
            }
        }
        back.extend(self.behind.values_mut().flat_map(std::mem::take));
        back
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Do {
        Read,
        HandOut,
        Settle(usize),
        /// All that is not out goes back, and is read again.
        Rewind,
    }

    fn steps() -> impl Strategy<Value = Vec<Do>> {
        let step = prop_oneof![
            3 => Just(Do::Read),
            3 => Just(Do::HandOut),
            3 => (0_usize..8).prop_map(Do::Settle),
            1 => Just(Do::Rewind),
        ];
        prop::collection::vec(step, 1..300)
    }

    proptest! {
        #[test]
        fn each_key_goes_out_in_order_one_at_a_time_and_none_is_left(
            keys in prop::collection::vec(prop::option::weighted(0.8, 0_u8..5), 1..80), steps in steps(),
        ) {
            let key = |n: usize| -> Key { keys[n].map(|key| key.to_string().into()) };
            let mut lanes = Lanes::new();
            let (mut stream, mut out): (BTreeSet<usize>, Vec<usize>) = ((0..keys.len()).collect(), Vec::new());
            let mut last: BTreeMap<Key, usize> = BTreeMap::new();
            let mut handed_out = BTreeSet::new();
            // and at last everything is read, handed out and settled
            let rest = (0..keys.len() * 2).flat_map(|_| [Do::Read, Do::HandOut, Do::Settle(0)]);
            for step in steps.into_iter().chain(rest) {
                match step {
                    Do::Read => if let Some(n) = stream.pop_first() { lanes.push(key(n), n) },
                    Do::HandOut => {
                        let ready = lanes.ready();
                        let next = lanes.next();
                        prop_assert_eq!(ready > 0, next.is_some());
                        if let Some((of, n)) = next {
                            prop_assert_eq!(&of, &key(n));
                            if of.is_some() {
                                prop_assert!(out.iter().all(|other| key(*other) != of), "two of {:?}", of);
                                prop_assert!(last.insert(of, n).is_none_or(|last| last < n));
                            }
                            prop_assert!(handed_out.insert(n), "{} twice", n);
                            out.push(n);
                        }
                    }
                    Do::Settle(at) => if !out.is_empty() {
                        let n = out.remove(at % out.len());
                        let before = lanes.ready();
                        let more = lanes.settled(&key(n));
                        prop_assert_eq!(lanes.ready() - before, usize::from(more));
                    },
                    Do::Rewind => {
                        stream.extend(lanes.take_back());
                        prop_assert_eq!(lanes.ready(), 0);
                    }
                }
            }
            prop_assert_eq!(handed_out.len(), keys.len());
            prop_assert!(lanes.behind.is_empty());
        }
    }
}
