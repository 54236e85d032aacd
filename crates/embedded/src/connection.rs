//! A connection to an embedded broker, and the URL that names one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use steadfast_core::{
    Broker, Capabilities, ConnectError, Operator, Publisher, Source, Subscribe, SubscribeError, Subscription,
};

use crate::error;
use crate::hub::{Hub, Limits};
use crate::operate::EmbeddedOperator;
use crate::publisher::EmbeddedPublisher;
use crate::settle::Held;
use crate::subscription::EmbeddedSubscription;

/// A connection to a broker in this process.
///
/// Closing it ends its subscriptions and gives back what they held; the queues stay for as long as another connection
/// to the same broker is held.
#[derive(Debug)]
pub struct Embedded {
    connection: Arc<Connection>,
}

/// Connects to the broker that `url` names: `embedded:` is a new one, `embedded:name` the one that all in this process
/// share who name it, for as long as somebody holds it.
///
/// ```
/// # async fn example() -> Result<(), steadfast_core::ConnectError> {
/// let mine = steadfast_embedded::connect("embedded:").await?;
/// let ours = steadfast_embedded::connect("embedded:shop").await?;
/// # Ok(())
/// # }
/// ```
pub async fn connect(url: &str) -> Result<Arc<Embedded>, ConnectError> {
    connect_lazy(url)
}

/// The same without an await: a broker in this process is always there.
pub fn connect_lazy(url: &str) -> Result<Arc<Embedded>, ConnectError> {
    let Some(name) = url.strip_prefix("embedded:") else {
        return Err(error::invalid_url(url, "the scheme is not `embedded`"));
    };
    if name.is_empty() {
        return Ok(Embedded::new());
    }
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match name.chars().find(|c| !known(*c)) {
        Some(stranger) => Err(error::invalid_url(url, &format!("`{stranger}` means nothing here"))),
        None => Ok(Embedded::to(Hub::named(name))),
    }
}

impl Embedded {
    /// A broker of your own.
    pub fn new() -> Arc<Self> {
        Self::with_limits(Limits::default())
    }

    /// A broker of your own with other limits than the default.
    pub fn with_limits(limits: Limits) -> Arc<Self> {
        Self::to(Hub::new(limits))
    }

    /// Another connection to the same broker.
    #[must_use]
    pub fn reconnect(&self) -> Arc<Self> {
        Self::to(Arc::clone(&self.connection.hub))
    }

    /// How many messages a queue has, ready, delayed and unsettled together; none where there is no such queue.
    pub fn depth(&self, queue: &str) -> Option<usize> {
        self.connection.hub.find(queue).map(|queue| queue.depth())
    }

    fn to(hub: Arc<Hub>) -> Arc<Self> {
        let connection = Connection { hub, closed: AtomicBool::new(false), held: Mutex::default() };
        Arc::new(Self { connection: Arc::new(connection) })
    }

    /// What can be known before anything is made.
    fn check(&self, source: &Source) -> Result<(), SubscribeError> {
        if self.connection.is_closed() {
            return Err(error::closed_for_subscribing(source.name()));
        }
        if source.has_native() {
            return Err(error::foreign_source(source));
        }
        Ok(())
    }

    fn subscribe_now(&self, request: &Subscribe) -> Result<Box<dyn Subscription>, SubscribeError> {
        let (source, dead) = (request.source.name(), &request.dead_letter);
        self.check(&request.source)?;
        if dead.exchange_name().is_some() {
            return Err(error::dead_letters_to_exchange(source, dead));
        }
        let hub = &self.connection.hub;
        let (queue, dead) = (hub.declare(source), hub.declare(dead.name()));
        let held = Arc::new(Held::new(queue, dead, request.max_in_flight.get()));
        if !self.connection.adopt(&held) {
            return Err(error::closed_for_subscribing(source));
        }
        Ok(Box::new(EmbeddedSubscription::new(held)))
    }
}

impl Broker for Embedded {
    fn scheme(&self) -> &'static str {
        "embedded"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(concat!("embedded ", env!("CARGO_PKG_VERSION")));
        capabilities.delivery_count = true;
        capabilities.native_delay = true;
        // the timer counts in milliseconds and is rounded up
        capabilities.delay_precision = Duration::from_millis(5);
        capabilities.fields = true;
        capabilities.durable = false;
        capabilities.routable_check = true;
        capabilities
    }

    fn declare<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, Result<(), SubscribeError>> {
        Box::pin(async move {
            self.check(source)?;
            self.connection.hub.declare(source.name());
            Ok(())
        })
    }

    fn subscribe(&self, request: Subscribe) -> BoxFuture<'_, Result<Box<dyn Subscription>, SubscribeError>> {
        Box::pin(async move { self.subscribe_now(&request) })
    }

    fn publisher(&self) -> BoxFuture<'_, Result<Arc<dyn Publisher>, ConnectError>> {
        Box::pin(async move {
            if self.connection.is_closed() {
                return Err(error::closed_for_connecting("make a publisher"));
            }
            let publisher: Arc<dyn Publisher> =
                Arc::new(EmbeddedPublisher::new(Arc::clone(&self.connection)));
            Ok(publisher)
        })
    }

    fn backlog<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, Option<u64>> {
        let ready = self.connection.hub.find(source.name()).map(|queue| queue.ready() as u64);
        Box::pin(std::future::ready(ready))
    }

    fn operator(&self) -> Option<Arc<dyn Operator>> {
        Some(Arc::new(EmbeddedOperator { connection: Arc::clone(&self.connection) }))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.connection.close() })
    }
}

/// What a connection, its subscriptions and its publishers share.
#[derive(Debug)]
pub(crate) struct Connection {
    hub: Arc<Hub>,
    /// Written under the lock of `held` only, so that no subscription slips in while it is closed.
    closed: AtomicBool,
    held: Mutex<Vec<Weak<Held>>>,
}

impl Connection {
    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Makes `held` end with the connection; false where that is closed already.
    fn adopt(&self, held: &Arc<Held>) -> bool {
        let mut all = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_closed() {
            return false;
        }
        all.retain(|held| held.strong_count() > 0);
        all.push(Arc::downgrade(held));
        true
    }

    fn close(&self) {
        let all = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            self.closed.store(true, Ordering::Release);
            std::mem::take(&mut *held)
        };
        all.iter().filter_map(Weak::upgrade).for_each(|held| held.end());
    }
}
