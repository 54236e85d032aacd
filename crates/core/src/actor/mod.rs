//! The supervision tree.
//!
//! ```text
//!   Tree (what main holds)
//!    └─ supervisor "shop"            one for one, restart intensity 10 in 5 minutes
//!        ├─ dead letters             finishes what a consumer left to bury when it ended
//!        ├─ consumer "billing"       owns one session: a channel or a group slot, and what is in flight on it
//!        ├─ consumer "shipping"
//!        ├─ connection, publisher       the broker's other ends, where the application wants them in the tree
//!        ├─ task "report"            any future
//!        └─ supervisor "reports" ─ … a tree of its own; its end is one child's end here
//! ```
//!
//! - *one for one*, because consumers do not depend on one another: one that fails is started again alone.
//! - The dead-letter actor starts before the consumers and is stopped after them, since they leave it their last messages.
//! - Actors own lifetimes, not messages. The message path is [`pipeline`](crate::pipeline), which runs on the session's
//!   task; only burials that are half done when it ends pass through a mailbox, at most as many as it had permits.
//! - Only `supervisor.rs`, `incarnation.rs`, `consumer.rs`, `dead_letter.rs`, `task.rs` and `spec.rs` here say `ractor`.

mod backoff;
#[cfg(test)]
mod circuit_tests;
mod consumer;
mod dead_letter;
mod event;
mod handle;
mod health;
mod incarnation;
#[cfg(test)]
mod last_chance_tests;
mod link;
mod node;
mod plan;
#[cfg(test)]
mod plan_tests;
mod restart;
mod spec;
mod supervisor;
mod task;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tree_tests;
mod watchdog;

pub(crate) use dead_letter::DeadLetters;
pub use event::{Event, EventKind};
pub use handle::{ControlError, Monitor, Tree};
pub use health::Health;
pub use link::SupervisedPublisher;
pub use node::{ChildStatus, Kind, Phase};
pub(crate) use node::{Node, Trouble};
pub use plan::{Restart, Strategy};
/// The actor library, for [`Child::actor`].
pub use ractor;
pub use restart::RestartIntensity;
pub use spec::{Child, StartError, Stop, Supervisor};
