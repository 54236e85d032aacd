use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
#[message(key = custmer)]
struct OrderPlaced {
    id: u64,
    customer: Customer,
}

#[derive(Serialize, Deserialize, Message)]
#[message(key = "customer.nme")]
struct OrderPaid {
    customer: Customer,
}

#[derive(Serialize, Deserialize)]
struct Customer {
    name: String,
}

#[derive(Serialize, Deserialize, Message)]
#[message(key = 1)]
struct OrderLost(u64);

#[derive(Serialize, Deserialize, Message)]
#[message(key = id())]
struct OrderSent {
    id: u64,
}

#[derive(Serialize, Deserialize, Message)]
#[message(key = id)]
enum OrderChanged {
    Paid { id: u64 },
    Sent { id: u64 },
}

fn main() {}
