//! The queues of one broker, by name, and the brokers that have a name of their own in this process.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use crate::queue::Queue;

/// How much a broker holds, and how long it lets a publisher wait.
///
/// ```
/// use steadfast_embedded::{Embedded, Limits};
///
/// let broker = Embedded::with_limits(Limits { capacity: 10_000, ..Limits::default() });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most messages in one queue: ready, delayed and unsettled together. Default 1,000,000.
    pub capacity: usize,
    /// How long a publisher waits for room in a full queue, in turn with all others, before it is
    /// [`Rejected`](steadfast_core::PublishErrorKind::Rejected). Default 5 s.
    pub publish_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { capacity: 1_000_000, publish_timeout: Duration::from_secs(5) }
    }
}

/// The queues of one broker. Lives as long as a connection, a subscription or a publisher of it.
#[derive(Debug)]
pub(crate) struct Hub {
    limits: Limits,
    queues: RwLock<HashMap<Arc<str>, Arc<Queue>>>,
}

/// The named brokers that somebody holds.
static NAMED: LazyLock<Mutex<HashMap<String, Weak<Hub>>>> = LazyLock::new(Mutex::default);

impl Hub {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, queues: RwLock::default() })
    }

    /// The broker of this name: the one that somebody holds, or a new one.
    pub(crate) fn named(name: &str) -> Arc<Self> {
        let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hub) = named.get(name).and_then(Weak::upgrade) {
            return hub;
        }
        named.retain(|_, hub| hub.strong_count() > 0);
        let hub = Self::new(Limits::default());
        named.insert(name.to_owned(), Arc::downgrade(&hub));
        hub
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// The queue of this name, which must exist.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Queue>> {
        self.queues.read().unwrap_or_else(PoisonError::into_inner).get(name).map(Arc::clone)
    }

    /// The queue of this name, made where it does not exist.
    pub(crate) fn declare(&self, name: &str) -> Arc<Queue> {
        if let Some(queue) = self.find(name) {
            return queue;
        }
        let name: Arc<str> = name.into();
        let mut queues = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        let made = || Arc::new(Queue::new(Arc::clone(&name), self.limits.capacity));
        Arc::clone(queues.entry(Arc::clone(&name)).or_insert_with(made))
    }
}
