use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
}

#[derive(Handler)]
#[handler(OrderPlaced, on_dead = order_is_dead)]
struct Billing;

impl Handle<OrderPlaced> for Billing {
    async fn handle(&self, _: OrderPlaced, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

async fn order_is_dead(_: OrderPlaced, _: &Context) -> Result<(), Failure> {
    Ok(())
}

#[handler(on_dead)]
async fn shipping(_: OrderPlaced) -> Result<(), Failure> {
    Ok(())
}

#[handler(on_dead = order_is_dead)]
async fn printing(_: OrderPlaced) -> Result<(), Failure> {
    Ok(())
}

fn main() {}
