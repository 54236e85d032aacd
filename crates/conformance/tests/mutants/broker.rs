//! A broker with one fault.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::future::BoxFuture;
use steadfast_core::{
    Broker, Capabilities, ConnectError, Publisher, Source, Subscribe, SubscribeError, SubscribeErrorKind,
    Subscription,
};
use steadfast_embedded::Embedded;

use crate::fault::{Fault, World, queue_of};
use crate::publisher::BrokenPublisher;
use crate::settler::BrokenSettler;
use crate::subscription::BrokenSubscription;

pub(crate) struct Broken {
    inner: Arc<Embedded>,
    world: Arc<World>,
    settlers: Mutex<Vec<Weak<BrokenSettler>>>,
}

impl Broken {
    pub(crate) fn new(inner: Arc<Embedded>, world: Arc<World>) -> Self {
        Self { inner, world, settlers: Mutex::default() }
    }

    async fn declare_by(&self, source: &Source) -> Result<(), SubscribeError> {
        let plain = Source::queue(Arc::clone(source.name()));
        let source = if self.world.is(Fault::IgnoresNative) { &plain } else { source };
        let again = !self.world.state().declared.insert(source.name().to_string());
        if again && self.world.is(Fault::RefusesSecondDeclare) {
            return Err(SubscribeError::new(SubscribeErrorKind::Mismatch, "it was declared before"));
        }
        self.inner.declare(source).await
    }

    async fn subscribe_by(&self, mut request: Subscribe) -> Result<Box<dyn Subscription>, SubscribeError> {
        if self.world.is(Fault::IgnoresNative) {
            request.source = Source::queue(Arc::clone(request.source.name()));
        }
        if self.world.is(Fault::IgnoresMaxInFlight) {
            request.max_in_flight = request.max_in_flight.saturating_mul(NonZeroUsize::MAX);
        }
        if self.world.has_groups() {
            let (stream, group) = (request.source.name().to_string(), request.source.group_name().cloned());
            let group = group.unwrap_or_else(|| "steadfast".into()).to_string();
            request.source = Source::queue(queue_of(&stream, &group));
            self.world.state().groups.entry(stream).or_default().insert(group);
        }
        let inner = self.inner.subscribe(request).await?;
        let settler = Arc::new(BrokenSettler::new(
            inner.settler(),
            self.inner.publisher().await,
            Arc::clone(&self.world),
        ));
        self.settlers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&settler));
        Ok(Box::new(BrokenSubscription::new(inner, settler, Arc::clone(&self.world))))
    }

    fn ack_what_is_held(&self) {
        let settlers = self.settlers.lock().unwrap_or_else(PoisonError::into_inner);
        settlers.iter().filter_map(Weak::upgrade).for_each(|settler| settler.ack_everything());
    }
}

impl Broker for Broken {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.inner.capabilities();
        capabilities.groups = self.world.has_groups();
        capabilities
    }

    fn declare<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, Result<(), SubscribeError>> {
        Box::pin(self.declare_by(source))
    }

    fn subscribe(&self, request: Subscribe) -> BoxFuture<'_, Result<Box<dyn Subscription>, SubscribeError>> {
        Box::pin(self.subscribe_by(request))
    }

    fn publisher(&self) -> BoxFuture<'_, Result<Arc<dyn Publisher>, ConnectError>> {
        Box::pin(async move {
            let inner = self.inner.publisher().await?;
            let publisher: Arc<dyn Publisher> =
                Arc::new(BrokenPublisher::new(inner, Arc::clone(&self.world)));
            Ok(publisher)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            match self.world.fault {
                Fault::WorksAfterClose => return,
                Fault::CloseAcks => self.ack_what_is_held(),
                _ => {}
            }
            self.inner.close().await;
        })
    }
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broken").field("fault", &self.world.fault).finish_non_exhaustive()
    }
}
