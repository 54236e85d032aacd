//! Messages to send, and what has to be the same when they arrive.

use std::collections::BTreeMap;

use bytes::Bytes;
use steadfast_core::{Capabilities, Delivery, HeaderValue, Headers, Incoming, Outgoing, Payload};

use crate::report::Violation;
use crate::trial::Trial;

/// `count` small messages.
pub(crate) fn plain(name: &str, count: usize) -> Vec<Outgoing> {
    (0..count).map(|nth| Outgoing::new(name, format!("{{\"nth\":{nth}}}"))).collect()
}

/// A message with everything set that every broker carries.
pub(crate) fn full(name: &str) -> Outgoing {
    let mut message = Outgoing::new(name, &b"{\"id\":1}\0\xff"[..]);
    message.message_type = Some("order.placed".to_owned());
    message.correlation_id = Some("correlation-1".to_owned());
    message.content_type = Some("application/json".to_owned());
    message.headers.set("tenant", "acme").set("colour", "").set("stra\u{df}e", "\u{fc}ber \u{1f980}\r\n");
    message
}

/// Message ids, for a sentence.
pub(crate) fn ids(batch: &[Delivery]) -> String {
    let shown: Vec<_> = batch.iter().take(5).map(|delivery| delivery.incoming().id().into_owned()).collect();
    match batch.len() {
        1 => format!("message {} was", shown.join(", ")),
        count => format!("{count} messages ({}, ..) were", shown.join(", ")),
    }
}

/// Each message arrived, once, with its payload.
pub(crate) fn arrived_once(trial: &Trial<'_>, sent: &[Outgoing], got: &[Delivery]) -> Result<(), Violation> {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for delivery in got {
        *times.entry(delivery.incoming().id().into_owned()).or_default() += 1;
    }
    for message in sent {
        let seen = times.remove(&message.message_id).unwrap_or(0);
        trial.ensure(seen == 1, || format!("message {} arrived {seen} times", message.message_id))?;
    }
    let stranger = times.into_keys().next();
    trial.ensure(stranger.is_none(), || format!("message {stranger:?} arrived and was never sent"))?;
    for delivery in got {
        let incoming = delivery.incoming();
        let original = sent.iter().find(|message| message.message_id == *incoming.id());
        if let Some(original) = original {
            same_payload(&original.payload, &incoming.payload).map_err(|seen| trial.violated(seen))?;
        }
    }
    Ok(())
}

/// The message arrived as it was sent, but for `over`, which were set over its headers.
pub(crate) fn arrived_whole(
    trial: &Trial<'_>,
    sent: &Outgoing,
    over: &Headers,
    got: &Incoming,
) -> Result<(), Violation> {
    same(sent, over, got, trial.capabilities()).map_err(|seen| trial.violated(seen))
}

fn same(sent: &Outgoing, over: &Headers, got: &Incoming, can: &Capabilities) -> Result<(), String> {
    same_payload(&sent.payload, &got.payload)?;
    let id = Some(sent.message_id.clone());
    for (what, sent, got) in [
        ("message id", &id, &got.message_id),
        ("type", &sent.message_type, &got.message_type),
        ("correlation id", &sent.correlation_id, &got.correlation_id),
        ("content type", &sent.content_type, &got.content_type),
    ] {
        if sent != got {
            return Err(format!("{what} went out as {sent:?} and arrived as {got:?}"));
        }
    }
    let mut expected = sent.headers.clone();
    expected.merge(over);
    same_headers(&expected, &got.headers, can)
}

pub(crate) fn same_payload(sent: &Payload, got: &Payload) -> Result<(), String> {
    match (sent, got) {
        (Payload::Body(sent), Payload::Body(got)) => same_bytes(sent, got),
        (Payload::Fields(sent), Payload::Fields(got)) if sent == got => Ok(()),
        (Payload::Fields(sent), Payload::Fields(got)) => {
            Err(format!("fields went out as {sent:?} and arrived as {got:?}"))
        }
        (Payload::Body(_), Payload::Fields(_)) => Err("a body arrived as fields".to_owned()),
        (Payload::Fields(_), Payload::Body(_)) => Err("fields arrived as one body".to_owned()),
    }
}

fn same_bytes(sent: &Bytes, got: &Bytes) -> Result<(), String> {
    if sent == got {
        return Ok(());
    }
    let at = sent.iter().zip(got).take_while(|(sent, got)| sent == got).count();
    Err(format!(
        "a body of {} bytes arrived as {} bytes that differ from byte {at} on",
        sent.len(),
        got.len()
    ))
}

fn same_headers(expected: &Headers, got: &Headers, can: &Capabilities) -> Result<(), String> {
    for (name, value) in expected.iter() {
        let arrived = got.get(name);
        if !arrived.is_some_and(|arrived| same_value(value, arrived, can)) {
            return Err(format!("header `{name}` went out as {value:?} and arrived as {arrived:?}"));
        }
    }
    // a server may add its own, as RabbitMQ does with x-death, and a broker crate to the record of a dead letter
    let may_be = |name: &str| name.starts_with("x-") || name.starts_with("steadfast-");
    match got.iter().find(|(name, _)| expected.get(name).is_none() && !may_be(name)) {
        Some((name, value)) => Err(format!("header `{name}` was never set and arrived as {value:?}")),
        None => Ok(()),
    }
}

fn same_value(sent: &HeaderValue, got: &HeaderValue, can: &Capabilities) -> bool {
    sent == got || (!can.typed_headers && sent.to_string() == got.to_string())
}
