//! What arrives.

use bytes::Bytes;
use steadfast_core::{HeaderValue, Headers, Outgoing, Payload};

use crate::message::{arrived_once, arrived_whole, full, plain, same_payload};
use crate::report::Violation;
use crate::trial::Trial;

pub(crate) async fn bodies(trial: &Trial<'_>) -> Result<(), Violation> {
    let pattern = |len: usize| (0..=u8::MAX).cycle().take(len).collect::<Vec<_>>();
    let bodies = [pattern(0), vec![0], vec![b'\n'], pattern(256), vec![0xff; 1000], pattern(1024 * 1024)];
    let mut sent: Vec<_> = bodies.into_iter().map(|body| Outgoing::new(trial.name(), body)).collect();
    sent.extend(plain(trial.name(), 100));
    trial.declare().await?;
    trial.publish(&sent).await?;
    let mut taker = trial.subscribe(&**trial.broker(), sent.len() + 10).await?;
    let got = taker.take(sent.len()).await?;
    taker.nothing("everything that was published had arrived").await?;
    arrived_once(trial, &sent, &got)?;
    taker.ack(got).await
}

pub(crate) async fn properties(trial: &Trial<'_>) -> Result<(), Violation> {
    let sent = [full(trial.name()), Outgoing::new(trial.name(), "bare")];
    trial.declare().await?;
    trial.publish(&sent).await?;
    let mut taker = trial.subscribe(&**trial.broker(), 10).await?;
    let got = taker.take(sent.len()).await?;
    arrived_once(trial, &sent, &got)?;
    for delivery in &got {
        let incoming = delivery.incoming();
        for sent in sent.iter().filter(|sent| sent.message_id == *incoming.id()) {
            arrived_whole(trial, sent, &Headers::new(), incoming)?;
        }
        let source = &*incoming.origin.source;
        trial.ensure(source == trial.name(), || format!("origin.source is `{source}`"))?;
        trial.ensure(!incoming.redelivered, || "a first delivery is marked as redelivered".to_owned())?;
        let attempt = incoming.attempt();
        trial.ensure(attempt == Ok(1), || format!("a first delivery is attempt {attempt:?}"))?;
    }
    taker.ack(got).await
}

pub(crate) async fn typed_headers(trial: &Trial<'_>) -> Result<(), Violation> {
    let mut sent = Outgoing::new(trial.name(), "typed");
    sent.headers
        .set("least", i64::MIN)
        .set("most", i64::MAX)
        .set("zero", 0_i64)
        .set("yes", true)
        .set("no", false)
        .set("digits", "1")
        .set("bytes", HeaderValue::Bytes(vec![0, 0xff, 0xc3]));
    trial.declare().await?;
    trial.publish(std::slice::from_ref(&sent)).await?;
    let mut taker = trial.subscribe(&**trial.broker(), 10).await?;
    let got = taker.take_one().await?;
    arrived_whole(trial, &sent, &Headers::new(), got.incoming())?;
    taker.ack(vec![got]).await
}

pub(crate) async fn fields(trial: &Trial<'_>) -> Result<(), Violation> {
    let fields = [("zebra", &b"1"[..]), ("apple", b""), ("binary", b"\0\xff\r\n"), ("\u{fc}", b"2")];
    let fields = fields.map(|(name, value)| (name.to_owned(), Bytes::from_static(value)));
    // without headers: where fields are the content, only known names are told apart from it
    let sent = Outgoing::new(trial.name(), Bytes::new());
    let sent = Outgoing { payload: Payload::Fields(fields.to_vec()), ..sent };
    trial.declare().await?;
    trial.publish(std::slice::from_ref(&sent)).await?;
    let mut taker = trial.subscribe(&**trial.broker(), 10).await?;
    let got = taker.take_one().await?;
    same_payload(&sent.payload, &got.incoming().payload).map_err(|seen| trial.violated(seen))?;
    taker.ack(vec![got]).await
}
