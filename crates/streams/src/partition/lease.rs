//! What members of a group keep at the server: who they are, and who has which partition. All times are the server's.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{RedisError, Script};

use super::{Partitioned, PartitionedGroup};
use crate::connection::Line;
use crate::group::millis;

/// The code of the error of whoever reads without the lease.
pub(crate) const LOST: &str = "LEASELOST";

/// Stores the number of partitions, if nothing is there; returns what the key is, and the number that it has.
///
/// KEYS: name. ARGV: partitions.
static DECLARE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' then
  redis.call('HSET', KEYS[1], 'partitions', ARGV[1])
elseif kind ~= 'hash' then
  return {kind, -1}
end
local partitions = redis.call('HGET', KEYS[1], 'partitions')
if not partitions then return {'hash without a number of partitions', -1} end
return {'hash', tonumber(partitions) or -1}",
    )
});

/// A sign of life, the first of which joins; returns all members that live.
///
/// KEYS: members. ARGV: name, or nothing for the first; what makes it unique; lease ms. Names sort by when their members
/// joined. Returns the name, and those of all.
static BEAT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local name = ARGV[1]
if name == '' then name = string.format('%013.0f:%06d:%s', time[1], time[2], ARGV[2]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[3]), name)
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ARGV[3] * 10))
return {name, redis.call('ZRANGE', KEYS[1], 0, -1)}",
    )
});

/// Takes a lease that nobody has; returns the fence, or 0. The fence is a part of what is stored: a read that was sent under
/// an earlier lease of the same owner is refused, too.
///
/// KEYS: lease, fence. ARGV: owner, ms.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local fence = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1] .. '#' .. fence, 'PX', ARGV[2])
return fence",
    )
});

/// Prolongs a lease that is still ours. One that lapsed is not taken again: another may have had it in between.
///
/// KEYS: lease. ARGV: owner, ms.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])",
    )
});

/// KEYS: lease. ARGV: owner.
static YIELD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])",
    )
});

/// What is stored under the name.
pub(crate) enum Declared {
    /// It is partitioned like this.
    As(u16),
    /// It is something else.
    Otherwise(String),
}

pub(crate) async fn declare(line: &Line, streams: &Partitioned) -> Result<Declared, RedisError> {
    let arguments = [streams.partitions.to_string().into_bytes()];
    let (kind, partitions): (String, i64) = line.script(&DECLARE, &[&streams.name], &arguments).await?;
    Ok(u16::try_from(partitions).map_or(Declared::Otherwise(kind), Declared::As))
}

/// One's membership in a group.
pub(crate) struct Membership {
    key: String,
    /// What nobody else is called by; the time of joining comes before it.
    incarnation: String,
    name: String,
    lease: Duration,
}

/// Where one stands among the members.
pub(crate) struct Standing {
    pub(crate) members: usize,
    pub(crate) rank: usize,
}

impl Membership {
    pub(crate) fn new(group: &PartitionedGroup, incarnation: String) -> Self {
        Self { key: group.members_key(), incarnation, name: String::new(), lease: group.lease }
    }

    /// A sign of life.
    pub(crate) async fn beat(&mut self, line: &Line) -> Result<Standing, RedisError> {
        let lease = millis(self.lease).to_string();
        let arguments = [&self.name, &self.incarnation, &lease].map(|argument| argument.clone().into_bytes());
        let (name, mut members): (String, Vec<String>) = line.script(&BEAT, &[&self.key], &arguments).await?;
        members.sort_unstable();
        let rank = members.iter().position(|member| *member == name).unwrap_or(members.len());
        self.name = name;
        Ok(Standing { members: members.len().max(rank + 1), rank })
    }

    /// The others need not wait for the lease to lapse.
    pub(crate) async fn leave(&self, line: &Line) -> Result<(), RedisError> {
        line.query(&self.key, redis::cmd("ZREM").arg(&self.key).arg(&self.name)).await
    }
}

/// The lease of a partition, taken.
pub(crate) struct Lease {
    pub(crate) key: String,
    pub(crate) owner: String,
    /// Which owner this is of all that the partition ever had, from 1.
    pub(crate) fence: i64,
    time: Duration,
}

impl Lease {
    /// Takes the lease if nobody has it.
    pub(crate) async fn take(
        line: &Line,
        group: &PartitionedGroup,
        partition: u16,
        owner: &str,
    ) -> Result<Option<Self>, RedisError> {
        let (key, fence) = (group.lease_key(partition), group.fence_key(partition));
        let time = millis(group.lease).to_string();
        let arguments = [owner, &time].map(|argument| argument.as_bytes().to_vec());
        let fence: i64 = line.script(&TAKE, &[&key, &fence], &arguments).await?;
        Ok((fence > 0).then(|| Self { key, owner: format!("{owner}#{fence}"), fence, time: group.lease }))
    }

    /// Whether it is still ours, and for the whole of its time again.
    pub(crate) async fn renew(&self, line: &Line) -> Result<bool, RedisError> {
        let time = millis(self.time).to_string();
        let arguments = [&self.owner, &time].map(|argument| argument.clone().into_bytes());
        line.script::<i64>(&RENEW, &[&self.key], &arguments).await.map(|renewed| renewed > 0)
    }

    /// The partition is free.
    pub(crate) async fn give_up(&self, line: &Line) -> Result<(), RedisError> {
        line.script::<i64>(&YIELD, &[&self.key], &[self.owner.clone().into_bytes()]).await.map(drop)
    }
}

/// The number of partitions that a name has at the server; none where it is not partitioned.
pub(crate) async fn partitions(line: &Line, name: &str) -> Result<Option<u16>, RedisError> {
    // who has no partitioned streams needs no right to look into hashes
    let kind: String = line.query(name, redis::cmd("TYPE").arg(name)).await?;
    if kind != "hash" {
        return Ok(None);
    }
    let stored: Option<String> = line.query(name, redis::cmd("HGET").arg(name).arg("partitions")).await?;
    Ok(stored.and_then(|partitions| partitions.parse().ok()))
}
