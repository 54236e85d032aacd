//! The last chance: a handler hears of its message before that goes to the dead letters.
//!
//! Owns when it is asked and for how long. What it says changes nothing about where the message goes.

use std::sync::Arc;
use std::time::Duration;

use crate::codec::Codec;
use crate::dead_letter::Reason;
use crate::delivery::Incoming;
use crate::envelope::Context;
use crate::handler::Dispatch;
use crate::outcome::{Cause, Failure};
use crate::pipeline::on_blocking_pool;

/// Longest that it may take where an attempt has no limit.
const LIMIT: Duration = Duration::from_secs(10);

/// How a handler is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LastChance {
    pub(crate) codec: Codec,
    /// The limit of one attempt, if there is one.
    pub(crate) timeout: Option<Duration>,
    pub(crate) blocking: bool,
}

impl LastChance {
    /// Asks the handler; why that failed, if it did.
    pub(crate) async fn ask(
        self,
        handler: &dyn Dispatch,
        incoming: &Arc<Incoming>,
        cx: Context,
        failure: &Arc<Failure>,
    ) -> Option<Failure> {
        let call = match handler.last_chance(incoming, self.codec, cx, Arc::clone(failure)) {
            Ok(call) if self.blocking => on_blocking_pool(call),
            Ok(call) => call,
            // what does not decode now did before: the handler cannot be told
            Err(undecodable) => return Some(undecodable),
        };
        let limit = self.timeout.unwrap_or(LIMIT);
        tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(Failure::timeout(limit))).err()
    }
}

/// Whether the handler had the message, and is not what its process died of.
pub(crate) fn is_due(reason: Reason) -> bool {
    match reason {
        Reason::Exhausted | Reason::Panicked | Reason::TimedOut | Reason::Rejected | Reason::Expired => true,
        Reason::Undecodable | Reason::UnknownType | Reason::BadHeaders | Reason::Crashed => false,
    }
}

/// What a panic said, where it was one.
pub(crate) fn panicked(failed: &Failure) -> Option<Box<str>> {
    (failed.cause() == Cause::Panic).then(|| failed.to_string().into())
}
