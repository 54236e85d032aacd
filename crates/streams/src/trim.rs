//! Safe trimming: never past the oldest entry that any group still needs, which is its oldest pending one, or the one after
//! the last that it was delivered.
//!
//! One script looks and trims a bounded number of entries, so that no group can fall behind in between.

use std::sync::LazyLock;

use redis::{RedisError, Script};

use crate::broker::Streams;
use crate::connection::{Line, odd_answer};
use crate::error::{self, StreamError};
use crate::group::millis;
use crate::retention::{HeldBack, Retention, Trimmed};

/// Entries in one step: their contents pass through the script.
const CHUNK: u64 = 500;

/// KEYS: stream. ARGV: most entries or -1, greatest age in ms or -1, first entry to look at, how many lie before it and are
/// to be taken as gone, most to look at, 1 to trim, 1 if entries may go that no group is there for.
///
/// Returns how many go, the next entry's ID, what holds that one back (0 nothing, 1 a group, 2 no group), the group, and
/// whether there may be more.
static TRIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local function smaller(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end
local function before(a, b)
  local ams, aseq = string.match(a, '^(%d+)-(%d+)$')
  local bms, bseq = string.match(b, '^(%d+)-(%d+)$')
  if ams ~= bms then return smaller(ams, bms) end
  return smaller(aseq, bseq)
end
local length = redis.call('XLEN', KEYS[1])
if length == 0 then return {0, '', 0, '', 0} end
local excess = tonumber(ARGV[1]) >= 0 and length - ARGV[4] - ARGV[1] or 0
local cutoff = nil
if tonumber(ARGV[2]) >= 0 then
  local time = redis.call('TIME')
  local since = time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[2]
  cutoff = string.format('%.0f-0', math.max(since, 0))
end
local need, read, holder = nil, false, ''
local function look_at_groups()
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local about = {}
    for i = 1, #info, 2 do about[info[i]] = info[i + 1] end
    local first, whole = about['last-delivered-id'], true
    if about.pending > 0 then first, whole = redis.call('XPENDING', KEYS[1], about.name)[2], false end
    if not need or before(first, need) or (first == need and not whole) then
      need, read, holder = first, whole, about.name
    end
  end
end
local entries = redis.call('XRANGE', KEYS[1], ARGV[3], '+', 'COUNT', ARGV[5] + 1)
local count, held = 0, 0
for i = 1, math.min(#entries, ARGV[5]) do
  local id = entries[i][1]
  if i > excess and not (cutoff and before(id, cutoff)) then break end
  if i == 1 then look_at_groups() end
  if need then
    if not (before(id, need) or (read and id == need)) then held = 1 break end
  elseif ARGV[7] ~= '1' then held = 2 break end
  count = i
end
local next = entries[count + 1] and entries[count + 1][1] or ''
if ARGV[6] == '1' and count > 0 then
  if next ~= '' then redis.call('XTRIM', KEYS[1], 'MINID', '=', next)
  else redis.call('XTRIM', KEYS[1], 'MAXLEN', '=', 0) end
end
return {count, next, held, held == 1 and holder or '', count == tonumber(ARGV[5]) and next ~= '' and 1 or 0}",
    )
});

/// What one step does.
pub(crate) enum Pass<'a> {
    Trim,
    /// Counts from this entry on, with so many before it that would be gone.
    Preview(&'a str, u64),
}

/// What one step found.
pub(crate) struct Step {
    pub(crate) count: u64,
    pub(crate) next: String,
    pub(crate) held: Option<HeldBack>,
    pub(crate) more: bool,
}

/// `unread`: where there is no group, entries may go all the same.
pub(crate) async fn step(
    line: &Line,
    stream: &str,
    retention: &Retention,
    unread: bool,
    pass: Pass<'_>,
) -> Result<Step, RedisError> {
    let last = retention.last.map_or_else(|| "-1".to_owned(), |last| last.to_string());
    let age = retention.age.map_or_else(|| "-1".to_owned(), |age| millis(age).to_string());
    let (first, gone, trim) = match pass {
        Pass::Trim => ("-", 0, "1"),
        Pass::Preview(first, gone) => (first, gone, "0"),
    };
    let (gone, chunk, unread) = (gone.to_string(), CHUNK.to_string(), if unread { "1" } else { "0" });
    let arguments =
        [&*last, &*age, first, &*gone, &*chunk, trim, unread].map(|argument| argument.as_bytes().to_vec());
    let answer: (u64, String, u8, String, u8) = line.script(&TRIM, &[stream], &arguments).await?;
    let (count, next, held, group, more) = answer;
    let held = match held {
        0 => None,
        1 => Some(HeldBack::Group(group)),
        2 => Some(HeldBack::NoGroup),
        _ => return Err(odd_answer("trim")),
    };
    Ok(Step { count, next, held, more: more == 1 })
}

impl Streams {
    /// Trims a stream to what `retention` keeps (`XTRIM`), and never an entry that any of its groups has pending or has not
    /// been delivered yet. A stream without a group is left as it is.
    ///
    /// It works in steps, so that the server is never held for long; when many consumers need room at once,
    /// [`Group::retain`](crate::Group::retain) does the same while they consume.
    ///
    /// ```no_run
    /// # async fn example(broker: &steadfast_streams::Streams) -> Result<(), steadfast_streams::StreamError> {
    /// use steadfast_streams::Retention;
    ///
    /// let retention = Retention::new().last(100_000);
    /// let preview = broker.preview_trim("orders", &retention).await?;
    /// println!("{} would go; held back by {:?}", preview.count, preview.held_back);
    /// let trimmed = broker.trim("orders", &retention).await?;
    /// assert!(trimmed.count >= preview.count);
    /// # Ok(()) }
    /// ```
    pub async fn trim(&self, stream: &str, retention: &Retention) -> Result<Trimmed, StreamError> {
        let mut count = 0;
        loop {
            let step = step(self.commands(), stream, retention, false, Pass::Trim).await;
            let step = step.map_err(|error| error::stream(&format!("trim stream `{stream}`"), error))?;
            count += step.count;
            if !step.more {
                return Ok(trimmed(count, step));
            }
        }
    }

    /// What [`trim`](Self::trim) would do now. Reads what would go, in steps, and changes nothing.
    pub async fn preview_trim(&self, stream: &str, retention: &Retention) -> Result<Trimmed, StreamError> {
        let (mut count, mut first) = (0, "-".to_owned());
        loop {
            let step = step(self.commands(), stream, retention, false, Pass::Preview(&first, count)).await;
            let step =
                step.map_err(|error| error::stream(&format!("look through stream `{stream}`"), error))?;
            count += step.count;
            if !step.more {
                return Ok(trimmed(count, step));
            }
            first = step.next;
        }
    }
}

fn trimmed(count: u64, last: Step) -> Trimmed {
    let oldest_kept = Some(last.next).filter(|id| !id.is_empty());
    Trimmed { count, oldest_kept, held_back: last.held }
}
