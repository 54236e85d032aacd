//! [`Partitioned`]: N streams behind one name, by key, and the group that reads them.
//!
//! ```text
//!  publisher ── route: CRC-32 of the key ──► name:0 … name:N-1                  name: a hash, { partitions: N }
//!
//!  steward ─ one for each subscription: joins, derives its share (share), takes, renews and gives up leases (lease)
//!     │ a slot for each partition that it owns, with a keeper, and a reader that asks for the lease in each read
//!     ▼
//!  board ── lanes: of each key one at a time ──► subscription
//! ```
//!
//! Owns who reads which partition, and the order of what is handed out. What becomes of an entry (settling, retries, dead
//! letters) is the slot's, as for any other stream.

mod board;
mod lanes;
mod lease;
mod look;
mod part;
mod reader;
mod route;
mod settle;
mod share;
mod steward;
mod subscription;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use steadfast_core::{Destination, Source, SubscribeError, SubscribeErrorKind};

use crate::connection::Line;
use crate::error;
use crate::group::{DEFAULT_GROUP, From, Group, Stream, beside};

pub(crate) use board::Board;
pub(crate) use lease::partitions as known_partitions;
pub(crate) use look::{count_behind, inspect_all};
pub(crate) use route::Routes;
pub(crate) use subscription::PartitionedSubscription;

pub use look::PartitionOwner;

/// The header that tells a handler under which lease of its partition it runs: a number that grows with every owner. A
/// store that remembers the highest it has seen can refuse a handler whose process lost the partition meanwhile.
///
/// It is set on delivery, and is no field of the entry.
pub const FENCE: &str = "steadfast-fence";

/// N streams behind one name. A message goes to one of them by its key; messages of one key are handled in the order in
/// which they were published, by any number of processes.
///
/// The streams are `name:0` to `name:N-1`. The name itself is a hash that holds N (`HSET name partitions N`): a process that
/// declares another N is refused, and a publisher to the plain name finds it there and publishes by key.
///
/// ```
/// use steadfast_core::{Consumer, Context, Destination, Message, handler_fn};
/// use steadfast_streams::Partitioned;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize)] struct Placed { customer: String }
/// # impl Message for Placed { const NAME: &'static str = "order.placed"; }
///
/// let orders = Partitioned::new("orders", 16);
/// assert_eq!(orders.stream(3), "orders:3");
/// assert_eq!(Destination::from(&orders).name(), "orders");
///
/// // as many processes as there is work for, each with this consumer
/// let consumer = Consumer::new("billing", orders.group("billing"))
///     .handler(|| handler_fn(|_: Placed, _: Context| async { Ok(()) }))
///     .concurrency(32);
/// # let _ = consumer;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partitioned {
    name: Arc<str>,
    partitions: u16,
}

impl Partitioned {
    /// This name, with so many partitions: at least 1. Several times as many as there will be processes lets the load be
    /// even; each costs its owner a connection. The number cannot be changed once it is declared.
    pub fn new(name: impl Into<Arc<str>>, partitions: u16) -> Self {
        Self { name: name.into(), partitions: partitions.max(1) }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many partitions.
    pub fn partitions(&self) -> u16 {
        self.partitions
    }

    /// The partition that messages with this key go to: the CRC-32 (IEEE, as in zlib) of the key's bytes, modulo the number
    /// of partitions. Stable for ever, and in every language: Python's `zlib.crc32(key) % 16`.
    ///
    /// ```
    /// use steadfast_streams::Partitioned;
    ///
    /// assert_eq!(Partitioned::new("orders", 16).partition("123456789"), 0xCBF4_3926_u32 as u16 % 16);
    /// ```
    pub fn partition(&self, key: &str) -> u16 {
        partition(key, self.partitions)
    }

    /// The key of the stream with this number.
    pub fn stream(&self, partition: u16) -> String {
        format!("{}:{partition}", self.name)
    }

    /// The keys of all its streams, for what is done to each of them, such as [`Streams::trim`](crate::Streams::trim).
    pub fn streams(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.partitions).map(|partition| self.stream(partition))
    }

    /// The consumer group of this name on each of its streams, with the defaults for all else.
    pub fn group(self, group: impl Into<Arc<str>>) -> PartitionedGroup {
        let each = Stream::new(Arc::clone(&self.name)).group(group);
        PartitionedGroup { streams: self, each, lease: Duration::from_secs(6) }
    }

    /// What is stored on the server about this name.
    pub(crate) async fn declare(&self, line: &Line) -> Result<(), SubscribeError> {
        let what = || format!("declare the partitioned stream `{}`", self.name);
        let found =
            lease::declare(line, self).await.map_err(|error| error::subscribe(&what(), error, false))?;
        let why = match found {
            lease::Declared::As(partitions) if partitions == self.partitions => return Ok(()),
            lease::Declared::As(partitions) => format!(
                "it has {partitions} partitions, and {} are asked for; the number cannot be changed, take another name",
                self.partitions
            ),
            lease::Declared::Otherwise(kind) => {
                format!("the key must hold the number of partitions, and is a {kind}; take another name")
            }
        };
        Err(SubscribeError::new(SubscribeErrorKind::Mismatch, format!("{}: {why}", what())))
    }
}

/// CRC-32 modulo the number of partitions.
pub(crate) fn partition(key: &str, partitions: u16) -> u16 {
    let partition = crc32fast::hash(key.as_bytes()) % u32::from(partitions.max(1));
    // less than a u16
    u16::try_from(partition).unwrap_or_default()
}

impl std::convert::From<&Partitioned> for Destination {
    fn from(streams: &Partitioned) -> Self {
        Self::queue(Arc::clone(&streams.name))
    }
}

impl std::convert::From<Partitioned> for Source {
    /// The group is `steadfast`.
    fn from(streams: Partitioned) -> Self {
        streams.group(DEFAULT_GROUP).into()
    }
}

/// A consumer group on a partitioned stream.
///
/// Every subscription is a member of the group and owns its share of the partitions, each under a lease: quotas differ by
/// one at most, and members beyond the number of partitions stand by. [`max_in_flight`](steadfast_core::Consumer::max_in_flight)
/// is divided among the partitions that it owns, at least one message for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionedGroup {
    pub(crate) streams: Partitioned,
    /// The group of the partitions; its stream is the common name.
    pub(crate) each: Group,
    pub(crate) lease: Duration,
}

impl PartitionedGroup {
    /// How long a member that gives no sign of life keeps its partitions. Default 6 s, at least 500 ms. It gives one eight
    /// times in this time, and at least once a second; as often it looks whether others came or went.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.max(Duration::from_millis(500));
        self
    }

    /// Where the groups begin if they are created now. Default: [`From::Beginning`].
    #[must_use]
    pub fn start(mut self, from: From) -> Self {
        self.each = self.each.start(from);
        self
    }

    /// Changes the group of each partition: retention, `BLOCK` and the like. A consumer name, an end and a rate are refused
    /// when it is subscribed to.
    ///
    /// ```
    /// use steadfast_streams::{Partitioned, Retention};
    ///
    /// let billing = Partitioned::new("orders", 16)
    ///     .group("billing")
    ///     .each(|group| group.retain(Retention::new().last(100_000)));
    /// # let _ = billing;
    /// ```
    #[must_use]
    pub fn each(mut self, change: impl FnOnce(Group) -> Group) -> Self {
        let (stream, name) = (Arc::clone(&self.each.stream), Arc::clone(&self.each.name));
        self.each = Group { stream, name, ..change(self.each) };
        self
    }

    /// What a source asks for, if it is partitioned.
    pub(crate) fn of(source: &Source) -> Option<Self> {
        let mut group = source.native::<Self>()?.clone();
        if let Some(name) = source.group_name() {
            group.each.name = Arc::clone(name);
        }
        Some(group)
    }

    /// The group of one partition.
    pub(crate) fn partition(&self, partition: u16) -> Group {
        Group { stream: self.streams.stream(partition).into(), ..self.each.clone() }
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = Group> + '_ {
        (0..self.streams.partitions).map(|partition| self.partition(partition))
    }

    /// How often a member gives a sign of life and looks around.
    pub(crate) fn beat(&self) -> Duration {
        (self.lease / 8).min(Duration::from_secs(1))
    }

    /// The sorted set of its members.
    pub(crate) fn members_key(&self) -> String {
        beside(&self.streams.name, &format!("members:{}", self.each.name))
    }

    /// The lease of a partition, in the hash slot of its stream.
    pub(crate) fn lease_key(&self, partition: u16) -> String {
        beside(&self.streams.stream(partition), &format!("lease:{}", self.each.name))
    }

    /// The count of a partition's owners, beside it.
    pub(crate) fn fence_key(&self, partition: u16) -> String {
        beside(&self.streams.stream(partition), &format!("fence:{}", self.each.name))
    }

    /// Makes sure that the name, the streams and their groups exist.
    pub(crate) async fn declare(&self, line: &Line) -> Result<(), SubscribeError> {
        if let Some(what) = self.refused() {
            let what = format!(
                "read the partitioned stream `{}` with {what}: its partitions change their owners",
                self.streams.name
            );
            return Err(SubscribeError::new(SubscribeErrorKind::Unsupported, what));
        }
        self.streams.declare(line).await?;
        let groups: Vec<Group> = self.groups().collect();
        try_join_all(groups.iter().map(|group| group.declare(line))).await.map(drop)
    }

    fn refused(&self) -> Option<&'static str> {
        let Group { consumer, until, rate, .. } = &self.each;
        let stable = consumer.as_ref().map(|_| "a consumer name of your own");
        let end = until.map(|_| "an end (`Group::until`)");
        stable.or(end).or_else(|| rate.map(|_| "a rate (`Group::rate`)"))
    }

    /// Entries that were not delivered, in all these partitions; none where the server cannot tell.
    pub(crate) async fn lag(&self, line: &Line, partitions: &[u16]) -> Option<u64> {
        let groups: Vec<Group> = partitions.iter().map(|partition| self.partition(*partition)).collect();
        let asked = groups.iter().map(|group| async { group.lag(line).await.ok_or(()) });
        try_join_all(asked).await.ok().map(|lags| lags.iter().sum())
    }
}

impl std::convert::From<PartitionedGroup> for Source {
    fn from(group: PartitionedGroup) -> Self {
        Self::queue(Arc::clone(&group.streams.name)).group(Arc::clone(&group.each.name)).with_native(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What other versions and other languages publish by. None of these may ever change.
    #[test]
    fn a_key_has_its_partition_for_ever() {
        assert_eq!(crc32fast::hash(b"123456789"), 0xCBF4_3926);
        for (key, of_8, of_16, of_1000) in GOLDEN {
            let found = [8, 16, 1000].map(|partitions| partition(key, partitions));
            assert_eq!(found, [of_8, of_16, of_1000], "{key:?}");
        }
        assert_eq!(partition("any", 1), 0);
    }

    const GOLDEN: [(&str, u16, u16, u16); 5] = [
        ("", 0, 0, 0),
        ("a", 3, 3, 907),
        ("customer-17", 7, 15, 983),
        ("Zoë", 2, 10, 378),
        ("日本", 4, 12, 756),
    ];

    #[test]
    fn keys_are_spread() {
        let mut counts = [0_u32; 16];
        for n in 0..16_000 {
            counts[usize::from(partition(&format!("customer-{n}"), 16))] += 1;
        }
        assert!(counts.iter().all(|count| (800..=1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn what_belongs_to_a_partition_shares_its_hash_slot() {
        let group = Partitioned::new("orders", 4).group("billing");
        assert_eq!(group.lease_key(3), "{orders:3}:lease:billing");
        assert_eq!(group.fence_key(3), "{orders:3}:fence:billing");
        assert_eq!(group.partition(3).delay_key(), "{orders:3}:delay");
        assert_eq!(group.members_key(), "{orders}:members:billing");
    }

    #[test]
    fn what_a_group_of_many_owners_cannot_have_is_refused() {
        let group = || Partitioned::new("orders", 0).group("billing");
        assert_eq!(group().streams.partitions(), 1);
        assert_eq!(group().refused(), None);
        assert!(group().each(|group| group.consumer_name("till-1")).refused().is_some());
        assert!(group().each(|group| group.rate(std::num::NonZeroU32::MIN)).refused().is_some());
        assert!(group().each(|group| group.until(crate::Until::Id(1, 1))).refused().is_some());
    }
}
