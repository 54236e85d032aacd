//! Generated code leans on nothing that a user's names could hide, and warns of nothing.
#![deny(warnings, missing_docs, missing_debug_implementations, unreachable_pub, unused_qualifications)]
#![no_implicit_prelude]

/// Hides the prelude's.
#[allow(dead_code)]
struct Result;
#[allow(dead_code)]
struct Option;
#[allow(dead_code)]
struct Vec;
#[allow(dead_code)]
trait Clone {}
#[allow(dead_code)]
mod steadfast {}
#[allow(dead_code)]
mod core {}
#[allow(dead_code)]
mod std {}

#[::core::prelude::v1::derive(::serde::Serialize, ::serde::Deserialize, ::steadfast::Message)]
#[message(version = 2, key = "customer", to = "orders")]
struct OrderPlaced {
    customer: ::std::string::String,
}

#[::core::prelude::v1::derive(::steadfast::Handler)]
#[handler(OrderPlaced, timeout = "5s")]
struct Billing;

impl ::steadfast::Handle<OrderPlaced> for Billing {
    async fn handle(
        &self,
        _: OrderPlaced,
        _: &::steadfast::Context,
    ) -> ::core::result::Result<(), ::steadfast::Failure> {
        ::core::result::Result::Ok(())
    }
}

#[::steadfast::handler(timeout = "5s")]
async fn on_order(
    order: OrderPlaced,
    cx: &::steadfast::Context,
) -> ::core::result::Result<(), ::steadfast::Failure> {
    let _ = (order.customer, cx);
    ::core::result::Result::Ok(())
}

fn main() {
    let source = || ::steadfast::Source::queue("orders");
    let _ = ::steadfast::Consumer::new("billing", source()).handler(|| Billing);
    let _ = ::steadfast::Consumer::new("orders", source()).handler(|| on_order);
}
