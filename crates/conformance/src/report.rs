//! What the suite says of a broker.

use std::fmt;

use crate::property::Need;

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub(crate) promise: &'static str,
    pub(crate) seen: String,
    pub(crate) place: String,
}

impl Violation {
    /// What was promised.
    pub fn promise(&self) -> &str {
        self.promise
    }

    /// What was seen instead.
    pub fn seen(&self) -> &str {
        &self.seen
    }

    /// The queue or stream it was seen on.
    pub fn place(&self) -> &str {
        &self.place
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "promised: {}; seen: {}; on `{}`", self.promise, self.seen, self.place)
    }
}

impl std::error::Error for Violation {}

/// How one property went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a failed property is seen nowhere else"]
pub enum Verdict {
    /// The promise was kept.
    Kept,
    /// The broker, or this kind of source, cannot do this.
    Skipped(Need),
    /// The promise was not kept.
    Failed(Violation),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept => f.write_str("ok"),
            Self::Skipped(need) => write!(f, "skipped: broker has no {need}"),
            Self::Failed(violation) => write!(f, "FAILED: {violation}"),
        }
    }
}

/// How all properties went; prints as one line each.
#[derive(Clone, Debug, Default)]
#[must_use = "a failed property is seen nowhere else"]
pub struct Report {
    pub(crate) lines: Vec<(&'static str, Verdict)>,
}

impl Report {
    /// Whether no promise was broken.
    pub fn passed(&self) -> bool {
        !self.lines.iter().any(|(_, verdict)| matches!(verdict, Verdict::Failed(_)))
    }

    /// Property names and how they went.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Verdict)> {
        self.lines.iter().map(|(name, verdict)| (*name, verdict))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|(name, verdict)| writeln!(f, "{name}: {verdict}"))
    }
}
