//! Steadfast's side of every consume bench: a handler that counts, under supervision, with a retry policy and dead
//! letters, all else at its default.

use std::sync::Arc;

use steadfast::prelude::*;

use crate::BoxError;
use crate::meter::{Meter, Spent};
use crate::order::Order;

#[derive(Debug, Handler)]
#[handler(Order)]
struct Counting {
    meter: Arc<Meter>,
}

impl Handle<Order> for Counting {
    async fn handle(&self, order: Order, _: &Context) -> Result<(), Failure> {
        std::hint::black_box(&order);
        self.meter.count();
        Ok(())
    }
}

/// Consumes `messages` that are there, and settles them; `max_in_flight` at its default where none is given.
pub(crate) async fn consume(
    broker: Arc<dyn Broker>,
    source: Source,
    messages: u64,
    max_in_flight: Option<u16>,
) -> Result<Spent, BoxError> {
    let (meter, spent) = Meter::new(messages);
    let dead = format!("{}.dead", source.name());
    let consumer = Consumer::new("counting", source)
        .handler(move || Counting { meter: Arc::clone(&meter) })
        .retry(Retry::exponential(200.millis()..30.secs()).max_attempts(5))
        .dead_letter(dead);
    let consumer = match max_in_flight {
        Some(most) => consumer.max_in_flight(usize::from(most)),
        None => consumer,
    };
    let tree = Supervisor::new("benches").consumer(consumer).start(broker).await?;
    let spent = tokio::select! {
        spent = spent => spent?,
        ended = tree.ended() => return Err(format!("the consumer ended early: {ended:?}").into()),
    };
    tree.drain().await?;
    Ok(spent)
}
