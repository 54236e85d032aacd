//! A publisher with one fault.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use steadfast_core::{Destination, Outgoing, PublishError, PublishErrorKind, Publisher};

use crate::fault::{Fault, World};

pub(crate) struct BrokenPublisher {
    inner: Arc<dyn Publisher>,
    world: Arc<World>,
}

impl BrokenPublisher {
    pub(crate) fn new(inner: Arc<dyn Publisher>, world: Arc<World>) -> Self {
        Self { inner, world }
    }

    async fn send_by(&self, message: Outgoing) -> Result<(), PublishError> {
        let nth = {
            let mut state = self.world.state();
            state.published += 1;
            state.published
        };
        match self.world.fault {
            Fault::LosesMessages if nth.is_multiple_of(50) => return Ok(()),
            Fault::DoublesMessages if nth.is_multiple_of(50) => self.inner.send(message.clone()).await?,
            _ => {}
        }
        if !self.world.has_groups() {
            let sent = self.inner.send(message).await;
            let swallowed = |error: &PublishError| error.kind() == PublishErrorKind::Unroutable;
            return match sent {
                Err(error) if swallowed(&error) && self.world.is(Fault::SwallowsUnroutable) => Ok(()),
                sent => sent,
            };
        }
        for queue in self.world.queues(message.destination.name()) {
            let copy = Outgoing { destination: Destination::queue(queue), ..message.clone() };
            self.inner.send(copy).await?;
        }
        Ok(())
    }
}

impl Publisher for BrokenPublisher {
    fn send(&self, message: Outgoing) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(self.send_by(message))
    }
}
