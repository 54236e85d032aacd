//! A partition's reader: what is pending first, in order, whoever held it; then what is new. Every read is a script that
//! asks for the lease, and so can be sent late without harm. A wait at the server takes nothing.

use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use futures_util::future::join;
use redis::{RedisError, Script, cmd};
use steadfast_core::Token;

use super::FENCE;
use super::board::Board;
use super::lease::LOST;
use super::part::Part;
use crate::connection::Link;
use crate::group::millis;
use crate::headers::receive;
use crate::pending::{Claimed, Entry, RELEASED, claim_answer, id, parse_id};
use crate::reader::{acknowledge, fail};
use crate::slot::Step;

/// How long to leave the partition alone while one message of another runs alone.
const ALONE: Duration = Duration::from_millis(10);

/// Pending entries of anybody but ourselves after an ID, taken over in order, each with its delivery count; or new ones.
///
/// KEYS: stream, lease. ARGV: owner, group, consumer, count, after (nothing: new ones), name of the released. Returns where
/// to go on, entries, counts, and how many were trimmed; for new ones, if there were less than asked for, also the last ID
/// that the stream gave.
static READ: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{}{}",
        format_args!("local lost = '{LOST} the lease is not ours (any more)'"),
        r"
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return redis.error_reply(lost) end
local count = tonumber(ARGV[4])
if ARGV[5] == '' then
  local read = redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', count, 'STREAMS', KEYS[1], '>')
  local entries = read and read[1] and read[1][2] or {}
  local last = ''
  if #entries < count then
    local info = redis.call('XINFO', 'STREAM', KEYS[1])
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then last = info[i + 1] end
    end
  end
  return {last, entries, {}, 0}
end
local found = redis.call('XPENDING', KEYS[1], ARGV[2], '(' .. ARGV[5], '+', count)
local entries, counts, trimmed = {}, {}, 0
for _, pending in ipairs(found) do
  if pending[2] ~= ARGV[3] then
    local claimed = redis.call('XCLAIM', KEYS[1], ARGV[2], ARGV[3], 0, pending[1])
    if claimed[1] then
      entries[#entries + 1], counts[#counts + 1] = claimed[1], pending[4] + 1
    else
      trimmed = trimmed + 1
    end
  end
end
if #found > 0 and #redis.call('XPENDING', KEYS[1], ARGV[2], '-', '+', 1, ARGV[6]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[2], ARGV[6])
end
return {#found == count and found[count][1] or '', entries, counts, trimmed}"
    ))
});

pub(crate) struct PartitionReader {
    part: Arc<Part>,
    /// A subscription that nobody has any more must not be kept by its reader.
    board: Weak<Board>,
    link: Link,
    /// Pending entries after this one are still to be taken over; none: they all were.
    history: Option<Token>,
    /// When to look through them again: somebody else may have taken entries, or given some back.
    look_at: Instant,
    /// The last ID that the stream had given when it had nothing new for us.
    drained_at: Option<Vec<u8>>,
}

impl PartitionReader {
    pub(crate) fn new(part: &Arc<Part>, board: &Arc<Board>, link: Link) -> Self {
        let (part, board) = (Arc::clone(part), Arc::downgrade(board));
        let look_at = Instant::now() + part.slot.group.min_idle;
        Self { part, board, link, history: Some(Token(0, 0)), look_at, drained_at: None }
    }

    /// Reads until it is told to stop, until the lease is lost, or until something goes wrong.
    pub(crate) async fn run(mut self) {
        let slot = Arc::clone(&self.part.slot);
        match self.read_on().await {
            Ok(()) => {}
            Err(error) if error.code() == Some(LOST) => self.part.lose(),
            Err(error) => fail(&slot, error).await,
        }
        slot.reader_ends();
    }

    async fn read_on(&mut self) -> Result<(), RedisError> {
        let slot = Arc::clone(&self.part.slot);
        loop {
            let hold =
                self.board.upgrade().filter(|board| board.is_taken_up()).map(|_| Instant::now() + ALONE);
            let (count, acks, block) = match slot.next_step(self.drained_at.is_some(), hold).await {
                Step::Read { count, acks, block } => (count, acks, block),
                Step::Acks(acks) => {
                    self.acknowledge(acks).await?;
                    continue;
                }
                Step::Stop => return Ok(()),
            };
            if let Some(last) = self.drained_at.take_if(|_| block) {
                self.acknowledge(acks).await?;
                self.wait_for_news(last).await?;
                continue;
            }
            let Some(board) = self.board.upgrade() else {
                self.acknowledge(acks).await?;
                return Ok(());
            };
            if board.is_narrow() {
                self.acknowledge(acks).await?;
                // one reader at a time, so that not two of them bring one each
                let _turn = board.narrow_turn().await;
                if board.is_taken_up() {
                    continue;
                }
                self.read(count, Vec::new()).await?;
            } else {
                self.read(count, acks).await?;
            }
        }
    }

    /// One round trip: the acknowledgements and the next read.
    async fn read(&mut self, count: usize, mut acks: Vec<Token>) -> Result<(), RedisError> {
        if self.part.slot.wants_rewind() {
            self.acknowledge(std::mem::take(&mut acks)).await?;
            self.part.slot.rewind().await;
            self.look_again();
        } else if self.look_at <= Instant::now() {
            self.look_again();
        }
        let (slot, lease) = (&self.part.slot, &self.part.lease);
        let after = self.history.map(id).unwrap_or_default();
        let arguments =
            [&lease.owner, &*slot.group.name, &*slot.consumer, &count.to_string(), &after, RELEASED]
                .map(|argument: &str| argument.as_bytes().to_vec());
        let mut link = self.link.clone();
        let keys = [&*slot.group.stream, &*lease.key];
        let read = link.invoke(&READ, &keys, &arguments);
        // polled in this order, so they are sent in this order, in one write
        let (acked, answer) = join(self.acknowledge(acks), read).await;
        let Claimed { cursor, entries, trimmed } = claim_answer(answer?)?;
        acked?;
        let again = self.history.is_some();
        if trimmed > 0 {
            tracing::error!(stream = %slot.group.stream, trimmed, "entries were trimmed while they were pending: they are lost");
        }
        if again {
            self.history = parse_id(&cursor);
        } else {
            self.drained_at = (!cursor.is_empty()).then_some(cursor);
        }
        self.hand_over(entries, again);
        Ok(())
    }

    /// The next read begins with what is pending.
    fn look_again(&mut self) {
        (self.history, self.drained_at) = (Some(Token(0, 0)), None);
        self.look_at = Instant::now() + self.part.slot.group.min_idle;
    }

    /// Waits until something comes after this ID, and takes nothing of it.
    async fn wait_for_news(&mut self, last: Vec<u8>) -> Result<(), RedisError> {
        let group = &self.part.slot.group;
        let mut wait = cmd("XREAD");
        wait.arg("COUNT").arg(1).arg("BLOCK").arg(millis(group.block));
        wait.arg("STREAMS").arg(&*group.stream).arg(last);
        self.link.send(&wait).await.map(drop)
    }

    async fn acknowledge(&self, acks: Vec<Token>) -> Result<(), RedisError> {
        acknowledge(&self.part.slot, self.link.clone(), acks).await
    }

    /// Gives the subscription what is for it; the rest is acknowledged.
    fn hand_over(&self, entries: Vec<Entry>, again: bool) {
        let (slot, lease) = (&self.part.slot, &self.part.lease);
        let group = &slot.group;
        let (mut wanted, mut skipped) = (Vec::with_capacity(entries.len()), Vec::new());
        for entry in entries {
            let Some(fields) = entry.fields else {
                tracing::error!(stream = %group.stream, id = %id(entry.token), "an entry was trimmed while it was pending: it is lost");
                skipped.push(entry.token);
                continue;
            };
            let mut received = receive(&group.stream, entry.id, entry.token, fields);
            if received.group.is_some_and(|addressed| addressed != group.name.as_bytes()) {
                skipped.push(entry.token);
                continue;
            }
            received.incoming.redelivered = again;
            received.incoming.delivery_count = Some(entry.deliveries.saturating_sub(1));
            received.incoming.headers.set(FENCE, lease.fence);
            wanted.push((Arc::new(received.incoming), entry.token));
        }
        if !skipped.is_empty() {
            slot.skip(skipped);
        }
        if !wanted.is_empty() {
            slot.deliver(wanted);
        }
    }
}
