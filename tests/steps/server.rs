//! A private broker of either kind, and how its protocol shows the steps.

use std::sync::Arc;

use steadfast_testbed::{Append, Proxy, Rabbit, RabbitOptions, Redis, RedisOptions, Step, Wire};

/// In the consumer's name in the group, by which a command of the worker's is known.
pub(crate) const CONSUMER: &str = "stepper";

#[derive(Clone)]
pub(crate) enum Server {
    Rabbit(Arc<Rabbit>),
    Redis(Arc<Redis>),
}

impl Server {
    pub(crate) async fn rabbit() -> Self {
        blocking(|| Self::Rabbit(Arc::new(Rabbit::start(&RabbitOptions::new()).expect("starts")))).await
    }

    /// What it has acknowledged survives it.
    pub(crate) async fn redis() -> Self {
        let options = RedisOptions::new().append(Append::Always);
        blocking(move || Self::Redis(Arc::new(Redis::start(&options).expect("starts")))).await
    }

    pub(crate) fn version(&self) -> String {
        match self {
            Self::Rabbit(rabbit) => format!("RabbitMQ {}", rabbit.version()),
            Self::Redis(redis) => format!("Redis or Valkey {}", redis.version()),
        }
    }

    pub(crate) fn proxy(&self) -> Proxy {
        match self {
            Self::Rabbit(rabbit) => Proxy::start(Wire::Amqp, rabbit.port()),
            Self::Redis(redis) => Proxy::start(Wire::Resp, redis.port()),
        }
        .expect("listens")
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Rabbit(rabbit) => rabbit.url(),
            Self::Redis(redis) => redis.url(),
        }
    }

    /// The same address through the proxy.
    pub(crate) fn url_through(&self, proxy: &Proxy) -> String {
        let port = match self {
            Self::Rabbit(rabbit) => rabbit.port(),
            Self::Redis(redis) => redis.port(),
        };
        self.url().replace(&format!(":{port}"), &format!(":{}", proxy.port()))
    }

    /// Redis settles in the command that copies.
    pub(crate) fn steps(&self) -> &'static [Step] {
        match self {
            Self::Rabbit(_) => &[Step::Request, Step::Answer, Step::Settle],
            Self::Redis(_) => &[Step::Request, Step::Answer],
        }
    }

    /// What a retry and a dead letter are known by on their way.
    pub(crate) fn copies(&self, queue: &str) -> (Vec<String>, Vec<String>) {
        match self {
            Self::Rabbit(_) => (vec![format!("{queue}.retry.")], vec![format!("{queue}.dead")]),
            Self::Redis(_) => (
                vec![format!("{{{queue}}}:delay"), CONSUMER.into()],
                vec![format!("{queue}.dead"), CONSUMER.into()],
            ),
        }
    }

    /// And a letter that is redriven.
    pub(crate) fn redrive(&self, queue: &str) -> Vec<String> {
        match self {
            Self::Rabbit(_) => vec![queue.into()],
            Self::Redis(_) => vec![
                "EVALSHA".into(),
                format!("\r\n{queue}.dead\r\n"),
                format!("\r\n{queue}\r\n"),
                "steadfast-".into(),
            ],
        }
    }

    /// RabbitMQ in good order, because it forgets a queue that was declared the moment before it is killed; Redis is killed.
    pub(crate) async fn restart(&self) {
        let server = self.clone();
        let restart = move || match server {
            Self::Rabbit(rabbit) => rabbit.restart().expect("restarts"),
            Self::Redis(redis) => {
                redis.kill9().expect("kills");
                redis.restart().expect("restarts");
            }
        };
        blocking(restart).await;
    }

    /// How many messages are anywhere but in the dead letters.
    pub(crate) async fn open(&self, queue: &str) -> u64 {
        let (server, queue) = (self.clone(), queue.to_owned());
        let count = move || match server {
            Self::Rabbit(rabbit) => {
                let list = rabbit.ctl(&["list_queues", "name", "messages"]).expect("lists");
                let counts = list.lines().filter_map(|line| line.split_once('\t'));
                let counts = counts.filter(|(name, _)| *name != format!("{queue}.dead"));
                counts.map(|(_, count)| count.trim().parse::<u64>().unwrap_or(0)).sum()
            }
            Self::Redis(redis) => {
                let cli = |arguments: &[&str]| redis.cli(arguments).expect("answers");
                let delayed = cli(&["ZCARD", &format!("{{{queue}}}:delay")]);
                let groups = cli(&["XINFO", "GROUPS", &queue]);
                let words: Vec<&str> = groups.lines().map(str::trim).collect();
                let field = |name: &str| {
                    let value = words.windows(2).find(|pair| pair[0] == name).map_or("0", |pair| pair[1]);
                    // the lag is not known after some deletions
                    value.parse::<u64>().unwrap_or(0)
                };
                delayed.trim().parse::<u64>().expect("a number") + field("pending") + field("lag")
            }
        };
        blocking(count).await
    }
}

pub(crate) async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(act).await.expect("acts")
}
