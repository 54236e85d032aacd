use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
    customer: String,
}

struct Ledger;

#[handler]
async fn on_order(_: OrderPlaced, _: &Ledger) -> Result<(), Failure> {
    Ok(())
}

fn main() {}
