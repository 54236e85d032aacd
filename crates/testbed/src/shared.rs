//! One `RabbitMQ`, one Redis and one Redis Cluster for a whole test process.
//!
//! `cargo xtask test` starts the first two once for all test processes and names them in the environment. Under a plain
//! `cargo test` each process that needs one starts its own, as it always does with the cluster, and the guard ends it: a
//! `static` is never dropped.
#![expect(
    clippy::panic,
    reason = "a test that has no broker cannot go on, and the panic says what to install"
)]

use std::env;
use std::fmt::Display;
use std::sync::OnceLock;

use crate::cluster::{ClusterOptions, RedisCluster};
use crate::rabbit::{Rabbit, RabbitOptions};
use crate::redis::{Redis, RedisOptions};

/// The variable that names a `RabbitMQ` to share.
pub const AMQP_URL: &str = "STEADFAST_TEST_AMQP_URL";
/// The variable that names a Redis to share.
pub const REDIS_URL: &str = "STEADFAST_TEST_REDIS_URL";
/// The variable that has the tests of Redis Streams use a cluster wherever they would use one server; any value will do.
pub const ON_CLUSTER: &str = "STEADFAST_TEST_ON_CLUSTER";

/// The address of a `RabbitMQ` that other tests use, too: name queues by [`unique`](crate::unique), and never stop it.
///
/// # Panics
/// If none is named by `STEADFAST_TEST_AMQP_URL` and none can be started.
pub fn rabbit_url() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    static RABBIT: OnceLock<Rabbit> = OnceLock::new();
    URL.get_or_init(|| {
        named(AMQP_URL).unwrap_or_else(|| {
            let start =
                || Rabbit::start(&RabbitOptions::new()).unwrap_or_else(|error| give_up("RabbitMQ", &error));
            RABBIT.get_or_init(start).url()
        })
    })
}

/// The address of a Redis that other tests use, too: name streams by [`unique`](crate::unique), and never stop it.
///
/// # Panics
/// If none is named by `STEADFAST_TEST_REDIS_URL` and none can be started.
pub fn redis_url() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    static REDIS: OnceLock<Redis> = OnceLock::new();
    URL.get_or_init(|| {
        named(REDIS_URL).unwrap_or_else(|| {
            let start =
                || Redis::start(&RedisOptions::new()).unwrap_or_else(|error| give_up("Redis", &error));
            REDIS.get_or_init(start).url()
        })
    })
}

/// The address of a Redis Cluster of three nodes that other tests of this process use, too: name streams by
/// [`unique`](crate::unique), never stop a node and never move a slot.
///
/// # Panics
/// If none can be started.
pub fn redis_cluster_url() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    static CLUSTER: OnceLock<RedisCluster> = OnceLock::new();
    URL.get_or_init(|| {
        let start = || {
            RedisCluster::start(&ClusterOptions::new())
                .unwrap_or_else(|error| give_up("Redis Cluster", &error))
        };
        CLUSTER.get_or_init(start).url()
    })
}

fn named(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|url| !url.is_empty())
}

fn give_up(broker: &str, error: &dyn Display) -> ! {
    panic!("this test needs a {broker}, and none could be started: {error}")
}
