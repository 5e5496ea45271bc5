//! Control bodies: CBOR (RFC 8949) through serde. Structs are maps by field name, so fields can be added.

use std::io;

use bytes::{BufMut, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

/// Bytes that are not the CBOR that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed control message: {why}")]
pub struct BadCbor {
    why: String,
    truncated: bool,
}

impl BadCbor {
    /// Whether nothing is wrong but that the bytes end too early.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }
}

/// How deep maps and arrays may nest: ours nest 5 deep.
const DEPTH_MAX: usize = 16;

/// Appends `value` to `out`.
///
/// # Panics
/// Never for our messages: they hold nothing that CBOR cannot carry, and memory does not fail to be written.
pub fn put(value: &impl Serialize, out: &mut BytesMut) {
    if let Err(error) = ciborium::into_writer(value, out.writer()) {
        panic!("our own message does not encode: {error}");
    }
}

/// Reads a value that takes the whole of `bytes`.
///
/// # Errors
/// [`BadCbor`] when the bytes are something else, or more than that.
pub fn get<T: DeserializeOwned>(mut bytes: &[u8]) -> Result<T, BadCbor> {
    let bad = |error: ciborium::de::Error<io::Error>| BadCbor {
        why: error.to_string(),
        // Bytes in memory fail to be read in no other way.
        truncated: matches!(error, ciborium::de::Error::Io(_)),
    };
    let value =
        ciborium::de::from_reader_with_recursion_limit(&mut bytes, DEPTH_MAX).map_err(bad)?;
    if bytes.is_empty() {
        Ok(value)
    } else {
        Err(BadCbor { why: format!("{} bytes too many", bytes.len()), truncated: false })
    }
}
