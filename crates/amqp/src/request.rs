//! Request and reply, over the broker's direct reply-to.
//!
//! Owns asking: one channel that requests go out on and replies come back on. Who answers is a handler like any other,
//! and `steadfast_core::Reply` is its side.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use steadfast_core::{
    BoxError, Codec, ConnectError, Envelope, FAILED_REPLY, Message, Outgoing, PublishError, PublishErrorKind,
    known,
};

use crate::broker::Amqp;
use crate::pipe::Pipe;
use crate::publisher::{letter, publishing};
use crate::replies::{DIRECT, Lost, Replies};
use crate::runtime::{self, within};

/// The longest time to live that the broker knows is 2^32 ms.
const LONGEST: Duration = Duration::from_millis(u32::MAX as u64);

/// Asks, and waits for the answer. Cheap to clone; clones share a channel.
///
/// A request is a message like any other: confirmed, mandatory, handled by whichever consumer takes it. It expires in its
/// queue when the requester's deadline passes. The reply comes back over `amq.rabbitmq.reply-to`, without a queue. From a
/// service in another language it is any message with the request's correlation id.
///
/// ```no_run
/// use std::time::Duration;
/// use serde::{Deserialize, Serialize};
/// use steadfast_amqp::{RequestErrorKind, connect};
/// use steadfast_core::{Envelope, Message};
///
/// #[derive(Serialize, Deserialize)]
/// struct Price { item: String }
/// impl Message for Price { const NAME: &'static str = "price"; }
///
/// #[derive(Serialize, Deserialize)]
/// struct Quote { cents: u64 }
/// impl Message for Quote { const NAME: &'static str = "quote"; }
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let requester = connect("amqp://localhost").await?.requester().await?;
/// let price = Price { item: "chair".to_owned() };
/// match requester.request::<_, Quote>(Envelope::new(&price).to("prices"), Duration::from_secs(2)).await {
///     Ok(quote) => println!("{} cents", quote.cents),
///     Err(error) if error.kind() == RequestErrorKind::Deadline => println!("too late"),
///     Err(error) => println!("{error}: {:?}", error.remote_reason()),
/// }
/// println!("{} replies came too late", requester.late_replies());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Requester {
    pipe: Pipe,
    replies: Arc<Replies>,
}

impl Amqp {
    /// A [`Requester`], with a channel of its own on the connection that publishes.
    pub async fn requester(&self) -> Result<Requester, ConnectError> {
        self.publishing().get().await?;
        let replies = Arc::<Replies>::default();
        let lane = Arc::clone(self.publishing());
        let pipe = Pipe::with_replies(lane, self.window(), runtime::handle()?, Arc::clone(&replies));
        Ok(Requester { pipe, replies })
    }
}

impl Requester {
    /// Publishes `request` and waits for its reply, for at most `deadline` altogether.
    ///
    /// `reply_to`, correlation id and expiration are set here, over what the envelope says. The header `steadfast-deadline`
    /// carries the time until which the requester waits. Dropping the future gives up waiting: a reply that comes after
    /// that is counted as late. The request is not taken back, and a handler may do its work all the same.
    ///
    /// Fails as [`RequestErrorKind`] says.
    pub async fn request<'a, Q: Message, R: Message>(
        &self,
        request: impl Into<Envelope<'a, Q>>,
        deadline: Duration,
    ) -> Result<R, RequestError> {
        let outgoing = request.into().into_outgoing().map_err(|error| unsent("encode a request", error))?;
        let what = format!("ask `{}`", outgoing.destination);
        let delivery = self.ask(&what, outgoing, deadline).await?;
        read(&what, &delivery)
    }

    /// Replies that came when nobody waited for them any more. Each is the event `reply.late`, too.
    pub fn late_replies(&self) -> u64 {
        self.replies.late()
    }

    async fn ask(
        &self,
        what: &str,
        mut outgoing: Outgoing,
        deadline: Duration,
    ) -> Result<Delivery, RequestError> {
        let id = outgoing.message_id.clone();
        outgoing.reply_to = Some(DIRECT.to_owned());
        outgoing.correlation_id = Some(id.clone());
        outgoing.expiration = Some(deadline.min(LONGEST));
        outgoing.headers.set(known::DEADLINE, millis(SystemTime::now() + deadline.min(LONGEST)));
        let letter = letter(outgoing).map_err(|error| unsent(what, error))?;
        let mut waiting = self.replies.expect(id);
        let asked = async {
            if let Err(fate) = self.pipe.send(letter).await {
                let error = publishing(fate, what);
                // an unknown outcome is known after all, where the reply is here
                return waiting.taken().ok_or_else(|| not_confirmed(what, error));
            }
            waiting.confirmed();
            waiting.reply().await.map_err(|Lost| {
                let why = "it was sent, and the channel for its reply was lost: it may have been handled";
                RequestError::new(RequestErrorKind::Unknown, format!("{what}: {why}"))
            })
        };
        within(deadline, asked).await.unwrap_or_else(|runtime::Elapsed| {
            let why = format!("{what}: no reply within {deadline:?}; it may be handled still");
            Err(RequestError::new(RequestErrorKind::Deadline, why))
        })
    }
}

fn millis(time: SystemTime) -> i64 {
    i64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}

fn unsent(what: &str, error: PublishError) -> RequestError {
    RequestError::new(RequestErrorKind::NotSent, format!("{what}: it was not sent")).with_source(error)
}

fn not_confirmed(what: &str, error: PublishError) -> RequestError {
    match error.kind() {
        PublishErrorKind::Unroutable => {
            let why = "nobody can answer: no queue is bound for it";
            RequestError::new(RequestErrorKind::NoResponder, format!("{what}: {why}")).with_source(error)
        }
        PublishErrorKind::Unknown => {
            let why = "it was sent, and is not known to have arrived";
            RequestError::new(RequestErrorKind::Unknown, format!("{what}: {why}")).with_source(error)
        }
        // core's list may grow: what else there is says that it was not sent, or not taken
        _ => unsent(what, error),
    }
}

/// The reply, as what it is: a message, or word that there is none.
fn read<R: Message>(what: &str, delivery: &Delivery) -> Result<R, RequestError> {
    let properties = &delivery.properties;
    let kind = properties.kind().as_ref().map(ShortString::as_str);
    if kind == Some(FAILED_REPLY) {
        return Err(remote(what, properties.headers().as_ref()));
    }
    let codec = match properties.content_type().as_ref().map(ShortString::as_str) {
        None | Some("" | "application/octet-stream") => Some(Codec::default()),
        Some(content_type) => Codec::for_content_type(content_type),
    };
    let decoded = match codec {
        Some(codec) => codec.decode(&delivery.data),
        None => Err("its content type has no codec that is compiled in".into()),
    };
    decoded.map_err(|error: BoxError| {
        let what = format!(
            "{what}: the reply, of type {:?}, does not decode as {:?}",
            kind.unwrap_or_default(),
            R::NAME
        );
        RequestError::new(RequestErrorKind::Undecodable, what).with_source(error)
    })
}

fn remote(what: &str, headers: Option<&FieldTable>) -> RequestError {
    let text = |name: &str| match headers.and_then(|table| table.inner().get(name)) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => String::new(),
    };
    let (reason, chain) = (text(known::REASON), text(known::ERROR));
    let error = RequestError::new(
        RequestErrorKind::Remote,
        format!("{what}: it was not handled, and is in the dead letters ({reason})"),
    );
    RequestError { reason: Some(reason.into()), ..error.with_source(RemoteFailure(chain)) }
}

/// The other side's words.
#[derive(Debug)]
struct RemoteFailure(String);

impl fmt::Display for RemoteFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for RemoteFailure {}

/// Why a request has no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RequestErrorKind {
    /// It was not sent: it cannot be encoded, or there is no connection. Asking again does no harm.
    NotSent,
    /// No queue is bound for it: declare it, or start its consumer, which does.
    NoResponder,
    /// No reply came in time. It may have been handled, or may be handled still.
    Deadline,
    /// The connection was lost while it was under way or its reply was awaited. It may have been handled.
    Unknown,
    /// The handler gave it up, and it is in the dead letters: [`RequestError::remote_reason`] and the source say why.
    Remote,
    /// The reply is not of the type that was asked for.
    Undecodable,
}

/// A request that has no reply.
#[derive(Debug)]
pub struct RequestError {
    kind: RequestErrorKind,
    what: String,
    reason: Option<Box<str>>,
    source: Option<BoxError>,
}

impl RequestError {
    fn new(kind: RequestErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), reason: None, source: None }
    }

    fn with_source(self, source: impl Into<BoxError>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> RequestErrorKind {
        self.kind
    }

    /// Of a [`Remote`](RequestErrorKind::Remote) one: the word of [`Reason`](steadfast_core::Reason) that the message was
    /// dead-lettered with, such as `rejected`.
    pub fn remote_reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for RequestError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
