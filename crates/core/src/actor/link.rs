//! The broker's other ends as children: a connection that is watched, and a publisher that the application shares.
//!
//! Both are futures under a task actor. They say of themselves whether they stand, which any other task leaves open, and a
//! broker that is away is an outage for them as it is for a consumer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::consumer::Fault;
use super::event::EventKind;
use super::node::{Node, Phase};
use super::restart::Restarts;
use super::spec::Stop;
use super::task::TaskFactory;
use crate::broker::{Broker, Outgoing, Publisher};
use crate::error::{BoxError, ConnectError, ConnectErrorKind, PublishError, PublishErrorKind, chain};

/// What such a child is given at each start.
pub(super) struct Link {
    broker: Arc<dyn Broker>,
    node: Arc<Node>,
    stop: Stop,
}

pub(super) type LinkFactory = Arc<dyn Fn(Link) -> BoxFuture<'static, Result<(), Fault>> + Send + Sync>;

/// The same as a task's factory.
pub(super) fn as_task(factory: LinkFactory, broker: &Arc<dyn Broker>, node: &Arc<Node>) -> TaskFactory {
    let (broker, node) = (Arc::clone(broker), Arc::clone(node));
    Arc::new(move |stop| {
        let run = factory(Link { broker: Arc::clone(&broker), node: Arc::clone(&node), stop });
        Box::pin(async move { run.await.map_err(BoxError::from) })
    })
}

pub(super) fn connection() -> LinkFactory {
    Arc::new(|Link { broker, node, mut stop }| {
        Box::pin(async move {
            let lost = tokio::select! {
                biased;
                () = stop.told() => return Ok(()),
                opened = connect(&*broker, &node) => opened.map_err(|error| Fault::connection("connect failed", error))?,
            };
            node.enter(Phase::Running, EventKind::Running);
            tokio::select! {
                biased;
                () = stop.told() => Ok(()),
                error = lost => Err(Fault::connection("connection lost", error)),
            }
        })
    })
}

/// Tries for as long as the broker is away, with the delays of a restart and without ending: what is behind the connection
/// is restarted once for an outage, and not with every try.
async fn connect(broker: &dyn Broker, node: &Node) -> Result<BoxFuture<'static, ConnectError>, ConnectError> {
    let mut restarts = Restarts::new();
    loop {
        let error = match broker.connection().await {
            Err(error) if error.kind() == ConnectErrorKind::Unreachable => error,
            other => return other,
        };
        let after = restarts.next(true, Duration::ZERO, fastrand::f64());
        let (until, since, (restarts, limit)) = (Instant::now() + after, node.down_since(), (0, 0));
        let why = chain(&Fault::connection("connect failed", error));
        let phase = Phase::BackingOff { until, why, outage: true, since, restarts, limit };
        node.enter(phase, EventKind::BackingOff { after, restarts, limit });
        tokio::time::sleep(after).await;
    }
}

/// A publisher whose state is the tree's: made by [`Child::publisher`](super::Child::publisher), for the whole application
/// to publish through. Cheap to clone.
///
/// While its child is not running every [`send`](Publisher::send) fails at once with
/// [`Unreachable`](PublishErrorKind::Unreachable): nothing was sent. An answer that is unreachable or unknown makes the
/// child look whether the broker is there, so health and events tell of it before the next publish does.
#[derive(Clone)]
pub struct SupervisedPublisher(Arc<Slot>);

struct Slot {
    name: Arc<str>,
    current: watch::Sender<Option<Arc<dyn Publisher>>>,
    /// Rung when a publish came to nothing.
    doubt: Notify,
}

impl SupervisedPublisher {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self(Arc::new(Slot { name, current: watch::Sender::new(None), doubt: Notify::new() }))
    }

    pub(super) fn factory(&self) -> LinkFactory {
        let slot = Arc::clone(&self.0);
        Arc::new(move |link| Box::pin(keep(Arc::clone(&slot), link)))
    }

    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        let publisher = self.0.current.borrow().clone();
        let Some(publisher) = publisher else {
            let (id, destination, name) = (&message.message_id, &message.destination, &self.0.name);
            let what = format!(
                "publish {id} to `{destination}`: publisher `{name}` is not running; the tree's health says why"
            );
            return Err(PublishError::new(PublishErrorKind::Unreachable, what));
        };
        let sent = publisher.send(message).await;
        if sent.as_ref().is_err_and(|error| is_doubtful(error.kind())) {
            self.0.doubt.notify_one();
        }
        sent
    }
}

/// Whether the broker may be away.
fn is_doubtful(kind: PublishErrorKind) -> bool {
    match kind {
        PublishErrorKind::Unreachable | PublishErrorKind::Unknown => true,
        PublishErrorKind::Encode
        | PublishErrorKind::Invalid
        | PublishErrorKind::Unroutable
        | PublishErrorKind::Rejected => false,
    }
}

impl Publisher for SupervisedPublisher {
    fn send(&self, message: Outgoing) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(self.publish(message))
    }
}

impl fmt::Debug for SupervisedPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisedPublisher").field("name", &self.0.name).finish_non_exhaustive()
    }
}

/// Keeps a publisher in its slot, and opens another when there is doubt about it.
async fn keep(slot: Arc<Slot>, Link { broker, node, mut stop }: Link) -> Result<(), Fault> {
    let _emptied = Emptied(&slot);
    loop {
        let publisher = tokio::select! {
            biased;
            () = stop.told() => return Ok(()),
            opened = broker.publisher() => opened.map_err(|error| Fault::connection("open the publisher", error))?,
        };
        if slot.current.send_replace(Some(publisher)).is_none() {
            node.enter(Phase::Running, EventKind::Running);
        }
        tokio::select! {
            biased;
            () = stop.told() => return Ok(()),
            () = slot.doubt.notified() => {}
        }
    }
}

/// Takes the publisher out of its slot, however its child ends.
struct Emptied<'a>(&'a Slot);

impl Drop for Emptied<'_> {
    fn drop(&mut self) {
        self.0.current.send_replace(None);
    }
}
