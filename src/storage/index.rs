//! From offset, time or bytes to the row: one entry per partition and row, in chunks on disk and a tail in memory.

use redb::{ReadOnlyTable, ReadableTable};

use super::{
    error::StoreError,
    schema::{IndexKey, decode_index, index_key},
    view::Partition,
};
use crate::types::{Offset, PartitionId, Timestamp};

/// The first batch of a partition in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexEntry {
    /// Its base offset, as of when the row was written.
    pub(super) base: Offset,
    pub(super) row: u64,
    /// The latest append time of all batches before it: it never falls, so it can be searched.
    pub(super) time_before: Timestamp,
    /// Bytes of all batches before it.
    pub(super) bytes_before: u64,
}

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Key {
    /// The batch that holds this offset.
    Offset(Offset),
    /// The batch that holds this byte, counted since the beginning.
    Bytes(u64),
    /// The first batch that was taken at this time or later.
    Time(Timestamp),
}

impl Key {
    /// Tells whether what is looked for lies in the row of `entry` or behind.
    fn from(self, entry: &IndexEntry) -> bool {
        match self {
            Self::Offset(offset) => entry.base <= offset,
            Self::Bytes(bytes) => entry.bytes_before <= bytes,
            Self::Time(time) => entry.time_before < time,
        }
    }
}

/// Most index entries copied out of the tail at a time: a read of the largest size seldom needs more.
const RUN_MAX: usize = 64;

/// Looks in the tail of the index: entries of consecutive rows from the wanted one on. None: it lies before, on disk.
pub(super) fn seek_tail(partition: &Partition, key: Key) -> Option<Vec<IndexEntry>> {
    let behind = partition.tail.partition_point(|entry| key.from(entry));
    let at = behind.checked_sub(1)?;
    let to = partition.tail.len().min(at + RUN_MAX);
    Some(partition.tail[at..to].to_vec())
}

/// Looks in the part of the index that is on disk; all of it lies below `end`.
/// Takes the first entry when even that one lies behind the key.
pub(super) fn seek_disk(
    table: &ReadOnlyTable<IndexKey, &'static [u8]>,
    id: PartitionId,
    key: Key,
    end: Offset,
) -> Result<Vec<IndexEntry>, StoreError> {
    let chunk = match key {
        Key::Offset(offset) => chunk_at(table, id, offset)?,
        Key::Bytes(_) | Key::Time(_) => bisect(table, id, key, end)?,
    };
    let chunk = match chunk {
        Some(chunk) => chunk,
        None => match table.range(index_key(id, Offset(0))..=index_key(id, end))?.next() {
            Some(item) => decode_index(item?.1.value())?,
            None => return Ok(Vec::new()),
        },
    };
    let at = chunk.partition_point(|entry| key.from(entry)).saturating_sub(1);
    Ok(chunk[at..].to_vec())
}

/// The index entry that follows `base` on disk.
pub(super) fn following(
    table: &ReadOnlyTable<IndexKey, &'static [u8]>,
    id: PartitionId,
    base: Offset,
) -> Result<Option<IndexEntry>, StoreError> {
    if let Some(chunk) = chunk_at(table, id, base)?
        && let Some(entry) = chunk.into_iter().find(|entry| entry.base > base)
    {
        return Ok(Some(entry));
    }
    match table.range(index_key(id, Offset(base.0 + 1))..=index_key(id, Offset(u64::MAX)))?.next() {
        Some(item) => Ok(decode_index(item?.1.value())?.first().copied()),
        None => Ok(None),
    }
}

/// The last chunk that begins at or before `offset`.
pub(super) fn chunk_at(
    table: &impl ReadableTable<IndexKey, &'static [u8]>,
    id: PartitionId,
    offset: Offset,
) -> Result<Option<Vec<IndexEntry>>, StoreError> {
    match table.range(index_key(id, Offset(0))..=index_key(id, offset))?.next_back() {
        Some(item) => Ok(Some(decode_index(item?.1.value())?)),
        None => Ok(None),
    }
}

/// The last chunk whose first entry `key` does not lie before. Chunks are keyed by offset, so another order is searched
/// by halving the range of offsets.
fn bisect(
    table: &ReadOnlyTable<IndexKey, &'static [u8]>,
    id: PartitionId,
    key: Key,
    end: Offset,
) -> Result<Option<Vec<IndexEntry>>, StoreError> {
    let (mut low, mut high) = (0, end.0);
    let mut found = None;
    while low <= high {
        let middle = low + (high - low) / 2;
        match chunk_at(table, id, Offset(middle))? {
            Some(chunk) if !key.from(&chunk[0]) => match chunk[0].base.0.checked_sub(1) {
                Some(before) => high = before,
                None => break,
            },
            chunk => {
                found = chunk.or(found);
                low = middle + 1;
            }
        }
    }
    Ok(found)
}
