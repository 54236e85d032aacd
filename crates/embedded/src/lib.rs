//! A broker in your process for Steadfast: no server, the same guarantees.
//!
//! ```text
//!  Publisher ─► Queue ─► Subscription ─► Delivery
//!                 ▲  ▲        │              │
//!                 │  └ delay ◄┴── Held ◄─────┘  ack, release, requeue, dead_letter
//!                 └── what a subscription held when it ended
//! ```
//!
//! - `Queue` owns the messages that nobody holds, `Held` those that one subscription holds. A message
//!   is in exactly one of them, and moves by value.
//! - Queues live in a hub that connections share; closing a connection takes its subscriptions and leaves the messages.
//! - Nothing runs by itself: no task, no thread. Whoever polls a subscription also moves what is due out of the delay.
//! - Everything is bounded: a queue by [`Limits::capacity`], a subscription by its `max_in_flight`.
//!
//! Messages live in memory and are gone with the process.
//!
//! ```
//! use steadfast_core::{Broker, Outgoing, Source};
//! use steadfast_embedded::Embedded;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = Embedded::new();
//! broker.declare(&Source::queue("orders")).await?;
//! broker.publisher().await?.send(Outgoing::new("orders", "{}")).await?;
//! assert_eq!(broker.depth("orders"), Some(1));
//! # Ok(())
//! # }
//! # futures_util::FutureExt::now_or_never(example()).unwrap().unwrap();
//! ```

mod connection;
mod delay;
mod error;
mod hub;
mod operate;
mod publisher;
mod queue;
mod settle;
mod subscription;

pub use connection::{Embedded, connect, connect_lazy};
pub use hub::Limits;
