//! A stream that is published to all the time and its supervised consumer: what was confirmed, and what became of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use redis::{ConnectionLike, FromRedisValue, cmd};
use serde::{Deserialize, Serialize};
use steadfast::prelude::*;
use steadfast_core::{Outgoing, PublishError};
use steadfast_streams::{Group, Stream, Streams};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// Most deliveries of one consumer that are unsettled, and may come again after a fault.
pub(crate) const IN_FLIGHT: usize = 16;

/// Longest wait for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize, Message)]
#[message(name = "job")]
struct Job {
    id: u64,
}

/// One in ten ends in the dead letters, after three attempts.
fn dies(id: u64) -> bool {
    id.is_multiple_of(10)
}

/// Two in ten are done at the second attempt.
fn fails_once(id: u64) -> bool {
    id % 5 == 1
}

pub(crate) struct Load {
    pub(crate) stream: String,
    dead: String,
    books: Arc<Books>,
}

#[derive(Default)]
struct Books {
    confirmed: Mutex<Vec<u64>>,
    /// When each was done, every time.
    done: Mutex<BTreeMap<u64, Vec<Instant>>>,
    /// Sent once more because nobody knew what had become of it.
    again: AtomicUsize,
    enough: AtomicBool,
    changed: watch::Sender<()>,
}

impl Load {
    pub(crate) fn new(stream: String, dead: String) -> Self {
        Self { stream, dead, books: Arc::default() }
    }

    pub(crate) fn group(&self) -> Group {
        let group = Stream::new(&*self.stream).group("workers");
        group.min_idle(Duration::from_secs(1)).block(Duration::from_millis(500))
    }

    pub(crate) fn consumer(&self, name: &'static str) -> Consumer {
        let books = Arc::clone(&self.books);
        let handle = move || {
            let books = Arc::clone(&books);
            handler_fn(move |job: Job, cx: Context| {
                std::future::ready(if dies(job.id) || fails_once(job.id) && cx.attempt() == 1 {
                    Err(Failure::retry("not this time"))
                } else {
                    books.done().entry(job.id).or_default().push(Instant::now());
                    books.changed.send_replace(());
                    Ok(())
                })
            })
        };
        Consumer::new(name, self.group())
            .handler(handle)
            .concurrency(4)
            .max_in_flight(IN_FLIGHT)
            .retry(Retry::fixed(50.millis()).max_attempts(3))
            .dead_letter(&*self.dead)
    }

    /// Publishes, one after the other, until [`Load::close`].
    pub(crate) fn publish(&self, broker: Arc<dyn Broker>) -> JoinHandle<()> {
        let (books, stream) = (Arc::clone(&self.books), self.stream.clone());
        tokio::spawn(async move {
            let publisher = broker.publisher().await.expect("publishes");
            for id in 1.. {
                if books.enough.load(Ordering::Acquire) {
                    return;
                }
                books.send(&*publisher, &stream, id).await;
                // the pace of the load
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    }

    /// One that appears later.
    pub(crate) async fn publish_after(&self, broker: &Streams, id: u64, after: Duration) {
        let (message, start) = (message(&self.stream, id), Instant::now());
        while let Err(error) = broker.publish_after(message.clone(), after).await {
            self.books.again(start, &error).await;
        }
        self.books.confirmed().push(id);
    }

    /// One by one, each until it is confirmed.
    pub(crate) async fn publish_these(&self, publisher: &dyn Publisher, ids: impl Iterator<Item = u64>) {
        for id in ids {
            self.books.send(publisher, &self.stream, id).await;
        }
    }

    /// How many were done so far.
    pub(crate) fn count(&self) -> usize {
        self.books.done().len()
    }

    /// Waits until so many are done.
    pub(crate) async fn until_done(&self, count: usize) {
        self.until(&format!("{count} done"), |done| (done.len() >= count).then_some(())).await;
    }

    /// When the first one after `since` was done; waits for one.
    pub(crate) async fn done_after(&self, since: Instant) -> Instant {
        let first = |done: &BTreeMap<u64, Vec<Instant>>| {
            done.values().flatten().copied().filter(|at| *at > since).min()
        };
        self.until("one done after the fault", first).await
    }

    /// When this one was done first.
    pub(crate) fn done_at(&self, id: u64) -> Option<Instant> {
        self.books.done().get(&id).and_then(|times| times.first().copied())
    }

    async fn until<T>(&self, what: &str, ask: impl Fn(&BTreeMap<u64, Vec<Instant>>) -> Option<T>) -> T {
        let mut changed = self.books.changed.subscribe();
        let asked = async {
            loop {
                changed.borrow_and_update();
                if let Some(answer) = ask(&self.books.done()) {
                    return answer;
                }
                changed.changed().await.expect("the books are here");
            }
        };
        let Ok(answer) = timeout(PATIENCE, asked).await else {
            let (confirmed, done) = (self.books.confirmed().len(), self.count());
            panic!(
                "not within {PATIENCE:?}: {what}; {confirmed} of `{}` confirmed, {done} done",
                self.stream
            );
        };
        answer
    }

    /// Ends the load, and holds that all of it ended where it must and stays nowhere else, little of it twice: after each
    /// fault what was in flight, and what was sent again.
    pub(crate) async fn close(self, raw: &mut (dyn ConnectionLike + Send), faults: usize) {
        self.books.enough.store(true, Ordering::Release);
        let start = Instant::now();
        let left = loop {
            let left = self.left(raw);
            if left.is_empty() {
                break left;
            }
            assert!(start.elapsed() < PATIENCE, "of `{}`: {}", self.stream, left.join(", "));
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        drop(left);
        let (done, dead) = (self.books.done().clone(), self.dead(raw));
        assert!(!done.keys().any(|id| dies(*id)), "done, and not dead");
        assert!(dead.keys().all(|id| dies(*id)), "dead, and not done");
        let twice = done.values().map(|times| times.len() - 1).chain(dead.values().map(|times| times - 1));
        let (twice, again) = (twice.sum::<usize>(), self.books.again.load(Ordering::Relaxed));
        println!(
            "`{}`: {} done, {} dead, {twice} twice, {again} sent again",
            self.stream,
            done.len(),
            dead.len()
        );
        assert!(twice <= faults * IN_FLIGHT + again, "{twice} twice");
    }

    /// What is still to come, for a person.
    fn left(&self, raw: &mut (dyn ConnectionLike + Send)) -> Vec<String> {
        let (done, dead, confirmed) =
            (self.books.done().clone(), self.dead(raw), self.books.confirmed().clone());
        let ended = |id: &u64| if dies(*id) { dead.contains_key(id) } else { done.contains_key(id) };
        let open: Vec<_> = confirmed.iter().filter(|id| !ended(id)).collect();
        let group = self.group();
        let (pending, ..): (usize, redis::Value, redis::Value, redis::Value) =
            ask(raw, &["XPENDING", &self.stream, "workers"]);
        let delayed: usize = ask(raw, &["ZCARD", &group.delay_key()]);
        let open_too = (!open.is_empty()).then(|| format!("{open:?} neither done nor dead"));
        let counts = [(pending, "pending"), (delayed, "delayed")];
        let counted = counts.iter().filter(|(count, _)| *count > 0);
        counted.map(|(count, what)| format!("{count} {what}")).chain(open_too).collect()
    }

    /// How often each is among the dead letters.
    fn dead(&self, raw: &mut (dyn ConnectionLike + Send)) -> BTreeMap<u64, usize> {
        let entries: Vec<(String, BTreeMap<String, String>)> = ask(raw, &["XRANGE", &self.dead, "-", "+"]);
        let mut dead = BTreeMap::new();
        for (_, fields) in entries {
            let job: Job = serde_json::from_str(&fields["body"]).expect("a job");
            *dead.entry(job.id).or_default() += 1;
        }
        dead
    }
}

impl Books {
    fn done(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<Instant>>> {
        self.done.lock().expect("nothing panics while it is held")
    }

    fn confirmed(&self) -> MutexGuard<'_, Vec<u64>> {
        self.confirmed.lock().expect("nothing panics while it is held")
    }

    async fn send(&self, publisher: &dyn Publisher, stream: &str, id: u64) {
        let (message, start) = (message(stream, id), Instant::now());
        while let Err(error) = publisher.send(message.clone()).await {
            self.again(start, &error).await;
        }
        self.confirmed().push(id);
    }

    /// As an application does: the same message goes again until the server has it.
    async fn again(&self, start: Instant, error: &PublishError) {
        assert!(start.elapsed() < PATIENCE, "not stored: {error}");
        self.again.fetch_add(1, Ordering::Relaxed);
        // the node is away: how often it is asked decides nothing here
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn message(stream: &str, id: u64) -> Outgoing {
    let mut message = Outgoing::new(stream, serde_json::to_vec(&Job { id }).expect("encodes"));
    message.message_type = Some("job".to_owned());
    message
}

fn ask<T: FromRedisValue>(raw: &mut (dyn ConnectionLike + Send), command: &[&str]) -> T {
    cmd(command[0]).arg(&command[1..]).query(raw).expect("answers")
}
