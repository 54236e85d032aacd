//! The operator's command, as a process of its own, against real servers.
#![expect(clippy::expect_used, reason = "a test says what it expected")]

#[path = "operator/rig.rs"]
mod rig;
#[path = "operator/tools.rs"]
mod tools;

#[path = "operator/commands.rs"]
mod commands;
#[path = "operator/golden.rs"]
mod golden;
#[path = "operator/redrive.rs"]
mod redrive;
