//! The names of one run.

use std::time::{SystemTime, UNIX_EPOCH};

/// The queues of one run, and the ids of its messages: what is left of an earlier run is never taken for this one's.
#[derive(Clone, Debug)]
pub struct Names {
    run: String,
    queue: String,
    dead_letters: String,
}

impl Names {
    /// Fresh names, or those that belong to `queue`.
    pub fn new(queue: Option<&str>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = format!("orders-{}-{}", now.as_millis(), std::process::id());
        let queue = queue.unwrap_or(&run).to_owned();
        Self { dead_letters: format!("{queue}.dead"), queue, run }
    }

    /// The queue or stream that the orders go through.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// The queue or stream of their dead letters.
    pub fn dead_letters(&self) -> &str {
        &self.dead_letters
    }

    /// The id of the order in this line of the input: publishing it again is known for what it is.
    pub fn message_id(&self, line: usize) -> String {
        format!("{}/{line}", self.run)
    }

    /// Whether a message was published by this run.
    pub fn is_ours(&self, message_id: &str) -> bool {
        message_id.strip_prefix(&self.run).is_some_and(|rest| rest.starts_with('/'))
    }
}
