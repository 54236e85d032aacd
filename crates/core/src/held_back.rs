//! Acknowledgments that are held back, to be sent together: when they go.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Longest that an acknowledgment is held back.
const HOLD_BACK: Duration = Duration::from_millis(5);
/// Where nothing is in flight they go at once, but not more often than this: a consumer that is faster than its broker has
/// nothing in flight after every handful, and a frame for each costs the broker more than the messages do.
const PACE: Duration = Duration::from_millis(1);

/// Those handed to the settler since the last flush.
pub(crate) struct HeldBack {
    count: usize,
    /// When they were first looked at, and when some went the last time.
    since: Option<Instant>,
    went: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl HeldBack {
    pub(crate) fn new() -> Self {
        Self { count: 0, since: None, went: None, timer: Box::pin(tokio::time::sleep(HOLD_BACK)) }
    }

    /// One more; how many there are.
    pub(crate) fn add(&mut self) -> usize {
        self.count += 1;
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// They are sent now.
    pub(crate) fn go(&mut self) {
        (self.count, self.since, self.went) = (0, None, Some(Instant::now()));
    }

    /// Ready when they are to go. `idle`: nothing is in flight.
    pub(crate) fn poll_due(&mut self, cx: &mut Context<'_>, idle: bool) -> Poll<()> {
        if self.count == 0 {
            return Poll::Pending;
        }
        let now = Instant::now();
        let due = due(idle, *self.since.get_or_insert(now), self.went);
        if due <= now {
            return Poll::Ready(());
        }
        // one that is early only looks again; to set it each time would cost more
        let wakes = self.timer.deadline();
        if wakes <= now || wakes > due {
            self.timer.as_mut().reset(due);
        }
        self.timer.as_mut().poll(cx)
    }
}

/// PURE: when they go.
fn due(idle: bool, since: Instant, went: Option<Instant>) -> Instant {
    let latest = since + HOLD_BACK;
    if idle { went.map_or(since, |went| (went + PACE).max(since)).min(latest) } else { latest }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_is_held_for_long_and_what_comes_rarely_not_at_all(since in 0_u64..100, before in 0_u64..100, idle: bool) {
            let start = Instant::now();
            let went = start + Duration::from_millis(100);
            let since = went + Duration::from_millis(since);
            let due = due(idle, since, Some(went));
            prop_assert!(due >= since && due <= since + HOLD_BACK);
            prop_assert!(idle || due == since + HOLD_BACK);
            prop_assert!(!idle || due == since || due == went + PACE);
            prop_assert_eq!(self::due(true, since + Duration::from_millis(before), None), since + Duration::from_millis(before));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_one_goes_at_once_and_a_stream_of_them_once_a_millisecond() {
        let mut held = HeldBack::new();
        let (start, mut times) = (Instant::now(), Vec::new());
        for _ in 0..3 {
            held.add();
            poll_fn(|cx| held.poll_due(cx, true)).await;
            held.go();
            times.push(start.elapsed());
        }
        assert_eq!(times, [0, 1, 2].map(Duration::from_millis));
        tokio::time::advance(Duration::from_millis(10)).await;
        held.add();
        poll_fn(|cx| held.poll_due(cx, true)).await;
        assert_eq!(start.elapsed(), Duration::from_millis(12));
    }

    #[tokio::test(start_paused = true)]
    async fn while_something_is_in_flight_they_wait_for_it() {
        let (mut held, start) = (HeldBack::new(), Instant::now());
        held.add();
        tokio::select! {
            biased;
            () = poll_fn(|cx| held.poll_due(cx, false)) => panic!("after {:?}", start.elapsed()),
            () = tokio::time::sleep(Duration::from_millis(4)) => {}
        }
        // now it is done: nothing went before, so there is nothing to wait for
        poll_fn(|cx| held.poll_due(cx, true)).await;
        assert_eq!(start.elapsed(), Duration::from_millis(4));
        held.go();
        held.add();
        poll_fn(|cx| held.poll_due(cx, false)).await;
        assert_eq!(start.elapsed(), Duration::from_millis(9));
    }
}
