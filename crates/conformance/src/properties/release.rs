//! What is given back unharmed.

use steadfast_core::Delivery;

use crate::message::{arrived_once, plain};
use crate::report::Violation;
use crate::taker::Taker;
use crate::trial::Trial;

pub(crate) async fn released(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = plain(trial.name(), 3);
    trial.declare().await?;
    trial.publish(&sent).await?;
    let mut first = trial.subscribe(&**trial.broker(), 10).await?;
    let got = first.take(sent.len()).await?;
    release(&first, got);
    let again = first.take_at_once(sent.len()).await?;
    unharmed(trial, &again)?;
    arrived_once(trial, &sent, &again)?;

    // one that takes nothing more gives back to another, which is how a drain ends
    first.stop().await?;
    let other = trial.connect().await?;
    let mut second = trial.subscribe(&*other, 10).await?;
    release(&first, again);
    let got = second.take_at_once(sent.len()).await?;
    second.nothing("all that was released had come back").await?;
    unharmed(trial, &got)?;
    arrived_once(trial, &sent, &got)?;
    second.ack(got).await
}

fn release(taker: &Taker<'_>, batch: Vec<Delivery>) {
    batch.into_iter().for_each(Delivery::release);
    taker.settler().flush();
}

fn unharmed(trial: &Trial<'_>, batch: &[Delivery]) -> Result<(), Violation> {
    batch.iter().try_for_each(|delivery| {
        let attempt = delivery.incoming().attempt();
        trial.ensure(attempt == Ok(1), || format!("a release made it attempt {attempt:?}"))
    })
}
