use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
    customer: String,
}

#[handler(timeout = "five seconds", retries = 3)]
async fn on_order(_: OrderPlaced) -> Result<(), Failure> {
    Ok(())
}

fn main() {}
