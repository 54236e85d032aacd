//! Wall clock and CPU time, from the first message to the last.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;

/// What some messages took.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    /// How many.
    pub messages: u64,
    /// How long.
    pub wall: Duration,
    /// User and system time of all threads of this process: the client's share, not the broker's.
    pub cpu: Duration,
}

impl Spent {
    /// Messages per second.
    #[expect(clippy::cast_precision_loss, reason = "far fewer messages than 2^52")]
    pub fn rate(&self) -> f64 {
        self.messages as f64 / self.wall.as_secs_f64()
    }

    /// Microseconds of CPU per message.
    #[expect(clippy::cast_precision_loss, reason = "far fewer messages than 2^52")]
    pub fn cpu_micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.messages as f64
    }
}

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    wall: Instant,
    cpu: Duration,
}

impl Reading {
    pub(crate) fn now() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu = Duration::try_from(cpu).unwrap_or_default();
        Self { wall: Instant::now(), cpu }
    }

    pub(crate) fn until_now(self, messages: u64) -> Spent {
        let now = Self::now();
        Spent { messages, wall: now.wall - self.wall, cpu: now.cpu.saturating_sub(self.cpu) }
    }
}

/// Counts messages, and knows what passed between the first and the last.
#[derive(Debug)]
pub(crate) struct Meter {
    expected: u64,
    count: AtomicU64,
    first: OnceLock<Reading>,
    done: Mutex<Option<oneshot::Sender<Spent>>>,
}

impl Meter {
    pub(crate) fn new(expected: u64) -> (Arc<Self>, oneshot::Receiver<Spent>) {
        let (done, spent) = oneshot::channel();
        let count = AtomicU64::new(0);
        (Arc::new(Self { expected, count, first: OnceLock::new(), done: Mutex::new(Some(done)) }), spent)
    }

    /// One message more; true for the last.
    pub(crate) fn count(&self) -> bool {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        if count == 1 {
            self.first.get_or_init(Reading::now);
        }
        if count == self.expected {
            self.finish();
        }
        count >= self.expected
    }

    fn finish(&self) {
        let spent = self.first.get().map(|first| first.until_now(self.expected - 1));
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(spent), Some(done)) = (spent, done) {
            // this fails where nobody waits any more
            let _ = done.send(spent);
        }
    }
}
