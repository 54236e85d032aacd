//! Consumers in processes of their own, to be killed: this test program again, told by its environment what to be.

use std::env;
use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::process::{self, Child, Command, Stdio};
use std::time::Duration;
use std::{io, thread};

use redis::{Value, cmd, pipe};
use serde::{Deserialize, Serialize};
use steadfast::prelude::*;
use steadfast_core::{Payload, Subscribe};
use steadfast_streams::{Group, Stream};

use crate::rebalance;
use crate::support::{AsyncClient, DEADLINE};

const URL: &str = "STEADFAST_TEST_CHILD_URL";
const STREAM: &str = "STEADFAST_TEST_CHILD_STREAM";

/// The group of both kinds of children.
pub(crate) fn group(stream: &str) -> Group {
    Stream::new(stream).group("billing").min_idle(MIN_IDLE).reap_after(2 * MIN_IDLE)
}

pub(crate) const MIN_IDLE: Duration = Duration::from_secs(1);

/// Where the children count what they handled: a hash, by body.
pub(crate) fn ledger(stream: &str) -> String {
    format!("{stream}.ledger")
}

/// A child that is killed when this is dropped.
pub(crate) struct Process(Child);

impl Process {
    /// Runs one of the tests below as a child.
    pub(crate) fn start(which: &str, url: &str, stream: &str) -> Self {
        Self::run(Command::new(env::current_exe().expect("a path")), which, url, stream)
    }

    /// The same with a clock that is off; none where this machine cannot do that.
    pub(crate) fn start_skewed(which: &str, url: &str, stream: &str, offset: &str) -> Option<Self> {
        Command::new("faketime").arg("--version").output().ok()?;
        let mut command = Command::new("faketime");
        // timers run as ever: only what time it is differs
        command.args(["-m", "--exclude-monotonic", "-f", offset]);
        command.arg(env::current_exe().expect("a path"));
        Some(Self::run(command, which, url, stream))
    }

    fn run(mut command: Command, which: &str, url: &str, stream: &str) -> Self {
        command.args(["--exact", &format!("child::{which}"), "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(URL, url).env(STREAM, stream).env("RUST_BACKTRACE", "0");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("starts"))
    }

    /// SIGKILL, and waits for its end.
    pub(crate) fn kill9(&mut self) {
        self.0.kill().expect("kills");
        self.0.wait().expect("ends");
    }

    /// Whether it has ended.
    pub(crate) fn ended(&mut self) -> bool {
        self.0.try_wait().expect("its parent asks").is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // one that has ended is neither killed nor waited for again
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What a child is told: the server and the stream; none where somebody runs it who is no parent.
fn told() -> Option<(String, String)> {
    let told = (env::var(URL).ok()?, env::var(STREAM).ok()?);
    // a parent that dies, however, takes its children along
    thread::spawn(|| {
        drop(io::copy(&mut io::stdin(), &mut io::sink()));
        process::exit(0);
    });
    Some(told)
}

/// Takes what it gets, in batches, with a moment's work on each; until it is killed.
#[tokio::test]
#[ignore = "a child of other tests"]
async fn taker() {
    let Some((url, stream)) = told() else { return };
    let broker = steadfast_streams::connect(&url).await.expect("connects");
    let mut raw = AsyncClient::connect(&url, DEADLINE).await;
    let max = NonZeroUsize::new(50).expect("not zero");
    let request = Subscribe {
        source: group(&stream).into(),
        consumer: "taker".into(),
        max_in_flight: max,
        narrow: false,
        dead_letter: Destination::queue(format!("{stream}.dead")),
    };
    let mut subscription = broker.subscribe(request).await.expect("subscribes");
    loop {
        let mut batch = Vec::new();
        poll_fn(|cx| subscription.poll_next(cx, max, &mut batch)).await.expect("delivers");
        let mut count = pipe();
        for delivery in &batch {
            let Payload::Body(body) = &delivery.incoming().payload else { panic!("flat fields") };
            count.cmd("HINCRBY").arg(ledger(&stream)).arg(&body[..]).arg(1).ignore();
        }
        count.query_async::<()>(&mut raw).await.expect("counted");
        tokio::time::sleep(Duration::from_millis(10)).await;
        for delivery in batch {
            delivery.ack();
        }
        subscription.settler().flush();
    }
}

/// Owns its share of a partitioned stream.
#[tokio::test]
#[ignore = "a child of other tests"]
async fn member() {
    let Some((url, stream)) = told() else { return };
    let (supervisor, broker) = rebalance::member(&url, &stream, rebalance::SHORT).await;
    supervisor.run_until_signal(broker).await.expect("runs");
}

/// Reads nothing, and moves what is due.
#[tokio::test]
#[ignore = "a child of other tests"]
async fn mover() {
    let Some((url, stream)) = told() else { return };
    let broker = steadfast_streams::connect(&url).await.expect("connects");
    let request = Subscribe {
        source: Stream::new(&*stream).group("movers").into(),
        consumer: "mover".into(),
        max_in_flight: NonZeroUsize::MIN,
        narrow: false,
        dead_letter: Destination::queue(format!("{stream}.dead")),
    };
    let _subscription = broker.subscribe(request).await.expect("subscribes");
    std::future::pending::<()>().await;
}

#[derive(Serialize, Deserialize, Message)]
#[message(name = "work")]
struct Work {
    id: u32,
    kills: bool,
}

/// A supervised consumer, one of whose messages aborts the process.
#[tokio::test]
#[ignore = "a child of other tests"]
async fn victim() {
    let Some((url, stream)) = told() else { return };
    let broker = steadfast::connect(&url).await.expect("connects");
    let raw = AsyncClient::connect(&url, DEADLINE).await;
    let counted = ledger(&stream);
    let handle = move || {
        let (raw, counted) = (raw.clone(), counted.clone());
        handler_fn(move |work: Work, _: Context| {
            let (mut raw, counted) = (raw.clone(), counted.clone());
            async move {
                if work.kills {
                    process::abort();
                }
                cmd("HINCRBY").arg(counted).arg(work.id).arg(1).query_async::<Value>(&mut raw).await?;
                Ok(())
            }
        })
    };
    let consumer = Consumer::new("victim", group(&stream)).handler(handle).concurrency(4).crash_limit(3);
    Supervisor::new("child").consumer(consumer).run_until_signal(broker).await.expect("runs");
}

/// A message for [`victim`].
pub(crate) fn work(id: u32, kills: bool) -> String {
    serde_json::to_string(&Work { id, kills }).expect("text")
}
