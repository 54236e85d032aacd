//! Fields of an entry to a message, and back.
//!
//! Redis fields are flat, ordered, and bytes on both sides. Nothing is lost by what a name or a value cannot be shown as
//! here: a retry and a dead letter copy the entry's own fields at the server.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use redis::Value;
use steadfast_core::{HeaderValue, Headers, Incoming, Origin, Outgoing, Payload, Token, known};

/// The field that holds the content.
pub(crate) const BODY: &str = "body";
/// The group that a retried entry is for.
pub(crate) const GROUP: &str = "steadfast-group";
/// Dead letter: the group that gave up.
pub(crate) const SOURCE_GROUP: &str = "steadfast-source-group";

/// Known names whose values are integers.
const INTEGERS: &[&str] = &[
    known::RETRY_COUNT,
    known::VERSION,
    known::PUBLISHED_AT,
    known::FIRST_FAILURE,
    known::LAST_FAILURE,
    known::ATTEMPTS,
    known::REDRIVE_COUNT,
];

/// A message, and the group that it is addressed to, if to one only.
pub(crate) struct Received {
    pub(crate) incoming: Incoming,
    pub(crate) group: Option<Vec<u8>>,
}

/// What the fields of an entry say.
pub(crate) fn receive(stream: &Arc<str>, id: Vec<u8>, token: Token, fields: Vec<Value>) -> Received {
    let origin = Origin { source: Arc::clone(stream), entry_id: Some(text_lossy(id)), ..Origin::default() };
    let mut received = Received { incoming: Incoming::new(Bytes::new(), origin), group: None };
    received.incoming.published_at = time(token.0);
    let has_body = fields
        .iter()
        .step_by(2)
        .any(|name| matches!(name, Value::BulkString(name) if name == BODY.as_bytes()));
    let (mut body, mut flat) = (None, Vec::new());
    let mut fields = fields.into_iter();
    while let (Some(Value::BulkString(name)), Some(Value::BulkString(value))) = (fields.next(), fields.next())
    {
        if has_body && body.is_none() && name == BODY.as_bytes() {
            body = Some(value);
        } else if has_body || is_known(&name) {
            received.set(text_lossy(name), value);
        } else {
            flat.push((text_lossy(name), Bytes::from(value)));
        }
    }
    received.incoming.payload = match body {
        Some(body) => Payload::Body(body.into()),
        None => Payload::Fields(flat),
    };
    received
}

impl Received {
    /// A field beside the content: a property, or a header.
    fn set(&mut self, name: String, value: Vec<u8>) {
        if name == GROUP {
            self.group = Some(value);
            return;
        }
        let value = match String::from_utf8(value) {
            Ok(text) => text,
            Err(bytes) => return self.incoming.headers.push(name, HeaderValue::Bytes(bytes.into_bytes())),
        };
        let incoming = &mut self.incoming;
        match name.as_str() {
            known::TYPE => incoming.message_type = Some(value),
            known::ID => incoming.message_id = Some(value),
            known::CONTENT_TYPE => incoming.content_type = Some(value),
            known::CORRELATION => incoming.correlation_id = Some(value),
            known::APP_ID => incoming.app_id = Some(value),
            known::REPLY_TO => incoming.reply_to = Some(value),
            known::PUBLISHED_AT if value.parse().ok().and_then(time).is_some() => {
                incoming.published_at = value.parse().ok().and_then(time);
            }
            integer if INTEGERS.contains(&integer) => {
                // what does not parse stays text: core knows that it makes no sense
                let value = value.parse().map_or(HeaderValue::Text(value), HeaderValue::Int);
                incoming.headers.push(name, value);
            }
            _ => incoming.headers.push(name, HeaderValue::Text(value)),
        }
    }
}

/// Whether a field of this name is a header in an entry without a body.
fn is_known(name: &[u8]) -> bool {
    name.starts_with(b"steadfast-")
        || [known::RETRY_COUNT, known::ERROR, known::TRACEPARENT].iter().any(|known| name == known.as_bytes())
}

fn time(millis: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

fn text_lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|bytes| String::from_utf8_lossy(bytes.as_bytes()).into_owned())
}

/// A header as a field's value; none where only another broker knows its type.
fn value_bytes(value: &HeaderValue) -> Option<Vec<u8>> {
    match value {
        HeaderValue::Text(text) => Some(text.clone().into_bytes()),
        HeaderValue::Bytes(bytes) => Some(bytes.clone()),
        HeaderValue::Int(value) => Some(value.to_string().into_bytes()),
        HeaderValue::Bool(value) => Some(value.to_string().into_bytes()),
        // an opaque value is kept by the broker that knows it
        _ => None,
    }
}

/// Names and values in turn, as a script's arguments.
pub(crate) fn pairs(headers: &Headers, to: &mut Vec<Vec<u8>>) {
    for (name, value) in headers.iter() {
        if let Some(value) = value_bytes(value) {
            to.push(name.as_bytes().to_vec());
            to.push(value);
        }
    }
}

/// The fields of a message that was received, made again from what we know of it. Only for an entry that was trimmed while
/// it was pending: otherwise the server copies the fields themselves.
pub(crate) fn again(message: &Incoming, to: &mut Vec<Vec<u8>>) {
    let mut put = |name: &str, value: &[u8]| to.extend([name.as_bytes().to_vec(), value.to_vec()]);
    match &message.payload {
        Payload::Body(body) => put(BODY, body),
        Payload::Fields(fields) => fields.iter().for_each(|(name, value)| put(name, value)),
    }
    let properties = [
        (known::TYPE, &message.message_type),
        (known::ID, &message.message_id),
        (known::CONTENT_TYPE, &message.content_type),
        (known::CORRELATION, &message.correlation_id),
        (known::APP_ID, &message.app_id),
        (known::REPLY_TO, &message.reply_to),
    ];
    for (name, value) in properties {
        if let Some(value) = value {
            put(name, value.as_bytes());
        }
    }
    pairs(&message.headers, to);
}

/// The fields to publish a message with, or the name that cannot be one.
pub(crate) fn publish(message: &Outgoing, mut put: impl FnMut(&str, &[u8])) -> Result<(), String> {
    if let Some(why) = message.ranked_or_expiring() {
        return Err(why.to_owned());
    }
    match &message.payload {
        Payload::Body(body) => put(BODY, body),
        Payload::Fields(fields) => {
            for (name, value) in fields {
                if name == BODY {
                    return Err("a flat field named `body` would be read as the whole content".into());
                }
                put(name, value);
            }
        }
    }
    put(known::ID, message.message_id.as_bytes());
    let properties = [
        (known::TYPE, &message.message_type),
        (known::CONTENT_TYPE, &message.content_type),
        (known::CORRELATION, &message.correlation_id),
        (known::APP_ID, &message.app_id),
        (known::REPLY_TO, &message.reply_to),
    ];
    for (name, value) in properties {
        if let Some(value) = value {
            put(name, value.as_bytes());
        }
    }
    if let Some(at) = message.timestamp {
        let millis = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        put(known::PUBLISHED_AT, millis.to_string().as_bytes());
    }
    for (name, value) in message.headers.iter() {
        if name == BODY || name == GROUP {
            return Err(format!("a header named `{name}` has a meaning of its own in a stream"));
        }
        match value_bytes(value) {
            Some(value) => put(name, &value),
            None => return Err(format!("header `{name}` is of a type that Redis does not have")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(fields: &[(&[u8], &[u8])]) -> Received {
        let fields = fields
            .iter()
            .flat_map(|(n, v)| [Value::BulkString(n.to_vec()), Value::BulkString(v.to_vec())])
            .collect();
        receive(&"orders".into(), b"5-1".to_vec(), Token(5, 1), fields)
    }

    #[test]
    fn a_body_makes_the_other_fields_headers() {
        let incoming = received(&[
            (b"tenant", b"acme"),
            (b"body", b"{}"),
            (b"steadfast-type", b"order.placed"),
            (b"x-retry-count", b"2"),
            (b"odd", b"\xff"),
        ])
        .incoming;
        assert_eq!(incoming.payload, Payload::Body(Bytes::from_static(b"{}")));
        assert_eq!(incoming.message_type.as_deref(), Some("order.placed"));
        assert_eq!(incoming.headers.retry_count(), Ok(2));
        assert_eq!(incoming.headers.get("tenant"), Some(&"acme".into()));
        assert_eq!(incoming.headers.get("odd"), Some(&HeaderValue::Bytes(vec![0xff])));
        assert_eq!(incoming.id(), "orders/5-1");
        assert_eq!(incoming.published_at, time(5));
    }

    #[test]
    fn flat_fields_are_the_content_but_for_known_names() {
        let received =
            received(&[(b"id", b"7"), (b"x-retry-count", b"seven"), (b"steadfast-group", b"billing")]);
        assert_eq!(received.incoming.payload, Payload::Fields(vec![("id".into(), "7".into())]));
        assert!(received.incoming.headers.retry_count().is_err(), "left for core to judge");
        assert_eq!(received.group.as_deref(), Some(&b"billing"[..]));
        assert!(received.incoming.headers.get(GROUP).is_none());
    }

    #[test]
    fn a_retry_keeps_when_it_was_published() {
        let incoming = received(&[(b"a", b"1"), (b"steadfast-published-at", b"3")]).incoming;
        assert_eq!(incoming.published_at, time(3));
    }

    #[test]
    fn properties_travel_as_fields_or_are_refused() {
        let mut message = Outgoing::new("orders", Bytes::new());
        message.app_id = Some("shop".into());
        message.reply_to = Some("answers".into());
        message.timestamp = time(1_234);
        let mut fields: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        publish(&message, |name, value| fields.push((name.into(), value.into()))).expect("is fine");
        let fields: Vec<_> = fields.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        let incoming = received(&fields).incoming;
        assert_eq!(
            (incoming.app_id.as_deref(), incoming.reply_to.as_deref()),
            (Some("shop"), Some("answers"))
        );
        assert_eq!((incoming.published_at, incoming.headers.len()), (time(1_234), 0));
        message.priority = Some(1);
        assert!(publish(&message, |_, _| {}).expect_err("refused").contains("`priority`"));
        (message.priority, message.expiration) = (None, Some(Duration::from_secs(1)));
        assert!(publish(&message, |_, _| {}).expect_err("refused").contains("`expiration`"));
    }

    #[test]
    fn a_name_with_a_meaning_of_its_own_is_not_published() {
        let mut message = Outgoing::new("orders", Bytes::new());
        message.headers.set("body", "x");
        assert!(publish(&message, |_, _| {}).is_err());
        let message = Outgoing::new("orders", Payload::Fields(vec![("body".into(), Bytes::new())]));
        assert!(publish(&message, |_, _| {}).is_err());
    }
}
