//! The only file that names `bincode`, which is unmaintained: docs/decisions/0002 says why it is here and how it leaves.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::BoxError;

/// No single message needs more; without a limit a hostile length prefix would be allocated for.
const LIMIT: usize = 64 * 1024 * 1024;

const fn config() -> Configuration<LittleEndian, Varint, Limit<LIMIT>> {
    bincode::config::standard().with_limit::<LIMIT>()
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Bytes, BoxError> {
    Ok(bincode::serde::encode_to_vec(value, config())?.into())
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BoxError> {
    let (value, read) = bincode::serde::decode_from_slice(bytes, config())?;
    match bytes.len() - read {
        0 => Ok(value),
        left => {
            Err(format!("{left} byte(s) left over after a complete value: another type was encoded").into())
        }
    }
}
