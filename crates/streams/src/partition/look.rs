//! Looking at a partitioned stream: who owns what, and all of its partitions as one.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::{join_all, try_join_all};
use redis::{RedisError, cmd};
use steadfast_core::{GroupInspection, Inspection, OperateError, Operator, Source};

use super::PartitionedGroup;
use super::board::Board;
use crate::broker::Streams;
use crate::connection::Line;
use crate::error::{self, StreamError};

/// One partition, and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionOwner {
    /// Its number.
    pub partition: u16,
    /// Its stream.
    pub stream: String,
    /// The member that has its lease: consumer, host, process id, a nonce, and behind `#` the fence. None while it is free.
    pub owner: Option<String>,
    /// How many owners it has had; the present one's is in the header [`FENCE`](super::FENCE) of what it is delivered.
    pub fence: u64,
}

impl Streams {
    /// Who has which partition now (`MGET` of its lease and fence).
    ///
    /// ```no_run
    /// # async fn example(broker: &steadfast_streams::Streams) -> Result<(), steadfast_streams::StreamError> {
    /// use steadfast_streams::Partitioned;
    ///
    /// for partition in broker.owners(&Partitioned::new("orders", 16).group("billing")).await? {
    ///     println!("{}: {}", partition.stream, partition.owner.as_deref().unwrap_or("free"));
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn owners(&self, group: &PartitionedGroup) -> Result<Vec<PartitionOwner>, StreamError> {
        let asked = (0..group.streams.partitions()).map(|partition| owner(self.commands(), group, partition));
        let what = || format!("look at the owners of the partitioned stream `{}`", group.streams.name());
        try_join_all(asked).await.map_err(|error| error::stream(&what(), error))
    }
}

async fn owner(line: &Line, group: &PartitionedGroup, partition: u16) -> Result<PartitionOwner, RedisError> {
    let (lease, mut get) = (group.lease_key(partition), cmd("MGET"));
    get.arg(&lease).arg(group.fence_key(partition));
    let (owner, fence): (Option<String>, Option<u64>) = line.query(&lease, &get).await?;
    let stream = group.streams.stream(partition);
    Ok(PartitionOwner { partition, stream, owner, fence: fence.unwrap_or_default() })
}

/// What waits for the subscriptions of this process: entries in their partitions that were not delivered.
///
/// Others' partitions do not count: a member that stands by is not deaf. Of several subscriptions the least counts, since
/// one cannot be told from another.
pub(crate) async fn count_behind(line: &Line, boards: &[Arc<Board>]) -> Option<u64> {
    let counted = boards.iter().map(|board| async { board.group.lag(line, &board.serving()).await });
    join_all(counted).await.into_iter().collect::<Option<Vec<u64>>>()?.into_iter().min()
}

/// All partitions as one stream.
pub(crate) async fn inspect_all(
    operator: &dyn Operator,
    source: &Source,
    partitions: u16,
) -> Result<Inspection, OperateError> {
    let name = source.name();
    let sources: Vec<Source> = (0..partitions)
        .map(|partition| {
            let one = Source::queue(format!("{name}:{partition}"));
            source.group_name().map_or_else(|| one.clone(), |group| one.clone().group(Arc::clone(group)))
        })
        .collect();
    let found = try_join_all(sources.iter().map(|source| operator.inspect(source))).await?;
    let sum = |of: fn(&Inspection) -> Option<u64>| found.iter().map(of).sum::<Option<u64>>();
    let mut all = Inspection::new("partitioned stream", name);
    all.length = sum(|one| one.length);
    all.ready = sum(|one| one.ready);
    all.unsettled = sum(|one| one.unsettled);
    all.delayed = sum(|one| one.delayed);
    all.consumers = sum(|one| one.consumers);
    all.groups = groups(&found);
    Ok(all)
}

/// Each group once; its consumers behind the stream that they read.
fn groups(found: &[Inspection]) -> Vec<GroupInspection> {
    let mut groups: BTreeMap<&str, GroupInspection> = BTreeMap::new();
    for (stream, group) in found.iter().flat_map(|one| one.groups.iter().map(|group| (&one.name, group))) {
        let first = GroupInspection { name: group.name.clone(), lag: Some(0), ..GroupInspection::default() };
        let all = groups.entry(&group.name).or_insert(first);
        all.lag = all.lag.zip(group.lag).map(|(all, one)| all + one);
        all.pending += group.pending;
        all.last_delivered = all.last_delivered.clone().max(group.last_delivered.clone());
        all.consumers.extend(group.consumers.iter().map(|consumer| {
            let mut consumer = consumer.clone();
            consumer.name = format!("{stream}/{}", consumer.name);
            consumer
        }));
    }
    groups.into_values().collect()
}
