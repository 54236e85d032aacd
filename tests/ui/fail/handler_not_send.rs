use std::rc::Rc;

use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
    customer: String,
}

#[derive(Handler)]
#[handler(OrderPlaced)]
struct Billing;

impl Handle<OrderPlaced> for Billing {
    async fn handle(&self, order: OrderPlaced, _: &Context) -> Result<(), Failure> {
        let shared = Rc::new(order);
        save(&shared.customer).await;
        drop(shared);
        Ok(())
    }
}

async fn save(_: &str) {}

fn main() {}
