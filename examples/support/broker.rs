//! Reaching a broker, and what to do where there is none.

use std::sync::Arc;
use std::time::Duration;

use steadfast::{Broker, ConnectError, ConnectErrorKind, PublishError, PublishErrorKind};

/// Connects; where nothing answers, the error says how to start a broker.
pub async fn connect(url: &str) -> Result<Arc<dyn Broker>, ConnectError> {
    steadfast::connect(url).await.map_err(|error| match (error.kind(), how_to_start(url)) {
        (ConnectErrorKind::Unreachable, Some(how)) => {
            ConnectError::new(error.kind(), format!("no broker answers: {how}")).with_source(error)
        }
        _ => error,
    })
}

fn how_to_start(url: &str) -> Option<&'static str> {
    match url.split(':').next() {
        Some("amqp" | "amqps") => {
            Some("start one with `docker run -p 5672:5672 rabbitmq`, or `rabbitmq-server`")
        }
        Some("redis" | "rediss") => Some("start one with `docker run -p 6379:6379 redis`, or `redis-server`"),
        _ => None,
    }
}

/// Publishes until the broker has it. What may have been published already is published again, which is harmless with
/// the same message id; what the broker can never take is an error at once.
pub async fn patiently<F>(mut publish: impl FnMut() -> F) -> Result<(), PublishError>
where
    F: Future<Output = Result<(), PublishError>>,
{
    loop {
        match publish().await {
            Err(error) if may_pass(error.kind()) => {
                tracing::warn!(%error, "not published yet");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            done => return done,
        }
    }
}

fn may_pass(kind: PublishErrorKind) -> bool {
    matches!(kind, PublishErrorKind::Unreachable | PublishErrorKind::Rejected | PublishErrorKind::Unknown)
}
