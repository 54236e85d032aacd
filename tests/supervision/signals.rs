//! SIGTERM under load, for a process that does nothing but run a tree on a real broker.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use steadfast::{Consumer, Context, Failure, Handle, Handler, Message, Outgoing, Source, Supervisor};
use steadfast_testbed::{shared, unique};
use steadfast_tests::{Running, terminate};

use crate::server::blocking;

/// What the process may take to stop: its shutdown timeout, and a second for the broker.
const SHUTDOWN: Duration = Duration::from_secs(2);
const DEADLINE: Duration = Duration::from_secs(3);
const CONCURRENCY: usize = 4;
const PREFETCH: usize = 16;

#[derive(serde::Serialize, serde::Deserialize, Message)]
#[message(name = "chore")]
struct Chore {
    id: u64,
}

#[derive(Handler)]
#[handler(Chore)]
struct Chores {
    /// None: it never ends.
    takes: Option<Duration>,
}

impl Handle<Chore> for Chores {
    async fn handle(&self, chore: Chore, _: &Context) -> Result<(), Failure> {
        println!("begin {}", chore.id);
        match self.takes {
            Some(takes) => tokio::time::sleep(takes).await,
            None => std::future::pending().await,
        }
        println!("done {}", chore.id);
        Ok(())
    }
}

/// The worker, when the tests below start it.
#[test]
#[ignore = "run by the tests below in a process of its own"]
fn work() {
    // the harness has written half a line
    println!();
    let [url, queue, takes] =
        ["TEST_URL", "TEST_QUEUE", "TEST_TAKES"].map(|name| std::env::var(name).expect(name));
    tracing_subscriber::fmt().with_writer(std::io::stdout).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let ended = runtime.expect("builds").block_on(async {
        let takes = takes.parse().ok().map(Duration::from_millis);
        Supervisor::new("worker")
            .shutdown_timeout(SHUTDOWN)
            .consumer(
                Consumer::new("chores", Source::queue(queue).group("workers"))
                    .handler(move || Chores { takes })
                    .concurrency(CONCURRENCY)
                    .max_in_flight(PREFETCH),
            )
            .run_until_signal(steadfast::connect(&url).await.expect("connects"))
            .await
    });
    std::process::exit(i32::from(ended.is_err()));
}

/// A process of [`work`], and what it said.
struct Process {
    running: Running,
    lines: Vec<String>,
}

impl Process {
    fn start(url: &str, queue: &str, takes: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["--exact", "signals::work", "--ignored", "--nocapture"]);
        command.env("TEST_URL", url).env("TEST_QUEUE", queue).env("TEST_TAKES", takes);
        Self { running: Running::start(&mut command), lines: Vec::new() }
    }

    fn until(&mut self, word: &str, count: usize) {
        while ids(&self.lines, word).values().sum::<usize>() < count {
            self.lines.push(self.running.line().expect("it goes on"));
        }
    }

    /// SIGTERM: it ends with 0, in time. What it said.
    fn stop(mut self) -> Vec<String> {
        let asked = Instant::now();
        terminate(self.running.pid());
        self.lines.extend(std::iter::from_fn(|| self.running.line()));
        assert_eq!(self.running.wait().code(), Some(0), "{:#?}", self.lines);
        assert!(asked.elapsed() <= DEADLINE, "{:?}", asked.elapsed());
        self.lines
    }
}

/// How often each message was named after this word.
fn ids(lines: &[String], word: &str) -> BTreeMap<u64, usize> {
    let mut ids = BTreeMap::new();
    let named = lines.iter().filter_map(|line| line.strip_prefix(word)?.trim().parse().ok());
    named.for_each(|id| *ids.entry(id).or_default() += 1);
    ids
}

async fn queue_of(url: &str, chores: u64) -> String {
    let broker = steadfast::connect(url).await.expect("connects");
    let queue = unique("chores");
    broker.declare(&Source::queue(&*queue).group("workers")).await.expect("declares");
    let publisher = broker.publisher().await.expect("publishes");
    let sent = (1..=chores).map(|id| {
        let body = serde_json::to_vec(&Chore { id }).expect("encodes");
        let mut message = Outgoing::new(&*queue, body);
        (message.message_type, message.message_id) = (Some("chore".to_owned()), format!("chore-{id}"));
        publisher.send(message)
    });
    for sent in futures_util::future::join_all(sent).await {
        sent.expect("published");
    }
    broker.close().await;
    queue
}

async fn handlers_that_fit_the_deadline_are_finished(url: &'static str) {
    const CHORES: u64 = 2_000;
    let queue = queue_of(url, CHORES).await;
    let lines = blocking(move || {
        let mut first = Process::start(url, &queue, "1");
        first.until("done", 300);
        let mut lines = first.stop();
        let done = ids(&lines, "done").len();
        assert!(done < 2_000, "it was not under load");
        let mut second = Process::start(url, &queue, "1");
        second.until("done", 2_000 - done);
        lines.extend(second.stop());
        lines
    })
    .await;
    for word in ["begin", "done"] {
        let ids = ids(&lines, word);
        assert!(ids.keys().copied().eq(1..=CHORES), "{word}: {} of {CHORES}", ids.len());
        assert!(ids.values().all(|times| *times == 1), "{word}: redelivered: {ids:?}");
    }
}

async fn handlers_that_overrun_it_are_named_and_given_back(url: &'static str) {
    let queue = queue_of(url, 100).await;
    let lines = blocking(move || {
        let mut first = Process::start(url, &queue, "for ever");
        first.until("begin", CONCURRENCY);
        let mut lines = first.stop();
        let held: Vec<u64> = ids(&lines, "begin").into_keys().collect();
        let named = |id: &u64| {
            let id = format!("id=chore-{id} ");
            lines.iter().any(|line| line.contains("message.abandoned") && line.contains(&id))
        };
        assert_eq!(held.len(), CONCURRENCY);
        assert!(held.iter().all(named), "{held:?} are not all named in {lines:#?}");
        let mut second = Process::start(url, &queue, "0");
        second.until("done", 100);
        lines.extend(second.stop());
        lines
    })
    .await;
    let (begun, done) = (ids(&lines, "begin"), ids(&lines, "done"));
    assert!(done.len() == 100 && done.values().all(|times| *times == 1), "{done:?}");
    let redelivered = begun.values().filter(|times| **times > 1).count();
    assert!(redelivered <= CONCURRENCY, "{redelivered} of {CONCURRENCY} in flight");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_on_rabbitmq() {
    handlers_that_fit_the_deadline_are_finished(blocking(shared::rabbit_url).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_on_redis() {
    handlers_that_fit_the_deadline_are_finished(blocking(shared::redis_url).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_with_handlers_that_never_end_on_rabbitmq() {
    handlers_that_overrun_it_are_named_and_given_back(blocking(shared::rabbit_url).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_with_handlers_that_never_end_on_redis() {
    handlers_that_overrun_it_are_named_and_given_back(blocking(shared::redis_url).await).await;
}
