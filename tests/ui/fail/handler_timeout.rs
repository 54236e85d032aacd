use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
    customer: String,
}

#[derive(Handler)]
#[handler(OrderPlaced, timeout = "5")]
struct NoUnit;

impl Handle<OrderPlaced> for NoUnit {
    async fn handle(&self, _: OrderPlaced, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

#[derive(Handler)]
#[handler(OrderPlaced, timeout = "soon")]
struct NoNumber;

impl Handle<OrderPlaced> for NoNumber {
    async fn handle(&self, _: OrderPlaced, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

#[derive(Handler)]
#[handler(OrderPlaced, timeout = 5)]
struct NoText;

impl Handle<OrderPlaced> for NoText {
    async fn handle(&self, _: OrderPlaced, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

#[derive(Handler)]
#[handler(OrderPlaced, timeout = "0s")]
struct Nothing;

impl Handle<OrderPlaced> for Nothing {
    async fn handle(&self, _: OrderPlaced, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

#[derive(Handler)]
#[handler(OrderPlaced, timeout = "1d")]
struct Days;

impl Handle<OrderPlaced> for Days {
    async fn handle(&self, _: OrderPlaced, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

#[derive(Handler)]
#[handler(OrderPlaced, timeout = "99999999999999999h")]
struct TooLong;

impl Handle<OrderPlaced> for TooLong {
    async fn handle(&self, _: OrderPlaced, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

fn main() {}
