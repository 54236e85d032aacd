//! A running tree, as main holds it.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{broadcast, oneshot, watch};

use super::event::Event;
use super::health::Health;
use super::node::{ChildStatus, Control, Kind, Node, Settings};
use super::spec::Child;
#[cfg(feature = "health")]
use super::spec::StartError;
use super::supervisor::{Command, Shared, SupervisorRef, ToSupervisor};
use super::watchdog::Watchdog;
#[cfg(feature = "health")]
use crate::health_http::{Bound, HealthServer};
use crate::shutdown::{self, RunError};

/// How the root ended, once it did.
pub(super) type End = watch::Receiver<Option<Result<(), String>>>;

/// A running supervision tree. Dropping it does not stop it: [`drain`](Self::drain) does.
pub struct Tree {
    monitor: Monitor,
    root: SupervisorRef,
    ended: End,
    shared: Shared,
    watchdog: Watchdog,
    #[cfg(feature = "health")]
    health: Option<HealthServer>,
}

/// Looks at a running tree, from anywhere. Cheap to clone.
#[derive(Clone)]
pub struct Monitor {
    node: Arc<Node>,
}

impl Monitor {
    /// A snapshot of the whole tree. Its `Display` is a line for each child, for a log.
    pub fn status(&self) -> ChildStatus {
        self.node.snapshot()
    }

    /// Whether the tree is live, whether it is ready, and why not.
    pub fn health(&self) -> Health {
        Health::of(&self.status())
    }

    /// Changes whenever anything in the tree does.
    #[cfg(test)]
    pub(super) fn node_changed(&self) -> watch::Receiver<()> {
        self.node.changed().subscribe()
    }

    /// Every lifecycle event from now on. A subscriber that falls more than 1,024 behind misses the oldest, and is told
    /// how many.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.node.bus().subscribe()
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("status", &self.status()).finish()
    }
}

impl Tree {
    pub(super) fn new(
        root: SupervisorRef,
        node: Arc<Node>,
        ended: End,
        shared: Shared,
        watchdog: Watchdog,
    ) -> Self {
        Self {
            monitor: Monitor { node },
            root,
            ended,
            shared,
            watchdog,
            #[cfg(feature = "health")]
            health: None,
        }
    }

    /// Serves health from now on; where that cannot be, ends the tree again.
    #[cfg(feature = "health")]
    pub(super) async fn serve_health(&mut self, bound: Bound) -> Result<(), StartError> {
        match bound.serve(self.monitor()) {
            Ok(server) => {
                self.health = Some(server);
                Ok(())
            }
            Err(error) => {
                drop(self.root.0.cast(ToSupervisor::ShutDown));
                // it is told why it was not started, not how it ended
                drop(self.ended().await);
                self.watchdog.stop();
                Err(StartError(error))
            }
        }
    }

    /// Where health is served: [`health_http`](super::Supervisor::health_http) with port 0 takes one that is free.
    #[cfg(feature = "health")]
    pub fn health_address(&self) -> Option<std::net::SocketAddr> {
        self.health.as_ref().map(|server| server.address)
    }

    /// The root supervisor's name.
    pub fn name(&self) -> &str {
        &self.monitor.node.name
    }

    /// Looks at the tree from elsewhere, and for longer than this handle lives.
    pub fn monitor(&self) -> Monitor {
        self.monitor.clone()
    }

    /// A snapshot of the whole tree. Its `Display` is a line for each child, for a log.
    pub fn status(&self) -> ChildStatus {
        self.monitor.status()
    }

    /// Whether the tree is live, whether it is ready, and why not.
    pub fn health(&self) -> Health {
        self.monitor.health()
    }

    /// Every lifecycle event from now on; see [`Monitor::events`].
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.monitor.events()
    }

    /// Every consumer of the tree, in the order they were added.
    pub fn consumers(&self) -> Vec<ChildStatus> {
        let status = self.status();
        status.flatten().into_iter().filter(|child| child.kind == Kind::Consumer).cloned().collect()
    }

    /// The child at this path below the root: `billing`, or `reports/daily`.
    pub fn child(&self, path: &str) -> Option<ChildStatus> {
        self.find(path).map(|node| node.snapshot())
    }

    /// Waits until the tree is ready: every required consumer takes messages. Ends with an error where it gave up.
    pub async fn until_ready(&self) -> Result<(), RunError> {
        let mut changed = self.monitor.node.changed().subscribe();
        let mut ended = self.ended.clone();
        loop {
            if self.health().ready {
                return Ok(());
            }
            tokio::select! {
                _ = changed.changed() => {}
                end = reason(&mut ended) => return Err(RunError::GaveUp(end.err().unwrap_or_else(|| "stopped".into()))),
            }
        }
    }

    /// Waits for the tree's end: by [`drain`](Self::drain), or with an error where the root gave up.
    pub async fn ended(&self) -> Result<(), RunError> {
        reason(&mut self.ended.clone()).await.map_err(RunError::GaveUp)
    }

    /// Takes no more messages, finishes what is in flight, settles it, stops the children in reverse order, and closes the
    /// broker. A child that takes longer than its shutdown timeout is stopped: what it has in flight is given back to the
    /// broker and named in the log.
    pub async fn drain(self) -> Result<(), RunError> {
        // one that ended by itself has nothing left to stop
        let _ = self.root.0.cast(ToSupervisor::ShutDown);
        let ended = self.ended().await;
        self.shared.broker.close().await;
        self.watchdog.stop();
        #[cfg(feature = "health")]
        if let Some(server) = self.health {
            server.stop().await;
        }
        ended
    }

    /// Runs until SIGTERM or SIGINT (Ctrl-C), then [drains](Self::drain); a second signal drops what is in flight. Ends with
    /// an error where the root gave up. [`Supervisor::run_until_signal`](super::Supervisor::run_until_signal) is this after a
    /// start.
    pub async fn until_signal(self) -> Result<(), RunError> {
        shutdown::until_signal(self).await
    }

    /// Tells a consumer, or every consumer below a supervisor, to take no more for now. What is in flight is finished.
    /// Health says "not ready" while a required consumer is paused. A restart does not resume it.
    pub fn pause(&self, path: &str) -> Result<(), ControlError> {
        self.set(path, |settings| settings.paused = true)
    }

    /// Lets it, or them, take messages again.
    pub fn resume(&self, path: &str) -> Result<(), ControlError> {
        self.set(path, |settings| settings.paused = false)
    }

    /// Changes how many messages a consumer handles at once. What is in flight is not touched.
    pub fn set_concurrency(&self, path: &str, concurrency: usize) -> Result<(), ControlError> {
        self.set(path, |settings| {
            settings.concurrency = concurrency.max(1);
            settings.max_in_flight = settings.max_in_flight.max(settings.concurrency);
        })
    }

    /// Changes how many messages a consumer may have taken and not settled. It finishes what is in flight, and subscribes
    /// anew, since a broker fixes it at the subscription. Never less than the concurrency.
    pub fn set_max_in_flight(&self, path: &str, messages: usize) -> Result<(), ControlError> {
        self.set(path, |settings| settings.max_in_flight = messages.max(settings.concurrency))
    }

    fn set(&self, path: &str, change: impl Fn(&mut Settings)) -> Result<(), ControlError> {
        let node = self.find(path).ok_or_else(|| ControlError(format!("no child at `{path}`")))?;
        let mut consumers = 0;
        node.for_each(&mut |node| {
            if node.kind == Kind::Consumer {
                consumers += 1;
                node.settings.send_modify(&change);
                if let Control::Consumer(consumer) = node.control() {
                    consumer.settings_changed();
                }
            }
        });
        if consumers == 0 { Err(ControlError(format!("no consumer at or below `{path}`"))) } else { Ok(()) }
    }

    /// Starts a child that was stopped, or that waits for its restart.
    pub async fn start(&self, path: &str) -> Result<(), ControlError> {
        self.command(path, Command::Start).await
    }

    /// Stops a child and leaves it so. What it has in flight is finished first.
    pub async fn stop(&self, path: &str) -> Result<(), ControlError> {
        self.command(path, Command::Stop).await
    }

    /// Stops a child, or a whole subtree, and starts it again at once. Spends no restart intensity.
    pub async fn restart(&self, path: &str) -> Result<(), ControlError> {
        self.command(path, Command::Restart).await
    }

    /// Stops a child and forgets it.
    pub async fn remove(&self, path: &str) -> Result<(), ControlError> {
        self.command(path, Command::Remove).await
    }

    /// Adds a child to the supervisor at this path (empty for the root), after all others, and starts it. It is gone when
    /// that supervisor itself is restarted.
    pub async fn add(&self, path: &str, child: Child) -> Result<(), ControlError> {
        let node = self.find(path).ok_or_else(|| ControlError(format!("no child at `{path}`")))?;
        self.tell(&node, path, |done| ToSupervisor::Add { child: Box::new(child), done }).await
    }

    async fn command(&self, path: &str, command: Command) -> Result<(), ControlError> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let node = self.find(parent).ok_or_else(|| ControlError(format!("no child at `{parent}`")))?;
        self.tell(&node, parent, |done| ToSupervisor::Command { name: name.into(), command, done }).await
    }

    async fn tell(
        &self,
        node: &Node,
        path: &str,
        message: impl FnOnce(oneshot::Sender<Result<(), String>>) -> ToSupervisor,
    ) -> Result<(), ControlError> {
        let Control::Supervisor(supervisor) = node.control() else {
            return Err(ControlError(format!("`{path}` is not a running supervisor")));
        };
        let (done, answer) = oneshot::channel();
        let gone = || ControlError(format!("the supervisor at `{path}` ended"));
        supervisor.0.cast(message(done)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(ControlError)
    }

    fn find(&self, path: &str) -> Option<Arc<Node>> {
        let names = path.split('/').filter(|name| !name.is_empty());
        names.into_iter().try_fold(Arc::clone(&self.monitor.node), |node, name| {
            node.children().into_iter().find(|child| &*child.name == name)
        })
    }

    /// Drops what is in flight, from another handle's wait for the drain.
    pub(crate) fn abandoner(&self) -> impl Fn() + use<> {
        let root = self.root.clone();
        move || drop(root.0.cast(ToSupervisor::Abandon))
    }
}

async fn reason(ended: &mut End) -> Result<(), String> {
    match ended.wait_for(Option::is_some).await {
        Ok(end) => end.clone().unwrap_or(Ok(())),
        Err(_) => Err("the root supervisor is gone".to_owned()),
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("status", &self.status()).finish_non_exhaustive()
    }
}

/// A command was not carried out; the text says why.
#[derive(Debug)]
pub struct ControlError(String);

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ControlError {}
