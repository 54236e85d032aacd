//! What is known of a child: shared between the actor that is it, its supervisor, and the [`Tree`](super::Tree).
//!
//! A node outlives the child's incarnations, so counters and settings survive restarts.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::consumer::ConsumerRef;
use super::event::{Bus, EventKind};
use super::plan::ChildId;
use super::supervisor::SupervisorRef;
use crate::broker::Source;
use crate::telemetry::{Counters, Stats};

/// Where a child stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// A consumer on its way to a subscription; a connection or a publisher on its way to the broker.
    Connecting,
    /// A consumer that takes messages; a connection or a publisher that stands; another child that was started.
    Running,
    /// A consumer that takes no more and finishes what is in flight.
    Draining,
    /// A consumer that was told to take no more for now.
    Paused,
    /// It ended, and is started again.
    BackingOff {
        /// When.
        until: Instant,
        /// Why it ended: the chain of reasons.
        why: String,
        /// Whether the broker is away, which is nobody's fault.
        outage: bool,
        /// Since when it has not been running.
        since: Instant,
        /// Restarts within the period that counts.
        restarts: u32,
        /// How many are allowed.
        limit: u32,
    },
    /// It ended for good: its supervisor gave up.
    Failed(String),
    /// It ended as told, was done, or was not started yet.
    Stopped,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("connecting"),
            Self::Running => f.write_str("running"),
            Self::Draining => f.write_str("draining"),
            Self::Paused => f.write_str("paused"),
            Self::BackingOff { until, why, outage, since, restarts, limit } => {
                let now = Instant::now();
                let (wait, down) =
                    (until.saturating_duration_since(now), now.saturating_duration_since(*since));
                let cause = if *outage { "broker unreachable" } else { "failed" };
                write!(
                    f,
                    "{cause} for {:.0} s, next try in {:.1} s",
                    down.as_secs_f64(),
                    wait.as_secs_f64()
                )?;
                if !outage {
                    write!(f, " ({restarts} of {limit} restarts)")?;
                }
                write!(f, ": {why}")
            }
            Self::Failed(why) => write!(f, "gave up: {why}"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// What kind of child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Takes messages.
    Consumer,
    /// A supervisor of its own.
    Supervisor,
    /// Watches the connections to the broker.
    Connection,
    /// Publishes for the application.
    Publisher,
    /// Any future.
    Task,
    /// The application's own actor.
    Actor,
}

impl Kind {
    /// Whether it says of itself when it runs; of the others only their start is known.
    pub(super) fn connects(self) -> bool {
        match self {
            Self::Consumer | Self::Connection | Self::Publisher => true,
            Self::Supervisor | Self::Task | Self::Actor => false,
        }
    }
}

/// A snapshot of one child, and of all below it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ChildStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Names from the root down, separated by `/`.
    pub path: Arc<str>,
    /// What kind.
    pub kind: Kind,
    /// Where it stands.
    pub phase: Phase,
    /// How long ago it last finished a message; none before the first, and for what is no consumer.
    pub idle: Option<Duration>,
    /// Deliveries taken and not yet settled.
    pub in_flight: usize,
    /// What it has done. For what is no consumer only the restarts count.
    pub stats: Stats,
    /// What is wrong with it beyond its phase: a blocked handler, silence with a backlog, an open circuit.
    pub trouble: Option<String>,
    /// Whether health depends on it.
    pub required: bool,
    /// A supervisor's children, in the order they start.
    pub children: Vec<ChildStatus>,
}

impl ChildStatus {
    /// It and all below it, depth first.
    pub fn flatten(&self) -> Vec<&ChildStatus> {
        let mut all = vec![self];
        all.extend(self.children.iter().flat_map(Self::flatten));
        all
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        let (kind, phase) = (format!("{:?}", self.kind).to_lowercase(), &self.phase);
        write!(f, "{:indent$}{kind} {} - {phase}", "", self.name, indent = depth * 2)?;
        if self.kind == Kind::Consumer {
            let Stats { handled, retried, restarts, .. } = self.stats;
            let (dead, in_flight) = (self.stats.dead_total(), self.in_flight);
            write!(
                f,
                "; {handled} handled, {retried} retried, {dead} dead, {in_flight} in flight, {restarts} restarts"
            )?;
        }
        if let Some(trouble) = &self.trouble {
            write!(f, "; {trouble}")?;
        }
        for child in &self.children {
            writeln!(f)?;
            child.write(f, depth + 1)?;
        }
        Ok(())
    }
}

/// A line for each child, indented by depth.
impl fmt::Display for ChildStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}

/// What an operator set, over what the application was built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) paused: bool,
    pub(crate) concurrency: usize,
    pub(crate) max_in_flight: usize,
}

/// Who carries out commands, while it runs.
#[derive(Clone)]
pub(super) enum Control {
    Nobody,
    Consumer(ConsumerRef),
    Supervisor(SupervisorRef),
}

pub(crate) struct Node {
    pub(super) name: Arc<str>,
    pub(crate) path: Arc<str>,
    pub(super) kind: Kind,
    pub(super) required: bool,
    pub(super) id: ChildId,
    /// Consumers only.
    pub(super) source: Option<Source>,
    pub(super) handler: &'static str,
    state: Mutex<State>,
    counters: Arc<Counters>,
    pub(super) settings: watch::Sender<Settings>,
    created: Instant,
    /// Milliseconds after `created`, plus one; 0 before the first.
    last_progress: AtomicU64,
    pub(crate) in_flight: AtomicUsize,
    /// Odd while the session's task runs handlers; a number that stays odd is a blocked thread.
    pub(crate) pulse: AtomicU64,
    /// Its current incarnation was told to drop what it has in flight.
    abandoned: AtomicBool,
    bus: Bus,
    changed: watch::Sender<()>,
}

struct State {
    phase: Phase,
    since: Instant,
    /// When it was last running, or was started for the first time.
    down_since: Instant,
    control: Control,
    /// When it was told to take nothing until it ends.
    quiet_since: Option<Instant>,
    trouble: [Option<String>; 6],
    children: Vec<Arc<Node>>,
}

/// What can be wrong with a consumer that runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    /// Its handler blocks its thread.
    Blocked,
    /// It takes nothing although messages wait.
    Silent,
    /// A retry or a dead letter cannot be stored.
    Unstored,
    /// Its handler panicked, and the factory takes its time to make another.
    NoHandler,
    /// It takes no more, and its end takes its time.
    Ending,
    /// What its handler depends on is down: it takes probes only.
    CircuitOpen,
}

/// What a node is made of, beyond where it hangs.
pub(super) struct NodeSpec {
    pub(super) name: Arc<str>,
    pub(super) kind: Kind,
    pub(super) required: bool,
    pub(super) source: Option<Source>,
    pub(super) handler: &'static str,
    pub(super) settings: Settings,
}

impl Node {
    pub(super) fn new(
        spec: NodeSpec,
        parent: Option<&str>,
        id: ChildId,
        bus: Bus,
        changed: watch::Sender<()>,
    ) -> Self {
        let now = Instant::now();
        let path =
            parent.map_or_else(|| Arc::clone(&spec.name), |parent| format!("{parent}/{}", spec.name).into());
        let control = Control::Nobody;
        let (phase, trouble, children) = (Phase::Stopped, Default::default(), Vec::new());
        Self {
            name: spec.name,
            path,
            kind: spec.kind,
            required: spec.required,
            id,
            source: spec.source,
            handler: spec.handler,
            state: Mutex::new(State {
                phase,
                since: now,
                down_since: now,
                control,
                quiet_since: None,
                trouble,
                children,
            }),
            counters: Arc::default(),
            settings: watch::channel(spec.settings).0,
            created: now,
            last_progress: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            pulse: AtomicU64::new(0),
            abandoned: AtomicBool::new(false),
            bus,
            changed,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves to a phase and says so.
    pub(crate) fn enter(&self, phase: Phase, event: EventKind) {
        let now = Instant::now();
        {
            let mut state = self.state();
            if matches!(state.phase, Phase::Running | Phase::Draining | Phase::Paused) {
                state.down_since = now;
            }
            state.phase = phase;
            state.since = now;
        }
        self.emit(event);
    }

    pub(crate) fn emit(&self, event: EventKind) {
        self.bus.emit(&self.path, event);
        self.changed.send_replace(());
    }

    pub(super) fn phase(&self) -> Phase {
        self.state().phase.clone()
    }

    /// How long it has been running; zero where it is not.
    pub(super) fn ran(&self, now: Instant) -> Duration {
        let state = self.state();
        match state.phase {
            Phase::Running | Phase::Draining | Phase::Paused => now.saturating_duration_since(state.since),
            Phase::Connecting | Phase::BackingOff { .. } | Phase::Failed(_) | Phase::Stopped => {
                Duration::ZERO
            }
        }
    }

    /// Since when it has not been running.
    pub(super) fn down_since(&self) -> Instant {
        self.state().down_since
    }

    pub(super) fn control(&self) -> Control {
        self.state().control.clone()
    }

    pub(super) fn set_control(&self, control: Control) {
        self.state().control = control;
    }

    pub(crate) fn set_trouble(&self, kind: Trouble, text: Option<String>) {
        self.state().trouble[kind as usize] = text;
        self.changed.send_replace(());
    }

    pub(super) fn has_trouble(&self, kind: Trouble) -> bool {
        self.state().trouble[kind as usize].is_some()
    }

    pub(super) fn children(&self) -> Vec<Arc<Node>> {
        self.state().children.clone()
    }

    pub(super) fn add_child(&self, child: Arc<Node>) {
        self.state().children.push(child);
    }

    pub(super) fn take_children(&self) -> Vec<Arc<Node>> {
        std::mem::take(&mut self.state().children)
    }

    pub(super) fn remove_child(&self, id: ChildId) {
        self.state().children.retain(|child| child.id != id);
    }

    /// Takes over what a node of the same name had counted, when its supervisor started again.
    pub(super) fn inherit(&self, before: &Node) {
        self.counters.inherit(&before.counters);
        self.settings.send_replace(*before.settings.borrow());
        for child in before.children() {
            self.add_child(child);
        }
    }

    /// It was told to take nothing until it ends: its time to finish in began then.
    pub(super) fn quiet(&self) {
        self.state().quiet_since.get_or_insert_with(Instant::now);
    }

    /// How long ago that was.
    pub(super) fn quiet_for(&self) -> Duration {
        self.state().quiet_since.map(|since| since.elapsed()).unwrap_or_default()
    }

    pub(super) fn abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    pub(super) fn set_abandoned(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// A new incarnation starts.
    pub(super) fn begin(&self) {
        {
            let mut state = self.state();
            state.quiet_since = None;
            state.trouble[Trouble::Ending as usize] = None;
        }
        self.abandoned.store(false, Ordering::Relaxed);
    }

    /// The node itself and all below it.
    pub(super) fn for_each(self: &Arc<Self>, visit: &mut impl FnMut(&Arc<Node>)) {
        visit(self);
        for child in self.children() {
            child.for_each(visit);
        }
    }

    pub(crate) fn progress(&self) {
        let millis = u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.last_progress.store(millis + 1, Ordering::Relaxed);
    }

    /// How long ago it last finished a message.
    pub(super) fn idle(&self) -> Option<Duration> {
        let last = self.last_progress.load(Ordering::Relaxed).checked_sub(1).map(Duration::from_millis);
        last.map(|at| self.created.elapsed().saturating_sub(at))
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    pub(super) fn bus(&self) -> &Bus {
        &self.bus
    }

    pub(super) fn changed(&self) -> &watch::Sender<()> {
        &self.changed
    }

    pub(super) fn snapshot(&self) -> ChildStatus {
        let (phase, trouble, children) = {
            let state = self.state();
            let trouble = state.trouble.iter().flatten().cloned().collect::<Vec<_>>().join(", ");
            (state.phase.clone(), (!trouble.is_empty()).then_some(trouble), state.children.clone())
        };
        ChildStatus {
            name: Arc::clone(&self.name),
            path: Arc::clone(&self.path),
            kind: self.kind,
            phase,
            idle: self.idle(),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            stats: self.counters.snapshot(),
            trouble,
            required: self.required,
            children: children.iter().map(|child| child.snapshot()).collect(),
        }
    }
}
