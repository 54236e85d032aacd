//! One message as a broker delivered it, not yet settled.
//!
//! Owns what was delivered and the duty to settle it. Dropping a delivery unsettled releases it and is logged as a bug.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::broker::Settler;
use crate::headers::{HeaderError, Headers};

/// A message's content, as the broker carried it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// One body of bytes.
    Body(Bytes),
    /// Named fields, as other services write them into a Redis stream. They decode into a struct by their names.
    Fields(Vec<(String, Bytes)>),
}

impl Payload {
    /// The size in bytes, field names included.
    pub fn len(&self) -> usize {
        match self {
            Self::Body(body) => body.len(),
            Self::Fields(fields) => fields.iter().map(|(name, value)| name.len() + value.len()).sum(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Into<Bytes>> From<T> for Payload {
    fn from(body: T) -> Self {
        Self::Body(body.into())
    }
}

/// Where a message was taken from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Queue or stream.
    pub source: Arc<str>,
    /// AMQP: exchange it was published to; empty is the default exchange.
    pub exchange: Option<String>,
    /// AMQP: routing key it was published with.
    pub routing_key: Option<String>,
    /// Redis: entry ID.
    pub entry_id: Option<String>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let Some(id) = &self.entry_id {
            write!(f, "/{id}")?;
        }
        Ok(())
    }
}

/// What was delivered. Brokers fill it in, handlers see it through [`Context`](crate::Context).
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The content.
    pub payload: Payload,
    /// Headers that are not among the properties below.
    pub headers: Headers,
    /// Type name, as in [`Message::NAME`](crate::Message::NAME); none from services that do not send one.
    pub message_type: Option<String>,
    /// Unique id of the message, the same on every attempt.
    pub message_id: Option<String>,
    /// Correlation id.
    pub correlation_id: Option<String>,
    /// How the payload is encoded; none means the consumer's codec.
    pub content_type: Option<String>,
    /// The application that published it.
    pub app_id: Option<String>,
    /// Where an answer to it is expected.
    pub reply_to: Option<String>,
    /// When it was published, where the broker or the publisher says so.
    pub published_at: Option<SystemTime>,
    /// Whether the broker delivered it before.
    pub redelivered: bool,
    /// How often the broker delivered it before and got it back; none where the broker does not count.
    pub delivery_count: Option<u32>,
    /// Where it was taken from.
    pub origin: Origin,
}

impl Incoming {
    /// A message with this content from this place, and nothing else known of it.
    pub fn new(payload: impl Into<Payload>, origin: Origin) -> Self {
        Self {
            payload: payload.into(),
            headers: Headers::new(),
            message_type: None,
            message_id: None,
            correlation_id: None,
            content_type: None,
            app_id: None,
            reply_to: None,
            published_at: None,
            redelivered: false,
            delivery_count: None,
            origin,
        }
    }

    /// Number of this attempt, from 1: one more than the attempts that failed.
    pub fn attempt(&self) -> Result<u32, HeaderError> {
        Ok(self.headers.retry_count()?.saturating_add(1))
    }

    /// The message id, or what stands for it where the publisher gave none: source and entry ID.
    pub fn id(&self) -> Cow<'_, str> {
        match (&self.message_id, &self.origin.entry_id) {
            (Some(id), _) => Cow::Borrowed(id),
            (None, Some(_)) => Cow::Owned(self.origin.to_string()),
            (None, None) => Cow::Borrowed("(no id)"),
        }
    }
}

/// What a broker needs to find a delivery again when it is settled: a delivery tag, or the two halves of an entry ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64, pub u64);

/// An unsettled delivery. Settling consumes it.
#[must_use = "a delivery must be settled; dropping it releases it and logs a bug"]
pub struct Delivery {
    incoming: Arc<Incoming>,
    receipt: Receipt,
}

impl Delivery {
    /// Made by a broker's [`Subscription`](crate::Subscription); `settler` is told how it ends.
    pub fn new(incoming: Incoming, token: Token, settler: Arc<dyn Settler>) -> Self {
        Self::from_shared(Arc::new(incoming), token, settler)
    }

    /// The same for a broker that keeps the message itself, and need not copy it to hand it out.
    pub fn from_shared(incoming: Arc<Incoming>, token: Token, settler: Arc<dyn Settler>) -> Self {
        Self { incoming, receipt: Receipt { token, settler: Some(settler) } }
    }

    /// What was delivered.
    pub fn incoming(&self) -> &Arc<Incoming> {
        &self.incoming
    }

    /// Acknowledges: the broker may forget it.
    pub fn ack(mut self) {
        if let Some(settler) = self.receipt.settler.take() {
            settler.ack(self.receipt.token);
        }
    }

    /// Gives it back unharmed: it is delivered again at once, to anyone, without an attempt counted.
    pub fn release(mut self) {
        if let Some(settler) = self.receipt.settler.take() {
            settler.release(self.receipt.token);
        }
    }

    /// Takes the message and its token out, and with them the duty to tell the [`Settler`] of it. For brokers that wrap
    /// another, and for the conformance suite.
    pub fn into_parts(mut self) -> (Arc<Incoming>, Token) {
        self.receipt.settler = None;
        (Arc::clone(&self.incoming), self.receipt.token)
    }

    pub(crate) fn token(&self) -> Token {
        self.receipt.token
    }

    pub(crate) fn settler(&self) -> Option<&Arc<dyn Settler>> {
        self.receipt.settler.as_ref()
    }

    /// The broker has settled it, or it is no longer ours: nothing is owed.
    pub(crate) fn disarm(mut self) {
        self.receipt.settler = None;
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("token", &self.receipt.token)
            .field("incoming", &self.incoming)
            .finish()
    }
}

/// The duty to settle.
struct Receipt {
    token: Token,
    settler: Option<Arc<dyn Settler>>,
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(settler) = self.settler.take() {
            tracing::error!(token = ?self.token, "a delivery was dropped unsettled and is released: this is a bug");
            settler.release(self.token);
        }
    }
}
