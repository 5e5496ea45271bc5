//! Changes of a shard's log other than a new entry: promises, cuts, installs.
//!
//! A promise is a fact among the rows. The others change what is derived from the log, on disk too: each is a checkpoint
//! that changes it in the same transaction, so that no open ever has to undo anything. Rows stay as they are; what was
//! cut off is known by where it lies.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use redb::{ReadableTable, WriteTransaction};

use super::{
    checkpoint::IndexTable,
    error::StoreError,
    index::chunk_at,
    schema::{
        INDEX, LOG_INDEX, STATE, decode_log_index, encode_index, encode_log_index, index_key,
    },
    shard_log::{LogPoint, PendingEnding},
    view::{Partition, View},
    writer::Writer,
};
use crate::{
    limits::INSTALL_CHUNK_BYTES,
    types::{Epoch, Lsn, Offset, PartitionId, ShardId, Timestamp, TopicId},
    wire::{BatchHeader, Entry, EntryKind},
};

/// A change of a shard's log other than a new entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Messages of older epochs are refused from now on.
    Promise(Epoch),
    /// Entries from here on are cut off, and all that they did. They are not known to be committed.
    Truncate(Lsn),
    /// The log is nothing but a half-done install from now on. All that the shard held is dropped.
    InstallBegin {
        /// Where the log will begin.
        base: LogPoint,
    },
    /// The same, and nothing of the shard is known to be committed any more.
    Forget,
    /// A part of an install.
    InstallChunk {
        /// Record batches that are kept, in the order of their log, but not without gaps.
        entries: Vec<Entry>,
        /// Rows of state: kind, key, value. Kind [`STATE_PARTITION`] is storage's own.
        state: Vec<(u8, Bytes, Bytes)>,
    },
    /// The install is whole: the log begins and ends at `base`, and all before it is committed and applied.
    InstallEnd {
        /// Begin and end.
        base: LogPoint,
        /// Where each epoch before it starts.
        epochs: Vec<(Epoch, Lsn)>,
    },
}

/// Kind of the state rows of a snapshot that say which partitions there are, and where they start.
pub const STATE_PARTITION: u8 = 254;
const PARTITION_KEY_LEN: usize = 12;
const PARTITION_VALUE_LEN: usize = 16;

/// What a checkpoint changes besides.
#[derive(Clone, Debug)]
pub(super) enum Rewrite<'a> {
    Nothing,
    /// A log, and the index of partitions, end earlier than what is on disk of them.
    Cut {
        shard: ShardId,
        end: Lsn,
        partitions: Vec<PartitionId>,
    },
    /// A shard holds nothing any more.
    Wipe(ShardId),
    /// A shard holds more, by an install.
    Fill {
        shard: ShardId,
        entries: &'a [Entry],
        state: &'a [(u8, Bytes, Bytes)],
    },
}

impl Change {
    /// Bytes of it, about.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::InstallChunk { entries, state } => {
                let entries = entries.iter().map(|entry| entry.header.entry_len());
                let state = state.iter().map(|(_, key, value)| 1 + key.len() + value.len());
                entries.chain(state).sum()
            }
            _ => 0,
        }
    }
}

impl Writer {
    /// Makes one change, in a commit of its own unless it is a promise: that goes with the next entries.
    pub(super) fn change(&mut self, shard: ShardId, change: &Change) -> Result<(), StoreError> {
        let found = self
            .view()
            .log(shard)
            .map(|log| (log.applied.max(log.high_watermark), log.end.lsn, log.installing));
        let Some((committed, end, installing)) = found else {
            panic!("a change of shard {shard}, which is none of this store")
        };
        match change {
            Change::Promise(epoch) => self.promise(shard, *epoch),
            Change::Truncate(lsn) => {
                assert!(!installing && committed <= *lsn, "what is committed is never cut off");
                if *lsn < end {
                    self.exclusively(|writer| writer.cut_log(shard, *lsn))?;
                }
            }
            Change::InstallBegin { .. } => self.exclusively(|writer| writer.wipe(shard))?,
            Change::Forget => {
                self.forget_committed(shard);
                self.exclusively(|writer| writer.wipe(shard))?;
            }
            Change::InstallChunk { entries, state } => {
                assert!(installing, "a part of an install comes after its begin");
                let fill = Rewrite::Fill { shard, entries, state };
                self.exclusively(|writer| writer.checkpoint_all(&[], fill))?;
            }
            Change::InstallEnd { base, epochs } => {
                assert!(installing, "an install ends after its begin");
                assert!(committed <= base.lsn, "what is committed is never replaced by less");
                {
                    let log = &mut self.view().shards[usize::from(shard.0)];
                    (log.start, log.end, log.applied) = (*base, *base, base.lsn);
                    log.high_watermark = base.lsn;
                    log.epochs = epochs.iter().copied().collect();
                    log.installing = false;
                }
                self.exclusively(|writer| writer.checkpoint_all(&[], Rewrite::Nothing))?;
            }
        }
        self.view().shards[usize::from(shard.0)].done += 1;
        Ok(())
    }

    /// Cuts the log at `lsn`, and takes back what the entries behind did.
    fn cut_log(&mut self, shard: ShardId, lsn: Lsn) -> Result<(), StoreError> {
        let Some(end) = self.store.log_point(shard, lsn)? else {
            let text = format!("entry {lsn} of shard {shard} cannot be found");
            return Err(StoreError::Corrupted(text));
        };
        let lost = self.entries_from(shard, lsn)?;
        self.cursor.seal();
        let row = self.cursor.next();
        let mut moved = Vec::new();
        {
            let mut view = self.store.inner.view.write().unwrap_or_else(|e| e.into_inner());
            let View { partitions, shards, live, .. } = &mut *view;
            for (id, (base, bytes)) in &lost {
                let Some(partition) = partitions.get_mut(id) else { continue };
                partition.facts.end = *base;
                partition.facts.bytes -= bytes;
                partition.tail.retain(|entry| entry.base < *base);
                *live -= bytes;
                self.garbage.dead += bytes;
            }
            partitions.retain(|id, partition| {
                let stays = partition.facts.shard != shard || partition.facts.created < lsn;
                if !stays {
                    self.dirty.insert(*id);
                }
                stays
            });
            let log = &mut shards[usize::from(shard.0)];
            log.cut(end, row);
            let left = log.endings.partition_point(|(at, _)| *at < lsn);
            for (_, ending) in log.endings.split_off(left) {
                let (PendingEnding::Drop(id) | PendingEnding::Trim(id, _)) = ending;
                let Some(partition) = partitions.get_mut(&id) else { continue };
                let facts = &mut partition.facts;
                (facts.dropped, facts.start) = (false, facts.kept);
                for (_, ending) in &log.endings {
                    match ending {
                        PendingEnding::Drop(other) => facts.dropped |= *other == id,
                        PendingEnding::Trim(other, point)
                            if *other == id && point.offset > facts.start.offset =>
                        {
                            facts.start = *point;
                        }
                        PendingEnding::Trim(..) => {}
                    }
                }
                moved.push((id, facts.start.offset));
            }
        }
        for (id, start) in moved {
            if let Some(time) = self.store.time_of(id, start)
                && let Some(partition) = self.view().partitions.get_mut(&id)
            {
                partition.facts.first_time = time;
            }
            self.dirty.insert(id);
        }
        let partitions: Vec<PartitionId> = lost.into_keys().collect();
        self.dirty.extend(&partitions);
        self.checkpoint_all(&[], Rewrite::Cut { shard, end: lsn, partitions })
    }

    /// The partitions that have records in the log from `lsn` on: the first offset of these, and their bytes.
    fn entries_from(
        &self,
        shard: ShardId,
        mut lsn: Lsn,
    ) -> Result<BTreeMap<PartitionId, (Offset, u64)>, StoreError> {
        let mut found = BTreeMap::new();
        let end = self.store.log_end(shard);
        while lsn < end {
            let entries = self.store.read_log(shard, lsn, end, INSTALL_CHUNK_BYTES)?;
            for entry in &entries {
                lsn = entry.header.lsn.next();
                if let Ok(batch) = entry.batch_header() {
                    let first = found.entry(entry.header.partition);
                    let (_, bytes) = first.or_insert((batch.base_offset, 0));
                    *bytes += entry.header.entry_len() as u64;
                }
            }
        }
        Ok(found)
    }

    /// Drops all that a shard holds, and marks it as half installed.
    fn wipe(&mut self, shard: ShardId) -> Result<(), StoreError> {
        self.cursor.seal();
        let row = self.cursor.next();
        {
            let mut view = self.store.inner.view.write().unwrap_or_else(|e| e.into_inner());
            let View { partitions, shards, live, .. } = &mut *view;
            partitions.retain(|id, partition| {
                let stays = partition.facts.shard != shard;
                if !stays {
                    *live -= partition.facts.live();
                    self.garbage.dead += partition.facts.live();
                    self.dirty.insert(*id);
                }
                stays
            });
            let log = &mut shards[usize::from(shard.0)];
            log.cut(LogPoint::default(), row);
            log.endings.clear();
            (log.start, log.applied, log.replay_row) = (LogPoint::default(), Lsn(0), row);
            log.installing = true;
        }
        self.checkpoint_all(&[], Rewrite::Wipe(shard))
    }

    /// What a checkpoint changes besides, before it writes what is derived.
    pub(super) fn rewrite(
        &mut self,
        txn: &WriteTransaction,
        rewrite: Rewrite<'_>,
    ) -> Result<(), StoreError> {
        match rewrite {
            Rewrite::Nothing => Ok(()),
            Rewrite::Cut { shard, end, partitions } => {
                let mut index = txn.open_table(INDEX)?;
                let view = self.view();
                for id in partitions {
                    if let Some(partition) = view.partitions.get(&id) {
                        cut_index(&mut index, id, partition.facts.end)?;
                    }
                }
                drop(view);
                cut_log_index(txn, shard, end)
            }
            Rewrite::Wipe(shard) => {
                let all = (shard.0, 0, &[][..])..(shard.0 + 1, 0, &[][..]);
                txn.open_table(STATE)?.retain_in(all, |_, _| false)?;
                cut_log_index(txn, shard, Lsn(0))
            }
            Rewrite::Fill { shard, entries, state } => self.fill(txn, shard, entries, state),
        }
    }

    fn fill(
        &mut self,
        txn: &WriteTransaction,
        shard: ShardId,
        entries: &[Entry],
        state: &[(u8, Bytes, Bytes)],
    ) -> Result<(), StoreError> {
        let bad = |why: &str| StoreError::Corrupted(format!("install of shard {shard}: {why}"));
        let rows = self.cut(entries, &[]);
        self.write(txn, &rows, entries, &[])?;
        self.cursor.seal();
        let mut table = txn.open_table(STATE)?;
        let mut view = self.store.inner.view.write().unwrap_or_else(|e| e.into_inner());
        for (kind, key, value) in state {
            if *kind != STATE_PARTITION {
                table.insert((shard.0, *kind, &key[..]), &value[..])?;
                continue;
            }
            let (id, start, time) =
                decode_partition(key, value).ok_or_else(|| bad("malformed partition"))?;
            let mut partition = Partition::starting(shard, Lsn(0), start);
            partition.facts.time_max = time;
            view.partitions.insert(id, partition);
            self.dirty.insert(id);
        }
        for (row, range) in rows {
            for Entry { header, body } in &entries[range] {
                if header.shard != shard || header.kind != EntryKind::Records {
                    return Err(bad("an entry that does not belong there"));
                }
                let batch = BatchHeader::decode(body).map_err(|e| bad(&e.to_string()))?;
                if let Some(Partition { facts, .. }) = view.partitions.get_mut(&header.partition)
                    && facts.bytes == 0
                {
                    facts.time_max = Timestamp(0);
                    if batch.base_offset < facts.end && batch.end_offset() > facts.end {
                        // The partition starts inside its first batch.
                        facts.end = batch.base_offset;
                    }
                }
                view.apply(row, header, body).map_err(|why| bad(&why))?;
                self.dirty.insert(header.partition);
            }
        }
        Ok(())
    }
}

/// A row of state for a partition that starts at `start`. `time`: of its newest batch, if none is kept.
pub(super) fn encode_partition(id: PartitionId, start: Offset, time: Timestamp) -> (Bytes, Bytes) {
    let mut key = BytesMut::with_capacity(PARTITION_KEY_LEN);
    key.put_u64(id.topic.0);
    key.put_u32(id.index);
    let mut value = BytesMut::with_capacity(PARTITION_VALUE_LEN);
    value.put_u64(start.0);
    value.put_u64(time.0);
    (key.freeze(), value.freeze())
}

fn decode_partition(mut key: &[u8], mut value: &[u8]) -> Option<(PartitionId, Offset, Timestamp)> {
    if key.len() != PARTITION_KEY_LEN || value.len() != PARTITION_VALUE_LEN {
        return None;
    }
    let id = PartitionId { topic: TopicId(key.get_u64()), index: key.get_u32() };
    Some((id, Offset(value.get_u64()), Timestamp(value.get_u64())))
}

/// Removes what the index on disk says from `end` on.
fn cut_index(table: &mut IndexTable<'_>, id: PartitionId, end: Offset) -> Result<(), StoreError> {
    let Some(mut chunk) = chunk_at(table, id, end)? else { return Ok(()) };
    let key = index_key(id, chunk[0].base);
    let len = chunk.len();
    chunk.retain(|entry| entry.base < end);
    if chunk.is_empty() {
        table.remove(key)?;
    } else if chunk.len() < len {
        table.insert(key, &encode_index(&chunk)[..])?;
    }
    table.retain_in(index_key(id, end)..=index_key(id, Offset(u64::MAX)), |_, _| false)?;
    Ok(())
}

/// Removes what the log index on disk says from `end` on.
fn cut_log_index(txn: &WriteTransaction, shard: ShardId, end: Lsn) -> Result<(), StoreError> {
    let mut table = txn.open_table(LOG_INDEX)?;
    table.retain_in((shard.0, end.0)..=(shard.0, u64::MAX), |_, _| false)?;
    let (key, mut pairs) = match table.range((shard.0, 0)..(shard.0, end.0))?.next_back() {
        Some(item) => {
            let (key, value) = item?;
            (key.value(), decode_log_index(value.value())?)
        }
        None => return Ok(()),
    };
    pairs.retain(|(lsn, _)| *lsn < end);
    table.insert(key, &encode_log_index(&pairs)[..])?;
    Ok(())
}
