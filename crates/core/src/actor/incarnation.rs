//! What a supervisor starts: the right actor for each kind of child.

use std::sync::Arc;

use ractor::{Actor, ActorCell, ActorRef};

use super::consumer::{ConsumerActor, ConsumerArgs, ToConsumer};
use super::link;
use super::node::Node;
use super::spec::Body;
use super::supervisor::{Arguments, Shared, SupervisorActor, SupervisorRef, ToSupervisor};
use super::task::{TaskActor, ToTask};
use crate::dead_letter::Scene;

/// One run of a child: the actor that it is from a start to the end of it.
pub(super) enum Incarnation {
    Consumer(ActorRef<ToConsumer>),
    Supervisor(ActorRef<ToSupervisor>),
    Task(ActorRef<ToTask>),
    Actor(ActorCell),
}

impl Incarnation {
    pub(super) fn cell(&self) -> ActorCell {
        match self {
            Self::Consumer(actor) => actor.get_cell(),
            Self::Supervisor(actor) => actor.get_cell(),
            Self::Task(actor) => actor.get_cell(),
            Self::Actor(cell) => cell.clone(),
        }
    }

    /// Linked to the supervisor `myself`, which hears of its end.
    pub(super) async fn spawn(
        body: Body,
        node: &Arc<Node>,
        shared: &Shared,
        myself: &ActorRef<ToSupervisor>,
    ) -> Result<Self, ractor::SpawnErr> {
        let (cell, node) = (myself.get_cell(), Arc::clone(node));
        Ok(match body {
            Body::Consumer(consumer) => {
                node.begin();
                let scene = Scene {
                    consumer: Arc::clone(&consumer.name),
                    handler: consumer.handler_name,
                    host: Arc::clone(&shared.host),
                    app_version: shared.app_version.clone(),
                };
                let (broker, dead_letters) = (Arc::clone(&shared.broker), shared.dead_letters.clone());
                let (scene, supervisor) = (Arc::new(scene), SupervisorRef(myself.clone()));
                let args = ConsumerArgs { consumer, node, broker, dead_letters, scene, supervisor };
                Self::Consumer(Actor::spawn_linked(None, ConsumerActor, args, cell).await?.0)
            }
            Body::Supervisor(spec) => {
                let args = Arguments { spec, node, shared: shared.clone(), ended: None };
                // boxed, because a supervisor can be the child of a supervisor
                let spawned = Box::pin(Actor::spawn_linked(None, SupervisorActor, args, cell));
                let spawned: futures_util::future::BoxFuture<'_, _> = spawned;
                Self::Supervisor(spawned.await?.0)
            }
            Body::Link(_, factory) => {
                let factory = link::as_task(factory, &shared.broker, &node);
                Self::Task(Actor::spawn_linked(None, TaskActor, factory, cell).await?.0)
            }
            Body::Task(factory) => Self::Task(Actor::spawn_linked(None, TaskActor, factory, cell).await?.0),
            Body::Actor(factory) => Self::Actor(factory(cell).await?),
        })
    }
}
