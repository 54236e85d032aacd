//! How fast a group is read: so many entries a second, for a replay that must not crowd out what is new. Pure.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// Reads in a second, at most as many as there are turns to read.
const TURNS: u32 = 20;

pub(crate) struct Pace {
    rate: Option<NonZeroU32>,
    next: Instant,
}

impl Pace {
    pub(crate) fn new(rate: Option<NonZeroU32>, now: Instant) -> Self {
        Self { rate, next: now }
    }

    /// When the next read may be; none where it may be now.
    pub(crate) fn hold(&self, now: Instant) -> Option<Instant> {
        self.rate.and(Some(self.next)).filter(|next| *next > now)
    }

    /// How many of `count` to ask for at once.
    pub(crate) fn most(&self, count: usize) -> usize {
        let Some(rate) = self.rate else { return count };
        let turn = usize::try_from(rate.get().div_ceil(TURNS)).unwrap_or(usize::MAX);
        count.min(turn)
    }

    /// So many were read.
    pub(crate) fn spend(&mut self, count: usize, now: Instant) {
        if let Some(rate) = self.rate {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            self.next = self.next.max(now) + Duration::from_secs(1) * count / rate.get();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_read_in_any_time_than_the_rate_allows() {
        for rate in [1, 7, 100, 5_000] {
            let start = Instant::now();
            let mut pace = Pace::new(NonZeroU32::new(rate), start);
            let (mut now, mut read) = (start, 0_usize);
            while now < start + Duration::from_secs(10) {
                let count = pace.most(1_000);
                assert!((1..=1_000).contains(&count));
                read += count;
                pace.spend(count, now);
                now = pace.hold(now).expect("it has to wait");
            }
            let (least, most) =
                (usize::try_from(rate * 10).expect("small"), usize::try_from(rate * 11).expect("small"));
            assert!((least..=most).contains(&read), "{read} in 10 s at {rate}/s");
        }
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let now = Instant::now();
        let mut pace = Pace::new(None, now);
        pace.spend(1_000_000, now);
        assert_eq!((pace.most(500), pace.hold(now)), (500, None));
    }
}
