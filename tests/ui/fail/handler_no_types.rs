use steadfast::prelude::*;

#[derive(Handler)]
struct Missing;

#[derive(Handler)]
#[handler]
struct Bare;

#[derive(Handler)]
#[handler(timeout = "5s")]
struct OnlyAnOption;

#[derive(Handler)]
#[handler("OrderPlaced")]
struct Quoted;

fn main() {}
