//! RabbitMQ for Steadfast, on lapin.
//!
//! ```text
//!  Amqp ──┬─ Lane "consume" ── subscription ── deliveries ─► core's pipeline
//!         │                         └─ settle ◄──────────────── how each one ended
//!         │                             ├─ unsettled   acks, coalesced (pure)
//!         │                             └─ delay       a queue per delay step
//!         └─ Lane "publish" ── pipe ── returns         which publishes came back (pure)
//!                                └─ publisher, and the copies that settle makes
//! ```
//!
//! A lane is one connection, opened again by the next call that needs it. Consuming and publishing have one each,
//! because a broker that is short of memory or disk stops reading from connections that publish.
//!
//! | file | role |
//! |---|---|
//! | `options`, `certificates` | URL and settings |
//! | `broker` | [`Amqp`], the [`Broker`](steadfast_core::Broker) |
//! | `connection`, `link`, `runtime` | lanes, their sockets, and the threads they live on |
//! | `sieve`, `wire` | what of the broker's bytes the client gets to see (pure) |
//! | `queue`, `exchange`, `argument`, `naming` | queues, exchanges and bindings as values |
//! | `topology`, `file`, `parts`, `declare` | all of them together: what is missing, what differs, declaring it |
//! | `subscription`, `consume`, `settle`, `unsettled`, `overdue`, `delay` | consuming |
//! | `publisher`, `pipe`, `returns` | publishing |
//! | `operate`, `follow` | what an operator can ask |
//! | `request`, `replies` | asking, and waiting for the answer |
//! | `headers`, `error` | from AMQP's words to core's, and back |

mod ahead;
mod argument;
mod broker;
mod certificates;
mod connection;
mod consume;
mod declare;
mod delay;
mod error;
mod exchange;
mod file;
mod follow;
mod headers;
mod link;
mod naming;
mod operate;
mod options;
mod overdue;
mod parts;
mod pipe;
mod publisher;
mod queue;
mod replies;
mod request;
mod returns;
mod runtime;
mod sending;
mod settle;
mod sieve;
mod subscription;
mod topology;
mod unsettled;
mod walk;
mod wire;

pub use broker::{Amqp, connect, connect_lazy, connect_with};
pub use exchange::{Binding, Exchange, Match};
pub use naming::{NameError, Naming};
pub use options::Options;
pub use queue::{DeadLetterStrategy, Overflow, Queue};
pub use request::{RequestError, RequestErrorKind, Requester};
pub use topology::{Difference, Plan, State, Step, Topology};
