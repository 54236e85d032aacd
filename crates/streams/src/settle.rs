//! Settling. Acknowledgements are collected; a retry and a dead letter are one script each.
//!
//! A script copies the entry's own fields at the server, so that they stay as they are byte for byte, and acknowledges the
//! original only after the copy is stored. It looks first whether the entry is still ours: if not, it does nothing.

use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use redis::{RedisError, Script, Value};
use steadfast_core::{DeadLetter, Incoming, Requeue, SettleError, SettleErrorKind, Settler, Token};

use crate::connection::odd_answer;
use crate::error;
use crate::group::millis;
use crate::headers::{GROUP, SOURCE_GROUP, again, pairs};
use crate::pending::{id, xadd};
use crate::runtime;
use crate::slot::Slot;

/// Shared by both: the entry's fields with others set over them, or nothing.
///
/// ARGV from `first`: how many pairs, the pairs, then the fields to take if the entry was trimmed.
const COPY: &str = r"
local function ours()
  return #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) > 0
end
local function set(copy, name, value)
  local at = copy.at[name]
  if at then copy.fields[at] = value return end
  local n = #copy.fields
  copy.fields[n + 1], copy.fields[n + 2], copy.at[name] = name, value, n + 2
end
local function copy_of(first)
  local over = tonumber(ARGV[first])
  local rest = first + 1 + 2 * over
  local copy, from = { fields = {}, at = {} }, ARGV
  local entry = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])
  if entry[1] then from, rest = entry[1][2], 1 elseif #ARGV < rest then return nil end
  for i = rest, #from, 2 do
    local n = #copy.fields
    if from[i] ~= 'steadfast-group' then
      copy.fields[n + 1], copy.fields[n + 2] = from[i], from[i + 1]
      copy.at[from[i]] = copy.at[from[i]] or n + 2
    end
  end
  for i = first + 1, first + 2 * over, 2 do set(copy, ARGV[i], ARGV[i + 1]) end
  return copy
end
";

/// KEYS: stream, delay set. ARGV: group, consumer, id, delay ms, published ms, then as in [`COPY`].
static REQUEUE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{COPY}{}",
        r"
if not ours() then return 0 end
local copy = copy_of(6)
if not copy then return -1 end
if not copy.at['steadfast-published-at'] then set(copy, 'steadfast-published-at', ARGV[5]) end
set(copy, 'steadfast-group', ARGV[1])
if ARGV[4] == '0' then
  redis.call('XADD', KEYS[1], '*', unpack(copy.fields))
else
  local time = redis.call('TIME')
  local due = time[1] * 1000 + math.ceil(time[2] / 1000) + ARGV[4]
  local member = { ARGV[1], ARGV[3] }
  for i = 1, #copy.fields do member[i + 2] = copy.fields[i] end
  redis.call('ZADD', KEYS[2], string.format('%.0f', due), cmsgpack.pack(member))
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
return 1"
    ))
});

/// KEYS: stream, dead-letter stream. ARGV: group, consumer, id, then as in [`COPY`].
static DEAD_LETTER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{COPY}{}",
        r"
if not ours() then return 0 end
local copy = copy_of(4)
if not copy then return -1 end
redis.call('XADD', KEYS[2], '*', unpack(copy.fields))
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
return 1"
    ))
});

/// In place of [`DEAD_LETTER`] where the dead letters are on another node: returns the copy's fields.
///
/// KEYS: stream. ARGV: as there.
static COPY_OUT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{COPY}{}",
        r"
if not ours() then return 0 end
local copy = copy_of(4)
return copy and copy.fields or -1"
    ))
});

/// Acknowledges what is still ours.
///
/// KEYS: stream. ARGV: group, consumer, id.
static ACKNOWLEDGE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{COPY}{}",
        r"
if not ours() then return 0 end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
return 1"
    ))
});

/// Settles one subscription's deliveries. The last one to be dropped ends the slot.
pub(crate) struct StreamSettler {
    pub(crate) slot: Arc<Slot>,
}

impl Drop for StreamSettler {
    fn drop(&mut self) {
        self.slot.abandon();
    }
}

impl Settler for StreamSettler {
    fn ack(&self, token: Token) {
        self.slot.ack(token);
    }

    fn release(&self, token: Token) {
        self.slot.release(token);
    }

    fn requeue<'a>(
        &'a self,
        message: &'a Incoming,
        token: Token,
        requeue: &'a Requeue,
    ) -> BoxFuture<'a, Result<(), SettleError>> {
        let slot = &self.slot;
        let mut arguments = self.arguments(token);
        let after = if requeue.after.is_zero() { 0 } else { millis(requeue.after) };
        let published = message.published_at.unwrap_or(UNIX_EPOCH);
        arguments.push(after.to_string().into_bytes());
        arguments.push(since_1970(published).to_string().into_bytes());
        let mut over = Vec::new();
        pairs(&requeue.headers, &mut over);
        let copy = Copy {
            script: &REQUEUE,
            target: slot.delay_key.clone(),
            arguments: counted(arguments, over),
            what: "store a retry",
        };
        Box::pin(async move {
            self.store(message, token, copy).await?;
            slot.delayed(requeue.after);
            Ok(())
        })
    }

    fn dead_letter<'a>(
        &'a self,
        message: &'a Incoming,
        token: Token,
        letter: &'a DeadLetter,
    ) -> BoxFuture<'a, Result<(), SettleError>> {
        let mut over = Vec::new();
        pairs(letter.headers(), &mut over);
        over.extend([SOURCE_GROUP.as_bytes().to_vec(), self.slot.group.name.as_bytes().to_vec()]);
        let copy = Copy {
            script: &DEAD_LETTER,
            target: self.slot.dead.to_string(),
            arguments: counted(self.arguments(token), over),
            what: "store a dead letter",
        };
        Box::pin(self.store(message, token, copy))
    }

    fn flush(&self) {
        self.slot.flush();
    }

    fn finish(&self) -> BoxFuture<'_, Result<(), SettleError>> {
        Box::pin(self.slot.finish())
    }
}

/// A copy to be stored.
struct Copy {
    script: &'static LazyLock<Script>,
    target: String,
    arguments: Vec<Vec<u8>>,
    what: &'static str,
}

/// What a script says.
const STORED: i64 = 1;
const NOT_OURS: i64 = 0;
const TRIMMED: i64 = -1;

impl StreamSettler {
    /// Runs the script; on our own runtime, so that a caller who goes away leaves nothing half known.
    async fn store(&self, message: &Incoming, token: Token, copy: Copy) -> Result<(), SettleError> {
        let Copy { script, target, mut arguments, what } = copy;
        let mut fields = Vec::new();
        let failed = |error: RedisError| {
            error::settle(&format!("{what} of {}/{}", self.slot.group.stream, id(token)), error)
        };
        loop {
            let (slot, target) = (Arc::clone(&self.slot), target.clone());
            let ran = runtime::run(async move {
                let said = copy_to(&slot, script, &target, &arguments).await;
                if matches!(said, Ok(STORED | NOT_OURS)) {
                    slot.settled(token);
                }
                (said, arguments)
            });
            let (said, given) = ran.await.map_err(RedisError::from).map_err(failed)?;
            arguments = given;
            match said.map_err(failed)? {
                STORED => return Ok(()),
                TRIMMED if fields.is_empty() => {
                    tracing::warn!(id = %id(token), "the entry was trimmed while it was pending: storing what was read of it");
                    again(message, &mut fields);
                    arguments.extend(fields.iter().cloned());
                }
                _ => {
                    let what =
                        format!("{what} of {}/{}: it is no longer ours", self.slot.group.stream, id(token));
                    return Err(SettleError::new(SettleErrorKind::Gone, what));
                }
            }
        }
    }

    fn arguments(&self, token: Token) -> Vec<Vec<u8>> {
        let slot = &self.slot;
        vec![slot.group.name.as_bytes().to_vec(), slot.consumer.as_bytes().to_vec(), id(token).into_bytes()]
    }
}

/// Stores the copy and acknowledges the original, in one step where one server has both.
///
/// On different nodes of a cluster a copy that is stored and an original that is not acknowledged may come of it: the message
/// is delivered again, and may have a second dead letter of the same message id.
async fn copy_to(
    slot: &Slot,
    script: &Script,
    target: &str,
    arguments: &[Vec<u8>],
) -> Result<i64, RedisError> {
    let (line, stream) = (&slot.line, &*slot.group.stream);
    if line.server().are_together(stream, target) {
        return line.script(script, &[stream, target], arguments).await;
    }
    let fields = match line.script(&COPY_OUT, &[stream], arguments).await? {
        Value::Int(said) => return Ok(said),
        Value::Array(fields) => fields,
        _ => return Err(odd_answer("XRANGE")),
    };
    line.query::<Value>(target, &xadd(target, fields)?).await?;
    line.script(&ACKNOWLEDGE, &[stream], &arguments[..3]).await
}

/// Adds pairs, behind how many they are.
fn counted(mut arguments: Vec<Vec<u8>>, pairs: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    arguments.push((pairs.len() / 2).to_string().into_bytes());
    arguments.extend(pairs);
    arguments
}

fn since_1970(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

/// The scripts name the field themselves.
const _: () = assert!(matches!(GROUP.as_bytes(), b"steadfast-group"));
