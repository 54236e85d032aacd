//! The pending entries list: entries as the server writes them, and the scripts that read, claim, renew and give back.
//!
//! Pure but for the scripts' text: who runs them, and when, is the reader's and the keeper's.

use std::sync::LazyLock;

use redis::{Cmd, RedisError, Script, Value, cmd};
use steadfast_core::Token;

use crate::connection::odd_answer;

/// The consumer name that released entries belong to until they are claimed.
pub const RELEASED: &str = "steadfast-released";

/// An entry as it came: its ID, and its fields, names and values in turn; no fields where it was trimmed meanwhile.
pub(crate) struct Entry {
    pub(crate) token: Token,
    pub(crate) id: Vec<u8>,
    pub(crate) fields: Option<Vec<Value>>,
    /// How often it was delivered, this time included.
    pub(crate) deliveries: u32,
}

/// What a claim brought.
pub(crate) struct Claimed {
    /// Where the next one goes on; `0-0` is a new round.
    pub(crate) cursor: Vec<u8>,
    pub(crate) entries: Vec<Entry>,
    /// Pending entries that were trimmed: lost.
    pub(crate) trimmed: usize,
}

/// The two halves of an entry ID.
pub(crate) fn parse_id(id: &[u8]) -> Option<Token> {
    let (ms, sequence) = std::str::from_utf8(id).ok()?.split_once('-')?;
    Some(Token(ms.parse().ok()?, sequence.parse().ok()?))
}

pub(crate) fn id(token: Token) -> String {
    format!("{}-{}", token.0, token.1)
}

/// Own pending entries after an ID, each with its delivery count.
///
/// KEYS: stream. ARGV: group, consumer, after, count. Reading one's own list counts as a delivery.
pub(crate) static HISTORY: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local read = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[4], 'STREAMS', KEYS[1], ARGV[3])
local entries = read and read[1] and read[1][2] or {}
local counts = {}
for i, entry in ipairs(entries) do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], entry[1], entry[1], 1)
  counts[i] = pending[1] and pending[1][4] or 1
end
return {'', entries, counts, 0}",
    )
});

/// Entries of anybody that were idle for too long, taken over, each with its delivery count.
///
/// KEYS: stream. ARGV: group, consumer, min idle ms, cursor, count, name of the released. The name goes when nothing is
/// left under it; XGROUP DELCONSUMER would destroy what is.
pub(crate) static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local claim = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], 'COUNT', ARGV[5])
local counts = {}
for i, entry in ipairs(claim[2]) do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], entry[1], entry[1], 1)
  counts[i] = pending[1] and pending[1][4] or 1
end
if #claim[2] > 0 and #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[6]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[6])
end
return {claim[1], claim[2], counts, #(claim[3] or {})}",
    )
});

/// A sign of life for entries that are still ours; returns the IDs of those that are not.
///
/// KEYS: stream. ARGV: group, consumer, id… JUSTID leaves the delivery count alone.
pub(crate) static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local lost = {}
for i = 3, #ARGV do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) == 0 then
    lost[#lost + 1] = ARGV[i]
  else
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
  end
end
return lost",
    )
});

/// Gives entries that are still ours to the next who asks.
///
/// KEYS: stream. ARGV: group, consumer, name of the released, then for each its ID and how many deliveries to take off its
/// count. An idle time of a year is above any min idle time.
pub(crate) static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local released = 0
for i = 4, #ARGV, 2 do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if pending[1] then
    local count = math.max(pending[1][4] - ARGV[i + 1], 0)
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, ARGV[i], 'IDLE', 31536000000, 'RETRYCOUNT', count, 'JUSTID')
    released = released + 1
  end
end
return released",
    )
});

/// One XADD of fields that a script gave back, names and values in turn.
pub(crate) fn xadd(stream: &str, fields: Vec<Value>) -> Result<Cmd, RedisError> {
    let mut add = cmd("XADD");
    add.arg(stream).arg("*");
    for field in fields {
        let Value::BulkString(field) = field else { return Err(odd_answer("stream entry")) };
        add.arg(field);
    }
    Ok(add)
}

/// The answer to XREADGROUP of one stream.
pub(crate) fn read_answer(answer: Value) -> Result<Vec<Entry>, RedisError> {
    let entries = match answer {
        Value::Nil => return Ok(Vec::new()),
        Value::Array(mut streams) => match streams.pop() {
            Some(Value::Array(mut stream)) if stream.len() == 2 => stream.pop(),
            None => return Ok(Vec::new()),
            Some(_) => None,
        },
        // RESP3
        Value::Map(mut streams) => streams.pop().map(|(_, entries)| entries),
        Value::ServerError(error) => return Err(error.into()),
        _ => None,
    };
    match entries {
        Some(Value::Array(entries)) => entries.into_iter().map(entry).collect(),
        _ => Err(odd_answer("XREADGROUP")),
    }
}

/// The answer to XRANGE.
pub(crate) fn read_entries(answer: Value) -> Result<Vec<Entry>, RedisError> {
    match answer {
        Value::Array(entries) => entries.into_iter().map(entry).collect(),
        _ => Err(odd_answer("XRANGE")),
    }
}

/// The answer of [`HISTORY`] and [`CLAIM`].
pub(crate) fn claim_answer(answer: Value) -> Result<Claimed, RedisError> {
    let Value::Array(parts) = answer else { return Err(odd_answer("XAUTOCLAIM")) };
    let mut parts = parts.into_iter();
    let (
        Some(Value::BulkString(cursor)),
        Some(Value::Array(entries)),
        Some(Value::Array(counts)),
        Some(Value::Int(trimmed)),
    ) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(odd_answer("XAUTOCLAIM"));
    };
    let mut entries = entries.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    for (entry, count) in entries.iter_mut().zip(counts) {
        if let Value::Int(count) = count {
            entry.deliveries = u32::try_from(count).unwrap_or(u32::MAX);
        }
    }
    Ok(Claimed { cursor, entries, trimmed: usize::try_from(trimmed).unwrap_or_default() })
}

fn entry(value: Value) -> Result<Entry, RedisError> {
    let Value::Array(mut parts) = value else { return Err(odd_answer("stream entry")) };
    let (fields, id) = (parts.pop(), parts.pop());
    let Some(Value::BulkString(id)) = id else { return Err(odd_answer("stream entry")) };
    let token = parse_id(&id).ok_or_else(|| odd_answer("entry ID"))?;
    let fields = match fields {
        Some(Value::Array(fields)) => Some(fields),
        Some(Value::Nil) => None,
        _ => return Err(odd_answer("stream entry")),
    };
    Ok(Entry { token, id, fields, deliveries: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_two_numbers() {
        assert_eq!(parse_id(b"1700000000000-7"), Some(Token(1_700_000_000_000, 7)));
        for odd in ["", "7", "a-b", "1-", "-1", "18446744073709551616-0"] {
            assert_eq!(parse_id(odd.as_bytes()), None, "{odd}");
        }
        assert_eq!(id(Token(12, 3)), "12-3");
    }

    #[test]
    fn an_answer_of_another_shape_is_an_error_and_no_panic() {
        for odd in [Value::Int(1), Value::Array(vec![Value::Nil]), Value::Array(vec![Value::Array(vec![])])] {
            assert!(read_answer(odd.clone()).is_err(), "{odd:?}");
            assert!(claim_answer(odd).is_err());
        }
        assert!(read_answer(Value::Nil).expect("nothing there").is_empty());
        assert!(xadd("x", vec![Value::Int(1)]).is_err());
    }
}
