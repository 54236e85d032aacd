//! How much comes, to whom, and how it ends.

use futures_util::future::join;
use steadfast_core::{Broker, Delivery, Outgoing, Publisher, Subscribe};
use tokio::time::{Instant, timeout, timeout_at};

use crate::message::{arrived_once, plain};
use crate::report::Violation;
use crate::taker::Taker;
use crate::trial::Trial;

pub(crate) async fn room(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = plain(trial.name(), 20);
    trial.declare().await?;
    trial.publish(&sent).await?;
    let mut taker = trial.subscribe(&**trial.broker(), 20).await?;
    let mut got = Vec::new();
    for room in [1, 3, 1, 2].into_iter().cycle() {
        // the taker holds every poll to its room
        let left = sent.len() - got.len();
        if left == 0 {
            break;
        }
        match timeout(trial.deadline(), taker.next(room.min(left))).await {
            Ok(batch) => got.extend(batch?),
            Err(_) => return Err(trial.violated(format!("{} of {} deliveries", got.len(), sent.len()))),
        }
    }
    arrived_once(trial, &sent, &got)?;
    taker.ack(got).await
}

pub(crate) async fn max_in_flight(trial: &Trial<'_>) -> Result<(), Violation> {
    const MOST: usize = 5;
    let sent = plain(trial.name(), 3 * MOST - 1);
    trial.declare().await?;
    trial.publish(&sent).await?;
    let mut taker = trial.subscribe(&**trial.broker(), MOST).await?;
    let mut arrived = 0;
    while arrived < sent.len() {
        let mut held = vec![taker.take_one().await?];
        loop {
            let batch = taker.linger(100).await?;
            if batch.is_empty() {
                break;
            }
            held.extend(batch);
        }
        trial.ensure(held.len() <= MOST, || format!("{} unsettled of at most {MOST}", held.len()))?;
        arrived += held.len();
        taker.ack(held).await?;
    }
    trial.ensure(arrived == sent.len(), || format!("{arrived} deliveries of {} messages", sent.len()))
}

pub(crate) async fn competing(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = plain(trial.name(), 200);
    trial.declare().await?;
    let other = trial.connect().await?;
    let mut first = trial.subscribe(&**trial.broker(), 50).await?;
    let mut second = trial.subscribe(&*other, 50).await?;
    trial.publish(&sent).await?;
    let (until, mut arrived) = (Instant::now() + trial.deadline(), Vec::new());
    while arrived.len() < sent.len() {
        let Ok((taker, batch)) = timeout_at(until, either(&mut first, &mut second)).await else {
            let seen = format!("{} of {} messages arrived", arrived.len(), sent.len());
            return Err(trial.violated(seen));
        };
        for delivery in batch? {
            arrived.push(delivery.incoming().id().into_owned());
            delivery.ack();
        }
        taker.settler().flush();
    }
    for message in &sent {
        let times = arrived.iter().filter(|id| **id == message.message_id).count();
        trial.ensure(times == 1, || format!("message {} arrived {times} times", message.message_id))?;
    }
    first.nothing("every message had arrived").await?;
    second.nothing("every message had arrived").await
}

type Next<'t, 'a> = (&'t mut Taker<'a>, Result<Vec<Delivery>, Violation>);

async fn either<'t, 'a>(first: &'t mut Taker<'a>, second: &'t mut Taker<'a>) -> Next<'t, 'a> {
    let (from_first, batch) = tokio::select! {
        batch = first.next(7) => (true, batch),
        batch = second.next(7) => (false, batch),
    };
    (if from_first { first } else { second }, batch)
}

pub(crate) async fn stopped(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = plain(trial.name(), 20);
    trial.declare().await?;
    trial.publish(&sent).await?;
    let mut first = trial.subscribe(&**trial.broker(), 20).await?;
    let handed_out = first.take(5).await?;
    first.stop().await?;

    let other = trial.connect().await?;
    let mut second = trial.subscribe(&*other, 40).await?;
    let mut got = second.take_at_once(15).await?;
    for delivery in &got {
        let attempt = delivery.incoming().attempt();
        trial.ensure(attempt == Ok(1), || format!("stopping made it attempt {attempt:?}"))?;
    }
    second.nothing("the rest was handed out elsewhere and is not settled").await?;
    got.extend(handed_out);
    arrived_once(trial, &sent, &got)?;
    let handed_out = got.split_off(15);
    first.ack(handed_out).await?;
    first.close().await?;
    second.ack(got).await?;
    second.close().await?;

    let mut third = trial.subscribe(&*other, 40).await?;
    third.nothing("all had been acknowledged, some after stop()").await
}

pub(crate) async fn narrow(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = plain(trial.name(), 4);
    trial.declare().await?;
    trial.publish(&sent).await?;
    let broker = trial.connect().await?;
    let request = Subscribe { narrow: true, ..trial.request(trial.source(), 10) };
    let mut first = trial.subscribe_by(&*broker, request).await?;
    let one = first.take(1).await?;

    let mut second = trial.subscribe(&**trial.broker(), 10).await?;
    let mut got = second.take(sent.len() - 1).await?;
    second.nothing("one is unsettled elsewhere").await?;
    second.stop().await?;
    got.extend(one);
    arrived_once(trial, &sent, &got)?;
    let one = got.split_off(sent.len() - 1);
    second.ack(got).await?;
    second.close().await?;
    first.ack(one).await?;

    let more = plain(trial.name(), 4);
    trial.publish(&more).await?;
    first.set_narrow(false);
    let got = first.take(more.len()).await?;
    arrived_once(trial, &more, &got)?;
    first.ack(got).await
}

pub(crate) async fn ends(trial: &Trial<'_>) -> Result<(), Violation> {
    trial.declare().await?;
    let broker = trial.connect().await?;
    let mut pending = trial.subscribe(&*broker, 10).await?;
    let mut idle = trial.subscribe(&*broker, 10).await?;
    // the poll is under way before the connection is closed
    let polled = timeout(trial.deadline(), pending.poll(10));
    let (polled, closed) = join(polled, timeout(trial.deadline(), broker.close())).await;
    trial.ensure(closed.is_ok(), || format!("close() took longer than {:?}", trial.deadline()))?;
    ended(trial, "a poll under way when the connection was closed", polled)?;
    let polled = timeout(trial.deadline(), idle.poll(10)).await;
    ended(trial, "a poll after the connection was closed", polled)
}

type Polled<E> = Result<Result<Result<Vec<Delivery>, steadfast_core::SubscribeError>, Violation>, E>;

fn ended<E>(trial: &Trial<'_>, what: &str, polled: Polled<E>) -> Result<(), Violation> {
    match polled {
        Ok(Ok(Err(_))) => Ok(()),
        Ok(Ok(Ok(batch))) => Err(trial.violated(format!("{what} gave {} deliveries", batch.len()))),
        Ok(Err(violation)) => Err(violation),
        Err(_) => Err(trial.violated(format!("{what} was pending for {:?}", trial.deadline()))),
    }
}

pub(crate) async fn closed(trial: &Trial<'_>) -> Result<(), Violation> {
    trial.declare().await?;
    let broker = trial.connect().await?;
    let publisher = trial.within("making a publisher", broker.publisher()).await?;
    broker.close().await;
    let request = trial.request(trial.source(), 10);
    let subscribed = async { broker.subscribe(request).await.is_err() };
    refused(trial, "subscribe", subscribed).await?;
    refused(trial, "send", sending_fails(trial, &*publisher)).await?;
    refused(trial, "declare", declaring_fails(trial, &*broker)).await
}

async fn sending_fails(trial: &Trial<'_>, publisher: &dyn Publisher) -> bool {
    publisher.send(Outgoing::new(trial.name(), "late")).await.is_err()
}

async fn declaring_fails(trial: &Trial<'_>, broker: &dyn Broker) -> bool {
    broker.declare(&trial.source()).await.is_err()
}

async fn refused(trial: &Trial<'_>, what: &str, failed: impl Future<Output = bool>) -> Result<(), Violation> {
    match timeout(trial.deadline(), failed).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(trial.violated(format!("{what} succeeded after close()"))),
        Err(_) => {
            Err(trial.violated(format!("{what} after close() took longer than {:?}", trial.deadline())))
        }
    }
}
