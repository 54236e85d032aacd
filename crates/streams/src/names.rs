//! Consumer names: those that nobody else has, those that are kept under a lease, and taking out the ones of the dead.
//!
//! A name goes only in the script that finds nothing pending under it: XGROUP DELCONSUMER destroys what is. A consumer whose
//! name went while it slept gets it again with its next read.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{RedisError, Script};
use steadfast_core::{SubscribeError, SubscribeErrorKind};

use crate::broker::Streams;
use crate::connection::Line;
use crate::error::{self, StreamError};
use crate::group::{Group, millis};
use crate::pending::RELEASED;

/// How long a stable name stays taken without a sign of life from its owner.
pub(crate) const LEASE: Duration = Duration::from_secs(6);
/// How often the owner gives one.
pub(crate) const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// How often to look at a lease that is held by another.
const LOOK: Duration = Duration::from_millis(250);

/// Takes a consumer name out of the group if nothing is pending under it.
///
/// KEYS: stream. ARGV: group, consumer.
pub(crate) static REAP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1",
    )
});

/// Takes out the names that no living consumer has: unique ones that were idle for too long, and that of the released,
/// where nothing is pending under them.
///
/// KEYS: stream. ARGV: group, consumer that asks, idle ms, name of the released. Returns how many.
static REAP_DEAD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local reaped = 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local about = {}
  for i = 1, #info, 2 do about[info[i]] = info[i + 1] end
  local unique = string.match(about.name, '@[^@]*:%d+:%x+$') and about.name ~= ARGV[2]
  if about.pending == 0 and (about.name == ARGV[4] or (unique and about.idle >= tonumber(ARGV[3]))) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], about.name)
    reaped = reaped + 1
  end
end
return reaped",
    )
});

/// Takes or keeps a lease; returns who has it instead, and for how many more ms.
///
/// KEYS: lease. ARGV: owner, ms, an owner that is known to be gone.
static HOLD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] and owner ~= ARGV[3] then return {owner, redis.call('PTTL', KEYS[1])} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {'', 0}",
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

/// Who this process is, in names and leases: host, process and a nonce.
pub(crate) fn incarnation() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "host",
        host => host,
    };
    let nonce = uuid::Uuid::now_v7().simple().to_string();
    // the last characters are the random ones
    format!("{host}:{}:{}", std::process::id(), &nonce[20..])
}

/// A consumer name that no other incarnation has.
pub(crate) fn unique_consumer(consumer: &str) -> Arc<str> {
    format!("{consumer}@{}", incarnation()).into()
}

impl Streams {
    /// Takes out the consumer names of a group that were idle for at least `idle` and have nothing pending
    /// (`XGROUP DELCONSUMER`); returns how many.
    ///
    /// Concerns only the unique names that Steadfast gives. A living consumer whose name goes gets it again with its next
    /// read, and what is pending under a name keeps it, so it is safe at any time; running consumers do it by themselves,
    /// see [`Group::reap_after`].
    ///
    /// ```no_run
    /// # async fn example(broker: &steadfast_streams::Streams) -> Result<(), steadfast_streams::StreamError> {
    /// use std::time::Duration;
    /// use steadfast_streams::Stream;
    ///
    /// let names = broker.reap(&Stream::new("orders").group("billing"), Duration::from_secs(3600)).await?;
    /// println!("{names} names of dead consumers taken out");
    /// # Ok(()) }
    /// ```
    pub async fn reap(&self, group: &Group, idle: Duration) -> Result<usize, StreamError> {
        let reaped = reap_dead(self.commands(), group, "", idle).await;
        let what =
            || format!("take out dead consumers of group `{}` of stream `{}`", group.name, group.stream);
        reaped.map_err(|error| error::stream(&what(), error))
    }
}

/// Takes out the names of the dead, for a consumer that lives.
pub(crate) async fn reap_dead(
    line: &Line,
    group: &Group,
    consumer: &str,
    idle: Duration,
) -> Result<usize, RedisError> {
    let idle = idle.as_millis().to_string();
    let arguments = [&*group.name, consumer, &idle, RELEASED].map(|argument| argument.as_bytes().to_vec());
    line.script(&REAP_DEAD, &[&group.stream], &arguments).await
}

/// The owners of stable names on one [`Server`](crate::connection::Server), as they are written into leases.
pub(crate) struct Owners {
    incarnation: String,
    living: Mutex<HashSet<String>>,
}

impl Owners {
    pub(crate) fn new() -> Self {
        Self { incarnation: incarnation(), living: Mutex::default() }
    }

    /// One more.
    pub(crate) fn enlist(self: &Arc<Self>) -> Owner {
        let nonce = uuid::Uuid::now_v7().simple();
        let name = format!("{}/{nonce}", self.incarnation);
        self.lock().insert(name.clone());
        Owner { name, owners: Arc::clone(self) }
    }

    /// Whether it was one of ours and has ended.
    fn has_gone(&self, owner: &str) -> bool {
        owner.starts_with(&self.incarnation) && !self.lock().contains(owner)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.living.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the [`Owners`], until it retires.
pub(crate) struct Owner {
    name: String,
    owners: Arc<Owners>,
}

impl Owner {
    pub(crate) fn retire(&self) {
        self.owners.lock().remove(&self.name);
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.retire();
    }
}

/// A stable name, and the owner that it is leased to.
pub(crate) struct Lease {
    key: String,
    owner: String,
}

impl Lease {
    /// Takes the lease. One that is held is waited for as long as its owner gives no sign of life.
    pub(crate) async fn take(
        line: &Line,
        group: &Group,
        consumer: &str,
        owner: &Owner,
    ) -> Result<Self, SubscribeError> {
        let lease = Self { key: group.lease_key(consumer), owner: owner.name.clone() };
        let (mut known_gone, mut shortest) = (String::new(), i64::MAX);
        loop {
            let held = lease.hold(line, &known_gone).await;
            let Some((holder, left)) = held.map_err(|error| group.failed("take the consumer name", error))?
            else {
                return Ok(lease);
            };
            if holder != known_gone && owner.owners.has_gone(&holder) {
                known_gone = holder;
                continue;
            }
            // a living owner has renewed it meanwhile
            if left > shortest {
                return Err(taken(group, &holder));
            }
            shortest = left;
            tokio::time::sleep(LOOK.min(Duration::from_millis(left.try_into().unwrap_or_default()))).await;
        }
    }

    /// A sign of life. Fails with who has taken the name, if another has.
    pub(crate) async fn keep(
        &self,
        line: &Line,
        group: &Group,
    ) -> Result<Option<SubscribeError>, RedisError> {
        Ok(self.hold(line, "").await?.map(|(owner, _)| taken(group, &owner)))
    }

    /// The name is free.
    pub(crate) async fn end(&self, line: &Line) -> Result<(), RedisError> {
        line.script::<i64>(&YIELD, &[&self.key], &[self.owner.clone().into_bytes()]).await.map(drop)
    }

    async fn hold(&self, line: &Line, gone: &str) -> Result<Option<(String, i64)>, RedisError> {
        let ms = millis(LEASE).to_string();
        let arguments = [self.owner.as_str(), &ms, gone].map(|argument| argument.as_bytes().to_vec());
        let (owner, left): (String, i64) = line.script(&HOLD, &[&self.key], &arguments).await?;
        Ok((!owner.is_empty()).then_some((owner, left)))
    }
}

fn taken(group: &Group, owner: &str) -> SubscribeError {
    let what = format!(
        "read group `{}` of stream `{}` as `{}`: {owner} has this consumer name and is alive; give each consumer its own, \
         or none",
        group.name,
        group.stream,
        group.consumer.as_deref().unwrap_or_default()
    );
    SubscribeError::new(SubscribeErrorKind::Refused, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_consumers_share_a_name() {
        let names: HashSet<_> = (0..1000).map(|_| unique_consumer("c")).collect();
        assert_eq!(names.len(), 1000);
    }
}
