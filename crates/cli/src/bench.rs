//! `bench`: how fast this way to this broker is, with a handler that does nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use steadfast::{
    Consumer, Context, Destination, Message, Outgoing, Publisher, Source, Supervisor, handler_fn,
};
use tokio::sync::Notify;

use crate::args::Bench;
use crate::output::{self, Ticker};
use crate::{Exit, Outcome, Session};

/// Nothing handled for so long is a failure.
const STALLED: Duration = Duration::from_secs(60);

#[derive(Deserialize, Serialize)]
struct Load {
    n: u32,
    filler: String,
}

impl Message for Load {
    const NAME: &'static str = "steadfast.bench";
}

pub(crate) async fn run(session: &Session, bench: Bench) -> Outcome {
    let name = format!("steadfast-bench-{}", uuid::Uuid::now_v7().simple());
    let Bench { messages, size, concurrency, .. } = bench;
    let what = format!("publish and consume {messages} messages of {size} bytes on `{name}`, and delete it");
    if bench.dry_run {
        output::would(session.json, &what, &json!({ "messages": messages, "size": size, "place": name }))?;
        return Ok(Exit::Done);
    }
    output::note(&format!("on `{name}`, which is deleted at the end"));
    let measured = measure(session, &bench, &name).await;
    for place in [name.clone(), format!("{name}.dead")] {
        session.operator.delete(&Source::queue(place)).await?;
    }
    let (published, consumed) = measured?;
    let rate = |took: Duration| f64::from(messages) / took.as_secs_f64();
    let server = session.broker.capabilities().server;
    if session.json {
        output::json(&json!({
            "server": server,
            "place": name,
            "messages": messages,
            "size": size,
            "window": bench.window,
            "concurrency": concurrency,
            "publish_seconds": published.as_secs_f64(),
            "publish_per_second": rate(published),
            "consume_seconds": consumed.as_secs_f64(),
            "consume_per_second": rate(consumed),
        }))?;
    } else {
        let row = |what: &str, took: Duration| {
            vec![
                what.to_owned(),
                messages.to_string(),
                format!("{:.2}", took.as_secs_f64()),
                format!("{:.0}", rate(took)),
            ]
        };
        output::line(&format!("{server}, bodies of {size} bytes"))?;
        output::table(
            &["", "MESSAGES", "SECONDS", "PER SECOND"],
            &[row("publish, confirmed", published), row("consume, acknowledged", consumed)],
        )?;
    }
    Ok(Exit::Done)
}

/// How long publishing took, and consuming.
async fn measure(
    session: &Session,
    bench: &Bench,
    name: &str,
) -> Result<(Duration, Duration), Box<dyn std::error::Error + Send + Sync>> {
    let source = Source::queue(name);
    session.broker.declare(&source).await?;
    let start = Instant::now();
    publish(session, bench, name).await?;
    let published = start.elapsed();
    let start = Instant::now();
    let (handled, done) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
    let factory = {
        let (handled, done, messages) = (Arc::clone(&handled), Arc::clone(&done), bench.messages);
        move || {
            let (handled, done) = (Arc::clone(&handled), Arc::clone(&done));
            handler_fn(move |_: Load, _: Context| {
                if handled.fetch_add(1, Ordering::Relaxed) + 1 == messages {
                    done.notify_one();
                }
                std::future::ready(Ok(()))
            })
        }
    };
    let consumer = Consumer::new("bench", source)
        .handler(factory)
        .concurrency(usize::try_from(bench.concurrency).unwrap_or(usize::MAX));
    // a tree closes its broker, and this one is needed afterwards
    let broker = steadfast::connect(&session.url).await?;
    let tree = Supervisor::new("steadfast").consumer(consumer).start(broker).await?;
    let waited = until_done(&handled, &done, bench.messages).await;
    // what was handled is acknowledged with the end of the drain
    tree.drain().await?;
    waited?;
    Ok((published, start.elapsed()))
}

async fn until_done(
    handled: &AtomicU32,
    done: &Notify,
    messages: u32,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (mut ticker, mut moved, mut before) = (Ticker::new(), Instant::now(), 0);
    while tokio::time::timeout(Duration::from_millis(500), done.notified()).await.is_err() {
        let now = handled.load(Ordering::Relaxed);
        ticker.tell(&format!("{now} of {messages} consumed"));
        if now != before {
            (before, moved) = (now, Instant::now());
        } else if moved.elapsed() > STALLED {
            return Err(format!("{now} of {messages} were consumed, and then none for {STALLED:?}").into());
        }
    }
    Ok(())
}

async fn publish(
    session: &Session,
    bench: &Bench,
    name: &str,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let publisher = session.broker.publisher().await?;
    let numbers = Arc::new(AtomicU32::new(0));
    let filler = "x".repeat(usize::try_from(bench.size.saturating_sub(24)).unwrap_or_default());
    let mut lanes = tokio::task::JoinSet::new();
    for _ in 0..bench.window.min(bench.messages) {
        let (publisher, numbers, messages) = (Arc::clone(&publisher), Arc::clone(&numbers), bench.messages);
        let (to, filler) = (Destination::queue(name), filler.clone());
        lanes.spawn(async move { publish_lane(&*publisher, &numbers, messages, &to, &filler).await });
    }
    while let Some(ended) = lanes.join_next().await {
        ended??;
    }
    Ok(())
}

/// Publishes the next number as soon as the last is safe.
async fn publish_lane(
    publisher: &dyn Publisher,
    numbers: &AtomicU32,
    messages: u32,
    to: &Destination,
    filler: &str,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    loop {
        let n = numbers.fetch_add(1, Ordering::Relaxed);
        if n >= messages {
            return Ok(());
        }
        let body = Bytes::from(serde_json::to_vec(&Load { n, filler: filler.to_owned() })?);
        let mut message = Outgoing::new(to, body);
        message.message_type = Some(Load::NAME.to_owned());
        publisher.send(message).await?;
    }
}
