//! Takes messages from one queue for one consumer.

use std::fmt;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::{self, BoxFuture};
use steadfast_core::{Delivery, Settler, SubscribeError, Subscription};
use tokio::time::{Instant, Sleep};

use crate::queue::{Stored, Ticket};
use crate::settle::Held;

pub(crate) struct EmbeddedSubscription {
    held: Arc<Held>,
    settler: Arc<dyn Settler>,
    /// Our place among those who wait for the queue.
    ticket: Option<Ticket>,
    /// On its way from the queue to `held`; empty between two polls.
    taken: Vec<Stored>,
    /// Set to when the queue's earliest delayed message is due. The only timer there is, made when first needed.
    timer: Option<Pin<Box<Sleep>>>,
}

impl EmbeddedSubscription {
    pub(crate) fn new(held: Arc<Held>) -> Self {
        let settler = Arc::<Held>::clone(&held);
        Self { held, settler, ticket: None, taken: Vec::new(), timer: None }
    }

    fn poll_due(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        let timer = match &mut self.timer {
            Some(timer) => {
                if timer.deadline() != due {
                    timer.as_mut().reset(due);
                }
                timer
            }
            timer @ None => timer.insert(Box::pin(tokio::time::sleep_until(due))),
        };
        timer.as_mut().poll(cx)
    }
}

impl Subscription for EmbeddedSubscription {
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        room: NonZeroUsize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Result<(), SubscribeError>> {
        let room = ready!(self.held.poll_room(cx, room.get()))?;
        loop {
            let due = self.held.queue().take(room, &mut self.taken, &mut self.ticket, cx.waker());
            if !self.taken.is_empty() {
                return Poll::Ready(self.held.hand_out(&mut self.taken, &self.settler, batch));
            }
            let Some(due) = due else { return Poll::Pending };
            // once it is due another subscription may have been faster: look again
            ready!(self.poll_due(cx, due));
        }
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::clone(&self.settler)
    }

    fn stop(&mut self) -> BoxFuture<'_, Result<(), SubscribeError>> {
        Box::pin(async move {
            // nothing is taken ahead of poll_next, so there is nothing to give back
            self.held.stop();
            self.held.queue().leave(&mut self.ticket);
            Ok(())
        })
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), SubscribeError>> {
        drop(self);
        Box::pin(future::ready(Ok(())))
    }
}

impl Drop for EmbeddedSubscription {
    fn drop(&mut self) {
        self.held.end();
        self.held.queue().leave(&mut self.ticket);
    }
}

impl fmt::Debug for EmbeddedSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedSubscription")
            .field("queue", self.held.queue().name())
            .finish_non_exhaustive()
    }
}
