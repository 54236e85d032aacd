//! A dead letter as an operator sees it, and which of them are meant.
//!
//! PURE: what a letter says of itself, where it came from, and whether a [`Filter`] fits.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::broker::Destination;
use crate::delivery::{Incoming, Payload, Token};
use crate::headers::{HeaderValue, known};

/// A dead letter, where it lies.
#[derive(Clone, Debug)]
pub struct Letter {
    /// What the broker finds it by: an entry ID, or a delivery tag that is good for one walk.
    pub mark: Token,
    /// The message with its record.
    pub message: Arc<Incoming>,
}

/// Where redriven messages go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RedriveTo {
    /// As they were published: RabbitMQ's exchange with the routing key, which reaches every queue that is bound; else the
    /// queue or stream they were taken from, and on Redis the consumer group that gave up alone.
    #[default]
    Original,
    /// Straight to the queue or stream that they were taken from, whoever else is bound to their exchange.
    Source,
    /// To this queue or stream.
    Queue(String),
}

impl Letter {
    /// The message id, or what stands for it.
    pub fn id(&self) -> Cow<'_, str> {
        self.message.id()
    }

    /// One word of [`Reason`](crate::Reason); none where it has no record.
    pub fn reason(&self) -> Option<&str> {
        self.header(known::REASON)
    }

    /// The same for failures of one kind.
    pub fn fingerprint(&self) -> Option<&str> {
        self.header(known::FINGERPRINT)
    }

    /// What failed: the chain of errors.
    pub fn error(&self) -> Option<&str> {
        self.header(known::ERROR_CHAIN).or_else(|| self.header(known::ERROR))
    }

    /// The consumer that gave it up.
    pub fn consumer(&self) -> Option<&str> {
        self.header(known::CONSUMER)
    }

    /// The queue or stream that it was taken from.
    pub fn source(&self) -> Option<&str> {
        self.header(known::SOURCE)
    }

    /// How often it was redriven.
    pub fn redrives(&self) -> u32 {
        let count = self.int(known::REDRIVE_COUNT).unwrap_or(0);
        u32::try_from(count.max(0)).unwrap_or(u32::MAX)
    }

    /// The job that redrove it last.
    pub fn job(&self) -> Option<&str> {
        self.header(known::REDRIVE_JOB)
    }

    /// When it failed last.
    pub fn failed_at(&self) -> Option<SystemTime> {
        let millis = u64::try_from(self.int(known::LAST_FAILURE)?).ok()?;
        UNIX_EPOCH.checked_add(Duration::from_millis(millis))
    }

    /// Where it goes; the error says what is missing and the way out.
    pub fn destination(&self, route: &RedriveTo) -> Result<Destination, String> {
        if let RedriveTo::Queue(name) = route {
            return Ok(Destination::queue(name.as_str()));
        }
        if let (RedriveTo::Original, Some(exchange), Some(key)) =
            (route, self.header(known::EXCHANGE), self.header(known::ROUTING_KEY))
            && !exchange.is_empty()
        {
            return Ok(Destination::exchange(exchange, key));
        }
        self.source().map(Destination::queue).ok_or_else(|| {
            format!("{} does not say where it came from (no `{}`): name a queue", self.id(), known::SOURCE)
        })
    }

    /// What tells it from every other letter of a job. A mark does where it lasts; a delivery tag does not.
    pub(crate) fn key(&self, marks_last: bool) -> String {
        if marks_last {
            return format!("{}-{}", self.mark.0, self.mark.1);
        }
        let failed = self.int(known::LAST_FAILURE).unwrap_or_default();
        let words = [self.source(), self.consumer()].map(Option::unwrap_or_default).join("/");
        format!("{}|{words}|{failed}|{:016x}", self.id(), checksum(&self.message.payload))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.message.headers.text(name).ok().flatten()
    }

    fn int(&self, name: &str) -> Option<i64> {
        self.message.headers.int(name).ok().flatten()
    }
}

/// Tells copies of one message apart from different ones that share an id; not made to withstand forgery.
fn checksum(payload: &Payload) -> u64 {
    let fold = |sum: u64, bytes: &[u8]| {
        bytes.iter().fold(sum, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
    };
    match payload {
        Payload::Body(body) => fold(0xcbf2_9ce4_8422_2325, body),
        Payload::Fields(fields) => fields
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |sum, (name, value)| fold(fold(sum, name.as_bytes()), value)),
    }
}

/// Which letters are meant: those that fit everything that is set. The default fits all.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use steadfast_core::{Filter, Headers, Incoming, Letter, Origin, Token, known};
///
/// let mut message = Incoming::new(r#"{"id":7}"#, Origin::default());
/// message.headers.set(known::REASON, "exhausted").set("tenant", "acme");
/// let letter = Letter { mark: Token(1, 0), message: message.into() };
///
/// let filter = Filter { reasons: vec!["exhausted".into()], text: Some("\"id\":7".into()), ..Filter::default() };
/// assert!(filter.fits(&letter, SystemTime::now()));
/// let filter = Filter { headers: vec![("tenant".into(), Some("other".into()))], ..filter };
/// assert!(!filter.fits(&letter, SystemTime::now()));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Words of [`Reason`](crate::Reason): one of them.
    pub reasons: Vec<String>,
    /// Message ids: one of them.
    pub ids: Vec<String>,
    /// [`Failure::fingerprint`](crate::Failure::fingerprint), in hexadecimal.
    pub fingerprint: Option<String>,
    /// Message type.
    pub message_type: Option<String>,
    /// Name of the consumer that gave up.
    pub consumer: Option<String>,
    /// Failed last at least so long ago.
    pub older_than: Option<Duration>,
    /// Failed last at most so long ago.
    pub younger_than: Option<Duration>,
    /// Headers that must be there, each with the text of its value where one is given.
    pub headers: Vec<(String, Option<String>)>,
    /// Text that the body has somewhere.
    pub text: Option<String>,
}

impl Filter {
    /// Whether the letter is meant; `now` is what ages are counted from.
    pub fn fits(&self, letter: &Letter, now: SystemTime) -> bool {
        let message = &*letter.message;
        let one_of = |words: &[String], word: Option<&str>| {
            words.is_empty() || word.is_some_and(|word| words.iter().any(|known| known == word))
        };
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        // what does not say when it failed is neither old nor young
        let age = letter.failed_at().map(|at| now.duration_since(at).unwrap_or_default());
        one_of(&self.reasons, letter.reason())
            && one_of(&self.ids, Some(&letter.id()))
            && is(&self.fingerprint, letter.fingerprint())
            && is(&self.message_type, message.message_type.as_deref())
            && is(&self.consumer, letter.consumer())
            && self.older_than.is_none_or(|limit| age.is_some_and(|age| age >= limit))
            && self.younger_than.is_none_or(|limit| age.is_some_and(|age| age <= limit))
            && self.headers.iter().all(|(name, value)| has_header(message, name, value.as_deref()))
            && self.text.as_deref().is_none_or(|text| contains(&message.payload, text.as_bytes()))
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn has_header(message: &Incoming, name: &str, wanted: Option<&str>) -> bool {
    match (message.headers.get(name), wanted) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(HeaderValue::Text(text)), Some(wanted)) => text == wanted,
        (Some(value), Some(wanted)) => value.to_string() == wanted,
    }
}

fn contains(payload: &Payload, text: &[u8]) -> bool {
    let within = |bytes: &[u8]| text.is_empty() || bytes.windows(text.len()).any(|window| window == text);
    match payload {
        Payload::Body(body) => within(body),
        Payload::Fields(fields) => fields.iter().any(|(_, value)| within(value)),
    }
}
