//! Delayed retries: a sorted set beside the stream, scored in milliseconds by the server's clock, and the script that moves
//! what is due back into the stream.
//!
//! A member is the packed list of the entry's fields behind its group and its old ID, or behind nothing and its message id
//! where it was published for later; these make it unique. Any number of
//! movers may run at once: a member is added to the stream and taken from the set in one script.

use std::sync::LazyLock;
use std::time::Duration;

use redis::Script;
use steadfast_core::BoxError;

use crate::connection::Line;

/// Most entries moved by one call, so that no call holds the server for long.
const BATCH: usize = 100;
/// How often to look, whatever the earliest is: another process may have added an earlier one.
const LOOK: Duration = Duration::from_millis(100);
/// The least time between two looks: what is due in between goes together.
const PACE: Duration = Duration::from_millis(10);
/// How long to leave a set alone that is not ours to read.
const FOREIGN: Duration = Duration::from_secs(1);

/// KEYS: stream, delay set. ARGV: most to move. Returns how many were moved, how long until the next is due (-1: none), and
/// how many are not ours to read.
static MOVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[1])
local moved, odd = 0, 0
for _, member in ipairs(due) do
  local ok, fields = pcall(cmsgpack.unpack, member)
  if ok and type(fields) == 'table' and #fields > 2 and #fields < 7000 then
    redis.call('XADD', KEYS[1], '*', unpack(fields, 3))
    redis.call('ZREM', KEYS[2], member)
    moved = moved + 1
  else
    odd = odd + 1
  end
end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
return {moved, first[2] and math.max(first[2] - now, 0) or -1, odd}",
    )
});

/// Moves what is due; returns how long to wait until the next call.
pub(crate) async fn move_due(line: &Line, stream: &str, set: &str) -> Result<Duration, BoxError> {
    let batch = [BATCH.to_string().into_bytes()];
    let (moved, next, odd): (usize, i64, usize) = line.script(&MOVE, &[stream, set], &batch).await?;
    if moved > 0 {
        tracing::debug!(stream, moved, "retries are due");
    }
    if odd > 0 {
        tracing::warn!(set, odd, "the delay set has members that Steadfast did not write; they stay there");
        return Ok(FOREIGN);
    }
    Ok(match u64::try_from(next) {
        // more than one batch was due
        Ok(0) => Duration::ZERO,
        // a millisecond more: timers and the server's clock both round
        Ok(next) => (Duration::from_millis(next) + Duration::from_millis(1)).clamp(PACE, LOOK),
        Err(_) => LOOK,
    })
}
