//! A subscription to a partitioned stream: one consumer, whichever partitions it has.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use steadfast_core::{Delivery, Settler, Subscribe, SubscribeError, SubscribeErrorKind, Subscription};

use super::PartitionedGroup;
use super::board::Board;
use super::settle::PartitionedSettler;
use super::steward::Steward;
use crate::connection::{Line, Server};
use crate::group::check_dead_letters;
use crate::runtime;
use crate::subscription::{hand_out, stop_slot};

/// How long an end waits for the partitions to be given up.
const FAREWELL: Duration = Duration::from_secs(2);

pub(crate) struct PartitionedSubscription {
    board: Arc<Board>,
    settler: Arc<PartitionedSettler>,
}

impl PartitionedSubscription {
    /// Starts the steward, on what is declared. Partitions come by and by.
    pub(crate) async fn start(
        server: &Arc<Server>,
        line: &Arc<Line>,
        group: PartitionedGroup,
        request: Subscribe,
    ) -> Result<Self, SubscribeError> {
        check_dead_letters(line, &request.dead_letter).await?;
        let dead = request.dead_letter.name().into();
        let max = request.max_in_flight.get();
        let name = Arc::clone(&group.streams.name);
        let board = Arc::new(Board::new(group, request.consumer, dead, max, request.narrow));
        let handle = runtime::handle().map_err(|error| {
            let what = format!("read the partitioned stream `{name}`");
            SubscribeError::new(SubscribeErrorKind::Unreachable, what).with_source(error)
        })?;
        let settler = Arc::new(PartitionedSettler { board: Arc::clone(&board) });
        handle.spawn(Steward::new(server, line, &board).run());
        Ok(Self { board, settler })
    }

    /// To be ended when the broker is closed.
    pub(crate) fn board(&self) -> &Arc<Board> {
        &self.board
    }
}

impl Subscription for PartitionedSubscription {
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        room: NonZeroUsize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Result<(), SubscribeError>> {
        hand_out(self.board.take(room.get(), cx.waker())?, &self.settler, batch)
    }

    fn set_narrow(&mut self, narrow: bool) {
        self.board.set_narrow(narrow);
    }

    fn settler(&self) -> Arc<dyn Settler> {
        Arc::clone(&self.settler) as _
    }

    fn stop(&mut self) -> BoxFuture<'_, Result<(), SubscribeError>> {
        Box::pin(stop(&self.board))
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), SubscribeError>> {
        Box::pin(async move {
            let stopped = stop(&self.board).await;
            let board = Arc::clone(&self.board);
            drop(self);
            _ = tokio::time::timeout(FAREWELL, board.over()).await;
            stopped
        })
    }
}

impl Drop for PartitionedSubscription {
    fn drop(&mut self) {
        self.board.stop();
    }
}

/// Ends the reading, and waits until what it brought and nobody took is given back.
async fn stop(board: &Board) -> Result<(), SubscribeError> {
    board.stop();
    let parts = board.parts();
    let stopped = join_all(parts.iter().map(|part| stop_slot(&part.slot))).await;
    stopped.into_iter().collect()
}

impl Board {
    /// Ends a subscription whose broker is closed: what it holds goes back, what was settled is sent.
    pub(crate) async fn shut_down(&self, limit: Duration) {
        let name = self.group.streams.name();
        let what = format!("read the partitioned stream `{name}`: this broker was closed");
        self.end(SubscribeError::new(SubscribeErrorKind::Ended, what));
        let ended = async {
            let stopped = stop(self).await;
            self.give_up();
            let parts = self.parts();
            join_all(parts.iter().map(|part| part.slot.finish())).await;
            self.over().await;
            stopped
        };
        match tokio::time::timeout(limit, ended).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "closed with entries not given back"),
            Err(_) => tracing::warn!(stream = name, "closed with partitions not given up"),
        }
    }
}
