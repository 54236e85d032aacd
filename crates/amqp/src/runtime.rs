//! The threads that connections live on.
//!
//! One small tokio runtime for the process, started by the first connection. A handler that blocks every thread of
//! the application's own runtime stops neither heartbeats nor deadlines here.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use steadfast_core::{ConnectError, ConnectErrorKind};
use tokio::runtime::{Builder, Handle, Runtime};

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static STARTING: Mutex<()> = Mutex::new(());

/// The runtime, started if need be.
pub(crate) fn handle() -> Result<&'static Handle, ConnectError> {
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime.handle());
    }
    let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime.handle());
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("steadfast-amqp")
        .enable_all()
        .build()
        .map_err(|error| {
            ConnectError::new(ConnectErrorKind::Unreachable, "start the threads that connections live on")
                .with_source(error)
        })?;
    Ok(RUNTIME.get_or_init(|| runtime).handle())
}

/// A deadline passed.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// Runs `future` for at most `limit`, by this runtime's clock: it works on any executor, and time that a test has
/// paused does not pause it.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    // whoever holds something to wait for has started the runtime
    let Some(runtime) = RUNTIME.get() else { return Ok(future.await) };
    let limited = {
        let _context = runtime.enter();
        tokio::time::timeout(limit, future)
    };
    limited.await.map_err(|_| Elapsed)
}
