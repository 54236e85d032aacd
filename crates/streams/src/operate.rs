//! The operator's side of Redis Streams: looking at a stream and its groups, and a walk through one.
//!
//! Everything here is read by `XRANGE` and `XINFO`, which change nothing. A letter is moved by one script, so that it is in
//! one place whatever happens, and a second operator finds it gone. Between two nodes of a cluster it is marked, copied and
//! then deleted, so that at worst it is in both places.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::{RedisError, Script, Value, cmd};
use steadfast_core::{
    ConsumerInspection, Destination, Follow, Forward, Forwarded, GroupInspection, Inspection, Letter,
    OperateError, OperateErrorKind, Operator, Payload, Pending, Source, Token, Walk, known,
};

use crate::connection::Line;
use crate::error::{Trouble, told, trouble};
use crate::group::{Group, beside};
use crate::headers::{BODY, GROUP, SOURCE_GROUP, pairs, receive};
use crate::partition::{inspect_all, known_partitions};
use crate::pending::{RELEASED, id, read_entries, xadd};
use crate::wire::Failure;

/// A letter's fields as they are to be at its destination, or nothing where it is gone.
///
/// ARGV: id, destination, owner of the mark, 1 to restore, how many fields to drop, their names, then pairs to set over the
/// others. A restored letter goes back to the group that gave it up, and to no other.
const COPY: &str = r"
local function copy_of()
  local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
  if not entry[1] then return nil end
  local first = 6 + tonumber(ARGV[5])
  local without, copy, group, source = {}, {}, nil, nil
  for i = 6, first - 1 do without[ARGV[i]] = true end
  for i = first, #ARGV, 2 do without[ARGV[i]] = true end
  local from = entry[1][2]
  for i = 1, #from, 2 do
    if from[i] == 'steadfast-source-group' then group = from[i + 1] end
    if from[i] == 'steadfast-source' then source = from[i + 1] end
    if not without[from[i]] then
      copy[#copy + 1], copy[#copy + 2] = from[i], from[i + 1]
    end
  end
  for i = first, #ARGV do copy[#copy + 1] = ARGV[i] end
  if ARGV[4] == '1' and group and source == ARGV[2] then
    copy[#copy + 1], copy[#copy + 2] = 'steadfast-group', group
  end
  return copy
end
";

/// KEYS: dead-letter stream, destination. ARGV: as in [`COPY`].
static FORWARD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{COPY}{}",
        r"
local copy = copy_of()
if not copy then return 0 end
redis.call('XADD', KEYS[2], '*', unpack(copy))
redis.call('XDEL', KEYS[1], ARGV[1])
return 1"
    ))
});

/// Marks a letter as on its way, for a minute, and returns its fields; 0 where it is gone, -1 where another has marked it.
///
/// KEYS: dead-letter stream, mark. ARGV: as in [`COPY`].
static COPY_OUT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{COPY}{}",
        r"
local owner = redis.call('GET', KEYS[2])
if owner and owner ~= ARGV[3] then return -1 end
local copy = copy_of()
if not copy then return 0 end
redis.call('SET', KEYS[2], ARGV[3], 'PX', 60000)
return copy"
    ))
});

/// KEYS: dead-letter stream, mark. ARGV: id.
static DELETE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
redis.call('DEL', KEYS[2])
return redis.call('XDEL', KEYS[1], ARGV[1])",
    )
});

/// Gives pending entries that were idle for long enough to the next who asks.
///
/// KEYS: stream. ARGV: group, least idle ms, most, name of the released. Reading the list changes nothing, and JUSTID leaves
/// the count of deliveries alone.
static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local found = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[2], '-', '+', ARGV[3])
for _, entry in ipairs(found) do
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[4], 0, entry[1], 'IDLE', 31536000000, 'JUSTID')
end
return #found",
    )
});

/// Looks on over the connection for commands.
pub(crate) struct StreamOperator {
    pub(crate) line: Arc<Line>,
}

impl fmt::Debug for StreamOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamOperator").finish_non_exhaustive()
    }
}

impl StreamOperator {
    async fn look(&self, source: &Source) -> Result<Inspection, OperateError> {
        let stream = source.name();
        let failed = |error| operating(&format!("look at stream `{stream}`"), error);
        let mut inspection = Inspection::new("stream", stream);
        let info: HashMap<String, Value> =
            self.line.query(stream, cmd("XINFO").arg("STREAM").arg(&**stream)).await.map_err(failed)?;
        inspection.length = info.get("length").and_then(number);
        let groups: Vec<HashMap<String, Value>> =
            self.line.query(stream, cmd("XINFO").arg("GROUPS").arg(&**stream)).await.map_err(failed)?;
        for group in groups {
            inspection.groups.push(self.look_at_group(stream, &group).await.map_err(failed)?);
        }
        let asked = Group::of(source).map_err(|error| {
            OperateError::new(OperateErrorKind::Unsupported, format!("look at stream `{stream}`"))
                .with_source(error)
        })?;
        if let Some(group) = inspection.groups.iter().find(|group| group.name == *asked.name) {
            inspection.ready = group.lag;
            inspection.unsettled = Some(group.pending);
            inspection.consumers = Some(group.consumers.len() as u64);
        }
        let delayed = asked.delay_key();
        let delayed: u64 = self.line.query(&delayed, cmd("ZCARD").arg(&delayed)).await.map_err(failed)?;
        inspection.delayed = Some(delayed);
        Ok(inspection)
    }

    async fn look_at_group(
        &self,
        stream: &str,
        group: &HashMap<String, Value>,
    ) -> Result<GroupInspection, RedisError> {
        let name = text(group.get("name"));
        let consumers: Vec<HashMap<String, Value>> =
            self.line.query(stream, cmd("XINFO").arg("CONSUMERS").arg(stream).arg(&name)).await?;
        let consumers = consumers.iter().map(|consumer| ConsumerInspection {
            name: text(consumer.get("name")),
            pending: consumer.get("pending").and_then(number).unwrap_or(0),
            idle_ms: consumer.get("idle").and_then(number).unwrap_or(0),
        });
        Ok(GroupInspection {
            name,
            lag: group.get("lag").and_then(number),
            pending: group.get("pending").and_then(number).unwrap_or(0),
            last_delivered: text(group.get("last-delivered-id")),
            consumers: consumers.collect(),
        })
    }

    async fn start(&self, stream: &str) -> Result<Arc<dyn Walk>, OperateError> {
        let failed = |error| operating(&format!("walk through stream `{stream}`"), error);
        let info: HashMap<String, Value> =
            self.line.query(stream, cmd("XINFO").arg("STREAM").arg(stream)).await.map_err(failed)?;
        let last = text(info.get("last-generated-id"));
        Ok(Arc::new(StreamWalk {
            line: Arc::clone(&self.line),
            stream: stream.into(),
            total: info.get("length").and_then(number).unwrap_or(0),
            after: tokio::sync::Mutex::new("-".to_owned()),
            returned: tokio::sync::Mutex::new((format!("({last}"), 0)),
            last,
            walker: uuid::Uuid::now_v7().to_string(),
        }))
    }

    async fn list(&self, source: &Source, limit: usize) -> Result<Vec<Pending>, OperateError> {
        let group = group(source)?;
        let mut list = cmd("XPENDING");
        list.arg(&*group.stream).arg(&*group.name).arg("-").arg("+").arg(limit);
        let found: Vec<(String, String, u64, u64)> =
            self.line.query(&group.stream, &list).await.map_err(|error| {
                operating(
                    &format!("list what is pending in group `{}` of `{}`", group.name, group.stream),
                    error,
                )
            })?;
        let pending = |(id, consumer, idle_ms, deliveries)| Pending { id, consumer, idle_ms, deliveries };
        Ok(found.into_iter().map(pending).collect())
    }

    async fn free(&self, source: &Source, idle: Duration, limit: usize) -> Result<u64, OperateError> {
        let group = group(source)?;
        let arguments = [
            group.name.as_bytes().to_vec(),
            idle.as_millis().to_string().into_bytes(),
            limit.to_string().into_bytes(),
            RELEASED.as_bytes().to_vec(),
        ];
        self.line.script(&CLAIM, &[&group.stream], &arguments).await.map_err(|error| {
            operating(&format!("free what is pending in group `{}` of `{}`", group.name, group.stream), error)
        })
    }
}

impl Operator for StreamOperator {
    /// `XINFO STREAM`, `GROUPS` and `CONSUMERS`, and `ZCARD` of the delay set. What is ready and unsettled is the source's
    /// own group's, `steadfast` by default. Of a partitioned stream all partitions together.
    fn inspect<'a>(&'a self, source: &'a Source) -> BoxFuture<'a, Result<Inspection, OperateError>> {
        Box::pin(async move {
            match known_partitions(&self.line, source.name()).await {
                Ok(Some(partitions)) => inspect_all(self, source, partitions).await,
                Ok(None) | Err(_) => self.look(source).await,
            }
        })
    }

    fn walk<'a>(&'a self, place: &'a str) -> BoxFuture<'a, Result<Arc<dyn Walk>, OperateError>> {
        Box::pin(self.start(place))
    }

    /// `XPENDING` with its ranges.
    fn pending<'a>(
        &'a self,
        source: &'a Source,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Pending>, OperateError>> {
        Box::pin(self.list(source, limit))
    }

    /// `XCLAIM` with `JUSTID`, to the name that released entries have.
    fn claim<'a>(
        &'a self,
        source: &'a Source,
        idle: Duration,
        limit: usize,
    ) -> BoxFuture<'a, Result<u64, OperateError>> {
        Box::pin(self.free(source, idle, limit))
    }

    /// `XRANGE` from the last ID on.
    fn follow<'a>(&'a self, place: &'a Destination) -> BoxFuture<'a, Result<Arc<dyn Follow>, OperateError>> {
        Box::pin(self.look_on(place))
    }

    /// `UNLINK` of the stream and its delay set.
    fn delete<'a>(&'a self, place: &'a Source) -> BoxFuture<'a, Result<(), OperateError>> {
        Box::pin(self.remove(place))
    }

    /// The connection is the broker's.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

struct StreamWalk {
    line: Arc<Line>,
    stream: Arc<str>,
    total: u64,
    /// The last entry that was there when the walk began.
    last: String,
    /// Where the next page begins.
    after: tokio::sync::Mutex<String>,
    /// Who this is in the marks of letters on their way, unless a job says who it is.
    walker: String,
    /// How far it was looked for what came back, and how many did.
    returned: tokio::sync::Mutex<(String, u64)>,
}

impl StreamWalk {
    async fn page(&self, limit: usize) -> Result<Vec<Letter>, OperateError> {
        let mut after = self.after.lock().await;
        let page = self.range(&after, &self.last, limit).await?;
        if let Some(last) = page.last() {
            *after = format!("({}", id(last.mark));
        }
        Ok(page)
    }

    async fn range(&self, from: &str, to: &str, limit: usize) -> Result<Vec<Letter>, OperateError> {
        let mut range = cmd("XRANGE");
        range.arg(&*self.stream).arg(from).arg(to).arg("COUNT").arg(limit);
        let answer: Result<Value, RedisError> = self.line.query(&self.stream, &range).await;
        let entries = answer
            .and_then(read_entries)
            .map_err(|error| operating(&format!("read stream `{}`", self.stream), error))?;
        let letter = |entry: crate::pending::Entry| {
            let received = receive(&self.stream, entry.id, entry.token, entry.fields.unwrap_or_default());
            Letter { mark: entry.token, message: Arc::new(received.incoming) }
        };
        Ok(entries.into_iter().map(letter).collect())
    }

    async fn send(&self, letter: &Letter, forward: &Forward) -> Result<Forwarded, OperateError> {
        let what = format!("move {} of stream `{}` to `{}`", id(letter.mark), self.stream, forward.to);
        if forward.to.exchange_name().is_some() {
            let why = format!("{what}: Redis has no exchanges; name a stream");
            return Err(OperateError::new(OperateErrorKind::NotStored, why));
        }
        let mut over = Vec::new();
        let mut put = |name: &str, value: &[u8]| over.extend([name.as_bytes().to_vec(), value.to_vec()]);
        match &forward.payload {
            None => {}
            Some(Payload::Body(body)) => put(BODY, body),
            Some(Payload::Fields(fields)) => fields.iter().for_each(|(name, value)| put(name, value)),
        }
        if let Some(message_id) = &forward.message_id {
            put(known::ID, message_id.as_bytes());
        }
        pairs(&forward.set, &mut over);
        let mut without: Vec<&[u8]> = Vec::new();
        if forward.restore {
            without.extend(RECORD.iter().map(|name| name.as_bytes()));
        }
        match (&forward.payload, &letter.message.payload) {
            (None, _) => {}
            (Some(_), Payload::Body(_)) => without.push(BODY.as_bytes()),
            (Some(_), Payload::Fields(fields)) => {
                without.extend(fields.iter().map(|(name, _)| name.as_bytes()));
            }
        }
        let to = forward.to.name();
        let owner = forward.set.text(known::REDRIVE_JOB).ok().flatten().unwrap_or(&self.walker);
        let mut arguments = vec![
            id(letter.mark).into_bytes(),
            to.as_bytes().to_vec(),
            owner.as_bytes().to_vec(),
            u8::from(forward.restore).to_string().into_bytes(),
            without.len().to_string().into_bytes(),
        ];
        arguments.extend(without.into_iter().map(<[u8]>::to_vec));
        arguments.extend(over);
        if !self.line.server().are_together(&self.stream, to) {
            return self.send_across(letter.mark, to, &arguments, &what).await;
        }
        let moved = self.line.script::<i64>(&FORWARD, &[&self.stream, to], &arguments).await;
        let moved = moved.map_err(|error| operating(&what, error))?;
        Ok(if moved == 1 { Forwarded::Moved } else { Forwarded::Gone })
    }

    /// The same to another node. Once it is sent it may be there, whatever the answer.
    async fn send_across(
        &self,
        mark: Token,
        to: &str,
        arguments: &[Vec<u8>],
        what: &str,
    ) -> Result<Forwarded, OperateError> {
        let failed = |error| operating(what, error);
        let on_its_way = beside(&self.stream, &format!("moving:{}", id(mark)));
        let keys = [&*self.stream, &on_its_way];
        let fields = match self.line.script(&COPY_OUT, &keys, arguments).await.map_err(failed)? {
            Value::Int(0) => return Ok(Forwarded::Gone),
            Value::Array(fields) => fields,
            _ => {
                let why = format!(
                    "{what}: another operator is moving it; if that one is gone, try again in a minute"
                );
                return Err(OperateError::new(OperateErrorKind::NotStored, why));
            }
        };
        let added = self.line.run(to, &xadd(to, fields).map_err(failed)?).await;
        if let Err(Failure { error, sent }) = added {
            let lost = sent && matches!(trouble(&error), Trouble::Cut | Trouble::Silent);
            return Err(if lost {
                let why = format!("{what}: it was sent, and the answer did not come");
                OperateError::new(OperateErrorKind::Unknown, why).with_source(error)
            } else {
                failed(error)
            });
        }
        let deleted: Result<i64, _> = self.line.script(&DELETE, &keys, &arguments[..1]).await;
        Ok(if deleted.is_ok() { Forwarded::Moved } else { Forwarded::Copied })
    }

    async fn remove(&self, mark: Token) -> Result<bool, OperateError> {
        let removed: i64 =
            self.line.query(&self.stream, cmd("XDEL").arg(&*self.stream).arg(id(mark))).await.map_err(
                |error| operating(&format!("delete {} of stream `{}`", id(mark), self.stream), error),
            )?;
        Ok(removed == 1)
    }

    async fn count_returned(&self, job: &str) -> Result<u64, OperateError> {
        let mut seen = self.returned.lock().await;
        loop {
            let page = self.range(&seen.0, "+", 500).await?;
            let Some(last) = page.last() else { return Ok(seen.1) };
            seen.0 = format!("({}", id(last.mark));
            seen.1 += page.iter().filter(|letter| letter.job() == Some(job)).count() as u64;
        }
    }
}

impl Walk for StreamWalk {
    fn total(&self) -> u64 {
        self.total
    }

    /// In a cluster the destination may be on another node.
    fn atomic(&self) -> bool {
        self.line.server().nodes().is_none()
    }

    fn next(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Letter>, OperateError>> {
        Box::pin(self.page(limit))
    }

    fn forward<'a>(
        &'a self,
        letter: &'a Letter,
        forward: &'a Forward,
    ) -> BoxFuture<'a, Result<Forwarded, OperateError>> {
        Box::pin(self.send(letter, forward))
    }

    fn discard(&self, mark: Token) -> BoxFuture<'_, Result<bool, OperateError>> {
        Box::pin(self.remove(mark))
    }

    fn keep(&self, _: Token) {}

    fn returned<'a>(&'a self, job: &'a str) -> BoxFuture<'a, Result<u64, OperateError>> {
        Box::pin(self.count_returned(job))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), OperateError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// What a restored letter loses: its record, its attempts, and what this broker noted.
const RECORD: &[&str] = &[
    known::REASON,
    known::ERROR_CHAIN,
    known::FINGERPRINT,
    known::CLASS,
    known::HANDLER,
    known::CONSUMER,
    known::SOURCE,
    known::EXCHANGE,
    known::ROUTING_KEY,
    known::ENTRY_ID,
    known::ATTEMPTS,
    known::HOST,
    known::APP_VERSION,
    known::ON_DEAD_ERROR,
    known::TRUNCATED,
    known::RETRY_COUNT,
    known::ERROR,
    known::FIRST_FAILURE,
    known::LAST_FAILURE,
    SOURCE_GROUP,
    GROUP,
];

fn group(source: &Source) -> Result<Group, OperateError> {
    Group::of(source).map_err(|error| {
        let what = format!("look at the group of `{}`", source.name());
        OperateError::new(OperateErrorKind::Unsupported, what).with_source(error)
    })
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

fn text(value: Option<&Value>) -> String {
    match value {
        Some(Value::BulkString(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        Some(Value::SimpleString(text)) => text.clone(),
        _ => String::new(),
    }
}

/// ID of the last entry that was ever added to a stream.
pub(crate) async fn last_id(line: &Line, stream: &str) -> Result<String, RedisError> {
    let info: HashMap<String, Value> = line.query(stream, cmd("XINFO").arg("STREAM").arg(stream)).await?;
    Ok(text(info.get("last-generated-id")))
}

/// A cut or a silence leaves it open whether a script ran; run again it finds the letter gone, so nothing is sent twice.
pub(crate) fn operating(what: &str, error: RedisError) -> OperateError {
    let kind = match trouble(&error) {
        Trouble::Cut | Trouble::Silent | Trouble::Away => OperateErrorKind::Unreachable,
        Trouble::Missing => OperateErrorKind::NotFound,
        Trouble::Full | Trouble::WrongType | Trouble::Elsewhere | Trouble::Split => {
            OperateErrorKind::NotStored
        }
        Trouble::Other if error.to_string().contains("no such key") => OperateErrorKind::NotFound,
        Trouble::Refused | Trouble::Other => OperateErrorKind::Refused,
    };
    let text = match kind {
        OperateErrorKind::NotFound => format!("{what}: it is not there"),
        _ => told(what, &error),
    };
    OperateError::new(kind, text).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The script is given names, not a rule: they have to be the same.
    #[test]
    fn a_restored_letter_loses_exactly_what_the_record_added() {
        for name in RECORD {
            let ours = [GROUP, SOURCE_GROUP].contains(name);
            assert!(ours || known::is_record(name) || known::is_of_attempts(name), "{name}");
        }
        let all =
            [known::REASON, known::CLASS, known::HOST, known::TRUNCATED, known::RETRY_COUNT, known::ERROR];
        assert!(all.iter().all(|name| RECORD.contains(name)));
        assert_eq!(RECORD.len(), 21);
    }
}
