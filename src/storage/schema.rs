//! The tables of `data.redb`, each key and value byte by byte. All numbers are big-endian.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | `format` u32, `disk` u128, `shards` u16, `clean` u8 |
//! | `rows` | row number | log entries, whole, in commit order |
//! | `index` | topic, partition, base offset | entries of [`IndexEntry`], 32 bytes each |
//! | `state` | shard, kind, key | opaque: applied state, handed over by the shard |
//! | `log_index` | shard, lsn | pairs of u64: the first lsn of the shard in a row, and the row |
//! | `checkpoint` | tag, number, number | 0: [`LogInfo`]; 1, shard: [`ShardInfo`]; 2, topic, partition: [`Facts`] |
//! | | | 3, shard: [`LogPoint`], where the log starts; 4, shard: [`ReplicaInfo`] |

use bytes::{Buf, BufMut};
use redb::TableDefinition;

use super::{
    error::StoreError,
    index::IndexEntry,
    shard_log::{Cut, LogPoint},
    view::{Facts, Point},
};
use crate::types::{Epoch, Lsn, Offset, PartitionId, ShardId, Timestamp, TopicId};

/// Version of both databases. A change that an older program would misread raises it.
pub const FORMAT_VERSION: u32 = 1;
/// A checkpoint is due after so many entries: bounds the memory of what is derived, and the replay at open.
pub const CHECKPOINT_ENTRIES: usize = 16 * 1024;
/// A checkpoint is due after so many bytes of log: a slow disk reads them in a second or two at open.
pub const CHECKPOINT_BYTES: usize = 64 * 1024 * 1024;
/// Index entries of one row of `index`: 1 KiB, of which a checkpoint rewrites at most the last one of a partition.
pub(super) const INDEX_CHUNK_MAX: usize = 32;

pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
pub(super) const ROWS: TableDefinition<u64, &[u8]> = TableDefinition::new("rows");
pub(super) const INDEX: TableDefinition<IndexKey, &[u8]> = TableDefinition::new("index");
pub(super) const STATE: TableDefinition<StateKey, &[u8]> = TableDefinition::new("state");
pub(super) const LOG_INDEX: TableDefinition<LogIndexKey, &[u8]> = TableDefinition::new("log_index");
pub(super) const CHECKPOINT: TableDefinition<(u8, u64, u32), &[u8]> =
    TableDefinition::new("checkpoint");

/// Topic, partition, base offset.
pub(super) type IndexKey = (u64, u32, u64);
/// Shard, first lsn.
pub(super) type LogIndexKey = (u16, u64);
/// Shard, kind, key.
pub(super) type StateKey = (u16, u8, &'static [u8]);

pub(super) const LOG_KEY: (u8, u64, u32) = (0, 0, 0);

pub(super) fn shard_key(shard: ShardId) -> (u8, u64, u32) {
    (1, u64::from(shard.0), 0)
}

pub(super) fn start_key(shard: ShardId) -> (u8, u64, u32) {
    (3, u64::from(shard.0), 0)
}

pub(super) fn replica_key(shard: ShardId) -> (u8, u64, u32) {
    (4, u64::from(shard.0), 0)
}

pub(super) fn facts_key(partition: PartitionId) -> (u8, u64, u32) {
    (2, partition.topic.0, partition.index)
}

pub(super) fn facts_partition(key: (u8, u64, u32)) -> PartitionId {
    PartitionId { topic: TopicId(key.1), index: key.2 }
}

pub(super) fn index_key(partition: PartitionId, base: Offset) -> IndexKey {
    (partition.topic.0, partition.index, base.0)
}

/// What a checkpoint says about the log as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LogInfo {
    /// Rows below this one are in the index and in the facts.
    pub(super) next_row: u64,
    /// Bytes that the collector could free, as far as known.
    pub(super) dead: u64,
}

/// What a checkpoint says about a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ShardInfo {
    pub(super) end: Lsn,
    pub(super) chain: u64,
    pub(super) applied: Lsn,
    /// The row that holds the entry at `applied`.
    pub(super) replay_row: u64,
    pub(super) epochs: Vec<(Epoch, Lsn)>,
}

/// What a checkpoint says about a shard as one of several replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ReplicaInfo {
    pub(super) promised: Epoch,
    pub(super) high_watermark: Lsn,
    /// Epoch of the last entry.
    pub(super) last_epoch: Epoch,
    pub(super) installing: bool,
    pub(super) cuts: Vec<Cut>,
}

impl LogInfo {
    pub(super) fn encode(&self) -> Vec<u8> {
        [self.next_row.to_be_bytes(), self.dead.to_be_bytes()].concat()
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, StoreError> {
        need(bytes, 16, "log")?;
        Ok(Self { next_row: bytes.get_u64(), dead: bytes.get_u64() })
    }
}

impl ShardInfo {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + 16 * self.epochs.len());
        for number in [self.end.0, self.chain, self.applied.0, self.replay_row] {
            out.put_u64(number);
        }
        for (epoch, start) in &self.epochs {
            out.put_u64(epoch.0);
            out.put_u64(start.0);
        }
        out
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, StoreError> {
        need(bytes, 32 + bytes.len().saturating_sub(32) / 16 * 16, "shard")?;
        let (end, chain) = (Lsn(bytes.get_u64()), bytes.get_u64());
        let (applied, replay_row) = (Lsn(bytes.get_u64()), bytes.get_u64());
        let mut epochs = Vec::new();
        while bytes.has_remaining() {
            epochs.push((Epoch(bytes.get_u64()), Lsn(bytes.get_u64())));
        }
        Ok(Self { end, chain, applied, replay_row, epochs })
    }
}

impl ReplicaInfo {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(25 + 16 * self.cuts.len());
        for number in [self.promised.0, self.high_watermark.0, self.last_epoch.0] {
            out.put_u64(number);
        }
        out.put_u8(u8::from(self.installing));
        for cut in &self.cuts {
            out.put_u64(cut.lsn.0);
            out.put_u64(cut.row);
        }
        out
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, StoreError> {
        need(bytes, 25 + bytes.len().saturating_sub(25) / 16 * 16, "replica")?;
        let (promised, high_watermark) = (Epoch(bytes.get_u64()), Lsn(bytes.get_u64()));
        let (last_epoch, installing) = (Epoch(bytes.get_u64()), bytes.get_u8() != 0);
        let mut cuts = Vec::new();
        while bytes.has_remaining() {
            cuts.push(Cut { lsn: Lsn(bytes.get_u64()), row: bytes.get_u64() });
        }
        Ok(Self { promised, high_watermark, last_epoch, installing, cuts })
    }
}

impl LogPoint {
    pub(super) fn encode(&self) -> Vec<u8> {
        [self.lsn.0, self.epoch.0, self.chain].map(u64::to_be_bytes).concat()
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, StoreError> {
        need(bytes, 24, "log point")?;
        let (lsn, epoch) = (Lsn(bytes.get_u64()), Epoch(bytes.get_u64()));
        Ok(Self { lsn, epoch, chain: bytes.get_u64() })
    }
}

/// Pairs of a value of the log index: 1 KiB, of which a checkpoint rewrites at most the last one of a shard.
pub(super) const LOG_INDEX_CHUNK_MAX: usize = 64;

pub(super) fn encode_log_index(pairs: &[(Lsn, u64)]) -> Vec<u8> {
    pairs.iter().flat_map(|(lsn, row)| [lsn.0, *row]).flat_map(u64::to_be_bytes).collect()
}

pub(super) fn decode_log_index(mut bytes: &[u8]) -> Result<Vec<(Lsn, u64)>, StoreError> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(16) {
        return Err(StoreError::Corrupted(format!("log index row of {} bytes", bytes.len())));
    }
    let mut pairs = Vec::with_capacity(bytes.len() / 16);
    while bytes.has_remaining() {
        pairs.push((Lsn(bytes.get_u64()), bytes.get_u64()));
    }
    Ok(pairs)
}

const FACTS_LEN: usize = 2 + 1 + 24 + 24 + 16 + 16 + 8;
/// As they were before replicas were known.
const FACTS_LEN_OLD: usize = FACTS_LEN - 8;

pub(super) fn encode_facts(facts: &Facts) -> Vec<u8> {
    let mut out = Vec::with_capacity(FACTS_LEN);
    out.put_u16(facts.shard.0);
    out.put_u8(u8::from(facts.dropped));
    for point in [&facts.start, &facts.kept] {
        out.put_u64(point.offset.0);
        out.put_u64(point.bytes);
        out.put_u64(point.row);
    }
    let times = [facts.first_time.0, facts.time_max.0];
    for number in [facts.end.0, facts.bytes, times[0], times[1], facts.created.0] {
        out.put_u64(number);
    }
    out
}

pub(super) fn decode_facts(mut bytes: &[u8]) -> Result<Facts, StoreError> {
    let old = bytes.len() == FACTS_LEN_OLD;
    need(bytes, if old { FACTS_LEN_OLD } else { FACTS_LEN }, "partition")?;
    let (shard, dropped) = (ShardId(bytes.get_u16()), bytes.get_u8() != 0);
    let mut point =
        || Point { offset: Offset(bytes.get_u64()), bytes: bytes.get_u64(), row: bytes.get_u64() };
    let (start, kept) = (point(), point());
    Ok(Facts {
        shard,
        dropped,
        start,
        kept,
        end: Offset(bytes.get_u64()),
        bytes: bytes.get_u64(),
        first_time: Timestamp(bytes.get_u64()),
        time_max: Timestamp(bytes.get_u64()),
        created: if old { Lsn(0) } else { Lsn(bytes.get_u64()) },
    })
}

const INDEX_ENTRY_LEN: usize = 32;

pub(super) fn encode_index(entries: &[IndexEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(entries.len() * INDEX_ENTRY_LEN);
    for entry in entries {
        for number in [entry.base.0, entry.row, entry.time_before.0, entry.bytes_before] {
            out.put_u64(number);
        }
    }
    out
}

pub(super) fn decode_index(mut bytes: &[u8]) -> Result<Vec<IndexEntry>, StoreError> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(INDEX_ENTRY_LEN) {
        return Err(StoreError::Corrupted(format!("index row of {} bytes", bytes.len())));
    }
    let mut entries = Vec::with_capacity(bytes.len() / INDEX_ENTRY_LEN);
    while bytes.has_remaining() {
        entries.push(IndexEntry {
            base: Offset(bytes.get_u64()),
            row: bytes.get_u64(),
            time_before: Timestamp(bytes.get_u64()),
            bytes_before: bytes.get_u64(),
        });
    }
    Ok(entries)
}

pub(super) fn array<const N: usize>(bytes: &[u8], what: &str) -> Result<[u8; N], StoreError> {
    bytes.try_into().map_err(|_| bad_length(bytes.len(), N, what))
}

fn need(bytes: &[u8], want: usize, what: &str) -> Result<(), StoreError> {
    if bytes.len() == want { Ok(()) } else { Err(bad_length(bytes.len(), want, what)) }
}

fn bad_length(len: usize, want: usize, what: &str) -> StoreError {
    StoreError::Corrupted(format!("{what} value of {len} bytes, expected {want}"))
}
