//! How messages become bytes and back, chosen by content type.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::delivery::{Incoming, Payload};
use crate::error::BoxError;

#[cfg(feature = "bincode")]
mod bincode_format;
mod fields;

/// An encoding of messages.
///
/// JSON unless told otherwise. Bincode and MessagePack are features of the crate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Codec {
    /// `application/json`, by `serde_json`.
    #[default]
    Json,
    /// `application/x-bincode`. Compact, and without any schema evolution: both sides must have the same type. Not for
    /// types that need a self-describing format (untagged enums, `serde_json::Value`).
    #[cfg(feature = "bincode")]
    Bincode,
    /// `application/msgpack`, with field names, so that fields can be added.
    #[cfg(feature = "messagepack")]
    MessagePack,
}

impl Codec {
    /// The content type that it writes.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            #[cfg(feature = "bincode")]
            Self::Bincode => "application/x-bincode",
            #[cfg(feature = "messagepack")]
            Self::MessagePack => "application/msgpack",
        }
    }

    /// The codec for a content type; `None` where there is none, or the feature for it is off.
    ///
    /// Parameters (`; charset=utf-8`) do not matter, nor does case; `text/plain`, `text/json` and `…+json` are JSON, as
    /// services in other languages send it.
    ///
    /// ```
    /// use steadfast_core::Codec;
    ///
    /// assert_eq!(Codec::for_content_type("application/json; charset=utf-8"), Some(Codec::Json));
    /// assert_eq!(Codec::for_content_type("image/png"), None);
    /// ```
    pub fn for_content_type(content_type: &str) -> Option<Self> {
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" | "text/json" | "text/plain" => Some(Self::Json),
            other if other.ends_with("+json") => Some(Self::Json),
            #[cfg(feature = "bincode")]
            "application/x-bincode" => Some(Self::Bincode),
            #[cfg(feature = "messagepack")]
            "application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack" => {
                Some(Self::MessagePack)
            }
            _ => None,
        }
    }

    /// Encodes.
    pub fn encode<T: Serialize>(self, value: &T) -> Result<Bytes, BoxError> {
        match self {
            Self::Json => Ok(serde_json::to_vec(value)?.into()),
            #[cfg(feature = "bincode")]
            Self::Bincode => bincode_format::encode(value),
            #[cfg(feature = "messagepack")]
            Self::MessagePack => Ok(rmp_serde::to_vec_named(value)?.into()),
        }
    }

    /// Decodes the whole of `bytes`.
    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, BoxError> {
        match self {
            Self::Json => Ok(serde_json::from_slice(bytes)?),
            #[cfg(feature = "bincode")]
            Self::Bincode => bincode_format::decode(bytes),
            #[cfg(feature = "messagepack")]
            Self::MessagePack => Ok(rmp_serde::from_slice(bytes)?),
        }
    }
}

/// Decodes what was delivered, by its own content type, else by `default`.
pub(crate) fn decode<T: DeserializeOwned>(incoming: &Incoming, default: Codec) -> Result<T, BoxError> {
    let body = match &incoming.payload {
        Payload::Body(body) => body,
        Payload::Fields(fields) => return Ok(fields::from_fields(fields)?),
    };
    let codec = match incoming.content_type.as_deref() {
        None | Some("" | "application/octet-stream") => default,
        Some(content_type) if content_type == default.content_type() => default,
        Some(content_type) => Codec::for_content_type(content_type)
            .ok_or_else(|| format!("no codec for content type {content_type:?} is compiled in"))?,
    };
    codec.decode(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_chooses() {
        let mut incoming = Incoming::new(Bytes::from_static(b"[1,2]"), crate::Origin::default());
        for content_type in [None, Some("application/json"), Some("TEXT/plain; charset=x"), Some("a/b+json")]
        {
            incoming.content_type = content_type.map(str::to_owned);
            assert_eq!(decode::<Vec<u8>>(&incoming, Codec::Json).expect("decodes"), [1, 2]);
        }
        incoming.content_type = Some("application/x-protobuf".to_owned());
        let error = decode::<Vec<u8>>(&incoming, Codec::Json).expect_err("no such codec").to_string();
        assert!(error.contains("application/x-protobuf"), "{error}");
    }

    #[cfg(feature = "bincode")]
    #[test]
    fn bincode_refuses_what_is_left_over_and_what_is_too_long() {
        let codec = Codec::for_content_type("application/x-bincode").expect("compiled in");
        let bytes = codec.encode(&(7_u64, "x")).expect("encodes");
        assert_eq!(codec.decode::<(u64, String)>(&bytes).expect("decodes"), (7, "x".to_owned()));
        let longer = [&bytes[..], b"!"].concat();
        assert!(
            codec.decode::<(u64, String)>(&longer).expect_err("left over").to_string().contains("1 byte")
        );
        // a length prefix of 2^62 must not be believed
        let hostile = [253, 0, 0, 0, 0, 0, 0, 0, 0x40];
        assert!(codec.decode::<Vec<u8>>(&hostile).is_err());
    }

    #[cfg(feature = "messagepack")]
    #[test]
    fn messagepack_keeps_field_names() {
        #[derive(serde::Serialize)]
        struct New {
            id: u64,
            extra: bool,
        }
        #[derive(serde::Deserialize)]
        struct Old {
            id: u64,
        }
        let codec = Codec::for_content_type("application/msgpack").expect("compiled in");
        let bytes = codec.encode(&New { id: 7, extra: true }).expect("encodes");
        assert_eq!(codec.decode::<Old>(&bytes).expect("decodes").id, 7);
    }
}
