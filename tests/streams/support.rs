//! What these tests share.

use std::future::poll_fn;
use std::io::{self, Write as _};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike as AsyncConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionLike, FromRedisValue, Pipeline, RedisFuture, Value,
};
use steadfast_core::{
    Broker, Delivery, Destination, Incoming, Payload, Requeue, Settler, Source, Subscribe, SubscribeError,
    Subscription, Token,
};
use steadfast_streams::{Group, Stream, Streams};
use steadfast_testbed::{ClusterOptions, Redis, RedisCluster, RedisOptions, shared, unique};

/// Longest wait for anything that must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// How many of a thing: all of them where `STEADFAST_TEST_WHOLE` is set, else as many as every run has time for.
pub(crate) fn whole(all: usize, sample: usize) -> usize {
    if std::env::var_os("STEADFAST_TEST_WHOLE").is_some() { all } else { sample }
}

/// Whether this run is on a cluster: three nodes stand wherever there would be one server, and each key is where its slot
/// is.
pub(crate) fn on_cluster() -> bool {
    std::env::var_os(shared::ON_CLUSTER).is_some()
}

/// Whether this run is on a cluster, where the test that asks makes no sense; says so and why.
pub(crate) fn skipped_on_cluster(why: &str) -> bool {
    if on_cluster() {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // not `eprintln`, which the test harness would swallow
        drop(writeln!(io::stderr(), "SKIPPED on a cluster: {test}: {why}"));
    }
    on_cluster()
}

/// What the tests share.
pub(crate) fn shared_url() -> &'static str {
    if on_cluster() { shared::redis_cluster_url() } else { shared::redis_url() }
}

/// What a test has to itself.
pub(crate) enum Server {
    One(Redis),
    Cluster(RedisCluster),
}

impl Server {
    pub(crate) fn start(options: &RedisOptions) -> Self {
        if on_cluster() {
            let options = ClusterOptions::new().node(options.clone());
            Self::Cluster(RedisCluster::start(&options).expect("starts"))
        } else {
            Self::One(Redis::start(options).expect("starts"))
        }
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::One(server) => server.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    /// The same for somebody: `user:password`.
    pub(crate) fn url_of(&self, user: &str) -> String {
        self.url().replacen("://", &format!("://{user}@"), 1)
    }

    pub(crate) fn nodes(&self) -> &[Redis] {
        match self {
            Self::One(server) => std::slice::from_ref(server),
            Self::Cluster(cluster) => cluster.nodes(),
        }
    }

    /// Whoever has this key.
    pub(crate) fn node(&self, key: &str) -> &Redis {
        match self {
            Self::One(server) => server,
            Self::Cluster(cluster) => &cluster.nodes()[cluster.node_of(key).expect("answers")],
        }
    }

    /// Ends whoever has this key, with SIGKILL.
    pub(crate) fn kill9(&self, key: &str) {
        self.node(key).kill9().expect("kills");
    }

    /// Starts it again, and waits until it takes this key.
    pub(crate) fn restart(&self, key: &str) {
        match self {
            Self::One(server) => server.restart().expect("restarts"),
            Self::Cluster(cluster) => {
                cluster.restart(cluster.node_of(key).expect("answers")).expect("restarts");
            }
        }
    }
}

/// A client beside ours, which follows the keys where there is a cluster.
pub(crate) fn client(url: &str) -> Box<dyn ConnectionLike + Send> {
    match nodes(url) {
        Some(nodes) => {
            let client = ClusterClientBuilder::new(nodes).build().expect("valid");
            Box::new(client.get_connection().expect("connects"))
        }
        None => Box::new(Client::open(url).expect("valid").get_connection().expect("connects")),
    }
}

/// The nodes that the URL of a cluster names.
fn nodes(url: &str) -> Option<impl Iterator<Item = String>> {
    let hosts = url.strip_prefix("redis+cluster://")?.split(['/', '?']).next()?;
    Some(hosts.split(',').map(|host| format!("redis://{host}")))
}

/// The same without blocking a thread.
#[derive(Clone)]
pub(crate) enum AsyncClient {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl AsyncClient {
    /// It waits so long for each answer: the client's own limit of 500 ms would make a busy machine a failed attempt.
    pub(crate) async fn connect(url: &str, patience: Duration) -> Self {
        if let Some(nodes) = nodes(url) {
            let client =
                ClusterClientBuilder::new(nodes).connection_timeout(patience).response_timeout(patience);
            let client = client.build().expect("valid");
            return Self::Cluster(client.get_async_connection().await.expect("connects"));
        }
        let patient = AsyncConnectionConfig::new().set_response_timeout(Some(patience));
        let patient = patient.set_connection_timeout(Some(patience));
        let client = Client::open(url).expect("valid");
        Self::One(client.get_multiplexed_async_connection_with_config(&patient).await.expect("connects"))
    }
}

impl AsyncConnectionLike for AsyncClient {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(one) => one.req_packed_command(cmd),
            Self::Cluster(cluster) => cluster.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(one) => one.req_packed_commands(pipeline, offset, count),
            Self::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        0
    }
}

/// A stream of its own on a server, our broker, and a client beside it.
pub(crate) struct Bed {
    pub(crate) broker: Arc<Streams>,
    pub(crate) raw: Box<dyn ConnectionLike + Send>,
    pub(crate) stream: String,
}

impl Bed {
    pub(crate) async fn shared() -> Self {
        Self::at(shared_url()).await
    }

    /// With a parameter of the URL.
    pub(crate) async fn shared_as(parameter: &str) -> Self {
        let url = shared_url().trim_end_matches('/');
        Self::at(&format!("{url}/?{parameter}")).await
    }

    pub(crate) async fn on(server: &Server) -> Self {
        Self::at(&server.url()).await
    }

    pub(crate) async fn at(url: &str) -> Self {
        let broker = steadfast_streams::connect(url).await.expect("connects");
        Self { broker, raw: client(url), stream: unique("orders") }
    }

    /// The client beside ours connects again.
    pub(crate) fn reconnect(&mut self, url: &str) {
        self.raw = client(url);
    }

    pub(crate) fn group(&self) -> Group {
        Stream::new(&*self.stream).group("billing")
    }

    /// Subscribes with room for `max`.
    pub(crate) async fn subscribe(&self, source: impl Into<Source>, max: usize) -> Box<dyn Subscription> {
        self.try_subscribe(source, max).await.expect("subscribes")
    }

    pub(crate) async fn try_subscribe(
        &self,
        source: impl Into<Source>,
        max: usize,
    ) -> Result<Box<dyn Subscription>, SubscribeError> {
        self.try_subscribe_as(source, max, false).await
    }

    /// Subscribes with one delivery at a time.
    pub(crate) async fn subscribe_narrow(&self, max: usize) -> Box<dyn Subscription> {
        self.try_subscribe_as(self.group(), max, true).await.expect("subscribes")
    }

    async fn try_subscribe_as(
        &self,
        source: impl Into<Source>,
        max: usize,
        narrow: bool,
    ) -> Result<Box<dyn Subscription>, SubscribeError> {
        let dead_letter = Destination::queue(self.dead());
        let max_in_flight = NonZeroUsize::new(max).expect("not zero");
        let request =
            Subscribe { source: source.into(), consumer: "test".into(), max_in_flight, narrow, dead_letter };
        self.broker.subscribe(request).await
    }

    pub(crate) fn dead(&self) -> String {
        format!("{}.dead", self.stream)
    }

    /// Runs a command beside ours.
    pub(crate) fn raw<T: FromRedisValue>(&mut self, command: &[&str]) -> T {
        self.try_raw(command).expect("succeeds")
    }

    pub(crate) fn try_raw<T: FromRedisValue>(&mut self, command: &[&str]) -> redis::RedisResult<T> {
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(&command[1..]);
        cmd.query(&mut *self.raw)
    }

    /// Adds an entry as another service would.
    pub(crate) fn add(&mut self, fields: &[&str]) -> String {
        let stream = self.stream.clone();
        self.raw(&[&["XADD", &stream, "*"], fields].concat())
    }

    /// How many entries are pending in the group.
    pub(crate) fn pending(&mut self) -> i64 {
        let stream = self.stream.clone();
        let summary: Vec<Value> = self.raw(&["XPENDING", &stream, "billing"]);
        match summary.first() {
            Some(Value::Int(count)) => *count,
            other => panic!("XPENDING said {other:?}"),
        }
    }

    /// How many entries are pending under each consumer name that has any.
    pub(crate) fn pending_by_name(&mut self) -> Vec<(String, i64)> {
        let stream = self.stream.clone();
        let names = self.consumers();
        let count = |name: &String| -> i64 {
            let pending: Vec<Value> = self.raw(&["XPENDING", &stream, "billing", "-", "+", "100000", name]);
            i64::try_from(pending.len()).expect("small")
        };
        let counts: Vec<i64> = names.iter().map(count).collect();
        names.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// The names of the group's consumers.
    pub(crate) fn consumers(&mut self) -> Vec<String> {
        let stream = self.stream.clone();
        let consumers: Vec<Vec<Value>> = self.raw(&["XINFO", "CONSUMERS", &stream, "billing"]);
        consumers
            .into_iter()
            .map(|fields| match fields.into_iter().nth(1) {
                Some(Value::BulkString(name)) => String::from_utf8(name).expect("text"),
                other => panic!("XINFO said {other:?}"),
            })
            .collect()
    }

    /// Waits until a condition of the server holds.
    pub(crate) async fn until(&mut self, what: &str, mut reached: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !reached(self) {
            assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The next deliveries, at most `room`.
pub(crate) async fn next(
    subscription: &mut dyn Subscription,
    room: usize,
) -> Result<Vec<Delivery>, SubscribeError> {
    let room = NonZeroUsize::new(room).expect("not zero");
    let mut batch = Vec::new();
    let polled = poll_fn(|cx| subscription.poll_next(cx, room, &mut batch));
    tokio::time::timeout(DEADLINE, polled).await.expect("a delivery, or an end")?;
    assert!(!batch.is_empty() && batch.len() <= room.get(), "{} for a room of {room}", batch.len());
    Ok(batch)
}

/// Exactly one delivery.
pub(crate) async fn one(subscription: &mut dyn Subscription) -> Delivery {
    next(subscription, 1).await.expect("delivers").pop().expect("one")
}

/// So many deliveries.
pub(crate) async fn many(subscription: &mut dyn Subscription, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(next(subscription, count - all.len()).await.expect("delivers"));
    }
    all
}

/// Whether nothing is delivered within `wait`.
pub(crate) async fn nothing(subscription: &mut dyn Subscription, wait: Duration) -> bool {
    nothing_for(subscription, 1, wait).await
}

/// The same with room for more.
pub(crate) async fn nothing_for(subscription: &mut dyn Subscription, room: usize, wait: Duration) -> bool {
    let room = NonZeroUsize::new(room).expect("not zero");
    let mut batch = Vec::new();
    let polled = poll_fn(|cx| subscription.poll_next(cx, room, &mut batch));
    tokio::time::timeout(wait, polled).await.is_err()
}

/// Acknowledges, and waits until the server has it.
pub(crate) async fn ack(subscription: &dyn Subscription, deliveries: Vec<Delivery>) {
    deliveries.into_iter().for_each(Delivery::ack);
    let settler = subscription.settler();
    settler.flush();
    settler.finish().await.expect("sent");
}

/// Takes the duty to settle away, so that a test can call the settler itself.
pub(crate) fn parts(delivery: Delivery) -> (Arc<Incoming>, Token) {
    delivery.into_parts()
}

pub(crate) async fn retry(settler: &dyn Settler, delivery: Delivery, after: Duration) {
    let (incoming, token) = parts(delivery);
    let mut headers = steadfast_core::Headers::new();
    headers.set(steadfast_core::known::RETRY_COUNT, 1_u32);
    settler.requeue(&incoming, token, &Requeue { after, headers }).await.expect("stored");
}

pub(crate) fn body(delivery: &Delivery) -> &[u8] {
    match &delivery.incoming().payload {
        Payload::Body(body) => body,
        Payload::Fields(fields) => panic!("flat fields: {fields:?}"),
    }
}
