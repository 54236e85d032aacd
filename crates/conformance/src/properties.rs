//! How each promise is tried. A property publishes, takes and settles as a consumer would, and says what it saw.

pub(crate) mod consumer;
pub(crate) mod dead_letter;
pub(crate) mod deliver;
pub(crate) mod flow;
pub(crate) mod publish;
pub(crate) mod redeliver;
pub(crate) mod release;
pub(crate) mod retry;
pub(crate) mod settle;
