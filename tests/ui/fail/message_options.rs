use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
#[message(nam = "order.placed")]
struct Unknown {}

#[derive(Serialize, Deserialize, Message)]
#[message(version = 2, version = 3)]
struct Twice {}

#[derive(Serialize, Deserialize, Message)]
#[message(version)]
struct NoValue {}

#[derive(Serialize, Deserialize, Message)]
#[message = "order.placed"]
struct NoList {}

fn main() {}
