//! The keeper: one task for each slot that does, by the shared command connection, what must not wait for the reader.
//!
//! Acknowledgements while the reader waits at the server or is gone, entries given back, leases, due retries, the end of a
//! blocked read, and at last the consumer's name. It lives as long as anyone can still settle a delivery of this slot.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::RedisError;
use steadfast_core::Token;

use crate::connection::Handle;
use crate::delay;
use crate::housekeeping::Chores;
use crate::names::{Lease, REAP, SIGN_OF_LIFE};
use crate::pending::{RELEASE, RELEASED, RENEW, id, parse_id};
use crate::reader::xack;
use crate::slot::{Back, Errands, Slot};

/// How often to tell the server again that the reader's read is to end: the first may have come before the read.
const UNBLOCK_AGAIN: Duration = Duration::from_millis(20);
/// How long to wait after a failure, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// How long to try to send what is left once nobody waits for it; the server delivers it again after that.
const LAST_TRY: Duration = Duration::from_secs(60);
/// Most entries in one script, so that none holds the server for long.
const CHUNK: usize = 500;

pub(crate) struct Keeper {
    slot: Arc<Slot>,
    /// The reader's connection, where the server told how it numbers it.
    reader: Option<Handle>,
    /// The consumer name's, where it is not this incarnation's own.
    lease: Option<Lease>,
    renew_at: Instant,
    move_at: Instant,
    sign_at: Instant,
    chores: Chores,
    /// After a failure nothing is sent before this.
    retry_at: Option<Instant>,
    backoff: Duration,
    /// Held at the last look: what still is at the next one needs its lease renewed.
    held: HashSet<Token>,
    last_since: Option<Instant>,
}

impl Keeper {
    pub(crate) fn new(slot: Arc<Slot>, reader: Option<Handle>, lease: Option<Lease>) -> Self {
        let now = Instant::now();
        Self {
            renew_at: now + slot.group.min_idle / 3,
            move_at: now,
            sign_at: now + SIGN_OF_LIFE,
            chores: Chores::new(&slot),
            slot,
            reader,
            lease,
            retry_at: None,
            backoff: BACKOFF.0,
            held: HashSet::new(),
            last_since: None,
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            self.keep_time().await;
            let mut wake = self.renew_at.min(self.move_at).min(self.sign_at).min(self.chores.due());
            if let Some(at) = self.retry_at.filter(|at| *at > Instant::now()) {
                wake = wake.min(at);
            } else {
                let errands = self.slot.errands();
                if errands.over || self.gives_up(&errands) {
                    break;
                }
                if errands.unblock {
                    wake = wake.min(Instant::now() + UNBLOCK_AGAIN);
                }
                if self.run_errands(errands).await {
                    continue;
                }
            }
            _ = tokio::time::timeout_at(wake.into(), self.slot.keeper_rung()).await;
        }
        self.leave().await;
    }

    /// Sends what is there; true if that was anything, so that there may be more by now.
    async fn run_errands(&mut self, errands: Errands) -> bool {
        let Errands { acks, releases, unblock, over: _, last: _ } = errands;
        let any = !(acks.is_empty() && releases.is_empty());
        if unblock {
            self.unblock().await;
        }
        if !acks.is_empty() {
            let sent = self.slot.line.query::<()>(&self.slot.group.stream, &xack(&self.slot, &acks)).await;
            let failed = self.note("acknowledge", sent).is_none();
            self.slot.acks_sent(if failed { acks } else { Vec::new() });
        }
        if !releases.is_empty() {
            let failed = self.release(releases).await;
            self.slot.releases_sent(failed);
        }
        any && self.retry_at.is_none()
    }

    /// Gives entries back; returns those that could not be.
    async fn release(&mut self, mut back: Vec<Back>) -> Vec<Back> {
        while !back.is_empty() {
            let chunk = back.split_off(back.len().saturating_sub(CHUNK));
            let mut arguments = self.arguments(&[RELEASED], &[]);
            for back in &chunk {
                arguments.push(id(back.token).into_bytes());
                arguments.push(u8::from(!back.delivered).to_string().into_bytes());
            }
            let stream = Arc::clone(&self.slot.group.stream);
            let released = self.slot.line.script::<usize>(&RELEASE, &[&stream], &arguments).await;
            let Some(released) = self.note("give back entries", released) else {
                back.extend(chunk);
                break;
            };
            tracing::debug!(%stream, released, "gave back entries");
        }
        back
    }

    /// What is due by the clock: leases and retries.
    async fn keep_time(&mut self) {
        let now = Instant::now();
        if now >= self.renew_at {
            self.renew().await;
            self.renew_at = Instant::now() + self.slot.group.min_idle / 3;
        }
        if let Some(due) = self.slot.take_due() {
            self.move_at = self.move_at.min(due);
        }
        if now >= self.move_at {
            let (line, stream) = (Arc::clone(&self.slot.line), Arc::clone(&self.slot.group.stream));
            let wait = match delay::move_due(&line, &stream, &self.slot.delay_key).await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::warn!(%error, %stream, "due retries could not be moved; trying again in 1 s");
                    Duration::from_secs(1)
                }
            };
            self.move_at = Instant::now() + wait;
        }
        if now >= self.sign_at {
            self.give_sign_of_life().await;
            self.sign_at = Instant::now() + SIGN_OF_LIFE;
        }
        self.chores.run(&self.slot).await;
    }

    /// Keeps a stable name's lease. Whoever lost it while it slept reads no more under that name.
    async fn give_sign_of_life(&mut self) {
        let Some(lease) = &self.lease else { return };
        let group = &self.slot.group;
        match lease.keep(&self.slot.line, group).await {
            Ok(None) => {}
            Ok(Some(taken)) => self.slot.end(taken),
            Err(error) => {
                tracing::warn!(%error, stream = %group.stream, consumer = %self.slot.consumer, "could not renew the consumer name's lease");
            }
        }
    }

    /// A sign of life for all that has been held since the last look.
    async fn renew(&mut self) {
        let held = self.slot.held();
        let old: Vec<Token> = held.intersection(&self.held).copied().collect();
        self.held = held;
        for chunk in old.chunks(CHUNK) {
            let arguments = self.arguments(&[], chunk);
            let stream = Arc::clone(&self.slot.group.stream);
            let renewed = self.slot.line.script::<Vec<Vec<u8>>>(&RENEW, &[&stream], &arguments).await;
            let Some(lost) = self.note("renew leases", renewed) else { return };
            let lost: Vec<Token> = lost.iter().filter_map(|id| parse_id(id)).collect();
            if !lost.is_empty() {
                tracing::warn!(%stream, entries = lost.len(), "another consumer took over entries that are in flight here");
                self.slot.lost(&lost);
            }
        }
    }

    /// Ends the reader's blocked read as if its time were over: it brings nothing, or what it has.
    async fn unblock(&mut self) {
        let Some(reader) = &self.reader else { return };
        if let Err(error) = reader.unblock(&self.slot.line).await {
            // the read ends by itself within its BLOCK
            tracing::debug!(%error, "the reader could not be unblocked");
        }
    }

    /// Whether what is left is left to the server.
    fn gives_up(&mut self, errands: &Errands) -> bool {
        if !errands.last {
            return false;
        }
        let since = *self.last_since.get_or_insert_with(Instant::now);
        let late = since.elapsed() > LAST_TRY;
        if late {
            tracing::warn!(stream = %self.slot.group.stream, "gave up sending; the server will deliver again what is left");
        }
        late
    }

    /// The end: a name that nobody will use again goes, unless something is pending under it.
    async fn leave(&mut self) {
        if let Some(lease) = &self.lease {
            if let Err(error) = lease.end(&self.slot.line).await {
                tracing::debug!(%error, consumer = %self.slot.consumer, "the consumer name's lease stays until it lapses");
            }
        } else {
            let arguments = self.arguments(&[], &[]);
            let stream = Arc::clone(&self.slot.group.stream);
            if let Err(error) = self.slot.line.script::<i64>(&REAP, &[&stream], &arguments).await {
                tracing::debug!(%error, %stream, consumer = %self.slot.consumer, "the consumer name stays behind");
            }
        }
        self.slot.keeper_ends();
    }

    /// Remembers a failure, so that the next try waits.
    fn note<T>(&mut self, what: &str, result: Result<T, RedisError>) -> Option<T> {
        match result {
            Ok(value) => {
                (self.retry_at, self.backoff) = (None, BACKOFF.0);
                Some(value)
            }
            Err(error) => {
                tracing::warn!(%error, stream = %self.slot.group.stream, again_in = ?self.backoff, "could not {what}");
                self.retry_at = Some(Instant::now() + self.backoff);
                self.backoff = (self.backoff * 2).min(BACKOFF.1);
                None
            }
        }
    }

    /// Group, consumer, what else the script takes, and IDs.
    fn arguments(&self, extra: &[&str], tokens: &[Token]) -> Vec<Vec<u8>> {
        let names = [&*self.slot.group.name, &*self.slot.consumer];
        let names = names.into_iter().chain(extra.iter().copied()).map(|name| name.as_bytes().to_vec());
        names.chain(tokens.iter().map(|token| id(*token).into_bytes())).collect()
    }
}
