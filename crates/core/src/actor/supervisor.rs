//! The supervisor actor: carries out what its [`Plan`] says, and reports back what came of it.

use std::collections::{HashMap, VecDeque};
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::consumer::{ConsumerRef, Fault, ToConsumer};
use super::dead_letter::DeadLetters;
use super::event::{Bus, EventKind};
use super::handle::Tree;
use super::incarnation::Incarnation;
use super::node::{Control, Kind, Node, Phase};
use super::plan::{Action, ChildId, How, Plan};
use super::restart::RestartWindow;
use super::spec::{Child, StartError, Supervisor};
use super::task::ToTask;
use super::watchdog::Watchdog;
use crate::broker::Broker;
use crate::error::chain;
use crate::telemetry::add;

/// How long an abandoned child may take to settle what is done, before it is killed.
const LAST_GRACE: Duration = Duration::from_secs(2);

/// What is said to a supervisor.
pub(super) enum ToSupervisor {
    /// The time has come that the plan waited for.
    Due(ChildId),
    /// A child was told to stop this long ago, and has not.
    Overdue { id: ChildId, actor: ractor::ActorId },
    /// A child said that it failed without ending, and why.
    Fault(ChildId, String),
    /// End: stop the children.
    ShutDown,
    /// End: do not wait for what is in flight.
    Abandon,
    /// An operator's command to one child.
    Command { name: Arc<str>, command: Command, done: oneshot::Sender<Result<(), String>> },
    /// A child to be added and started.
    Add { child: Box<Child>, done: oneshot::Sender<Result<(), String>> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Start,
    Stop,
    Restart,
    Remove,
}

/// A running supervisor.
#[derive(Clone)]
pub(super) struct SupervisorRef(pub(super) ActorRef<ToSupervisor>);

impl SupervisorRef {
    /// Tells a child of it that it failed without ending.
    pub(super) fn fault(&self, id: ChildId, why: &str) {
        // a supervisor that is gone has stopped the child already
        let _ = self.0.cast(ToSupervisor::Fault(id, why.to_owned()));
    }
}

/// What every supervisor of a tree shares.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) dead_letters: DeadLetters,
    pub(super) host: Arc<str>,
    pub(super) app_version: Option<Arc<str>>,
}

pub(super) async fn start(spec: Supervisor, broker: Arc<dyn Broker>) -> Result<Tree, StartError> {
    let failed = |error: ractor::SpawnErr| StartError(format!("start supervisor `{}`: {error}", spec.name));
    let (changed, _) = watch::channel(());
    let (ended, see_ended) = watch::channel(None);
    let node_spec = Child::supervisor(spec.clone()).node();
    let node = Arc::new(Node::new(node_spec, None, ChildId(0), Bus::new(), changed));
    let dead_letters = DeadLetters::start().await.map_err(failed)?;
    let shared = Shared {
        broker: Arc::clone(&broker),
        dead_letters,
        host: host_name().into(),
        app_version: spec.app_version.clone(),
    };
    let (spec, root) = (Arc::new(spec.clone()), Arc::clone(&node));
    let args = Arguments { spec, node: root, shared: shared.clone(), ended: Some(ended) };
    let (actor, _) = Actor::spawn(None, SupervisorActor, args).await.map_err(failed)?;
    let watchdog = Watchdog::start(&node, broker);
    Ok(Tree::new(SupervisorRef(actor), node, see_ended, shared, watchdog))
}

pub(super) struct SupervisorActor;

pub(super) struct Arguments {
    pub(super) spec: Arc<Supervisor>,
    pub(super) node: Arc<Node>,
    pub(super) shared: Shared,
    /// The root's only.
    pub(super) ended: Option<watch::Sender<Option<Result<(), String>>>>,
}

pub(super) struct State {
    spec: Arc<Supervisor>,
    node: Arc<Node>,
    shared: Shared,
    ended: Option<watch::Sender<Option<Result<(), String>>>>,
    plan: Plan,
    children: HashMap<ChildId, Running>,
    next_id: u64,
    /// Why it gave up, if it did.
    gave_up: Option<String>,
    /// Set by the plan's last action.
    over: bool,
}

/// One child and its current incarnation.
struct Running {
    child: Child,
    node: Arc<Node>,
    actor: Option<Incarnation>,
    /// Why its last incarnation ended.
    last_fault: Option<String>,
    started: Instant,
}

/// A supervisor gave up: one fault of one child to the supervisor above it.
#[derive(Debug)]
struct GaveUp(String);

impl fmt::Display for GaveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for GaveUp {}

impl Actor for SupervisorActor {
    type Msg = ToSupervisor;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ToSupervisor>,
        args: Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let Arguments { spec, node, shared, ended } = args;
        let plan = Plan::new(spec.strategy, RestartWindow::new(spec.intensity));
        node.set_control(Control::Supervisor(SupervisorRef(myself.clone())));
        node.enter(Phase::Running, EventKind::Running);
        let (children, gave_up) = (HashMap::new(), None);
        let mut state = State { spec, node, shared, ended, plan, children, next_id: 0, gave_up, over: false };
        // those of its last incarnation, if it had one
        let mut known: HashMap<_, _> =
            state.node.take_children().into_iter().map(|node| (Arc::clone(&node.name), node)).collect();
        for child in state.spec.children.clone() {
            let before = known.remove(&child.name);
            let actions = state.add(child, before.as_deref());
            state.carry_out(&myself, actions).await;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<ToSupervisor>,
        message: ToSupervisor,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let actions = match message {
            ToSupervisor::Due(id) => state.plan.due(id, Instant::now()),
            ToSupervisor::Fault(id, why) => state.fault(id, &why),
            ToSupervisor::Overdue { id, actor } => {
                state.overdue(&myself, id, actor);
                Vec::new()
            }
            ToSupervisor::ShutDown => state.shut_down(),
            ToSupervisor::Abandon => {
                state.abandon();
                Vec::new()
            }
            ToSupervisor::Command { name, command, done } => {
                let (actions, answer) = state.command(&name, command);
                // whoever asked may have gone
                let _ = done.send(answer);
                actions
            }
            ToSupervisor::Add { child, done } => {
                let (actions, answer) = state.add_new(*child);
                let _ = done.send(answer);
                actions
            }
        };
        state.carry_out(&myself, actions).await;
        state.end_if_over(&myself)
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<ToSupervisor>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, fault) = match event {
            SupervisionEvent::ActorTerminated(cell, _, _) => (cell, None),
            SupervisionEvent::ActorFailed(cell, fault) => (cell, Some(fault)),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        let of = |running: &Running| {
            running.actor.as_ref().is_some_and(|actor| actor.cell().get_id() == cell.get_id())
        };
        if let Some(id) = state.children.iter().find(|(_, running)| of(running)).map(|(id, _)| *id) {
            let actions = state.ended(id, fault.as_deref());
            state.carry_out(&myself, actions).await;
        }
        state.end_if_over(&myself)
    }
}

impl State {
    /// A new child, told to the plan, started by the actions that come back. It takes over what its node `before` counted.
    fn add(&mut self, child: Child, before: Option<&Node>) -> Vec<Action> {
        let id = ChildId(self.next_id);
        self.next_id += 1;
        let (bus, changed) = (self.node.bus().clone(), self.node.changed().clone());
        let node = Arc::new(Node::new(child.node(), Some(&self.node.path), id, bus, changed));
        if let Some(before) = before {
            node.inherit(before);
        }
        self.node.add_child(Arc::clone(&node));
        self.plan.add(id, child.restart);
        self.children
            .insert(id, Running { child, node, actor: None, last_fault: None, started: Instant::now() });
        self.plan.start(id)
    }

    fn add_new(&mut self, child: Child) -> (Vec<Action>, Result<(), String>) {
        if let Err(error) = child.check() {
            return (Vec::new(), Err(error.to_string()));
        }
        let supervisor = &self.spec.name;
        if self.children.values().any(|running| running.child.name == child.name) {
            let name = &child.name;
            return (
                Vec::new(),
                Err(format!("supervisor `{supervisor}` has a child named `{name}`: remove it first")),
            );
        }
        (self.add(child, None), Ok(()))
    }

    fn command(&mut self, name: &str, command: Command) -> (Vec<Action>, Result<(), String>) {
        let Some(id) =
            self.children.iter().find(|(_, running)| &*running.child.name == name).map(|(id, _)| *id)
        else {
            return (Vec::new(), Err(format!("supervisor `{}` has no child named `{name}`", self.spec.name)));
        };
        let actions = match command {
            Command::Start => self.plan.start(id),
            Command::Stop => self.plan.stop(id),
            Command::Restart => self.plan.restart(id),
            Command::Remove => self.plan.remove(id),
        };
        if command == Command::Stop
            && let Some(running) = self.children.get(&id)
            && running.actor.is_none()
        {
            running.node.enter(Phase::Stopped, EventKind::Stopped);
        }
        (actions, Ok(()))
    }

    /// Carries out actions in order, and those that follow from them.
    async fn carry_out(&mut self, myself: &ActorRef<ToSupervisor>, actions: Vec<Action>) {
        let mut todo = VecDeque::from(actions);
        while let Some(action) = todo.pop_front() {
            match action {
                Action::Start(id) => todo.extend(self.start_child(myself, id).await),
                Action::Stop(id) => self.stop_child(myself, id),
                Action::Wait(id, after) => self.wait(myself, id, after),
                Action::Forget(id) => {
                    self.children.remove(&id);
                    self.node.remove_child(id);
                }
                Action::GiveUp(id) => self.give_up(id),
                Action::End => self.over = true,
            }
        }
    }

    async fn start_child(&mut self, myself: &ActorRef<ToSupervisor>, id: ChildId) -> Vec<Action> {
        let Some(running) = self.children.get_mut(&id) else { return Vec::new() };
        let (body, node) = (running.child.body.clone(), Arc::clone(&running.node));
        running.started = Instant::now();
        let phase = if node.kind.connects() { Phase::Connecting } else { Phase::Running };
        node.enter(phase, EventKind::Started);
        match Incarnation::spawn(body, &node, &self.shared, myself).await {
            Ok(actor) => {
                if let Incarnation::Consumer(actor) = &actor {
                    node.set_control(Control::Consumer(ConsumerRef(actor.clone())));
                }
                running.actor = Some(actor);
                Vec::new()
            }
            Err(error) => {
                let error: Box<dyn StdError + Send + Sync> = Box::new(Fault::new("start", error));
                self.ended(id, Some(&*error))
            }
        }
    }

    /// A child's incarnation is over.
    fn ended(&mut self, id: ChildId, fault: Option<&(dyn StdError + Send + Sync + 'static)>) -> Vec<Action> {
        let Some(running) = self.children.get_mut(&id) else { return Vec::new() };
        let now = Instant::now();
        let node = Arc::clone(&running.node);
        // what never came to run did not run
        let ran = if node.kind.connects() { node.ran(now) } else { now.duration_since(running.started) };
        running.actor = None;
        if node.kind != Kind::Supervisor {
            node.set_control(Control::Nobody);
        }
        let how = match fault {
            None => {
                node.enter(Phase::Stopped, EventKind::Stopped);
                How::Normal
            }
            Some(fault) => {
                let outage = fault.downcast_ref::<Fault>().is_some_and(Fault::is_outage);
                let why = chain(fault);
                node.enter(Phase::Stopped, EventKind::Failed { why: why.clone(), outage });
                running.last_fault = Some(why);
                if outage { How::Outage } else { How::Fault }
            }
        };
        self.plan.ended(id, how, ran, now, fastrand::f64())
    }

    fn wait(&mut self, myself: &ActorRef<ToSupervisor>, id: ChildId, after: Duration) {
        if let Some(running) = self.children.get(&id) {
            let now = Instant::now();
            let (restarts, limit) = self.plan.spent(now);
            let why = running.last_fault.clone().unwrap_or_else(|| "it was done".to_owned());
            let (since, outage) = (running.node.down_since(), self.plan.is_outage(id));
            add(&running.node.counters().restarts);
            let phase = Phase::BackingOff { until: now + after, why, outage, since, restarts, limit };
            running.node.enter(phase, EventKind::BackingOff { after, restarts, limit });
        }
        myself.send_after(after, move || ToSupervisor::Due(id));
    }

    /// Tells a child to stop, and sees to it that it does.
    fn stop_child(&mut self, myself: &ActorRef<ToSupervisor>, id: ChildId) {
        let Some(running) = self.children.get(&id) else { return };
        let Some(actor) = &running.actor else { return };
        let limit = running.child.shutdown_timeout.unwrap_or(self.spec.shutdown_timeout);
        // a consumer has been finishing since all were told to take no more: deadlines do not add up
        let limit = limit.saturating_sub(running.node.quiet_for());
        // an actor that ended meanwhile says so by its supervision event
        match actor {
            Incarnation::Consumer(actor) => drop(actor.cast(ToConsumer::Drain)),
            Incarnation::Task(actor) => drop(actor.cast(ToTask::Stop)),
            Incarnation::Actor(cell) => drop(cell.drain()),
            // each of its own children has its deadline
            Incarnation::Supervisor(actor) => {
                drop(actor.cast(ToSupervisor::ShutDown));
                return;
            }
        }
        let actor = actor.cell().get_id();
        myself.send_after(limit, move || ToSupervisor::Overdue { id, actor });
    }

    /// Drain, then stop, then kill.
    fn overdue(&mut self, myself: &ActorRef<ToSupervisor>, id: ChildId, actor: ractor::ActorId) {
        let Some(running) = self.children.get(&id) else { return };
        let Some(incarnation) = running.actor.as_ref().filter(|running| running.cell().get_id() == actor)
        else {
            return;
        };
        match incarnation {
            Incarnation::Consumer(consumer) if !running.node.abandoned() => {
                running.node.set_abandoned();
                running.node.emit(EventKind::Abandoned);
                drop(consumer.cast(ToConsumer::Abandon));
                myself.send_after(LAST_GRACE, move || ToSupervisor::Overdue { id, actor });
            }
            other => {
                running.node.emit(EventKind::Killed);
                other.cell().kill();
            }
        }
    }

    fn fault(&mut self, id: ChildId, why: &str) -> Vec<Action> {
        if let Some(running) = self.children.get_mut(&id) {
            running.last_fault = Some(format!("its handler panics on every message: {why}"));
        }
        self.plan.fault(id, Instant::now())
    }

    fn give_up(&mut self, id: ChildId) {
        let Some(running) = self.children.get(&id) else { return };
        let why = running.last_fault.clone().unwrap_or_else(|| "it ended too often".to_owned());
        let (supervisor, name) = (&self.spec.name, &running.child.name);
        let reason =
            format!("supervisor `{supervisor}` gave up: too many restarts, the last of `{name}`: {why}");
        running.node.enter(Phase::Failed(why), EventKind::GaveUp { why: reason.clone() });
        self.gave_up = Some(reason);
        self.stop_taking();
    }

    fn shut_down(&mut self) -> Vec<Action> {
        self.stop_taking();
        self.plan.shut_down()
    }

    /// All consumers below stop taking at once, so that none goes on working while its turn to stop has not come.
    fn stop_taking(&self) {
        self.node.for_each(&mut |node| {
            if let Control::Consumer(consumer) = node.control() {
                node.quiet();
                consumer.pause();
            }
        });
    }

    fn abandon(&self) {
        self.node.for_each(&mut |node| {
            if let Control::Consumer(consumer) = node.control() {
                drop(consumer.0.cast(ToConsumer::Abandon));
            }
        });
        for running in self.children.values() {
            match &running.actor {
                Some(Incarnation::Task(_) | Incarnation::Actor(_)) => {
                    running.actor.iter().for_each(|actor| actor.cell().kill());
                }
                Some(Incarnation::Supervisor(actor)) => drop(actor.cast(ToSupervisor::Abandon)),
                Some(Incarnation::Consumer(_)) | None => {}
            }
        }
    }

    fn end_if_over(&mut self, myself: &ActorRef<ToSupervisor>) -> Result<(), ActorProcessingErr> {
        if !self.over {
            return Ok(());
        }
        let result = self.gave_up.take().map_or(Ok(()), Err);
        if let Some(ended) = self.ended.take() {
            match &result {
                Ok(()) => self.node.enter(Phase::Stopped, EventKind::Stopped),
                Err(why) => {
                    self.node.enter(Phase::Failed(why.clone()), EventKind::GaveUp { why: why.clone() });
                }
            }
            self.shared.dead_letters.stop();
            ended.send_replace(Some(result));
            myself.stop(None);
            return Ok(());
        }
        match result {
            Ok(()) => {
                myself.stop(None);
                Ok(())
            }
            Err(reason) => Err(Box::new(GaveUp(reason))),
        }
    }
}

fn host_name() -> String {
    let from_file = || std::fs::read_to_string("/etc/hostname").ok().map(|name| name.trim().to_owned());
    let from_env = std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    from_env.or_else(from_file).unwrap_or_else(|| "unknown".to_owned())
}
