//! Where a publisher sends what is published to a partitioned name: to the partition of its key.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use redis::RedisError;
use steadfast_core::{Outgoing, known};

use super::lease;
use super::partition;
use crate::connection::Line;
use crate::error::{Trouble, trouble};

/// The names that are known to be partitioned. There are as many as the application publishes to.
#[derive(Default)]
pub(crate) struct Routes {
    known: RwLock<HashMap<String, u16>>,
    /// What is published without a key goes to the partitions in turn.
    turn: AtomicU64,
}

impl Routes {
    /// The stream that the message goes to, as far as is known.
    pub(crate) fn stream<'a>(&self, message: &'a Outgoing) -> Cow<'a, str> {
        let name = message.destination.name();
        let partitions = self.known.read().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        let Some(partitions) = partitions else { return Cow::Borrowed(name) };
        let partition = match message.headers.text(known::KEY).ok().flatten() {
            Some(key) => partition(key, partitions),
            None => self.in_turn(partitions),
        };
        Cow::Owned(format!("{name}:{partition}"))
    }

    /// Remembers what was declared.
    pub(crate) fn learn(&self, name: &str, partitions: u16) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(name.to_owned(), partitions);
    }

    /// Whether the name is a partitioned one, as far as is known here or else at the server.
    pub(crate) async fn ask(&self, line: &Line, name: &str) -> Result<bool, RedisError> {
        if self.known.read().unwrap_or_else(PoisonError::into_inner).contains_key(name) {
            return Ok(true);
        }
        let found = match lease::partitions(line, name).await {
            // one who may not ask has to publish to the partitions themselves
            Err(error) if matches!(trouble(&error), Trouble::Refused) => None,
            found => found?,
        };
        if let Some(partitions) = found {
            self.learn(name, partitions);
        }
        Ok(found.is_some())
    }

    fn in_turn(&self, partitions: u16) -> u16 {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % u64::from(partitions.max(1));
        // less than a u16
        u16::try_from(turn).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_key_has_one_stream_and_without_one_all_get_their_turn() {
        let routes = Routes::default();
        let mut message = Outgoing::new("orders", "{}");
        assert_eq!(routes.stream(&message), "orders");
        routes.learn("orders", 4);
        let in_turn: HashSet<_> = (0..4).map(|_| routes.stream(&message).into_owned()).collect();
        assert_eq!(in_turn.len(), 4);
        message.headers.set(known::KEY, "123456789");
        assert_eq!(routes.stream(&message), format!("orders:{}", 0xCBF4_3926_u32 % 4));
        assert_eq!(routes.stream(&Outgoing::new("bills", "{}")), "bills");
    }
}
