//! Replies: what a handler answers, to whoever asked.
//!
//! Owns what is sent back: the value that a handler returns, and word of a request that ended in the dead letters. Asking
//! is a broker crate's own: see `steadfast::amqp::Requester`.

use std::future::{Future, ready};
use std::time::{Duration, SystemTime};

use crate::broker::Outgoing;
use crate::codec::Codec;
use crate::dead_letter::Reason;
use crate::delivery::Incoming;
use crate::envelope::{Context, Envelope, Outlet};
use crate::error::{PublishError, PublishErrorKind};
use crate::headers::known;
use crate::message::Message;
use crate::outcome::Failure;
use crate::settle::{cut, millis};

/// Message type of the reply that says that a request was not handled, and never will be: the headers
/// [`known::REASON`] and [`known::ERROR`] say why. It is sent to those who said until when they wait
/// ([`known::DEADLINE`]), because others may not know it.
pub const FAILED_REPLY: &str = "steadfast.failed";

/// The longest text of a failure that is sent back, in bytes.
const LONGEST_TEXT: usize = 1024;

/// What a handler returns: nothing, or a message, which is the reply to the one it handled.
///
/// `#[handler]` functions return either, and [`reply_fn`](crate::reply_fn) takes a closure that returns a message; who
/// implements [`Handle`](crate::Handle) calls [`Context::reply`].
pub trait Reply: Send + Sized {
    /// Sends it. A failure is a failed attempt of the message that was handled.
    fn reply(self, cx: &Context) -> impl Future<Output = Result<(), Failure>> + Send;
}

impl Reply for () {
    fn reply(self, _: &Context) -> impl Future<Output = Result<(), Failure>> + Send {
        ready(Ok(()))
    }
}

impl<M: Message> Reply for M {
    async fn reply(self, cx: &Context) -> Result<(), Failure> {
        Ok(cx.reply(&self).await?)
    }
}

impl Context {
    /// Answers this message, where its `reply_to` says, under its correlation id (else its message id), encoded as it was
    /// itself. Not kept over a restart of the broker. Does nothing where no answer is asked for.
    ///
    /// A requester that is gone is no failure: the event `reply.unwanted` names it where the broker can tell.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use steadfast_core::{Context, Failure, Handle, Message};
    /// # #[derive(Serialize, Deserialize)] struct Price { item: String }
    /// # impl Message for Price { const NAME: &'static str = "price"; }
    /// # #[derive(Serialize, Deserialize)] struct Quote { cents: u64 }
    /// # impl Message for Quote { const NAME: &'static str = "quote"; }
    /// struct Prices { cents: u64 }
    ///
    /// impl Handle<Price> for Prices {
    ///     async fn handle(&self, _: Price, cx: &Context) -> Result<(), Failure> {
    ///         Ok(cx.reply(&Quote { cents: self.cents }).await?)
    ///     }
    /// }
    /// ```
    pub async fn reply<M: Message>(&self, message: &M) -> Result<(), PublishError> {
        let Some(to) = self.incoming().reply_to.as_deref().filter(|to| !to.is_empty()) else { return Ok(()) };
        let codec = self.incoming().content_type.as_deref().and_then(Codec::for_content_type);
        let mut envelope = Envelope::new(message).to(to).persistent(false).codec(codec.unwrap_or_default());
        if let Some(id) = correlation(self.incoming()) {
            envelope = envelope.correlation_id(id);
        }
        wanted(self.publish(envelope).await, self.incoming())
    }
}

/// Tells the requester that its message is in the dead letters, if it waits still.
pub(crate) async fn refuse(outlet: &Outlet, request: &Incoming, reason: Reason, failure: &Failure) {
    let Some(message) = refusal(request, reason, failure) else { return };
    let left = time_left(request, SystemTime::now());
    let sent = async { outlet.publisher().await?.send(message).await };
    let why = match tokio::time::timeout(left, sent).await {
        Ok(sent) => wanted(sent, request).err().map(|error| error.to_string()),
        Err(_) => Some("the requester's deadline passed".to_owned()),
    };
    if let Some(why) = why {
        tracing::warn!(target: "steadfast", id = %request.id(), why, "reply.not_sent");
    }
}

fn refusal(request: &Incoming, reason: Reason, failure: &Failure) -> Option<Outgoing> {
    let to = request.reply_to.as_deref().filter(|to| !to.is_empty())?;
    if time_left(request, SystemTime::now()).is_zero() {
        return None;
    }
    let mut message = Outgoing::new(to, Vec::new());
    message.message_type = Some(FAILED_REPLY.to_owned());
    message.correlation_id = correlation(request).map(str::to_owned);
    message.persistent = false;
    message.headers.set(known::REASON, reason.as_str());
    message.headers.set(known::ERROR, cut(&failure.chain(), LONGEST_TEXT));
    Some(message)
}

/// How long the requester waits still; nothing where it does not say.
fn time_left(request: &Incoming, now: SystemTime) -> Duration {
    let until = request.headers.int(known::DEADLINE).ok().flatten().unwrap_or(0);
    Duration::from_millis(u64::try_from(until.saturating_sub(millis(now))).unwrap_or(0))
}

fn correlation(request: &Incoming) -> Option<&str> {
    request.correlation_id.as_deref().or(request.message_id.as_deref())
}

/// Nobody there any more to read it is no failure of who answers.
fn wanted(sent: Result<(), PublishError>, request: &Incoming) -> Result<(), PublishError> {
    match sent {
        Err(error) if error.kind() == PublishErrorKind::Unroutable => {
            tracing::info!(target: "steadfast", id = %request.id(), %error, "reply.unwanted");
            Ok(())
        }
        sent => sent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Origin;

    fn request(reply_to: Option<&str>, until: Option<i64>) -> Incoming {
        let mut incoming = Incoming::new("{}", Origin::default());
        incoming.reply_to = reply_to.map(str::to_owned);
        incoming.message_id = Some("m".to_owned());
        if let Some(until) = until {
            incoming.headers.set(known::DEADLINE, until);
        }
        incoming
    }

    #[test]
    fn only_who_waits_is_told_of_a_failure() {
        let refused = |request: &Incoming| {
            refusal(request, Reason::Rejected, &Failure::reject("no such item"))
                .map(|message| message.headers)
        };
        let soon = millis(SystemTime::now()) + 60_000;
        assert_eq!(refused(&request(None, Some(soon))), None);
        assert_eq!(refused(&request(Some(""), Some(soon))), None);
        assert_eq!(refused(&request(Some("replies"), None)), None);
        assert_eq!(refused(&request(Some("replies"), Some(1))), None);
        let told = refused(&request(Some("replies"), Some(soon))).expect("waits");
        assert_eq!(told.text(known::REASON).expect("text"), Some("rejected"));
        assert_eq!(told.text(known::ERROR).expect("text"), Some("no such item"));
    }

    #[test]
    fn a_reply_is_known_by_the_requests_correlation_else_by_its_id() {
        let mut request = request(None, None);
        assert_eq!(correlation(&request), Some("m"));
        request.correlation_id = Some("c".to_owned());
        assert_eq!(correlation(&request), Some("c"));
    }
}
