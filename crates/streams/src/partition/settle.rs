//! Settling: each delivery by the slot of its partition, and then the next of its key may go.

use std::sync::Arc;

use futures_util::future::{BoxFuture, join_all};
use steadfast_core::{DeadLetter, Incoming, Requeue, SettleError, SettleErrorKind, Settler, Token};

use super::board::Board;
use super::part::Part;

/// Settles one subscription's deliveries. The last one to be dropped ends the subscription for good.
pub(crate) struct PartitionedSettler {
    pub(crate) board: Arc<Board>,
}

impl Drop for PartitionedSettler {
    fn drop(&mut self) {
        self.board.abandon();
    }
}

impl PartitionedSettler {
    fn find(&self, token: Token) -> Result<(Arc<Part>, Token), SettleError> {
        self.board.find(token).ok_or_else(|| {
            let name = self.board.group.streams.name();
            let what = format!("settle a delivery of the partitioned stream `{name}`: it is no longer ours");
            SettleError::new(SettleErrorKind::Gone, what)
        })
    }

    /// What is stored, or no longer ours, is done with; what is neither is tried again.
    fn note(&self, token: Token, stored: Result<(), SettleError>) -> Result<(), SettleError> {
        if stored.as_ref().err().is_none_or(|error| error.kind() == SettleErrorKind::Gone) {
            self.board.settled(token);
        }
        stored
    }
}

impl Settler for PartitionedSettler {
    fn ack(&self, token: Token) {
        self.board.ack(token);
    }

    fn release(&self, token: Token) {
        self.board.release(token);
    }

    fn requeue<'a>(
        &'a self,
        message: &'a Incoming,
        token: Token,
        requeue: &'a Requeue,
    ) -> BoxFuture<'a, Result<(), SettleError>> {
        Box::pin(async move {
            let (part, entry) = self.find(token)?;
            let stored = part.settler.requeue(message, entry, requeue).await;
            self.note(token, stored)
        })
    }

    fn dead_letter<'a>(
        &'a self,
        message: &'a Incoming,
        token: Token,
        letter: &'a DeadLetter,
    ) -> BoxFuture<'a, Result<(), SettleError>> {
        Box::pin(async move {
            let (part, entry) = self.find(token)?;
            let stored = part.settler.dead_letter(message, entry, letter).await;
            self.note(token, stored)
        })
    }

    fn flush(&self) {
        self.board.parts().iter().for_each(|part| part.slot.flush());
    }

    fn finish(&self) -> BoxFuture<'_, Result<(), SettleError>> {
        Box::pin(async move {
            let parts = self.board.parts();
            let finished = join_all(parts.iter().map(|part| part.slot.finish())).await;
            finished.into_iter().collect()
        })
    }
}
