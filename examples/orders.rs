//! Orders through a supervised consumer, on the broker of your choice:
//!
//! ```text
//! cargo run --release --example orders
//! cargo run --release --example orders -- --broker amqp://localhost
//! cargo run --release --example orders -- --broker redis://localhost --json
//! ```
//!
//! It publishes a file of orders, some of which fail once, fail always, make the handler panic or do not decode, and
//! ends with a table of what became of them. Nothing here asks which broker it runs on.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use steadfast::prelude::*;
use steadfast::{Outgoing, PublishError};
use steadfast_examples::{Ledger, Names, Report, Run, broker, diagnostics, input};

#[derive(Serialize, Deserialize, Message)]
#[message(name = "order.placed", key = customer)]
struct OrderPlaced {
    id: u64,
    customer: String,
    cents: u64,
    simulate: Option<Trouble>,
}

#[derive(Serialize, Deserialize, Message)]
#[message(name = "order.cancelled", key = customer)]
struct OrderCancelled {
    id: u64,
    customer: String,
    reason: String,
    simulate: Option<Trouble>,
}

/// Handles both. A panic replaces it by a fresh one, so what must survive that is shared: here the ledger, in a service
/// the database.
#[derive(Handler)]
#[handler(OrderPlaced, OrderCancelled)]
struct Billing {
    ledger: Arc<Ledger>,
}

impl Handle<OrderPlaced> for Billing {
    async fn handle(&self, order: OrderPlaced, cx: &Context) -> Result<(), Failure> {
        happen(order.simulate, cx)?;
        self.ledger.book(cx.message_id(), &order.customer, order.cents);
        Ok(())
    }
}

impl Handle<OrderCancelled> for Billing {
    async fn handle(&self, order: OrderCancelled, cx: &Context) -> Result<(), Failure> {
        happen(order.simulate, cx)?;
        self.ledger.book(cx.message_id(), &order.customer, 0);
        Ok(())
    }
}

const MAX_ATTEMPTS: u32 = 5;

fn shop(names: &Names, ledger: &Arc<Ledger>, orders: usize) -> Supervisor {
    // A handler that panics before it has finished a single message spends restart intensity, and here any attempt of any
    // order may be told to panic. A service keeps the default, which gives up on a handler that can only panic.
    let restarts = u32::try_from(orders).unwrap_or(u32::MAX).saturating_mul(MAX_ATTEMPTS);
    let ledger = Arc::clone(ledger);
    Supervisor::new("shop")
        .strategy(Strategy::OneForOne)
        .intensity(RestartIntensity::new(restarts, 5.minutes()))
        .app_version(env!("CARGO_PKG_VERSION"))
        .consumer(
            Consumer::new("billing", Source::queue(names.queue()))
                .handler(move || Billing { ledger: Arc::clone(&ledger) })
                .concurrency(16)
                .retry(Retry::exponential(50.millis()..500.millis()).max_attempts(MAX_ATTEMPTS))
                .dead_letter(names.dead_letters()),
        )
}

async fn run(options: &Options) -> steadfast::Result<Report> {
    let orders = input::lines(options.input.as_deref())?;
    let names = Names::new(options.queue.as_deref());
    let broker = broker::connect(&options.broker).await?;
    let ledger = Arc::new(Ledger::new(&names));
    let tree = shop(&names, &ledger, orders.len()).start(Arc::clone(&broker)).await?;

    let run = Run::begin(&names, &*broker, &tree, &ledger, orders.len(), options.deadline());
    run.until_ready().await?;
    let publishing = run.in_time("publish the orders", publish_all(&*broker, &names, &ledger, &orders));
    let ((), outcome) = tokio::try_join!(publishing, run.until_accounted_for())?;
    tree.drain().await?;
    Ok(Report::new(&ledger, &outcome, MAX_ATTEMPTS))
}

async fn publish_all(
    broker: &dyn Broker,
    names: &Names,
    ledger: &Ledger,
    orders: &[String],
) -> steadfast::Result<()> {
    let publisher = broker.publisher().await?;
    stream::iter(orders.iter().zip(1..))
        .map(|(order, line)| {
            let (publisher, id) = (&*publisher, names.message_id(line));
            async move {
                broker::patiently(|| publish(publisher, names.queue(), &id, order)).await?;
                ledger.published();
                steadfast::Result::Ok(())
            }
        })
        // confirmations share round trips, so it pays to have many on their way
        .buffer_unordered(500)
        .try_collect()
        .await
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Order {
    #[serde(rename = "order.placed")]
    Placed(OrderPlaced),
    #[serde(rename = "order.cancelled")]
    Cancelled(OrderCancelled),
}

async fn publish(publisher: &dyn Publisher, queue: &str, id: &str, line: &str) -> Result<(), PublishError> {
    match serde_json::from_str(line) {
        Ok(Order::Placed(order)) => publisher.publish(Envelope::new(&order).to(queue).message_id(id)).await,
        Ok(Order::Cancelled(order)) => {
            publisher.publish(Envelope::new(&order).to(queue).message_id(id)).await
        }
        Err(_) => publisher.send(as_it_stands(queue, id, line)).await,
    }
}

/// What a producer with a bug would send: bytes that claim to be an order.
fn as_it_stands(queue: &str, id: &str, line: &str) -> Outgoing {
    #[derive(Deserialize)]
    struct Claim {
        r#type: String,
    }
    let claimed = serde_json::from_str(line).map(|claim: Claim| claim.r#type);
    let mut message = Outgoing::new(queue, line.to_owned());
    message.message_type = Some(claimed.unwrap_or_else(|_| OrderPlaced::NAME.to_owned()));
    message.content_type = Some(Codec::Json.content_type().to_owned());
    id.clone_into(&mut message.message_id);
    message
}

/// What an order does to its handler, so that there is something to see.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Trouble {
    FailOnce,
    FailAlways,
    Panic,
}

#[expect(clippy::panic, reason = "to show what a panic does is what it is for")]
fn happen(trouble: Option<Trouble>, cx: &Context) -> Result<(), Failure> {
    match trouble {
        Some(Trouble::FailOnce) if cx.attempt() == 1 => Err(Failure::retry("simulated: fails once")),
        Some(Trouble::FailAlways) => Err(Failure::retry("simulated: fails always")),
        Some(Trouble::Panic) => panic!("simulated: a bug in the handler"),
        Some(Trouble::FailOnce) | None => Ok(()),
    }
}

/// Publishes orders, handles them under supervision, and accounts for every single one.
#[derive(Parser)]
#[command(name = "orders")]
struct Options {
    /// The broker: `embedded:`, `amqp://user:password@host:5672/vhost` or `redis://host:6379`
    #[arg(long, value_name = "URL", default_value = "embedded:")]
    broker: String,

    /// The orders, one JSON object a line; `-` is stdin [default: the 10,000 of examples/data/orders.ndjson]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,

    /// The queue or stream; its dead letters go to NAME.dead [default: a name that nobody has used before]
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,

    // RabbitMQ that is restarted takes three minutes to look again at retries that it could not route while it started
    /// Seconds after which what is not accounted for is reported as lost
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    deadline: u64,

    /// Prints one JSON object in place of the table
    #[arg(long)]
    json: bool,
}

impl Options {
    fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    diagnostics::begin();
    match run(&options).await.and_then(|report| print(report, options.json)) {
        Ok(report) => diagnostics::verdict(&report),
        Err(error) => diagnostics::failed(&*error),
    }
}

fn print(report: Report, json: bool) -> steadfast::Result<Report> {
    let text = if json { report.json()? } else { report.to_string() };
    writeln!(io::stdout(), "{text}")?;
    Ok(report)
}
