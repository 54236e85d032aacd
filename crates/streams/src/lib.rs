//! Redis Streams for Steadfast, on redis. Works against Redis 7.0 and later, and against Valkey.
//!
//! ```text
//!              one thread for the process, `steadfast-streams`: a handler that blocks its own thread stops nothing here
//!            ┌───────────────────────────────────────────────────────────────────────────────────────────────┐
//! poll_next ◄┤ buffer ◄─ reader ── XACK + XREADGROUP in one round trip, XAUTOCLAIM ──► connection of its own   │
//! ack       ─┤ acks   ─► (goes with the next read)                                                            │
//! release   ─┤           keeper ── XACK while the reader blocks, leases, due retries ─► command connection    │
//! requeue, dead_letter ─────────── one script each ───────────────────────────────────►  (shared)             │
//! send      ─┼───────────────────── XADD, pipelined ───────────────────────────────────► publish connection    │
//!            └───────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! # What other services see
//! - An entry with a field `body` carries its content there, and every other field is a header or a property. Any other
//!   entry is [`Payload::Fields`](steadfast_core::Payload::Fields): its fields are the content, except the names in
//!   [`known`](steadfast_core::known), which are headers.
//! - **Retries.** Redis has no delayed delivery. A retry is moved to a sorted set, [`Group::delay_key`], and comes back as
//!   a new entry of the same stream when it is due. Other groups have their own copy of the message and must not see this
//!   one: the entry carries the field `steadfast-group`, and a subscription of another group acknowledges it unseen. A
//!   consumer in another group that is not Steadfast should skip entries whose `steadfast-group` is not its own.
//! - **Dead letters** are entries of the dead-letter stream: all fields as they were, byte for byte, and the record's
//!   headers as fields over them. `steadfast-source-group` names the group that gave up.
//! - **Released entries** (a drain gave them back) belong to the consumer name [`RELEASED`] until the next claim, at most
//!   a second later. The name goes when nothing is pending under it.
//!
//! # Order by key
//! [`Partitioned`] is N streams behind one name: messages of one key go to one of them, and are handled in order, by any
//! number of processes that divide the streams among themselves.
//!
//! # Cluster
//! With `redis+cluster://` commands go to the node that has their key, and a subscription's reader is connected to the one that has
//! its stream. Redirections are followed. All keys that belong to a stream share its hash slot but the dead-letter stream;
//! `{orders}.dead` for the stream `orders` does. Where it does not, a dead letter is stored first and the original acknowledged
//! then, in two steps.

mod address;
mod broker;
mod cluster;
mod connection;
mod delay;
mod error;
mod follow;
mod group;
mod headers;
mod housekeeping;
mod keeper;
mod names;
mod operate;
mod options;
mod pace;
mod partition;
mod pending;
mod publisher;
mod reader;
mod resume;
mod retention;
mod runtime;
mod schedule;
mod settle;
mod slot;
mod subscription;
mod trim;
mod wire;

pub use broker::{Streams, connect, connect_lazy, connect_with};
pub use error::{StreamError, StreamErrorKind};
pub use group::{From, Group, Stream, Until};
pub use options::Options;
pub use partition::{FENCE, PartitionOwner, Partitioned, PartitionedGroup};
pub use pending::RELEASED;
pub use retention::{HeldBack, Retention, Trimmed};
