//! The tower seam: any [`tower::Layer`] around the handler.
//!
//! A layer sees an [`Attempt`] whose message is decoded already, and may delay it, refuse it or cut it short. What it
//! cannot do is settle: an error of a layer is a failed attempt, decided on like any other.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::sync::Mutex;
use tower::util::BoxService;
use tower::{Layer, Service, ServiceExt};

use crate::delivery::Incoming;
use crate::error::BoxError;
use crate::handler::Call;
use crate::outcome::{Cause, Failure};

/// One attempt at one message, on its way through the layers to the handler.
pub struct Attempt {
    pub(crate) incoming: Arc<Incoming>,
    pub(crate) number: u32,
    pub(crate) call: Call,
}

impl Attempt {
    /// What was delivered.
    pub fn incoming(&self) -> &Incoming {
        &self.incoming
    }

    /// Number of this attempt, from 1.
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt")
            .field("number", &self.number)
            .field("incoming", &self.incoming)
            .finish_non_exhaustive()
    }
}

/// What a layer wraps: the handler, or the layers inside it.
pub type Inner = BoxService<Attempt, (), BoxError>;

/// Wraps one more layer around what is there.
pub(crate) type Wrap = Arc<dyn Fn(Inner) -> Inner + Send + Sync>;

pub(crate) fn wrap<L>(layer: L) -> Wrap
where
    L: Layer<Inner> + Send + Sync + 'static,
    L::Service: Service<Attempt, Response = (), Error: Into<BoxError>, Future: Send> + Send + 'static,
{
    Arc::new(move |inner| BoxService::new(layer.layer(inner).map_err(Into::into)))
}

/// The layers of one consumer, built once for each start.
pub(crate) struct Layers(Mutex<Inner>);

impl Layers {
    /// None where there are no layers: the handler is called directly then.
    pub(crate) fn build(wraps: &[Wrap]) -> Option<Self> {
        let innermost = || BoxService::new(Innermost);
        (!wraps.is_empty())
            .then(|| Self(Mutex::new(wraps.iter().rev().fold(innermost(), |inner, wrap| wrap(inner)))))
    }

    pub(crate) async fn call(&self, attempt: Attempt) -> Result<(), Failure> {
        let answer = {
            let mut service = self.0.lock().await;
            match service.ready().await {
                Ok(service) => service.call(attempt),
                Err(error) => return Err(into_failure(error)),
            }
        };
        answer.await.map_err(into_failure)
    }
}

fn into_failure(error: BoxError) -> Failure {
    match error.downcast::<Carried>() {
        Ok(carried) => carried.0,
        Err(error) => Failure::retry(error),
    }
}

struct Innermost;

impl Service<Attempt> for Innermost {
    type Response = ();
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<(), BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        Box::pin(async move {
            attempt.call.await.map_err(|failure| {
                if failure.cause() == Cause::Panic {
                    // on through the layers: none of them is to take it for an error that it may make nothing of
                    std::panic::resume_unwind(Box::new(failure.to_string()));
                }
                Carried(failure).into()
            })
        })
    }
}

/// A failure on its way out through layers, which know only errors.
#[derive(Debug)]
struct Carried(Failure);

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for Carried {}
