use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
    customer: String,
}

#[derive(Handler)]
#[handler(OrderPlaced, time_out = "5s")]
struct Billing;

#[derive(Handler)]
#[handler(OrderPlaced, concurrency = 16)]
struct Shipping;

#[derive(Handler)]
#[handler(OrderPlaced, blocking = true)]
struct Printing;

#[derive(Handler)]
#[handler(OrderPlaced, OrderPlaced)]
struct Counting;

#[derive(Handler)]
#[handler(OrderPlaced, timeout)]
struct Mailing;

impl Handle<OrderPlaced> for Billing {
    async fn handle(&self, _: OrderPlaced, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

impl Handle<OrderPlaced> for Shipping {
    async fn handle(&self, _: OrderPlaced, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

impl Handle<OrderPlaced> for Printing {
    async fn handle(&self, _: OrderPlaced, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

impl Handle<OrderPlaced> for Counting {
    async fn handle(&self, _: OrderPlaced, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

impl Handle<OrderPlaced> for Mailing {
    async fn handle(&self, _: OrderPlaced, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

fn main() {}
