//! The shapes a handler can have.
#![deny(warnings)]

use serde::{Deserialize, Serialize};
use steadfast::prelude::*;

#[derive(Serialize, Deserialize, Message)]
struct OrderPlaced {
    id: u64,
}

#[derive(Serialize, Deserialize, Message)]
struct OrderCancelled {
    id: u64,
}

trait Ledger: Send + Sync + 'static {
    fn charge(&self, id: u64);
}

impl Ledger for () {
    fn charge(&self, _: u64) {}
}

/// Without bounds of its own.
#[derive(Handler)]
#[handler(OrderPlaced, OrderCancelled)]
struct Billing<L> {
    ledger: L,
}

impl<L: Ledger> Handle<OrderPlaced> for Billing<L> {
    async fn handle(&self, order: OrderPlaced, _: &Context) -> Result<(), Failure> {
        self.ledger.charge(order.id);
        Ok(())
    }
}

impl<L: Ledger> Handle<OrderCancelled> for Billing<L> {
    async fn handle(&self, order: OrderCancelled, _: &Context) -> Result<(), Failure> {
        self.ledger.charge(order.id);
        Ok(())
    }
}

/// With bounds, a default and a constant.
#[derive(Handler)]
#[handler(OrderPlaced)]
struct Batched<L: Ledger = (), const N: usize = 8>
where
    L: Clone,
{
    ledger: L,
}

impl<L: Ledger + Clone, const N: usize> Handle<OrderPlaced> for Batched<L, N> {
    async fn handle(&self, order: OrderPlaced, _: &Context) -> Result<(), Failure> {
        self.ledger.clone().charge(order.id);
        Ok(())
    }
}

mod orders {
    use super::{Context, Failure, OrderPlaced, handler};

    /// Documented, public and conditional.
    #[handler]
    #[cfg(not(any()))]
    #[allow(unused_mut)]
    pub(crate) async fn on_order(mut order: OrderPlaced, _cx: &Context) -> Result<(), Failure> {
        let _ = order.id;
        Ok(())
    }

    #[handler]
    #[cfg(any())]
    async fn on_order(order: Nonsense) -> Result<(), Failure> {}
}

/// Any error that becomes a `Failure`, a pattern as the argument, no context.
#[handler]
async fn on_cancel(OrderCancelled { id }: OrderCancelled) -> Result<(), std::fmt::Error> {
    if id == 0 {
        return Err(std::fmt::Error);
    }
    Ok(())
}

async fn cancel_is_dead(_: OrderCancelled, failure: &Failure, cx: &Context) -> Result<(), Failure> {
    println!("{:?} is dead: {failure}", cx.message_id());
    Ok(())
}

#[handler(on_dead = cancel_is_dead, timeout = "1s")]
async fn on_late_cancel(cancel: OrderCancelled) -> Result<(), Failure> {
    Err(Failure::reject(format!("order {} is gone", cancel.id)))
}

fn main() {
    let consumer = || Consumer::new("billing", Source::queue("orders"));
    let _ = consumer().handler(|| Billing { ledger: () });
    let _ = consumer().handler(|| Batched::<(), 8> { ledger: () });
    let _ = consumer().handler(|| orders::on_order);
    let _ = consumer().handler(|| on_cancel);
    let _ = consumer().handler(|| on_late_cancel);

    #[handler]
    async fn local(order: OrderPlaced) -> Result<(), Failure> {
        let _ = order.id;
        Ok(())
    }
    let _ = consumer().handler(|| local);
}
