//! What a publisher and a declaration are told.

use steadfast_core::{Outgoing, PublishErrorKind, SubscribeError, SubscribeErrorKind};
use tokio::time::timeout;

use crate::message::{arrived_once, plain};
use crate::report::Violation;
use crate::trial::Trial;

pub(crate) async fn many(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = plain(trial.name(), 1000);
    trial.declare().await?;
    trial.publish(&sent).await?;
    let mut taker = trial.subscribe(&**trial.broker(), sent.len()).await?;
    let got = taker.take(sent.len()).await?;
    arrived_once(trial, &sent, &got)?;
    taker.ack(got).await
}

pub(crate) async fn unroutable(trial: &Trial<'_>) -> Result<(), Violation> {
    let publisher = trial.publisher().await?;
    let nowhere = Outgoing::new(format!("{}-nowhere", trial.name()), "lost");
    match timeout(trial.deadline(), publisher.send(nowhere)).await {
        Ok(Err(error)) if error.kind() == PublishErrorKind::Unroutable => {}
        Ok(Err(error)) => return Err(trial.violated(format!("{:?}: {error}", error.kind()))),
        Ok(Ok(())) => return Err(trial.violated("send succeeded")),
        Err(_) => return Err(trial.violated(format!("send took longer than {:?}", trial.deadline()))),
    }
    // and the publisher is as good as before
    trial.declare().await?;
    trial.within("publishing after that", publisher.send(Outgoing::new(trial.name(), "kept"))).await
}

pub(crate) async fn declared_twice(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = plain(trial.name(), 3);
    trial.declare().await?;
    trial.publish(&sent).await?;
    trial.declare().await?;
    let mut taker = trial.subscribe(&**trial.broker(), 10).await?;
    let got = taker.take(sent.len()).await?;
    arrived_once(trial, &sent, &got)?;
    taker.ack(got).await
}

/// What no broker knows.
struct Foreign;

pub(crate) async fn foreign_source(trial: &Trial<'_>) -> Result<(), Violation> {
    let source = trial.source().with_native(Foreign);
    let declared = timeout(trial.deadline(), trial.broker().declare(&source)).await;
    unsupported(trial, "declare", declared)?;
    let request = trial.request(source.clone(), 10);
    let subscribed = timeout(trial.deadline(), trial.broker().subscribe(request)).await;
    unsupported(trial, "subscribe", subscribed)
}

fn unsupported<T, E>(
    trial: &Trial<'_>,
    what: &str,
    answer: Result<Result<T, SubscribeError>, E>,
) -> Result<(), Violation> {
    match answer {
        Ok(Err(error)) if error.kind() == SubscribeErrorKind::Unsupported => Ok(()),
        Ok(Err(error)) => Err(trial.violated(format!("{what}: {:?}: {error}", error.kind()))),
        Ok(Ok(_)) => Err(trial.violated(format!("{what} succeeded"))),
        Err(_) => Err(trial.violated(format!("{what} took longer than {:?}", trial.deadline()))),
    }
}
