use std::rc::Rc;

use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
    customer: String,
}

#[handler]
async fn on_order(order: OrderPlaced) -> Result<(), Failure> {
    let shared = Rc::new(order);
    save(&shared.customer).await;
    drop(shared);
    Ok(())
}

async fn save(_: &str) {}

fn main() {}
