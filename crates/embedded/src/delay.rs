//! PURE: messages that are not due yet, earliest first. Knows no clock and sets no timer.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use steadfast_core::Incoming;
use tokio::time::Instant;

/// When `after` has passed from `now`. What lies beyond the clock's range is as good as never, and stays that way.
pub(crate) fn due(now: Instant, after: Duration) -> Instant {
    const AS_GOOD_AS_NEVER: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);
    now.checked_add(after.min(AS_GOOD_AS_NEVER)).unwrap_or(now)
}

#[derive(Debug, Default)]
pub(crate) struct DelaySet {
    heap: BinaryHeap<Delayed>,
    /// Messages that are due at the same instant leave in the order they came.
    arrivals: u64,
}

impl DelaySet {
    /// Adds a message; true where it is due before all others.
    pub(crate) fn insert(&mut self, due: Instant, message: Arc<Incoming>) -> bool {
        let earliest = self.next_due().is_none_or(|next| due < next);
        self.arrivals += 1;
        self.heap.push(Delayed { due, arrival: self.arrivals, message });
        earliest
    }

    /// Takes out the earliest message, if it is due.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Arc<Incoming>> {
        if self.next_due()? > now {
            return None;
        }
        self.heap.pop().map(|delayed| delayed.message)
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.heap.peek().map(|delayed| delayed.due)
    }

    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[derive(Debug)]
struct Delayed {
    due: Instant,
    arrival: u64,
    message: Arc<Incoming>,
}

// reversed, for the heap gives its greatest first
impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.arrival).cmp(&(self.due, self.arrival))
    }
}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Delayed {}

#[cfg(test)]
mod tests {
    use steadfast_core::Origin;

    use super::*;

    fn message(body: &'static str) -> Arc<Incoming> {
        Arc::new(Incoming::new(body, Origin::default()))
    }

    #[test]
    fn earliest_first_and_in_order_of_arrival_within_an_instant() {
        let now = Instant::now();
        let at = |ms| due(now, Duration::from_millis(ms));
        let mut set = DelaySet::default();
        assert!(set.insert(at(20), message("c")));
        assert!(set.insert(at(10), message("a")));
        assert!(!set.insert(at(10), message("b")));
        assert!(set.pop(at(9)).is_none());
        let out: Vec<_> =
            std::iter::from_fn(|| set.pop(at(30))).map(|message| message.payload.clone()).collect();
        assert_eq!(out, ["a", "b", "c"].map(Into::into));
        assert!(set.is_empty());
    }

    #[test]
    fn a_delay_beyond_the_clock_is_as_good_as_never() {
        let now = Instant::now();
        assert!(due(now, Duration::MAX) > due(now, Duration::from_secs(60 * 60 * 24 * 365)));
    }
}
