//! A worker that says what it does, to be watched from outside while its broker, its network or itself is taken away.
//!
//! | variable | meaning |
//! |---|---|
//! | `SUT_URL` | `amqp://…` or `redis://…`; a broker that is away is waited for, at the start as later |
//! | `SUT_QUEUE` | a durable queue, taken as it is, or a stream |
//! | `SUT_GROUP` | Redis: the consumer group, default `steadfast` |
//! | `SUT_CONSUMER` | Redis: the name in the group, stable over restarts; default `worker-<pid>` |
//! | `SUT_PREFETCH` | messages taken and not yet settled, all of them handled at once; default 16 |
//! | `SUT_WORK_MS` | how long each message takes, in milliseconds; default 0 |
//! | `SUT_OUT` | the file that events are appended to, each by one write |
//!
//! A message is `{"id": …, "key": …}`, as a JSON body or as the flat fields of a stream entry; `"fail": n` makes its first
//! `n` attempts fail. An event is a line `{"id", "ev", "ts", "pid", "redelivered"}`, `ts` in milliseconds since 1970:
//!
//! | `ev` | when |
//! |---|---|
//! | `start` | the handler begins |
//! | `done` | it is finished; the message is acknowledged after this |
//! | `fail` | the attempt failed; the message is retried, or set aside |
//! | `dead` | the message is safe in the dead letters, `SUT_QUEUE` and `.dead`. What does not decode has no `id` of ours, so here it is the message's, or where it stood; `redelivered` is null |
//!
//! On SIGTERM it takes no more, finishes, settles and exits 0 within 10 s; what is not finished after 8 s is given back.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use steadfast::prelude::*;
use steadfast::streams::Stream;
use steadfast_examples::diagnostics;
use tracing::field::{Field, Visit};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context as LayerContext, Layer};

#[derive(Serialize, Deserialize, Message)]
#[message(name = "job")]
struct Job {
    /// A number or a text; flat fields are all text.
    id: Value,
    key: Option<Value>,
    #[serde(default)]
    fail: u32,
}

#[derive(Handler)]
#[handler(Job)]
struct Worker {
    events: Events,
    work: Duration,
}

impl Handle<Job> for Worker {
    async fn handle(&self, job: Job, cx: &Context) -> Result<(), Failure> {
        self.events.append(&job.id, "start", Some(cx.redelivered()))?;
        tokio::time::sleep(self.work).await;
        if cx.attempt() <= job.fail {
            self.events.append(&job.id, "fail", Some(cx.redelivered()))?;
            return Err(Failure::retry("the job says so"));
        }
        self.events.append(&job.id, "done", Some(cx.redelivered()))?;
        Ok(())
    }
}

async fn run(settings: Settings) -> steadfast::Result<()> {
    let Settings { source, in_flight, work, events, url } = settings;
    let broker = steadfast::connect_lazy(&url)?;
    Supervisor::new("worker")
        .consumer(
            Consumer::new("jobs", source)
                .handler(move || Worker { events: events.clone(), work })
                .concurrency(in_flight)
                .max_in_flight(in_flight)
                .retry(Retry::exponential(200.millis()..5.secs()).max_attempts(5)),
        )
        .run_until_signal(broker)
        .await?;
    Ok(())
}

struct Settings {
    url: String,
    source: Source,
    in_flight: usize,
    work: Duration,
    events: Events,
}

impl Settings {
    fn from_env() -> steadfast::Result<Self> {
        let (url, queue): (String, String) = (required("SUT_URL")?, required("SUT_QUEUE")?);
        let source = if url.starts_with("redis") {
            let consumer = optional("SUT_CONSUMER", format!("worker-{}", std::process::id()))?;
            Stream::new(queue)
                .group(optional("SUT_GROUP", "steadfast".to_owned())?)
                .consumer_name(consumer)
                // what a worker that was killed held is another's after this long
                .min_idle(10.secs())
                .into()
        } else {
            Source::queue(queue)
        };
        let out: String = required("SUT_OUT")?;
        Ok(Self {
            source,
            in_flight: optional("SUT_PREFETCH", 16)?,
            work: optional("SUT_WORK_MS", 0)?.millis(),
            events: Events::open(Path::new(&out))
                .map_err(|error| format!("open SUT_OUT `{out}`: {error}"))?,
            url,
        })
    }
}

fn required<T: FromStr<Err: fmt::Display>>(name: &str) -> Result<T, String> {
    let text = std::env::var(name).map_err(|error| format!("{name}: {error}"))?;
    text.parse().map_err(|error| format!("{name} is `{text}`: {error}"))
}

fn optional<T: FromStr<Err: fmt::Display>>(name: &str, default: T) -> Result<T, String> {
    if std::env::var_os(name).is_none_or(|value| value.is_empty()) { Ok(default) } else { required(name) }
}

/// The file of events. Each is one write to a file opened for appending, so lines of several workers never mix.
#[derive(Clone)]
struct Events(Arc<File>);

impl Events {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(File::options().append(true).create(true).open(path)?)))
    }

    fn append(&self, id: &Value, event: &str, redelivered: Option<bool>) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let ts = u64::try_from(now).unwrap_or(u64::MAX);
        let pid = std::process::id();
        let line = json!({ "id": id, "ev": event, "ts": ts, "pid": pid, "redelivered": redelivered });
        (&*self.0).write_all(format!("{line}\n").as_bytes())
    }
}

/// A handler cannot know that its message is safe in the dead letters; the event `message.dead` says it.
impl<S: tracing::Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &tracing::Event<'_>, _: LayerContext<'_, S>) {
        let mut dead = Dead::default();
        event.record(&mut dead);
        if dead.event == "message.dead" {
            // an event that cannot be written must not take the message down with it
            drop(self.append(&dead.id.into(), "dead", None));
        }
    }
}

#[derive(Default)]
struct Dead {
    event: String,
    id: String,
}

impl Visit for Dead {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.event = format!("{value:?}"),
            "id" => self.id = format!("{value:?}"),
            _ => {}
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(error) => return diagnostics::failed(&*error),
    };
    let steadfast = Targets::new().with_target("steadfast", LevelFilter::WARN);
    diagnostics::begin_with(settings.events.clone().with_filter(steadfast));
    match run(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => diagnostics::failed(&*error),
    }
}
