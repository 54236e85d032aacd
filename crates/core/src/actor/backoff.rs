//! Restart delays. The only file that names `backoff`, which is unmaintained: docs/decisions/0002 says why it is here and
//! how it leaves.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

/// Exponential delays: twice as long each time, up to a cap, lengthened at random by up to a fifth and never beyond it.
#[derive(Debug)]
pub(crate) struct Backoff {
    inner: ExponentialBackoff,
    cap: Duration,
}

/// The random part of a delay, as a share of it.
const JITTER: f64 = 0.2;

impl Backoff {
    pub(crate) fn new(first: Duration, cap: Duration) -> Self {
        let inner = ExponentialBackoff {
            current_interval: first,
            initial_interval: first,
            // ours is added below: the crate's own comes after its cap, and from a source that no test can hold
            randomization_factor: 0.0,
            multiplier: 2.0,
            max_interval: cap,
            // the default gives up after 15 minutes
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        Self { inner, cap }
    }

    /// The next delay; `chance` is from 0 to 1 and moves the jitter.
    pub(crate) fn next(&mut self, chance: f64) -> Duration {
        let base = self.inner.next_backoff().unwrap_or(self.cap);
        base.mul_f64(1.0 + JITTER * chance.clamp(0.0, 1.0)).min(self.cap)
    }

    /// Starts over at the first delay.
    pub(crate) fn reset(&mut self) {
        self.inner.reset();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delays_double_within_bounds_and_start_over(
            first in 1_u64..2_000, cap in 2_000_u64..60_000, chances in prop::collection::vec(0.0..=1.0_f64, 1..60),
        ) {
            let (first, cap) = (Duration::from_millis(first), Duration::from_millis(cap));
            let mut backoff = Backoff::new(first, cap);
            for (nth, chance) in chances.iter().enumerate() {
                let plain = first.saturating_mul(2_u32.saturating_pow(u32::try_from(nth).unwrap_or(31).min(31))).min(cap);
                let delay = backoff.next(*chance);
                // the crate computes in floating point: a microsecond of slack
                prop_assert!(delay + Duration::from_micros(1) >= plain, "{delay:?} < {plain:?}");
                prop_assert!(delay <= plain.mul_f64(1.2).min(cap) + Duration::from_micros(1));
            }
            backoff.reset();
            prop_assert_eq!(backoff.next(0.0), first);
        }
    }
}
