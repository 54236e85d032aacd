//! One property on its way: connections and names that nobody else uses.

use std::error::Error as StdError;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use steadfast_core::{Broker, Capabilities, Destination, Outgoing, Publisher, Source, Subscribe};

use crate::property::Property;
use crate::report::Violation;
use crate::suite::Suite;
use crate::taker::Taker;

/// What a property is given.
pub struct Trial<'a> {
    suite: &'a Suite,
    promise: &'static str,
    name: String,
    broker: Arc<dyn Broker>,
    capabilities: Capabilities,
    /// Everything that was connected, to be closed at the end.
    connected: Mutex<Vec<Arc<dyn Broker>>>,
}

impl<'a> Trial<'a> {
    pub(crate) async fn open(suite: &'a Suite, property: &Property) -> Result<Self, Violation> {
        let (promise, name) = (
            property.promise(),
            format!("conformance-{}-{}", property.name(), uuid::Uuid::now_v7().simple()),
        );
        let broker = connect(suite).await.map_err(|seen| Violation { promise, seen, place: name.clone() })?;
        let (capabilities, connected) = (broker.capabilities(), Mutex::new(vec![Arc::clone(&broker)]));
        Ok(Self { suite, promise, name, broker, capabilities, connected })
    }

    pub(crate) async fn close(self) {
        let connected = self.connected.into_inner().unwrap_or_else(PoisonError::into_inner);
        for broker in connected {
            // a broker that cannot even close is caught by the property about closing
            let _ = tokio::time::timeout(self.suite.slack, broker.close()).await;
        }
    }

    pub(crate) fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The connection that the property starts with.
    pub(crate) fn broker(&self) -> &Arc<dyn Broker> {
        &self.broker
    }

    /// Another connection to the same broker.
    pub(crate) async fn connect(&self) -> Result<Arc<dyn Broker>, Violation> {
        let broker = connect(self.suite).await.map_err(|seen| self.violated(seen))?;
        self.connected.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&broker));
        Ok(broker)
    }

    /// The queue or stream that this property has to itself.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn dead(&self) -> String {
        format!("{}-dead", self.name)
    }

    pub(crate) fn source(&self) -> Source {
        (self.suite.source)(&self.name)
    }

    /// A request for `source` with this trial's dead letters.
    pub(crate) fn request(&self, source: Source, max_in_flight: usize) -> Subscribe {
        Subscribe {
            source,
            consumer: "conformance".into(),
            max_in_flight: NonZeroUsize::new(max_in_flight).unwrap_or(NonZeroUsize::MIN),
            narrow: false,
            dead_letter: Destination::queue(self.dead()),
        }
    }

    /// Makes the source, so that there is something to publish to.
    pub(crate) async fn declare(&self) -> Result<(), Violation> {
        self.within("declaring the source", self.broker.declare(&self.source())).await
    }

    /// A subscription on `broker` to the source.
    pub(crate) async fn subscribe(
        &self,
        broker: &dyn Broker,
        max_in_flight: usize,
    ) -> Result<Taker<'_>, Violation> {
        self.subscribe_by(broker, self.request(self.source(), max_in_flight)).await
    }

    /// A subscription on a connection of its own to the dead letters.
    pub(crate) async fn subscribe_dead(&self, max_in_flight: usize) -> Result<Taker<'_>, Violation> {
        let dead = self.dead();
        let mut request = self.request((self.suite.dead_source)(&dead), max_in_flight);
        request.dead_letter = Destination::queue(format!("{dead}-dead"));
        let broker = self.connect().await?;
        self.subscribe_by(&*broker, request).await
    }

    pub(crate) async fn subscribe_by(
        &self,
        broker: &dyn Broker,
        request: Subscribe,
    ) -> Result<Taker<'_>, Violation> {
        let place = request.source.name().to_string();
        let subscription = self.within("subscribing", broker.subscribe(request)).await?;
        Ok(Taker::new(self, place, subscription))
    }

    pub(crate) async fn publisher(&self) -> Result<Arc<dyn Publisher>, Violation> {
        self.within("making a publisher", self.broker.publisher()).await
    }

    /// Publishes all, at the same time, and waits until all are safe.
    pub(crate) async fn publish(&self, messages: &[Outgoing]) -> Result<(), Violation> {
        let publisher = self.publisher().await?;
        let sends = messages.iter().map(|message| publisher.send(message.clone()));
        self.within("publishing", try_join_all(sends)).await.map(drop)
    }

    /// Waits for what has to succeed within the deadline.
    pub(crate) async fn within<T, E: StdError>(
        &self,
        what: &str,
        wanted: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Violation> {
        match tokio::time::timeout(self.suite.deadline, wanted).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.violated(format!("{what} failed: {}", chain(&error)))),
            Err(_) => Err(self.violated(format!("{what} took longer than {:?}", self.suite.deadline))),
        }
    }

    pub(crate) fn violated(&self, seen: impl Into<String>) -> Violation {
        self.violated_on(&self.name, seen)
    }

    pub(crate) fn violated_on(&self, place: &str, seen: impl Into<String>) -> Violation {
        Violation { promise: self.promise, seen: seen.into(), place: place.to_owned() }
    }

    /// Unless `kept`, a violation that says what was `seen`.
    pub(crate) fn ensure(&self, kept: bool, seen: impl FnOnce() -> String) -> Result<(), Violation> {
        if kept { Ok(()) } else { Err(self.violated(seen())) }
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.suite.deadline
    }

    pub(crate) fn quiet(&self) -> Duration {
        self.suite.quiet
    }

    pub(crate) fn slack(&self) -> Duration {
        self.suite.slack
    }
}

impl fmt::Debug for Trial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trial")
            .field("name", &self.name)
            .field("promise", &self.promise)
            .finish_non_exhaustive()
    }
}

async fn connect(suite: &Suite) -> Result<Arc<dyn Broker>, String> {
    match tokio::time::timeout(suite.deadline, (suite.connect)()).await {
        Ok(Ok(broker)) => Ok(broker),
        Ok(Err(error)) => Err(format!("connecting failed: {}", chain(&error))),
        Err(_) => Err(format!("connecting took longer than {:?}", suite.deadline)),
    }
}

/// The error and its sources, outermost first.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let (mut text, mut source) = (error.to_string(), error.source());
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
