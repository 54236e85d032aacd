//! The embedded broker keeps nothing over its process, so what dies here is the worker alone: its runtime is taken away with
//! everything on it, wherever each task was.

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use steadfast::prelude::*;
use steadfast::{Journal, Outgoing, Redrive, RedriveError, Report};
use steadfast_testbed::unique;
use steadfast_tests::ids;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use crate::plant::{is_poison, name};

const QUEUE: &str = "steps";
const DEAD: &str = "steps.dead";
const KILLS: usize = 25;
/// Long enough for a busy machine; whatever is waited for ends the wait.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Serialize, Deserialize, Message)]
#[message(name = "job")]
struct Job {
    id: usize,
}

/// What was finished, and after how many attempts more somebody is to be told.
#[derive(Default)]
struct Seen {
    done: Mutex<Vec<String>>,
    left: AtomicUsize,
    told: Notify,
}

impl Seen {
    fn attempt(&self) {
        let less = |left: usize| left.checked_sub(1);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) == Ok(1) {
            self.told.notify_one();
        }
    }
}

#[derive(Handler)]
#[handler(Job)]
struct Worker(Arc<Seen>);

impl Handle<Job> for Worker {
    async fn handle(&self, job: Job, _: &Context) -> Result<(), Failure> {
        // so that some are in the middle of it when all of it goes
        tokio::task::yield_now().await;
        self.0.attempt();
        if is_poison(job.id) {
            return Err(Failure::retry("never works"));
        }
        self.0.done.lock().expect("whole").push(name(job.id));
        Ok(())
    }
}

/// A process, as far as tasks go.
fn process() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("builds")
}

/// Runs it on a process of its own until `kill` resolves, and takes that away then.
async fn killed_at(work: impl Future<Output = ()> + Send + 'static, kill: impl Future<Output = ()>) {
    let process = process();
    process.spawn(work);
    tokio::time::timeout(PATIENCE, kill).await.expect("it gets that far");
    process.shutdown_background();
}

async fn work(url: String, seen: Arc<Seen>) {
    let broker = steadfast::connect(&url).await.expect("is there");
    let consumer = Consumer::new("jobs", Source::queue(QUEUE))
        .handler(move || Worker(Arc::clone(&seen)))
        .concurrency(8)
        .retry(Retry::exponential(1.millis()..5.millis()).max_attempts(3));
    let tree = Supervisor::new("worker").consumer(consumer).start(broker).await.expect("starts");
    tree.ended().await.expect("goes on until it is killed");
}

async fn redrive(url: String, folder: PathBuf) -> Result<Report, RedriveError> {
    let broker = steadfast::connect(&url).await.expect("is there");
    let operator = broker.operator().expect("has one");
    let mut journal = Journal::open(folder.join("journal"), "fix")?;
    let job = Redrive::new("fix").ramp([], Duration::ZERO).rate(2_000.0);
    job.run(&*operator, DEAD, &mut journal, |_| ControlFlow::Continue(())).await
}

fn each_once(found: Vec<String>, expected: &BTreeSet<String>) -> bool {
    found.len() == expected.len() && found.into_iter().collect::<BTreeSet<_>>() == *expected
}

pub(crate) async fn each_ends_in_one_place(messages: usize) {
    let url = format!("embedded:{}", unique("steps"));
    let broker = steadfast::connect(&url).await.expect("is there");
    broker.declare(&Source::queue(QUEUE)).await.expect("declares");
    let operator = broker.operator().expect("has one");
    let publisher = broker.publisher().await.expect("publishes");
    for id in 0..messages {
        let mut message = Outgoing::new(QUEUE, format!(r#"{{"id":{id}}}"#));
        message.message_id = name(id);
        publisher.send(message).await.expect("published");
    }

    let seen = Arc::new(Seen::default());
    for kill in 0..KILLS {
        // another number each time, so that it is another step
        seen.left.store(messages / KILLS / 2 + 7 * kill, Ordering::Relaxed);
        killed_at(work(url.clone(), Arc::clone(&seen)), seen.told.notified()).await;
    }
    let open = async || {
        let inspection = operator.inspect(&Source::queue(QUEUE)).await.expect("tells");
        [inspection.ready, inspection.unsettled, inspection.delayed].into_iter().flatten().sum::<u64>()
    };
    let all_settled = async {
        while open().await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    killed_at(work(url.clone(), Arc::clone(&seen)), all_settled).await;

    let finished = seen.done.lock().expect("whole").clone();
    let (poison, sound): (BTreeSet<usize>, BTreeSet<usize>) = (0..messages).partition(|id| is_poison(*id));
    let named = |ids: BTreeSet<usize>| ids.into_iter().map(name).collect::<BTreeSet<_>>();
    let (poison, sound) = (named(poison), named(sound));
    let dead = ids(&*operator, DEAD).await;
    let undone: Vec<_> = sound.difference(&finished.iter().cloned().collect()).cloned().collect();
    assert!(undone.is_empty(), "each that can be is done, and not {undone:?}; dead are {dead:?}");
    assert!(each_once(dead, &poison));

    let folder = std::env::temp_dir().join(unique("steps"));
    fs::create_dir(&folder).expect("makes a folder");
    for kill in 1..=KILLS / 5 {
        let some_sent = async {
            while ids(&*operator, QUEUE).await.len() < kill * poison.len() / KILLS {
                tokio::task::yield_now().await;
            }
        };
        let work = redrive(url.clone(), folder.clone());
        // whatever it says when its process goes
        killed_at(async { drop(work.await) }, some_sent).await;
    }
    let report = redrive(url.clone(), folder.clone()).await.expect("runs to its end");
    assert!(report.uncertain.is_empty(), "moved in one step: {report:?}");
    let (sent, stay) = (ids(&*operator, QUEUE).await, ids(&*operator, DEAD).await);
    assert!(stay.is_empty(), "{stay:?}");
    assert!(each_once(sent, &poison));
    println!(
        "embedded: {messages} messages, {KILLS} kills and {} of the redrive, {} done twice",
        KILLS / 5,
        finished.len() - sound.len()
    );
    fs::remove_dir_all(&folder).expect("is removed");
}
