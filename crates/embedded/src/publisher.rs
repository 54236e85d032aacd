//! Puts messages into queues that exist.

use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use steadfast_core::{Incoming, Origin, Outgoing, PublishError, Publisher};

use crate::connection::Connection;
use crate::error;

#[derive(Debug)]
pub(crate) struct EmbeddedPublisher {
    connection: Arc<Connection>,
}

impl EmbeddedPublisher {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection }
    }

    async fn store(&self, message: Outgoing) -> Result<(), PublishError> {
        let (destination, hub) = (&message.destination, self.connection.hub());
        if self.connection.is_closed() {
            return Err(error::closed_for_publishing(destination));
        }
        if destination.exchange_name().is_some() {
            return Err(error::publish_to_exchange(destination));
        }
        if let Some(why) = message.ranked_or_expiring() {
            return Err(error::not_carried(destination, why));
        }
        let queue = hub.find(destination.name()).ok_or_else(|| error::unroutable(destination))?;
        let limits = hub.limits();
        if !queue.reserve(limits.publish_timeout).await {
            return Err(error::full(queue.name(), &limits));
        }
        queue.push(Arc::new(incoming(message, Arc::clone(queue.name()))));
        Ok(())
    }
}

impl Publisher for EmbeddedPublisher {
    fn send(&self, message: Outgoing) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(self.store(message))
    }
}

/// The message as every consumer is to see it: it is built once, here, and shared from then on.
fn incoming(message: Outgoing, queue: Arc<str>) -> Incoming {
    Incoming {
        payload: message.payload,
        headers: message.headers,
        message_type: message.message_type,
        message_id: Some(message.message_id),
        correlation_id: message.correlation_id,
        content_type: message.content_type,
        app_id: message.app_id,
        reply_to: message.reply_to,
        published_at: Some(message.timestamp.unwrap_or_else(SystemTime::now)),
        redelivered: false,
        delivery_count: Some(0),
        origin: Origin { source: queue, ..Origin::default() },
    }
}
