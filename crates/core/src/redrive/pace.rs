//! PURE: how many messages may go now, and when to look whether they failed again.

use std::time::Duration;

/// Most messages under way at once.
const WINDOW: u64 = 256;
/// How often to look for failures once the ramp is over.
const LOOK: Duration = Duration::from_secs(1);
/// Messages sent in one go are at least this long apart, so that a high rate costs no wake-up for each.
const TICK: Duration = Duration::from_millis(5);

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// Send at most so many.
    Send(u64),
    /// Wait so long.
    Wait(Duration),
    /// Look whether they failed again.
    Look,
}

/// Where a job is on its way: times are since it began.
#[derive(Debug)]
pub(super) struct Pace {
    rate: Option<f64>,
    /// Steps of the ramp that are left, and how many of the present one.
    ramp: std::vec::IntoIter<u64>,
    left_of_step: u64,
    settle: Duration,
    settling_until: Option<Duration>,
    ramping: bool,
    /// When the full rate began, and how many were sent since.
    full_since: Duration,
    sent_at_full: u64,
    looked: Duration,
}

impl Pace {
    pub(super) fn new(rate: Option<f64>, ramp: &[u64], settle: Duration) -> Self {
        let mut ramp: std::vec::IntoIter<u64> = Vec::from(ramp).into_iter();
        let first = ramp.next();
        Self {
            rate,
            ramp,
            left_of_step: first.unwrap_or(0),
            settle,
            settling_until: None,
            ramping: first.is_some(),
            full_since: Duration::ZERO,
            sent_at_full: 0,
            looked: Duration::ZERO,
        }
    }

    pub(super) fn next(&mut self, now: Duration) -> Move {
        if self.ramping {
            return self.next_of_ramp(now);
        }
        if now.saturating_sub(self.looked) >= LOOK {
            self.looked = now;
            return Move::Look;
        }
        let Some(rate) = self.rate else { return Move::Send(WINDOW) };
        let since = now.saturating_sub(self.full_since).as_secs_f64();
        // precise enough: a job of 2^53 messages does not end
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative, and far below the limit"
        )]
        let due = (since * rate).floor() as u64 + 1;
        match due.saturating_sub(self.sent_at_full) {
            0 => {
                #[expect(clippy::cast_precision_loss, reason = "a job of 2^53 messages does not end")]
                let next = self.sent_at_full as f64 / rate;
                let wait = Duration::try_from_secs_f64(next - since).unwrap_or_default();
                Move::Wait(wait.clamp(TICK, LOOK))
            }
            due => Move::Send(due.min(WINDOW)),
        }
    }

    fn next_of_ramp(&mut self, now: Duration) -> Move {
        if self.left_of_step > 0 {
            return Move::Send(self.left_of_step.min(WINDOW));
        }
        let until = *self.settling_until.get_or_insert(now + self.settle);
        if now < until {
            return Move::Wait(until.saturating_sub(now).min(LOOK));
        }
        self.settling_until = None;
        if let Some(step) = self.ramp.next() {
            self.left_of_step = step;
        } else {
            self.ramping = false;
            self.full_since = now;
            self.looked = now;
        }
        Move::Look
    }

    /// So many were sent of what [`next`](Self::next) allowed.
    pub(super) fn sent(&mut self, count: u64) {
        if self.ramping {
            self.left_of_step = self.left_of_step.saturating_sub(count);
        } else {
            self.sent_at_full += count;
        }
    }
}

/// Whether too many failed again.
#[expect(clippy::cast_precision_loss, reason = "a fraction of counts")]
pub(super) fn too_many(sent: u64, failed: u64, stop_above: f64) -> bool {
    stop_above < 1.0 && sent > 0 && failed as f64 > sent as f64 * stop_above
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs it on a clock of its own; returns how many were sent by when, and at how many sent it looked.
    fn simulate(mut pace: Pace, messages: u64, trip: Duration) -> (Duration, Vec<u64>) {
        let (mut now, mut sent, mut looks) = (Duration::ZERO, 0, Vec::new());
        while sent < messages {
            match pace.next(now) {
                Move::Send(count) => {
                    assert!((1..=WINDOW).contains(&count));
                    let count = count.min(messages - sent);
                    pace.sent(count);
                    sent += count;
                    now += trip;
                }
                Move::Wait(wait) => {
                    assert!(!wait.is_zero());
                    now += wait;
                }
                Move::Look => looks.push(sent),
            }
        }
        (now, looks)
    }

    #[test]
    fn the_rate_is_kept_whatever_a_round_trip_takes() {
        for rate in [7.0, 100.0, 2500.0] {
            for trip in [1, 8, 20] {
                let messages = 20_000;
                let pace = Pace::new(Some(rate), &[], Duration::ZERO);
                let (took, _) = simulate(pace, messages, Duration::from_millis(trip));
                let found = 20_000.0 / took.as_secs_f64();
                assert!((found / rate - 1.0).abs() < 0.02, "{found} for {rate}, trip {trip}");
            }
        }
    }

    #[test]
    fn it_looks_after_each_step_of_the_ramp_and_waits_before() {
        let settle = Duration::from_secs(5);
        let (took, looks) = simulate(Pace::new(None, &[1, 2, 5], settle), 9, Duration::from_millis(1));
        assert_eq!(looks, [1, 3, 8]);
        assert!(took >= settle * 3);
    }

    #[test]
    fn a_fraction_is_too_many_only_above_the_limit() {
        assert!(!too_many(0, 0, 0.2) && !too_many(10, 2, 0.2) && too_many(10, 3, 0.2));
        assert!(too_many(1, 1, 0.2) && !too_many(1, 1, 1.0) && too_many(1000, 1, 0.0));
    }
}
