//! The pair of brokers that all processes of one run share. They end when this is dropped, or with us.

use std::fmt;
use std::process::Command;
use std::time::Instant;

use steadfast_testbed::{BrokerSet, Rabbit, RabbitOptions, Redis, RedisOptions, RedisServer, shared};

use crate::runner::{Failure, Runner};

pub(crate) use steadfast_testbed::{BROKERS as FOLDER, REDIS_SERVER};

pub(crate) struct Brokers {
    pub(crate) rabbit: Rabbit,
    pub(crate) redis: Redis,
    server: RedisServer,
}

impl Brokers {
    pub(crate) fn start(runner: &mut Runner, set: BrokerSet, server: RedisServer) -> Result<Self, Failure> {
        let start = Instant::now();
        let rabbit = Rabbit::start(&RabbitOptions::new().brokers(set.clone()))?;
        let redis = Redis::start(&RedisOptions::new().brokers(set).server(server))?;
        let brokers = Self { rabbit, redis, server };
        runner.record(&format!("start {brokers}"), start);
        Ok(brokers)
    }

    /// Names the shared brokers to the tests. A test that needs a broker to itself starts one of the same set, which the
    /// caller names; what our own environment names must not mix the two.
    pub(crate) fn name_in(&self, command: &mut Command) {
        let named: Vec<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
        for variable in [FOLDER, REDIS_SERVER] {
            if !named.iter().any(|name| name == variable) {
                command.env_remove(variable);
            }
        }
        command.env(shared::AMQP_URL, self.rabbit.url()).env(shared::REDIS_URL, self.redis.url());
    }
}

impl fmt::Display for Brokers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rabbit, redis, server } = self;
        write!(f, "RabbitMQ {} and {} {}", rabbit.version(), server.name(), redis.version())
    }
}
