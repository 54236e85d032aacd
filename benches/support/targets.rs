//! What the figures are to reach.

use crate::contest::Row;

/// What a row is to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// The ratio is at least this.
    Ratio(f64),
    /// The ratio is at most this.
    Cost(f64),
    /// Our own figure is at least this.
    Ours(f64),
}

const TARGETS: [(&str, Target); 16] = [
    ("consume-rabbitmq", Target::Ratio(0.95)),
    ("consume-rabbitmq-cpu", Target::Cost(1.25)),
    ("consume-rabbitmq-usual", Target::Ratio(3.5)),
    ("consume-rabbitmq-default", Target::Ratio(0.95)),
    ("consume-rabbitmq-default-cpu", Target::Cost(1.25)),
    ("publish-rabbitmq", Target::Ratio(0.95)),
    ("publish-rabbitmq-usual", Target::Ratio(10.0)),
    ("publish-rabbitmq-quorum", Target::Ratio(0.95)),
    ("publish-rabbitmq-quorum-usual", Target::Ratio(10.0)),
    ("consume-redis", Target::Ratio(0.85)),
    ("consume-redis-cpu", Target::Cost(1.5)),
    ("consume-redis-usual", Target::Ratio(20.0)),
    ("embedded", Target::Ours(1_000_000.0)),
    ("panics-rabbitmq", Target::Ratio(0.9)),
    ("panics-redis", Target::Ratio(0.9)),
    ("panics-embedded", Target::Ratio(0.9)),
];

impl Target {
    /// The one for a row, if there is one.
    pub(crate) fn of(row: &Row) -> Option<Self> {
        TARGETS.iter().find(|(name, _)| *name == row.name).map(|(_, target)| *target)
    }

    pub(crate) fn reached(self, row: &Row) -> bool {
        match self {
            Self::Ratio(least) => row.ratio >= least,
            Self::Cost(most) => row.ratio <= most,
            Self::Ours(least) => row.ours >= least,
        }
    }
}
