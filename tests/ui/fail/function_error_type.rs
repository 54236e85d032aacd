use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
    customer: String,
}

#[handler]
async fn on_order(order: OrderPlaced) -> Result<(), String> {
    Err(order.customer)
}

fn main() {}
