//! The consumer's builder: what is true of a deployment.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tower::{Layer, Service};

use crate::broker::{Destination, Source};
use crate::circuit::{Circuit, CircuitBreaker};
use crate::codec::Codec;
use crate::error::BoxError;
use crate::handler::{Dispatch, Handler, Routed, panic_text};
use crate::middleware::{Attempt, Inner, Wrap, wrap};
use crate::retry::Retry;
use crate::session::Factory;
use crate::suspects;

/// Half of it is handled while the other half is read: on Redis the cost is in the wake-ups around each round trip. On RabbitMQ
/// the rest of it is what the broker may send while a copy is confirmed. docs/speed.md has the figures.
const DEFAULT_IN_FLIGHT: usize = 400;

/// A supervised consumer: where from, by which handler, how many at once, and what becomes of failures.
///
/// | setting | default |
/// |---|---|
/// | [`concurrency`](Self::concurrency) | 1: messages are handled one after the other, in order |
/// | [`max_in_flight`](Self::max_in_flight) | 400, or twice the concurrency where that is more |
/// | [`retry`](Self::retry) | exponential, 1 s to 60 s, 5 attempts |
/// | [`dead_letter`](Self::dead_letter) | the source's name and `.dead` |
/// | [`codec`](Self::codec) | JSON, for messages that name no content type |
/// | [`timeout`](Self::timeout) | the handler's own, else none |
/// | [`on_panic`](Self::on_panic) | a fresh handler |
/// | [`crash_limit`](Self::crash_limit) | 5 deliveries |
/// | [`circuit_breaker`](Self::circuit_breaker) | none |
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use steadfast_core::{Context, Message, handler_fn};
/// # #[derive(Serialize, Deserialize)] struct Ping { n: u64 }
/// # impl Message for Ping { const NAME: &'static str = "ping"; }
/// use steadfast_core::{Consumer, DurationExt, Retry, Source};
///
/// let consumer = Consumer::new("billing", Source::queue("orders"))
///     .handler(|| handler_fn(|_: Ping, _: Context| async { Ok(()) }))
///     .concurrency(16)
///     .retry(Retry::exponential(200.millis()..30.secs()).max_attempts(5))
///     .dead_letter("orders.dead");
/// # let _ = consumer;
/// ```
#[must_use = "a consumer does nothing until a supervisor starts it"]
pub struct Consumer {
    pub(crate) name: Arc<str>,
    pub(crate) source: Source,
    pub(crate) factory: Option<Factory>,
    pub(crate) handler_name: &'static str,
    pub(crate) handler_timeout: Option<Duration>,
    pub(crate) blocking: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) concurrency: usize,
    pub(crate) max_in_flight: Option<usize>,
    pub(crate) retry: Retry,
    pub(crate) dead_letter: Option<Destination>,
    pub(crate) codec: Codec,
    pub(crate) layers: Vec<Wrap>,
    pub(crate) on_panic: OnPanic,
    pub(crate) crash_limit: Option<u32>,
    /// It outlives the consumer's sessions.
    pub(crate) circuit: Option<Arc<Mutex<Circuit>>>,
}

/// What follows a handler's panic, after its message has been charged with a failed attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnPanic {
    /// A fresh handler from the factory takes its place; messages in flight finish with the old one. A panic of a handler
    /// that has not finished a single message since it was made spends restart intensity.
    #[default]
    Restart,
    /// The handler stays.
    Continue,
}

impl Consumer {
    /// A consumer of this name, unique within its supervisor, taking from `source`.
    pub fn new(name: impl Into<Arc<str>>, source: impl Into<Source>) -> Self {
        Self {
            name: name.into(),
            source: source.into(),
            factory: None,
            handler_name: "",
            handler_timeout: None,
            blocking: false,
            timeout: None,
            concurrency: 1,
            max_in_flight: None,
            retry: Retry::default(),
            dead_letter: None,
            codec: Codec::default(),
            layers: Vec::new(),
            on_panic: OnPanic::default(),
            crash_limit: Some(5),
            circuit: None,
        }
    }

    /// How to make the handler. Called at every start and after a panic, so that each begins fresh.
    pub fn handler<H: Handler>(self, factory: impl Fn() -> H + Send + Sync + 'static) -> Self {
        self.try_handler(move || std::future::ready(Ok::<_, std::convert::Infallible>(factory())))
    }

    /// The same for a handler that takes an await or can fail to be made; a failure counts as a failed start.
    pub fn try_handler<H, E, F>(mut self, factory: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        H: Handler,
        E: Into<BoxError>,
        F: Future<Output = Result<H, E>> + Send + 'static,
    {
        let factory = Arc::new(factory);
        self.factory = Some(Arc::new(move || {
            let factory = Arc::clone(&factory);
            let make = async move { factory().await.map_err(Into::into) };
            let guarded = std::panic::AssertUnwindSafe(make).catch_unwind();
            Box::pin(async move {
                let handler = guarded.await.unwrap_or_else(|panic| Err(panic_text(&*panic).into()));
                handler.map(|handler: H| Arc::new(Routed::new(handler)) as Arc<dyn Dispatch>)
            })
        }));
        self.handler_name = std::any::type_name::<H>();
        self.handler_timeout = H::timeout();
        self.blocking = H::blocking();
        self
    }

    /// How many messages are handled at once, at least 1. More than one gives up their order. Default 1.
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency.max(1);
        self
    }

    /// Most messages taken from the broker and not yet settled: AMQP's prefetch, Redis's COUNT. Never less than the
    /// concurrency. Default 400, or twice the concurrency where that is more: for handlers that are quick. What waits here,
    /// no other consumer can have, and all of it is in memory: lower it for slow handlers and for large messages.
    pub fn max_in_flight(mut self, messages: usize) -> Self {
        self.max_in_flight = Some(messages.max(1));
        self
    }

    /// When and how often a failed message is tried again.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Where dead letters go. Default: the source's name and `.dead`.
    pub fn dead_letter(mut self, destination: impl Into<Destination>) -> Self {
        self.dead_letter = Some(destination.into());
        self
    }

    /// How messages that name no content type are decoded. Default JSON.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Longest that one attempt may take, in place of the handler's own limit; then it counts as failed.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// What follows a handler's panic.
    pub fn on_panic(mut self, on_panic: OnPanic) -> Self {
        self.on_panic = on_panic;
        self
    }

    /// How many deliveries that nobody settled send a message to the dead letters as `crashed`, untried: each time its
    /// process died, or lost the broker, while it was in the handler. At least 3, `None` for no limit. Default 5.
    ///
    /// From the third delivery on such a message runs alone, so that it is not its neighbours that are counted. It takes a
    /// broker that counts deliveries: quorum queues (`x-delivery-count`), Redis (`XPENDING`); classic queues do not.
    ///
    /// ```
    /// # use steadfast_core::Consumer;
    /// let patient = Consumer::new("billing", "orders").crash_limit(20);
    /// let without = Consumer::new("billing", "orders").crash_limit(None);
    /// # let _ = (patient, without);
    /// ```
    pub fn crash_limit(mut self, deliveries: impl Into<Option<u32>>) -> Self {
        self.crash_limit = deliveries.into().map(|limit| limit.max(suspects::LEAST_LIMIT));
        self
    }

    /// Stops the work, and counts no attempts, while what the handler depends on is down. Default: none.
    ///
    /// ```
    /// use steadfast_core::{CircuitBreaker, Consumer, FailureClass};
    ///
    /// let consumer = Consumer::new("billing", "orders")
    ///     .circuit_breaker(CircuitBreaker::on(FailureClass::tag("bank-down")));
    /// # let _ = consumer;
    /// ```
    pub fn circuit_breaker(mut self, breaker: CircuitBreaker) -> Self {
        self.circuit = Some(Arc::new(Mutex::new(Circuit::new(breaker))));
        self
    }

    /// Wraps a [`tower::Layer`] around the handler; the first one added is the outermost. An error of a layer is a failed
    /// attempt.
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Inner> + Send + Sync + 'static,
        L::Service: Service<Attempt, Response = (), Error: Into<BoxError>, Future: Send> + Send + 'static,
    {
        self.layers.push(wrap(layer));
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn in_flight_limit(&self) -> NonZeroUsize {
        let limit =
            self.max_in_flight.unwrap_or_else(|| DEFAULT_IN_FLIGHT.max(self.concurrency.saturating_mul(2)));
        NonZeroUsize::new(limit.max(self.concurrency)).unwrap_or(NonZeroUsize::MIN)
    }

    pub(crate) fn dead_letter_destination(&self) -> Destination {
        self.dead_letter.clone().unwrap_or_else(|| Destination::queue(format!("{}.dead", self.source.name())))
    }

    /// What is wrong with it, if anything, and the way out.
    pub(crate) fn problem(&self) -> Option<String> {
        let name = &self.name;
        if name.trim().is_empty() {
            return Some("a consumer has no name: give `Consumer::new` one".to_owned());
        }
        if self.source.name().trim().is_empty() {
            return Some(format!("consumer `{name}` has an empty source: name a queue or a stream"));
        }
        if self.factory.is_none() {
            return Some(format!("consumer `{name}` has no handler: add `.handler(|| MyHandler::new())`"));
        }
        let circuit =
            self.circuit.as_ref().map(|circuit| circuit.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(problem) = circuit.and_then(|circuit| circuit.problem()) {
            return Some(format!("the circuit breaker of consumer `{name}` {problem}"));
        }
        let dead = self.dead_letter_destination();
        if dead.exchange_name().is_none() && dead.name() == &**self.source.name() {
            return Some(format!(
                "consumer `{name}` dead-letters into its own source `{dead}`: name another"
            ));
        }
        None
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("name", &self.name)
            .field("source", &self.source)
            .field("handler", &self.handler_name)
            .field("concurrency", &self.concurrency)
            .field("max_in_flight", &self.in_flight_limit())
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}
