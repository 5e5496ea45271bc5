//! What the log says about each partition: derived from its entries, held in memory, shared with the readers.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use super::{index::IndexEntry, shard_log::ShardLog};
use crate::{
    types::{Lsn, Offset, PartitionId, ShardId, Timestamp},
    wire::{BatchHeader, EntryHeader, EntryKind, entry::ENTRY_HEADER_LEN},
};

/// The extent of a partition's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The shard that holds it.
    pub shard: ShardId,
    /// The oldest offset that is kept. It may lie inside a batch.
    pub start: Offset,
    /// The offset of the next record, committed by this node or not.
    pub end: Offset,
    /// Stored bytes from the batch of `start` on, entry headers included.
    pub bytes: u64,
    /// When the oldest kept batch was taken; none when nothing is kept.
    pub first_time: Option<Timestamp>,
    /// The latest time at which a batch was taken, kept or not.
    pub last_time: Timestamp,
}

/// A place in a partition's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) offset: Offset,
    /// Bytes of the partition before the batch that holds the offset, since its beginning.
    pub(super) bytes: u64,
    /// The row of that batch; of no meaning at the end of the log.
    pub(super) row: u64,
}

/// What is known of a partition, without its index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) shard: ShardId,
    /// A `PartitionDrop` is in the log, but not applied yet.
    pub(super) dropped: bool,
    /// Readers see what lies from here on.
    pub(super) start: Point,
    /// The collector must keep what lies from here on: the start as of the applied entries.
    pub(super) kept: Point,
    pub(super) end: Offset,
    /// Bytes since the beginning.
    pub(super) bytes: u64,
    pub(super) first_time: Timestamp,
    /// Not lowered when the log is cut.
    pub(super) time_max: Timestamp,
    /// The entry that began it.
    pub(super) created: Lsn,
}

impl Facts {
    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            shard: self.shard,
            start: self.start.offset,
            end: self.end,
            bytes: self.bytes - self.start.bytes,
            first_time: (self.start.offset < self.end).then_some(self.first_time),
            last_time: self.time_max,
        }
    }

    /// Bytes that the collector must keep.
    pub(super) fn live(&self) -> u64 {
        self.bytes - self.kept.bytes
    }
}

/// A partition with the part of its index that is not checkpointed yet.
#[derive(Debug, Default)]
pub(super) struct Partition {
    pub(super) facts: Facts,
    pub(super) tail: Vec<IndexEntry>,
}

/// All partitions of the node.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) partitions: HashMap<PartitionId, Partition>,
    /// Bytes that the collector must keep, over all partitions.
    pub(super) live: u64,
    /// The log of each shard, by number.
    pub(super) shards: Vec<ShardLog>,
    /// Rows that are in the journal, not in the database yet.
    pub(super) waiting: Waiting,
}

/// Rows in memory, by number, each in the parts that came with one commit.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    rows: VecDeque<(u64, Arc<Vec<Bytes>>)>,
}

impl Waiting {
    /// Adds to the last row, or begins one behind it.
    pub(super) fn push(&mut self, row: u64, part: Bytes) {
        match self.rows.back_mut() {
            // A reader may hold the row: it keeps what it saw.
            Some((last, parts)) if *last == row => Arc::make_mut(parts).push(part),
            _ => self.rows.push_back((row, Arc::new(vec![part]))),
        }
    }

    /// The entries of a row, in parts.
    pub(super) fn get(&self, row: u64) -> Option<Arc<Vec<Bytes>>> {
        let at = self.rows.binary_search_by_key(&row, |(number, _)| *number).ok()?;
        Some(Arc::clone(&self.rows[at].1))
    }

    /// All rows, in order.
    pub(super) fn all(&self) -> Vec<(u64, Arc<Vec<Bytes>>)> {
        self.rows.iter().cloned().collect()
    }

    /// The rows before `row` are in the database.
    pub(super) fn forget_before(&mut self, row: u64) {
        while self.rows.pop_front_if(|(number, _)| *number < row).is_some() {}
    }

    /// All rows are in the database.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
    }
}

/// An entry of the log that ends the life of others, once it is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Trim(PartitionId, Offset),
    Drop(PartitionId),
}

impl View {
    /// Takes over what an entry in `row` changes. Returns what it ends: finding a trim's place needs the disk, so that is
    /// left to the caller.
    ///
    /// # Errors
    /// What is wrong with the entry, if it does not fit the partition.
    pub(super) fn apply(
        &mut self,
        row: u64,
        header: &EntryHeader,
        body: &[u8],
    ) -> Result<Option<Ending>, String> {
        let id = header.partition;
        match header.kind {
            EntryKind::Records => {
                let batch = BatchHeader::decode(body).map_err(|e| e.to_string())?;
                let len = (ENTRY_HEADER_LEN + body.len()) as u64;
                let partition = self
                    .partitions
                    .entry(id)
                    .or_insert_with(|| Partition::begun(header, batch.base_offset));
                partition.append(row, &batch, len)?;
                self.live += len;
            }
            EntryKind::PartitionCreate => {
                self.partitions.entry(id).or_insert_with(|| Partition::begun(header, Offset(0)));
            }
            EntryKind::PartitionDrop => {
                if let Some(partition) = self.partitions.get_mut(&id) {
                    partition.facts.dropped = true;
                    return Ok(Some(Ending::Drop(id)));
                }
            }
            EntryKind::Trim => {
                let start =
                    body.try_into().map(u64::from_be_bytes).map_err(|_| "malformed trim")?;
                if self.partitions.contains_key(&id) {
                    return Ok(Some(Ending::Trim(id, Offset(start))));
                }
            }
            EntryKind::EpochStart | EntryKind::ProducerExpire => {}
        }
        Ok(None)
    }

    /// Tells whether a partition is going, but not gone yet.
    pub(super) fn is_dropped(&self, id: PartitionId) -> bool {
        self.partitions.get(&id).is_some_and(|partition| partition.facts.dropped)
    }

    /// The partition, unless it is gone or going, or its shard is half installed.
    pub(super) fn get(&self, id: PartitionId) -> Option<&Partition> {
        let installing = |p: &Partition| self.log(p.facts.shard).is_some_and(|log| log.installing);
        self.partitions.get(&id).filter(|p| !p.facts.dropped && !installing(p))
    }

    /// The log of a shard.
    pub(super) fn log(&self, shard: ShardId) -> Option<&ShardLog> {
        self.shards.get(usize::from(shard.0))
    }
}

impl Partition {
    fn begun(header: &EntryHeader, start: Offset) -> Self {
        Self::starting(header.shard, header.lsn, start)
    }

    pub(super) fn starting(shard: ShardId, created: Lsn, start: Offset) -> Self {
        let point = Point { offset: start, bytes: 0, row: 0 };
        let facts =
            Facts { shard, created, start: point, kept: point, end: start, ..Facts::default() };
        Self { facts, tail: Vec::new() }
    }

    fn append(&mut self, row: u64, batch: &BatchHeader, len: u64) -> Result<(), String> {
        let facts = &mut self.facts;
        if facts.dropped {
            return Err("batch for a dropped partition".into());
        }
        if batch.base_offset != facts.end {
            return Err(format!("batch at offset {}, expected {}", batch.base_offset, facts.end));
        }
        // What an install brings may begin before its start, which lies inside the batch.
        if facts.start.offset >= facts.end {
            facts.start.row = row;
            facts.first_time = batch.append_time;
        }
        if facts.kept.offset >= facts.end {
            facts.kept.row = row;
        }
        if self.tail.last().is_none_or(|last| last.row != row) {
            self.tail.push(IndexEntry {
                base: facts.end,
                row,
                time_before: facts.time_max,
                bytes_before: facts.bytes,
            });
        }
        facts.end = batch.end_offset();
        facts.bytes += len;
        facts.time_max = facts.time_max.max(batch.append_time);
        Ok(())
    }
}
