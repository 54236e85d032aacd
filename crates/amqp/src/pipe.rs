//! A pipe: one confirm channel, and a task that keeps a window of publishes on it.
//!
//! Owns the way from a message to its fate. Callers hand over a message and wait; the task writes it, watches its
//! confirm, and decides by [`Returns`] whether it was routed. A channel that fails is replaced by the next message; what
//! was under way on it is unknown. The task lives on the connections' runtime and ends with the last handle.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::poll_fn;
use futures_util::task::AtomicWaker;
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::basic::AMQPProperties;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep};

use crate::connection::{Lane, Live};
use crate::error::{Sort, Trouble, is_the_brokers, sort, text};
use crate::headers::encoded_size;
use crate::replies::{DIRECT, Listening, Replies};
use crate::returns::{Returns, Verdict};
use crate::runtime::within;
use crate::sending::Sending;

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
#[derive(Clone, Debug)]
pub(crate) struct Pipe {
    jobs: mpsc::Sender<Job>,
    lane: Arc<Lane>,
}

#[derive(Debug)]
struct Job {
    letter: Letter,
    expires: Instant,
    done: oneshot::Sender<Result<(), Fate>>,
}

impl Pipe {
    pub(crate) fn start(lane: Arc<Lane>, window: usize, runtime: &tokio::runtime::Handle) -> Self {
        Self::open(lane, window, runtime, None)
    }

    /// A pipe whose channels take replies, too.
    pub(crate) fn with_replies(
        lane: Arc<Lane>,
        window: usize,
        runtime: &tokio::runtime::Handle,
        replies: Arc<Replies>,
    ) -> Self {
        Self::open(lane, window, runtime, Some(replies))
    }

    fn open(
        lane: Arc<Lane>,
        window: usize,
        runtime: &tokio::runtime::Handle,
        replies: Option<Arc<Replies>>,
    ) -> Self {
        let (jobs, inbox) = mpsc::channel(window);
        runtime.spawn(run(Arc::clone(&lane), inbox, window, replies));
        Self { jobs, lane }
    }

    /// Publishes, and waits until the message is safe or its fate is known otherwise.
    pub(crate) async fn send(&self, letter: Letter) -> Result<(), Fate> {
        let Some(_under_way) = self.lane.enter() else { return Err(Fate::Crowded(CLOSED)) };
        let deadline = self.lane.options().deadline();
        let (done, fate) = oneshot::channel();
        let job = Job { letter, expires: Instant::now() + deadline, done };
        match self.jobs.try_send(job) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(job)) => match within(deadline, self.jobs.send(job)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Fate::Crowded(CLOSED)),
                Err(_) => return Err(Fate::Crowded(CROWDED)),
            },
            Err(mpsc::error::TrySendError::Closed(_)) => {
                return Err(Fate::Crowded(CLOSED));
            }
        }
        fate.await.unwrap_or(Err(Fate::Unknown(None)))
    }
}

const BLOCKED: &str = "the broker takes no messages for now: it is short of memory or disk";
const CLOSED: &str = "the connection was closed by this program";
const CROWDED: &str = "the deadline passed while earlier messages waited for their confirmation";

/// How long a closed channel is waited for to fail what is under way; lapin does it at once.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The task: a channel for as long as it works, another one for the message after that.
async fn run(lane: Arc<Lane>, mut inbox: mpsc::Receiver<Job>, window: usize, replies: Option<Arc<Replies>>) {
    let mut waiting = VecDeque::with_capacity(window);
    loop {
        if waiting.is_empty() {
            match inbox.recv().await {
                Some(job) => waiting.push_back(job),
                None => return,
            }
        }
        match open(&lane, replies.as_ref()).await {
            Ok((live, channel, _listening)) => {
                Run::new(&live, channel, window).drive(&mut waiting, &mut inbox).await;
            }
            Err(trouble) => {
                while let Some(job) = waiting.pop_front().or_else(|| inbox.try_recv().ok()) {
                    job.answer(Err(Fate::Unsent(trouble.clone())));
                }
            }
        }
    }
}

async fn open(
    lane: &Lane,
    replies: Option<&Arc<Replies>>,
) -> Result<(Arc<Live>, Channel, Option<Listening>), Trouble> {
    let (live, channel) = lane.channel().await?;
    live.request(channel.confirm_select(ConfirmSelectOptions::default())).await?;
    let listening = match replies {
        Some(replies) => Some(replies.listen(&live, &channel).await?),
        None => None,
    };
    Ok((live, channel, listening))
}

impl Job {
    fn answer(self, answer: Result<(), Fate>) {
        // this fails where nobody waits any more
        let _ = self.done.send(answer);
    }
}

/// One channel's life.
struct Run<'a> {
    live: &'a Live,
    channel: Arc<Channel>,
    places: Vec<Place>,
    free: Vec<usize>,
    ready: Arc<Ready>,
    news: Vec<usize>,
    returns: Returns,
    keys: RandomState,
    timer: Pin<Box<Sleep>>,
    /// When the next deadline passes, at the earliest.
    due: Option<Instant>,
    failed: Option<lapin::Error>,
    /// Until when a channel that is closed may say why.
    ends: Option<Instant>,
}

/// A place in the window. It stays taken until the broker has answered, even when its caller's deadline is past: what
/// was written must not pile up behind a broker that has stopped reading.
struct Place {
    signal: Arc<Signal>,
    waker: Waker,
    sending: Sending,
    publish: u64,
    key: u64,
    exchange: ShortString,
    expires: Instant,
    done: Option<oneshot::Sender<Result<(), Fate>>>,
}

impl<'a> Run<'a> {
    fn new(live: &'a Live, channel: Channel, window: usize) -> Self {
        let ready = Arc::new(Ready::default());
        Self {
            live,
            channel: Arc::new(channel),
            places: (0..window).map(|index| Place::new(index, &ready)).collect(),
            free: (0..window).rev().collect(),
            ready,
            news: Vec::new(),
            returns: Returns::default(),
            keys: RandomState::new(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            due: None,
            failed: None,
            ends: None,
        }
    }

    async fn drive(mut self, waiting: &mut VecDeque<Job>, inbox: &mut mpsc::Receiver<Job>) {
        let error = poll_fn(|cx| self.poll(cx, waiting, inbox)).await;
        for place in &mut self.places {
            place.lose(error.as_ref());
        }
    }

    /// Ready when the channel is of no more use, with the error that ended it.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        waiting: &mut VecDeque<Job>,
        inbox: &mut mpsc::Receiver<Job>,
    ) -> Poll<Option<lapin::Error>> {
        self.ready.task.register(cx.waker());
        loop {
            let heard = self.look_at_news();
            if self.failed.is_some() || !self.channel.status().connected() {
                return self.end(cx);
            }
            let closed = self.fetch(cx, waiting, inbox);
            let started = self.start_some(waiting);
            if closed && waiting.is_empty() && self.free.len() == self.places.len() {
                return Poll::Ready(None);
            }
            if !(heard || started || self.expire(cx, waiting)) {
                return Poll::Pending;
            }
        }
    }

    /// lapin takes a channel for closed a moment before it fails what is under way with what the broker said. That is waited
    /// for: without it nobody knows of which message the broker spoke.
    fn end(&mut self, cx: &mut Context<'_>) -> Poll<Option<lapin::Error>> {
        let is_told = self.failed.as_ref().is_some_and(is_the_brokers);
        if !is_told && self.places.iter().any(|place| place.sending.is_under_way()) {
            let until = *self.ends.get_or_insert_with(|| Instant::now() + LAST_WORDS);
            self.timer.as_mut().reset(until);
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        Poll::Ready(self.failed.take())
    }

    /// Takes messages over, as many as the window holds. True when there will be no more.
    fn fetch(
        &mut self,
        cx: &mut Context<'_>,
        waiting: &mut VecDeque<Job>,
        inbox: &mut mpsc::Receiver<Job>,
    ) -> bool {
        while waiting.len() < self.places.len() {
            match inbox.poll_recv(cx) {
                Poll::Ready(Some(job)) => waiting.push_back(job),
                Poll::Ready(None) => return true,
                Poll::Pending => return false,
            }
        }
        false
    }

    fn start_some(&mut self, waiting: &mut VecDeque<Job>) -> bool {
        let mut started = false;
        while let Some(index) = self.free.pop() {
            let Some(job) = waiting.pop_front() else {
                self.free.push(index);
                break;
            };
            started = true;
            self.start(index, job);
        }
        if let Some(job) = waiting.front() {
            self.due = Some(self.due.map_or(job.expires, |due| due.min(job.expires)));
        }
        started
    }

    /// Writes one message. Polling it here puts its frames in line: the order of calls is the order on the wire.
    fn start(&mut self, index: usize, job: Job) {
        let (size, limit) = (encoded_size(&job.letter.properties), self.live.frame_max());
        if size > limit {
            self.free.push(index);
            return job.answer(Err(Fate::TooLarge { size, limit }));
        }
        let Job { letter: Letter { exchange, routing_key, properties, body }, expires, done } = job;
        let place = &mut self.places[index];
        place.publish = self.returns.published();
        place.key = key(&self.keys, exchange.as_str(), routing_key.as_str(), &properties, &body);
        place.exchange = exchange.clone();
        place.expires = expires;
        place.done = Some(done);
        self.due = Some(self.due.map_or(expires, |due| due.min(expires)));
        let channel = Arc::clone(&self.channel);
        // the broker takes a reply to nowhere for unroutable, whether somebody waits for it or not
        let mandatory = !(exchange.as_str().is_empty() && routing_key.as_str().starts_with(DIRECT));
        place.sending.start(async move {
            let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
            channel.basic_publish(exchange, routing_key, options, &body, properties).await?.await
        });
        self.look(index);
    }

    /// Looks at every publish that lapin has news of, and at those it has news of meanwhile: a round of [`Returns`].
    fn look_at_news(&mut self) -> bool {
        let mut heard = false;
        loop {
            let mut news = std::mem::take(&mut self.news);
            self.ready.take(&mut news);
            if news.is_empty() {
                self.news = news;
                break;
            }
            heard = true;
            for index in news.drain(..) {
                self.places[index].signal.raised.store(false, Ordering::Release);
                self.look(index);
            }
            self.news = news;
        }
        let (places, free) = (&mut self.places, &mut self.free);
        self.returns.end_round(|index, verdict| {
            places[index].finish(verdict);
            free.push(index);
        });
        heard
    }

    fn look(&mut self, index: usize) {
        let place = &mut self.places[index];
        let Poll::Ready(outcome) = place.sending.poll(&mut Context::from_waker(&place.waker)) else {
            return;
        };
        let (accepted, carried) = match outcome {
            Ok(Confirmation::Ack(carried)) => (true, carried),
            Ok(Confirmation::Nack(carried)) => (false, carried),
            Ok(Confirmation::NotRequested) => (false, None),
            Err(error) => {
                // what was just to be sent fails by the state of the channel, and says nothing of why
                if self.failed.as_ref().is_none_or(|known| is_the_brokers(&error) && !is_the_brokers(known)) {
                    self.failed = Some(error);
                }
                return;
            }
        };
        let carried = carried.map(|message| returned_key(&self.keys, &message));
        let verdict = self.returns.confirmed(place.publish, index, place.key, accepted, carried);
        if let Some(verdict) = verdict {
            place.finish(verdict);
            self.free.push(index);
        }
    }

    /// Answers those whose deadline has passed. True when there were any.
    fn expire(&mut self, cx: &mut Context<'_>, waiting: &mut VecDeque<Job>) -> bool {
        let Some(due) = self.due else { return false };
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
        if self.timer.as_mut().poll(cx).is_pending() {
            return false;
        }
        let now = Instant::now();
        while waiting.front().is_some_and(|job| job.expires <= now) {
            let Some(job) = waiting.pop_front() else { break };
            job.answer(Err(Fate::Crowded(if self.live.is_blocked() { BLOCKED } else { CROWDED })));
        }
        let mut due = waiting.front().map(|job| job.expires);
        for place in self.places.iter_mut().filter(|place| place.done.is_some()) {
            if place.expires <= now {
                place.answer(Err(Fate::Unknown(None)));
            } else {
                due = Some(due.map_or(place.expires, |due| due.min(place.expires)));
            }
        }
        self.due = due;
        true
    }
}

impl Place {
    fn new(index: usize, ready: &Arc<Ready>) -> Self {
        let signal = Arc::new(Signal { index, raised: AtomicBool::new(false), ready: Arc::clone(ready) });
        Self {
            waker: Waker::from(Arc::clone(&signal)),
            signal,
            sending: Sending::default(),
            publish: 0,
            key: 0,
            exchange: ShortString::default(),
            expires: Instant::now(),
            done: None,
        }
    }

    fn finish(&mut self, verdict: Verdict) {
        self.answer(match verdict {
            Verdict::Routed => Ok(()),
            Verdict::Returned => Err(Fate::Unroutable(None)),
            Verdict::Refused => Err(Fate::Rejected(None)),
        });
    }

    /// The channel is gone. An error that names this message's exchange is about this message; of all others nobody knows.
    fn lose(&mut self, error: Option<&lapin::Error>) {
        let named = error.filter(|error| text(error).contains(&format!("exchange '{}'", self.exchange)));
        let fate = match named.map(|error| (sort(error), error)) {
            Some((Sort::NotFound, error)) => Fate::Unroutable(Some(error.clone())),
            Some((Sort::Refused, error)) => Fate::Rejected(Some(error.clone())),
            _ => Fate::Unknown(error.cloned()),
        };
        self.answer(Err(fate));
    }

    fn answer(&mut self, answer: Result<(), Fate>) {
        if let Some(done) = self.done.take() {
            // this fails where nobody waits any more
            let _ = done.send(answer);
        }
    }
}

/// Which publishes lapin has news of, in the order in which it had them.
#[derive(Default)]
struct Ready {
    indices: Mutex<Vec<usize>>,
    task: AtomicWaker,
}

impl Ready {
    fn take(&self, into: &mut Vec<usize>) {
        std::mem::swap(&mut *self.indices.lock().unwrap_or_else(PoisonError::into_inner), into);
    }
}

/// One place's waker.
struct Signal {
    index: usize,
    raised: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            self.ready.indices.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
            self.ready.task.wake();
        }
    }
}

/// Identifies a message among those under way: by its id, or by its body where it has none.
fn key(
    keys: &RandomState,
    exchange: &str,
    routing_key: &str,
    properties: &AMQPProperties,
    body: &[u8],
) -> u64 {
    let mut hasher = keys.build_hasher();
    (exchange, routing_key).hash(&mut hasher);
    match properties.message_id() {
        Some(id) => id.as_str().hash(&mut hasher),
        None => body.hash(&mut hasher),
    }
    hasher.finish()
}

fn returned_key(keys: &RandomState, message: &BasicReturnMessage) -> u64 {
    let delivery = &message.delivery;
    key(keys, delivery.exchange.as_str(), delivery.routing_key.as_str(), &delivery.properties, &delivery.data)
}
