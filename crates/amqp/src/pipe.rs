//! A pipe: confirmed publishes over one channel at a time, with a window of how many are under way.
//!
//! Owns the way from a message to its fate. Callers publish from their own tasks: a place in the window, the frames in
//! line, the confirm, and whether the message [came back](crate::returns). The order of calls is the order on the wire. A
//! channel that fails is replaced by the next message; what was under way on it is unknown.
//!
//! A place stays taken until the broker has answered or the channel is lost, even when its caller is gone: what was written
//! must not pile up behind a broker that has stopped reading.

use std::fmt;
use std::future;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::basic::AMQPProperties;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::connection::{Lane, Live, lost};
use crate::error::{Sort, Trouble, sort, text};
use crate::headers::encoded_size;
use crate::replies::{DIRECT, Listening, Replies};
use crate::returns::{Key, Returns};
use crate::runtime::{self, within};
use crate::sieve;

/// How often a message that nobody waits for any more looks whether its channel is still there.
const LOOK: Duration = Duration::from_secs(1);

const BLOCKED: &str = "the broker takes no messages for now: it is short of memory or disk";
const CLOSED: &str = "the connection was closed by this program";
const CROWDED: &str = "the deadline passed while earlier messages waited for their confirmation";

/// A message as it goes onto the wire.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: AMQPProperties,
    pub(crate) body: Bytes,
}

/// Why a message is not known to be safe.
#[derive(Debug)]
pub(crate) enum Fate {
    /// It was not sent: there is no channel to send it on.
    Unsent(Trouble),
    /// It was not sent: its deadline passed while it waited for others.
    Crowded(&'static str),
    /// It was not sent: its properties are larger than a frame.
    TooLarge { size: usize, limit: usize },
    /// The broker has no queue for it, or no such exchange.
    Unroutable(Option<lapin::Error>),
    /// The broker refused it.
    Rejected(Option<lapin::Error>),
    /// It was sent, and the answer is lost.
    Unknown(Option<lapin::Error>),
}

/// A handle; clones share the channel.
#[derive(Clone)]
pub(crate) struct Pipe(Arc<Shared>);

struct Shared {
    lane: Arc<Lane>,
    window: usize,
    runtime: Handle,
    replies: Option<Arc<Replies>>,
    /// The channel in use, or the last one.
    outlet: Mutex<Option<Arc<Outlet>>>,
    /// Callers that had to wait and have not written yet. While there are any, nobody writes before them.
    queued: AtomicUsize,
    /// They take turns, in the order of their calls.
    turn: tokio::sync::Mutex<Opening>,
    /// Channels that could not be opened, so that whoever waited for one can tell that its failure is news.
    failures: AtomicU64,
}

#[derive(Default)]
struct Opening {
    /// Goes on when the caller that began it goes away: a deadline shorter than it takes must not keep it from an end.
    attempt: Option<JoinHandle<Result<Arc<Outlet>, Trouble>>>,
    last_trouble: Option<Trouble>,
}

impl Pipe {
    pub(crate) fn start(lane: Arc<Lane>, window: usize, runtime: &Handle) -> Self {
        Self::new(lane, window, runtime, None)
    }

    /// A pipe whose channels take replies, too.
    pub(crate) fn with_replies(
        lane: Arc<Lane>,
        window: usize,
        runtime: &Handle,
        replies: Arc<Replies>,
    ) -> Self {
        Self::new(lane, window, runtime, Some(replies))
    }

    fn new(lane: Arc<Lane>, window: usize, runtime: &Handle, replies: Option<Arc<Replies>>) -> Self {
        Self(Arc::new(Shared {
            lane,
            window: window.min(Semaphore::MAX_PERMITS),
            runtime: runtime.clone(),
            replies,
            outlet: Mutex::default(),
            queued: AtomicUsize::new(0),
            turn: tokio::sync::Mutex::default(),
            failures: AtomicU64::new(0),
        }))
    }

    /// Publishes, and waits until the message is safe or its fate is known otherwise.
    pub(crate) async fn send(&self, letter: Letter) -> Result<(), Fate> {
        let pipe = &*self.0;
        let Some(_under_way) = pipe.lane.enter() else { return Err(Fate::Crowded(CLOSED)) };
        let deadline = pipe.lane.options().deadline();
        let mut written = false;
        let sending = async {
            let sending = if let Some(place) = pipe.place_now() {
                place.write(letter)?
            } else {
                let (place, _turn) = pipe.place_in_turn().await?;
                place.write(letter)?
            };
            written = true;
            sending.await
        };
        match within(deadline, sending).await {
            Ok(outcome) => outcome,
            Err(runtime::Elapsed) if written => Err(Fate::Unknown(None)),
            Err(runtime::Elapsed) => Err(pipe.not_written(deadline)),
        }
    }
}

impl fmt::Debug for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipe").field("lane", &self.0.lane).finish_non_exhaustive()
    }
}

impl Shared {
    /// A place where nobody waits for one, the channel is open and the window has room.
    fn place_now(&self) -> Option<Place> {
        if self.queued.load(Ordering::Acquire) > 0 {
            return None;
        }
        let outlet = self.outlet()?;
        outlet.window.try_acquire().ok()?.forget();
        Some(Place { outlet })
    }

    /// A place after those who waited before, on a channel that is opened if need be, when the window has room. The turn
    /// is over when it was written.
    async fn place_in_turn(&self) -> Result<(Place, Turn<'_>), Fate> {
        let queued = Queued::new(&self.queued);
        let seen = self.failures.load(Ordering::Acquire);
        let mut opening = self.turn.lock().await;
        loop {
            let Some(outlet) = self.outlet() else {
                self.open(&mut opening, seen).await.map_err(Fate::Unsent)?;
                continue;
            };
            // none where the channel fails meanwhile
            let Ok(place) = outlet.window.acquire().await else { continue };
            if outlet.is_open() {
                place.forget();
                return Ok((Place { outlet }, (opening, queued)));
            }
        }
    }

    /// Opens another channel. A failure is that of everybody who waited for it.
    async fn open(&self, opening: &mut Opening, seen: u64) -> Result<(), Trouble> {
        if let Some(trouble) = &opening.last_trouble
            && self.failures.load(Ordering::Acquire) != seen
        {
            return Err(trouble.clone());
        }
        // one that ended when nobody waited: that it failed then says nothing of now
        if let Some(ended) = opening.attempt.take_if(|attempt| attempt.is_finished())
            && let Ok(Ok(outlet)) = ended.await
        {
            *self.slot() = Some(outlet);
            return Ok(());
        }
        let attempt = opening.attempt.get_or_insert_with(|| {
            let attempt = Outlet::open(Arc::clone(&self.lane), self.window, self.replies.clone());
            self.runtime.spawn(attempt)
        });
        let outcome = attempt.await.unwrap_or_else(|_| Err(lost()));
        opening.attempt = None;
        match outcome {
            Ok(outlet) => {
                opening.last_trouble = None;
                *self.slot() = Some(outlet);
                Ok(())
            }
            Err(trouble) => {
                opening.last_trouble = Some(trouble.clone());
                self.failures.fetch_add(1, Ordering::Release);
                Err(trouble)
            }
        }
    }

    /// The channel, where it is open.
    fn outlet(&self) -> Option<Arc<Outlet>> {
        self.slot().as_ref().filter(|outlet| outlet.is_open()).cloned()
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Outlet>>> {
        self.outlet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why a message was not written by its deadline.
    fn not_written(&self, deadline: Duration) -> Fate {
        match self.outlet() {
            Some(outlet) if outlet.live.is_blocked() => Fate::Crowded(BLOCKED),
            Some(_) => Fate::Crowded(CROWDED),
            None => Fate::Unsent(Trouble::Late(deadline)),
        }
    }
}

/// The next one's begins when both are dropped.
type Turn<'a> = (tokio::sync::MutexGuard<'a, Opening>, Queued<'a>);

/// One who waits for his turn.
struct Queued<'a>(&'a AtomicUsize);

impl<'a> Queued<'a> {
    fn new(queued: &'a AtomicUsize) -> Self {
        queued.fetch_add(1, Ordering::AcqRel);
        Self(queued)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One channel.
struct Outlet {
    live: Arc<Live>,
    channel: Channel,
    returns: Arc<Returns>,
    /// Closed when the channel has failed.
    window: Semaphore,
    /// The client numbers a message, and puts its frames in line after that: only in one step do both go in one order.
    writing: Mutex<()>,
    listening: Mutex<Option<Listening>>,
    runtime: Handle,
}

impl Outlet {
    async fn open(
        lane: Arc<Lane>,
        window: usize,
        replies: Option<Arc<Replies>>,
    ) -> Result<Arc<Self>, Trouble> {
        let (live, channel) = lane.channel().await?;
        live.request(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let listening = match replies {
            Some(replies) => Some(replies.listen(&live, &channel).await?),
            None => None,
        };
        Ok(Arc::new(Self {
            returns: live.watch(&channel, window),
            live,
            channel,
            window: Semaphore::new(window),
            writing: Mutex::new(()),
            listening: Mutex::new(listening),
            runtime: Handle::current(),
        }))
    }

    fn is_open(&self) -> bool {
        !self.window.is_closed() && self.channel.status().connected()
    }

    /// What the answer says of a message.
    fn judge(
        &self,
        answer: lapin::Result<Confirmation>,
        key: Key,
        exchange: &ShortString,
    ) -> Result<(), Fate> {
        let confirmation = match answer {
            Ok(confirmation) => confirmation,
            Err(error) => {
                self.fail();
                return Err(blame(error, exchange));
            }
        };
        let returned = self.returns.take(key);
        match confirmation {
            Confirmation::Ack(_) if returned => Err(Fate::Unroutable(None)),
            Confirmation::Ack(_) => Ok(()),
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(Fate::Rejected(None)),
        }
    }

    /// Nothing more goes over it, nor comes.
    fn fail(&self) {
        self.window.close();
        let listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(listening);
    }
}

/// A place in the window. Dropped, it is free.
struct Place {
    outlet: Arc<Outlet>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.outlet.window.add_permits(1);
    }
}

impl Place {
    /// Puts the frames in line. Only then is it the next one's turn.
    fn write(self, letter: Letter) -> Result<Sending, Fate> {
        let outlet = &self.outlet;
        // what comes back must be small enough for the sieve to look at
        let (size, limit) = (encoded_size(&letter.properties), outlet.live.frame_max().min(sieve::LARGEST));
        if size > limit {
            return Err(Fate::TooLarge { size, limit });
        }
        let Letter { exchange, routing_key, properties, body } = letter;
        let id = properties.message_id().as_ref().map(ShortString::as_str);
        let key = outlet.returns.key(exchange.as_str(), routing_key.as_str(), id, &body);
        // the broker takes a reply to nowhere for unroutable, whether somebody waits for it or not
        let mandatory = !(exchange.as_str().is_empty() && routing_key.as_str().starts_with(DIRECT));
        let (through, to) = (Arc::clone(outlet), exchange.clone());
        let mut answer: Answer = Box::pin(async move {
            let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
            through.channel.basic_publish(to, routing_key, options, &body, properties).await?.await
        });
        let answered = {
            let _in_order = outlet.writing.lock().unwrap_or_else(PoisonError::into_inner);
            // the first poll writes; who awaits the answer polls again, and is woken
            answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        };
        if let Poll::Ready(early) = answered {
            answer = Box::pin(future::ready(early));
        }
        Ok(Sending { under_way: Some((answer, self)), key, exchange })
    }
}

/// The channel is gone. An error that names this message's exchange is about this message; of all others nobody knows.
fn blame(error: lapin::Error, exchange: &ShortString) -> Fate {
    let named = text(&error).contains(&format!("exchange '{exchange}'"));
    match sort(&error) {
        Sort::NotFound if named => Fate::Unroutable(Some(error)),
        Sort::Refused if named => Fate::Rejected(Some(error)),
        Sort::NotFound
        | Sort::Refused
        | Sort::Away
        | Sort::Precondition
        | Sort::Unsupported
        | Sort::Channel => Fate::Unknown(Some(error)),
    }
}

type Answer = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>;

/// A message that was written, and its place in the window. Dropped before the answer, it leaves both to the runtime.
struct Sending {
    /// None when the answer is here.
    under_way: Option<(Answer, Place)>,
    key: Key,
    exchange: ShortString,
}

impl Future for Sending {
    type Output = Result<(), Fate>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let sending = &mut *self;
        let Some((answer, place)) = &mut sending.under_way else {
            return Poll::Ready(Err(Fate::Unknown(None)));
        };
        let answer = ready!(answer.as_mut().poll(cx));
        let outcome = place.outlet.judge(answer, sending.key, &sending.exchange);
        sending.under_way = None;
        Poll::Ready(outcome)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some((answer, place)) = self.under_way.take() {
            let (key, exchange, runtime) =
                (self.key, mem::take(&mut self.exchange), place.outlet.runtime.clone());
            runtime.spawn(see_through(answer, place, key, exchange));
        }
    }
}

/// Waits for the answer to a message whose caller is gone, as long as there is a channel for it to come on.
async fn see_through(mut answer: Answer, place: Place, key: Key, exchange: ShortString) {
    loop {
        match within(LOOK, answer.as_mut()).await {
            Ok(answer) => {
                // the caller was told that nobody knows, or did not want to be told
                let _ = place.outlet.judge(answer, key, &exchange);
                return;
            }
            Err(runtime::Elapsed) if place.outlet.is_open() => {}
            Err(runtime::Elapsed) => return,
        }
    }
}
