//! Burials: poison messages are made safe in the dead letters, and settled then. And the dead-letter actor, which finishes
//! what a consumer leaves half done.
//!
//! A burial runs where it is awaited, on its consumer's task. Dropped before its end it goes to the actor, which outlives
//! every consumer. The mailbox holds at most what consumers had permits for.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::JoinSet;

use crate::dead_letter::DeadLetter;
use crate::delivery::Delivery;
use crate::error::SettleError;
use crate::settle::{self, Patience};

/// Where consumers bury their poison messages.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetters(ActorRef<Work>);

/// What is left to do for a message.
type Work = BoxFuture<'static, Result<(), SettleError>>;

impl DeadLetters {
    /// Starts the actor. One serves a whole tree: it is started before the root and stopped after it.
    pub(crate) async fn start() -> Result<Self, ractor::SpawnErr> {
        Ok(Self(Actor::spawn(None, DeadLetterActor, ()).await?.0))
    }

    pub(crate) fn stop(&self) {
        self.0.stop(None);
    }

    /// Resolves when the message is safe in the dead letters and settled, or is no longer ours.
    pub(crate) fn bury(&self, delivery: Delivery, letter: DeadLetter, patience: Patience) -> Burial {
        Burial { work: Some(Box::pin(bury(delivery, letter, patience))), heir: self.0.clone() }
    }
}

/// One poison message on its way.
pub(crate) struct Burial {
    /// None once it is done.
    work: Option<Work>,
    heir: ActorRef<Work>,
}

impl Future for Burial {
    type Output = Result<(), SettleError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        let buried = ready!(work.as_mut().poll(cx));
        self.work = None;
        Poll::Ready(buried)
    }
}

impl Drop for Burial {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            // where the actor is gone, too, the message is the broker's again
            drop(self.heir.cast(work));
        }
    }
}

struct DeadLetterActor;

impl Actor for DeadLetterActor {
    type Msg = Work;
    type State = JoinSet<()>;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Work>, (): ()) -> Result<JoinSet<()>, ActorProcessingErr> {
        Ok(JoinSet::new())
    }

    /// Burials run side by side: one that the broker keeps waiting must not hold up the rest.
    async fn handle(
        &self,
        _: ActorRef<Work>,
        work: Work,
        burials: &mut JoinSet<()>,
    ) -> Result<(), ActorProcessingErr> {
        while burials.try_join_next().is_some() {}
        // its consumer is gone: nobody waits for the answer
        burials.spawn(async move { drop(work.await) });
        Ok(())
    }
}

async fn bury(delivery: Delivery, letter: DeadLetter, patience: Patience) -> Result<(), SettleError> {
    let incoming = delivery.incoming().clone();
    settle::dead_letter(delivery, &letter, &patience).await?;
    let header = |name| letter.headers().get(name).map(ToString::to_string).unwrap_or_default();
    tracing::warn!(
        target: "steadfast",
        id = %incoming.id(),
        reason = %letter.reason(),
        error = %header(crate::known::ERROR),
        consumer = %header(crate::known::CONSUMER),
        "message.dead"
    );
    Ok(())
}
