//! When retries come back: the policy's schedule beside the observed one. The table in `docs/guarantees.md` is what
//! `cargo xtask test --brokers DIR -- -p steadfast-tests --test amqp schedule -- --nocapture` prints.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use lapin::options::{BasicConsumeOptions, BasicQosOptions, BasicRejectOptions};
use lapin::protocol::basic::AMQPProperties;
use lapin::types::{AMQPValue, FieldTable};
use steadfast::{Consumer, Context, Failure, Retry, Supervisor, handler_fn};
use steadfast_amqp::Queue;
use steadfast_core::{Broker, Message, Outgoing, Source};

use crate::rig::{PATIENCE, Rig, amqp, eventually};

const MESSAGES: u64 = 10;
/// What a machine that does other work may add, beside what is promised of an idle one.
const BUSY: Duration = Duration::from_millis(750);

#[derive(serde::Serialize, serde::Deserialize)]
struct Job(u64);

impl Message for Job {
    const NAME: &'static str = "job";
}

/// What each delay was to be, and what it was.
type Gaps = BTreeMap<Duration, Vec<Duration>>;
type Seen = Arc<Mutex<BTreeMap<u64, Vec<Instant>>>>;

fn allowed(delay: Duration) -> Duration {
    (delay / 20).max(Duration::from_millis(50))
}

/// One line for each delay. None may be early, and half of them must not be later than promised.
fn report(server: &str, way: &str, gaps: &Gaps) {
    for (delay, gaps) in gaps {
        let mut late: Vec<_> = gaps.iter().map(|gap| gap.checked_sub(*delay)).collect();
        late.sort();
        let [Some(least), median, worst] = [0, late.len() / 2, late.len() - 1].map(|at| late[at]) else {
            panic!("{way}: a retry after {delay:?} came early: {gaps:?}");
        };
        let (median, worst) = (median.unwrap_or(least), worst.unwrap_or(least));
        println!(
            "| {server} | {way} | {} | {:.1} | {:.1} | {} |",
            delay.as_millis(),
            median.as_secs_f64() * 1e3,
            worst.as_secs_f64() * 1e3,
            allowed(*delay).as_millis()
        );
        assert!(median <= allowed(*delay) + BUSY, "{way}: after {delay:?} late by {median:?}");
    }
}

/// Messages that fail at every attempt, through the whole path.
async fn rungs(queue: Queue) -> Gaps {
    // the tree closes it in the end
    let broker = amqp().await;
    let policy = Retry::exponential(Duration::from_millis(100)..Duration::from_millis(1_600)).jitter(0.0);
    let policy = policy.max_attempts(6);
    let delays: Vec<_> = (1..policy.attempts()).map(|attempt| policy.delay(attempt, 0.5)).collect();
    let name = queue.name().to_string();
    let seen = Seen::default();
    let writes = Arc::clone(&seen);
    let consumer = Consumer::new("schedule", Source::from(queue))
        .handler(move || {
            let seen = Arc::clone(&writes);
            handler_fn(move |job: Job, _: Context| {
                seen.lock().expect("held by nobody").entry(job.0).or_default().push(Instant::now());
                async { Err::<(), _>(Failure::retry("not yet")) }
            })
        })
        .concurrency(16)
        .retry(policy)
        .dead_letter(format!("{name}.dead"));
    let tree =
        Supervisor::new("schedule").consumer(consumer).start(Arc::<steadfast_amqp::Amqp>::clone(&broker));
    let tree = tree.await.expect("starts");
    tree.until_ready().await.expect("runs");
    let publisher = broker.publisher().await.expect("publishes");
    let sent = (0..MESSAGES).map(|id| {
        let mut message = Outgoing::new(name.as_str(), serde_json::to_vec(&Job(id)).expect("encodes"));
        message.message_type = Some(Job::NAME.to_owned());
        publisher.send(message)
    });
    assert!(join_all(sent).await.iter().all(Result::is_ok));
    let attempts = delays.len() + 1;
    let done = || {
        let seen = seen.lock().expect("held by nobody");
        seen.len() as u64 == MESSAGES && seen.values().all(|at| at.len() == attempts)
    };
    eventually("the last attempt of each", async || done().then_some(())).await;
    tree.drain().await.expect("ends");
    let mut gaps = Gaps::new();
    for at in seen.lock().expect("held by nobody").values() {
        for (pair, delay) in at.windows(2).zip(&delays) {
            gaps.entry(*delay).or_default().push(pair[1] - pair[0]);
        }
    }
    gaps
}

/// The broker's own delayed retry, by the bare client: what it does is linear.
async fn native(rig: &Rig) -> Gaps {
    const STEP: Duration = Duration::from_millis(200);
    let mut arguments = FieldTable::default();
    for (name, value) in [("x-queue-type", "quorum"), ("x-delayed-retry-type", "failed")] {
        arguments.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    for (name, millis) in [("x-delayed-retry-min", 200), ("x-delayed-retry-max", 800)] {
        arguments.insert(name.into(), AMQPValue::LongLongInt(millis));
    }
    rig.outside.declare(&rig.queue, arguments).await;
    rig.outside.publish(&rig.queue, b"1", AMQPProperties::default()).await;
    let channel = &rig.outside.channel;
    channel.basic_qos(1, BasicQosOptions::default()).await.expect("sets");
    let options = BasicConsumeOptions::default();
    let consuming = channel.basic_consume(
        rig.queue.as_str().into(),
        rig.queue.as_str().into(),
        options,
        FieldTable::default(),
    );
    let mut consumer = consuming.await.expect("consumes");
    let (mut gaps, mut before) = (Gaps::new(), None);
    for count in 0..=4 {
        let next = tokio::time::timeout(PATIENCE, consumer.next()).await.expect("it comes back");
        let delivery = next.expect("goes on").expect("delivers");
        if let Some(before) = before.replace(Instant::now()) {
            gaps.entry(STEP * count).or_default().push(before.elapsed());
        }
        delivery.acker.reject(BasicRejectOptions { requeue: true }).await.expect("rejects");
    }
    gaps
}

#[tokio::test]
async fn retries_come_back_when_their_policy_says() {
    let rig = Rig::new("schedule").await;
    let server = rig.broker.capabilities().server;
    println!(
        "| server | way | delay, ms | late, ms: median | worst of {MESSAGES} | allowed |\n|---|---|---|---|---|---|"
    );
    let (quorum, classic) = (format!("{}.quorum", rig.queue), format!("{}.classic", rig.queue));
    report(&server, "rungs, quorum queue", &rungs(Queue::quorum(quorum)).await);
    report(&server, "rungs, classic queue", &rungs(Queue::classic(classic)).await);
    let version = server.strip_prefix("RabbitMQ ").and_then(|version| version.split_once('.'));
    let delays_itself = version.and_then(|(major, rest)| {
        let minor = rest.split('.').next()?.parse::<u32>().ok()?;
        Some((major.parse::<u32>().ok()?, minor) >= (4, 3))
    });
    if delays_itself == Some(true) {
        report(&server, "native, bare client", &native(&rig).await);
    }
}
