//! [`Amqp`]: two lanes, and what core asks of a broker.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, select};
use steadfast_core::{
    Broker, Capabilities, ConnectError, Operator, Publisher, Source, Subscribe, SubscribeError,
    SubscribeErrorKind, Subscription,
};

use crate::connection::Lane;
use crate::declare::{self, Found};
use crate::error::Trouble;
use crate::link::ServerName;
use crate::naming::LONGEST_QUEUE;
use crate::operate::AmqpOperator;
use crate::options::Options;
use crate::pipe::Pipe;
use crate::publisher::AmqpPublisher;
use crate::queue::release_counts;
use crate::runtime;
use crate::subscription::AmqpSubscription;

/// Connects to the RabbitMQ at `url`; see [`Options`] for what the URL can say.
///
/// Fails with [`Unreachable`](steadfast_core::ConnectErrorKind::Unreachable) where the broker does not answer within
/// 5 s, and with [`Refused`](steadfast_core::ConnectErrorKind::Refused) where it does not let this user in.
///
/// ```no_run
/// # async fn example() -> Result<(), steadfast_core::ConnectError> {
/// let broker = steadfast_amqp::connect("amqp://guest:guest@localhost/").await?;
/// # drop(broker);
/// # Ok(())
/// # }
/// ```
pub async fn connect(url: &str) -> Result<Arc<Amqp>, ConnectError> {
    connect_with(Options::new(url)?).await
}

/// The same with more settings than fit a URL.
pub async fn connect_with(options: Options) -> Result<Arc<Amqp>, ConnectError> {
    let amqp = Amqp::new(options)?;
    amqp.consuming.get().await?;
    Ok(amqp)
}

/// A broker that need not be up yet: the URL is checked now, and the first call that needs a connection opens it.
///
/// Until then [`capabilities`](Broker::capabilities) speaks for RabbitMQ 3.10.
pub fn connect_lazy(url: &str) -> Result<Arc<Amqp>, ConnectError> {
    Amqp::new(Options::new(url)?)
}

/// A RabbitMQ server.
///
/// It has a connection to consume on and another one to publish on, each opened by the first call that needs it and
/// opened again by the first call after it was lost. They live on threads of their own.
pub struct Amqp {
    consuming: Lane,
    publishing: Arc<Lane>,
    options: Arc<Options>,
    server: ServerName,
    /// Queues that only one consumer takes from, as far as they were met: the others wait, and are not deaf.
    single: Mutex<BTreeSet<Arc<str>>>,
}

impl Amqp {
    fn new(options: Options) -> Result<Arc<Self>, ConnectError> {
        options.check()?;
        let (options, server) = (Arc::new(options), ServerName::default());
        let lane = |role| Lane::new(Arc::clone(&options), role, Arc::clone(&server));
        let (consuming, publishing) = (lane("consume"), Arc::new(lane("publish")));
        Ok(Arc::new(Self { consuming, publishing, options, server, single: Mutex::default() }))
    }

    pub(crate) fn server(&self) -> &str {
        self.server.get().map_or("RabbitMQ", String::as_str)
    }

    pub(crate) fn publishing(&self) -> &Arc<Lane> {
        &self.publishing
    }

    pub(crate) fn window(&self) -> usize {
        self.options.window()
    }

    pub(crate) fn is_passive(&self) -> bool {
        self.options.is_passive()
    }

    /// Where things are declared. Connects first, so that the server is known when it is told of its queues.
    pub(crate) async fn admin(&self) -> Result<&Lane, SubscribeError> {
        match self.consuming.get().await {
            Ok(_) => Ok(&self.consuming),
            Err(fault) => Err(Trouble::from(fault).subscribing("declare")),
        }
    }

    async fn declare_source(&self, source: &Source) -> Result<Found, SubscribeError> {
        let found = declare::declare_source(self.admin().await?, self.server(), source).await?;
        if found.single {
            self.single().insert(Arc::clone(source.name()));
        }
        Ok(found)
    }

    fn single(&self) -> MutexGuard<'_, BTreeSet<Arc<str>>> {
        self.single.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn start(&self, request: Subscribe) -> Result<Box<dyn Subscription>, SubscribeError> {
        let queue = request.source.name();
        if queue.len() > LONGEST_QUEUE {
            let what = format!(
                "consume from queue `{queue}`: its name has {} bytes, and with more than {LONGEST_QUEUE} there is no \
                 room for the names of its retry queues",
                queue.len()
            );
            return Err(SubscribeError::new(SubscribeErrorKind::Unsupported, what));
        }
        let found = self.declare_source(&request.source).await?;
        declare::declare_dead_letters(&self.consuming, self.server(), &request.dead_letter, found.kind)
            .await?;
        let (publishing, server) = (Arc::clone(&self.publishing), Arc::clone(&self.server));
        let subscription =
            AmqpSubscription::start(&self.consuming, publishing, server, request, found).await?;
        Ok(Box::new(subscription))
    }
}

impl Broker for Amqp {
    fn scheme(&self) -> &'static str {
        "amqp"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(self.server());
        capabilities.delivery_count = true;
        capabilities.release_counts = release_counts(self.server());
        capabilities.routable_check = true;
        capabilities.delay_precision = Duration::from_millis(50);
        capabilities
    }

    fn declare<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, Result<(), SubscribeError>> {
        async { self.declare_source(source).await.map(drop) }.boxed()
    }

    fn subscribe(&self, request: Subscribe) -> BoxFuture<'_, Result<Box<dyn Subscription>, SubscribeError>> {
        self.start(request).boxed()
    }

    fn publisher(&self) -> BoxFuture<'_, Result<Arc<dyn Publisher>, ConnectError>> {
        async {
            self.publishing.get().await?;
            let pipe = Pipe::start(Arc::clone(&self.publishing), self.options.window(), runtime::handle()?);
            let publisher: Arc<dyn Publisher> = Arc::new(AmqpPublisher { pipe });
            Ok(publisher)
        }
        .boxed()
    }

    /// Both connections, looked at four times a second.
    fn connection(&self) -> BoxFuture<'_, Result<BoxFuture<'static, ConnectError>, ConnectError>> {
        async {
            let (consuming, publishing) = (self.consuming.get().await?, self.publishing.get().await?);
            let lost = (self.consuming.lost(&consuming).boxed(), self.publishing.lost(&publishing).boxed());
            Ok(select(lost.0, lost.1).map(|lost| lost.factor_first().0).boxed())
        }
        .boxed()
    }

    /// The number of ready messages, as a passive `queue.declare` answers it. None for a queue with a single active
    /// consumer: whoever waits there takes nothing, and rightly so.
    fn backlog<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, Option<u64>> {
        if self.single().contains(source.name()) {
            return std::future::ready(None).boxed();
        }
        declare::ready_messages(&self.consuming, source.name()).boxed()
    }

    fn operator(&self) -> Option<Arc<dyn Operator>> {
        Some(Arc::new(AmqpOperator::new(&self.options, &self.server, &self.publishing)))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async {
            self.publishing.close().await;
            self.consuming.close().await;
        }
        .boxed()
    }
}

impl fmt::Debug for Amqp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Amqp")
            .field("options", &self.options)
            .field("server", &self.server())
            .finish_non_exhaustive()
    }
}
