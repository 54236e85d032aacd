//! A queue or a stream of this test alone, on a shared server.

use std::sync::Arc;
use std::time::Duration;

use steadfast::amqp::Queue;
use steadfast::{Broker, Letter, Message, OperateErrorKind, PublisherExt, Source};
use steadfast_testbed::{shared, unique};

/// Long enough for a busy machine; whatever is waited for ends the wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Rig {
    pub(crate) source: Source,
    pub(crate) broker: Arc<dyn Broker>,
    url: String,
}

impl Rig {
    pub(crate) async fn quorum() -> Self {
        let url = tokio::task::spawn_blocking(shared::rabbit_url).await.expect("starts");
        Self::at(url, Source::queue(unique("failures"))).await
    }

    pub(crate) async fn classic() -> Self {
        let url = tokio::task::spawn_blocking(shared::rabbit_url).await.expect("starts");
        Self::at(url, Queue::classic(unique("failures")).into()).await
    }

    pub(crate) async fn redis() -> Self {
        let url = tokio::task::spawn_blocking(shared::redis_url).await.expect("starts");
        Self::at(url, Source::queue(unique("failures"))).await
    }

    pub(crate) async fn embedded() -> Self {
        Self::at(&format!("embedded:{}", unique("failures")), Source::queue("failures")).await
    }

    async fn at(url: &str, source: Source) -> Self {
        let broker = steadfast::connect(url).await.expect("connects");
        broker.declare(&source).await.expect("declares");
        Self { source, broker, url: url.to_owned() }
    }

    /// A broker for the tree, which closes it.
    pub(crate) async fn connect(&self) -> Arc<dyn Broker> {
        steadfast::connect(&self.url).await.expect("connects")
    }

    pub(crate) async fn publish<M: Message>(&self, messages: impl IntoIterator<Item = M>) {
        let messages: Vec<_> = messages.into_iter().collect();
        let publisher = self.broker.publisher().await.expect("publishes");
        let envelopes =
            messages.iter().map(|message| steadfast::Envelope::new(message).to(&**self.source.name()));
        for published in publisher.publish_batch(envelopes).await {
            published.expect("published");
        }
    }

    pub(crate) fn dead(&self) -> String {
        format!("{}.dead", self.source.name())
    }

    /// All that lies there.
    pub(crate) async fn letters(&self, place: &str) -> Vec<Letter> {
        let operator = self.broker.operator().expect("has one");
        let walk = match operator.walk(place).await {
            Ok(walk) => walk,
            // a stream comes into being with its first entry
            Err(error) if error.kind() == OperateErrorKind::NotFound => return Vec::new(),
            Err(error) => unreachable!("{error}"),
        };
        let mut letters = Vec::new();
        loop {
            let page = walk.next(100).await.expect("reads");
            if page.is_empty() {
                break;
            }
            letters.extend(page);
        }
        for letter in &letters {
            walk.keep(letter.mark);
        }
        walk.close().await.expect("closes");
        letters
    }

    /// What the source still has to do.
    pub(crate) async fn left(&self) -> u64 {
        let inspection = self.broker.operator().expect("has one").inspect(&self.source).await.expect("looks");
        [inspection.ready, inspection.unsettled, inspection.delayed].into_iter().flatten().sum()
    }
}
