//! A subscription: the consumer's side of a [`Slot`].

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use steadfast_core::{Delivery, Settler, Subscribe, SubscribeError, SubscribeErrorKind, Subscription};

use crate::connection::{Line, Server};
use crate::group::{Group, check_dead_letters};
use crate::keeper::Keeper;
use crate::names::{Lease, unique_consumer};
use crate::reader::{Reader, response_timeout};
use crate::runtime;
use crate::settle::StreamSettler;
use crate::slot::{Read, Setup, Slot};

/// How long an end waits for the consumer's name to be taken out of the group.
const FAREWELL: Duration = Duration::from_secs(1);

pub(crate) struct StreamSubscription {
    slot: Arc<Slot>,
    settler: Arc<StreamSettler>,
}

impl StreamSubscription {
    /// Declares, opens the reader's connection, and starts reader and keeper.
    pub(crate) async fn start(
        server: &Server,
        line: Arc<Line>,
        request: Subscribe,
    ) -> Result<Self, SubscribeError> {
        let group = Group::of(&request.source)?;
        check_dead_letters(&line, &request.dead_letter).await?;
        group.declare(&line).await?;
        let (consumer, owner, lease) = match &group.consumer {
            None => (unique_consumer(&request.consumer), None, None),
            Some(name) => {
                let owner = server.owners.enlist();
                let lease = Lease::take(&line, &group, name, &owner).await?;
                (Arc::clone(name), Some(owner), Some(lease))
            }
        };
        let what = "open the reader's connection";
        let timeout = response_timeout(group.block, server.options.command_timeout);
        let opened = server.link(&group.stream, timeout).await;
        let mut own = opened.map_err(|error| group.failed(what, error))?;
        // without leave to ask, a stop waits for the read's own end
        let handle = own.handle().await;
        let dead = request.dead_letter.name().into();
        let max = request.max_in_flight.get();
        let setup = Setup { group, consumer, owner, dead, max, narrow: request.narrow };
        let slot = Arc::new(Slot::new(setup, line, server.options.command_timeout));
        let runtime = runtime::handle().map_err(|error| slot.group.failed(what, error.into()))?;
        runtime.spawn(Reader::new(Arc::clone(&slot), own).run());
        runtime.spawn(Keeper::new(Arc::clone(&slot), handle, lease).run());
        Ok(Self { settler: Arc::new(StreamSettler { slot: Arc::clone(&slot) }), slot })
    }

    /// To be ended when the broker is closed.
    pub(crate) fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }
}

impl Subscription for StreamSubscription {
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        room: NonZeroUsize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Result<(), SubscribeError>> {
        hand_out(self.slot.take(room.get(), cx.waker())?, &self.settler, batch)
    }

    fn set_narrow(&mut self, narrow: bool) {
        self.slot.set_narrow(narrow);
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::clone(&self.settler) as _
    }

    fn stop(&mut self) -> BoxFuture<'_, Result<(), SubscribeError>> {
        Box::pin(stop_slot(&self.slot))
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), SubscribeError>> {
        Box::pin(async move {
            let stopped = stop_slot(&self.slot).await;
            let slot = Arc::clone(&self.slot);
            drop(self);
            _ = tokio::time::timeout(FAREWELL, slot.close()).await;
            stopped
        })
    }
}

impl Drop for StreamSubscription {
    fn drop(&mut self) {
        self.slot.stop();
    }
}

/// Puts what was taken into the batch; ready where that is anything.
pub(crate) fn hand_out<S: Settler + 'static>(
    taken: Vec<Read>,
    settler: &Arc<S>,
    batch: &mut Vec<Delivery>,
) -> Poll<Result<(), SubscribeError>> {
    let before = batch.len();
    batch.extend(taken.into_iter().map(|(incoming, token)| {
        let settler: Arc<dyn Settler> = Arc::clone(settler) as _;
        Delivery::from_shared(incoming, token, settler)
    }));
    if batch.len() > before { Poll::Ready(Ok(())) } else { Poll::Pending }
}

/// Ends the reading, and waits until what it brought and nobody took is given back.
pub(crate) async fn stop_slot(slot: &Slot) -> Result<(), SubscribeError> {
    slot.stop();
    let limit = response_timeout(slot.group.block, slot.command_timeout);
    tokio::time::timeout(limit, slot.reader_gone()).await.map_err(|elapsed| {
        let what = format!("stop reading stream `{}`: the server does not end the read", slot.group.stream);
        SubscribeError::new(SubscribeErrorKind::Unreachable, what).with_source(elapsed)
    })?;
    slot.finish().await.map_err(|unsent| {
        let what = format!("give back entries of stream `{}`", slot.group.stream);
        SubscribeError::new(SubscribeErrorKind::Unreachable, what).with_source(unsent)
    })
}

/// Ends a subscription whose broker is closed: what it holds goes back, what was settled is sent.
pub(crate) async fn shut_down(slot: &Slot) {
    let what = format!("read stream `{}`: this broker was closed", slot.group.stream);
    slot.end(SubscribeError::new(SubscribeErrorKind::Ended, what));
    slot.stop();
    let ended = async {
        slot.reader_gone().await;
        slot.give_up();
        slot.finish().await
    };
    match tokio::time::timeout(slot.command_timeout, ended).await {
        Ok(Ok(())) => _ = tokio::time::timeout(FAREWELL, slot.close()).await,
        Ok(Err(error)) => tracing::warn!(%error, "closed with settlements unsent"),
        Err(_) => tracing::warn!(stream = %slot.group.stream, "closed with a read that did not end"),
    }
}
