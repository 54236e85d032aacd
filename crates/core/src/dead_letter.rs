//! The dead-letter record: the same names on every broker.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::delivery::Delivery;
use crate::headers::{Headers, known};
use crate::outcome::Failure;
use crate::settle::{cut, millis};

/// Why a message was dead-lettered: one word, stable, in the header `steadfast-reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The last allowed attempt returned an error.
    Exhausted,
    /// The last allowed attempt panicked.
    Panicked,
    /// The last allowed attempt took too long.
    TimedOut,
    /// The handler rejected it.
    Rejected,
    /// The body does not decode.
    Undecodable,
    /// No handler takes messages of this type.
    UnknownType,
    /// A header makes no sense.
    BadHeaders,
    /// Too old for another attempt.
    Expired,
    /// It was delivered again and again and never settled: it takes its process down.
    Crashed,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Exhausted,
        Self::Panicked,
        Self::TimedOut,
        Self::Rejected,
        Self::Undecodable,
        Self::UnknownType,
        Self::BadHeaders,
        Self::Expired,
        Self::Crashed,
    ];

    /// The word in the header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Panicked => "panicked",
            Self::TimedOut => "timed-out",
            Self::Rejected => "rejected",
            Self::Undecodable => "undecodable",
            Self::UnknownType => "unknown-type",
            Self::BadHeaders => "bad-headers",
            Self::Expired => "expired",
            Self::Crashed => "crashed",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A dead letter's record: the headers that are set over the message's own when it goes to the dead letters.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    reason: Reason,
    headers: Headers,
}

/// Names the process that a dead letter comes from.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) consumer: Arc<str>,
    pub(crate) handler: &'static str,
    pub(crate) host: Arc<str>,
    pub(crate) app_version: Option<Arc<str>>,
}

/// How many headers a record has at most.
const MOST: usize = 20;
/// Longest error chain in a record, in bytes; a whole record stays well within the smallest AMQP frame.
const CHAIN_LIMIT: usize = 2048;

impl DeadLetter {
    pub(crate) fn new(
        reason: Reason,
        failure: &Failure,
        delivery: &Delivery,
        attempts: u32,
        scene: &Scene,
        now: SystemTime,
    ) -> Self {
        let (incoming, mut headers) = (delivery.incoming(), Headers::with_capacity(MOST));
        let (chain, origin) = (failure.chain(), &incoming.origin);
        headers.set(known::RETRY_COUNT, attempts);
        headers.set(known::ERROR, cut(&chain, 1024));
        headers.set(known::REASON, reason.as_str());
        headers.set(known::ERROR_CHAIN, cut(&chain, CHAIN_LIMIT));
        if chain.len() > CHAIN_LIMIT {
            headers.set(known::TRUNCATED, "true");
        }
        headers.set(known::FINGERPRINT, format!("{:016x}", failure.fingerprint()));
        if let Some(class) = failure.class_name() {
            headers.set(known::CLASS, cut(class, 128));
        }
        headers.set(known::HANDLER, scene.handler);
        headers.set(known::CONSUMER, &*scene.consumer);
        headers.set(known::SOURCE, &*origin.source);
        for (name, value) in [
            (known::EXCHANGE, &origin.exchange),
            (known::ROUTING_KEY, &origin.routing_key),
            (known::ENTRY_ID, &origin.entry_id),
        ] {
            if let Some(value) = value {
                headers.set(name, cut(value, 512));
            }
        }
        headers.set(known::ATTEMPTS, attempts);
        if incoming.headers.get(known::FIRST_FAILURE).is_none() {
            headers.set(known::FIRST_FAILURE, millis(now));
        }
        headers.set(known::LAST_FAILURE, millis(now));
        headers.set(known::HOST, &*scene.host);
        if let Some(version) = &scene.app_version {
            headers.set(known::APP_VERSION, &**version);
        }
        if incoming.headers.get(known::REDRIVE_COUNT).is_none() {
            headers.set(known::REDRIVE_COUNT, 0_u32);
        }
        Self { reason, headers }
    }

    /// Adds that the last chance failed, and how.
    pub(crate) fn last_chance_failed(&mut self, chain: &str) {
        self.headers.set(known::ON_DEAD_ERROR, cut(chain, 512));
    }

    /// A record with exactly these headers, for the tests of brokers.
    ///
    /// ```
    /// use steadfast_core::{DeadLetter, Headers, Reason, known};
    ///
    /// let mut headers = Headers::new();
    /// headers.set(known::REASON, Reason::Rejected.as_str());
    /// assert_eq!(DeadLetter::from_headers(Reason::Rejected, headers).reason(), Reason::Rejected);
    /// ```
    pub fn from_headers(reason: Reason, headers: Headers) -> Self {
        Self { reason, headers }
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The record as headers, to be set over the message's own.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }
}
