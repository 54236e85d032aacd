//! What becomes of messages that fail, on every broker: the handler's last chance, and outages of what it depends on.
#![expect(clippy::expect_used, clippy::panic, reason = "a test says what it expected")]

#[path = "failures/circuit.rs"]
mod circuit;
#[path = "failures/last_chance.rs"]
mod last_chance;
#[path = "failures/rig.rs"]
mod rig;
