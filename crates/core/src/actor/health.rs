//! PURE: from a snapshot of the tree to whether it is live and ready.

use std::fmt;

use super::node::{ChildStatus, Kind, Phase};

/// Whether a tree is live, whether it is ready, and why not.
///
/// *Live* is for the question "would a restart of the process help": false only where the root supervisor gave up.
/// *Ready* is for the question "does it do its work": true only while every required consumer takes messages, every
/// required connection and publisher stands, none of the handlers blocks its thread, none is silent with a backlog or still
/// settling after its subscription ended, no circuit is open, and every settlement can be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// Whether the process should go on.
    pub live: bool,
    /// Whether every required consumer works.
    pub ready: bool,
    /// Why it is not ready: a line for each cause, which names the child.
    pub why: Vec<String>,
}

impl Health {
    pub(super) fn of(root: &ChildStatus) -> Self {
        let live = !matches!(root.phase, Phase::Failed(_));
        let mut why = Vec::new();
        if !takes(&root.phase) {
            why.push(format!("{}: {}", root.path, root.phase));
        }
        for child in &root.children {
            explain(child, &mut why);
        }
        Self { live, ready: why.is_empty(), why }
    }
}

fn explain(child: &ChildStatus, why: &mut Vec<String>) {
    if !child.required {
        return;
    }
    match child.kind {
        Kind::Consumer | Kind::Connection | Kind::Publisher | Kind::Supervisor => {
            if !takes(&child.phase) {
                why.push(format!("{}: {}", child.path, child.phase));
            } else if let Some(trouble) = &child.trouble {
                why.push(format!("{}: {trouble}", child.path));
            }
        }
        // a task may be done, and an actor's phase says nothing about its work; only a restart under way counts
        Kind::Task | Kind::Actor => {
            if matches!(child.phase, Phase::BackingOff { .. } | Phase::Failed(_)) {
                why.push(format!("{}: {}", child.path, child.phase));
            }
        }
    }
    for below in &child.children {
        explain(below, why);
    }
}

/// Whether a consumer in this phase takes messages.
fn takes(phase: &Phase) -> bool {
    *phase == Phase::Running
}

/// `ready`, or `not ready:` and the causes.
impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ready {
            return f.write_str("ready");
        }
        write!(f, "not ready: {}", self.why.join("; "))
    }
}
