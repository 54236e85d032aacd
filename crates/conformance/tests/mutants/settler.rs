//! A settler with one fault.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use steadfast_core::{
    ConnectError, DeadLetter, Destination, Headers, Incoming, Outgoing, Publisher, Requeue, SettleError,
    SettleErrorKind, Settler, Token, known,
};

use crate::fault::{Fault, World};

pub(crate) struct BrokenSettler {
    inner: Arc<dyn Settler>,
    publisher: Option<Arc<dyn Publisher>>,
    world: Arc<World>,
    deaf: AtomicBool,
    tokens: Mutex<Tokens>,
}

#[derive(Default)]
struct Tokens {
    /// Handed out, with the message's id.
    out: BTreeMap<Token, String>,
    held_back: Vec<Token>,
}

impl BrokenSettler {
    pub(crate) fn new(
        inner: Arc<dyn Settler>,
        publisher: Result<Arc<dyn Publisher>, ConnectError>,
        world: Arc<World>,
    ) -> Self {
        Self {
            inner,
            publisher: publisher.ok(),
            world,
            deaf: AtomicBool::new(false),
            tokens: Mutex::default(),
        }
    }

    pub(crate) fn handed_out(&self, incoming: &Incoming, token: Token) {
        let id = incoming.id().into_owned();
        self.world.state().holders.insert(id.clone(), (Arc::clone(&self.inner), token));
        self.tokens().out.insert(token, id);
    }

    pub(crate) fn turn_deaf(&self) {
        self.deaf.store(true, Ordering::Relaxed);
    }

    pub(crate) fn ack_everything(&self) {
        self.tokens().out.keys().for_each(|token| self.inner.ack(*token));
        self.inner.flush();
    }

    fn is_deaf(&self) -> bool {
        self.deaf.load(Ordering::Relaxed)
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ack_whoever_has_it(&self, token: Token) {
        let id = self.tokens().out.get(&token).cloned();
        let holder = id.and_then(|id| self.world.state().holders.get(&id).cloned());
        if let Some((settler, token)) = holder {
            settler.ack(token);
            settler.flush();
        }
    }

    /// Publishes a copy to these queues and leaves the original alone.
    async fn copy_to(
        &self,
        queues: Vec<String>,
        message: &Incoming,
        over: &Headers,
    ) -> Result<(), SettleError> {
        let Some(publisher) = &self.publisher else { return Ok(()) };
        for queue in queues {
            let mut copy = Outgoing::new(Destination::queue(queue), message.payload.clone());
            copy.message_id = message.id().into_owned();
            copy.headers = message.headers.clone();
            copy.headers.merge(over);
            copy.message_type.clone_from(&message.message_type);
            copy.correlation_id.clone_from(&message.correlation_id);
            copy.content_type.clone_from(&message.content_type);
            let stored = publisher.send(copy).await;
            stored
                .map_err(|error| SettleError::new(SettleErrorKind::NotStored, "copy").with_source(error))?;
        }
        Ok(())
    }

    async fn requeue_by(
        &self,
        message: &Incoming,
        token: Token,
        requeue: &Requeue,
    ) -> Result<(), SettleError> {
        let (mut message, mut requeue) = (message.clone(), requeue.clone());
        match self.world.fault {
            Fault::RetriesEarly => requeue.after /= 2,
            Fault::RetriesLate => requeue.after += Duration::from_secs(2),
            Fault::RetryForgetsOldHeaders => message.headers = Headers::new(),
            Fault::RetryForgetsNewHeaders => requeue.headers = Headers::new(),
            Fault::SnoozeCounts => {
                requeue.headers.set(known::RETRY_COUNT, 1_u32);
            }
            Fault::RetryKeepsOriginal => {
                let queue = message.origin.source.to_string();
                return self.copy_to(vec![queue], &message, &requeue.headers).await;
            }
            Fault::RetryReachesAllGroups => {
                self.copy_to(self.world.queues(&message.origin.source), &message, &requeue.headers).await?;
                self.inner.ack(token);
                return Ok(());
            }
            _ => {}
        }
        self.inner.requeue(&message, token, &requeue).await
    }

    async fn dead_letter_by(
        &self,
        message: &Incoming,
        token: Token,
        letter: &DeadLetter,
    ) -> Result<(), SettleError> {
        match self.world.fault {
            Fault::DeadLetterForgetsRecord => {
                let bare = DeadLetter::from_headers(letter.reason(), Headers::new());
                self.inner.dead_letter(message, token, &bare).await
            }
            Fault::DeadLetterKeepsOriginal => {
                self.copy_to(vec![format!("{}-dead", message.origin.source)], message, letter.headers()).await
            }
            _ => self.inner.dead_letter(message, token, letter).await,
        }
    }
}

impl Settler for BrokenSettler {
    fn ack(&self, token: Token) {
        match self.world.fault {
            _ if self.is_deaf() => {}
            Fault::NeverAcks => {}
            Fault::AcksAllBefore => {
                self.tokens().out.range(..=token).for_each(|(token, _)| self.inner.ack(*token));
            }
            Fault::FinishForgetsAcks => self.tokens().held_back.push(token),
            Fault::AcksByMessage => self.ack_whoever_has_it(token),
            _ => self.inner.ack(token),
        }
    }

    fn release(&self, token: Token) {
        match self.world.fault {
            _ if self.is_deaf() => {}
            Fault::ReleaseAcks => self.inner.ack(token),
            _ => self.inner.release(token),
        }
    }

    fn requeue<'a>(
        &'a self,
        message: &'a Incoming,
        token: Token,
        requeue: &'a Requeue,
    ) -> BoxFuture<'a, Result<(), SettleError>> {
        Box::pin(self.requeue_by(message, token, requeue))
    }

    fn dead_letter<'a>(
        &'a self,
        message: &'a Incoming,
        token: Token,
        letter: &'a DeadLetter,
    ) -> BoxFuture<'a, Result<(), SettleError>> {
        Box::pin(self.dead_letter_by(message, token, letter))
    }

    fn flush(&self) {
        let held_back = std::mem::take(&mut self.tokens().held_back);
        for token in held_back {
            self.inner.ack(token);
        }
        self.inner.flush();
    }

    fn finish(&self) -> BoxFuture<'_, Result<(), SettleError>> {
        self.inner.finish()
    }
}
