//! Letters as lines of JSON: everything that core's message has, whatever broker it is from.
//!
//! A header of a type that only its broker knows (a table, a timestamp) cannot be written; it is named in `left_out`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use steadfast::{Destination, HeaderValue, Letter, Outgoing, Payload};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none", default)]
    message_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    content_type: Option<String>,
    #[serde(default)]
    headers: Vec<(String, Value)>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    body: Option<Content>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    fields: Option<Vec<(String, Content)>>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) left_out: Vec<String>,
}

/// Text as it is, other bytes in hexadecimal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Content {
    Text(String),
    Hex(String),
}

impl Content {
    fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Hex(to_hex(bytes)),
        }
    }

    fn bytes(self) -> Result<Bytes, String> {
        match self {
            Self::Text(text) => Ok(text.into()),
            Self::Hex(hex) => Ok(from_hex(&hex)?.into()),
        }
    }
}

fn to_hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(value.into(), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn from_hex(hex: &str) -> Result<Vec<u8>, String> {
    let digits: Option<Vec<_>> = hex.chars().map(|c| c.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0).ok_or("odd hexadecimal digits")?;
    let byte = |pair: &[u32]| u8::try_from(pair[0] * 16 + pair[1]).map_err(|error| error.to_string());
    digits.chunks(2).map(byte).collect()
}

impl Line {
    pub(crate) fn of(letter: &Letter) -> Self {
        let message = &letter.message;
        let (mut headers, mut left_out) = (Vec::new(), Vec::new());
        for (name, value) in message.headers.iter() {
            let value = match value {
                HeaderValue::Text(text) => text.as_str().into(),
                HeaderValue::Int(value) => (*value).into(),
                HeaderValue::Bool(value) => (*value).into(),
                HeaderValue::Bytes(bytes) => serde_json::json!({ "hex": to_hex(bytes) }),
                // core's list of types may grow, and an opaque one has no value here
                _ => {
                    left_out.push(name.to_owned());
                    continue;
                }
            };
            headers.push((name.to_owned(), value));
        }
        let (body, fields) = match &message.payload {
            Payload::Body(body) => (Some(Content::of(body)), None),
            Payload::Fields(fields) => {
                let fields = fields.iter().map(|(name, value)| (name.clone(), Content::of(value)));
                (None, Some(fields.collect()))
            }
        };
        Self {
            id: message.message_id.clone(),
            message_type: message.message_type.clone(),
            correlation_id: message.correlation_id.clone(),
            content_type: message.content_type.clone(),
            headers,
            body,
            fields,
            left_out,
        }
    }

    pub(crate) fn outgoing(self, place: &str) -> Result<Outgoing, String> {
        let payload = match (self.body, self.fields) {
            (Some(body), None) => Payload::Body(body.bytes()?),
            (None, Some(fields)) => {
                let fields = fields.into_iter().map(|(name, value)| Ok((name, value.bytes()?)));
                Payload::Fields(fields.collect::<Result<_, String>>()?)
            }
            _ => return Err("it needs `body` or `fields`".to_owned()),
        };
        let mut outgoing = Outgoing::new(Destination::queue(place), Bytes::new());
        outgoing.payload = payload;
        for (name, value) in self.headers {
            let value = match &value {
                Value::String(text) => HeaderValue::Text(text.clone()),
                Value::Bool(value) => HeaderValue::Bool(*value),
                Value::Number(number) => {
                    HeaderValue::Int(number.as_i64().ok_or("a number that is no integer")?)
                }
                Value::Object(object) => match object.get("hex") {
                    Some(Value::String(hex)) => HeaderValue::Bytes(from_hex(hex)?),
                    _ => return Err(format!("header `{name}` is of no known form")),
                },
                Value::Null | Value::Array(_) => return Err(format!("header `{name}` is of no known form")),
            };
            outgoing.headers.set(name, value);
        }
        if let Some(id) = self.id {
            outgoing.message_id = id;
        }
        outgoing.message_type = self.message_type;
        outgoing.correlation_id = self.correlation_id;
        outgoing.content_type = self.content_type;
        Ok(outgoing)
    }
}

#[cfg(test)]
mod tests {
    use steadfast::{Incoming, Origin, Token};

    use super::*;

    #[test]
    fn what_is_exported_comes_back_byte_for_byte() {
        let mut message = Incoming::new(Bytes::from_static(&[0xff, 0, 7]), Origin::default());
        message.message_id = Some("m-1".into());
        message.headers.set("tenant", "acme").set("n", 7_i64).set("yes", true);
        message.headers.set("raw", HeaderValue::Bytes(vec![1, 0xfe]));
        let letter = Letter { mark: Token(1, 0), message: message.into() };
        let text = serde_json::to_string(&Line::of(&letter)).unwrap();
        let line: Line = serde_json::from_str(&text).unwrap();
        let back = line.outgoing("orders.dead").unwrap();
        assert_eq!(back.payload, letter.message.payload);
        assert_eq!(back.headers, letter.message.headers);
        assert_eq!(back.message_id, "m-1");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(from_hex("0").is_err() && from_hex("0g").is_err());
        let line: Line = serde_json::from_str(r#"{"headers":[["a",[1]]],"body":{"text":""}}"#).unwrap();
        assert!(line.outgoing("q").unwrap_err().contains("`a`"));
    }
}
