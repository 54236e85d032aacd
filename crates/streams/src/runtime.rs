//! The one thread that drives every connection of this process to Redis.
//!
//! A handler that blocks its thread must not stop a reader, a lease or an acknowledgement, so none of them runs on the
//! application's runtime. The thread starts with the first connection and ends with the process.

use std::io;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

/// The runtime, started by the first call.
pub(crate) fn handle() -> io::Result<&'static Handle> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime.handle());
    }
    let started = Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("steadfast-streams")
        .enable_all()
        .build()?;
    // two may have been started at once: the second goes without having been used
    if let Err(spare) = RUNTIME.set(started) {
        spare.shutdown_background();
    }
    RUNTIME.get().map(Runtime::handle).ok_or_else(|| io::Error::other("the runtime is gone"))
}

/// Runs `work` on it to its end, whatever becomes of the caller, and hands back what it returns.
pub(crate) async fn run<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> io::Result<T> {
    handle()?.spawn(work).await.map_err(io::Error::other)
}
