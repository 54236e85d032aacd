//! The message that every bench carries: 256 bytes of JSON.

use serde::{Deserialize, Serialize};
use steadfast::Message;

/// Bytes of one encoded order.
pub(crate) const SIZE: usize = 256;

#[derive(Clone, Debug, Serialize, Deserialize, Message)]
#[message(name = "order.placed")]
pub(crate) struct Order {
    pub(crate) id: u64,
    pub(crate) customer: String,
    pub(crate) cents: u64,
    pub(crate) note: String,
}

impl Order {
    /// The order of this number. All of them encode to [`SIZE`] bytes.
    pub(crate) fn new(number: u64) -> Self {
        let number = number % 1_000_000;
        let mut order = Self {
            id: 1_000_000 + number,
            customer: format!("customer-{:04}", number % 1_000),
            cents: 10_000 + number % 10_000,
            note: String::new(),
        };
        let encoded = serde_json::to_vec(&order).map_or(SIZE, |body| body.len());
        order.note = "leave it at the door; ".chars().cycle().take(SIZE.saturating_sub(encoded)).collect();
        order
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_has_the_same_size() {
        for number in [0, 7, 12_345, 999_999, 1_000_000, u64::MAX] {
            assert_eq!(Order::new(number).encode().expect("encodes").len(), SIZE, "{number}");
        }
    }
}
