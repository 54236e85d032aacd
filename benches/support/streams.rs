//! Redis Streams.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, Value, cmd, pipe};
use steadfast::{Envelope, PublisherExt, Source};

use crate::contest::{Contest, Side};
use crate::meter::{Meter, Spent};
use crate::order::Order;
use crate::{BoxError, Filler, counting, crowd};

const GROUP: &str = "benches";
const PUBLISHERS: u64 = 64;
/// Entries written together when a stream is made ready.
const CHUNK: u64 = 1_000;

/// Consuming in a group.
///
/// The bare optimum reads 100 at once, and acknowledges them in the round trip of the next read; the usual loop reads 10
/// and awaits the acknowledgement of each.
#[derive(Debug)]
pub struct ConsumeRedis {
    /// Where the server is.
    pub url: String,
    /// Who published what is consumed.
    pub filler: Filler,
}

/// Publishing, 64 at once on one connection.
#[derive(Debug)]
pub struct PublishRedis {
    /// Where the server is.
    pub url: String,
}

impl Contest for ConsumeRedis {
    fn name(&self) -> &'static str {
        "consume-redis"
    }

    fn messages(&self) -> u64 {
        160_000
    }

    fn usual_divisor(&self) -> Option<u64> {
        Some(20)
    }

    fn run(&self, side: Side, messages: u64) -> BoxFuture<'_, Result<Spent, BoxError>> {
        Box::pin(async move {
            let stream = "benches:consume";
            let mut admin = open(&self.url).await?;
            clear(&mut admin, stream).await?;
            match self.filler {
                Filler::Bare => fill(&mut admin, stream, messages).await?,
                Filler::Steadfast => drop(publish_ours(&self.url, stream, messages).await?),
            }
            cmd("XGROUP").arg("CREATE").arg(stream).arg(GROUP).arg("0").exec_async(&mut admin).await?;
            let spent = match side {
                Side::Ours => {
                    let broker = steadfast::connect(&self.url).await?;
                    counting::consume(broker, Source::queue(stream).group(GROUP), messages, None).await?
                }
                Side::Bare => tokio::spawn(take(open(&self.url).await?, stream, messages)).await??,
                Side::Usual => tokio::spawn(usual(open(&self.url).await?, stream, messages)).await??,
            };
            settled(&mut admin, stream, messages).await?;
            clear(&mut admin, stream).await?;
            Ok(spent)
        })
    }
}

impl Contest for PublishRedis {
    fn name(&self) -> &'static str {
        "publish-redis"
    }

    fn messages(&self) -> u64 {
        160_000
    }

    fn run(&self, side: Side, messages: u64) -> BoxFuture<'_, Result<Spent, BoxError>> {
        Box::pin(async move {
            let stream = "benches:publish";
            let mut admin = open(&self.url).await?;
            clear(&mut admin, stream).await?;
            let spent = match side {
                Side::Ours => publish_ours(&self.url, stream, messages).await?,
                Side::Bare | Side::Usual => publish_bare(&self.url, stream, messages).await?,
            };
            let found: u64 = cmd("XLEN").arg(stream).query_async(&mut admin).await?;
            clear(&mut admin, stream).await?;
            if found == messages {
                return Ok(spent);
            }
            Err(format!("stream `{stream}` holds {found} entries, not {messages}").into())
        })
    }
}

pub(crate) async fn open(url: &str) -> Result<MultiplexedConnection, BoxError> {
    Ok(Client::open(url)?.get_multiplexed_async_connection().await?)
}

pub(crate) async fn clear(admin: &mut MultiplexedConnection, stream: &str) -> Result<(), BoxError> {
    let (dead, delay) = (format!("{stream}.dead"), format!("{{{stream}}}:delay"));
    cmd("DEL").arg(stream).arg(dead).arg(delay).exec_async(admin).await?;
    Ok(())
}

/// Fails where the group has not read and settled all of it: then a side did not do the work.
async fn settled(admin: &mut MultiplexedConnection, stream: &str, messages: u64) -> Result<(), BoxError> {
    let (pending, _, _, _): (u64, Value, Value, Value) =
        cmd("XPENDING").arg(stream).arg(GROUP).query_async(admin).await?;
    let entries: u64 = cmd("XLEN").arg(stream).query_async(admin).await?;
    if (pending, entries) == (0, messages) {
        return Ok(());
    }
    Err(format!("stream `{stream}` has {entries} entries, {pending} of them pending, after {messages}")
        .into())
}

async fn fill(admin: &mut MultiplexedConnection, stream: &str, messages: u64) -> Result<(), BoxError> {
    for first in (0..messages).step_by(usize::try_from(CHUNK)?) {
        let mut chunk = pipe();
        for number in first..messages.min(first + CHUNK) {
            chunk.cmd("XADD").arg(stream).arg("*").arg("body").arg(Order::new(number).encode()?).ignore();
        }
        chunk.exec_async(admin).await?;
    }
    Ok(())
}

/// COUNT 100, each batch acknowledged in the round trip of the next read.
async fn take(
    mut connection: MultiplexedConnection,
    stream: &'static str,
    messages: u64,
) -> Result<Spent, BoxError> {
    let (meter, spent) = Meter::new(messages);
    let mut ids: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut trip = pipe();
        if !ids.is_empty() {
            trip.cmd("XACK").arg(stream).arg(GROUP).arg(&ids).ignore();
        }
        trip.add_command(read(100, stream));
        let (answer,): (Value,) = trip.query_async(&mut connection).await?;
        ids.clear();
        let mut last = false;
        for (id, body) in entries(answer)? {
            let order: Order = serde_json::from_slice(&body)?;
            std::hint::black_box(&order);
            last = meter.count();
            ids.push(id);
        }
        if last {
            break;
        }
    }
    cmd("XACK").arg(stream).arg(GROUP).arg(&ids).exec_async(&mut connection).await?;
    Ok(spent.await?)
}

/// COUNT 10, each acknowledgement awaited.
async fn usual(
    mut connection: MultiplexedConnection,
    stream: &'static str,
    messages: u64,
) -> Result<Spent, BoxError> {
    let (meter, spent) = Meter::new(messages);
    loop {
        let answer: Value = read(10, stream).query_async(&mut connection).await?;
        let mut last = false;
        for (id, body) in entries(answer)? {
            let order: Order = serde_json::from_slice(&body)?;
            std::hint::black_box(&order);
            last = meter.count();
            cmd("XACK").arg(stream).arg(GROUP).arg(id).exec_async(&mut connection).await?;
        }
        if last {
            return Ok(spent.await?);
        }
    }
}

fn read(count: usize, stream: &str) -> Cmd {
    let mut read = cmd("XREADGROUP");
    read.arg("GROUP").arg(GROUP).arg("bare").arg("COUNT").arg(count);
    read.arg("BLOCK").arg(1_000).arg("STREAMS").arg(stream).arg(">");
    read
}

/// An ID and a body.
type Entry = (Vec<u8>, Vec<u8>);

/// IDs and bodies, taken out of the answer without a detour through the client's own maps.
fn entries(answer: Value) -> Result<Vec<Entry>, BoxError> {
    let Value::Array(mut streams) = answer else { return Err("the stream ran dry".into()) };
    let Some(Value::Array(mut stream)) = streams.pop() else { return Err("no stream".into()) };
    let Some(Value::Array(entries)) = stream.pop() else { return Err("no entries".into()) };
    entries.into_iter().map(entry).collect()
}

fn entry(entry: Value) -> Result<Entry, BoxError> {
    let Value::Array(parts) = entry else { return Err("an entry of another shape".into()) };
    let mut parts = parts.into_iter();
    let (Some(Value::BulkString(id)), Some(Value::Array(fields))) = (parts.next(), parts.next()) else {
        return Err("an entry of another shape".into());
    };
    let mut fields = fields.into_iter();
    while let (Some(Value::BulkString(name)), Some(Value::BulkString(value))) = (fields.next(), fields.next())
    {
        if name == b"body" {
            return Ok((id, value));
        }
    }
    Err("an entry without a body".into())
}

async fn publish_ours(url: &str, stream: &'static str, messages: u64) -> Result<Spent, BoxError> {
    let broker = steadfast::connect(url).await?;
    let publisher = broker.publisher().await?;
    let spent = crowd::publish(PUBLISHERS, messages, || {
        let publisher = Arc::clone(&publisher);
        move |order: Order| {
            let publisher = Arc::clone(&publisher);
            async move { Ok(publisher.publish(Envelope::new(&order).to(stream)).await?) }
        }
    })
    .await?;
    broker.close().await;
    Ok(spent)
}

async fn publish_bare(url: &str, stream: &'static str, messages: u64) -> Result<Spent, BoxError> {
    let connection = open(url).await?;
    crowd::publish(PUBLISHERS, messages, || {
        let connection = connection.clone();
        move |order: Order| {
            let mut connection = connection.clone();
            async move {
                let body = order.encode()?;
                cmd("XADD").arg(stream).arg("*").arg("body").arg(body).exec_async(&mut connection).await?;
                Ok(())
            }
        }
    })
    .await
}
