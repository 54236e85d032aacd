//! The steward: one task for each subscription that keeps its membership, and has it own its share of the partitions, no
//! more and no less.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;
use steadfast_core::SubscribeError;

use super::PartitionedGroup;
use super::board::Board;
use super::lease::{Lease, Membership, Standing};
use super::part::Part;
use super::share::{candidates, quota, surplus};
use crate::connection::{Line, Server};
use crate::error;
use crate::names::unique_consumer;

pub(crate) struct Steward {
    server: Arc<Server>,
    line: Arc<Line>,
    board: Arc<Board>,
    membership: Membership,
    /// Who we are in leases.
    owner: String,
    /// When each lease was known to be ours, by its fence and partition.
    known_good: HashMap<(u16, i64), Instant>,
    /// Partitions that are on their way to others.
    handing_over: Vec<(u16, i64)>,
    taken: i64,
}

impl Steward {
    pub(crate) fn new(server: &Arc<Server>, line: &Arc<Line>, board: &Arc<Board>) -> Self {
        let owner = unique_consumer(&board.consumer).to_string();
        Self {
            server: Arc::clone(server),
            line: Arc::clone(line),
            membership: Membership::new(&board.group, owner.clone()),
            board: Arc::clone(board),
            owner,
            known_good: HashMap::new(),
            handing_over: Vec::new(),
            taken: 0,
        }
    }

    /// Until the subscription ends; then until all partitions are given up.
    pub(crate) async fn run(mut self) {
        while !self.board.is_stopping() {
            if let Err(error) = self.look_around().await {
                let stream = self.board.group.streams.name();
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    stream,
                    "could not see to the partitions"
                );
            }
            self.rest().await;
        }
        if let Err(error) = self.membership.leave(&self.line).await {
            tracing::debug!(%error, "the membership stays until it lapses");
        }
        loop {
            self.hand_over();
            if self.board.parts().is_empty() {
                break;
            }
            self.rest().await;
            self.renew().await;
        }
        self.board.set_over();
    }

    async fn rest(&self) {
        _ = tokio::time::timeout(self.board.group.beat(), self.board.bell.notified()).await;
    }

    /// One sign of life, and what follows from who else gave one.
    async fn look_around(&mut self) -> Result<(), SubscribeError> {
        let beat = self.membership.beat(&self.line).await;
        self.renew().await;
        let standing = beat.map_err(|error| {
            let name = self.board.group.streams.name();
            error::subscribe(&format!("be a member of the partitioned stream `{name}`"), error, true)
        })?;
        let quota = quota(self.board.group.streams.partitions(), standing.members, standing.rank);
        let serving = self.board.serving();
        for partition in surplus(&serving, quota) {
            self.board.leave(*partition);
        }
        self.hand_over();
        self.take(quota.saturating_sub(serving.len()), &standing).await
    }

    /// Prolongs all leases, those on their way to others included: they are ours until they are given up.
    async fn renew(&mut self) {
        let parts = self.board.parts();
        let (line, time) = (&self.line, self.board.group.lease);
        let of = |part: &Part| (part.partition, part.lease.fence);
        let mut known: Vec<_> = parts.iter().map(|part| self.known_good.get(&of(part)).copied()).collect();
        join_all(parts.iter().zip(&mut known).map(|(part, known)| async move {
            part.renew(line, known.get_or_insert_with(Instant::now), time).await;
        }))
        .await;
        self.known_good = parts.iter().map(|part| of(part)).zip(known.into_iter().flatten()).collect();
        for part in parts.iter().filter(|part| part.is_lost()) {
            self.board.leave(part.partition);
        }
    }

    /// Sees those off that are on their way and have nobody yet who does it.
    fn hand_over(&mut self) {
        let leaving = self.board.leaving();
        let of = |part: &Part| (part.partition, part.lease.fence);
        self.handing_over.retain(|known| leaving.iter().any(|part| of(part) == *known));
        for part in leaving {
            if self.handing_over.contains(&of(&part)) {
                continue;
            }
            self.handing_over.push(of(&part));
            let (board, line) = (Arc::clone(&self.board), Arc::clone(&self.line));
            tokio::spawn(async move {
                part.hand_over(&line).await;
                board.remove(&part);
            });
        }
    }

    /// Takes so many of those that are free.
    async fn take(&mut self, mut wanted: usize, standing: &Standing) -> Result<(), SubscribeError> {
        let board = Arc::clone(&self.board);
        let partitions = board.group.streams.partitions();
        let mut left =
            candidates(partitions, standing.members, standing.rank).filter(|one| !board.owns(*one));
        while wanted > 0 {
            let tried: Vec<u16> = left.by_ref().take(wanted).collect();
            if tried.is_empty() {
                break;
            }
            let mut failed = Ok(());
            for taken in join_all(tried.iter().map(|partition| self.try_take(*partition))).await {
                let part = match taken {
                    Ok(Some(part)) => part,
                    Ok(None) => continue,
                    Err(error) => {
                        failed = Err(error);
                        continue;
                    }
                };
                wanted -= 1;
                self.taken += 1;
                let group = &part.slot.group;
                tracing::info!(target: "steadfast", stream = %group.stream, group = %group.name, fence = part.lease.fence, "partition.taken");
                if !board.add(&part, self.taken) {
                    part.hand_over(&self.line).await;
                }
            }
            failed?;
        }
        Ok(())
    }

    async fn try_take(&self, partition: u16) -> Result<Option<Arc<Part>>, SubscribeError> {
        let (line, group): (_, &PartitionedGroup) = (&self.line, &self.board.group);
        let taken = Lease::take(line, group, partition, &self.owner).await;
        let lease = taken.map_err(|error| {
            let stream = group.streams.stream(partition);
            error::subscribe(&format!("take the partition `{stream}`"), error, true)
        })?;
        let Some(lease) = lease else { return Ok(None) };
        let started = Part::start(&self.server, line, &self.board, partition, lease).await;
        match started {
            Ok(part) => Ok(Some(part)),
            Err((lease, error)) => {
                // where that fails, too, it lapses
                drop(lease.give_up(line).await);
                Err(error)
            }
        }
    }
}
