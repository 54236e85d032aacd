//! One publish of the client's after the other, in the same memory.

use std::task::{Context, Poll};

use lapin::Confirmation;
use tokio_util::sync::ReusableBoxFuture;

/// A publish, in the memory of the one before it: the client's future takes 1.5 kB, which the allocator is slow to find.
#[derive(Default)]
pub(crate) struct Sending {
    publish: Option<ReusableBoxFuture<'static, lapin::Result<Confirmation>>>,
    under_way: bool,
}

impl Sending {
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way
    }

    pub(crate) fn start(
        &mut self,
        publish: impl Future<Output = lapin::Result<Confirmation>> + Send + 'static,
    ) {
        match &mut self.publish {
            Some(done) => done.set(publish),
            none => *none = Some(ReusableBoxFuture::new(publish)),
        }
        self.under_way = true;
    }

    /// Pending where there is none.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<lapin::Result<Confirmation>> {
        match &mut self.publish {
            Some(publish) if self.under_way => {
                let polled = publish.poll(cx);
                self.under_way = polled.is_pending();
                polled
            }
            _ => Poll::Pending,
        }
    }
}
