use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize)]
struct Customer {
    name: String,
}

#[derive(Serialize, Deserialize, Message)]
#[message(key = customer)]
struct OrderPlaced {
    customer: Customer,
}

fn main() {}
