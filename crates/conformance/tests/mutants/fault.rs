//! What can be wrong with a broker, and which properties have to see it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use steadfast_core::{Settler, Token};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Passes everything on as it is.
    None,
    /// Has consumer groups, and does well by them.
    HasGroups,
    // publishing and declaring
    LosesMessages,
    DoublesMessages,
    SwallowsUnroutable,
    RefusesSecondDeclare,
    IgnoresNative,
    // delivering
    LosesBytes,
    ForgetsContentType,
    InventsHeader,
    MakesHeadersText,
    SortsFields,
    ForgetsRedelivered,
    NeverCounts,
    IgnoresRoom,
    IgnoresMaxInFlight,
    AcksBeforeHandingOut,
    PendingAfterClose,
    KeepsWhatItReadAhead,
    // settling
    NeverAcks,
    AcksAllBefore,
    FinishForgetsAcks,
    AcksByMessage,
    StopEndsSettling,
    ReleaseAcks,
    ReleaseCounts,
    RetriesEarly,
    RetriesLate,
    RetryForgetsOldHeaders,
    RetryForgetsNewHeaders,
    RetryKeepsOriginal,
    RetryReachesAllGroups,
    SnoozeCounts,
    DeadLetterForgetsRecord,
    DeadLetterKeepsOriginal,
    // closing
    CloseAcks,
    WorksAfterClose,
}

pub(crate) const CAUGHT: &[(Fault, &[&str])] = &[
    (Fault::LosesMessages, &["bodies", "many_publishers", "competing", "handled"]),
    (Fault::DoublesMessages, &["bodies", "competing", "handled"]),
    (Fault::SwallowsUnroutable, &["unroutable"]),
    (Fault::RefusesSecondDeclare, &["declared_twice"]),
    (Fault::IgnoresNative, &["foreign_source"]),
    (Fault::LosesBytes, &["bodies", "properties", "retry_keeps", "dead_lettered", "undecodable"]),
    (Fault::ForgetsContentType, &["properties"]),
    (Fault::InventsHeader, &["properties"]),
    (Fault::MakesHeadersText, &["typed_headers"]),
    (Fault::SortsFields, &["fields"]),
    (Fault::ForgetsRedelivered, &["redelivered"]),
    (Fault::NeverCounts, &["counted"]),
    (Fault::IgnoresRoom, &["room"]),
    (Fault::IgnoresMaxInFlight, &["max_in_flight"]),
    (Fault::AcksBeforeHandingOut, &["redelivered", "connection_lost", "out_of_order", "settled_late"]),
    (Fault::PendingAfterClose, &["ends"]),
    (Fault::KeepsWhatItReadAhead, &["narrow", "stopped"]),
    (Fault::NeverAcks, &["acked", "finished", "out_of_order", "handled", "drained"]),
    (Fault::AcksAllBefore, &["out_of_order"]),
    (Fault::FinishForgetsAcks, &["finished"]),
    (Fault::AcksByMessage, &["settled_late"]),
    (Fault::StopEndsSettling, &["stopped", "released"]),
    (Fault::ReleaseAcks, &["released", "drained"]),
    (Fault::ReleaseCounts, &["released"]),
    (Fault::RetriesEarly, &["retry_waits"]),
    (Fault::RetriesLate, &["retry_waits", "retry_at_once"]),
    (Fault::RetryForgetsOldHeaders, &["retry_keeps", "retry_counts", "snoozed"]),
    (Fault::RetryForgetsNewHeaders, &["retry_keeps", "retry_counts", "attempts"]),
    (Fault::RetryKeepsOriginal, &["retry_is_one"]),
    (Fault::RetryReachesAllGroups, &["retry_in_group"]),
    (Fault::SnoozeCounts, &["snoozed"]),
    (Fault::DeadLetterForgetsRecord, &["dead_lettered", "attempts", "undecodable"]),
    (Fault::DeadLetterKeepsOriginal, &["dead_lettered", "undecodable"]),
    (Fault::CloseAcks, &["connection_lost"]),
    (Fault::WorksAfterClose, &["closed", "ends"]),
];

/// What all connections to one faulty broker share.
pub(crate) struct World {
    pub(crate) fault: Fault,
    state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) declared: BTreeSet<String>,
    pub(crate) groups: BTreeMap<String, BTreeSet<String>>,
    pub(crate) published: usize,
    /// Who had a message last.
    pub(crate) holders: BTreeMap<String, (Arc<dyn Settler>, Token)>,
}

impl World {
    pub(crate) fn new(fault: Fault) -> Self {
        Self { fault, state: Mutex::default() }
    }

    pub(crate) fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    pub(crate) fn has_groups(&self) -> bool {
        matches!(self.fault, Fault::HasGroups | Fault::RetryReachesAllGroups)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queues that stand for the groups of this stream; the queue itself where there are no groups.
    pub(crate) fn queues(&self, stream: &str) -> Vec<String> {
        let state = self.state();
        match state.groups.get(stream) {
            Some(groups) => groups.iter().map(|group| queue_of(stream, group)).collect(),
            None => vec![stream.to_owned()],
        }
    }
}

pub(crate) fn queue_of(stream: &str, group: &str) -> String {
    format!("{stream}@{group}")
}
