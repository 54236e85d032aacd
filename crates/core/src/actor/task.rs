//! Any future as a child, and how the application's own actors are made.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::spec::Stop;
use crate::error::BoxError;
use crate::handler::panic_text;

/// Makes the future anew for each start.
pub(crate) type TaskFactory = Arc<dyn Fn(Stop) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync>;

/// Spawns the application's own actor, linked to the supervisor it is given.
pub(crate) type ActorFactory =
    Arc<dyn Fn(ActorCell) -> BoxFuture<'static, Result<ActorCell, SpawnErr>> + Send + Sync>;

pub(crate) struct TaskActor;

pub(crate) enum ToTask {
    /// It is to stop.
    Stop,
    /// From the future: it ended.
    Ended(Result<(), BoxError>),
}

pub(crate) struct TaskState {
    stop: watch::Sender<bool>,
    future: JoinHandle<()>,
}

impl Drop for TaskState {
    /// A killed actor takes its future with it.
    fn drop(&mut self) {
        self.future.abort();
    }
}

impl Actor for TaskActor {
    type Msg = ToTask;
    type State = TaskState;
    type Arguments = TaskFactory;

    async fn pre_start(
        &self,
        myself: ActorRef<ToTask>,
        factory: TaskFactory,
    ) -> Result<TaskState, ActorProcessingErr> {
        let (stop, told) = watch::channel(false);
        let future = tokio::spawn(async move {
            let guarded =
                std::panic::AssertUnwindSafe(async move { factory(Stop(told)).await }).catch_unwind();
            let ended = guarded
                .await
                .unwrap_or_else(|panic| Err(format!("panicked: {}", panic_text(&*panic)).into()));
            // an actor that is gone has nobody left to tell
            let _ = myself.cast(ToTask::Ended(ended));
        });
        Ok(TaskState { stop, future })
    }

    async fn handle(
        &self,
        myself: ActorRef<ToTask>,
        message: ToTask,
        state: &mut TaskState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ToTask::Stop => drop(state.stop.send_replace(true)),
            ToTask::Ended(Ok(())) => myself.stop(None),
            ToTask::Ended(Err(error)) => return Err(error),
        }
        Ok(())
    }
}
