//! What the examples share and what would only distract in them: names, progress, the table.

pub mod broker;
mod dead_letters;
pub mod diagnostics;
pub mod input;
mod ledger;
mod names;
mod report;
mod run;

pub use dead_letters::Letter;
pub use ledger::Ledger;
pub use names::Names;
pub use report::Report;
pub use run::{Outcome, Run};
