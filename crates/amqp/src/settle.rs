//! How deliveries end: acknowledgements, releases, retries and dead letters of one subscription.
//!
//! Everything goes over the channel that delivered, and over no other: a tag means something else on every channel.
//! Acknowledgements are written under one lock, in the order in which they were worked out, and nobody waits for them.

use std::future::pending;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicQosOptions};
use lapin::protocol::basic::AMQPProperties;
use lapin::types::ShortString;
use steadfast_core::{
    DeadLetter, Delivery, Destination, Headers, Incoming, Payload, Requeue, SettleError, SettleErrorKind,
    Settler, Token,
};

use crate::connection::{Lane, Live};
use crate::declare;
use crate::delay::Delays;
use crate::error::Trouble;
use crate::headers;
use crate::overdue;
use crate::pipe::{Fate, Letter, Pipe};
use crate::queue::QueueKind;
use crate::runtime::{self, within};
use crate::unsettled::{Ack, Slot, Unsettled};

/// Copies that may be unconfirmed at once.
const COPIES: usize = 256;

/// How long acknowledgements wait behind a delivery whose copy is under way, to go along with its own in one frame: as long
/// as a consumer holds them back itself. A confirmation takes a millisecond or two, and one by one the acknowledgements of that
/// time cost the broker more than the messages did.
const HOLD_BACK: Duration = Duration::from_millis(5);
/// With a smaller prefetch they do not wait: the broker would soon have no leave to send.
const WIDE: u16 = 128;

/// A quorum queue's client within the broker passes at most 32 commands on to the log, and keeps the rest in the channel
/// until some of them are applied: a channel that closes before that takes them along, and what was acknowledged is
/// delivered again. No answer of the broker tells, so after more frames than this the last ones are given [`CALM`].
const BURST: usize = 16;
/// Many times what a log takes to apply a command.
const CALM: Duration = Duration::from_millis(100);

/// Settles the deliveries of one channel.
pub(crate) struct AmqpSettler {
    pub(crate) live: Arc<Live>,
    pub(crate) channel: Channel,
    pub(crate) prefetch: u16,
    pub(crate) queue: Arc<str>,
    pub(crate) kind: QueueKind,
    pub(crate) dead_letters: Destination,
    pub(crate) delays: Delays,
    /// Where copies are published: a connection that only publishes.
    pub(crate) lane: Arc<Lane>,
    pub(crate) server: crate::link::ServerName,
    /// Started by the first copy: most consumers never make one.
    pub(crate) pipe: OnceLock<Pipe>,
    pub(crate) book: Mutex<Book>,
}

/// What is open on the channel.
pub(crate) struct Book {
    unsettled: Unsettled<AMQPProperties>,
    acks: Vec<Ack>,
    /// Frames written with less than [`CALM`] between them, and when the last one was.
    burst: usize,
    written: Option<Instant>,
    /// The subscription is gone: what it held is the broker's again, whatever is said of it here.
    abandoned: bool,
}

impl Book {
    pub(crate) const fn new() -> Self {
        Self { unsettled: Unsettled::new(), acks: Vec::new(), burst: 0, written: None, abandoned: false }
    }
}

impl AmqpSettler {
    /// Takes a delivery over from lapin.
    pub(crate) fn take(self: &Arc<Self>, delivery: lapin::message::Delivery) -> Delivery {
        let tag = delivery.delivery_tag;
        let (incoming, properties) = headers::incoming(delivery, &self.queue, self.kind);
        let slot = self.book().unsettled.insert(tag, properties);
        let settler: Arc<dyn Settler> = Arc::<Self>::clone(self);
        Delivery::new(incoming, Token(tag, slot.0 as u64), settler)
    }

    /// Gives back what was never handed out.
    pub(crate) fn give_back(&self, tag: u64) {
        let _book = self.book();
        self.nack(tag);
    }

    /// Time goes by; the tags of what is unsettled for [`SAID_AFTER`](overdue::SAID_AFTER) steps of it.
    pub(crate) fn grow_older(&self) -> Vec<u64> {
        self.book().unsettled.grow_older(overdue::SAID_AFTER)
    }

    pub(crate) fn abandon(&self) {
        self.book().abandoned = true;
    }

    /// Waits until the broker has handled everything that was written to the channel: it answers in order.
    pub(crate) async fn barrier(&self) -> Result<(), Trouble> {
        // the same prefetch again changes nothing, and it is the cheapest question that there is
        self.live.request(self.channel.basic_qos(self.prefetch, BasicQosOptions::default())).await
    }

    /// [`barrier`](Self::barrier), and through what the broker keeps in the channel: see [`BURST`].
    async fn settled(&self) -> Result<(), Trouble> {
        self.barrier().await?;
        if self.book().burst <= BURST {
            return Ok(());
        }
        // nothing else is to happen meanwhile: the time always runs out
        let _ = within(CALM, pending::<()>()).await;
        self.barrier().await
    }

    /// Written at once. Should that fail, the channel is gone, and all that it held comes back anyway.
    fn nack(&self, tag: u64) {
        let options = BasicNackOptions { multiple: false, requeue: true };
        write(self.channel.basic_nack(tag, options));
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes acknowledgements, but where `hold` those behind a delivery that is expected to be acknowledged soon.
    fn write_acks(&self, book: &mut Book, hold: bool) {
        if book.abandoned {
            return;
        }
        book.unsettled.flush(hold, &mut book.acks);
        if !book.acks.is_empty() && self.kind != QueueKind::Classic {
            let now = Instant::now();
            let calm = book.written.replace(now).is_none_or(|before| now - before >= CALM);
            book.burst = if calm { book.acks.len() } else { book.burst + book.acks.len() };
        }
        for Ack { tag, multiple } in book.acks.drain(..) {
            // should that fail, the channel is gone: the broker delivers again, and the subscription ends
            write(self.channel.basic_ack(tag, BasicAckOptions { multiple }));
        }
    }

    fn is_ours(&self, token: Token) -> Option<AMQPProperties> {
        if !self.channel.status().connected() {
            return None;
        }
        let book = self.book();
        book.unsettled.get(token.0, slot(token)).filter(|_| !book.abandoned).cloned()
    }

    /// The copy is safe: the original may go.
    fn settle_original(&self, token: Token) -> Result<(), SettleError> {
        let mut book = self.book();
        if !self.channel.status().connected() || !book.unsettled.mark(token.0, slot(token)) {
            return Err(self.gone());
        }
        self.write_acks(&mut book, true);
        Ok(())
    }

    fn gone(&self) -> SettleError {
        let what = format!(
            "settle a delivery of `{}`: its channel is gone, the broker delivers it again",
            self.queue
        );
        SettleError::new(SettleErrorKind::Gone, what)
    }

    fn letter(
        &self,
        message: &Incoming,
        token: Token,
        headers: &Headers,
        route: (ShortString, ShortString),
    ) -> Result<Letter, SettleError> {
        let properties = self.is_ours(token).ok_or_else(|| self.gone())?;
        let properties =
            headers::copy(&properties, &message.origin, headers).map_err(|why| self.not_stored(&why))?;
        let Payload::Body(body) = &message.payload else {
            return Err(self.not_stored("RabbitMQ delivers bodies, and this is none"));
        };
        let (exchange, routing_key) = route;
        Ok(Letter { exchange, routing_key, properties, body: body.clone() })
    }

    fn not_stored(&self, why: &str) -> SettleError {
        SettleError::new(SettleErrorKind::NotStored, format!("copy a message of `{}`: {why}", self.queue))
    }

    /// Publishes the copy of a delivery. What is acknowledged behind it waits for a moment.
    async fn publish(&self, token: Token, letter: Letter) -> Result<(), Fate> {
        let pipe = match self.pipe.get() {
            Some(pipe) => pipe,
            None => match runtime::handle() {
                Ok(runtime) => self.pipe.get_or_init(|| Pipe::start(Arc::clone(&self.lane), COPIES, runtime)),
                Err(_) => return Err(Fate::Crowded("there is no runtime to publish on")),
            },
        };
        if self.prefetch < WIDE {
            return pipe.send(letter).await;
        }
        let mut fate = pin!(pipe.send(letter));
        let expected = Expected::soon(self, token);
        if let Ok(fate) = within(HOLD_BACK, fate.as_mut()).await {
            if fate.is_ok() {
                expected.comes();
            }
            return fate;
        }
        drop(expected);
        fate.await
    }

    async fn retry(&self, message: &Incoming, token: Token, requeue: &Requeue) -> Result<(), SettleError> {
        for last_try in [false, true] {
            if self.is_ours(token).is_none() {
                return Err(self.gone());
            }
            let queue = self.delays.queue_for(requeue.after).await?;
            let route = (ShortString::default(), self.short(&queue)?);
            match self.publish(token, self.letter(message, token, &requeue.headers, route)?).await {
                Ok(()) => return self.settle_original(token),
                // the delay's queue expired or was deleted: once more, with a new one
                Err(Fate::Unroutable(_)) if !last_try => self.delays.forget(requeue.after).await,
                Err(fate) => return Err(fate.not_stored(format!("store a retry in queue `{queue}`"))),
            }
        }
        Err(self.gone())
    }

    async fn bury(&self, message: &Incoming, token: Token, letter: &DeadLetter) -> Result<(), SettleError> {
        let destination = &self.dead_letters;
        let route =
            (self.short(destination.exchange_name().unwrap_or_default())?, self.short(destination.name())?);
        match self.publish(token, self.letter(message, token, letter.headers(), route)?).await {
            Ok(()) => self.settle_original(token),
            Err(fate) => {
                if let (Fate::Unroutable(_), None) = (&fate, destination.exchange_name()) {
                    self.declare_dead_letters().await;
                }
                Err(fate.not_stored(format!("store a dead letter in `{destination}`")))
            }
        }
    }

    /// Somebody deleted the queue. It is declared for the next attempt, whose failure says more than this one's.
    async fn declare_dead_letters(&self) {
        let server = self.server.get().map_or("", String::as_str);
        let declared = declare::declare_dead_letters(&self.lane, server, &self.dead_letters, self.kind).await;
        if let Err(error) = declared {
            tracing::warn!(%error, destination = %self.dead_letters, "dead letters have nowhere to go");
        }
    }

    fn short(&self, name: &str) -> Result<ShortString, SettleError> {
        ShortString::try_new(name).map_err(|_| self.not_stored("the name of its destination is too long"))
    }
}

/// A delivery that is expected to be acknowledged soon; once it is no longer, what waits behind it goes.
struct Expected<'a> {
    settler: &'a AmqpSettler,
    token: Token,
    comes: bool,
}

impl<'a> Expected<'a> {
    fn soon(settler: &'a AmqpSettler, token: Token) -> Self {
        settler.book().unsettled.expect(token.0, slot(token), true);
        Self { settler, token, comes: false }
    }

    /// It is acknowledged now.
    fn comes(mut self) {
        self.comes = true;
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        if !self.comes {
            let mut book = self.settler.book();
            book.unsettled.expect(self.token.0, slot(self.token), false);
            self.settler.write_acks(&mut book, true);
        }
    }
}

impl Settler for AmqpSettler {
    fn ack(&self, token: Token) {
        self.book().unsettled.mark(token.0, slot(token));
    }

    fn release(&self, token: Token) {
        let mut book = self.book();
        if book.unsettled.remove(token.0, slot(token)) && !book.abandoned {
            self.nack(token.0);
        }
    }

    fn requeue<'a>(
        &'a self,
        message: &'a Incoming,
        token: Token,
        requeue: &'a Requeue,
    ) -> BoxFuture<'a, Result<(), SettleError>> {
        self.retry(message, token, requeue).boxed()
    }

    fn dead_letter<'a>(
        &'a self,
        message: &'a Incoming,
        token: Token,
        letter: &'a DeadLetter,
    ) -> BoxFuture<'a, Result<(), SettleError>> {
        self.bury(message, token, letter).boxed()
    }

    fn flush(&self) {
        self.write_acks(&mut self.book(), true);
    }

    fn finish(&self) -> BoxFuture<'_, Result<(), SettleError>> {
        async {
            self.write_acks(&mut self.book(), false);
            if !self.channel.status().connected() {
                return Err(self.gone());
            }
            self.settled().await.map_err(|trouble| {
                let what = format!("settle the last deliveries of `{}`", self.queue);
                match trouble.not_stored(what) {
                    error if self.channel.status().connected() => error,
                    error => self.gone().with_source(error),
                }
            })
        }
        .boxed()
    }
}

impl Fate {
    fn not_stored(self, what: String) -> SettleError {
        let error = |why: &str| SettleError::new(SettleErrorKind::NotStored, format!("{what}: {why}"));
        match self {
            Self::Unsent(trouble) => trouble.not_stored(what),
            Self::Crowded(why) => error(why),
            Self::TooLarge { size, limit } => {
                error(&format!("its headers take {size} bytes, and the broker takes {limit}"))
            }
            Self::Unroutable(source) => with_source(error("the broker has no queue for it"), source),
            Self::Rejected(source) => with_source(error("the broker refused it"), source),
            Self::Unknown(source) => with_source(error("the broker did not confirm it"), source),
        }
    }
}

fn with_source(error: SettleError, source: Option<lapin::Error>) -> SettleError {
    match source {
        Some(source) => error.with_source(source),
        None => error,
    }
}

fn slot(token: Token) -> Slot {
    Slot(usize::try_from(token.1).unwrap_or(usize::MAX))
}

/// Puts a frame in line without waiting until it is written: the first poll of lapin's future does that.
fn write(frame: impl Future<Output = lapin::Result<()>>) {
    match pin!(frame).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Err(error)) => tracing::debug!(%error, "not settled, because the channel is gone"),
        Poll::Ready(Ok(())) | Poll::Pending => {}
    }
}
