//! Every way in which a consumer can end, on real brokers: the tree brings it back, and nothing is lost meanwhile.
#![expect(clippy::expect_used, clippy::panic, reason = "a test says what it expected")]
#![expect(clippy::print_stdout, reason = "a test prints what it measured")]

#[path = "supervision/ledger.rs"]
mod ledger;
#[path = "supervision/link.rs"]
mod link;
#[path = "supervision/log.rs"]
mod log;
#[path = "supervision/server.rs"]
mod server;
#[path = "supervision/stage.rs"]
mod stage;

#[path = "supervision/ends.rs"]
mod ends;
#[path = "supervision/health.rs"]
mod health;
#[path = "supervision/outage.rs"]
mod outage;
#[path = "supervision/signals.rs"]
mod signals;
