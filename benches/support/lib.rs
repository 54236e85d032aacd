//! What the benches share: work, contestants, and how a comparison is measured and told.
//!
//! | file | role |
//! |---|---|
//! | `order` | the message that every bench carries |
//! | `meter` | wall clock and CPU time from the first message to the last |
//! | `contest` | the sides of a comparison, in alternation, and the figures that come of it |
//! | `targets` | what the figures are to reach, in one table |
//! | `report` | the figures as a table and as JSON |
//! | `rabbit`, `streams`, `memory` | the contestants, by broker |
//! | `panics` | what panicking messages cost the others, on any broker |
//! | `crowd` | many publishers at once |
//! | `counting` | Steadfast's consumer of all of them: a handler that counts, under supervision |

mod contest;
mod counting;
mod crowd;
mod memory;
mod meter;
mod order;
mod panics;
mod rabbit;
mod report;
mod streams;
mod targets;

pub use contest::{Contest, Plan, Row, Side, compare};
pub use memory::Embedded;
pub use meter::Spent;
pub use panics::Panics;
pub use rabbit::{ConsumeRabbit, Prefetch, PublishRabbit, Publishing};
pub use report::{json, table};
pub use streams::{ConsumeRedis, PublishRedis};

/// Any error; a bench that cannot go on says why and ends.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Who publishes the messages that are consumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filler {
    /// The bare client: a body, and nothing said of it.
    #[default]
    Bare,
    /// Steadfast's publisher: an id, a type and a content type travel along, and both sides parse them.
    Steadfast,
}
