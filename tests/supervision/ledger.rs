//! What was published, what was handled, and when: the verdict on every run is taken from here.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use steadfast::{Context, Failure, Handle, Handler, Message, Outgoing, Publisher};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// Longest wait for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize, Message)]
#[message(name = "job")]
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) order: Order,
}

/// What the handler is to do with it.
#[derive(Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) enum Order {
    Work,
    /// Panics at the first attempt.
    Panic,
    /// Does not end when it is seen for the first time.
    Hang,
}

/// The messages of one queue.
pub(crate) struct Ledger {
    books: Mutex<Books>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Books {
    next: u64,
    /// The broker said that it has them.
    confirmed: Vec<u64>,
    seen: HashMap<u64, u32>,
    handled: HashMap<u64, Vec<Instant>>,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { books: Mutex::default(), changed: watch::Sender::new(()) }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().expect("nothing panics while it is held")
    }

    /// Publishes until the broker confirms it, always as the same message.
    pub(crate) async fn publish(&self, publisher: &dyn Publisher, queue: &str, order: Order) {
        let id = {
            let mut books = self.books();
            books.next += 1;
            books.next
        };
        let body = serde_json::to_vec(&Job { id, order }).expect("encodes");
        let message = Outgoing { message_type: Some("job".to_owned()), ..Outgoing::new(queue, body) };
        while publisher.send(message.clone()).await.is_err() {
            // the broker is away, or the queue is: how often it is asked decides nothing here
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.books().confirmed.push(id);
        self.changed.send_replace(());
    }

    /// How often it was seen, this time included.
    fn see(&self, id: u64) -> u32 {
        let mut books = self.books();
        let times = books.seen.entry(id).or_default();
        *times += 1;
        *times
    }

    fn handle(&self, id: u64) {
        self.books().handled.entry(id).or_default().push(Instant::now());
        self.changed.send_replace(());
    }

    async fn until<T>(&self, what: &str, mut ask: impl FnMut(&Books) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        let asked = async {
            loop {
                changed.borrow_and_update();
                if let Some(answer) = ask(&self.books()) {
                    return answer;
                }
                changed.changed().await.expect("the ledger is here");
            }
        };
        let Ok(answer) = timeout(PATIENCE, asked).await else {
            panic!("not within {PATIENCE:?}: {what}; {}", self.summary());
        };
        answer
    }

    /// Waits for so many handled messages.
    pub(crate) async fn until_handled(&self, count: usize) {
        self.until(&format!("{count} handled"), |books| (books.handled.len() >= count).then_some(())).await;
    }

    /// When the first message after `since` was handled; waits for one.
    pub(crate) async fn worked_after(&self, since: Instant) -> Instant {
        self.until("work after the fault", |books| {
            books.handled.values().flatten().copied().filter(|at| *at >= since).min()
        })
        .await
    }

    /// Waits until everything confirmed was handled, and holds that nothing else was, or too often.
    pub(crate) async fn settle(&self, most_doubled: usize) {
        self.until("all that was confirmed to be handled", |books| {
            books.confirmed.iter().all(|id| books.handled.contains_key(id)).then_some(())
        })
        .await;
        let books = self.books();
        assert!(books.handled.keys().all(|id| *id <= books.next), "handled what was never published");
        let doubled = books.handled.values().filter(|times| times.len() > 1).count();
        assert!(doubled <= most_doubled, "{doubled} were handled more than once");
    }

    fn summary(&self) -> String {
        let books = self.books();
        format!("{} confirmed, {} handled", books.confirmed.len(), books.handled.len())
    }
}

/// The handler of all these tests.
#[derive(Handler)]
#[handler(Job)]
pub(crate) struct Worker(pub(crate) std::sync::Arc<Ledger>);

impl Handle<Job> for Worker {
    async fn handle(&self, job: Job, cx: &Context) -> Result<(), Failure> {
        let seen = self.0.see(job.id);
        match job.order {
            Order::Panic if cx.attempt() == 1 => panic!("told to panic"),
            Order::Hang if seen == 1 => std::future::pending().await,
            Order::Work | Order::Panic | Order::Hang => {}
        }
        self.0.handle(job.id);
        Ok(())
    }
}
