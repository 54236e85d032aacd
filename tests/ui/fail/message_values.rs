use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
#[message(name = "", version = 0, to = "")]
struct Empty {}

#[derive(Serialize, Deserialize, Message)]
#[message(name = "order placed", version = "2")]
struct Misread {}

#[derive(Serialize, Deserialize, Message)]
#[message(name = placed, version = 4294967296)]
struct Unquoted {}

fn main() {}
