use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
    customer: String,
}

#[derive(Handler)]
#[handler(OrderPlaced)]
struct Billing<'a> {
    name: &'a str,
}

fn main() {}
