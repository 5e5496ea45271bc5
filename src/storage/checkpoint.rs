//! Checkpoints: what is derived from the log goes to disk, so that an open need not read all of it.

use std::{
    collections::{HashMap, HashSet},
    sync::{PoisonError, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use redb::{ReadableTable, Table, WriteTransaction};

use super::{
    change::Rewrite,
    error::StoreError,
    index::{IndexEntry, chunk_at},
    schema::{
        CHECKPOINT, INDEX, INDEX_CHUNK_MAX, IndexKey, LOG_INDEX, LOG_INDEX_CHUNK_MAX, LOG_KEY,
        LogIndexKey, LogInfo, STATE, decode_log_index, encode_facts, encode_index,
        encode_log_index, facts_key, index_key, replica_key, shard_key, start_key,
    },
    shard_log::{PendingEnding, ShardLog},
    view::Facts,
    writer::Writer,
};
use crate::types::{Lsn, Offset, PartitionId, ShardId};

/// What a shard hands over at a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardCheckpoint {
    /// Which.
    pub shard: ShardId,
    /// Entries before this one are in the state. Never falls, and is not past the committed end.
    pub applied: Lsn,
    /// Values that changed since the last checkpoint: kind, key, value.
    pub put: Vec<(u8, Bytes, Bytes)>,
    /// Values that are gone: kind and key. Deleted before `put` is written.
    pub delete: Vec<(u8, Bytes)>,
}

/// What the applied entries end.
#[derive(Default)]
struct Ended {
    trimmed: HashMap<PartitionId, super::view::Point>,
    dropped: HashSet<PartitionId>,
}

pub(super) type IndexTable<'txn> = Table<'txn, IndexKey, &'static [u8]>;

impl Writer {
    /// Writes what is derived from the log, and the state that the shards hand over, in one commit. A shard that is not
    /// named keeps what it handed over before.
    ///
    /// # Errors
    /// [`StoreError`]; every later call fails too.
    ///
    /// # Panics
    /// If a shard has applied less than it had before, or more than is committed.
    pub fn checkpoint(&mut self, mut shards: Vec<ShardCheckpoint>) -> Result<(), StoreError> {
        // What a shard knew before its install began means nothing.
        shards.retain(|handed| self.view().log(handed.shard).is_some_and(|log| !log.installing));
        for handed in &shards {
            let view = self.view();
            let log = &view.shards[usize::from(handed.shard.0)];
            assert!(
                log.applied <= handed.applied && handed.applied <= log.end.lsn,
                "shard {} applied {}, before {}, end {}",
                handed.shard,
                handed.applied,
                log.applied,
                log.end.lsn
            );
        }
        self.exclusively(|writer| writer.checkpoint_all(&shards, Rewrite::Nothing))
    }

    pub(super) fn checkpoint_all(
        &mut self,
        handed: &[ShardCheckpoint],
        rewrite: Rewrite<'_>,
    ) -> Result<(), StoreError> {
        {
            let mut view = self.view();
            for shard in handed {
                let log = &mut view.shards[usize::from(shard.shard.0)];
                log.applied = shard.applied;
                log.high_watermark = log.high_watermark.max(shard.applied);
            }
        }
        let txn = self.begin()?;
        self.rewrite(&txn, rewrite)?;
        let next_row = self.cursor.next();
        let ended = self.take_ended();
        let died = self.write_partitions(&txn, &ended)?;
        self.garbage.dead += died;
        self.write_shards(&txn)?;
        write_state(&txn, handed)?;
        txn.commit()?;
        self.moved();
        self.forget(&ended);
        for log in &mut self.view().shards {
            log.replay_row = log.replay_row(next_row);
            log.stored_row = next_row;
            while log.rows.front().is_some_and(|(_, row)| *row < log.replay_row) {
                log.rows.pop_front();
            }
        }
        self.dirty.clear();
        self.since = (0, 0);
        self.garbage.starts_moved = true;
        self.store.inner.counters.checkpoints.fetch_add(1, Relaxed);
        self.show_garbage();
        Ok(())
    }

    /// Takes what ends by entries that are applied now.
    fn take_ended(&mut self) -> Ended {
        let mut ended = Ended::default();
        let mut view = self.view();
        for log in &mut view.shards {
            while let Some((_, ending)) = log.endings.pop_front_if(|(lsn, _)| *lsn < log.applied) {
                match ending {
                    PendingEnding::Drop(id) => drop(ended.dropped.insert(id)),
                    PendingEnding::Trim(id, point) => {
                        let last = ended.trimmed.entry(id).or_insert(point);
                        if point.offset > last.offset {
                            *last = point;
                        }
                    }
                }
            }
        }
        drop(view);
        self.dirty.extend(ended.dropped.iter().chain(ended.trimmed.keys()));
        ended
    }

    /// Writes index and facts of the partitions that changed. Returns the bytes that died.
    fn write_partitions(&self, txn: &WriteTransaction, ended: &Ended) -> Result<u64, StoreError> {
        let mut index = txn.open_table(INDEX)?;
        let mut table = txn.open_table(CHECKPOINT)?;
        let mut died = 0;
        let view = self.store.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        for id in &self.dirty {
            let Some(partition) = view.partitions.get(id) else {
                // The log was cut before the entry that began it.
                table.remove(facts_key(*id))?;
                drop_index(&mut index, *id, Offset(u64::MAX))?;
                continue;
            };
            if ended.dropped.contains(id) {
                died += partition.facts.live();
                table.remove(facts_key(*id))?;
                drop_index(&mut index, *id, Offset(u64::MAX))?;
                continue;
            }
            write_index(&mut index, *id, &partition.tail)?;
            let facts = ended.facts(*id, &partition.facts);
            table.insert(facts_key(*id), &encode_facts(&facts)[..])?;
            if facts.kept != partition.facts.kept {
                died += facts.kept.bytes - partition.facts.kept.bytes;
                let first = chunk_at(&index, *id, facts.kept.offset)?;
                drop_index(&mut index, *id, first.map_or(Offset(0), |chunk| chunk[0].base))?;
            }
        }
        Ok(died)
    }

    fn write_shards(&self, txn: &WriteTransaction) -> Result<(), StoreError> {
        let mut table = txn.open_table(CHECKPOINT)?;
        let log = LogInfo { next_row: self.cursor.next(), dead: self.garbage.dead };
        table.insert(LOG_KEY, &log.encode()[..])?;
        let mut index = txn.open_table(LOG_INDEX)?;
        for (shard, log) in (0..).map(ShardId).zip(&mut self.view().shards) {
            log.forget_cuts(self.garbage.first_row);
            let (info, replica) = log.info(self.cursor.next());
            table.insert(shard_key(shard), &info.encode()[..])?;
            table.insert(replica_key(shard), &replica.encode()[..])?;
            table.insert(start_key(shard), &log.start.encode()[..])?;
            write_log_index(&mut index, shard, log)?;
        }
        Ok(())
    }

    /// Lets go of what is on disk now.
    fn forget(&self, ended: &Ended) {
        let mut view = self.store.inner.view.write().unwrap_or_else(PoisonError::into_inner);
        for id in &self.dirty {
            if ended.dropped.contains(id) {
                view.partitions.remove(id);
            } else if let Some(partition) = view.partitions.get_mut(id) {
                partition.tail = Vec::new();
                partition.facts = ended.facts(*id, &partition.facts);
            }
        }
        view.live = view.partitions.values().map(|partition| partition.facts.live()).sum();
    }
}

impl Ended {
    fn facts(&self, id: PartitionId, facts: &Facts) -> Facts {
        let mut facts = *facts;
        if let Some(point) = self.trimmed.get(&id).filter(|p| p.offset > facts.kept.offset) {
            facts.kept = *point;
        }
        facts
    }
}

/// Appends the rows of a shard since the last checkpoint, and forgets those before the log's start.
fn write_log_index(
    table: &mut Table<'_, LogIndexKey, &'static [u8]>,
    shard: ShardId,
    log: &ShardLog,
) -> Result<(), StoreError> {
    let key = |lsn: Lsn| (shard.0, lsn.0);
    let first = table.range(key(Lsn(0))..=key(log.start.lsn))?.next_back().transpose()?;
    let first = first.map(|(key, _)| key.value().1);
    if let Some(first) = first {
        table.retain_in(key(Lsn(0))..key(Lsn(first)), |_, _| false)?;
    }
    let new = log.rows.iter().filter(|(_, row)| *row >= log.stored_row).copied();
    let new: Vec<(Lsn, u64)> = new.collect();
    if new.is_empty() {
        return Ok(());
    }
    let last = table.range(key(Lsn(0))..=key(Lsn(u64::MAX)))?.next_back().transpose()?;
    let last = last.map(|(_, value)| decode_log_index(value.value())).transpose()?;
    let mut pairs = last.filter(|pairs| pairs.len() < LOG_INDEX_CHUNK_MAX).unwrap_or_default();
    pairs.extend_from_slice(&new);
    for chunk in pairs.chunks(LOG_INDEX_CHUNK_MAX) {
        table.insert(key(chunk[0].0), &encode_log_index(chunk)[..])?;
    }
    Ok(())
}

/// Appends the tail: the last chunk on disk is filled up, the rest makes new ones.
fn write_index(
    table: &mut IndexTable<'_>,
    id: PartitionId,
    tail: &[IndexEntry],
) -> Result<(), StoreError> {
    let Some(first) = tail.first() else { return Ok(()) };
    let last = chunk_at(table, id, first.base)?;
    let mut entries = last.filter(|chunk| chunk.len() < INDEX_CHUNK_MAX).unwrap_or_default();
    entries.extend_from_slice(tail);
    for chunk in entries.chunks(INDEX_CHUNK_MAX) {
        table.insert(index_key(id, chunk[0].base), &encode_index(chunk)[..])?;
    }
    Ok(())
}

/// Removes the chunks that begin before `base`.
pub(super) fn drop_index(
    table: &mut IndexTable<'_>,
    id: PartitionId,
    base: Offset,
) -> Result<(), StoreError> {
    Ok(table.retain_in(index_key(id, Offset(0))..index_key(id, base), |_, _| false)?)
}

fn write_state(txn: &WriteTransaction, handed: &[ShardCheckpoint]) -> Result<(), StoreError> {
    let mut table = txn.open_table(STATE)?;
    for ShardCheckpoint { shard, put, delete, .. } in handed {
        for (kind, key) in delete {
            table.remove((shard.0, *kind, &key[..]))?;
        }
        for (kind, key, value) in put {
            table.insert((shard.0, *kind, &key[..]), &value[..])?;
        }
    }
    Ok(())
}
