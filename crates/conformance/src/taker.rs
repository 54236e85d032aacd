//! A subscription, watched at every poll.

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use steadfast_core::{Delivery, Settler, SubscribeError, Subscription};
use tokio::time::{Instant, timeout, timeout_at};

use crate::message::ids;
use crate::report::Violation;
use crate::trial::{Trial, chain};

pub(crate) struct Taker<'a> {
    trial: &'a Trial<'a>,
    place: String,
    subscription: Box<dyn Subscription>,
    settler: Arc<dyn Settler>,
}

impl<'a> Taker<'a> {
    pub(crate) fn new(trial: &'a Trial<'a>, place: String, subscription: Box<dyn Subscription>) -> Self {
        let settler = subscription.settler();
        Self { trial, place, subscription, settler }
    }

    pub(crate) fn settler(&self) -> &Arc<dyn Settler> {
        &self.settler
    }

    pub(crate) fn set_narrow(&mut self, narrow: bool) {
        self.subscription.set_narrow(narrow);
    }

    /// Waits for deliveries, or for the subscription's end, however long that takes.
    pub(crate) async fn poll(
        &mut self,
        room: usize,
    ) -> Result<Result<Vec<Delivery>, SubscribeError>, Violation> {
        let room = NonZeroUsize::new(room).unwrap_or(NonZeroUsize::MIN);
        let mut batch = Vec::new();
        if let Err(error) = poll_fn(|cx| self.subscription.poll_next(cx, room, &mut batch)).await {
            return Ok(Err(error));
        }
        if batch.is_empty() || batch.len() > room.get() {
            let seen = format!("poll_next gave {} deliveries for a room of {room}", batch.len());
            return Err(self.violated(seen));
        }
        Ok(Ok(batch))
    }

    /// Waits for deliveries, however long that takes.
    pub(crate) async fn next(&mut self, room: usize) -> Result<Vec<Delivery>, Violation> {
        let polled = self.poll(room).await?;
        polled.map_err(|error| self.violated(format!("the subscription ended: {}", chain(&error))))
    }

    /// Waits for `count` deliveries and the deadline at most.
    pub(crate) async fn take(&mut self, count: usize) -> Result<Vec<Delivery>, Violation> {
        self.take_within(count, self.trial.deadline()).await
    }

    /// Waits for `count` deliveries that have to be there at once.
    pub(crate) async fn take_at_once(&mut self, count: usize) -> Result<Vec<Delivery>, Violation> {
        self.take_within(count, self.trial.slack()).await
    }

    async fn take_within(&mut self, count: usize, patience: Duration) -> Result<Vec<Delivery>, Violation> {
        let (until, mut taken) = (Instant::now() + patience, Vec::new());
        while taken.len() < count {
            let Ok(batch) = timeout_at(until, self.next(count - taken.len())).await else {
                let seen = format!("{} of {count} deliveries within {patience:?}", taken.len());
                return Err(self.violated(seen));
            };
            taken.extend(batch?);
        }
        Ok(taken)
    }

    /// One delivery.
    pub(crate) async fn take_one(&mut self) -> Result<Delivery, Violation> {
        let taken = self.take(1).await?.pop();
        taken.ok_or_else(|| self.violated("no delivery"))
    }

    /// Whatever comes while nothing should.
    pub(crate) async fn linger(&mut self, room: usize) -> Result<Vec<Delivery>, Violation> {
        match timeout(self.trial.quiet(), self.next(room)).await {
            Ok(batch) => batch,
            Err(_) => Ok(Vec::new()),
        }
    }

    /// Watches that nothing comes; `because` says why nothing may.
    pub(crate) async fn nothing(&mut self, because: &str) -> Result<(), Violation> {
        let batch = self.linger(100).await?;
        if batch.is_empty() {
            return Ok(());
        }
        Err(self.violated(format!("{} delivered although {because}", ids(&batch))))
    }

    /// Acknowledges, and waits until the broker knows.
    pub(crate) async fn ack(&mut self, batch: Vec<Delivery>) -> Result<(), Violation> {
        batch.into_iter().for_each(Delivery::ack);
        self.finish().await
    }

    pub(crate) async fn finish(&mut self) -> Result<(), Violation> {
        self.settler.flush();
        self.trial.within("finishing what was settled", self.settler.finish()).await
    }

    pub(crate) async fn stop(&mut self) -> Result<(), Violation> {
        self.trial.within("stopping the subscription", self.subscription.stop()).await
    }

    pub(crate) async fn close(mut self) -> Result<(), Violation> {
        self.finish().await?;
        self.trial.within("closing the subscription", self.subscription.close()).await
    }

    /// Ends the subscription by dropping it while these are unsettled.
    pub(crate) fn give_up(self, unsettled: Vec<Delivery>) {
        drop(self);
        // only after the subscription: dropped before, they would be released
        forget(unsettled);
    }

    pub(crate) fn violated(&self, seen: impl Into<String>) -> Violation {
        self.trial.violated_on(&self.place, seen)
    }
}

/// Lets go of deliveries without telling the broker.
pub(crate) fn forget(unsettled: Vec<Delivery>) {
    for delivery in unsettled {
        drop(delivery.into_parts());
    }
}
