//! What nobody settled comes back.

use crate::message::{arrived_once, arrived_whole, full, plain};
use crate::report::Violation;
use crate::trial::Trial;

pub(crate) async fn redelivered(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = [full(trial.name()), full(trial.name()), full(trial.name())];
    trial.declare().await?;
    trial.publish(&sent).await?;
    let broker = trial.connect().await?;
    let mut first = trial.subscribe(&*broker, 10).await?;
    let unsettled = first.take(sent.len()).await?;
    first.give_up(unsettled);

    let mut second = trial.subscribe(&**trial.broker(), 10).await?;
    let got = second.take(sent.len()).await?;
    second.nothing("all that was unsettled had come back").await?;
    arrived_once(trial, &sent, &got)?;
    for delivery in &got {
        let incoming = delivery.incoming();
        trial.ensure(incoming.redelivered, || format!("message {} is not marked", incoming.id()))?;
        let attempt = incoming.attempt();
        trial.ensure(attempt == Ok(1), || format!("a redelivery became attempt {attempt:?}"))?;
        for sent in sent.iter().filter(|sent| sent.message_id == *incoming.id()) {
            arrived_whole(trial, sent, &sent.headers, incoming)?;
        }
    }
    second.ack(got).await
}

pub(crate) async fn counted(trial: &Trial<'_>) -> Result<(), Violation> {
    trial.declare().await?;
    trial.publish(&plain(trial.name(), 1)).await?;
    for before in 0..3 {
        let broker = trial.connect().await?;
        let mut taker = trial.subscribe(&*broker, 10).await?;
        let got = taker.take(1).await?;
        for delivery in &got {
            let count = delivery.incoming().delivery_count;
            trial.ensure(count == Some(before), || {
                format!("a message that came back {before} times says delivery_count {count:?}")
            })?;
        }
        taker.give_up(got);
    }
    Ok(())
}

pub(crate) async fn connection_lost(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = plain(trial.name(), 5);
    trial.declare().await?;
    trial.publish(&sent).await?;
    let broker = trial.connect().await?;
    let mut first = trial.subscribe(&*broker, 10).await?;
    let held = first.take(2).await?;
    broker.close().await;
    first.give_up(held);

    let mut second = trial.subscribe(&**trial.broker(), 10).await?;
    let got = second.take(sent.len()).await?;
    second.nothing("all that there was had come back").await?;
    arrived_once(trial, &sent, &got)?;
    second.ack(got).await
}
