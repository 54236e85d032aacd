//! The worker under test: what it promises to whoever watches it.
#![expect(clippy::expect_used, reason = "a test says what it expected")]

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use steadfast::{Broker, Outgoing, Payload, Source};
use steadfast_testbed::{shared, unique};
use steadfast_tests::{Running, example, terminate};

type Tested = Result<(), Box<dyn std::error::Error>>;

const MESSAGES: usize = 300;

struct Worker {
    running: Running,
    events: Vec<Value>,
}

impl Worker {
    fn start(url: &str, queue: &str) -> Self {
        let mut command = Command::new(example("worker"));
        command
            .env("SUT_URL", url)
            .env("SUT_QUEUE", queue)
            .env("SUT_GROUP", "workers")
            .env("SUT_CONSUMER", "one");
        // its stdout is a file of events that can be waited for
        command.env("SUT_PREFETCH", "8").env("SUT_WORK_MS", "20").env("SUT_OUT", "/dev/stdout");
        Self { running: Running::start(&mut command), events: Vec::new() }
    }

    fn next(&mut self) -> bool {
        let Some(line) = self.running.line() else { return false };
        self.events.push(serde_json::from_str(&line).expect("a line is an event"));
        true
    }

    fn until(&mut self, event: &str, count: usize) {
        while self.events.iter().filter(|seen| seen["ev"] == event).count() < count {
            assert!(self.next(), "ended before {count} were {event}");
        }
    }

    /// SIGTERM; all its events.
    fn stop(mut self) -> Vec<Value> {
        let (pid, asked) = (self.running.pid(), Instant::now());
        terminate(pid);
        while self.next() {}
        assert_eq!(self.running.wait().code(), Some(0));
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        assert!(self.events.iter().all(|event| event["pid"] == pid && event["ts"].is_u64()));
        self.events
    }
}

fn count<'a>(events: impl IntoIterator<Item = &'a Value>, event: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for seen in events.into_iter().filter(|seen| seen["ev"] == event) {
        *counts.entry(seen["id"].to_string()).or_default() += 1;
    }
    counts
}

async fn publish(broker: &dyn Broker, queue: &str, payloads: impl Iterator<Item = Payload>) -> Tested {
    let publisher = broker.publisher().await?;
    for payload in payloads {
        publisher.send(Outgoing::new(queue, payload)).await?;
    }
    Ok(())
}

fn body(id: usize) -> Payload {
    json!({ "id": id, "key": format!("k-{}", id % 7) }).to_string().into()
}

fn fields(id: usize) -> Payload {
    Payload::Fields(vec![
        ("id".into(), id.to_string().into()),
        ("key".into(), format!("k-{}", id % 7).into()),
    ])
}

async fn a_stop_under_load_loses_and_doubles_nothing(url: &str, payload: fn(usize) -> Payload) -> Tested {
    let (broker, queue) = (steadfast::connect(url).await?, unique("jobs"));
    broker.declare(&Source::queue(&*queue)).await?;
    publish(&*broker, &queue, (0..MESSAGES).map(payload)).await?;

    let mut first = Worker::start(url, &queue);
    first.until("done", MESSAGES / 5);
    let first = first.stop();
    let done = count(&first, "done").len();
    assert!(done < MESSAGES, "it was not under load");
    assert_eq!(count(&first, "start"), count(&first, "done"), "what was begun was not finished");

    let mut second = Worker::start(url, &queue);
    second.until("done", MESSAGES - done);
    let second = second.stop();
    let all = || first.iter().chain(&second);
    for event in ["start", "done"] {
        let counts = count(all(), event);
        assert_eq!(counts.len(), MESSAGES, "{event}");
        assert!(counts.values().all(|times| *times == 1), "{event}: {counts:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_under_load_on_rabbitmq() -> Tested {
    a_stop_under_load_loses_and_doubles_nothing(shared::rabbit_url(), body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_under_load_on_redis() -> Tested {
    a_stop_under_load_loses_and_doubles_nothing(shared::redis_url(), fields).await
}

async fn failures_and_dead_letters_are_events(url: &str) -> Tested {
    let (broker, queue) = (steadfast::connect(url).await?, unique("jobs"));
    broker.declare(&Source::queue(&*queue)).await?;
    let bodies = [r#"{"id":"a","fail":1}"#, r#"{"id":7,"key":3}"#, r#"{"key":"without an id"}"#];
    publish(&*broker, &queue, bodies.into_iter().map(Payload::from)).await?;
    let mut worker = Worker::start(url, &queue);
    worker.until("done", 2);
    worker.until("dead", 1);
    let events = worker.stop();
    assert_eq!(count(&events, "fail"), BTreeMap::from([(r#""a""#.to_owned(), 1)]));
    assert_eq!(count(&events, "start"), BTreeMap::from([(r#""a""#.to_owned(), 2), ("7".to_owned(), 1)]));
    assert_eq!(count(&events, "dead").len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_and_dead_letters_are_events_on_rabbitmq() -> Tested {
    failures_and_dead_letters_are_events(shared::rabbit_url()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_and_dead_letters_are_events_on_redis() -> Tested {
    failures_and_dead_letters_are_events(shared::redis_url()).await
}

#[test]
fn settings_that_are_missing_or_wrong_are_named() {
    let run = |name: &str, value: &str| {
        let mut command = Command::new(example("worker"));
        command.env("SUT_URL", "amqp://127.0.0.1:1").env("SUT_QUEUE", "q").env("SUT_OUT", "/dev/null");
        let output = command.env(name, value).output().expect("starts");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(run("SUT_PREFETCH", "many").contains("SUT_PREFETCH is `many`"));
    assert!(run("SUT_OUT", "/no/such/folder/out").contains("/no/such/folder/out"));
    assert!(run("SUT_URL", "kafka://localhost").contains("kafka"));
}
