//! From AMQP's properties and headers to core's, and back.
//!
//! Three directions: what was delivered becomes an [`Incoming`], an [`Outgoing`] becomes properties, and a delivery's own
//! properties become those of its copy. A copy keeps what the publisher set, in its own types, except for what would make
//! the broker treat the copy differently; that moves into headers of ours.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lapin::message::Delivery;
use lapin::protocol::basic::AMQPProperties;
use lapin::types::{AMQPValue, ByteArray, FieldTable, LongString, ShortString};
use steadfast_core::{Forward, HeaderValue, Headers, Incoming, Origin, Outgoing, Payload, known};

use crate::queue::{QueueKind, whole_millis};

/// On copies: the `expiration` that the publisher set. A copy with one would leave its delay, or the dead letters, early.
const EXPIRATION: &str = "steadfast-amqp-expiration";
/// On copies: the `user-id` that the publisher set. The broker refuses it from anybody else.
const USER_ID: &str = "steadfast-amqp-user-id";
/// On copies: other queues that the publisher sent the message to as well. The broker would send the copy there, too.
const CC: &str = "steadfast-amqp-cc";

/// How often a quorum queue delivered it, and (since 4.3) how often a consumer had it.
const COUNTS: [&str; 2] = ["x-delivery-count", "x-acquired-count"];

/// What was delivered, in core's words, and its own properties for a copy to be made of.
pub(crate) fn incoming(delivery: Delivery, queue: &Arc<str>, kind: QueueKind) -> (Incoming, AMQPProperties) {
    let Delivery { exchange, routing_key, redelivered, properties, data, .. } = delivery;
    let origin = Origin {
        source: Arc::clone(queue),
        exchange: Some(exchange.into()),
        routing_key: Some(routing_key.into()),
        entry_id: None,
    };
    let mut incoming = Incoming::new(Payload::Body(Bytes::from(data)), origin);
    incoming.redelivered = redelivered;
    incoming.message_type = owned(properties.kind().as_ref());
    incoming.message_id = owned(properties.message_id().as_ref());
    incoming.correlation_id = owned(properties.correlation_id().as_ref());
    incoming.content_type = owned(properties.content_type().as_ref());
    incoming.app_id = owned(properties.app_id().as_ref());
    incoming.reply_to = owned(properties.reply_to().as_ref());
    incoming.published_at =
        properties.timestamp().map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds.min(MAX_SECONDS)));
    incoming.delivery_count = match kind {
        QueueKind::Quorum => Some(0),
        QueueKind::Classic | QueueKind::Passive => None,
    };
    if let Some(table) = properties.headers() {
        read_headers(&mut incoming, table, kind);
    }
    (incoming, properties)
}

/// Year 9999; a timestamp beyond is nonsense, and must not overflow.
const MAX_SECONDS: u64 = 253_402_300_799;

fn owned(text: Option<&ShortString>) -> Option<String> {
    text.map(ToString::to_string)
}

fn read_headers(incoming: &mut Incoming, table: &FieldTable, kind: QueueKind) {
    let came_back = came_back(table, &incoming.origin);
    for (name, value) in table {
        let name = name.as_str();
        if COUNTS.contains(&name) {
            // a publisher can write the header, too; a quorum queue overwrites it on every delivery but the first
            if name == "x-delivery-count" && incoming.redelivered && kind != QueueKind::Classic {
                incoming.delivery_count = integer(value).and_then(|count| u32::try_from(count).ok());
            }
        } else if !(came_back && is_of_the_way_back(name)) {
            incoming.headers.push(name.to_owned(), header_value(value));
        }
    }
    if came_back {
        for (name, place) in [
            (known::EXCHANGE, &mut incoming.origin.exchange),
            (known::ROUTING_KEY, &mut incoming.origin.routing_key),
        ] {
            if let Some(AMQPValue::LongString(text)) = table.inner().get(name) {
                *place = Some(text.to_string());
            }
        }
    }
    if let Ok(Some(millis)) = incoming.headers.int(known::PUBLISHED_AT) {
        let millis = u64::try_from(millis).unwrap_or(0).min(MAX_SECONDS * 1000);
        incoming.published_at = Some(UNIX_EPOCH + Duration::from_millis(millis));
    }
}

/// Whether this is a copy of ours: it came straight to the queue, and says where it was published to at first.
fn came_back(table: &FieldTable, origin: &Origin) -> bool {
    origin.exchange.as_deref() == Some("")
        && origin.routing_key.as_deref() == Some(&*origin.source)
        && table.contains_key(known::EXCHANGE)
        && table.contains_key(known::ROUTING_KEY)
        && !table.contains_key(known::REASON)
}

/// What only the way through a delay put there.
fn is_of_the_way_back(name: &str) -> bool {
    is_death(name) || matches!(name, known::EXCHANGE | known::ROUTING_KEY | EXPIRATION | USER_ID | CC)
}

/// What the broker notes of its own dead-lettering, and a client can forge.
fn is_death(name: &str) -> bool {
    name == "x-death" || name.starts_with("x-first-death-") || name.starts_with("x-last-death-")
}

fn header_value(value: &AMQPValue) -> HeaderValue {
    match value {
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => HeaderValue::Text(text.to_owned()),
            Err(_) => HeaderValue::Bytes(text.as_bytes().to_vec()),
        },
        AMQPValue::ShortString(text) => HeaderValue::Text(text.to_string()),
        AMQPValue::ByteArray(bytes) => HeaderValue::Bytes(bytes.as_slice().to_vec()),
        AMQPValue::Boolean(value) => HeaderValue::Bool(*value),
        other => integer(other).map_or_else(|| HeaderValue::Opaque(type_name(other)), HeaderValue::Int),
    }
}

fn integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(value) => Some(i64::from(*value)),
        AMQPValue::ShortShortUInt(value) => Some(i64::from(*value)),
        AMQPValue::ShortInt(value) => Some(i64::from(*value)),
        AMQPValue::ShortUInt(value) => Some(i64::from(*value)),
        AMQPValue::LongInt(value) => Some(i64::from(*value)),
        AMQPValue::LongUInt(value) => Some(i64::from(*value)),
        AMQPValue::LongLongInt(value) => Some(*value),
        _ => None,
    }
}

fn type_name(value: &AMQPValue) -> &'static str {
    match value {
        AMQPValue::Float(_) => "float",
        AMQPValue::Double(_) => "double",
        AMQPValue::DecimalValue(_) => "decimal",
        AMQPValue::Timestamp(_) => "timestamp",
        AMQPValue::FieldArray(_) => "array",
        AMQPValue::FieldTable(_) => "table",
        AMQPValue::Void => "void",
        _ => "unknown",
    }
}

/// Properties of a message to be published, stamped with `now` where it says no time of its own.
pub(crate) fn outgoing(message: &Outgoing, now: SystemTime) -> Result<AMQPProperties, String> {
    let at = message.timestamp.unwrap_or(now);
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut properties = AMQPProperties::default()
        .with_delivery_mode(if message.persistent { 2 } else { 1 })
        .with_timestamp(seconds)
        .with_message_id(short("message id", &message.message_id)?);
    if let Some(kind) = &message.message_type {
        properties = properties.with_type(short("message type", kind)?);
    }
    if let Some(id) = &message.correlation_id {
        properties = properties.with_correlation_id(short("correlation id", id)?);
    }
    if let Some(content_type) = &message.content_type {
        properties = properties.with_content_type(short("content type", content_type)?);
    }
    if let Some(id) = &message.app_id {
        properties = properties.with_app_id(short("app id", id)?);
    }
    if let Some(name) = &message.reply_to {
        properties = properties.with_reply_to(short("name to reply to", name)?);
    }
    if let Some(after) = message.expiration {
        properties = properties.with_expiration(whole_millis(after).to_string().into());
    }
    if let Some(rank) = message.priority {
        properties = properties.with_priority(rank);
    }
    if message.headers.is_empty() {
        return Ok(properties);
    }
    let mut table = BTreeMap::new();
    set_over(&mut table, &message.headers)?;
    Ok(properties.with_headers(table.into()))
}

/// Properties of a copy: the delivery's own, with `headers` set over them.
pub(crate) fn copy(
    properties: &AMQPProperties,
    origin: &Origin,
    headers: &Headers,
) -> Result<AMQPProperties, String> {
    let mut table: BTreeMap<_, _> = properties.headers().as_ref().map_or_else(BTreeMap::new, |table| {
        let kept = table
            .into_iter()
            .filter(|(name, _)| !is_death(name.as_str()) && !COUNTS.contains(&name.as_str()));
        kept.map(|(name, value)| (name.clone(), value.clone())).collect()
    });
    let text = |text: &str| AMQPValue::LongString(LongString::from(text));
    for (name, value) in [(known::EXCHANGE, &origin.exchange), (known::ROUTING_KEY, &origin.routing_key)] {
        table.insert(name.into(), text(value.as_deref().unwrap_or_default()));
    }
    if let Some(expiration) = properties.expiration() {
        table.insert(EXPIRATION.into(), text(expiration.as_str()));
    }
    if let Some(user) = properties.user_id() {
        table.insert(USER_ID.into(), text(user.as_str()));
    }
    if let Some(queues) = table.remove("CC") {
        table.insert(CC.into(), queues);
    }
    set_over(&mut table, headers)?;
    Ok(with_headers(properties, table.into()))
}

/// Properties of a letter that is sent on. Restored it is as it was published, except for `user-id` and `CC`: the broker
/// refuses the one from anybody else, and would send the message to other queues again by the other.
pub(crate) fn forwarded(properties: &AMQPProperties, forward: &Forward) -> Result<AMQPProperties, String> {
    let mut table: BTreeMap<_, _> =
        properties.headers().as_ref().map_or_else(BTreeMap::new, |table| table.inner().clone());
    let expiration = table.get(EXPIRATION).cloned();
    table.retain(|name, _| {
        let name = name.as_str();
        let added = known::is_record(name) || known::is_of_attempts(name) || name == EXPIRATION;
        let brokers = is_death(name) || COUNTS.contains(&name);
        !(brokers || (forward.restore && added))
    });
    set_over(&mut table, &forward.set)?;
    let mut restored = with_headers(properties, table.into());
    if let (true, Some(AMQPValue::LongString(text))) = (forward.restore, expiration) {
        restored = restored.with_expiration(short("expiration", &text.to_string())?);
    }
    match &forward.message_id {
        Some(id) => Ok(restored.with_message_id(short("message id", id)?)),
        None => Ok(restored),
    }
}

/// All properties but `expiration` and `user-id`, which [`copy`] keeps in headers.
fn with_headers(of: &AMQPProperties, headers: FieldTable) -> AMQPProperties {
    type Set<T> = fn(AMQPProperties, T) -> AMQPProperties;
    let texts: [(&Option<ShortString>, Set<ShortString>); 8] = [
        (of.content_type(), AMQPProperties::with_content_type),
        (of.content_encoding(), AMQPProperties::with_content_encoding),
        (of.correlation_id(), AMQPProperties::with_correlation_id),
        (of.reply_to(), AMQPProperties::with_reply_to),
        (of.message_id(), AMQPProperties::with_message_id),
        (of.kind(), AMQPProperties::with_type),
        (of.app_id(), AMQPProperties::with_app_id),
        (of.cluster_id(), AMQPProperties::with_cluster_id),
    ];
    let numbers: [(&Option<u8>, Set<u8>); 2] = [
        (of.delivery_mode(), AMQPProperties::with_delivery_mode),
        (of.priority(), AMQPProperties::with_priority),
    ];
    let mut properties = AMQPProperties::default().with_headers(headers);
    for (text, set) in texts {
        if let Some(text) = text {
            properties = set(properties, text.clone());
        }
    }
    for (number, set) in numbers {
        if let Some(number) = number {
            properties = set(properties, *number);
        }
    }
    match of.timestamp() {
        Some(seconds) => properties.with_timestamp(*seconds),
        None => properties,
    }
}

fn set_over(table: &mut BTreeMap<ShortString, AMQPValue>, headers: &Headers) -> Result<(), String> {
    for (name, value) in headers.iter() {
        let value = match value {
            HeaderValue::Text(text) => AMQPValue::LongString(LongString::from(text.as_str())),
            HeaderValue::Int(value) => AMQPValue::LongLongInt(*value),
            HeaderValue::Bool(value) => AMQPValue::Boolean(*value),
            HeaderValue::Bytes(bytes) => AMQPValue::ByteArray(ByteArray::from(bytes.as_slice())),
            // core's list of types may grow: what has no type here cannot be written
            other => {
                return Err(format!(
                    "header `{name}` is of a type that cannot be written: {}",
                    other.type_name()
                ));
            }
        };
        table.insert(short("name of a header", name)?, value);
    }
    Ok(())
}

fn short(what: &str, text: &str) -> Result<ShortString, String> {
    ShortString::try_new(text)
        .map_err(|_| format!("the {what} has {} bytes, and AMQP allows 255", text.len()))
}

/// About how many bytes the properties take in a frame; never fewer than they do.
pub(crate) fn encoded_size(properties: &AMQPProperties) -> usize {
    // frame, class, body size and flags; then timestamp, priority, delivery mode
    const FIXED: usize = 8 + 14 + 11;
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let texts: usize = texts.into_iter().flatten().map(|text| 1 + text.as_str().len()).sum();
    FIXED + texts + properties.headers().as_ref().map_or(0, table_size)
}

fn table_size(table: &FieldTable) -> usize {
    4 + table.into_iter().map(|(name, value)| 1 + name.as_str().len() + value_size(value)).sum::<usize>()
}

fn value_size(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldTable(table) => table_size(table),
        AMQPValue::FieldArray(values) => 4 + values.as_slice().iter().map(value_size).sum::<usize>(),
        _ => 8,
    }
}
