use serde::Serialize;
use steadfast::prelude::*;

#[derive(Serialize, Message)]
struct OrderPlaced {
    id: u64,
}

fn main() {}
