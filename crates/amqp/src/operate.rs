//! The operator's side of RabbitMQ: looking at a queue, over a connection of its own.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use steadfast_core::{
    ConnectError, Destination, Follow, Inspection, OperateError, OperateErrorKind, Operator, Source, Walk,
};

use crate::connection::{Lane, Live};
use crate::error::{Sort, Trouble};
use crate::link::ServerName;
use crate::options::Options;
use crate::pipe::Pipe;
use crate::runtime;
use crate::walk::AmqpWalk;

/// Letters forwarded at once.
const WINDOW: usize = 256;

/// How often to look whether more of what was given back is there, and how long between.
pub(crate) const RETURNS: u32 = 100;
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// Looks on over a connection of its own, so that consumers are not disturbed.
#[derive(Debug)]
pub(crate) struct AmqpOperator {
    pub(crate) looking: Lane,
    publishing: Arc<Lane>,
}

impl AmqpOperator {
    pub(crate) fn new(options: &Arc<Options>, server: &ServerName, publishing: &Arc<Lane>) -> Self {
        let looking = Lane::new(Arc::clone(options), "operate", Arc::clone(server));
        Self { looking, publishing: Arc::clone(publishing) }
    }

    /// Messages that are ready, and consumers.
    async fn counts(&self, queue: &str) -> Result<(u64, u64), OperateError> {
        let (short, what) = (short(queue)?, || format!("look at queue `{queue}`"));
        let (live, channel) = self.looking.channel().await.map_err(|trouble| operating(trouble, what()))?;
        let counts =
            counts(&live, &channel, short.as_str()).await.map_err(|trouble| operating(trouble, what()))?;
        close(&live, &channel).await;
        Ok(counts)
    }

    async fn start(&self, queue: &str) -> Result<Arc<dyn Walk>, OperateError> {
        let (short, what) = (short(queue)?, || format!("walk through queue `{queue}`"));
        let (live, channel) = self.looking.channel().await.map_err(|trouble| operating(trouble, what()))?;
        let found = counts(&live, &channel, short.as_str()).await;
        let (total, _) = found.map_err(|trouble| operating(trouble, what()))?;
        let runtime = runtime::handle().map_err(|error| connecting(error, what()))?;
        let pipe = Pipe::start(Arc::clone(&self.publishing), WINDOW, runtime);
        Ok(Arc::new(AmqpWalk::new(live, channel, short, total, pipe)))
    }
}

impl Operator for AmqpOperator {
    /// `queue.declare`, passive: messages ready, and consumers. What is unsettled takes the management plugin.
    fn inspect<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, Result<Inspection, OperateError>> {
        async {
            let (ready, consumers) = self.counts(source.name()).await?;
            let mut inspection = Inspection::new("queue", source.name());
            inspection.ready = Some(ready);
            inspection.consumers = Some(consumers);
            Ok(inspection)
        }
        .boxed()
    }

    fn walk<'a>(&'a self, place: &'a str) -> BoxFuture<'a, Result<Arc<dyn Walk>, OperateError>> {
        self.start(place).boxed()
    }

    fn follow<'a>(&'a self, place: &'a Destination) -> BoxFuture<'a, Result<Arc<dyn Follow>, OperateError>> {
        self.look_on(place).boxed()
    }

    fn delete<'a>(&'a self, place: &'a Source) -> BoxFuture<'a, Result<(), OperateError>> {
        self.remove(place).boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.looking.close().boxed()
    }
}

fn short(queue: &str) -> Result<ShortString, OperateError> {
    ShortString::try_new(queue).map_err(|_| {
        let what = format!("look at queue `{queue}`: names in AMQP have at most 255 bytes");
        OperateError::new(OperateErrorKind::NotFound, what)
    })
}

/// `queue.declare`, passive: messages that are ready, and consumers.
pub(crate) async fn counts(live: &Live, channel: &Channel, queue: &str) -> Result<(u64, u64), Trouble> {
    let name = ShortString::try_new(queue).unwrap_or_default();
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let found = live.request(channel.queue_declare(name, options, FieldTable::default())).await?;
    Ok((u64::from(found.message_count()), u64::from(found.consumer_count())))
}

/// A channel that did its work goes; if it cannot be closed it went with its connection.
pub(crate) async fn close(live: &Live, channel: &Channel) {
    let _ = live.request(channel.close(200, "done".into())).await;
}

pub(crate) fn operating(trouble: Trouble, what: String) -> OperateError {
    let kind = match trouble.sort() {
        Sort::Away | Sort::Channel => OperateErrorKind::Unreachable,
        Sort::Refused => OperateErrorKind::Refused,
        Sort::NotFound | Sort::Precondition => OperateErrorKind::NotFound,
        Sort::Unsupported => OperateErrorKind::Unsupported,
    };
    match trouble {
        Trouble::Connect(fault) => OperateError::new(kind, what).with_source(ConnectError::from(fault)),
        Trouble::Late(limit) if limit.is_zero() => {
            OperateError::new(kind, format!("{what}: the way to the broker was lost"))
        }
        Trouble::Late(limit) => {
            OperateError::new(kind, format!("{what}: the broker did not answer within {limit:?}"))
        }
        Trouble::Client(error) => OperateError::new(kind, what).with_source(error),
    }
}

fn connecting(error: ConnectError, what: String) -> OperateError {
    OperateError::new(OperateErrorKind::Unreachable, what).with_source(error)
}
