//! A private broker of either kind, and what its operator does to it.

use std::sync::Arc;
use std::time::Duration;

use steadfast::amqp::Queue;
use steadfast::streams::{Options, Stream};
use steadfast::{Broker, Source};
use steadfast_testbed::{Append, BrokerSet, Rabbit, RabbitOptions, Redis, RedisOptions};

pub(crate) enum Server {
    Rabbit(Rabbit),
    Redis(Redis),
}

/// How long Redis may take to answer in these tests, so that one that is halted is found out soon.
pub(crate) const ANSWER: Duration = Duration::from_secs(1);

impl Server {
    /// Its deliveries must be acknowledged within five seconds, which it looks after once a second.
    pub(crate) async fn rabbit() -> Arc<Self> {
        // channel errors are injected by the names that RabbitMQ 3.10 gives its processes, which 4.x refuses
        let options =
            RabbitOptions::new().brokers(BrokerSet::distribution()).config("consumer_timeout = 5000");
        blocking(move || {
            let rabbit = Rabbit::start(&options).expect("starts");
            // the configuration file has no name for this
            rabbit
                .ctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 1000)."])
                .expect("does it");
            Arc::new(Self::Rabbit(rabbit))
        })
        .await
    }

    /// What it has acknowledged survives it.
    pub(crate) async fn redis() -> Arc<Self> {
        let options = RedisOptions::new().append(Append::Always);
        blocking(move || Arc::new(Self::Redis(Redis::start(&options).expect("starts")))).await
    }

    pub(crate) async fn connect(&self) -> Arc<dyn Broker> {
        match self {
            Self::Rabbit(rabbit) => steadfast::connect(&rabbit.url()).await.expect("connects"),
            Self::Redis(redis) => {
                let options = Options::new(redis.url()).connect_timeout(ANSWER).command_timeout(ANSWER);
                steadfast::streams::connect_with(options.publish_deadline(ANSWER)).await.expect("connects")
            }
        }
    }

    /// A queue or a stream with what suits these tests.
    pub(crate) fn source(&self, name: &str) -> Source {
        match self {
            Self::Rabbit(_) => Source::queue(name),
            Self::Redis(_) => Stream::new(name)
                .group("workers")
                .min_idle(Duration::from_secs(1))
                .block(Duration::from_millis(500))
                .into(),
        }
    }

    /// One that can be published to as soon as the port answers: a quorum queue has to find its leader first.
    pub(crate) fn simple(&self, name: &str) -> Source {
        match self {
            Self::Rabbit(_) => Queue::classic(name).into(),
            Self::Redis(_) => Source::queue(name),
        }
    }

    /// Does something that takes a while, and does not hold up the tree under test.
    pub(crate) async fn on<T: Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> T {
        let server = Arc::clone(self);
        blocking(move || act(&server)).await
    }

    pub(crate) fn kill9(&self) {
        match self {
            Self::Rabbit(rabbit) => rabbit.kill9().expect("kills"),
            Self::Redis(redis) => redis.kill9().expect("kills"),
        }
    }

    /// As an operator would: RabbitMQ forgets a queue that was declared the moment before it is killed.
    pub(crate) fn stop(&self) {
        match self {
            Self::Rabbit(rabbit) => rabbit.stop().expect("stops"),
            Self::Redis(redis) => redis.kill9().expect("kills"),
        }
    }

    pub(crate) fn restart(&self) {
        match self {
            Self::Rabbit(rabbit) => rabbit.restart().expect("restarts"),
            Self::Redis(redis) => redis.restart().expect("restarts"),
        }
    }

    pub(crate) fn pause(&self) {
        match self {
            Self::Rabbit(rabbit) => rabbit.pause().expect("halts"),
            Self::Redis(redis) => redis.pause().expect("halts"),
        }
    }

    pub(crate) fn resume(&self) {
        match self {
            Self::Rabbit(rabbit) => rabbit.resume().expect("goes on"),
            Self::Redis(redis) => redis.resume().expect("goes on"),
        }
    }

    /// `rabbitmqctl` or `redis-cli`.
    pub(crate) fn tell(&self, arguments: &[&str]) -> String {
        match self {
            Self::Rabbit(rabbit) => rabbit.ctl(arguments).expect("does it"),
            Self::Redis(redis) => redis.cli(arguments).expect("does it"),
        }
    }

    /// Makes RabbitMQ take `method` as if the consumer of this queue had sent it on its own channel. From outside there is
    /// no other way to provoke an error on just one channel.
    pub(crate) fn inject(&self, queue: &str, method: &str) {
        let consumers = self.tell(&["list_consumers", "queue_name", "channel_pid"]);
        let channel = consumers.lines().filter_map(|line| line.split_once('\t'));
        let channel = channel.filter(|(name, _)| *name == queue).map(|(_, channel)| channel.trim()).next();
        let channel = channel.expect("the queue has a consumer");
        self.tell(&[
            "eval",
            &format!("rabbit_channel:do(rabbit_misc:string_to_pid(\"{channel}\"), {method})."),
        ]);
    }

    /// Cuts the connection that was opened last, not counting the one that is used to do so.
    pub(crate) fn cut_youngest(&self) {
        let list = self.tell(&["CLIENT", "LIST"]);
        let id = |line: &str| line.strip_prefix("id=")?.split(' ').next()?.parse::<u64>().ok();
        let others = list.lines().filter(|line| !line.contains("cmd=client"));
        let youngest = others.filter_map(id).max().expect("there are connections");
        self.tell(&["CLIENT", "KILL", "ID", &youngest.to_string()]);
    }
}

pub(crate) async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(act).await.expect("acts")
}
