use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
    customer: String,
}

#[handler]
fn on_order(_: OrderPlaced) -> Result<(), Failure> {
    Ok(())
}

fn main() {
    Consumer::new("orders", Source::queue("orders")).handler(|| on_order);
}
