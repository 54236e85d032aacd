//! What comes back later.

use std::sync::Arc;
use std::time::Duration;

use steadfast_core::{Delivery, Headers, Incoming, Outgoing, Requeue, Settler, known};
use tokio::time::Instant;

use crate::message::{arrived_once, arrived_whole, full, plain};
use crate::report::Violation;
use crate::taker::Taker;
use crate::trial::Trial;

/// Long enough for a broker's path of delayed messages, short enough to be tried often.
const SHORT: Duration = Duration::from_millis(50);

/// A server's clock may count in milliseconds.
const TICK: Duration = Duration::from_millis(2);

pub(crate) async fn waits(trial: &Trial<'_>) -> Result<(), Violation> {
    // the longer first: it must not hold up the shorter
    let delays = [Duration::from_millis(900), Duration::from_millis(200)];
    trial.declare().await?;
    let sent = plain(trial.name(), delays.len());
    trial.publish(&sent).await?;
    let mut taker = trial.subscribe(&**trial.broker(), 10).await?;
    let mut asked = Vec::new();
    for (delivery, after) in taker.take(delays.len()).await?.into_iter().zip(delays) {
        let (id, before) = (delivery.incoming().id().into_owned(), Instant::now());
        requeue(trial, taker.settler(), delivery, after, Headers::new()).await?;
        asked.push((id, after, before, Instant::now()));
    }
    let late = trial.capabilities().delay_precision + trial.slack();
    for _ in 0..delays.len() {
        let delivery = taker.take_one().await?;
        let (now, id) = (Instant::now(), delivery.incoming().id().into_owned());
        let Some((_, after, before, done)) = asked.iter().find(|(asked, ..)| *asked == id) else {
            return Err(trial.violated(format!("message {id} was never requeued")));
        };
        let (longest, shortest) = (now - *before, now - *done);
        trial.ensure(longest + TICK >= *after, || format!("back after {longest:?} in place of {after:?}"))?;
        trial.ensure(shortest <= *after + late, || {
            format!("back after {shortest:?} in place of {after:?}, and at most {late:?} late")
        })?;
        taker.ack(vec![delivery]).await?;
    }
    taker.nothing("every requeued message had come back").await
}

pub(crate) async fn keeps(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = full(trial.name());
    let mut over = failed(1);
    over.set("tenant", "another");
    let (mut taker, delivery) = there_and_back(trial, &sent, SHORT, over.clone()).await?;
    arrived_whole(trial, &sent, &over, delivery.incoming())?;
    from_the_source(trial, delivery.incoming())?;
    taker.ack(vec![delivery]).await
}

pub(crate) async fn at_once(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = full(trial.name());
    let begin = Instant::now();
    let (mut taker, delivery) = there_and_back(trial, &sent, Duration::ZERO, failed(1)).await?;
    let (took, most) = (begin.elapsed(), trial.capabilities().delay_precision + trial.slack());
    trial.ensure(took <= most, || format!("publishing, requeueing and coming back took {took:?}"))?;
    arrived_whole(trial, &sent, &failed(1), delivery.incoming())?;
    taker.ack(vec![delivery]).await?;
    taker.nothing("the requeued message had come back").await
}

pub(crate) async fn counts(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = full(trial.name());
    trial.declare().await?;
    trial.publish(std::slice::from_ref(&sent)).await?;
    let mut taker = trial.subscribe(&**trial.broker(), 10).await?;
    for attempt in 1..=4 {
        let delivery = taker.take_one().await?;
        let counted = delivery.incoming().attempt();
        trial.ensure(counted == Ok(attempt), || format!("attempt {attempt} says that it is {counted:?}"))?;
        if attempt == 4 {
            arrived_whole(trial, &sent, &failed(3), delivery.incoming())?;
            taker.ack(vec![delivery]).await?;
        } else {
            requeue(trial, taker.settler(), delivery, SHORT, failed(attempt)).await?;
        }
    }
    Ok(())
}

pub(crate) async fn is_one(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = plain(trial.name(), 2);
    trial.declare().await?;
    trial.publish(&sent).await?;
    let broker = trial.connect().await?;
    let mut first = trial.subscribe(&*broker, 10).await?;
    for (delivery, after) in first.take(2).await?.into_iter().zip([Duration::ZERO, SHORT]) {
        requeue(trial, first.settler(), delivery, after, failed(1)).await?;
    }
    first.finish().await?;
    broker.close().await;
    drop(first);

    let mut second = trial.subscribe(&**trial.broker(), 10).await?;
    let got = second.take(2).await?;
    second.nothing("each of the two requeued messages had come back").await?;
    arrived_once(trial, &sent, &got)?;
    for delivery in &got {
        let attempt = delivery.incoming().attempt();
        trial.ensure(attempt == Ok(2), || format!("the copy says that it is attempt {attempt:?}"))?;
    }
    second.ack(got).await
}

pub(crate) async fn in_group(trial: &Trial<'_>) -> Result<(), Violation> {
    let (ours, theirs) = (trial.source().group("ours"), trial.source().group("theirs"));
    let other = trial.connect().await?;
    let mut ours = trial.subscribe_by(&**trial.broker(), trial.request(ours, 10)).await?;
    let mut theirs = trial.subscribe_by(&*other, trial.request(theirs, 10)).await?;
    trial.publish(&plain(trial.name(), 1)).await?;
    let (mine, other) = (ours.take_one().await?, theirs.take(1).await?);
    theirs.ack(other).await?;
    requeue(trial, ours.settler(), mine, SHORT, failed(1)).await?;
    let again = ours.take(1).await?;
    theirs.nothing("the message was requeued in another group").await?;
    ours.ack(again).await
}

pub(crate) async fn snoozed(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = full(trial.name());
    let (mut taker, delivery) = there_and_back(trial, &sent, SHORT, Headers::new()).await?;
    let attempt = delivery.incoming().attempt();
    trial.ensure(attempt == Ok(1), || format!("a snooze made it attempt {attempt:?}"))?;
    arrived_whole(trial, &sent, &Headers::new(), delivery.incoming())?;
    taker.ack(vec![delivery]).await
}

/// Publishes, takes, requeues and takes again.
async fn there_and_back<'t>(
    trial: &'t Trial<'_>,
    sent: &Outgoing,
    after: Duration,
    headers: Headers,
) -> Result<(Taker<'t>, Delivery), Violation> {
    trial.declare().await?;
    trial.publish(std::slice::from_ref(sent)).await?;
    let mut taker = trial.subscribe(&**trial.broker(), 10).await?;
    let delivery = taker.take_one().await?;
    requeue(trial, taker.settler(), delivery, after, headers).await?;
    let delivery = taker.take_one().await?;
    Ok((taker, delivery))
}

async fn requeue(
    trial: &Trial<'_>,
    settler: &Arc<dyn Settler>,
    delivery: Delivery,
    after: Duration,
    headers: Headers,
) -> Result<(), Violation> {
    let (incoming, token) = delivery.into_parts();
    let requeue = Requeue { after, headers };
    trial.within("requeueing", settler.requeue(&incoming, token, &requeue)).await
}

/// The headers that a failed attempt sets.
fn failed(times: u32) -> Headers {
    let mut headers = Headers::new();
    headers.set(known::RETRY_COUNT, times).set(known::ERROR, "no such customer: \u{fc}ber").to_owned()
}

fn from_the_source(trial: &Trial<'_>, incoming: &Incoming) -> Result<(), Violation> {
    let source = &*incoming.origin.source;
    trial.ensure(source == trial.name(), || format!("it came back from `{source}`"))
}
