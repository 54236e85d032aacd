//! What is settled stays settled, and nothing else is.

use steadfast_core::Delivery;
use tokio::time::timeout;

use crate::message::{arrived_once, plain};
use crate::report::Violation;
use crate::trial::Trial;

pub(crate) async fn acked(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = plain(trial.name(), 50);
    trial.declare().await?;
    trial.publish(&sent).await?;
    let mut first = trial.subscribe(&**trial.broker(), 10).await?;
    for _ in 0..sent.len() / 10 {
        let got = first.take(10).await?;
        first.ack(got).await?;
    }
    first.close().await?;

    let after = plain(trial.name(), 1);
    trial.publish(&after).await?;
    let other = trial.connect().await?;
    let mut second = trial.subscribe(&*other, 100).await?;
    let got = second.take(1).await?;
    arrived_once(trial, &after, &got)?;
    second.nothing("all but one message had been acknowledged").await?;
    second.ack(got).await
}

pub(crate) async fn out_of_order(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = plain(trial.name(), 20);
    trial.declare().await?;
    trial.publish(&sent).await?;
    let broker = trial.connect().await?;
    let mut first = trial.subscribe(&*broker, 20).await?;
    let (mut keep, mut done) = (Vec::new(), Vec::new());
    for (nth, delivery) in first.take(20).await?.into_iter().enumerate() {
        if nth % 3 == 0 { keep.push(delivery) } else { done.push(delivery) }
    }
    done.reverse();
    first.ack(done).await?;
    let kept: Vec<_> = keep.iter().map(|delivery| delivery.incoming().id().into_owned()).collect();
    first.give_up(keep);

    let mut second = trial.subscribe(&**trial.broker(), 100).await?;
    let got = second.take(kept.len()).await?;
    let kept: Vec<_> = sent.into_iter().filter(|message| kept.contains(&message.message_id)).collect();
    arrived_once(trial, &kept, &got)?;
    second.nothing("it had been acknowledged").await?;
    second.ack(got).await
}

pub(crate) async fn finished(trial: &Trial<'_>) -> Result<(), Violation> {
    trial.declare().await?;
    trial.publish(&plain(trial.name(), 10)).await?;
    let broker = trial.connect().await?;
    let mut first = trial.subscribe(&*broker, 20).await?;
    first.take(10).await?.into_iter().for_each(Delivery::ack);
    // no flush: finish() has to do without
    trial.within("finishing what was settled", first.settler().finish()).await?;
    broker.close().await;
    drop(first);

    let mut second = trial.subscribe(&**trial.broker(), 100).await?;
    second.nothing("it had been acknowledged before finish()").await
}

pub(crate) async fn settled_late(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = plain(trial.name(), 1);
    trial.declare().await?;
    trial.publish(&sent).await?;
    let broker = trial.connect().await?;
    let mut first = trial.subscribe(&*broker, 10).await?;
    let late = first.take_one().await?;
    let settler = first.settler().clone();
    broker.close().await;
    drop(first);

    let other = trial.connect().await?;
    let mut second = trial.subscribe(&*other, 10).await?;
    let held = second.take(1).await?;
    late.ack();
    settler.flush();
    // whether it says that it could not is its own affair; that it does no harm is what counts
    let _ = timeout(trial.slack(), settler.finish()).await;
    second.give_up(held);

    let mut third = trial.subscribe(&**trial.broker(), 10).await?;
    let got = third.take(1).await?;
    arrived_once(trial, &sent, &got)?;
    third.ack(got).await
}
