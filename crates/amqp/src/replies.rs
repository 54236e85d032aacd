//! Who waits for which reply, and the consumer that hands them out.
//!
//! The broker sends replies to the channel that asked, so each channel has its own consumer, and what was asked on one
//! that is lost gets no reply any more. No acknowledgments: a reply is nowhere stored.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::connection::Live;
use crate::error::Trouble;

/// The name that stands for this channel.
pub(crate) const DIRECT: &str = "amq.rabbitmq.reply-to";

/// The channel that a reply would have come on is gone.
#[derive(Debug)]
pub(crate) struct Lost;

/// One requester's.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    /// By correlation id. Bounded by those who wait: each takes its own out again.
    waiting: Mutex<HashMap<String, Expected>>,
    late: AtomicU64,
}

#[derive(Debug)]
struct Expected {
    answer: oneshot::Sender<Result<Delivery, Lost>>,
    /// The broker has the request, so that a lost channel means a lost reply.
    confirmed: bool,
}

impl Replies {
    /// Keeps a place for the reply to `id`.
    pub(crate) fn expect(self: &Arc<Self>, id: String) -> Waiting {
        let (answer, reply) = oneshot::channel();
        self.waiting().insert(id.clone(), Expected { answer, confirmed: false });
        Waiting { id, reply, replies: Arc::clone(self) }
    }

    /// Takes the replies of this channel, before anything is asked on it.
    pub(crate) async fn listen(
        self: &Arc<Self>,
        live: &Live,
        channel: &Channel,
    ) -> Result<Listening, Trouble> {
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consume = channel.basic_consume(DIRECT.into(), "".into(), options, FieldTable::default());
        let consumer = live.request(consume).await?;
        let task = tokio::spawn(hand_out(Arc::clone(self), consumer, channel.clone()));
        Ok(Listening(task.abort_handle(), Arc::clone(self)))
    }

    pub(crate) fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    fn hand_out(&self, delivery: Delivery) {
        let id = delivery.properties.correlation_id().as_ref().map_or("", |id| id.as_str()).to_owned();
        let expected = self.waiting().remove(&id);
        let taken = expected.is_some_and(|expected| expected.answer.send(Ok(delivery)).is_ok());
        if !taken {
            self.late.fetch_add(1, Ordering::Relaxed);
            tracing::info!(target: "steadfast", correlation_id = id, "reply.late");
        }
    }

    /// Those that are not confirmed are told by who publishes them.
    fn lost(&self) {
        for (_, expected) in self.waiting().extract_if(|_, expected| expected.confirmed) {
            // this fails where nobody waits any more
            let _ = expected.answer.send(Err(Lost));
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Expected>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until the channel says no more. Closes it then: without its consumer it is of no use, and the next request opens another.
async fn hand_out(replies: Arc<Replies>, mut consumer: Consumer, channel: Channel) {
    while let Some(Ok(delivery)) = consumer.next().await {
        replies.hand_out(delivery);
    }
    replies.lost();
    // an error means that it is closed already
    let _ = channel.close(200, "no more replies".into()).await;
}

/// A channel's consumer. It ends with this, and what is awaited on the channel is lost.
#[derive(Debug)]
pub(crate) struct Listening(AbortHandle, Arc<Replies>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
        self.1.lost();
    }
}

/// One who waits. Dropped, it waits no more.
#[derive(Debug)]
pub(crate) struct Waiting {
    id: String,
    reply: oneshot::Receiver<Result<Delivery, Lost>>,
    replies: Arc<Replies>,
}

impl Waiting {
    pub(crate) fn confirmed(&self) {
        if let Some(expected) = self.replies.waiting().get_mut(&self.id) {
            expected.confirmed = true;
        }
    }

    /// The reply, if it is here.
    pub(crate) fn taken(&mut self) -> Option<Delivery> {
        self.reply.try_recv().ok()?.ok()
    }

    pub(crate) async fn reply(&mut self) -> Result<Delivery, Lost> {
        (&mut self.reply).await.unwrap_or(Err(Lost))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.replies.waiting().remove(&self.id);
    }
}
