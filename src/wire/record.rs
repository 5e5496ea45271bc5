//! One record inside a batch body.
//!
//! ```text
//! varint  timestamp, counted from the batch's smallest
//! varint  0: no key, else length of the key + 1, then the key
//! varint  length of the value, then the value
//! varint  number of headers, then each: varint length, name (UTF-8), varint length, value
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{
    batch::BatchHeader,
    varint::{Truncated, VARINT_MAX, get_varint, put_varint, varint_len},
};
use crate::{
    limits::{HEADER_NAME_LEN_MAX, KEY_LEN_MAX, RECORD_HEADERS_MAX, RECORD_LEN_MAX},
    types::{Offset, Timestamp},
};

/// What a producer writes and a reader gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// When it happened, by the producer's clock.
    pub timestamp: Timestamp,
    /// What it is about; records of one key stay in order. Without one they go to any partition.
    pub key: Option<Bytes>,
    /// The payload.
    pub value: Bytes,
    /// Names and values beside the payload.
    pub headers: Vec<(String, Bytes)>,
}

/// Why a record was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// Larger than the limit.
    #[error("record is {len} bytes, limit is {max}", max = RECORD_LEN_MAX)]
    TooLarge {
        /// Bytes of key, value and headers together.
        len: usize,
    },
    /// A key longer than the limit.
    #[error("key is {len} bytes, limit is {max}", max = KEY_LEN_MAX)]
    KeyTooLong {
        /// Bytes of the key.
        len: usize,
    },
    /// More headers than the limit.
    #[error("record has {count} headers, limit is {max}", max = RECORD_HEADERS_MAX)]
    TooManyHeaders {
        /// Number of headers.
        count: u64,
    },
    /// A timestamp that a varint cannot carry.
    #[error("timestamp {0} is past the year 146 million")]
    Timestamp(Timestamp),
    /// An empty or too long header name, or one that is not UTF-8.
    #[error("header name must be 1 to {max} bytes of UTF-8", max = HEADER_NAME_LEN_MAX)]
    HeaderName,
    /// The body ends in the middle of a record.
    #[error("batch body ends in the middle of a record")]
    Truncated,
    /// Bytes behind the last record, or fewer records than the header says.
    #[error("batch body holds other records than its header says")]
    Count,
}

impl From<Truncated> for BadRecord {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

impl Record {
    /// A record with a value alone.
    #[must_use]
    pub fn new(value: impl Into<Bytes>) -> Self {
        Self { value: value.into(), ..Self::default() }
    }

    /// Sets the key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Encoded length, once all limits but the whole length are checked.
    pub(super) fn len(&self, time_base: Timestamp) -> Result<usize, BadRecord> {
        let key_len = self.key.as_ref().map_or(0, Bytes::len);
        if key_len > KEY_LEN_MAX {
            return Err(BadRecord::KeyTooLong { len: key_len });
        }
        if self.headers.len() > RECORD_HEADERS_MAX {
            return Err(BadRecord::TooManyHeaders { count: self.headers.len() as u64 });
        }
        if self.timestamp.0 > VARINT_MAX {
            return Err(BadRecord::Timestamp(self.timestamp));
        }
        let delta = self.timestamp.0.saturating_sub(time_base.0);
        let mut len = varint_len(delta)
            + varint_len(key_len as u64 + 1)
            + key_len
            + varint_len(self.value.len() as u64)
            + self.value.len()
            + varint_len(self.headers.len() as u64);
        for (name, value) in &self.headers {
            if name.is_empty() || name.len() > HEADER_NAME_LEN_MAX {
                return Err(BadRecord::HeaderName);
            }
            len += varint_len(name.len() as u64) + name.len();
            len += varint_len(value.len() as u64) + value.len();
        }
        Ok(len)
    }

    pub(super) fn encode(&self, time_base: Timestamp, out: &mut BytesMut) {
        put_varint(out, self.timestamp.0.saturating_sub(time_base.0));
        match &self.key {
            Some(key) => {
                put_varint(out, key.len() as u64 + 1);
                out.put_slice(key);
            }
            None => put_varint(out, 0),
        }
        put_bytes(out, &self.value);
        put_varint(out, self.headers.len() as u64);
        for (name, value) in &self.headers {
            put_bytes(out, name.as_bytes());
            put_bytes(out, value);
        }
    }

    fn decode(body: &mut Bytes, time_base: Timestamp) -> Result<Self, BadRecord> {
        let timestamp = Timestamp(time_base.0.saturating_add(get_varint(body)?));
        let key = match get_varint(body)? {
            0 => None,
            len => Some(take(body, len - 1)?),
        };
        if let Some(key) = key.as_ref().filter(|key| key.len() > KEY_LEN_MAX) {
            return Err(BadRecord::KeyTooLong { len: key.len() });
        }
        let value = get_bytes(body)?;
        let count = get_varint(body)?;
        if count > RECORD_HEADERS_MAX as u64 {
            return Err(BadRecord::TooManyHeaders { count });
        }
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = get_bytes(body)?;
            let name = std::str::from_utf8(&name).map_err(|_| BadRecord::HeaderName)?;
            if name.is_empty() || name.len() > HEADER_NAME_LEN_MAX {
                return Err(BadRecord::HeaderName);
            }
            headers.push((name.to_owned(), get_bytes(body)?));
        }
        Ok(Self { timestamp, key, value, headers })
    }
}

/// The records of one batch with their offsets. After an error there is no more.
#[derive(Clone, Debug)]
pub struct Records {
    body: Bytes,
    next: Offset,
    left: u32,
    time_base: Timestamp,
}

impl Records {
    pub(super) fn new(body: Bytes, header: &BatchHeader) -> Self {
        Self { body, next: header.base_offset, left: header.records, time_base: header.time_min }
    }
}

impl Iterator for Records {
    type Item = Result<(Offset, Record), BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            if self.body.has_remaining() {
                self.body.clear();
                return Some(Err(BadRecord::Count));
            }
            return None;
        }
        let record = Record::decode(&mut self.body, self.time_base);
        let offset = self.next;
        if record.is_ok() {
            self.left -= 1;
            self.next.0 = self.next.0.saturating_add(1);
        } else {
            self.left = 0;
            self.body.clear();
        }
        Some(record.map(|record| (offset, record)))
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn get_bytes(body: &mut Bytes) -> Result<Bytes, BadRecord> {
    let len = get_varint(body)?;
    take(body, len)
}

fn take(body: &mut Bytes, len: u64) -> Result<Bytes, BadRecord> {
    match usize::try_from(len) {
        Ok(len) if len <= body.len() => Ok(body.split_to(len)),
        _ => Err(BadRecord::Truncated),
    }
}
