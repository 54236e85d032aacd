//! What the Redis Streams broker promises beyond the contract, against a real server.
#![expect(clippy::expect_used, clippy::panic, reason = "a helper that fails fails its test")]
#![expect(clippy::print_stdout, reason = "a test prints what it measured")]

#[path = "streams/child.rs"]
mod child;
#[path = "streams/cluster.rs"]
mod cluster;
#[path = "streams/delay.rs"]
mod delay;
#[path = "streams/deliver.rs"]
mod deliver;
#[path = "streams/faults.rs"]
mod faults;
#[path = "streams/kills.rs"]
mod kills;
#[path = "streams/load.rs"]
mod load;
#[path = "streams/moving.rs"]
mod moving;
#[path = "streams/names.rs"]
mod names;
#[path = "streams/narrow.rs"]
mod narrow;
#[path = "streams/outages.rs"]
mod outages;
#[path = "streams/partitions.rs"]
mod partitions;
#[path = "streams/pending.rs"]
mod pending;
#[path = "streams/protocols.rs"]
mod protocols;
#[path = "streams/publish.rs"]
mod publish;
#[path = "streams/rebalance.rs"]
mod rebalance;
#[path = "streams/replay.rs"]
mod replay;
#[path = "streams/sentinels.rs"]
mod sentinels;
#[path = "streams/settle.rs"]
mod settle;
#[path = "streams/stale.rs"]
mod stale;
#[path = "streams/support.rs"]
mod support;
#[path = "streams/tls.rs"]
mod tls;
#[path = "streams/trim.rs"]
mod trim;
