//! The dead-letter actor: makes poison messages safe, then settles them.
//!
//! It owns deliveries from the moment a consumer gives them up until the broker has confirmed the copy. Its mailbox holds
//! at most what its consumers have permits for: a consumer's permit is kept until the answer.

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::dead_letter::DeadLetter;
use crate::delivery::Delivery;
use crate::error::{SettleError, SettleErrorKind};
use crate::settle::{self, Patience};

/// Where consumers send their poison messages.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetters(ActorRef<Burial>);

/// One poison message on its way.
pub(crate) struct Burial {
    delivery: Delivery,
    letter: DeadLetter,
    patience: Patience,
    done: oneshot::Sender<Result<(), SettleError>>,
}

impl DeadLetters {
    /// Starts the actor. One serves a whole tree: it is started before the root and stopped after it.
    pub(crate) async fn start() -> Result<Self, ractor::SpawnErr> {
        Ok(Self(Actor::spawn(None, DeadLetterActor, ()).await?.0))
    }

    pub(crate) fn stop(&self) {
        self.0.stop(None);
    }

    /// Resolves when the message is safe in the dead letters and settled, or is no longer ours.
    pub(crate) async fn bury(
        &self,
        delivery: Delivery,
        letter: DeadLetter,
        patience: Patience,
    ) -> Result<(), SettleError> {
        let (done, answer) = oneshot::channel();
        match self.0.cast(Burial { delivery, letter, patience, done }) {
            Ok(()) => answer.await.unwrap_or_else(|_| Err(gone())),
            Err(_) => Err(gone()),
        }
    }
}

fn gone() -> SettleError {
    SettleError::new(
        SettleErrorKind::Gone,
        "dead-letter a message: the dead-letter actor ended; it is delivered again",
    )
}

struct DeadLetterActor;

impl Actor for DeadLetterActor {
    type Msg = Burial;
    type State = JoinSet<()>;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Burial>, (): ()) -> Result<JoinSet<()>, ActorProcessingErr> {
        Ok(JoinSet::new())
    }

    /// Burials run side by side: one that the broker keeps waiting must not hold up the rest.
    async fn handle(
        &self,
        _: ActorRef<Burial>,
        burial: Burial,
        burials: &mut JoinSet<()>,
    ) -> Result<(), ActorProcessingErr> {
        while burials.try_join_next().is_some() {}
        burials.spawn(bury(burial));
        Ok(())
    }
}

async fn bury(Burial { delivery, letter, patience, done }: Burial) {
    let incoming = delivery.incoming().clone();
    let buried = settle::dead_letter(delivery, &letter, &patience).await;
    if buried.is_ok() {
        let header = |name| letter.headers().get(name).map(ToString::to_string).unwrap_or_default();
        tracing::warn!(
            target: "steadfast",
            id = %incoming.id(),
            reason = %letter.reason(),
            error = %header(crate::known::ERROR),
            consumer = %header(crate::known::CONSUMER),
            "message.dead"
        );
    }
    // the consumer may have been stopped meanwhile: then nobody waits for the answer
    let _ = done.send(buried);
}
