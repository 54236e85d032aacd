//! What is set aside.

use steadfast_core::{DeadLetter, Headers, Reason, known};

use crate::message::{arrived_whole, full};
use crate::report::Violation;
use crate::trial::Trial;

pub(crate) async fn dead_lettered(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = full(trial.name());
    trial.declare().await?;
    trial.publish(std::slice::from_ref(&sent)).await?;
    let broker = trial.connect().await?;
    let mut taker = trial.subscribe(&*broker, 10).await?;
    let (incoming, token) = taker.take_one().await?.into_parts();
    let letter = DeadLetter::from_headers(Reason::Rejected, record(trial));
    trial.within("dead-lettering", taker.settler().dead_letter(&incoming, token, &letter)).await?;
    taker.finish().await?;
    broker.close().await;
    drop(taker);

    let mut dead = trial.subscribe_dead(10).await?;
    let got = dead.take_one().await?;
    arrived_whole(trial, &sent, letter.headers(), got.incoming())?;
    dead.nothing("there was one dead letter").await?;
    let mut source = trial.subscribe(&**trial.broker(), 10).await?;
    source.nothing("it is in the dead letters").await?;
    dead.ack(vec![got]).await
}

/// A record as the pipeline writes it.
fn record(trial: &Trial<'_>) -> Headers {
    let mut record = Headers::new();
    record
        .set(known::RETRY_COUNT, 5_u32)
        .set(known::ERROR, "no such customer")
        .set(known::REASON, Reason::Rejected.as_str())
        .set(known::ERROR_CHAIN, "no such customer: not found")
        .set(known::FINGERPRINT, "00000000deadbeef")
        .set(known::HANDLER, "Billing")
        .set(known::CONSUMER, "billing")
        .set(known::SOURCE, trial.name())
        .set(known::ATTEMPTS, 5_u32)
        .set(known::FIRST_FAILURE, 1_700_000_000_000_i64)
        .set(known::LAST_FAILURE, 1_700_000_000_001_i64)
        .set(known::HOST, "host")
        .set(known::REDRIVE_COUNT, 0_u32)
        .to_owned()
}
