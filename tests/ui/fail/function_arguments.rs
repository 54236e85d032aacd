use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
    customer: String,
}

#[handler]
async fn nothing() -> Result<(), Failure> {
    Ok(())
}

#[handler]
async fn only_context(_: &Context) -> Result<(), Failure> {
    Ok(())
}

#[handler]
async fn context_first(_: &Context, _: OrderPlaced) -> Result<(), Failure> {
    Ok(())
}

#[handler]
async fn borrowed(_: &OrderPlaced) -> Result<(), Failure> {
    Ok(())
}

#[handler]
async fn owned_context(_: OrderPlaced, _: Context) -> Result<(), Failure> {
    Ok(())
}

#[handler]
async fn three(_: OrderPlaced, _: &Context, _: &Ledger) -> Result<(), Failure> {
    Ok(())
}

#[handler]
async fn generic<M: Message>(message: M) -> Result<(), Failure> {
    Ok(())
}

#[handler(OrderPlaced)]
async fn typed_twice(_: OrderPlaced) -> Result<(), Failure> {
    Ok(())
}

struct Ledger;

impl Ledger {
    #[handler]
    async fn method(&self, _: OrderPlaced) -> Result<(), Failure> {
        Ok(())
    }
}

fn main() {}
