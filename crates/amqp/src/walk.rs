//! A walk through a queue of RabbitMQ.
//!
//! RabbitMQ shows a message only by delivering it. A walk reads ahead over a channel of its own and settles nothing until told
//! to: what it holds is invisible to others meanwhile, and goes back to its place, as redelivered, when the walk ends or its
//! connection is lost. Of the letters that were dealt with nothing is kept here, of those in hand the properties.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, pending};
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::protocol::basic::AMQPProperties;
use lapin::types::ShortString;
use steadfast_core::{
    Forward, Forwarded, Letter as DeadLetter, OperateError, OperateErrorKind, Payload, Token, Walk,
};

use crate::ahead::{Ahead, barrier};
use crate::connection::Live;
use crate::error::Trouble;
use crate::headers;
use crate::operate::{LOOK, RETURNS, close, counts, operating};
use crate::pipe::{Fate, Letter, Pipe};
use crate::queue::QueueKind;
use crate::runtime::within;

/// See `settle.rs`: what a quorum queue's client keeps in the channel needs a moment to reach its log.
const CALM: Duration = Duration::from_millis(100);

pub(crate) struct AmqpWalk {
    live: Arc<Live>,
    channel: Channel,
    name: Arc<str>,
    short: ShortString,
    total: u64,
    /// Letters that were handed out.
    taken: AtomicU64,
    /// Of these, how many were taken out of the queue.
    removed: AtomicU64,
    /// What was read ahead.
    ahead: tokio::sync::Mutex<Ahead>,
    /// What is needed of the letters that were handed out and are not dealt with.
    in_hand: Mutex<HashMap<u64, (AMQPProperties, Bytes)>>,
    pipe: Pipe,
}

impl AmqpWalk {
    pub(crate) fn new(live: Arc<Live>, channel: Channel, short: ShortString, total: u64, pipe: Pipe) -> Self {
        let ahead = Ahead::new(Arc::clone(&live), channel.clone(), short.clone());
        Self {
            live,
            channel,
            name: short.as_str().into(),
            short,
            total,
            taken: AtomicU64::new(0),
            removed: AtomicU64::new(0),
            ahead: tokio::sync::Mutex::new(ahead),
            in_hand: Mutex::default(),
            pipe,
        }
    }

    fn in_hand(&self) -> MutexGuard<'_, HashMap<u64, (AMQPProperties, Bytes)>> {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn page(&self, limit: usize) -> Result<Vec<DeadLetter>, OperateError> {
        let mut ahead = self.ahead.lock().await;
        let mut page = Vec::new();
        while page.len() < limit {
            let left = self.total.saturating_sub(self.taken.load(Ordering::Relaxed));
            // what is here already is a page: nobody is to wait for a trip to the broker with letters in hand
            if left == 0 || (!page.is_empty() && ahead.waiting() == 0) {
                break;
            }
            let next = ahead.next(left).await.map_err(|trouble| self.failed("take from", trouble))?;
            let Some(delivery) = next else { break };
            self.taken.fetch_add(1, Ordering::Relaxed);
            let tag = delivery.delivery_tag;
            let (incoming, properties) = headers::incoming(delivery, &self.name, QueueKind::Passive);
            if let Payload::Body(body) = &incoming.payload {
                self.in_hand().insert(tag, (properties, body.clone()));
            }
            page.push(DeadLetter { mark: Token(tag, 0), message: Arc::new(incoming) });
        }
        Ok(page)
    }

    async fn send(&self, letter: &DeadLetter, forward: &Forward) -> Result<Forwarded, OperateError> {
        let tag = letter.mark.0;
        let Some((properties, body)) = self.in_hand().remove(&tag) else { return Ok(Forwarded::Gone) };
        if !self.channel.status().connected() {
            return Err(self.failed("forward a letter of", Trouble::Late(Duration::ZERO)));
        }
        let what = || format!("forward a letter of queue `{}` to `{}`", self.name, forward.to);
        let refused =
            |why: &str| OperateError::new(OperateErrorKind::NotStored, format!("{}: {why}", what()));
        let name = |name: &str| {
            ShortString::try_new(name).map_err(|_| refused("names in AMQP have at most 255 bytes"))
        };
        let body = match &forward.payload {
            None => body,
            Some(Payload::Body(body)) => body.clone(),
            Some(Payload::Fields(_)) => return Err(refused("RabbitMQ carries one body of bytes, no fields")),
        };
        let properties = headers::forwarded(&properties, forward).map_err(|why| refused(&why))?;
        let copy = Letter {
            exchange: name(forward.to.exchange_name().unwrap_or_default())?,
            routing_key: name(forward.to.name())?,
            properties,
            body,
        };
        self.pipe.send(copy).await.map_err(|fate| forwarding(fate, what()))?;
        Ok(if self.ack(tag).await { Forwarded::Moved } else { Forwarded::Copied })
    }

    /// Whether the broker can have heard of it.
    async fn ack(&self, tag: u64) -> bool {
        let written = self.channel.basic_ack(tag, BasicAckOptions { multiple: false }).await;
        let heard = written.is_ok() && self.channel.status().connected();
        self.removed.fetch_add(u64::from(heard), Ordering::Relaxed);
        heard
    }

    async fn remove(&self, mark: Token) -> Result<bool, OperateError> {
        self.in_hand().remove(&mark.0);
        if self.ack(mark.0).await {
            return Ok(true);
        }
        Err(self.failed("take a letter out of", Trouble::Late(Duration::ZERO)))
    }

    /// Everything that was acknowledged is in the queue's log, and what was not is given back.
    async fn end(&self) -> Result<(), OperateError> {
        let failed = |trouble| self.failed("end the walk through", trouble);
        let brought = self.taken.load(Ordering::Relaxed) + self.ahead.lock().await.waiting() as u64;
        barrier(&self.live, &self.channel).await.map_err(failed)?;
        // the time always runs out: nothing else is to happen meanwhile
        let _ = within(CALM, pending::<()>()).await;
        let held = brought.saturating_sub(self.removed.load(Ordering::Relaxed));
        if held > 0 {
            // 0 stands for all that are unsettled
            let options = BasicNackOptions { multiple: true, requeue: true };
            // should that fail, the channel is gone and they are given back anyway
            let _ = self.channel.basic_nack(0, options).await;
        }
        barrier(&self.live, &self.channel).await.map_err(failed)?;
        self.until_ready(held).await.map_err(failed)?;
        close(&self.live, &self.channel).await;
        Ok(())
    }

    /// A queue takes a moment to have back what was given back, and a walk that begins before would not see it. Not for
    /// longer than it grows: others may take from the queue.
    async fn until_ready(&self, held: u64) -> Result<(), Trouble> {
        let (mut most, mut looks) = (0, 0);
        while looks < RETURNS {
            let (ready, _) = counts(&self.live, &self.channel, self.short.as_str()).await?;
            if ready >= held {
                break;
            }
            looks = if ready > most { 0 } else { looks + 1 };
            most = most.max(ready);
            let _ = within(LOOK, pending::<()>()).await;
        }
        Ok(())
    }

    fn failed(&self, what: &str, trouble: Trouble) -> OperateError {
        operating(trouble, format!("{what} queue `{}`", self.name))
    }
}

impl Walk for AmqpWalk {
    fn total(&self) -> u64 {
        self.total
    }

    fn atomic(&self) -> bool {
        false
    }

    fn next(&self, limit: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>, OperateError>> {
        self.page(limit).boxed()
    }

    fn forward<'a>(
        &'a self,
        letter: &'a DeadLetter,
        forward: &'a Forward,
    ) -> BoxFuture<'a, Result<Forwarded, OperateError>> {
        self.send(letter, forward).boxed()
    }

    fn discard(&self, mark: Token) -> BoxFuture<'_, Result<bool, OperateError>> {
        self.remove(mark).boxed()
    }

    fn keep(&self, mark: Token) {
        self.in_hand().remove(&mark.0);
    }

    /// The end of a queue cannot be seen from here: everything that came into it counts.
    fn returned<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<u64, OperateError>> {
        async {
            // nothing is read meanwhile
            let ahead = self.ahead.lock().await;
            let brought = self.taken.load(Ordering::Relaxed) + ahead.waiting() as u64;
            let (ready, _) = counts(&self.live, &self.channel, self.short.as_str())
                .await
                .map_err(|trouble| self.failed("count the messages of", trouble))?;
            Ok((ready + brought).saturating_sub(self.total))
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), OperateError>> {
        self.end().boxed()
    }
}

impl fmt::Debug for AmqpWalk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpWalk")
            .field("queue", &self.name)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

fn forwarding(fate: Fate, what: String) -> OperateError {
    let error = |kind, why: &str, source: Option<lapin::Error>| {
        let error = OperateError::new(kind, format!("{what}: {why}"));
        match source {
            Some(source) => error.with_source(source),
            None => error,
        }
    };
    match fate {
        Fate::Unsent(trouble) => operating(trouble, what),
        Fate::Crowded(why) => error(OperateErrorKind::Unreachable, why, None),
        Fate::TooLarge { size, limit } => {
            let why = format!("its headers take {size} bytes, and the broker takes {limit}");
            error(OperateErrorKind::NotStored, &why, None)
        }
        Fate::Unroutable(source) => {
            error(OperateErrorKind::NotStored, "the broker has no queue for it", source)
        }
        Fate::Rejected(source) => error(OperateErrorKind::NotStored, "the broker refused it", source),
        Fate::Unknown(source) => {
            error(OperateErrorKind::Unknown, "it was sent, and the broker did not answer", source)
        }
    }
}
