//! Redrive: dead letters back to where they came from, as a job that can be stopped, resumed and trusted.
//!
//! ```text
//!  Walk::next ─► filter ─► sort out ─► Journal "intended" ─► Walk::forward ─► Journal "sent"
//!                            │ pace.rs says how many, and when to look whether they fail again
//!                            └ seen before, parked, without an address
//! ```
//!
//! Owns the plan and the order of its steps; `pace` is pure, `journal` is the only one that touches a disk.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::delivery::Payload;
use crate::error::BoxError;
use crate::letter::{Filter, RedriveTo};

mod journal;
mod pace;
mod run;
#[cfg(test)]
mod tests;

pub use journal::Journal;

/// A redrive: which dead letters, where to, in what pace, and when to stop by itself.
///
/// | setting | default |
/// |---|---|
/// | [`filter`](Self::filter) | all letters |
/// | [`to`](Self::to) | [`RedriveTo::Original`] |
/// | [`rate`](Self::rate) | as fast as the broker takes them |
/// | [`ramp`](Self::ramp) | 1, 2, 5, 10, with 5 s after each to see whether they fail again |
/// | [`stop_above`](Self::stop_above) | 0.2: more than a fifth failed again |
/// | [`park_after`](Self::park_after) | never |
/// | [`limit`](Self::limit) | none |
///
/// A job sends each message once, whatever happens to it in between: what is intended is in its [`Journal`] before it is
/// sent, and what was sent after that. Where a crash came between the two, RabbitMQ cannot tell whether the message was
/// sent: the letter stays, and the report names it. On Redis and on the embedded broker a letter is moved in one step.
///
/// ```
/// # use std::ops::ControlFlow;
/// # use steadfast_core::{Filter, Journal, Operator, Redrive, RedriveError};
/// # async fn example(operator: &dyn Operator) -> Result<(), RedriveError> {
/// let job = Redrive::new("2024-05-03-ledger").rate(100.0).filter(Filter {
///     fingerprint: Some("a1b2c3d4e5f60718".into()),
///     ..Filter::default()
/// });
/// let mut journal = Journal::in_memory();
/// let report = job
///     .run(operator, "orders.dead", &mut journal, |progress| {
///         println!("{progress:?}");
///         ControlFlow::Continue(())
///     })
///     .await?;
/// println!("{} sent, ended: {:?}", report.sent, report.end);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a redrive does nothing until it is run"]
pub struct Redrive {
    pub(crate) job: String,
    pub(crate) filter: Filter,
    pub(crate) to: RedriveTo,
    pub(crate) limit: Option<u64>,
    pub(crate) rate: Option<f64>,
    pub(crate) ramp: Vec<u64>,
    pub(crate) settle: Duration,
    pub(crate) stop_above: f64,
    pub(crate) park: Option<(u32, String)>,
    pub(crate) payload: Option<Payload>,
    pub(crate) resend_uncertain: bool,
    pub(crate) now: SystemTime,
}

impl Redrive {
    /// A job of this name. Messages carry it as `steadfast-redrive-job`: the same name again means the same job.
    pub fn new(job: impl Into<String>) -> Self {
        Self {
            job: job.into(),
            filter: Filter::default(),
            to: RedriveTo::Original,
            limit: None,
            rate: None,
            ramp: vec![1, 2, 5, 10],
            settle: Duration::from_secs(5),
            stop_above: 0.2,
            park: None,
            payload: None,
            resend_uncertain: false,
            now: SystemTime::now(),
        }
    }

    /// Only letters that fit.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// Where they go.
    pub fn to(mut self, to: RedriveTo) -> Self {
        self.to = to;
        self
    }

    /// At most so many.
    pub fn limit(mut self, letters: u64) -> Self {
        self.limit = Some(letters);
        self
    }

    /// Messages per second, once the ramp is over. Anything but a number above 0 means no limit.
    pub fn rate(mut self, per_second: f64) -> Self {
        self.rate = Some(per_second).filter(|rate| rate.is_finite() && *rate > 0.0);
        self
    }

    /// How many go at first, and then, and then; after each step it waits for `settle`, and looks whether they failed again.
    /// A consumer takes as long as its retry policy to give a message up: let `settle` be longer. An empty ramp begins with
    /// the full rate.
    pub fn ramp(mut self, steps: impl IntoIterator<Item = u64>, settle: Duration) -> Self {
        self.ramp = steps.into_iter().filter(|step| *step > 0).collect();
        self.settle = settle;
        self
    }

    /// Stops by itself when more than this fraction of what was sent has failed again; 1 is never. It looks after each step
    /// of the ramp, and then once a second.
    pub fn stop_above(mut self, fraction: f64) -> Self {
        self.stop_above = if fraction.is_finite() { fraction.clamp(0.0, 1.0) } else { 1.0 };
        self
    }

    /// Letters that were redriven so many times already go to the queue or stream `parking` instead, record and all.
    pub fn park_after(mut self, redrives: u32, parking: impl Into<String>) -> Self {
        self.park = Some((redrives, parking.into()));
        self
    }

    /// Sends another content in place of the letter's own, under a new message id, with the old one in the header
    /// `steadfast-edited-from`. For one letter: the first one that fits.
    pub fn edit(mut self, payload: impl Into<Payload>) -> Self {
        self.payload = Some(payload.into());
        self.limit(1)
    }

    /// Also sends letters of which it is not known whether the job sent them before it crashed: they may arrive twice.
    pub fn resend_uncertain(mut self) -> Self {
        self.resend_uncertain = true;
        self
    }
}

/// What a redrive would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// Letters that fit.
    pub fit: u64,
    /// Letters that are there.
    pub total: u64,
}

/// How far a redrive is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Progress {
    /// Letters that were there when it began.
    pub total: u64,
    /// Letters looked at.
    pub seen: u64,
    /// Messages sent.
    pub sent: u64,
    /// Messages that failed again, as far as it looked.
    pub failed_again: u64,
}

/// How a redrive ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum End {
    /// All that fit were dealt with, or as many as were asked for.
    Done,
    /// Too many failed again.
    StoppedItself,
    /// It was broken off, and can be resumed by its journal.
    Paused,
    /// [`Journal::undo`] was called: what was not sent yet stays in the dead letters.
    Undone,
}

/// What a redrive did.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// How it ended.
    pub end: End,
    /// Letters that were there when it began.
    pub total: u64,
    /// Letters looked at.
    pub seen: u64,
    /// Messages sent by this run.
    pub sent: u64,
    /// Letters that went to the parking lot.
    pub parked: u64,
    /// Letters that an earlier run of this job had sent already; they were taken out.
    pub sent_before: u64,
    /// Letters that somebody else took meanwhile.
    pub gone: u64,
    /// Messages of this job that failed again, as far as it looked.
    pub failed_again: u64,
    /// Letters of which nobody knows whether they were sent: each with its id. They are in the dead letters.
    pub uncertain: Vec<String>,
    /// Letters that stay because they could not be sent: each with its id and why; at most 100 are named.
    pub kept: Vec<(String, String)>,
    /// How many stay for that reason.
    pub kept_count: u64,
    /// Seconds from the first letter to the last, waits of the ramp included.
    pub seconds: f64,
}

impl Report {
    fn new(total: u64) -> Self {
        Self {
            end: End::Done,
            total,
            seen: 0,
            sent: 0,
            parked: 0,
            sent_before: 0,
            gone: 0,
            failed_again: 0,
            uncertain: Vec::new(),
            kept: Vec::new(),
            kept_count: 0,
            seconds: 0.0,
        }
    }

    fn keep(&mut self, id: &str, why: impl Into<String>) {
        self.kept_count += 1;
        if self.kept.len() < 100 {
            self.kept.push((id.to_owned(), why.into()));
        }
    }

    fn progress(&self) -> Progress {
        Progress { total: self.total, seen: self.seen, sent: self.sent, failed_again: self.failed_again }
    }
}

/// A redrive could not go on. What was sent is in the journal; what was not is in the dead letters.
#[derive(Debug)]
pub struct RedriveError {
    what: String,
    source: Option<BoxError>,
}

impl RedriveError {
    fn new(what: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self { what: what.into(), source: Some(source.into()) }
    }

    fn plain(what: impl Into<String>) -> Self {
        Self { what: what.into(), source: None }
    }
}

impl std::fmt::Display for RedriveError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for RedriveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
