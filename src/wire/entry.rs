//! An entry of a shard's log: what replicas copy, in one order, byte for byte.
//!
//! ```text
//! offset  type  field
//!      0  u32   length of the body
//!      4  u32   CRC-32C: of a records body its first 20 bytes (they hold the batch's own checksum of the rest), else of the whole body
//!      8  u8    version, 1
//!      9  u8    kind
//!     10  u8    flags: bit 0 required (a replica that does not know the kind halts), the others 0
//!     11  u8    0
//!     12  u16   shard
//!     14  u16   0
//!     16  u64   lsn
//!     24  u64   epoch
//!     32  u64   chain: XXH3-64 of bytes 0-31 and 40-51, seeded by the chain of the entry before (0 for the first)
//!     40  u64   topic
//!     48  u32   partition of the topic
//!     52        body
//! ```
//! All numbers are big-endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::batch::{self, BATCH_STAMP_LEN, BadBatch, BatchHeader};
use crate::{
    limits::BATCH_LEN_MAX,
    types::{
        Epoch, Incarnation, Lsn, NodeId, Offset, PartitionId, ProducerId, ShardId, Timestamp,
        TopicId,
    },
};

/// Length of the header before the body.
pub const ENTRY_HEADER_LEN: usize = 52;
/// Longest entry.
pub const ENTRY_LEN_MAX: usize = ENTRY_HEADER_LEN + BATCH_LEN_MAX;
const VERSION: u8 = 1;
const REQUIRED: u8 = 1;

/// What an entry is. Numbers 7 to 10 are kept for group positions, group generations, named producers and barriers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum EntryKind {
    /// A record batch of one partition.
    Records = 1,
    /// The first entry of an epoch: it makes every epoch visible in the log.
    EpochStart = 2,
    /// A producer of one partition is forgotten.
    ProducerExpire = 3,
    /// Records of one partition before an offset are dropped.
    Trim = 4,
    /// A partition begins.
    PartitionCreate = 5,
    /// A partition ends with all that is in it.
    PartitionDrop = 6,
}

impl EntryKind {
    fn from_code(code: u8) -> Option<Self> {
        [
            Self::Records,
            Self::EpochStart,
            Self::ProducerExpire,
            Self::Trim,
            Self::PartitionCreate,
            Self::PartitionDrop,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == code)
    }
}

/// The header of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// Whose log.
    pub shard: ShardId,
    /// Where in it.
    pub lsn: Lsn,
    /// Under which primary.
    pub epoch: Epoch,
    /// What it is.
    pub kind: EntryKind,
    /// Checksum of this entry and all before it.
    pub chain: u64,
    /// Which partition; zeros where the entry concerns none.
    pub partition: PartitionId,
    /// Checksum of the body.
    pub body_crc: u32,
    /// Length of the body.
    pub body_len: u32,
}

/// An entry: header and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The header.
    pub header: EntryHeader,
    /// The body, as its kind says.
    pub body: Bytes,
}

/// Body of [`EntryKind::EpochStart`], in CBOR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochStart {
    /// The primary.
    pub primary: NodeId,
    /// Its boot.
    pub incarnation: Incarnation,
    /// The commit set at the time.
    pub set: Vec<NodeId>,
    /// The primary's clock.
    pub time: Timestamp,
}

/// Why bytes are not an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    /// The bytes end inside.
    #[error("log entry needs {want} bytes, there are {len}")]
    Length {
        /// The bytes that there are.
        len: usize,
        /// The bytes that it should have.
        want: usize,
    },
    /// Written by a newer program.
    #[error("log entry has version {0}, this program knows version {VERSION}")]
    Version(u8),
    /// A kind that a newer program wrote and that may not be skipped.
    #[error(
        "log entry has kind {0}, which this program does not know: it was written by a newer one"
    )]
    Kind(u8),
    /// A flag or filler that this version does not know.
    #[error("log entry has unknown flags")]
    Flags,
    /// The body changed on disk or on its way.
    #[error("log entry checksum does not match its body")]
    Checksum,
    /// The body is not what its kind says.
    #[error("log entry body is malformed")]
    Body,
    /// The batch inside is bad.
    #[error(transparent)]
    Batch(#[from] BadBatch),
    /// It does not follow the entry before it.
    #[error(
        "log entry {found} of shard {shard} does not follow the one before it (expected {want})"
    )]
    Chain {
        /// The shard.
        shard: ShardId,
        /// The entry's position.
        found: Lsn,
        /// The position that was expected.
        want: Lsn,
    },
}

impl EntryHeader {
    /// Reads the header at the front of `bytes`.
    ///
    /// # Errors
    /// [`BadEntry`] for what no writer of this version makes.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, BadEntry> {
        if bytes.len() < ENTRY_HEADER_LEN {
            return Err(BadEntry::Length { len: bytes.len(), want: ENTRY_HEADER_LEN });
        }
        let body_len = bytes.get_u32();
        let body_crc = bytes.get_u32();
        let (version, kind, flags, zero) =
            (bytes.get_u8(), bytes.get_u8(), bytes.get_u8(), bytes.get_u8());
        if version != VERSION {
            return Err(BadEntry::Version(version));
        }
        let kind = EntryKind::from_code(kind).ok_or(BadEntry::Kind(kind))?;
        let shard = ShardId(bytes.get_u16());
        if flags != REQUIRED || zero != 0 || bytes.get_u16() != 0 {
            return Err(BadEntry::Flags);
        }
        if body_len as usize > BATCH_LEN_MAX {
            return Err(BadEntry::Length { len: body_len as usize, want: BATCH_LEN_MAX });
        }
        Ok(Self {
            shard,
            lsn: Lsn(bytes.get_u64()),
            epoch: Epoch(bytes.get_u64()),
            kind,
            chain: bytes.get_u64(),
            partition: PartitionId { topic: TopicId(bytes.get_u64()), index: bytes.get_u32() },
            body_crc,
            body_len,
        })
    }

    /// Length of header and body.
    #[must_use]
    pub fn entry_len(&self) -> usize {
        ENTRY_HEADER_LEN + self.body_len as usize
    }

    /// Checks the body that follows this header against its checksums, a batch to its last byte.
    ///
    /// # Errors
    /// [`BadEntry::Checksum`] or [`BadEntry::Batch`].
    pub fn check_body(&self, body: &[u8]) -> Result<(), BadEntry> {
        if body_crc(self.kind, body) != self.body_crc {
            return Err(BadEntry::Checksum);
        }
        if self.kind == EntryKind::Records {
            batch::check(body)?;
        }
        Ok(())
    }

    /// The chain value that this header must carry after an entry with chain `prev`.
    #[must_use]
    pub fn chain_after(&self, prev: u64) -> u64 {
        let bytes = self.bytes();
        let mut covered = [0; ENTRY_HEADER_LEN - 8];
        covered[..32].copy_from_slice(&bytes[..32]);
        covered[32..].copy_from_slice(&bytes[40..]);
        xxhash_rust::xxh3::xxh3_64_with_seed(&covered, prev)
    }

    fn bytes(&self) -> [u8; ENTRY_HEADER_LEN] {
        let mut bytes = [0; ENTRY_HEADER_LEN];
        let mut out = &mut bytes[..];
        out.put_u32(self.body_len);
        out.put_u32(self.body_crc);
        out.put_u8(VERSION);
        out.put_u8(self.kind as u8);
        out.put_u8(REQUIRED);
        out.put_u8(0);
        out.put_u16(self.shard.0);
        out.put_u16(0);
        out.put_u64(self.lsn.0);
        out.put_u64(self.epoch.0);
        out.put_u64(self.chain);
        out.put_u64(self.partition.topic.0);
        out.put_u32(self.partition.index);
        bytes
    }
}

/// Where an entry goes: everything that its shard decides about it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Whose log.
    pub shard: ShardId,
    /// Where in it.
    pub lsn: Lsn,
    /// Under which primary.
    pub epoch: Epoch,
    /// Chain of the entry before.
    pub prev_chain: u64,
}

impl Entry {
    /// Makes an entry of a body that its shard has ordered. A records body is stamped before.
    ///
    /// # Panics
    /// If the body is larger than a batch may be: it was checked when it came.
    #[must_use]
    pub fn seal(place: Place, kind: EntryKind, partition: PartitionId, body: Bytes) -> Self {
        assert!(body.len() <= BATCH_LEN_MAX, "an entry's body is at most a batch");
        let mut header = EntryHeader {
            shard: place.shard,
            lsn: place.lsn,
            epoch: place.epoch,
            kind,
            chain: 0,
            partition,
            body_crc: body_crc(kind, &body),
            body_len: u32::try_from(body.len()).unwrap_or(u32::MAX),
        };
        header.chain = header.chain_after(place.prev_chain);
        Self { header, body }
    }

    /// Reads the entry at the front of `bytes` and checks its body against its checksums.
    ///
    /// # Errors
    /// [`BadEntry`], which names what is wrong.
    pub fn decode(bytes: &Bytes) -> Result<Self, BadEntry> {
        let header = EntryHeader::decode(bytes)?;
        let want = header.entry_len();
        if bytes.len() < want {
            return Err(BadEntry::Length { len: bytes.len(), want });
        }
        header.check_body(&bytes[ENTRY_HEADER_LEN..want])?;
        Ok(Self { header, body: bytes.slice(ENTRY_HEADER_LEN..want) })
    }

    /// Appends header and body to `out`.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_slice(&self.header.bytes());
        out.put_slice(&self.body);
    }

    /// The header of the batch inside.
    ///
    /// # Errors
    /// [`BadEntry::Body`] when the entry holds no records, [`BadEntry::Batch`] when the batch is bad.
    pub fn batch_header(&self) -> Result<BatchHeader, BadEntry> {
        if self.header.kind != EntryKind::Records {
            return Err(BadEntry::Body);
        }
        Ok(BatchHeader::decode(&self.body)?)
    }

    /// The new start of a [`EntryKind::Trim`].
    ///
    /// # Errors
    /// [`BadEntry::Body`] when the body is not 8 bytes.
    pub fn trim_start(&self) -> Result<Offset, BadEntry> {
        let bytes = self.body[..].try_into().map_err(|_| BadEntry::Body)?;
        Ok(Offset(u64::from_be_bytes(bytes)))
    }

    /// The producer of a [`EntryKind::ProducerExpire`].
    ///
    /// # Errors
    /// [`BadEntry::Body`] when the body is not 16 bytes.
    pub fn expired_producer(&self) -> Result<ProducerId, BadEntry> {
        let bytes = self.body[..].try_into().map_err(|_| BadEntry::Body)?;
        Ok(ProducerId(u128::from_be_bytes(bytes)))
    }
}

/// The body of a [`EntryKind::Trim`].
#[must_use]
pub fn trim_body(start: Offset) -> Bytes {
    Bytes::copy_from_slice(&start.0.to_be_bytes())
}

/// The body of a [`EntryKind::ProducerExpire`].
#[must_use]
pub fn expire_body(producer: ProducerId) -> Bytes {
    Bytes::copy_from_slice(&producer.0.to_be_bytes())
}

impl EpochStart {
    /// The body of a [`EntryKind::EpochStart`].
    #[must_use]
    pub fn body(&self) -> Bytes {
        let mut out = BytesMut::new();
        super::cbor::put(self, &mut out);
        out.freeze()
    }
}

fn body_crc(kind: EntryKind, body: &[u8]) -> u32 {
    match kind {
        EntryKind::Records => crc32c::crc32c(&body[..body.len().min(BATCH_STAMP_LEN)]),
        _ => crc32c::crc32c(body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        types::Sequence,
        wire::{BatchBuilder, Compression, Record, stamp},
    };

    const PLACE: Place = Place { shard: ShardId(3), lsn: Lsn(4), epoch: Epoch(5), prev_chain: 6 };
    const PARTITION: PartitionId = PartitionId { topic: TopicId(7), index: 8 };

    fn records() -> Entry {
        let mut builder = BatchBuilder::new(1000);
        builder.push(&Record::new("a value")).expect("fits");
        let mut batch = builder.finish(Compression::None, ProducerId(1), Sequence(2)).to_vec();
        stamp(&mut batch, Offset(100), Timestamp(200));
        Entry::seal(PLACE, EntryKind::Records, PARTITION, batch.into())
    }

    fn encoded(entry: &Entry) -> Vec<u8> {
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        bytes
    }

    #[test]
    fn golden_bytes() {
        let entry = Entry::seal(PLACE, EntryKind::Trim, PARTITION, trim_body(Offset(9)));
        let found: String = encoded(&entry).iter().map(|b| format!("{b:02x}")).collect();
        let want = "00000008".to_owned() // body length
            + "f49a6946" // CRC-32C of the body
            + "01040100" // version, kind, required, 0
            + "00030000" // shard, 0
            + "0000000000000004" // lsn
            + "0000000000000005" // epoch
            + "a57a25822fec5659" // chain
            + "0000000000000007" // topic
            + "00000008" // partition
            + "0000000000000009"; // body: the new start
        assert_eq!(found, want);
    }

    #[test]
    fn an_entry_survives_its_bytes() {
        let entry = records();
        let read = Entry::decode(&encoded(&entry).into()).expect("own work");
        assert_eq!(read, entry);
        assert_eq!(read.header.chain, read.header.chain_after(6));
        assert_ne!(read.header.chain, read.header.chain_after(7));
        assert_eq!(read.batch_header().expect("records").end_offset(), Offset(101));
    }

    #[test]
    fn any_flipped_bit_is_noticed_by_checksum_or_chain() {
        let good = encoded(&records());
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let bad = Entry::decode(&bad.into());
                let missed = bad.is_ok_and(|e| e.header.chain == e.header.chain_after(6));
                assert!(!missed, "byte {at} bit {bit}");
            }
        }
    }
}
