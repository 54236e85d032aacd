//! Publishing: an [`Outgoing`] onto the wire, and its fate in core's words.

use std::time::SystemTime;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::types::ShortString;
use steadfast_core::{Outgoing, Payload, PublishError, PublishErrorKind, Publisher};

use crate::error::Sort;
use crate::headers;
use crate::pipe::{Fate, Letter, Pipe};

/// Publishes over one confirm channel, shared by all who publish through it.
#[derive(Debug)]
pub(crate) struct AmqpPublisher {
    pub(crate) pipe: Pipe,
}

impl Publisher for AmqpPublisher {
    fn send(&self, message: Outgoing) -> BoxFuture<'_, Result<(), PublishError>> {
        async move {
            let destination = message.destination.clone();
            let letter = letter(message)?;
            self.pipe
                .send(letter)
                .await
                .map_err(|fate| publishing(fate, &format!("publish to `{destination}`")))
        }
        .boxed()
    }
}

/// The message as it goes onto the wire.
pub(crate) fn letter(message: Outgoing) -> Result<Letter, PublishError> {
    let invalid = |why: &str| {
        PublishError::new(PublishErrorKind::Invalid, format!("publish to `{}`: {why}", message.destination))
    };
    let name =
        |name: &str| ShortString::try_new(name).map_err(|_| invalid("names in AMQP have at most 255 bytes"));
    let properties = headers::outgoing(&message, SystemTime::now()).map_err(|why| invalid(&why))?;
    let exchange = name(message.destination.exchange_name().unwrap_or_default())?;
    let routing_key = name(message.destination.name())?;
    let Payload::Body(body) = message.payload else {
        return Err(invalid("RabbitMQ carries one body of bytes, no fields; encode the message by a codec"));
    };
    Ok(Letter { exchange, routing_key, properties, body })
}

/// What became of it, in core's words.
pub(crate) fn publishing(fate: Fate, what: &str) -> PublishError {
    let error = |kind, why: &str| PublishError::new(kind, format!("{what}: {why}"));
    match fate {
        Fate::Unsent(trouble) => {
            let kind = match trouble.sort() {
                Sort::Refused | Sort::Unsupported | Sort::Precondition | Sort::NotFound => {
                    PublishErrorKind::Rejected
                }
                Sort::Away | Sort::Channel => PublishErrorKind::Unreachable,
            };
            PublishError::new(kind, format!("{what}: there is no channel to send it on"))
                .with_source(trouble.subscribing("open a channel to publish on"))
        }
        Fate::Crowded(why) => error(PublishErrorKind::Unreachable, why),
        Fate::TooLarge { size, limit } => {
            let why = format!("its headers take {size} bytes, and the broker takes {limit}");
            error(PublishErrorKind::Invalid, &why)
        }
        Fate::Unroutable(source) => {
            with_source(error(PublishErrorKind::Unroutable, "no queue is bound for it"), source)
        }
        Fate::Rejected(source) => {
            with_source(error(PublishErrorKind::Rejected, "the broker refused it"), source)
        }
        Fate::Unknown(source) => with_source(
            error(PublishErrorKind::Unknown, "it was sent, and the broker did not answer"),
            source,
        ),
    }
}

fn with_source(error: PublishError, source: Option<lapin::Error>) -> PublishError {
    match source {
        Some(source) => error.with_source(source),
        None => error,
    }
}
