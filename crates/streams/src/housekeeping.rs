//! What a slot does for everybody's good while it runs: names of the dead taken out, streams kept within their retention.
//!
//! Any number of consumers may do the same at once: each step is one script that looks again.

use std::time::{Duration, Instant};

use redis::RedisError;

use crate::connection::Line;
use crate::names;
use crate::retention::Retention;
use crate::slot::Slot;
use crate::trim;

/// How often to look whether a stream is longer than it may be.
const TRIM: Duration = Duration::from_secs(1);
/// How soon to go on where one turn was not enough.
const GO_ON: Duration = Duration::from_millis(20);
/// Most steps in one turn: settling must not wait for it.
const STEPS: usize = 5;
/// How long to leave it after an error.
const PAUSE: Duration = Duration::from_secs(30);

pub(crate) struct Chores {
    reap_at: Instant,
    /// For the stream, and for its dead letters; none: nothing to do there.
    trim_at: [Option<Instant>; 2],
}

impl Chores {
    pub(crate) fn new(slot: &Slot) -> Self {
        let now = Instant::now();
        let trim_at = retained(slot).map(|(_, retention, _)| retention.map(|_| now + TRIM));
        Self { reap_at: now + reap_interval(slot), trim_at }
    }

    /// When to call [`run`](Self::run) next.
    pub(crate) fn due(&self) -> Instant {
        self.trim_at.iter().flatten().copied().fold(self.reap_at, Instant::min)
    }

    /// Does what is due.
    pub(crate) async fn run(&mut self, slot: &Slot) {
        let now = Instant::now();
        if now >= self.reap_at {
            reap(slot).await;
            self.reap_at = Instant::now() + reap_interval(slot);
        }
        for (at, (stream, retention, unread)) in self.trim_at.iter_mut().zip(retained(slot)) {
            let (Some(due), Some(retention)) = (&mut *at, retention) else { continue };
            if now >= *due {
                *due = Instant::now() + keep_within(&slot.line, stream, retention, unread).await;
            }
        }
    }
}

/// Streams that are kept within limits, and whether entries may go that no group is there to read.
fn retained(slot: &Slot) -> [(&str, Option<&Retention>, bool); 2] {
    let group = &slot.group;
    [(&group.stream, group.retain.as_ref(), false), (&slot.dead, group.retain_dead.as_ref(), true)]
}

fn reap_interval(slot: &Slot) -> Duration {
    (slot.group.reap_idle() / 2).max(Duration::from_millis(200))
}

/// Takes out the names that the dead left behind.
async fn reap(slot: &Slot) {
    let (group, consumer) = (&slot.group, &slot.consumer);
    match names::reap_dead(&slot.line, group, consumer, group.reap_idle()).await {
        Ok(0) => {}
        Ok(names) => {
            tracing::info!(stream = %group.stream, group = %group.name, names, "took out the names of dead consumers");
        }
        Err(error) => tracing::debug!(%error, stream = %group.stream, "could not look for dead consumers"),
    }
}

/// Trims for a while; returns when to look again.
async fn keep_within(line: &Line, stream: &str, retention: &Retention, unread: bool) -> Duration {
    match trim_steps(line, stream, retention, unread).await {
        Ok((0, _)) => TRIM,
        Ok((trimmed, more)) => {
            tracing::debug!(stream, trimmed, "trimmed what no group needs");
            if more { GO_ON } else { TRIM }
        }
        Err(error) => {
            tracing::warn!(%error, stream, again_in = ?PAUSE, "could not trim the stream");
            PAUSE
        }
    }
}

async fn trim_steps(
    line: &Line,
    stream: &str,
    retention: &Retention,
    unread: bool,
) -> Result<(u64, bool), RedisError> {
    let mut trimmed = 0;
    for _ in 0..STEPS {
        let step = trim::step(line, stream, retention, unread, trim::Pass::Trim).await?;
        trimmed += step.count;
        if !step.more {
            return Ok((trimmed, false));
        }
    }
    Ok((trimmed, true))
}
