//! PURE: how many restarts are too many, and how long to wait before the next. Time and chance are arguments.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;

/// How many restarts a supervisor allows within a period before it gives up and ends itself.
///
/// Default 10 within 5 minutes, which restarts that come as fast as the backoff lets them use up in about a minute and a
/// half. A broker that is away spends none.
///
/// ```
/// use steadfast_core::{DurationExt, RestartIntensity};
///
/// let strict = RestartIntensity::new(3, 5.secs());
/// assert_ne!(strict, RestartIntensity::default());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartIntensity {
    max: u32,
    within: Duration,
}

impl RestartIntensity {
    /// At most `max` restarts within any period of this length.
    pub fn new(max: u32, within: Duration) -> Self {
        Self { max, within }
    }
}

impl Default for RestartIntensity {
    fn default() -> Self {
        Self::new(10, Duration::from_secs(300))
    }
}

/// The restarts of one supervisor within the period that counts.
#[derive(Debug)]
pub(crate) struct RestartWindow {
    intensity: RestartIntensity,
    spent: VecDeque<Instant>,
}

impl RestartWindow {
    pub(crate) fn new(intensity: RestartIntensity) -> Self {
        Self { intensity, spent: VecDeque::new() }
    }

    /// Restarts within the period that ends now, and how many are allowed.
    pub(crate) fn spent(&mut self, now: Instant) -> (u32, u32) {
        while self.spent.front().is_some_and(|at| now.duration_since(*at) > self.intensity.within) {
            self.spent.pop_front();
        }
        (u32::try_from(self.spent.len()).unwrap_or(u32::MAX), self.intensity.max)
    }

    /// Spends one restart; false where it is one too many.
    pub(crate) fn spend(&mut self, now: Instant) -> bool {
        self.spent(now);
        self.spent.push_back(now);
        self.spent.len() <= self.intensity.max as usize
    }
}

/// The delays of one child.
#[derive(Debug)]
pub(crate) struct Restarts {
    backoff: Backoff,
}

/// A child that ran for this long starts over at the first delay.
const HEALTHY: Duration = Duration::from_secs(10);
const FIRST: Duration = Duration::from_millis(100);
const CAP: Duration = Duration::from_secs(30);
/// A broker that is away is tried more often, so that work goes on within seconds of its return.
const OUTAGE_CAP: Duration = Duration::from_secs(2);

impl Restarts {
    pub(crate) fn new() -> Self {
        Self { backoff: Backoff::new(FIRST, CAP) }
    }

    /// How long to wait before the next start of a child that had been running for `ran` (zero where it never came to run).
    pub(crate) fn next(&mut self, outage: bool, ran: Duration, chance: f64) -> Duration {
        if ran >= HEALTHY {
            self.backoff.reset();
        }
        let delay = self.backoff.next(chance);
        if outage { delay.min(OUTAGE_CAP) } else { delay }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        /// The model is OTP's sentence, word for word: more than `max` restarts within any `within`.
        #[test]
        fn the_window_closes_exactly_at_one_more_than_max(
            gaps in prop::collection::vec(0_u64..120_000, 1..60), max in 0_u32..8, within in 1_u64..400,
        ) {
            let within = Duration::from_secs(within);
            let mut window = RestartWindow::new(RestartIntensity::new(max, within));
            let (mut now, mut spent) = (Instant::now(), Vec::new());
            for gap in gaps {
                now += Duration::from_millis(gap);
                spent.push(now);
                let counted = spent.iter().filter(|at| now.duration_since(**at) <= within).count();
                prop_assert_eq!(window.spend(now), counted <= max as usize);
            }
        }

        #[test]
        fn delays_stay_within_bounds_and_start_over_after_a_healthy_while(
            ends in prop::collection::vec((any::<bool>(), 0_u64..20_000, 0.0..=1.0_f64), 1..60),
        ) {
            let mut restarts = Restarts::new();
            for (outage, ran, chance) in ends {
                let ran = Duration::from_millis(ran);
                let delay = restarts.next(outage, ran, chance);
                prop_assert!(FIRST <= delay && delay <= if outage { OUTAGE_CAP } else { CAP }, "{delay:?}");
                if ran >= HEALTHY {
                    prop_assert!(delay <= FIRST.mul_f64(1.2));
                }
            }
        }
    }
}
