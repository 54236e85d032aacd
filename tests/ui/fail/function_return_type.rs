use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
    customer: String,
}

#[handler]
async fn on_order(order: OrderPlaced) -> u64 {
    order.id
}

#[handler]
async fn on_other_order(order: OrderPlaced) -> Result<u64, Failure> {
    Ok(order.id)
}

fn main() {}
