use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
    customer: String,
}

#[derive(Handler)]
#[handler(OrderPlaced)]
struct Billing<L> {
    ledger: L,
}

fn main() {
    Consumer::new("billing", Source::queue("orders")).handler(|| Billing { ledger: 1 });
}
