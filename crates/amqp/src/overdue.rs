//! A warning ahead of the broker's consumer timeout, which closes the channel under a delivery that is unsettled for too
//! long.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::runtime;
use crate::settle::AmqpSettler;

/// Into how many parts the limit is divided, and after how many of them it is said.
const PARTS: u32 = 20;
pub(crate) const SAID_AFTER: u32 = 16;

/// Looks at what is unsettled as long as the channel stands. A limit of zero is none.
pub(crate) fn watch(settler: &Arc<AmqpSettler>, limit: Duration) {
    let part = limit / PARTS;
    if let (false, Ok(runtime)) = (part.is_zero(), runtime::handle()) {
        runtime.spawn(look(Arc::downgrade(settler), part, limit));
    }
}

async fn look(settler: Weak<AmqpSettler>, part: Duration, limit: Duration) {
    let mut ticks = tokio::time::interval(part);
    loop {
        ticks.tick().await;
        let Some(settler) = settler.upgrade().filter(|settler| settler.channel.status().connected()) else {
            return;
        };
        for tag in settler.grow_older() {
            let (queue, unsettled_for) = (&*settler.queue, part * SAID_AFTER);
            tracing::warn!(target: "steadfast", queue, tag, ?unsettled_for, ?limit, "message.overdue");
        }
    }
}
