//! A running consumer: its channel, its consumer tag, and its end.
//!
//! It is never restarted. Whatever happens to its queue, its channel or its connection ends it with an error.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use lapin::Consumer;
use steadfast_core::{Delivery, Settler, Subscribe, SubscribeError, SubscribeErrorKind, Subscription};
use tokio::task::{JoinError, JoinHandle};

use crate::connection::Lane;
use crate::consume::{Changed, Consume, leave};
use crate::declare::Found;
use crate::delay::Delays;
use crate::error::{Fault, Trouble};
use crate::link::ServerName;
use crate::queue::release_counts;
use crate::settle::{AmqpSettler, Book};
use crate::{overdue, runtime};

pub(crate) struct AmqpSubscription {
    taking: Taking,
    consume: Arc<Consume>,
    /// What the broker sent and nobody was given yet, from a consumer that is gone.
    kept: VecDeque<lapin::message::Delivery>,
    /// One at a time.
    narrow: bool,
    settler: Arc<AmqpSettler>,
    /// Why there is nothing more to come, until that was said.
    ended: Option<SubscribeError>,
    /// The stream has ended. It must not be asked again: it would be silent for ever.
    over: bool,
    closed: bool,
}

/// What stands on the channel.
enum Taking {
    By { consumer: Consumer, narrow: bool },
    Changing(JoinHandle<Result<Changed, Trouble>>),
    Nothing,
}

impl AmqpSubscription {
    /// Consumes from a queue that is declared.
    pub(crate) async fn start(
        consuming: &Lane,
        publishing: Arc<Lane>,
        server: ServerName,
        request: Subscribe,
        found: Found,
    ) -> Result<Self, SubscribeError> {
        let queue = Arc::clone(request.source.name());
        let what = format!("consume from queue `{queue}`");
        let failed = |trouble: Trouble| trouble.subscribing(&what);
        let (live, channel) = consuming.channel().await.map_err(failed)?;
        let prefetch = u16::try_from(request.max_in_flight.get()).unwrap_or(u16::MAX);
        let consume = Arc::new(Consume::new(&request, found)?);
        let delays =
            Delays::new(Arc::clone(&publishing), Arc::clone(&server), Arc::clone(&queue), found.kind);
        let settler = Arc::new(AmqpSettler {
            live,
            channel,
            prefetch,
            queue,
            kind: found.kind,
            dead_letters: request.dead_letter,
            delays,
            lane: publishing,
            server,
            pipe: OnceLock::new(),
            book: Mutex::new(Book::new()),
        });
        let narrow = request.narrow && consume.narrows;
        let consumer = consume.start(&settler, narrow).await.map_err(failed)?;
        overdue::watch(&settler, consuming.options().unsettled_limit());
        Ok(Self {
            taking: Taking::By { consumer, narrow },
            consume,
            kept: VecDeque::new(),
            narrow,
            settler,
            ended: None,
            over: false,
            closed: false,
        })
    }

    /// Tells the broker how many may be sent at once, where that has changed. Ready when there is nothing to wait for.
    fn poll_window(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.over {
                return Poll::Ready(());
            }
            match &mut self.taking {
                Taking::By { narrow, .. } if *narrow == self.narrow => return Poll::Ready(()),
                Taking::Changing(change) => {
                    let changed = ready!(change.poll_unpin(cx));
                    self.changed(changed);
                }
                // what is left comes first, one at a time
                Taking::Nothing if !self.kept.is_empty() && self.narrow => return Poll::Ready(()),
                Taking::By { .. } | Taking::Nothing => self.change(),
            }
        }
    }

    /// Lets the consumer go and starts another one: prefetch is a property that a consumer is born with.
    fn change(&mut self) {
        let (consume, settler, narrow) = (Arc::clone(&self.consume), Arc::clone(&self.settler), self.narrow);
        let old = std::mem::replace(&mut self.taking, Taking::Nothing);
        self.spawn(async move {
            let left = match old {
                Taking::By { consumer, .. } => leave(&settler, consumer).await?,
                Taking::Changing(_) | Taking::Nothing => Vec::new(),
            };
            let consumer = consume.start(&settler, narrow).await?;
            Ok(Changed { consumer: Some((consumer, narrow)), left })
        });
    }

    /// Lets the consumer go. On a server that counts what is given back what it left is kept.
    fn retreat(&mut self) {
        let settler = Arc::clone(&self.settler);
        let Taking::By { consumer, .. } = std::mem::replace(&mut self.taking, Taking::Nothing) else {
            return;
        };
        self.spawn(async move {
            let mut left = leave(&settler, consumer).await?;
            if !settler.server.get().is_none_or(|server| release_counts(server)) {
                left.drain(..).for_each(|delivery| settler.give_back(delivery.delivery_tag));
            }
            Ok(Changed { consumer: None, left })
        });
    }

    fn spawn(&mut self, change: impl Future<Output = Result<Changed, Trouble>> + Send + 'static) {
        match runtime::handle() {
            Ok(runtime) => self.taking = Taking::Changing(runtime.spawn(change)),
            Err(_) => self.end(None),
        }
    }

    fn changed(&mut self, changed: Result<Result<Changed, Trouble>, JoinError>) {
        self.taking = Taking::Nothing;
        match changed {
            Ok(Ok(Changed { consumer, left })) => {
                self.kept.extend(left);
                if let Some((consumer, narrow)) = consumer {
                    self.taking = Taking::By { consumer, narrow };
                }
            }
            Ok(Err(Trouble::Client(error))) => self.end(Some(error)),
            Ok(Err(trouble)) => {
                self.over = true;
                self.ended =
                    Some(trouble.subscribing(format!("consume from queue `{}`", self.settler.queue)));
            }
            Err(_) => self.end(None),
        }
    }

    fn end(&mut self, error: Option<lapin::Error>) {
        self.over = true;
        self.ended = Some(self.reason(error));
    }

    fn reason(&self, error: Option<lapin::Error>) -> SubscribeError {
        let queue = &self.settler.queue;
        let what = format!("consume from queue `{queue}`: it ended");
        let is_open = self.settler.live.is_open();
        match error {
            Some(error) if is_open => match Trouble::Client(error).subscribing(&what) {
                // on a running consumer these are about what was settled, or how long it took, not about a declaration
                error if error.kind() == SubscribeErrorKind::Mismatch => {
                    SubscribeError::new(SubscribeErrorKind::Ended, what).with_source(error)
                }
                error => error,
            },
            error if !is_open => {
                let what = format!("consume from queue `{queue}`: the connection was lost");
                let lost = SubscribeError::new(SubscribeErrorKind::Unreachable, what);
                match error {
                    Some(error) => lost.with_source(error),
                    None => lost,
                }
            }
            _ if self.settler.channel.status().connected() => {
                let what =
                    format!("{what}: the broker cancelled it, because the queue was deleted or has moved");
                SubscribeError::new(SubscribeErrorKind::NotFound, what)
            }
            _ => SubscribeError::new(SubscribeErrorKind::Ended, what),
        }
    }
}

impl Subscription for AmqpSubscription {
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        room: NonZeroUsize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Result<(), SubscribeError>> {
        let before = batch.len();
        let changing = self.poll_window(cx).is_pending();
        while !self.over && !changing && batch.len() - before < room.get() {
            if let Some(delivery) = self.kept.pop_front() {
                batch.push(self.settler.take(delivery));
                continue;
            }
            let Taking::By { consumer, .. } = &mut self.taking else { break };
            match consumer.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(delivery))) => batch.push(self.settler.take(delivery)),
                Poll::Ready(Some(Err(error))) => self.end(Some(error)),
                Poll::Ready(None) => self.end(None),
                Poll::Pending => break,
            }
        }
        if batch.len() > before {
            return Poll::Ready(Ok(()));
        }
        match self.ended.take() {
            Some(error) => Poll::Ready(Err(error)),
            None if self.over => {
                let what = format!("consume from queue `{}`: it has ended before", self.settler.queue);
                Poll::Ready(Err(SubscribeError::new(SubscribeErrorKind::Ended, what)))
            }
            None => Poll::Pending,
        }
    }

    fn set_narrow(&mut self, narrow: bool) {
        if self.narrow == narrow || !self.consume.narrows || self.over {
            return;
        }
        self.narrow = narrow;
        // at once: what is run alone may take the process down before anything is asked of us again
        if narrow {
            self.retreat();
        }
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::<AmqpSettler>::clone(&self.settler)
    }

    fn stop(&mut self) -> BoxFuture<'_, Result<(), SubscribeError>> {
        async {
            if self.over {
                return Ok(());
            }
            let settler = Arc::clone(&self.settler);
            let what = format!("stop consuming from queue `{}`", settler.queue);
            if let Taking::Changing(change) = &mut self.taking {
                let changed = change.await;
                self.changed(changed);
                if let Some(error) = self.ended.take() {
                    return Err(error);
                }
            }
            self.over = true;
            let mut left = std::mem::take(&mut self.kept);
            if let Taking::By { consumer, .. } = std::mem::replace(&mut self.taking, Taking::Nothing) {
                left.extend(leave(&settler, consumer).await.map_err(|trouble| trouble.subscribing(&what))?);
            }
            for delivery in left {
                settler.give_back(delivery.delivery_tag);
            }
            settler.barrier().await.map_err(|trouble| trouble.subscribing(&what))
        }
        .boxed()
    }

    fn close(mut self: Box<Self>) -> BoxFuture<'static, Result<(), SubscribeError>> {
        async move {
            self.closed = true;
            let settler = Arc::clone(&self.settler);
            settler.abandon();
            let closing = settler.live.request(settler.channel.close(200, "closed".into()));
            match closing.await {
                Err(trouble @ Trouble::Late(_)) => {
                    Err(trouble.subscribing(format!("close the channel on queue `{}`", settler.queue)))
                }
                // it was closed before: there is nothing left to close
                Ok(()) | Err(Trouble::Client(_) | Trouble::Connect(Fault { .. })) => Ok(()),
            }
        }
        .boxed()
    }
}

impl Drop for AmqpSubscription {
    fn drop(&mut self) {
        self.settler.abandon();
        if self.closed || !self.settler.channel.status().connected() {
            return;
        }
        // deliveries that are still out keep the channel alive; the broker must have it back now
        if let Ok(runtime) = runtime::handle() {
            let settler = Arc::clone(&self.settler);
            runtime.spawn(async move {
                let _ = settler.live.request(settler.channel.close(200, "dropped".into())).await;
            });
        }
    }
}

impl fmt::Debug for AmqpSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpSubscription").field("queue", &self.settler.queue).finish_non_exhaustive()
    }
}
