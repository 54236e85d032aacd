//! What to supervise: [`Supervisor`] and [`Child`], not started yet.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::handle::Tree;
use super::link::{self, LinkFactory, SupervisedPublisher};
use super::node::{Kind, NodeSpec, Settings};
use super::plan::{Restart, Strategy};
use super::restart::RestartIntensity;
use super::supervisor;
use super::task::{ActorFactory, TaskFactory};
use crate::broker::Broker;
use crate::consumer::Consumer;
use crate::error::BoxError;
use crate::shutdown::{self, RunError};

/// A supervisor and its children, not started yet.
///
/// | setting | default |
/// |---|---|
/// | [`strategy`](Self::strategy) | one for one |
/// | [`intensity`](Self::intensity) | 10 restarts in 5 minutes |
/// | [`shutdown_timeout`](Self::shutdown_timeout) | 8 s for each child |
///
/// ```no_run
/// # use std::sync::Arc;
/// # use serde::{Deserialize, Serialize};
/// # use steadfast_core::{Broker, Consumer, Context, Message, RunError, Source, Supervisor, handler_fn};
/// # #[derive(Serialize, Deserialize)] struct Ping { n: u64 }
/// # impl Message for Ping { const NAME: &'static str = "ping"; }
/// # async fn example(broker: Arc<dyn Broker>) -> Result<(), RunError> {
/// Supervisor::new("app")
///     .consumer(
///         Consumer::new("pings", Source::queue("pings"))
///             .handler(|| handler_fn(|_: Ping, _: Context| async { Ok(()) })),
///     )
///     .supervisor(Supervisor::new("reports").task("daily", || async { Ok::<_, std::io::Error>(()) }))
///     .run_until_signal(broker)
///     .await
/// # }
/// ```
#[must_use = "a supervisor does nothing until it is started"]
#[derive(Clone)]
pub struct Supervisor {
    pub(super) name: Arc<str>,
    pub(super) strategy: Strategy,
    pub(super) intensity: RestartIntensity,
    pub(super) shutdown_timeout: Duration,
    pub(super) app_version: Option<Arc<str>>,
    pub(super) children: Vec<Child>,
    #[cfg(feature = "health")]
    health: Option<std::net::SocketAddr>,
}

impl Supervisor {
    /// A supervisor of this name, without children.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            strategy: Strategy::default(),
            intensity: RestartIntensity::default(),
            shutdown_timeout: Duration::from_secs(8),
            app_version: None,
            children: Vec::new(),
            #[cfg(feature = "health")]
            health: None,
        }
    }

    /// Which siblings are restarted with a child that failed. Default one for one.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// How many restarts are too many; then the supervisor stops its children and fails, and its own supervisor decides
    /// what follows. The root's failure ends the tree with an error.
    pub fn intensity(mut self, intensity: RestartIntensity) -> Self {
        self.intensity = intensity;
        self
    }

    /// How long a child may go on after it was told to stop, unless the child says otherwise. What a consumer has not
    /// finished then is given back to the broker and named in the log. Default 8 s.
    pub fn shutdown_timeout(mut self, limit: Duration) -> Self {
        self.shutdown_timeout = limit;
        self
    }

    /// Version of the application, for dead letters. Only the root's counts.
    pub fn app_version(mut self, version: impl Into<Arc<str>>) -> Self {
        self.app_version = Some(version.into());
        self
    }

    /// Serves health over HTTP on this address, from the tree's start to the end of its drain. Only on the root.
    ///
    /// | path | 200 while | else |
    /// |---|---|---|
    /// | `/livez` | [`Health::live`](super::Health::live) | 503, and the causes |
    /// | `/readyz`, `/healthz` | [`Health::ready`](super::Health::ready) | 503, and the causes, a line for each |
    /// | `/status` | always: the tree as text | |
    ///
    /// With `Accept: application/json` each says `{"live":…,"ready":…,"why":[…]}`. The answers come from a thread of their
    /// own, whatever the handlers do. They name consumers and errors: do not show the address to the public.
    ///
    /// ```no_run
    /// # use std::sync::Arc;
    /// # use steadfast_core::{Broker, RunError, Supervisor};
    /// # async fn example(broker: Arc<dyn Broker>) -> Result<(), RunError> {
    /// Supervisor::new("app").health_http(([0, 0, 0, 0], 8080)).run_until_signal(broker).await
    /// # }
    /// ```
    #[cfg(feature = "health")]
    pub fn health_http(mut self, address: impl Into<std::net::SocketAddr>) -> Self {
        self.health = Some(address.into());
        self
    }

    /// Adds a child. Children start in the order they were added and stop in reverse.
    pub fn child(mut self, child: Child) -> Self {
        self.children.push(child);
        self
    }

    /// Adds a consumer, permanent.
    pub fn consumer(self, consumer: Consumer) -> Self {
        self.child(Child::consumer(consumer))
    }

    /// Adds a supervisor, permanent.
    pub fn supervisor(self, supervisor: Supervisor) -> Self {
        self.child(Child::supervisor(supervisor))
    }

    /// Adds any future, transient; see [`Child::task`].
    pub fn task<F, E>(
        self,
        name: impl Into<Arc<str>>,
        factory: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.child(Child::task(name, factory))
    }

    /// Starts the tree. Consumers connect on their own: an unreachable broker is waited for, not an error here.
    pub async fn start(self, broker: Arc<dyn Broker>) -> Result<Tree, StartError> {
        self.check()?;
        #[cfg(feature = "health")]
        {
            // an address that is taken is found out before anything runs
            let bound = self.health.map(crate::health_http::bind).transpose().map_err(StartError)?;
            let mut tree = supervisor::start(self, broker).await?;
            if let Some(bound) = bound {
                tree.serve_health(bound).await?;
            }
            Ok(tree)
        }
        #[cfg(not(feature = "health"))]
        supervisor::start(self, broker).await
    }

    /// Starts the tree and runs it until SIGTERM or SIGINT (Ctrl-C), then drains it: takes no more, finishes what is in
    /// flight, settles it, closes the broker. A second signal drops what is in flight. Ends with an error where the root
    /// gave up; return it from `main` and the process exits with a code other than 0.
    pub async fn run_until_signal(self, broker: Arc<dyn Broker>) -> Result<(), RunError> {
        let tree = self.start(broker).await.map_err(RunError::Start)?;
        shutdown::until_signal(tree).await
    }

    fn check(&self) -> Result<(), StartError> {
        check_name(&self.name)?;
        let mut names = std::collections::HashSet::new();
        for child in &self.children {
            child.check().map_err(|error| StartError(format!("supervisor `{}`: {error}", self.name)))?;
            if !names.insert(&child.name) {
                let (name, child) = (&self.name, &child.name);
                return Err(StartError(format!(
                    "supervisor `{name}` has two children named `{child}`: rename one"
                )));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor")
            .field("name", &self.name)
            .field("strategy", &self.strategy)
            .field("intensity", &self.intensity)
            .field("children", &self.children)
            .finish_non_exhaustive()
    }
}

/// One child of a supervisor, not started yet.
///
/// | kind | restarted by default |
/// |---|---|
/// | [`consumer`](Self::consumer), [`connection`](Self::connection), [`publisher`](Self::publisher), [`supervisor`](Self::supervisor), [`actor`](Self::actor) | always (permanent) |
/// | [`task`](Self::task), [`task_until`](Self::task_until) | after a fault (transient) |
///
/// ```
/// use steadfast_core::{Child, DurationExt, Restart, Supervisor};
///
/// let report = Child::task("report", || async { Ok::<_, std::io::Error>(()) })
///     .restart(Restart::Temporary)
///     .shutdown_timeout(2.secs());
/// let supervisor = Supervisor::new("app").child(report);
/// # let _ = supervisor;
/// ```
#[must_use = "a child does nothing until its supervisor is started"]
#[derive(Clone)]
pub struct Child {
    pub(super) name: Arc<str>,
    pub(super) restart: Restart,
    pub(super) shutdown_timeout: Option<Duration>,
    pub(super) required: bool,
    pub(super) body: Body,
}

#[derive(Clone)]
pub(super) enum Body {
    Consumer(Arc<Consumer>),
    Supervisor(Arc<Supervisor>),
    Link(Kind, LinkFactory),
    Task(TaskFactory),
    Actor(ActorFactory),
}

impl Child {
    fn new(name: Arc<str>, restart: Restart, body: Body) -> Self {
        Self { name, restart, shutdown_timeout: None, required: true, body }
    }

    /// A consumer.
    pub fn consumer(consumer: Consumer) -> Self {
        Self::new(Arc::clone(&consumer.name), Restart::Permanent, Body::Consumer(Arc::new(consumer)))
    }

    /// The connections to the broker: opened when it starts, and a fault when one of them is lost, so that health and events
    /// tell of the broker itself. Consumers open what they need with it or without. Added first under
    /// [`Strategy::RestForOne`], everything after it is started anew when it stands again.
    ///
    /// ```
    /// use steadfast_core::{Child, Strategy, Supervisor};
    ///
    /// let supervisor = Supervisor::new("app").strategy(Strategy::RestForOne).child(Child::connection("broker"));
    /// # let _ = supervisor;
    /// ```
    pub fn connection(name: impl Into<Arc<str>>) -> Self {
        Self::new(name.into(), Restart::Permanent, Body::Link(Kind::Connection, link::connection()))
    }

    /// A publisher, and the handle to publish through it from anywhere in the application. Health is not ready while the
    /// broker cannot be reached for it.
    ///
    /// ```
    /// use steadfast_core::{Child, Supervisor};
    ///
    /// let (child, publisher) = Child::publisher("audit");
    /// let supervisor = Supervisor::new("app").child(child);
    /// // `publisher.publish(&message).await`, once the tree is started
    /// # let _ = (supervisor, publisher);
    /// ```
    pub fn publisher(name: impl Into<Arc<str>>) -> (Self, SupervisedPublisher) {
        let name = name.into();
        let publisher = SupervisedPublisher::new(Arc::clone(&name));
        let child = Self::new(name, Restart::Permanent, Body::Link(Kind::Publisher, publisher.factory()));
        (child, publisher)
    }

    /// A supervisor of its own. Where it gives up, that is one fault of one child here.
    pub fn supervisor(supervisor: Supervisor) -> Self {
        Self::new(Arc::clone(&supervisor.name), Restart::Permanent, Body::Supervisor(Arc::new(supervisor)))
    }

    /// Any future. It is made anew for each start; an error or a panic of it is a fault, `Ok` is its end. It is dropped
    /// when it is to stop.
    pub fn task<F, E>(name: impl Into<Arc<str>>, factory: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        Self::task_until(name, move |mut stop: Stop| {
            let future = factory();
            async move {
                tokio::select! {
                    ended = future => ended,
                    () = stop.told() => Ok(()),
                }
            }
        })
    }

    /// Any future that wants to end in its own way: it gets a [`Stop`] to watch, and the shutdown timeout to end in.
    pub fn task_until<F, E>(
        name: impl Into<Arc<str>>,
        factory: impl Fn(Stop) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let factory: TaskFactory = Arc::new(move |stop| {
            let future = factory(stop);
            Box::pin(async move { future.await.map_err(Into::into) })
        });
        Self::new(name.into(), Restart::Transient, Body::Task(factory))
    }

    /// The application's own actor. `spawn` links it to the supervisor it is given. When it is to stop it is drained: it
    /// finishes its mailbox within the shutdown timeout.
    ///
    /// ```no_run
    /// # struct Counter;
    /// # impl ractor::Actor for Counter {
    /// #     type Msg = u64; type State = u64; type Arguments = u64;
    /// #     async fn pre_start(&self, _: ractor::ActorRef<u64>, n: u64) -> Result<u64, ractor::ActorProcessingErr> { Ok(n) }
    /// # }
    /// use ractor::Actor;
    /// use steadfast_core::{Child, ractor};
    ///
    /// let counter = Child::actor("counter", |supervisor| async move {
    ///     Ok(Counter::spawn_linked(None, Counter, 0, supervisor).await?.0.get_cell())
    /// });
    /// # let _ = counter;
    /// ```
    pub fn actor<F>(
        name: impl Into<Arc<str>>,
        spawn: impl Fn(ractor::ActorCell) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<ractor::ActorCell, ractor::SpawnErr>> + Send + 'static,
    {
        let factory: ActorFactory =
            Arc::new(move |supervisor| -> BoxFuture<'static, _> { Box::pin(spawn(supervisor)) });
        Self::new(name.into(), Restart::Permanent, Body::Actor(factory))
    }

    /// When it is started again after it ended.
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// How long it may go on after it was told to stop. Default: its supervisor's.
    pub fn shutdown_timeout(mut self, limit: Duration) -> Self {
        self.shutdown_timeout = Some(limit);
        self
    }

    /// Whether health depends on it. Default true. A task or an actor makes a tree unready only while it is being restarted.
    pub fn required(mut self, required: bool) -> Self {
        self.required = required;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn check(&self) -> Result<(), StartError> {
        check_name(&self.name)?;
        match &self.body {
            Body::Consumer(consumer) => consumer.problem().map_or(Ok(()), |problem| Err(StartError(problem))),
            #[cfg(feature = "health")]
            Body::Supervisor(supervisor) if supervisor.health.is_some() => Err(StartError(format!(
                "supervisor `{}` is not the root and serves health over HTTP: move `health_http` to the root, which \
                 speaks for all",
                self.name
            ))),
            Body::Supervisor(supervisor) => supervisor.check(),
            Body::Link(..) | Body::Task(_) | Body::Actor(_) => Ok(()),
        }
    }

    pub(super) fn node(&self) -> NodeSpec {
        let (kind, source, handler, concurrency, max_in_flight) = match &self.body {
            Body::Consumer(consumer) => (
                Kind::Consumer,
                Some(consumer.source.clone()),
                consumer.handler_name,
                consumer.concurrency,
                consumer.in_flight_limit().get(),
            ),
            Body::Supervisor(_) => (Kind::Supervisor, None, "", 0, 0),
            Body::Link(kind, _) => (*kind, None, "", 0, 0),
            Body::Task(_) => (Kind::Task, None, "", 0, 0),
            Body::Actor(_) => (Kind::Actor, None, "", 0, 0),
        };
        let settings = Settings { paused: false, concurrency, max_in_flight };
        NodeSpec { name: Arc::clone(&self.name), kind, required: self.required, source, handler, settings }
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} `{}` ({:?})", self.node().kind, self.name, self.restart)
    }
}

fn check_name(name: &str) -> Result<(), StartError> {
    if name.trim().is_empty() {
        return Err(StartError("a child has no name: give it one".to_owned()));
    }
    if name.contains('/') {
        return Err(StartError(format!(
            "the name `{name}` has a `/`, which separates names in a path: rename it"
        )));
    }
    Ok(())
}

/// Tells a task that it is to stop; see [`Child::task_until`].
#[derive(Clone, Debug)]
pub struct Stop(pub(super) watch::Receiver<bool>);

impl Stop {
    /// Resolves when the task is to stop.
    pub async fn told(&mut self) {
        // a supervisor that is gone cannot want it to go on
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// A tree, or a child, was not started: something in it is wrong. The text names it and the way out.
pub struct StartError(pub(super) String);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for StartError {}
