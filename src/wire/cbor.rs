//! Control bodies: CBOR (RFC 8949) through serde. Structs are maps by field name, so fields can be added.

use std::io;

use bytes::{BufMut, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

/// Bytes that are not the CBOR that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed control message: {0}")]
pub struct BadCbor(String);

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
    let bad = |error: ciborium::de::Error<io::Error>| BadCbor(error.to_string());
    let value =
        ciborium::de::from_reader_with_recursion_limit(&mut bytes, DEPTH_MAX).map_err(bad)?;
    if bytes.is_empty() {
        Ok(value)
    } else {
        Err(BadCbor(format!("{} bytes too many", bytes.len())))
    }
}
