//! One run while it lasts: its progress, its deadline, and when it is finished.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use steadfast::{BoxError, Broker, Stats, Tree};
use tokio::time::{Instant, MissedTickBehavior};

use crate::dead_letters::{self, Letter};
use crate::diagnostics::say;
use crate::ledger::Ledger;
use crate::names::Names;

/// Longer than any retry here is put off: who has done nothing for so long has nothing left to do.
const QUIET: Duration = Duration::from_secs(2);

/// What there is to see of a run.
#[derive(Debug)]
pub struct Run<'a> {
    names: &'a Names,
    broker: &'a dyn Broker,
    tree: &'a Tree,
    ledger: &'a Ledger,
    orders: u64,
    began: Instant,
    deadline: Instant,
    line: RefCell<ProgressLine>,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the consumer counted.
    pub stats: Stats,
    /// What was read back from the dead letters.
    pub letters: Vec<Letter>,
    /// From the first order published to the last one accounted for.
    pub took: Duration,
    /// Whether the deadline came first: then the consumer may have gone on counting meanwhile.
    pub late: bool,
}

impl<'a> Run<'a> {
    /// Says which names it uses, and starts the clock.
    pub fn begin(
        names: &'a Names,
        broker: &'a dyn Broker,
        tree: &'a Tree,
        ledger: &'a Ledger,
        orders: usize,
        limit: Duration,
    ) -> Self {
        let (queue, dead, server) = (names.queue(), names.dead_letters(), broker.capabilities().server);
        say(&format!("{orders} orders through `{queue}`, dead letters to `{dead}`, on {server}"));
        let began = Instant::now();
        let line = RefCell::new(ProgressLine::new(began));
        let orders = orders.try_into().unwrap_or(u64::MAX);
        Self { names, broker, tree, ledger, orders, began, deadline: began + limit, line }
    }

    /// Waits until the consumer takes messages: then its queues are there to be published to.
    pub async fn until_ready(&self) -> Result<(), BoxError> {
        let ready = async { Ok(self.tree.until_ready().await?) };
        self.in_time("start the consumer", ready).await
    }

    /// The same, with an error that says so at the deadline.
    pub async fn in_time<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, BoxError>>,
    ) -> Result<T, BoxError> {
        let late = |_| format!("{what}: not done {} s after the start", self.began.elapsed().as_secs());
        tokio::time::timeout_at(self.deadline, work).await.map_err(late)?
    }

    /// Waits until every order is handled or found among the dead letters, or the deadline is there.
    pub async fn until_accounted_for(&self) -> Result<Outcome, BoxError> {
        let began = Instant::now();
        loop {
            let stats = self.until_settled().await?;
            let took = began.elapsed();
            // What the consumer counted is believed only where the dead letters say the same. There can be more than it
            // counted: the answer to a settlement goes down with a connection, after the broker has carried it out.
            let expected = stats.dead_total().max(self.orders.saturating_sub(self.ledger.handled_count()));
            let late = Instant::now() >= self.deadline;
            let patience = Duration::from_millis(if late { 200 } else { 3_000 });
            let read = dead_letters::read_back(self.broker, self.names, expected, patience).await;
            match read {
                Ok(letters) if late || self.complete(&letters) => {
                    self.line.borrow_mut().show(true, || self.progress(&stats));
                    return Ok(Outcome { stats, letters, took, late });
                }
                Err(error) if late => return Err(error.into()),
                // not all are there yet, or the broker went away meanwhile
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn complete(&self, letters: &[Letter]) -> bool {
        let dead: HashSet<_> = letters.iter().map(|letter| &letter.id).collect();
        let dead = dead.into_iter().filter(|id| !self.ledger.is_handled(id)).count();
        self.ledger.handled_count() + dead as u64 >= self.orders
    }

    /// Shows progress until the consumer has settled as many orders as there are, or takes messages and has had nothing
    /// to do for a while.
    async fn until_settled(&self) -> Result<Stats, BoxError> {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut seen, mut since) = (Stats::default(), Instant::now());
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                ended = self.tree.ended() => ended?,
            }
            let stats = self.tree.consumers().into_iter().next().map(|consumer| consumer.stats);
            let stats = stats.unwrap_or_default();
            let now = Instant::now();
            if stats != seen || !self.tree.health().ready {
                (seen, since) = (stats.clone(), now);
            }
            let handled = self.ledger.handled_count().min(stats.handled);
            let settled = handled + stats.dead_total() >= self.orders;
            let quiet = now >= since + QUIET && self.ledger.published_count() == self.orders;
            if settled || quiet || now >= self.deadline {
                return Ok(stats);
            }
            self.line.borrow_mut().show(false, || self.progress(&stats));
        }
    }

    fn progress(&self, stats: &Stats) -> impl Display + use<> {
        let health = self.tree.health();
        let waiting = if health.ready { String::new() } else { format!(", {health}") };
        format!(
            "{:5.1} s: {} published, {} handled, {} retried, {} dead{}",
            self.began.elapsed().as_secs_f64(),
            self.ledger.published_count(),
            self.ledger.handled_count(),
            stats.retried,
            stats.dead_total(),
            waiting
        )
    }
}

/// One line that is rewritten on a terminal, else a line a second.
#[derive(Debug)]
struct ProgressLine {
    terminal: bool,
    next: Instant,
}

impl ProgressLine {
    fn new(now: Instant) -> Self {
        let terminal = io::stderr().is_terminal();
        Self { terminal, next: if terminal { now } else { now + Duration::from_secs(1) } }
    }

    fn show<T: Display>(&mut self, last: bool, text: impl FnOnce() -> T) {
        let now = Instant::now();
        if now < self.next && !last {
            return;
        }
        self.next = now + Duration::from_millis(if self.terminal { 100 } else { 1_000 });
        let (before, after) =
            if self.terminal { ("\r\x1b[2K", if last { "\n" } else { "" }) } else { ("", "\n") };
        drop(write!(io::stderr(), "{before}{}{after}", text()));
    }
}
