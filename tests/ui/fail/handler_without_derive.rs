use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
    customer: String,
}

#[handler(OrderPlaced)]
struct Billing;

impl Handle<OrderPlaced> for Billing {
    async fn handle(&self, _: OrderPlaced, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

fn main() {}
