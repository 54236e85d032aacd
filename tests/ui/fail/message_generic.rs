use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct Changed<T> {
    value: T,
}

#[derive(Serialize, Deserialize, Message)]
struct Borrowed<'a> {
    text: &'a str,
}

fn main() {}
