//! [`Retention`], and what a trim under it found: [`Trimmed`].

use std::time::Duration;

/// How much of a stream to keep. What goes beyond any of the limits may be trimmed, oldest first; without a limit nothing
/// may.
///
/// ```
/// use std::time::Duration;
/// use steadfast_streams::{Retention, Stream};
///
/// let week = Duration::from_secs(7 * 24 * 3600);
/// let retention = Retention::new().last(100_000).younger_than(week);
/// let group = Stream::new("orders").group("billing").retain(retention).retain_dead_letters(Retention::new().last(10_000));
/// # let _ = group;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    pub(crate) last: Option<u64>,
    pub(crate) age: Option<Duration>,
}

impl Retention {
    /// Everything is kept.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps at most so many entries, the newest.
    #[must_use]
    pub fn last(mut self, entries: u64) -> Self {
        self.last = Some(entries);
        self
    }

    /// Keeps entries that were added less than `age` ago, by the time in their IDs and the server's clock.
    #[must_use]
    pub fn younger_than(mut self, age: Duration) -> Self {
        self.age = Some(age);
        self
    }
}

/// What a trim took away, or would take.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trimmed {
    /// How many entries.
    pub count: u64,
    /// The ID of the oldest entry that is kept; none where none is left.
    pub oldest_kept: Option<String>,
    /// Why more than the retention asks for is kept, if it is.
    pub held_back: Option<HeldBack>,
}

/// What keeps an entry that the retention would let go.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeldBack {
    /// This group has not read it yet, or has it pending.
    Group(String),
    /// The stream has no group: whoever is to read it may not have come yet.
    NoGroup,
}
