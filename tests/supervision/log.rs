//! What the tree said of itself: each event, and what health was when it came.

use std::sync::{Arc, Mutex};

use steadfast::{Event, EventKind, Health, Tree};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::ledger::PATIENCE;

#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) event: Event,
    pub(crate) health: Health,
}

impl Seen {
    pub(crate) fn is_of(&self, child: &str) -> bool {
        self.event.path.rsplit('/').next() == Some(child)
    }
}

pub(crate) struct Log {
    seen: Mutex<Vec<Seen>>,
    changed: watch::Sender<()>,
}

impl Log {
    /// Writes down everything from now on, for as long as the tree lives.
    pub(crate) fn of(tree: &Tree) -> Arc<Self> {
        let log = Arc::new(Self { seen: Mutex::default(), changed: watch::Sender::new(()) });
        let (mut events, monitor, writes) = (tree.events(), tree.monitor(), Arc::clone(&log));
        tokio::spawn(async move {
            while let Ok(event) = events.recv().await {
                let seen = Seen { at: Instant::now(), health: monitor.health(), event };
                writes.seen.lock().expect("nothing panics while it is held").push(seen);
                writes.changed.send_replace(());
            }
        });
        log
    }

    /// All from position `from`.
    pub(crate) fn since(&self, from: usize) -> Vec<Seen> {
        self.seen.lock().expect("nothing panics while it is held")[from..].to_vec()
    }

    pub(crate) fn len(&self) -> usize {
        self.seen.lock().expect("nothing panics while it is held").len()
    }

    /// Waits for an event of this child after position `from`.
    pub(crate) async fn until(
        &self,
        from: usize,
        child: &str,
        mut wanted: impl FnMut(&EventKind) -> bool,
    ) -> Seen {
        let mut changed = self.changed.subscribe();
        let found = async {
            loop {
                changed.borrow_and_update();
                let seen = self.since(from);
                if let Some(seen) =
                    seen.into_iter().find(|seen| seen.is_of(child) && wanted(&seen.event.what))
                {
                    return seen;
                }
                changed.changed().await.expect("the log is here");
            }
        };
        let Ok(seen) = timeout(PATIENCE, found).await else {
            panic!("not within {PATIENCE:?}: an event of `{child}`; {:#?}", self.since(from));
        };
        seen
    }
}
