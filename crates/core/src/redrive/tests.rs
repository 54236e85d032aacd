//! The job against a queue of its own, which crashes between any two steps and comes back.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::BoxFuture;

use super::*;
use crate::broker::{Destination, Source};
use crate::delivery::{Incoming, Origin, Token};
use crate::error::{OperateError, OperateErrorKind};
use crate::headers::known;
use crate::letter::Letter;
use crate::operate::{Forward, Forwarded, Inspection, Operator, Walk};

/// A queue of dead letters, and all that was ever sent out of it. Like RabbitMQ it shows a letter only by handing it out,
/// and sending one on takes two steps.
#[derive(Debug, Default)]
struct World {
    queue: VecDeque<Incoming>,
    came: u64,
    sent: Vec<(Destination, Incoming)>,
    /// Steps until everything stops, if it is to.
    crash_in: Option<u32>,
    /// Whether what is sent comes straight back.
    fails: bool,
}

#[derive(Clone, Debug, Default)]
struct Sim(Arc<Mutex<World>>);

impl Sim {
    fn with(letters: u32) -> Self {
        let sim = Self::default();
        sim.world().queue = (0..letters).map(letter).collect();
        sim
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("whole")
    }

    /// One step at the broker, unless the process is dead by then.
    fn step(&self) -> Result<MutexGuard<'_, World>, OperateError> {
        let mut world = self.world();
        match &mut world.crash_in {
            Some(0) => Err(OperateError::new(OperateErrorKind::Unknown, "the process is gone")),
            Some(left) => {
                *left -= 1;
                Ok(world)
            }
            None => Ok(world),
        }
    }
}

fn letter(id: u32) -> Incoming {
    let mut message = Incoming::new(format!("{{\"id\":{id}}}"), Origin::default());
    message.message_id = Some(format!("m-{id}"));
    message.headers.set(known::REASON, "exhausted").set(known::SOURCE, "orders");
    message.headers.set(known::LAST_FAILURE, 1_000_i64).set(known::REDRIVE_COUNT, 0_u32);
    message
}

struct SimWalk {
    sim: Sim,
    total: u64,
    came_before: u64,
    held: Mutex<Vec<Option<Incoming>>>,
}

impl SimWalk {
    fn take(&self, mark: Token) -> Option<Incoming> {
        self.held.lock().expect("whole")[usize::try_from(mark.0).expect("small")].take()
    }
}

impl Drop for SimWalk {
    /// Its channel is closed: what it held goes back to its place.
    fn drop(&mut self) {
        let held = std::mem::take(&mut *self.held.lock().expect("whole"));
        let mut world = self.sim.world();
        for letter in held.into_iter().rev().flatten() {
            world.queue.push_front(letter);
        }
    }
}

impl Operator for Sim {
    fn inspect<'a>(&'a self, _: &'a Source) -> BoxFuture<'a, Result<Inspection, OperateError>> {
        Box::pin(async { Ok(Inspection::new("queue", "dead")) })
    }

    fn walk<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Arc<dyn Walk>, OperateError>> {
        Box::pin(async {
            let world = self.world();
            let (total, came_before) = (world.queue.len() as u64, world.came);
            drop(world);
            let walk = SimWalk { sim: self.clone(), total, came_before, held: Mutex::default() };
            Ok(Arc::new(walk) as Arc<dyn Walk>)
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

impl Walk for SimWalk {
    fn total(&self) -> u64 {
        self.total
    }

    fn atomic(&self) -> bool {
        false
    }

    fn next(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Letter>, OperateError>> {
        Box::pin(async move {
            let mut world = self.sim.step()?;
            let mut held = self.held.lock().expect("whole");
            let mut page = Vec::new();
            while page.len() < limit && (held.len() as u64) < self.total {
                let Some(message) = world.queue.pop_front() else { break };
                page.push(Letter { mark: Token(held.len() as u64, 0), message: Arc::new(message.clone()) });
                held.push(Some(message));
            }
            Ok(page)
        })
    }

    fn forward<'a>(
        &'a self,
        letter: &'a Letter,
        forward: &'a Forward,
    ) -> BoxFuture<'a, Result<Forwarded, OperateError>> {
        Box::pin(async move {
            let mut world = self.sim.step()?;
            let mut copy = (*letter.message).clone();
            copy.headers.merge(&forward.set);
            if let Some(id) = &forward.message_id {
                copy.message_id = Some(id.clone());
            }
            if world.fails && forward.restore {
                world.queue.push_back(copy.clone());
                world.came += 1;
            }
            world.sent.push((forward.to.clone(), copy));
            drop(world);
            // in between the process may die, and the letter is still there
            if self.sim.step().is_err() {
                return Ok(Forwarded::Copied);
            }
            self.take(letter.mark);
            Ok(Forwarded::Moved)
        })
    }

    fn discard(&self, mark: Token) -> BoxFuture<'_, Result<bool, OperateError>> {
        Box::pin(async move {
            let _world = self.sim.step()?;
            Ok(self.take(mark).is_some())
        })
    }

    fn keep(&self, _: Token) {}

    fn returned<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<u64, OperateError>> {
        Box::pin(async { Ok(self.sim.step()?.came - self.came_before) })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), OperateError>> {
        Box::pin(async { Ok(()) })
    }
}

/// A file that is deleted afterwards.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        let file = format!("steadfast-{name}-{}-{}.journal", std::process::id(), uuid::Uuid::now_v7());
        Self(std::env::temp_dir().join(file))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        for path in [self.0.clone(), self.0.with_extension("journal.undone")] {
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn run(job: &Redrive, sim: &Sim, journal: &mut Journal) -> Result<Report, RedriveError> {
    job.run(sim, "orders.dead", journal, |_| ControlFlow::Continue(())).await
}

fn job(name: &str) -> Redrive {
    Redrive::new(name).ramp([], Duration::ZERO)
}

#[tokio::test(start_paused = true)]
async fn every_letter_goes_once_with_the_job_and_the_count_on_it() {
    let sim = Sim::with(200);
    let report = run(&job("j"), &sim, &mut Journal::in_memory()).await.expect("runs");
    assert_eq!((report.end, report.sent, report.seen), (End::Done, 200, 200));
    let world = sim.world();
    assert!(world.queue.is_empty());
    for (number, (to, message)) in world.sent.iter().enumerate() {
        assert_eq!((to.name(), &*message.id()), ("orders", &*format!("m-{number}")));
        assert_eq!(message.headers.int(known::REDRIVE_COUNT), Ok(Some(1)));
        assert_eq!(message.headers.text(known::REDRIVE_JOB), Ok(Some("j")));
    }
}

/// Killed after every possible number of steps, and resumed: no letter is sent twice, none is lost, and what nobody can
/// know is in the dead letters and named.
#[tokio::test(start_paused = true)]
async fn a_job_killed_at_any_step_is_resumed_without_sending_anything_twice() {
    for kill in 0..50 {
        let (sim, file) = (Sim::with(20), File::new("kill"));
        sim.world().crash_in = Some(kill);
        let mut journal = Journal::open(&file.0, "j").expect("opens");
        let killed = run(&job("j"), &sim, &mut journal).await;
        drop((killed, journal));
        sim.world().crash_in = None;
        let mut journal = Journal::open(&file.0, "j").expect("opens again");
        let report = run(&job("j"), &sim, &mut journal).await.expect("goes on");
        let world = sim.world();
        let mut sent: Vec<_> = world.sent.iter().map(|(_, message)| message.id().into_owned()).collect();
        let all = sent.len();
        sent.sort();
        sent.dedup();
        assert_eq!(sent.len(), all, "killed after {kill} steps: something was sent twice");
        let left: Vec<_> = world.queue.iter().map(|letter| letter.id().into_owned()).collect();
        assert_eq!(left, report.uncertain, "killed after {kill} steps");
        for id in 0..20 {
            let id = format!("m-{id}");
            assert!(sent.contains(&id) || left.contains(&id), "killed after {kill} steps: {id} is lost");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_that_still_fails_is_stopped_within_the_first_step() {
    let sim = Sim::with(500);
    sim.world().fails = true;
    let job = Redrive::new("j").ramp([2, 5, 10], Duration::from_secs(1));
    let report = run(&job, &sim, &mut Journal::in_memory()).await.expect("runs");
    assert_eq!((report.end, report.sent, report.failed_again), (End::StoppedItself, 2, 2));
    let job = Redrive::new("k").ramp([2, 5, 10], Duration::from_secs(1)).stop_above(1.0);
    let report = run(&job, &sim, &mut Journal::in_memory()).await.expect("runs");
    assert_eq!((report.end, report.sent), (End::Done, 500), "1 is never, and a letter goes once");
}

#[tokio::test(start_paused = true)]
async fn two_operators_at_once_send_each_letter_once() {
    let sim = Sim::with(300);
    let (one, two) = (job("one").rate(1000.0), job("two").rate(1000.0));
    let (mut first, mut second) = (Journal::in_memory(), Journal::in_memory());
    let (a, b) = tokio::join!(run(&one, &sim, &mut first), run(&two, &sim, &mut second));
    let (a, b) = (a.expect("runs"), b.expect("runs"));
    assert_eq!(a.sent + b.sent, 300);
    let mut ids: Vec<_> = sim.world().sent.iter().map(|(_, message)| message.id().into_owned()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 300);
}

#[tokio::test(start_paused = true)]
async fn a_limit_counts_over_all_runs_and_what_does_not_fit_stays() {
    let (sim, file) = (Sim::with(30), File::new("limit"));
    let filter = Filter { ids: (0..10).map(|id| format!("m-{}", id * 3)).collect(), ..Filter::default() };
    let job = job("j").filter(filter).limit(4);
    for expected in [4, 0] {
        let mut journal = Journal::open(&file.0, "j").expect("opens");
        assert_eq!(run(&job, &sim, &mut journal).await.expect("runs").sent, expected);
    }
    let preview = job.preview(&sim, "orders.dead").await.expect("counts");
    assert_eq!(preview, Preview { fit: 6, total: 26 });
    assert_eq!(sim.world().queue.len(), 26);
}

#[tokio::test(start_paused = true)]
async fn an_undone_job_sends_nothing_more() {
    let (sim, file) = (Sim::with(200), File::new("undo"));
    let mut journal = Journal::open(&file.0, "j").expect("opens");
    let path = file.0.clone();
    let undo_after = |progress: Progress| {
        if progress.sent >= 3 {
            Journal::undo(&path).expect("undoes");
        }
        ControlFlow::Continue(())
    };
    let job = Redrive::new("j").ramp([1, 2, 5], Duration::from_secs(1));
    let report = job.run(&sim, "orders.dead", &mut journal, undo_after).await.expect("runs");
    assert_eq!((report.end, report.sent), (End::Undone, 3));
    assert_eq!(sim.world().queue.len(), 197);
    assert!(Journal::open(&file.0, "j").expect_err("over").to_string().contains("undone"));
}

#[tokio::test(start_paused = true)]
async fn what_was_redriven_too_often_is_parked_and_an_edited_letter_is_a_new_message() {
    let sim = Sim::with(2);
    sim.world().queue[0].headers.set(known::REDRIVE_COUNT, 3_u32);
    let parks = job("j").park_after(3, "orders.parked");
    let report = run(&parks, &sim, &mut Journal::in_memory()).await.expect("runs");
    assert_eq!((report.parked, report.sent), (1, 1));
    assert_eq!(sim.world().sent[0].0.name(), "orders.parked");

    let sim = Sim::with(3);
    let edits = job("j").edit("{}");
    let report = run(&edits, &sim, &mut Journal::in_memory()).await.expect("runs");
    assert_eq!((report.sent, sim.world().queue.len()), (1, 2));
    let edited = sim.world().sent[0].1.clone();
    assert_ne!(edited.id(), "m-0");
    assert_eq!(edited.headers.text(known::EDITED_FROM), Ok(Some("m-0")));
}

#[tokio::test(start_paused = true)]
async fn a_letter_without_an_address_stays_and_is_named() {
    let sim = Sim::with(2);
    sim.world().queue[0].headers.remove(known::SOURCE);
    let report = run(&job("j"), &sim, &mut Journal::in_memory()).await.expect("runs");
    assert_eq!((report.sent, report.kept_count), (1, 1));
    assert!(report.kept[0].1.contains("name a queue"), "{:?}", report.kept);
    assert_eq!(sim.world().queue.len(), 1);
}

#[test]
fn a_torn_line_is_forgotten_and_a_foreign_file_refused() {
    let file = File::new("torn");
    drop(Journal::open(&file.0, "j").expect("opens"));
    let mut text = std::fs::read_to_string(&file.0).expect("reads");
    text.push_str("{\"sent\":[\"a\"]}\n{\"sent\":[\"b");
    std::fs::write(&file.0, text).expect("writes");
    assert_eq!(Journal::open(&file.0, "j").expect("opens").sent(), 1);
    assert!(Journal::open(&file.0, "other").expect_err("another job").to_string().contains("`j`"));
    std::fs::write(&file.0, "hello\n").expect("writes");
    assert!(Journal::open(&file.0, "j").expect_err("no journal").to_string().contains("no journal"));
}
