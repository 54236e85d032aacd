//! Headers, and the one list of known names.
//!
//! Owns names and value types. How a broker carries them (AMQP header table, Redis fields) is the broker crates'.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// The names that Steadfast reads and writes. All but the first three begin with `steadfast-`.
pub mod known {
    /// Attempts that failed, from 0. Readable by and from any service that follows the usual retry pattern.
    pub const RETRY_COUNT: &str = "x-retry-count";
    /// Text of the last failure.
    pub const ERROR: &str = "x-error";
    /// W3C trace context, passed on as it came.
    pub const TRACEPARENT: &str = "traceparent";
    /// Message type, where the broker has no property of its own for it.
    pub const TYPE: &str = "steadfast-type";
    /// Version of the message type.
    pub const VERSION: &str = "steadfast-version";
    /// Message id, where the broker has no property of its own for it.
    pub const ID: &str = "steadfast-id";
    /// Content type, where the broker has no property of its own for it.
    pub const CONTENT_TYPE: &str = "steadfast-content-type";
    /// Correlation id, where the broker has no property of its own for it.
    pub const CORRELATION: &str = "steadfast-correlation-id";
    /// Application that published it, where the broker has no property of its own for it.
    pub const APP_ID: &str = "steadfast-app-id";
    /// Where an answer is expected, where the broker has no property of its own for it.
    pub const REPLY_TO: &str = "steadfast-reply-to";
    /// Request: until when the requester waits for the reply, in milliseconds since 1970.
    pub const DEADLINE: &str = "steadfast-deadline";
    /// Id of the message whose handling published this one.
    pub const CAUSATION: &str = "steadfast-causation-id";
    /// Ordering and partitioning key.
    pub const KEY: &str = "steadfast-key";
    /// When it was published, in milliseconds since 1970.
    pub const PUBLISHED_AT: &str = "steadfast-published-at";
    /// When this message failed first, in milliseconds since 1970.
    pub const FIRST_FAILURE: &str = "steadfast-first-failure";
    /// When this message failed last, in milliseconds since 1970.
    pub const LAST_FAILURE: &str = "steadfast-last-failure";
    /// Dead letter: why, one word of [`Reason`](crate::Reason).
    pub const REASON: &str = "steadfast-reason";
    /// Dead letter: the chain of errors, outermost first, separated by `: `.
    pub const ERROR_CHAIN: &str = "steadfast-error-chain";
    /// Dead letter: groups failures by type and place.
    pub const FINGERPRINT: &str = "steadfast-error-fingerprint";
    /// Dead letter: the class that the failure was put into ([`Failure::class`](crate::Failure::class)).
    pub const CLASS: &str = "steadfast-error-class";
    /// Dead letter: type name of the handler.
    pub const HANDLER: &str = "steadfast-handler";
    /// Dead letter: name of the consumer.
    pub const CONSUMER: &str = "steadfast-consumer";
    /// Dead letter: queue or stream it was taken from.
    pub const SOURCE: &str = "steadfast-source";
    /// Dead letter: AMQP exchange it was published to; empty is the default exchange.
    pub const EXCHANGE: &str = "steadfast-exchange";
    /// Dead letter: AMQP routing key.
    pub const ROUTING_KEY: &str = "steadfast-routing-key";
    /// Dead letter: Redis entry ID.
    pub const ENTRY_ID: &str = "steadfast-entry-id";
    /// Dead letter: attempts made, from 1.
    pub const ATTEMPTS: &str = "steadfast-attempts";
    /// Dead letter: host name.
    pub const HOST: &str = "steadfast-host";
    /// Dead letter: version of the application.
    pub const APP_VERSION: &str = "steadfast-app-version";
    /// Dead letter: how often it was redriven.
    pub const REDRIVE_COUNT: &str = "steadfast-redrive-count";
    /// Redriven message: the job that redrove it last.
    pub const REDRIVE_JOB: &str = "steadfast-redrive-job";
    /// Redriven message whose body was edited: the id that it had before.
    pub const EDITED_FROM: &str = "steadfast-edited-from";
    /// Dead letter: what became of [`Handle::on_dead`](crate::Handle::on_dead), where that failed.
    pub const ON_DEAD_ERROR: &str = "steadfast-on-dead-error";
    /// Dead letter: `true` where the record was cut to fit the broker's frame.
    pub const TRUNCATED: &str = "steadfast-truncated";
    /// The message's own headers or properties cannot be read and were left out; the text says why. Such a message goes to
    /// the dead letters.
    pub const UNREADABLE: &str = "steadfast-unreadable";

    pub(super) const ALL: &[&str] = &[
        RETRY_COUNT,
        ERROR,
        TRACEPARENT,
        TYPE,
        VERSION,
        ID,
        CONTENT_TYPE,
        CORRELATION,
        APP_ID,
        REPLY_TO,
        CAUSATION,
        KEY,
        PUBLISHED_AT,
        FIRST_FAILURE,
        LAST_FAILURE,
        REASON,
        ERROR_CHAIN,
        FINGERPRINT,
        CLASS,
        HANDLER,
        CONSUMER,
        SOURCE,
        EXCHANGE,
        ROUTING_KEY,
        ENTRY_ID,
        ATTEMPTS,
        HOST,
        APP_VERSION,
        REDRIVE_COUNT,
        REDRIVE_JOB,
        EDITED_FROM,
        ON_DEAD_ERROR,
        TRUNCATED,
        UNREADABLE,
    ];

    /// Whether `name` tells of attempts that failed, which a redrive forgets.
    pub fn is_of_attempts(name: &str) -> bool {
        matches!(name, RETRY_COUNT | ERROR | FIRST_FAILURE | LAST_FAILURE)
    }

    /// Whether `name` belongs to the dead-letter record, which a redrive takes off again.
    pub fn is_record(name: &str) -> bool {
        matches!(
            name,
            REASON
                | ERROR_CHAIN
                | FINGERPRINT
                | CLASS
                | HANDLER
                | CONSUMER
                | SOURCE
                | EXCHANGE
                | ROUTING_KEY
                | ENTRY_ID
                | ATTEMPTS
                | HOST
                | APP_VERSION
                | ON_DEAD_ERROR
                | TRUNCATED
                | UNREADABLE
        )
    }
}

/// One header's value.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum HeaderValue {
    /// UTF-8 text.
    Text(String),
    /// Any integer that fits.
    Int(i64),
    /// True or false.
    Bool(bool),
    /// Bytes that are not UTF-8.
    Bytes(Vec<u8>),
    /// A type that only the broker knows (a table, a timestamp), by its name there. The broker keeps the value itself:
    /// it is untouched when the message is retried or dead-lettered.
    Opaque(&'static str),
}

impl HeaderValue {
    /// The type's name, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Int(_) => "integer",
            Self::Bool(_) => "boolean",
            Self::Bytes(_) => "bytes",
            Self::Opaque(name) => name,
        }
    }
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for HeaderValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for HeaderValue {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<u32> for HeaderValue {
    fn from(value: u32) -> Self {
        Self::Int(i64::from(value))
    }
}

impl From<bool> for HeaderValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl fmt::Display for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Int(value) => write!(f, "{value}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Opaque(name) => write!(f, "({name})"),
        }
    }
}

/// A message's headers, in the order they were set. Names are case-sensitive; setting one again replaces it.
///
/// A clone shares them with its original until one of the two is changed.
///
/// ```
/// use steadfast_core::Headers;
///
/// let mut headers = Headers::new();
/// headers.set("tenant", "acme");
/// assert_eq!(headers.text("tenant").unwrap(), Some("acme"));
/// assert_eq!(headers.text("colour").unwrap(), None);
/// ```
#[derive(Clone, Default)]
pub struct Headers(Option<Arc<Vec<Header>>>);

type Header = (Cow<'static, str>, HeaderValue);

impl Headers {
    /// No headers. Does not allocate.
    pub const fn new() -> Self {
        Self(None)
    }

    /// None either, with room for so many.
    pub(crate) fn with_capacity(headers: usize) -> Self {
        Self(Some(Arc::new(Vec::with_capacity(headers))))
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&HeaderValue> {
        self.all().iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// The text of `name`: `None` where it is not set, an error where it is set to something else than text.
    pub fn text(&self, name: &str) -> Result<Option<&str>, HeaderError> {
        match self.get(name) {
            None => Ok(None),
            Some(HeaderValue::Text(text)) => Ok(Some(text)),
            Some(other) => Err(HeaderError::new(name, "text", other)),
        }
    }

    /// The integer in `name`: `None` where it is not set, an error where it is set to something else than an integer.
    pub fn int(&self, name: &str) -> Result<Option<i64>, HeaderError> {
        match self.get(name) {
            None => Ok(None),
            Some(HeaderValue::Int(value)) => Ok(Some(*value)),
            Some(other) => Err(HeaderError::new(name, "an integer", other)),
        }
    }

    /// Attempts that failed so far, from `x-retry-count`; 0 where it is not set.
    ///
    /// Anything but an integer from 0 to 1,000,000 is an error: the message goes to the dead letters instead of being
    /// retried for ever.
    pub fn retry_count(&self) -> Result<u32, HeaderError> {
        let Some(count) = self.int(known::RETRY_COUNT)? else { return Ok(0) };
        u32::try_from(count).ok().filter(|count| *count <= 1_000_000).ok_or_else(|| {
            HeaderError::new(known::RETRY_COUNT, "an integer from 0 to 1,000,000", &HeaderValue::Int(count))
        })
    }

    /// Sets `name` to `value`, in place of what it was.
    pub fn set(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<HeaderValue>) -> &mut Self {
        let (name, value) = (name.into(), value.into());
        let all = self.all_mut();
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => all.push((name, value)),
        }
        self
    }

    /// Appends without looking for an earlier value; for brokers, whose names are unique already.
    pub fn push(&mut self, name: String, value: HeaderValue) {
        let name = match known::ALL.iter().find(|known| **known == name) {
            Some(known) => Cow::Borrowed(*known),
            None => Cow::Owned(name),
        };
        self.all_mut().push((name, value));
    }

    /// Takes `name` out.
    pub fn remove(&mut self, name: &str) -> Option<HeaderValue> {
        let at = self.all().iter().position(|(known, _)| known == name)?;
        Some(self.all_mut().remove(at).1)
    }

    /// Sets all of `other`'s over these.
    pub fn merge(&mut self, other: &Headers) {
        if self.is_empty() {
            self.clone_from(other);
            return;
        }
        self.all_mut().reserve(other.len());
        for (name, value) in other.all() {
            self.set(name.clone(), value.clone());
        }
    }

    /// Names and values in the order they were set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HeaderValue)> {
        self.all().iter().map(|(name, value)| (&**name, value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    fn all(&self) -> &[Header] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }

    /// Apart from every clone.
    fn all_mut(&mut self) -> &mut Vec<Header> {
        Arc::make_mut(self.0.get_or_insert_default())
    }
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.all() == other.all()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// A header is not of the type it must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderError {
    name: String,
    expected: &'static str,
    found: String,
}

impl HeaderError {
    fn new(name: &str, expected: &'static str, found: &HeaderValue) -> Self {
        let found = match found {
            HeaderValue::Int(value) => value.to_string(),
            HeaderValue::Text(text) => format!("the text {:?}", text.chars().take(40).collect::<String>()),
            other => other.type_name().to_owned(),
        };
        Self { name: name.to_owned(), expected, found }
    }
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "header `{}` must be {}, and is {}", self.name, self.expected, self.found)
    }
}

impl std::error::Error for HeaderError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_count_is_refused_unless_it_makes_sense() {
        let count = |value: HeaderValue| {
            let mut headers = Headers::new();
            headers.set(known::RETRY_COUNT, value);
            headers.retry_count()
        };
        assert_eq!(Headers::new().retry_count(), Ok(0));
        assert_eq!(count(3_i64.into()), Ok(3));
        for hostile in
            [HeaderValue::Int(-1), HeaderValue::Int(i64::MAX), "3".into(), HeaderValue::Opaque("table")]
        {
            let error = count(hostile).expect_err("hostile").to_string();
            assert!(error.contains("x-retry-count"), "{error}");
        }
    }

    #[test]
    fn known_names_are_not_allocated_again() {
        let mut headers = Headers::new();
        headers.push("x-error".to_owned(), "boom".into());
        assert!(matches!(headers.all()[0].0, Cow::Borrowed(_)));
    }

    #[test]
    fn a_clone_is_changed_apart_from_its_original() {
        let mut headers = Headers::new();
        headers.set("tenant", "acme").set("colour", "red");
        let before = headers.clone();
        headers.set("colour", "blue");
        headers.remove("tenant");
        assert_eq!((before.text("tenant"), before.text("colour")), (Ok(Some("acme")), Ok(Some("red"))));
        assert_eq!((headers.text("tenant"), headers.text("colour")), (Ok(None), Ok(Some("blue"))));
        headers.remove("colour");
        assert!(headers.is_empty() && headers == Headers::new());
        headers.merge(&before);
        assert_eq!(headers, before);
    }
}
