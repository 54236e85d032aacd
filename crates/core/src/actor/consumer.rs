//! The consumer actor: owns its sessions, one at a time, from connecting to their end.
//!
//! It does not touch messages. Whatever ends a session ends the actor, with the reason, and the supervisor starts
//! another. A pause ends the session and keeps the actor.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::dead_letter::DeadLetters;
use super::event::EventKind;
use super::node::{Node, Phase, Settings, Trouble};
use super::supervisor::SupervisorRef;
use crate::broker::{Broker, Subscribe};
use crate::circuit::Gate;
use crate::consumer::{Consumer, OnPanic};
use crate::dead_letter::Scene;
use crate::envelope::Outlet;
use crate::error::{BoxError, ConnectError, ConnectErrorKind, SubscribeError};
use crate::middleware::Layers;
use crate::pipeline::Pipeline;
use crate::session::{self, Ended, OnPanicked, Order, Setup};
use crate::settle::Patience;
use crate::telemetry::add;

/// What a consumer needs at each start.
#[derive(Clone)]
pub(super) struct ConsumerArgs {
    pub(super) consumer: Arc<Consumer>,
    pub(super) node: Arc<Node>,
    pub(super) broker: Arc<dyn Broker>,
    pub(super) dead_letters: DeadLetters,
    pub(super) scene: Arc<Scene>,
    pub(super) supervisor: SupervisorRef,
}

/// What is said to a consumer.
pub(super) enum ToConsumer {
    /// Take no more, finish, settle, end.
    Drain,
    /// Drop what is in flight, settle what is done, end.
    Abandon,
    /// Take no more, finish, settle, wait for the end.
    Pause,
    /// An operator changed its settings.
    Settings,
    /// It takes nothing although so many messages wait.
    Deaf(u64),
    /// From its own session: it ended.
    Ended(Result<(), Fault>),
}

/// A running consumer.
#[derive(Clone)]
pub(super) struct ConsumerRef(pub(super) ActorRef<ToConsumer>);

impl ConsumerRef {
    // one that is gone takes nothing anyway
    pub(super) fn pause(&self) {
        drop(self.0.cast(ToConsumer::Pause));
    }

    pub(super) fn settings_changed(&self) {
        drop(self.0.cast(ToConsumer::Settings));
    }

    pub(super) fn deaf(&self, backlog: u64) {
        drop(self.0.cast(ToConsumer::Deaf(backlog)));
    }
}

/// Why a child ended, when it did not end as told.
#[derive(Debug)]
pub(super) struct Fault {
    outage: bool,
    what: String,
    error: Option<BoxError>,
}

impl Fault {
    pub(super) fn new(what: &str, error: impl Into<BoxError>) -> Self {
        Self { outage: false, what: what.to_owned(), error: Some(error.into()) }
    }

    pub(super) fn connection(what: &str, error: ConnectError) -> Self {
        Self { outage: error.kind() == ConnectErrorKind::Unreachable, ..Self::new(what, error) }
    }

    fn subscription(what: &str, error: SubscribeError) -> Self {
        Self { outage: error.is_outage(), ..Self::new(what, error) }
    }

    /// Whether the broker is away.
    pub(super) fn is_outage(&self) -> bool {
        self.outage
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Fault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.as_ref().map(|error| &**error as _)
    }
}

pub(super) struct ConsumerActor;

pub(super) struct State {
    args: ConsumerArgs,
    session: Option<Session>,
    /// It is to end.
    stopping: bool,
    /// It is to take nothing until it ends.
    quiet: bool,
}

struct Session {
    orders: watch::Sender<Order>,
    settings: Settings,
    task: JoinHandle<()>,
}

impl Drop for Session {
    /// A killed actor takes its session with it.
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Actor for ConsumerActor {
    type Msg = ToConsumer;
    type State = State;
    type Arguments = ConsumerArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<ToConsumer>,
        args: ConsumerArgs,
    ) -> Result<State, ActorProcessingErr> {
        let mut state = State { args, session: None, stopping: false, quiet: false };
        state.go_on(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<ToConsumer>,
        message: ToConsumer,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ToConsumer::Drain => state.stop(&myself, Order::Drain),
            ToConsumer::Abandon => state.stop(&myself, Order::Abandon),
            ToConsumer::Pause => {
                state.quiet = true;
                state.order(Order::Drain);
            }
            ToConsumer::Settings => state.apply(&myself),
            ToConsumer::Deaf(backlog) => {
                let what = format!("went deaf: it took nothing although {backlog} messages waited");
                return Err(Box::new(Fault { outage: false, what, error: None }));
            }
            ToConsumer::Ended(ended) => {
                state.session = None;
                match ended {
                    _ if state.stopping => myself.stop(None),
                    Ok(()) => state.go_on(&myself),
                    Err(fault) => return Err(Box::new(fault)),
                }
            }
        }
        Ok(())
    }
}

impl State {
    /// Starts a session, or rests where it is to take nothing.
    fn go_on(&mut self, myself: &ActorRef<ToConsumer>) {
        let settings = *self.args.node.settings.borrow();
        if self.quiet || settings.paused {
            self.args.node.enter(Phase::Paused, EventKind::Paused);
            return;
        }
        let (orders, told) = watch::channel(Order::Run { concurrency: settings.concurrency });
        let (args, myself) = (self.args.clone(), myself.clone());
        let task = tokio::spawn(async move {
            let ended = connect_and_run(args, settings, told).await;
            // an actor that is gone has nobody left to tell
            let _ = myself.cast(ToConsumer::Ended(ended));
        });
        self.session = Some(Session { orders, settings, task });
    }

    fn stop(&mut self, myself: &ActorRef<ToConsumer>, order: Order) {
        self.stopping = true;
        match &self.session {
            Some(_) => self.order(order),
            None => myself.stop(None),
        }
    }

    fn order(&self, order: Order) {
        if let Some(session) = &self.session {
            let first = matches!(*session.orders.borrow(), Order::Run { .. });
            session.orders.send_replace(order);
            if first {
                self.args.node.enter(Phase::Draining, EventKind::Draining);
            }
        }
    }

    /// Concurrency changes at once; the rest by a session that ends as told, and another.
    fn apply(&mut self, myself: &ActorRef<ToConsumer>) {
        let wanted = *self.args.node.settings.borrow();
        match &self.session {
            None if !self.stopping && !self.quiet && !wanted.paused => self.go_on(myself),
            None => {}
            Some(session) if wanted.paused || wanted.max_in_flight != session.settings.max_in_flight => {
                self.order(Order::Drain);
            }
            Some(session) => {
                let run = |order: &mut Order| {
                    if let Order::Run { concurrency } = order {
                        *concurrency = wanted.concurrency;
                    }
                };
                session.orders.send_modify(run);
            }
        }
    }
}

async fn connect_and_run(
    args: ConsumerArgs,
    settings: Settings,
    mut told: watch::Receiver<Order>,
) -> Result<(), Fault> {
    let setup = tokio::select! {
        biased;
        // told to stop before it came to run
        _ = told.wait_for(|order| !matches!(order, Order::Run { .. })) => return Ok(()),
        setup = connect(&args, settings) => setup?,
    };
    args.node.enter(Phase::Running, EventKind::Running);
    match session::run(setup, told).await {
        Ended::Drained => Ok(()),
        Ended::Subscription(error) => Err(Fault::subscription("subscription ended", error)),
        Ended::Factory(error) => Err(Fault::new("handler factory failed after a panic", error)),
    }
}

async fn connect(args: &ConsumerArgs, settings: Settings) -> Result<Setup, Fault> {
    let consumer = &args.consumer;
    let Some(factory) = consumer.factory.clone() else {
        return Err(Fault::new("start", "it has no handler"));
    };
    let handler = factory().await.map_err(|error| Fault::new("handler factory failed", error))?;
    let max_in_flight = settings.max_in_flight.try_into().unwrap_or(std::num::NonZeroUsize::MIN);
    let request = Subscribe {
        source: consumer.source.clone(),
        consumer: Arc::clone(&consumer.name),
        max_in_flight,
        narrow: true,
        dead_letter: consumer.dead_letter_destination(),
    };
    let subscription = args
        .broker
        .subscribe(request)
        .await
        .map_err(|error| Fault::subscription("subscribe failed", error))?;
    Ok(Setup {
        subscription,
        handler,
        factory,
        pipeline: Arc::new(pipeline(args)),
        gate: consumer.circuit.clone().map(|circuit| Arc::new(Gate::new(circuit, Arc::clone(&args.node)))),
        max_in_flight: max_in_flight.get(),
        release_counts: args.broker.capabilities().release_counts,
        replace_on_panic: consumer.on_panic == OnPanic::Restart,
        on_panic: on_panic(args),
        node: Arc::clone(&args.node),
    })
}

fn pipeline(args: &ConsumerArgs) -> Pipeline {
    let consumer = &args.consumer;
    let node = Arc::clone(&args.node);
    Pipeline {
        codec: consumer.codec,
        layers: Layers::build(&consumer.layers),
        timeout: consumer.timeout.or(consumer.handler_timeout),
        blocking: consumer.blocking,
        retry: consumer.retry.clone(),
        crash_limit: consumer.crash_limit,
        outlet: Arc::new(Outlet::new(Arc::clone(&args.broker))),
        dead_letters: args.dead_letters.clone(),
        scene: Arc::clone(&args.scene),
        counters: Arc::clone(args.node.counters()),
        patience: Patience::new(move |trouble| node.set_trouble(Trouble::Unstored, trouble)),
        abandoning: AtomicBool::new(false),
    }
}

fn on_panic(args: &ConsumerArgs) -> OnPanicked {
    let (node, supervisor) = (Arc::clone(&args.node), args.supervisor.clone());
    let replaces = args.consumer.on_panic == OnPanic::Restart;
    Box::new(move |why, fruitless| {
        add(&node.counters().panics);
        node.emit(EventKind::HandlerPanicked { why: why.to_owned() });
        if replaces {
            add(&node.counters().restarts);
            if fruitless {
                supervisor.fault(node.id, why);
            }
        }
    })
}
