use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
    customer: String,
}

#[handler]
async fn on_order(order: OrderPlaced) {
    println!("order {}", order.id);
}

fn main() {}
