//! The record batch: the unit on the wire and on disk, built by the producer and never rebuilt.
//!
//! ```text
//! offset  type  field
//!      0  u64   base offset   set by the primary, outside the checksum
//!      8  u64   append time   set by the primary, outside the checksum (ms since 1970)
//!     16  u32   CRC-32C of all that follows
//!     20  u8    version, 1
//!     21  u8    flags: bits 0-1 compression (0 none, 1 lz4, 2 zstd), the others 0
//!     22  u16   0
//!     24  u32   records, at least 1
//!     28  u32   length of the body once decompressed
//!     32  u128  producer id, 0 for none
//!     48  u64   producer sequence: number of the batch among those of this producer in this partition
//!     56  u64   smallest record timestamp (ms since 1970)
//!     64  u64   largest record timestamp
//!     72  u32   length of the body
//!     76        body
//! ```
//! All numbers are big-endian. The body holds the records one after the other (see `record.rs`).

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    compression::{Compression, Uncompressible},
    record::{BadRecord, Record, Records},
};
use crate::{
    limits::{BATCH_BODY_LEN_MAX, BATCH_LEN_MAX, BATCH_RECORDS_MAX, RECORD_LEN_MAX},
    types::{Offset, ProducerId, Sequence, Timestamp},
};

/// Length of the header before the body.
pub const BATCH_HEADER_LEN: usize = 76;
/// Length of the part that the primary sets, with the checksum: what an entry of the log checks by itself.
pub const BATCH_STAMP_LEN: usize = 20;
const VERSION: u8 = 1;

/// A batch whose header and checksum were found right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    header: BatchHeader,
    bytes: Bytes,
}

/// The fields of a batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record; 0 until the primary has set it.
    pub base_offset: Offset,
    /// When the primary took the batch; 0 until it has.
    pub append_time: Timestamp,
    /// CRC-32C of everything behind it.
    pub crc: u32,
    /// How the body is compressed.
    pub compression: Compression,
    /// Number of records, at least 1.
    pub records: u32,
    /// Length of the body once decompressed.
    pub body_len_raw: u32,
    /// Who wrote it, for deduplication.
    pub producer: ProducerId,
    /// Its number among the batches of this producer in this partition.
    pub sequence: Sequence,
    /// Smallest timestamp of a record.
    pub time_min: Timestamp,
    /// Largest timestamp of a record.
    pub time_max: Timestamp,
    /// Length of the body as it lies here.
    pub body_len: u32,
}

/// Why bytes are not a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBatch {
    /// Shorter than its header or than its header says.
    #[error("batch is {len} bytes, its header says {want}")]
    Length {
        /// The bytes that came.
        len: usize,
        /// The bytes that there should be.
        want: usize,
    },
    /// Larger than the limit.
    #[error("batch is {len} bytes, limit is {max}", max = BATCH_LEN_MAX)]
    TooLarge {
        /// The bytes that came.
        len: usize,
    },
    /// Written by a newer or broken program.
    #[error("batch has version {0}, this program knows version {VERSION}")]
    Version(u8),
    /// A flag that this version does not know.
    #[error("batch has unknown flags {0:#04x}")]
    Flags(u8),
    /// No record, or more than the limit.
    #[error("batch has {0} records, allowed are 1 to {max}", max = BATCH_RECORDS_MAX)]
    Records(u32),
    /// Its last record would lie behind the last offset that there is.
    #[error("batch has base offset {0}: its records have no offsets")]
    Offsets(Offset),
    /// A body that would decompress to more than the limit.
    #[error("batch body decompresses to {0} bytes, limit is {max}", max = BATCH_BODY_LEN_MAX)]
    BodyTooLarge(u32),
    /// The bytes changed on their way or on disk.
    #[error("batch checksum is {found:08x}, its header says {want:08x}")]
    Checksum {
        /// As computed.
        found: u32,
        /// As written.
        want: u32,
    },
    /// The body does not decompress.
    #[error(transparent)]
    Compression(#[from] Uncompressible),
    /// A record is not well formed.
    #[error(transparent)]
    Record(#[from] BadRecord),
}

impl BatchHeader {
    /// Reads the header at the front of `bytes`, and checks all but the checksum.
    ///
    /// # Errors
    /// [`BadBatch`] for anything that no writer of this version makes.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadBatch> {
        let Some(h) = bytes.first_chunk::<BATCH_HEADER_LEN>() else {
            return Err(BadBatch::Length { len: bytes.len(), want: BATCH_HEADER_LEN });
        };
        if h[20] != VERSION {
            return Err(BadBatch::Version(h[20]));
        }
        let compression = Compression::from_code(h[21] & 0b11).filter(|_| h[21] <= 0b11);
        let (Some(compression), [0, 0]) = (compression, [h[22], h[23]]) else {
            return Err(BadBatch::Flags(h[21]));
        };
        let header = Self {
            base_offset: Offset(u64_at(h, 0)),
            append_time: Timestamp(u64_at(h, 8)),
            crc: u32_at(h, 16),
            compression,
            records: u32_at(h, 24),
            body_len_raw: u32_at(h, 28),
            producer: ProducerId((u128::from(u64_at(h, 32)) << 64) | u128::from(u64_at(h, 40))),
            sequence: Sequence(u64_at(h, 48)),
            time_min: Timestamp(u64_at(h, 56)),
            time_max: Timestamp(u64_at(h, 64)),
            body_len: u32_at(h, 72),
        };
        if header.records == 0 || header.records > BATCH_RECORDS_MAX {
            return Err(BadBatch::Records(header.records));
        }
        if header.base_offset.0.checked_add(u64::from(header.records)).is_none() {
            return Err(BadBatch::Offsets(header.base_offset));
        }
        if header.body_len_raw as usize > BATCH_BODY_LEN_MAX {
            return Err(BadBatch::BodyTooLarge(header.body_len_raw));
        }
        Ok(header)
    }

    /// The offset behind the batch's last record.
    #[must_use]
    pub fn end_offset(&self) -> Offset {
        Offset(self.base_offset.0.saturating_add(u64::from(self.records)))
    }

    /// Length of the whole batch.
    #[must_use]
    pub fn len(&self) -> usize {
        BATCH_HEADER_LEN + self.body_len as usize
    }

    /// Never: a batch has at least its header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl Batch {
    /// Checks length, limits and checksum; for a body that is not compressed, each record too.
    ///
    /// # Errors
    /// [`BadBatch`], which names what is wrong.
    pub fn parse(bytes: Bytes) -> Result<Self, BadBatch> {
        let header = check(&bytes)?;
        Ok(Self { header, bytes })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch as it lies on the wire and on disk.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The records, decompressed.
    ///
    /// # Errors
    /// [`BadBatch::Compression`] when the body does not decompress to the length that the header says.
    pub fn records(&self) -> Result<Records, BadBatch> {
        let body = self.bytes.slice(BATCH_HEADER_LEN..);
        let raw = self.header.compression.decompress(body, self.header.body_len_raw as usize)?;
        Ok(Records::new(raw, &self.header))
    }
}

/// Checks a batch as [`Batch::parse`] does, without taking it.
///
/// # Errors
/// [`BadBatch`], which names what is wrong.
pub fn check(bytes: &[u8]) -> Result<BatchHeader, BadBatch> {
    if bytes.len() > BATCH_LEN_MAX {
        return Err(BadBatch::TooLarge { len: bytes.len() });
    }
    let header = BatchHeader::decode(bytes)?;
    if bytes.len() != header.len() {
        return Err(BadBatch::Length { len: bytes.len(), want: header.len() });
    }
    let found = crc32c::crc32c(&bytes[BATCH_STAMP_LEN..]);
    if found != header.crc {
        return Err(BadBatch::Checksum { found, want: header.crc });
    }
    Ok(header)
}

/// Writes what the primary decides into a batch. The checksum does not cover it.
///
/// # Panics
/// If `batch` is shorter than a header: only a checked batch comes here.
pub fn stamp(batch: &mut [u8], base_offset: Offset, append_time: Timestamp) {
    batch[0..8].copy_from_slice(&base_offset.0.to_be_bytes());
    batch[8..16].copy_from_slice(&append_time.0.to_be_bytes());
}

/// The same batch under another producer and sequence: for a batch that is known not to be stored under the old ones.
///
/// # Panics
/// If `batch` is shorter than a header: only a finished batch comes here.
#[must_use]
pub fn readdress(batch: &[u8], producer: ProducerId, sequence: Sequence) -> Bytes {
    let mut out = BytesMut::from(batch);
    out[32..48].copy_from_slice(&producer.0.to_be_bytes());
    out[48..56].copy_from_slice(&sequence.0.to_be_bytes());
    let crc = crc32c::crc32c(&out[BATCH_STAMP_LEN..]);
    out[16..20].copy_from_slice(&crc.to_be_bytes());
    out.freeze()
}

/// Collects records into one batch.
#[derive(Debug)]
pub struct BatchBuilder {
    body: BytesMut,
    records: u32,
    time_base: Timestamp,
    time_max: Timestamp,
    len_max: usize,
}

/// What became of a record that was offered to a builder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is in.
    In,
    /// It does not fit beside those that are in: finish this batch and offer it again.
    Full,
}

impl BatchBuilder {
    /// A builder of batches of about `len_max` bytes, at most the limit of the protocol.
    #[must_use]
    pub fn new(len_max: usize) -> Self {
        Self {
            body: BytesMut::new(),
            records: 0,
            time_base: Timestamp(0),
            time_max: Timestamp(0),
            len_max: len_max.clamp(BATCH_HEADER_LEN + 1, BATCH_LEN_MAX),
        }
    }

    /// Adds a record. A record that is larger than the wanted batch gets a batch of its own.
    ///
    /// # Errors
    /// [`BadRecord`] when it breaks a limit of the protocol.
    pub fn push(&mut self, record: &Record) -> Result<Pushed, BadRecord> {
        let time_base = if self.records == 0 { record.timestamp } else { self.time_base };
        let len = record.len(time_base)?;
        if len > RECORD_LEN_MAX {
            return Err(BadRecord::TooLarge { len });
        }
        if self.records == 0 {
            self.time_base = record.timestamp;
        } else if self.len() + len > self.len_max
            || self.records == BATCH_RECORDS_MAX
            || record.timestamp < self.time_base
        {
            // A record older than the first starts a batch of its own: deltas have no sign.
            return Ok(Pushed::Full);
        }
        record.encode(self.time_base, &mut self.body);
        self.time_max = self.time_max.max(record.timestamp);
        self.records += 1;
        Ok(Pushed::In)
    }

    /// Length of the batch as it would be without compression.
    #[must_use]
    pub fn len(&self) -> usize {
        BATCH_HEADER_LEN + self.body.len()
    }

    /// Length of a batch that is full.
    #[must_use]
    pub fn len_max(&self) -> usize {
        self.len_max
    }

    /// Number of records that are in.
    #[must_use]
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Tells whether no record is in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Ends the batch and leaves the builder empty. A body that compression would make larger stays as it is.
    ///
    /// # Panics
    /// If no record is in.
    pub fn finish(
        &mut self,
        compression: Compression,
        producer: ProducerId,
        sequence: Sequence,
    ) -> Bytes {
        assert!(self.records > 0, "a batch has at least one record");
        let raw = self.body.split().freeze();
        let body_len_raw = len_u32(raw.len());
        let (compression, body) = compression.compress(raw);
        let mut out = BytesMut::with_capacity(BATCH_HEADER_LEN + body.len());
        out.put_bytes(0, BATCH_STAMP_LEN);
        out.put_u8(VERSION);
        out.put_u8(compression.code());
        out.put_u16(0);
        out.put_u32(self.records);
        out.put_u32(body_len_raw);
        out.put_u128(producer.0);
        out.put_u64(sequence.0);
        out.put_u64(self.time_base.0);
        out.put_u64(self.time_max.0);
        out.put_u32(len_u32(body.len()));
        out.put_slice(&body);
        let crc = crc32c::crc32c(&out[BATCH_STAMP_LEN..]);
        out[16..20].copy_from_slice(&crc.to_be_bytes());
        self.records = 0;
        self.time_max = Timestamp(0);
        out.freeze()
    }
}

fn u64_at(h: &[u8; BATCH_HEADER_LEN], at: usize) -> u64 {
    (0..8).fold(0, |n, i| (n << 8) | u64::from(h[at + i]))
}

fn u32_at(h: &[u8; BATCH_HEADER_LEN], at: usize) -> u32 {
    (0..4).fold(0, |n, i| (n << 8) | u32::from(h[at + i]))
}

fn len_u32(len: usize) -> u32 {
    u32::try_from(len)
        .unwrap_or_else(|_| panic!("a batch body of {len} bytes is far past its limit"))
}

#[cfg(test)]
mod tests;
