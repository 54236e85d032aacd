//! A subscription with one fault.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use steadfast_core::{
    Delivery, HeaderValue, Headers, Incoming, Payload, Settler, SubscribeError, Subscription, known,
};

use crate::fault::{Fault, World};
use crate::settler::BrokenSettler;

pub(crate) struct BrokenSubscription {
    inner: Box<dyn Subscription>,
    settler: Arc<BrokenSettler>,
    world: Arc<World>,
    ahead: VecDeque<Delivery>,
}

impl BrokenSubscription {
    pub(crate) fn new(inner: Box<dyn Subscription>, settler: Arc<BrokenSettler>, world: Arc<World>) -> Self {
        Self { inner, settler, world, ahead: VecDeque::new() }
    }

    /// Takes over the delivery, as this broker would have made it.
    fn wrap(&self, delivery: Delivery) -> Delivery {
        let (incoming, token) = delivery.into_parts();
        let mut incoming = Incoming::clone(&incoming);
        spoil(self.world.fault, &mut incoming);
        if let Some((stream, _)) = incoming.origin.source.split_once('@') {
            incoming.origin.source = stream.into();
        }
        self.settler.handed_out(&incoming, token);
        if self.world.is(Fault::AcksBeforeHandingOut) {
            self.settler.ack(token);
        }
        let settler = Arc::<BrokenSettler>::clone(&self.settler);
        Delivery::from_shared(Arc::new(incoming), token, settler)
    }
}

impl Subscription for BrokenSubscription {
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        room: NonZeroUsize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Result<(), SubscribeError>> {
        let wanted = match self.world.fault {
            Fault::IgnoresRoom => room.saturating_add(5),
            Fault::KeepsWhatItReadAhead => NonZeroUsize::MAX,
            _ => room,
        };
        if self.ahead.is_empty() {
            let mut taken = Vec::new();
            let polled = ready!(self.inner.poll_next(cx, wanted, &mut taken));
            if polled.is_err() && self.world.is(Fault::PendingAfterClose) {
                return Poll::Pending;
            }
            polled?;
            self.ahead.extend(taken);
        }
        let handed_out = match self.world.fault {
            Fault::KeepsWhatItReadAhead => room.get().min(self.ahead.len()),
            _ => self.ahead.len(),
        };
        for delivery in self.ahead.drain(..handed_out).collect::<Vec<_>>() {
            batch.push(self.wrap(delivery));
        }
        Poll::Ready(Ok(()))
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::<BrokenSettler>::clone(&self.settler)
    }

    fn stop(&mut self) -> BoxFuture<'_, Result<(), SubscribeError>> {
        if self.world.is(Fault::StopEndsSettling) {
            self.settler.turn_deaf();
        }
        self.inner.stop()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), SubscribeError>> {
        self.inner.close()
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "most faults are elsewhere")]
fn spoil(fault: Fault, incoming: &mut Incoming) {
    match (fault, &mut incoming.payload) {
        (Fault::LosesBytes, Payload::Body(body)) => body.truncate(body.len().saturating_sub(1)),
        (Fault::SortsFields, Payload::Fields(fields)) => fields.sort(),
        _ => {}
    }
    match fault {
        Fault::ForgetsContentType => incoming.content_type = None,
        Fault::InventsHeader => {
            incoming.headers.set("surprise", "!");
        }
        Fault::ForgetsRedelivered => incoming.redelivered = false,
        Fault::NeverCounts => incoming.delivery_count = Some(0),
        Fault::ReleaseCounts if incoming.redelivered => {
            incoming.headers.set(known::RETRY_COUNT, 1_u32);
        }
        Fault::MakesHeadersText => {
            let mut text = Headers::new();
            for (name, value) in incoming.headers.iter() {
                text.set(name.to_owned(), HeaderValue::Text(value.to_string()));
            }
            incoming.headers = text;
        }
        _ => {}
    }
}
