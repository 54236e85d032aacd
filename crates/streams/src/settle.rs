//! Settling. Acknowledgements are collected; a retry and a dead letter are one script each.
//!
//! A script copies the entry's own fields at the server, so that they stay as they are byte for byte, and acknowledges the
//! original only after the copy is stored. It looks first whether the entry is still ours: if not, it does nothing.

use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use redis::{Cmd, FromRedisValue, RedisError, Script, Value};
use steadfast_core::{DeadLetter, Incoming, Requeue, SettleError, SettleErrorKind, Settler, Token};
use tokio::sync::oneshot;

use crate::connection::{Link, odd_answer};
use crate::error;
use crate::group::millis;
use crate::headers::{GROUP, SOURCE_GROUP, again, pairs};
use crate::pending::{id, xadd};
use crate::runtime;
use crate::slot::Slot;
use crate::wire::evaluate;

/// Shared by both: fills `copy` with the entry's fields and others set over them; false where there are none.
///
/// ARGV from `first`: how many pairs, the pairs, then the fields to take if the entry was trimmed. `at` says where in `copy`
/// the value of a name is, and `size` how long it is.
const COPY: &str = r"
local function ours()
  return redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])[1]
end
local copy, at, size = {}, {}, 0
local function set(name, value)
  local known = at[name]
  if known then copy[known] = value return end
  copy[size + 1], copy[size + 2] = name, value
  size = size + 2
  at[name] = size
end
local function copy_with(first)
  local over = first + 2 * ARGV[first]
  local entry = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])[1]
  local from, start = ARGV, over + 1
  if entry then from, start = entry[2], 1 elseif #ARGV < start then return false end
  for i = start, #from, 2 do
    local name = from[i]
    if name ~= 'steadfast-group' then
      copy[size + 1], copy[size + 2] = name, from[i + 1]
      size = size + 2
      if not at[name] then at[name] = size end
    end
  end
  for i = first + 1, over, 2 do set(ARGV[i], ARGV[i + 1]) end
  return true
end
";

/// KEYS: stream, delay set. ARGV: group, consumer, id, delay ms, published ms, then as in [`COPY`].
static REQUEUE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{COPY}{}",
        r"
if not ours() then return 0 end
if not copy_with(6) then return -1 end
if not at['steadfast-published-at'] then set('steadfast-published-at', ARGV[5]) end
set('steadfast-group', ARGV[1])
if ARGV[4] == '0' then
  redis.call('XADD', KEYS[1], '*', unpack(copy))
else
  local time = redis.call('TIME')
  local due = time[1] * 1000 + math.ceil(time[2] / 1000) + ARGV[4]
  local member = { ARGV[1], ARGV[3] }
  for i = 1, size do member[i + 2] = copy[i] end
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
if not copy_with(4) then return -1 end
redis.call('XADD', KEYS[2], '*', unpack(copy))
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
return copy_with(4) and copy or -1"
    ))
});

/// Acknowledges what is still ours.
///
/// KEYS: stream. ARGV: group, consumer, id.
static ACKNOWLEDGE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if not redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])[1] then return 0 end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
return 1",
    )
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

/// A script that stores a copy, left to the reader.
pub(crate) struct Carried {
    command: Cmd,
    script: &'static Script,
    token: Token,
    done: oneshot::Sender<Result<i64, RedisError>>,
}

impl Carried {
    pub(crate) async fn send(self, slot: &Slot, mut link: Link) -> Said {
        let answer = link.call(&self.command, self.script).await;
        let said = answer.and_then(|answer| Ok(i64::from_redis_value(answer)?));
        slot.copied(self.token, &said);
        Said { done: self.done, said }
    }
}

/// What the server said of a copy; who left it to the reader waits for it.
pub(crate) struct Said {
    done: oneshot::Sender<Result<i64, RedisError>>,
    said: Result<i64, RedisError>,
}

impl Said {
    /// Errors: only if the connection is of no more use; who waits hears of any other.
    pub(crate) fn pass_on(self) -> Result<(), RedisError> {
        let lost = self.said.as_ref().err().filter(|error| error::is_lost(error)).cloned();
        // this fails where nobody waits any more
        let _ = self.done.send(self.said);
        lost.map_or(Ok(()), Err)
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

impl Slot {
    /// What a script said of a delivery: after either of these it is no longer ours.
    fn copied(&self, token: Token, said: &Result<i64, RedisError>) {
        if matches!(said, Ok(STORED | NOT_OURS)) {
            self.settled(token);
        }
    }
}

impl StreamSettler {
    async fn store(&self, message: &Incoming, token: Token, mut copy: Copy) -> Result<(), SettleError> {
        let what = format!("{} of {}/{}", copy.what, self.slot.group.stream, id(token));
        let mut fields = Vec::new();
        loop {
            match self.run(token, &mut copy).await.map_err(|error| error::settle(&what, error))? {
                STORED => return Ok(()),
                TRIMMED if fields.is_empty() => {
                    tracing::warn!(id = %id(token), "the entry was trimmed while it was pending: storing what was read of it");
                    again(message, &mut fields);
                    copy.arguments.extend(fields.iter().cloned());
                }
                _ => {
                    let what = format!("{what}: it is no longer ours");
                    return Err(SettleError::new(SettleErrorKind::Gone, what));
                }
            }
        }
    }

    /// Runs the script: with the reader's next command where there will be one soon, else at once. On our own runtime either
    /// way, so that a caller who goes away leaves nothing half known.
    async fn run(&self, token: Token, copy: &mut Copy) -> Result<i64, RedisError> {
        let (slot, script): (_, &'static Script) = (&self.slot, copy.script);
        if slot.line.server().nodes().is_none() {
            let command = evaluate(script, &[&slot.group.stream, &copy.target], &copy.arguments);
            let (done, said) = oneshot::channel();
            if slot.carry(Carried { command, script, token, done }).is_ok() {
                // dropped where the reader ended before it was sent
                if let Ok(said) = said.await {
                    return said;
                }
            }
        }
        // a large future, and rarely needed
        Box::pin(self.run_at_once(token, copy)).await
    }

    async fn run_at_once(&self, token: Token, copy: &mut Copy) -> Result<i64, RedisError> {
        let (slot, script) = (Arc::clone(&self.slot), copy.script);
        let (target, arguments) = (copy.target.clone(), std::mem::take(&mut copy.arguments));
        let ran = runtime::run(async move {
            let said = copy_to(&slot, script, &target, &arguments).await;
            slot.copied(token, &said);
            (said, arguments)
        });
        let (said, arguments) = ran.await.map_err(RedisError::from)?;
        copy.arguments = arguments;
        said
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
