//! The loop of a redrive: one batch through named steps.

use std::ops::ControlFlow;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::pace::{Move, Pace, too_many};
use super::{End, Journal, Preview, Progress, Redrive, RedriveError, Report};
use crate::broker::Destination;
use crate::error::OperateErrorKind;
use crate::headers::{Headers, known};
use crate::letter::{Letter, RedriveTo};
use crate::operate::{Forward, Forwarded, Operator, Walk};

/// Letters asked for at once.
const PAGE: usize = 256;

impl Redrive {
    /// A dry run: how many letters fit, and how many there are. Nothing is changed.
    pub async fn preview(&self, operator: &dyn Operator, place: &str) -> Result<Preview, RedriveError> {
        let failed = |error| RedriveError::new(format!("count the letters in `{place}`"), error);
        let walk = operator.walk(place).await.map_err(failed)?;
        let mut preview = Preview { fit: 0, total: 0 };
        loop {
            let page = walk.next(PAGE).await.map_err(failed)?;
            if page.is_empty() {
                break;
            }
            for letter in page {
                preview.total += 1;
                preview.fit += u64::from(self.filter.fits(&letter, self.now));
                walk.keep(letter.mark);
            }
        }
        walk.close().await.map_err(failed)?;
        Ok(preview)
    }

    /// Runs the job over the letters that are in `place` now, and tells `progress` after each step, which can break it off:
    /// [`End::Paused`]. See [`Redrive`].
    ///
    /// A future that is dropped stops the job as a crash does: it can be resumed by its journal.
    pub async fn run(
        &self,
        operator: &dyn Operator,
        place: &str,
        journal: &mut Journal,
        progress: impl FnMut(Progress) -> ControlFlow<()> + Send,
    ) -> Result<Report, RedriveError> {
        let failed = |error| RedriveError::new(format!("redrive the letters in `{place}`"), error);
        let walk = operator.walk(place).await.map_err(failed)?;
        let mut run = Run {
            job: self,
            place,
            walk: &*walk,
            journal,
            report: Report::new(walk.total()),
            pages: Vec::new(),
            came_back: 0,
            progress,
        };
        let began = Instant::now();
        let ended = run.all().await;
        let mut report = run.report;
        report.seconds = began.elapsed().as_secs_f64();
        let noted = run.journal.finish().await;
        // what was acknowledged must be with the broker before anybody trusts the report
        let closed = walk.close().await.map_err(failed);
        report.end = ended?;
        closed?;
        noted?;
        Ok(report)
    }
}

struct Run<'a, P> {
    job: &'a Redrive,
    place: &'a str,
    walk: &'a dyn Walk,
    journal: &'a mut Journal,
    report: Report,
    /// Read ahead, latest first.
    pages: Vec<Letter>,
    /// Letters of this job that were met on the way.
    came_back: u64,
    progress: P,
}

/// One letter on its way.
struct Task {
    letter: Letter,
    key: String,
    forward: Forward,
    parks: bool,
}

impl<P: FnMut(Progress) -> ControlFlow<()> + Send> Run<'_, P> {
    async fn all(&mut self) -> Result<End, RedriveError> {
        let (began, mut pace) = (Instant::now(), Pace::new(self.job.rate, &self.job.ramp, self.job.settle));
        loop {
            match pace.next(began.elapsed()) {
                Move::Wait(wait) => tokio::time::sleep(wait).await,
                Move::Look => {
                    if self.fails_again().await? {
                        return Ok(End::StoppedItself);
                    }
                }
                Move::Send(most) => {
                    let batch = self.collect(most).await?;
                    if batch.is_empty() {
                        let stop = self.report.sent > 0 && self.fails_again().await?;
                        return Ok(if stop { End::StoppedItself } else { End::Done });
                    }
                    let size = batch.len() as u64;
                    // what is moved in one step is never in doubt
                    let intent = if self.walk.atomic() { &[] } else { &batch[..] };
                    if !self.journal.intend(intent.iter().map(|task| task.key.clone()).collect()).await? {
                        return Ok(End::Undone);
                    }
                    self.send(batch).await?;
                    pace.sent(size);
                }
            }
            if (self.progress)(self.report.progress()).is_break() {
                return Ok(End::Paused);
            }
        }
    }

    async fn fails_again(&mut self) -> Result<bool, RedriveError> {
        let returned = self.walk.returned(&self.job.job).await.map_err(|error| self.failed(error))?;
        // met on the way, or seen at the end of the queue: the same letters may be both
        self.report.failed_again = returned.max(self.came_back);
        Ok(too_many(self.report.sent, self.report.failed_again, self.job.stop_above))
    }

    /// The next letters to be sent, at most so many; the others on the way are dealt with here.
    async fn collect(&mut self, most: u64) -> Result<Vec<Task>, RedriveError> {
        let done = self.journal.sent();
        let most = self.job.limit.map_or(most, |limit| most.min(limit.saturating_sub(done)));
        let mut batch: Vec<Task> = Vec::new();
        while (batch.len() as u64) < most {
            let Some(letter) = self.letter().await? else { break };
            if let Some(task) = self.sort_out(letter, &batch).await? {
                batch.push(task);
            }
        }
        Ok(batch)
    }

    async fn letter(&mut self) -> Result<Option<Letter>, RedriveError> {
        if self.pages.is_empty() {
            self.pages = self.walk.next(PAGE).await.map_err(|error| self.failed(error))?;
            self.pages.reverse();
        }
        let letter = self.pages.pop();
        self.report.seen += u64::from(letter.is_some());
        Ok(letter)
    }

    /// Whether the letter is to be sent, and how. Whatever is in doubt stays.
    async fn sort_out(&mut self, letter: Letter, batch: &[Task]) -> Result<Option<Task>, RedriveError> {
        let (mark, id) = (letter.mark, letter.id().into_owned());
        if letter.job() == Some(&self.job.job) {
            self.came_back += 1;
            self.walk.keep(mark);
            return Ok(None);
        }
        if !self.job.filter.fits(&letter, self.job.now) {
            self.walk.keep(mark);
            return Ok(None);
        }
        let key = letter.key(self.walk.atomic());
        if batch.iter().any(|task| task.key == key) {
            self.report.keep(&id, "a copy of it is being sent");
            self.walk.keep(mark);
            return Ok(None);
        }
        if !self.walk.atomic() && self.journal.has_sent(&key) {
            // without an id it may be another message of the same content
            if letter.message.message_id.is_none() {
                self.report.uncertain.push(id);
                self.walk.keep(mark);
            } else {
                self.walk.discard(mark).await.map_err(|error| self.failed(error))?;
                self.report.sent_before += 1;
            }
            return Ok(None);
        }
        if !self.walk.atomic() && self.journal.has_intended(&key) && !self.job.resend_uncertain {
            self.report.uncertain.push(id);
            self.walk.keep(mark);
            return Ok(None);
        }
        match self.plan(&letter) {
            Ok((forward, parks)) => Ok(Some(Task { letter, key, forward, parks })),
            Err(why) => {
                self.report.keep(&id, why);
                self.walk.keep(mark);
                Ok(None)
            }
        }
    }

    fn plan(&self, letter: &Letter) -> Result<(Forward, bool), String> {
        let redrives = letter.redrives();
        if let Some((_, parking)) = self.job.park.as_ref().filter(|(limit, _)| redrives >= *limit) {
            let to = Destination::queue(parking.as_str());
            let forward =
                Forward { to, restore: false, set: Headers::new(), payload: None, message_id: None };
            return Ok((forward, true));
        }
        let to = letter.destination(&self.job.to)?;
        if to.exchange_name().is_none() && to.name() == self.place {
            return Err(format!("it would come back to `{}`: name another queue", self.place));
        }
        let mut set = Headers::new();
        set.set(known::REDRIVE_COUNT, redrives.saturating_add(1));
        set.set(known::REDRIVE_JOB, &*self.job.job);
        // straight to its queue: the handler is to see where it was published to
        if let (RedriveTo::Source, Some(exchange), Some(key)) =
            (&self.job.to, letter.header(known::EXCHANGE), letter.header(known::ROUTING_KEY))
            && !exchange.is_empty()
        {
            set.set(known::EXCHANGE, exchange).set(known::ROUTING_KEY, key);
        }
        let message_id = self.job.payload.as_ref().map(|_| {
            set.set(known::EDITED_FROM, &*letter.id());
            uuid::Uuid::now_v7().to_string()
        });
        Ok((Forward { to, restore: true, set, payload: self.job.payload.clone(), message_id }, false))
    }

    async fn send(&mut self, batch: Vec<Task>) -> Result<(), RedriveError> {
        let walk = self.walk;
        let sending = batch.iter().map(|task| walk.forward(&task.letter, &task.forward));
        let outcomes = join_all(sending).await;
        let (mut sent, mut not_sent, mut lost) = (Vec::new(), Vec::new(), None);
        for (task, outcome) in batch.into_iter().zip(outcomes) {
            let id = task.letter.id().into_owned();
            match outcome {
                Ok(Forwarded::Moved | Forwarded::Copied) => {
                    let count = if task.parks { &mut self.report.parked } else { &mut self.report.sent };
                    *count += 1;
                    sent.push(task.key);
                }
                Ok(Forwarded::Gone) => {
                    self.report.gone += 1;
                    not_sent.push(task.key);
                }
                // it may have been sent: the intent stays, and with it the doubt
                Err(error) if error.kind() == OperateErrorKind::Unknown => {
                    self.report.uncertain.push(id);
                    lost.get_or_insert(error);
                }
                Err(error) => {
                    self.report.keep(&id, error.to_string());
                    not_sent.push(task.key);
                    self.walk.keep(task.letter.mark);
                    if error.kind() == OperateErrorKind::Unreachable {
                        lost.get_or_insert(error);
                    }
                }
            }
        }
        self.journal.settle(sent, not_sent).await?;
        match lost {
            Some(error) => Err(self.failed(error)),
            None => Ok(()),
        }
    }

    fn failed(&self, error: crate::error::OperateError) -> RedriveError {
        RedriveError::new(
            format!(
                "redrive the letters in `{}`, {} sent; run it again to go on",
                self.place, self.report.sent
            ),
            error,
        )
    }
}
