//! One partition in the hands of its owner: a slot, with its reader and keeper, under a lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use steadfast_core::SubscribeError;
use tokio::sync::Notify;

use super::board::Board;
use super::lease::Lease;
use super::reader::PartitionReader;
use crate::connection::{Line, Server};
use crate::keeper::Keeper;
use crate::names::unique_consumer;
use crate::reader::response_timeout;
use crate::runtime;
use crate::settle::StreamSettler;
use crate::slot::{Setup, Slot};

pub(crate) struct Part {
    pub(crate) partition: u16,
    pub(crate) slot: Arc<Slot>,
    pub(crate) settler: StreamSettler,
    pub(crate) lease: Lease,
    lost: AtomicBool,
    /// The steward's.
    bell: Arc<Notify>,
}

impl Part {
    /// Opens the reader's connection, and starts reader and keeper.
    pub(crate) async fn start(
        server: &Server,
        line: &Arc<Line>,
        board: &Arc<Board>,
        partition: u16,
        lease: Lease,
    ) -> Result<Arc<Self>, (Lease, SubscribeError)> {
        let group = board.group.partition(partition);
        let what = "open the reader's connection";
        let timeout = response_timeout(group.block, server.options.command_timeout);
        let mut own = match server.link(&group.stream, timeout).await {
            Ok(own) => own,
            Err(error) => return Err((lease, group.failed(what, error))),
        };
        // without leave to ask, a stop waits for the read's own end
        let handle = own.handle().await;
        let setup = Setup {
            group,
            consumer: unique_consumer(&board.consumer),
            owner: None,
            dead: Arc::clone(&board.dead),
            max: 1,
            narrow: board.is_narrow(),
        };
        let slot = Arc::new(Slot::new(setup, Arc::clone(line), server.options.command_timeout).in_order());
        let runtime = match runtime::handle() {
            Ok(runtime) => runtime,
            Err(error) => return Err((lease, slot.group.failed(what, error.into()))),
        };
        let settler = StreamSettler { slot: Arc::clone(&slot) };
        let (lost, bell) = (AtomicBool::new(false), Arc::clone(&board.bell));
        let part = Arc::new(Self { partition, slot: Arc::clone(&slot), settler, lease, lost, bell });
        runtime.spawn(PartitionReader::new(&part, board, own).run());
        runtime.spawn(Keeper::new(slot, handle, None).run());
        Ok(part)
    }

    /// Another may have the partition by now. What runs, runs on; it can settle nothing here.
    pub(crate) fn lose(&self) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            let group = &self.slot.group;
            tracing::warn!(target: "steadfast", stream = %group.stream, group = %group.name, fence = self.lease.fence, "partition.lost");
            self.slot.forfeit();
            self.bell.notify_one();
        }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Prolongs the lease. One that cannot be prolonged in time is lost.
    pub(crate) async fn renew(&self, line: &Line, known_good: &mut Instant, lease: Duration) {
        if self.is_lost() {
            return;
        }
        let asked = Instant::now();
        match self.lease.renew(line).await {
            Ok(true) => *known_good = asked,
            Ok(false) => self.lose(),
            Err(error) => {
                tracing::warn!(%error, stream = %self.slot.group.stream, "could not renew the partition's lease");
                if known_good.elapsed() > lease {
                    self.lose();
                }
            }
        }
    }

    /// Takes no more, waits until what it handed out is settled and what it did not is back, and leaves the partition to
    /// the next owner.
    pub(crate) async fn hand_over(&self, line: &Line) {
        self.slot.stop();
        self.slot.reader_gone().await;
        self.slot.over().await;
        if self.is_lost() {
            return;
        }
        let group = &self.slot.group;
        match self.lease.give_up(line).await {
            Ok(()) => {
                tracing::info!(target: "steadfast", stream = %group.stream, group = %group.name, fence = self.lease.fence, "partition.given_up");
            }
            Err(error) => {
                tracing::debug!(%error, stream = %group.stream, "the partition's lease stays until it lapses");
            }
        }
    }
}
