//! Publishing: XADD, any number at once on one connection, which writes together what comes together.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::cmd;
use steadfast_core::{Outgoing, PublishError, PublishErrorKind, Publisher};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::connection::Line;
use crate::error;
use crate::headers;
use crate::options::Options;
use crate::partition::Routes;

pub(crate) struct StreamPublisher {
    line: Arc<Line>,
    /// Which destinations are partitioned.
    routes: Arc<Routes>,
    /// A permit for each that is not answered yet.
    window: Semaphore,
    deadline: Duration,
}

impl Publisher for StreamPublisher {
    fn send(&self, message: Outgoing) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(self.add(message))
    }
}

impl StreamPublisher {
    pub(crate) fn new(line: Arc<Line>, routes: Arc<Routes>, options: &Options) -> Self {
        let window = Semaphore::new(options.publish_window);
        Self { line, routes, window, deadline: options.publish_deadline }
    }

    async fn add(&self, message: Outgoing) -> Result<(), PublishError> {
        let stream = self.routes.stream(&message);
        let added = self.add_to(&stream, &message).await;
        // a key of another type stores nothing, and may be that of a partitioned stream; others may have found that out
        // meanwhile
        let plain = *stream == *message.destination.name();
        if plain && added.as_ref().is_err_and(error::is_wrong_type) && self.is_partitioned(&message).await {
            return self.add_to(&self.routes.stream(&message), &message).await;
        }
        added
    }

    /// Whether it goes by key.
    async fn is_partitioned(&self, message: &Outgoing) -> bool {
        self.routes.ask(&self.line, message.destination.name()).await.unwrap_or(false)
    }

    async fn add_to(&self, stream: &str, message: &Outgoing) -> Result<(), PublishError> {
        let mut add = cmd("XADD");
        add.arg(stream).arg("*");
        fields(message, |name, value| {
            add.arg(name).arg(value);
        })?;
        let _permit = self.room(message).await?;
        // what was sent may have been stored: sending it again is for the caller to decide
        let added = self.line.run(stream, &add).await;
        added.map(drop).map_err(|failure| error::publish(&what(message, ""), failure.error, failure.sent))
    }

    /// Waits for room in the window.
    async fn room(&self, message: &Outgoing) -> Result<SemaphorePermit<'_>, PublishError> {
        if let Ok(permit) = self.window.try_acquire() {
            return Ok(permit);
        }
        let full = || {
            let why = format!(": not sent, for {:?} the window was full of unanswered ones", self.deadline);
            PublishError::new(PublishErrorKind::Unreachable, what(message, &why))
        };
        match tokio::time::timeout(self.deadline, self.window.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            // it is never closed
            Ok(Err(closed)) => Err(full().with_source(closed)),
            Err(elapsed) => Err(full().with_source(elapsed)),
        }
    }
}

/// The fields of the entry, or why there can be none.
pub(crate) fn fields(message: &Outgoing, put: impl FnMut(&str, &[u8])) -> Result<(), PublishError> {
    let invalid =
        |why: String| PublishError::new(PublishErrorKind::Invalid, what(message, &format!(": {why}")));
    if message.destination.exchange_name().is_some() {
        return Err(invalid("Redis has no exchanges; name a stream with `Destination::queue`".into()));
    }
    headers::publish(message, put).map_err(invalid)
}

/// What was tried.
pub(crate) fn what(message: &Outgoing, why_not: &str) -> String {
    format!("publish {} to `{}`{why_not}", message.message_id, message.destination)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Server;

    #[tokio::test]
    async fn no_more_are_under_way_than_the_window_allows() {
        let limit = Duration::from_millis(20);
        let options = Options::new("redis://localhost:1").publish_window(2).publish_deadline(limit);
        let line = Line::new(Arc::new(Server::new(options.clone()).expect("valid")), limit);
        let publisher = StreamPublisher::new(Arc::new(line), Arc::default(), &options);
        let message = Outgoing::new("orders", "{}");
        let first = publisher.room(&message).await.expect("room");
        let _second = publisher.room(&message).await.expect("room");
        let error = publisher.room(&message).await.expect_err("full");
        assert_eq!(error.kind(), PublishErrorKind::Unreachable);
        assert!(error.to_string().contains("window"), "{error}");
        drop(first);
        drop(publisher.room(&message).await.expect("room again"));
    }
}
