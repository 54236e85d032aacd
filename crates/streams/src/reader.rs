//! The reader: one task with a connection of its own, which nothing else uses.
//!
//! A read is always awaited to its end: one that is given up still runs at the server, and the next entry would go to
//! nobody. After any error the connection is dropped and the subscription ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use redis::{Cmd, RedisError, cmd};
use steadfast_core::{SubscribeErrorKind, Token};

use crate::connection::Link;
use crate::error;
use crate::group::millis;
use crate::headers::receive;
use crate::pace::Pace;
use crate::pending::{CLAIM, Claimed, Entry, HISTORY, RELEASED, claim_answer, id, read_answer};
use crate::settle::Said;
use crate::slot::{Read, Slot, Step};

/// Most rounds of one claim: the rest waits for the next, so that reading goes on.
const CLAIM_ROUNDS: usize = 10;

pub(crate) struct Reader {
    slot: Arc<Slot>,
    link: Link,
    /// Own pending entries after this one are still to be read; none: they all were.
    history: Option<Token>,
    claim_at: Instant,
    claim_cursor: Vec<u8>,
    pace: Pace,
}

impl Reader {
    pub(crate) fn new(slot: Arc<Slot>, link: Link) -> Self {
        // at once: what a drain gave back waits for whoever comes next
        let (history, claim_at) = (Some(Token(0, 0)), Instant::now());
        let pace = Pace::new(slot.group.rate, claim_at);
        Self { slot, link, history, claim_at, claim_cursor: b"0-0".to_vec(), pace }
    }

    /// Reads until it is told to stop, or until something goes wrong.
    pub(crate) async fn run(mut self) {
        if let Err(error) = self.read_on().await {
            fail(&self.slot, error).await;
        }
        self.slot.reader_ends();
    }

    async fn read_on(&mut self) -> Result<(), RedisError> {
        let mut drained = false;
        loop {
            // before a step is taken: acknowledgements that it carries must not wait for a claim
            let hold = self.pace.hold(Instant::now());
            let (count, acks, block) = match self.slot.next_step(drained, hold).await {
                Step::Read { count, acks, block } => (self.pace.most(count), acks, block),
                Step::Acks(acks) => {
                    self.settle(acks).await?;
                    continue;
                }
                Step::Stop => return Ok(()),
            };
            if let Some(after) = self.history {
                let (acked, read) = (self.settle(acks).await, self.own_pending(after, count).await);
                acked.and(read)?;
                continue;
            }
            if Instant::now() >= self.claim_at {
                self.settle(acks).await?;
                self.claim(count).await?;
                // not drained: the room that is left is read for without waiting
                drained = false;
                continue;
            }
            drained = self.read(count, acks, block).await? < count;
        }
    }

    /// One round trip: what is settled, and the next read.
    async fn read(&mut self, count: usize, acks: Vec<Token>, block: bool) -> Result<usize, RedisError> {
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP").arg(&*self.slot.group.name).arg(&*self.slot.consumer).arg("COUNT").arg(count);
        if block {
            let until_claim = self.claim_at.saturating_duration_since(Instant::now());
            read.arg("BLOCK").arg(millis(self.slot.group.block.min(until_claim)));
        }
        read.arg("STREAMS").arg(&*self.slot.group.stream).arg(">");
        let mut link = self.link.clone();
        let read = link.send(&read);
        // polled in this order, so they are sent in this order, in one write
        let ((acked, said), answer) = join(self.send(acks), read).await;
        let brought = answer.and_then(read_answer).map(|entries| {
            let brought = entries.len();
            self.hand_over(entries, false);
            brought
        });
        // with what was read, since a read beside copies does not wait at the server: who waits for both is woken once
        pass_on(acked, said).and(brought)
    }

    /// Acknowledges, and sends the copies that wait for it.
    async fn settle(&self, acks: Vec<Token>) -> Result<(), RedisError> {
        let (acked, said) = self.send(acks).await;
        pass_on(acked, said)
    }

    /// The same, and what the server said of the copies is still to be passed on.
    async fn send(&self, acks: Vec<Token>) -> (Result<(), RedisError>, Vec<Said>) {
        let copies = self.slot.take_copies();
        let copies = copies.into_iter().map(|copy| copy.send(&self.slot, self.link.clone()));
        join(acknowledge(&self.slot, self.link.clone(), acks), join_all(copies)).await
    }

    /// What was delivered to this name before and never settled: it comes first.
    async fn own_pending(&mut self, after: Token, count: usize) -> Result<(), RedisError> {
        let mut arguments = self.arguments();
        arguments.extend([id(after).into_bytes(), count.to_string().into_bytes()]);
        let stream = &*self.slot.group.stream;
        let answer = self.link.invoke(&HISTORY, &[stream], &arguments).await?;
        let read = claim_answer(answer)?;
        self.history = read.entries.last().map(|entry| entry.token);
        self.hand_over(read.entries, true);
        Ok(())
    }

    /// Takes over what others left behind. The cursor says where the list ends, not an empty answer: after a trim a whole
    /// round may bring nothing.
    async fn claim(&mut self, mut room: usize) -> Result<(), RedisError> {
        for _ in 0..CLAIM_ROUNDS {
            let mut arguments = self.arguments();
            arguments.extend([
                millis(self.slot.group.min_idle).to_string().into_bytes(),
                std::mem::take(&mut self.claim_cursor),
                room.to_string().into_bytes(),
                RELEASED.as_bytes().to_vec(),
            ]);
            let stream = &*self.slot.group.stream;
            let answer = self.link.invoke(&CLAIM, &[stream], &arguments).await?;
            let Claimed { cursor, entries, trimmed } = claim_answer(answer)?;
            self.claim_cursor = cursor;
            if trimmed > 0 {
                tracing::error!(
                    stream,
                    trimmed,
                    "entries were trimmed while they were pending: they are lost"
                );
            }
            if !entries.is_empty() {
                tracing::info!(stream, group = %self.slot.group.name, entries = entries.len(), "took over entries");
            }
            room = room.saturating_sub(entries.len());
            self.hand_over(entries, true);
            if room == 0 || self.claim_cursor == b"0-0" {
                break;
            }
        }
        // where there was no room for more there may be more: it is older than what the next read brings
        let wait = if room == 0 { Duration::ZERO } else { self.slot.group.claim_interval() };
        self.claim_at = Instant::now() + wait;
        Ok(())
    }

    /// Gives the subscription what is for it; the rest is acknowledged.
    fn hand_over(&mut self, entries: Vec<Entry>, again: bool) {
        let group = &self.slot.group;
        let (mut wanted, mut skipped) = (Vec::with_capacity(entries.len()), Vec::new());
        for entry in entries {
            // a claim may bring back what is in a handler here, after a pause of the whole process
            if again && self.slot.holds(entry.token) {
                continue;
            }
            let Some(fields) = entry.fields else {
                tracing::error!(stream = %group.stream, id = %id(entry.token), "an entry was trimmed while it was pending: it is lost");
                skipped.push(entry.token);
                continue;
            };
            let mut received = receive(&group.stream, entry.id, entry.token, fields);
            let for_us = match received.group {
                Some(addressed) => addressed == group.name.as_bytes(),
                // a retry comes back behind the end of what is replayed
                None => group.until.is_none_or(|until| until.includes(entry.token)),
            };
            if !for_us {
                skipped.push(entry.token);
                continue;
            }
            received.incoming.redelivered = again;
            received.incoming.delivery_count = Some(entry.deliveries.saturating_sub(1));
            wanted.push((Arc::new(received.incoming), entry.token));
        }
        if !skipped.is_empty() {
            self.slot.skip(skipped);
        }
        self.pace.spend(wanted.len(), Instant::now());
        self.deliver(wanted);
    }

    fn deliver(&self, wanted: Vec<Read>) {
        if !wanted.is_empty() {
            self.slot.deliver(wanted);
        }
    }

    fn arguments(&self) -> Vec<Vec<u8>> {
        vec![self.slot.group.name.as_bytes().to_vec(), self.slot.consumer.as_bytes().to_vec()]
    }
}

/// A reader that has no room to read learns from the copies that it is cut off.
fn pass_on(acked: Result<(), RedisError>, said: Vec<Said>) -> Result<(), RedisError> {
    said.into_iter().map(Said::pass_on).fold(acked, Result::and)
}

/// The subscription ends with this. A group that is gone is made again where this one stopped.
pub(crate) async fn fail(slot: &Slot, error: RedisError) {
    let group = &slot.group;
    let what = format!("read group `{}` of stream `{}`", group.name, group.stream);
    let error = error::subscribe(&what, slot.line.on_link(&group.stream, error).await, true);
    if error.kind() == SubscribeErrorKind::NotFound
        && let Some(last) = slot.settled_up_to()
    {
        slot.line.resume().lost(group, last);
    }
    slot.end(error);
}

/// Sends acknowledgements by the reader's connection. Those that fail the keeper sends again, by the other one.
pub(crate) async fn acknowledge(slot: &Slot, mut link: Link, acks: Vec<Token>) -> Result<(), RedisError> {
    if acks.is_empty() {
        return Ok(());
    }
    let command = xack(slot, &acks);
    let answer = link.send(&command).await;
    slot.acks_sent(if answer.is_ok() { Vec::new() } else { acks });
    answer.map(drop)
}

/// One XACK for all of them.
pub(crate) fn xack(slot: &Slot, tokens: &[Token]) -> Cmd {
    use std::fmt::Write as _;

    let mut command = Cmd::with_capacity(tokens.len() + 3, tokens.len() * 20 + 64);
    command.arg("XACK").arg(&*slot.group.stream).arg(&*slot.group.name);
    let mut text = String::with_capacity(24);
    for token in tokens {
        text.clear();
        // writing to a string does not fail
        _ = write!(text, "{}-{}", token.0, token.1);
        command.arg(text.as_str());
    }
    command
}

/// The longest that a command on the reader's connection may take.
pub(crate) fn response_timeout(slot_block: Duration, command_timeout: Duration) -> Duration {
    slot_block + command_timeout
}
