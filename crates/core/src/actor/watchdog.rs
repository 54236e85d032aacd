//! Finds consumers that do not work although nothing failed: a handler that blocks its thread, and silence with a backlog.
//!
//! The first needs a thread of its own, since the runtime's may be the one that is blocked. The second asks the broker.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::event::EventKind;
use super::node::{Control, Kind, Node, Phase, Trouble};
use crate::broker::Broker;

/// How often the thread looks.
const LOOK: Duration = Duration::from_millis(250);
/// A handler that keeps its thread for so long blocks it.
const BLOCKED: Duration = Duration::from_millis(1500);
/// How often the broker is asked.
const ASK: Duration = Duration::from_secs(5);
/// A consumer that took nothing for so long, with messages waiting, is silent.
const SILENT: Duration = Duration::from_secs(8);
/// One that stays so for this many questions is ended, for its supervisor to start again.
const DEAF: u32 = 5;

/// Stops watching when it is told to, or dropped with the last of the tree.
pub(super) struct Watchdog {
    stopped: Arc<AtomicBool>,
    silence: JoinHandle<()>,
}

impl Watchdog {
    pub(super) fn start(root: &Arc<Node>, broker: Arc<dyn Broker>) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let (flag, node) = (Arc::clone(&stopped), Arc::downgrade(root));
        let watch = move || watch_threads(&node, &flag);
        if let Err(error) = std::thread::Builder::new().name("steadfast-watchdog".to_owned()).spawn(watch) {
            tracing::warn!(target: "steadfast", %error, "no thread for the watchdog: blocked handlers are not reported");
        }
        let silence = tokio::spawn(watch_silence(Arc::downgrade(root), broker));
        Self { stopped, silence }
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.silence.abort();
    }
}

/// How often the same odd pulse was seen, for each consumer by its path.
type Seen = HashMap<Arc<str>, (u64, u32)>;

fn watch_threads(root: &Weak<Node>, stopped: &AtomicBool) {
    let mut seen = Seen::new();
    while !stopped.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK);
        let Some(root) = root.upgrade() else { return };
        if matches!(root.phase(), Phase::Failed(_) | Phase::Stopped) {
            return;
        }
        root.for_each(&mut |node| {
            if node.kind == Kind::Consumer {
                look(node, &mut seen);
            }
        });
    }
}

fn look(node: &Node, seen: &mut Seen) {
    let pulse = node.pulse.load(Ordering::Relaxed);
    let entry = seen.entry(Arc::clone(&node.path)).or_insert((pulse, 0));
    let limit = u32::try_from(BLOCKED.as_millis() / LOOK.as_millis()).unwrap_or(u32::MAX);
    if pulse % 2 == 1 && entry.0 == pulse {
        entry.1 += 1;
        if entry.1 == limit {
            let (handler, since) = (node.handler, LOOK * entry.1);
            let text = format!(
                "handler `{handler}` blocks its thread: use `#[handler(.., blocking)]`, or `spawn_blocking`"
            );
            node.set_trouble(Trouble::Blocked, Some(text));
            node.emit(EventKind::HandlerBlocked { handler, since });
        }
        return;
    }
    if entry.1 >= limit {
        node.set_trouble(Trouble::Blocked, None);
        node.emit(EventKind::HandlerUnblocked);
    }
    *entry = (pulse, 0);
}

async fn watch_silence(root: Weak<Node>, broker: Arc<dyn Broker>) {
    let mut silent: HashMap<Arc<str>, u32> = HashMap::new();
    loop {
        tokio::time::sleep(ASK).await;
        let Some(root) = root.upgrade() else { return };
        let mut suspects = Vec::new();
        root.for_each(&mut |node| {
            if node.kind == Kind::Consumer {
                if is_quiet(node) {
                    suspects.push(Arc::clone(node));
                } else if silent.remove(&node.path).is_some() {
                    node.set_trouble(Trouble::Silent, None);
                }
            }
        });
        drop(root);
        for node in suspects {
            let backlog = backlog(&node, &*broker).await;
            judge(&node, backlog, &mut silent);
        }
    }
}

fn is_quiet(node: &Node) -> bool {
    let long_ago = |idle: Option<Duration>| idle.is_none_or(|idle| idle >= SILENT);
    let running = node.phase() == Phase::Running && node.ran(tokio::time::Instant::now()) >= SILENT;
    // with its circuit open it takes probes only, and rightly so
    let running = running && !node.has_trouble(Trouble::CircuitOpen);
    running && node.in_flight.load(Ordering::Relaxed) == 0 && long_ago(node.idle())
}

async fn backlog(node: &Node, broker: &dyn Broker) -> u64 {
    let Some(source) = &node.source else { return 0 };
    let asked = tokio::time::timeout(ASK, broker.backlog(source)).await;
    asked.ok().flatten().unwrap_or(0)
}

fn judge(node: &Node, backlog: u64, silent: &mut HashMap<Arc<str>, u32>) {
    // a message may have come while the question was under way
    if backlog == 0 || !is_quiet(node) {
        if silent.remove(&node.path).is_some() {
            node.set_trouble(Trouble::Silent, None);
        }
        return;
    }
    let times = silent.entry(Arc::clone(&node.path)).or_insert(0);
    *times += 1;
    node.set_trouble(Trouble::Silent, Some(format!("silent, with {backlog} messages waiting")));
    if *times == 1 {
        node.emit(EventKind::Silent { backlog });
    }
    if *times >= DEAF {
        silent.remove(&node.path);
        // its phase says from here on that it does not run
        node.set_trouble(Trouble::Silent, None);
        if let Control::Consumer(consumer) = node.control() {
            consumer.deaf(backlog);
        }
    }
}
