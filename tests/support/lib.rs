//! What the tests share.

mod letters;
mod programs;
mod python;

pub use letters::ids;
pub use programs::{Running, example, operator, terminate};
pub use python::Python;
