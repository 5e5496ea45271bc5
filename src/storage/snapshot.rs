//! A shard as of its last checkpoint, in parts: what a replica takes whose log is too old to be continued.

use std::{collections::BTreeMap, fmt, sync::PoisonError};

use bytes::Bytes;
use redb::{ReadTransaction, ReadableDatabase};

use super::{
    change::{Change, STATE_PARTITION, encode_partition},
    error::{ReadError, StoreError, guarded},
    index::chunk_at,
    log::rows_from,
    read::Store,
    row::walk,
    schema::{
        CHECKPOINT, INDEX, LOG_INDEX, ROWS, ReplicaInfo, STATE, ShardInfo, decode_facts,
        decode_index, facts_partition, index_key, replica_key, shard_key, start_key,
    },
    shard_log::{Cut, LogPoint, is_cut},
    view::Facts,
};
use crate::{
    limits::INSTALL_CHUNK_BYTES,
    types::{Epoch, Lsn, Offset, PartitionId, ShardId},
    wire::{Entry, EntryKind},
};

/// The state of a shard at one position, to be installed elsewhere. It holds one transaction open: what it needs stays as
/// it is, and is not used again, until it is dropped.
pub struct Snapshot {
    shard: ShardId,
    base: LogPoint,
    epochs: Vec<(Epoch, Lsn)>,
    txn: ReadTransaction,
    cuts: Vec<Cut>,
    partitions: BTreeMap<PartitionId, Facts>,
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Partitions,
    /// So many rows of state from this kind and key on.
    State(u8, Vec<u8>, usize),
    Rows(Vec<u64>),
}

impl Store {
    /// The state of a shard as of its last checkpoint. None while it is half installed, and for a shard that is not here.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn snapshot(&self, shard: ShardId) -> Result<Option<Snapshot>, ReadError> {
        guarded(|| Ok(self.take_snapshot(shard)?))
    }

    fn take_snapshot(&self, shard: ShardId) -> Result<Option<Snapshot>, StoreError> {
        let txn = {
            let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
            match view.log(shard) {
                Some(log) if !log.installing => self.inner.db.begin_read()?,
                _ => return Ok(None),
            }
        };
        let table = txn.open_table(CHECKPOINT)?;
        let info = table.get(shard_key(shard))?.map(|value| ShardInfo::decode(value.value()));
        let info = info.transpose()?.unwrap_or_default();
        let replica = table.get(replica_key(shard))?.map(|v| ReplicaInfo::decode(v.value()));
        let replica = replica.transpose()?.unwrap_or_default();
        if replica.installing {
            return Ok(None);
        }
        let start = table.get(start_key(shard))?.map(|value| LogPoint::decode(value.value()));
        let start = start.transpose()?.unwrap_or_default();
        let mut partitions = BTreeMap::new();
        for item in table.range((2, 0, 0)..(3, 0, 0))? {
            let (key, value) = item?;
            let facts = decode_facts(value.value())?;
            // What began later comes with the log.
            if facts.shard == shard && facts.created < info.applied {
                partitions.insert(facts_partition(key.value()), facts);
            }
        }
        let end = LogPoint { lsn: info.end, epoch: replica.last_epoch, chain: info.chain };
        let known = [end, start].into_iter().find(|point| point.lsn == info.applied);
        let mut epochs = info.epochs.clone();
        epochs.retain(|(_, first)| *first < info.applied);
        let mut snapshot = Snapshot {
            shard,
            base: LogPoint::default(),
            epochs,
            txn,
            cuts: replica.cuts,
            partitions,
            parts: vec![Part::Partitions],
        };
        snapshot.base = match known {
            Some(point) => point,
            None => snapshot.point(info.applied)?,
        };
        snapshot.plan_state()?;
        snapshot.plan_rows(info.replay_row)?;
        Ok(Some(snapshot))
    }
}

impl Snapshot {
    /// Where the log goes on from this state.
    #[must_use]
    pub fn base(&self) -> LogPoint {
        self.base
    }

    /// Where each epoch before the base starts.
    #[must_use]
    pub fn epochs(&self) -> &[(Epoch, Lsn)] {
        &self.epochs
    }

    /// Number of chunks, at least one.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        u32::try_from(self.parts.len()).unwrap_or(u32::MAX)
    }

    /// Chunk `index`, about 1 MiB: a [`Change::InstallChunk`]. Of an index that is none it is empty.
    ///
    /// # Errors
    /// [`ReadError::LogCorrupted`] when an entry is broken.
    pub fn chunk(&self, index: u32) -> Result<Change, ReadError> {
        guarded(|| {
            let (mut entries, mut state) = (Vec::new(), Vec::new());
            match self.parts.get(index as usize) {
                None => {}
                Some(Part::Partitions) => {
                    for (id, facts) in &self.partitions {
                        let (key, value) = encode_partition(*id, facts.kept.offset, facts.time_max);
                        state.push((STATE_PARTITION, key, value));
                    }
                }
                Some(Part::State(kind, key, count)) => {
                    let table = self.txn.open_table(STATE)?;
                    for item in table.range((self.shard.0, *kind, &key[..])..)?.take(*count) {
                        let (key, value) = item.map_err(StoreError::from)?;
                        let (_, kind, key) = key.value();
                        let value = Bytes::copy_from_slice(value.value());
                        state.push((kind, Bytes::copy_from_slice(key), value));
                    }
                }
                Some(Part::Rows(rows)) => {
                    let table = self.txn.open_table(ROWS)?;
                    for row in rows {
                        if let Some(value) = table.get(row)? {
                            let bytes = Bytes::copy_from_slice(value.value());
                            self.entries(*row, &bytes, &mut entries)?;
                        }
                    }
                }
            }
            Ok(Change::InstallChunk { entries, state })
        })
    }

    /// Those entries of a row that hold records which are kept.
    fn entries(&self, row: u64, bytes: &Bytes, out: &mut Vec<Entry>) -> Result<(), ReadError> {
        for item in walk(bytes) {
            let broken = |lsn: Lsn, reason: String| ReadError::LogCorrupted {
                shard: self.shard,
                lsn,
                reason: format!("row {row}: {reason}"),
            };
            let (header, body) = item.map_err(|e| broken(self.base.lsn, e.to_string()))?;
            let ours = header.shard == self.shard && header.kind == EntryKind::Records;
            if !ours || header.lsn >= self.base.lsn || is_cut(&self.cuts, header.lsn, row) {
                continue;
            }
            let Some(facts) = self.partitions.get(&header.partition) else { continue };
            header.check_body(body).map_err(|e| broken(header.lsn, e.to_string()))?;
            let entry = Entry { header, body: bytes.slice_ref(body) };
            let batch = entry.batch_header().map_err(|e| broken(header.lsn, e.to_string()))?;
            if batch.end_offset() > facts.kept.offset {
                out.push(entry);
            }
        }
        Ok(())
    }

    /// The end of the log if it ended at `lsn`, which is neither its start nor its end.
    fn point(&self, lsn: Lsn) -> Result<LogPoint, StoreError> {
        let last = Lsn(lsn.0.saturating_sub(1));
        let index = self.txn.open_table(LOG_INDEX)?;
        let rows = self.txn.open_table(ROWS)?;
        if let Some((_, row)) = rows_from(&index, self.shard, last)?.first()
            && let Some(bytes) = rows.get(row)?
        {
            for item in walk(bytes.value()) {
                let (header, _) = item.map_err(|e| StoreError::Corrupted(e.to_string()))?;
                let ours = header.shard == self.shard && header.lsn == last;
                if ours && !is_cut(&self.cuts, header.lsn, *row) {
                    return Ok(LogPoint::behind(&header));
                }
            }
        }
        let text = format!("entry {last} of shard {} cannot be found", self.shard);
        Err(StoreError::Corrupted(text))
    }

    fn plan_state(&mut self) -> Result<(), StoreError> {
        let table = self.txn.open_table(STATE)?;
        let mut bytes = INSTALL_CHUNK_BYTES;
        for item in table.range((self.shard.0, 0, &[][..])..)? {
            let (key, value) = item?;
            let (shard, kind, key) = key.value();
            if shard != self.shard.0 {
                break;
            }
            bytes += key.len() + value.value().len();
            match self.parts.last_mut() {
                Some(Part::State(_, _, count)) if bytes <= INSTALL_CHUNK_BYTES => *count += 1,
                _ => {
                    self.parts.push(Part::State(kind, key.to_vec(), 1));
                    bytes = key.len() + value.value().len();
                }
            }
        }
        Ok(())
    }

    /// The index tells which rows hold records that are kept, and how many bytes of each partition, without a look at them.
    fn plan_rows(&mut self, replay_row: u64) -> Result<(), StoreError> {
        let table = self.txn.open_table(INDEX)?;
        let mut rows: BTreeMap<u64, u64> = BTreeMap::new();
        for (id, facts) in &self.partitions {
            let first = chunk_at(&table, *id, facts.kept.offset)?;
            let first = first.map_or(Offset(0), |chunk| chunk[0].base);
            let mut entries = Vec::new();
            for item in table.range(index_key(*id, first)..=index_key(*id, facts.end))? {
                entries.extend(decode_index(item?.1.value())?);
            }
            let lives = entries.partition_point(|entry| entry.base <= facts.kept.offset);
            for at in lives.saturating_sub(1)..entries.len() {
                let behind = entries.get(at + 1).map_or(facts.bytes, |next| next.bytes_before);
                let len = behind.saturating_sub(entries[at].bytes_before);
                if entries[at].row <= replay_row {
                    *rows.entry(entries[at].row).or_default() += len;
                }
            }
        }
        let mut bytes = 0;
        for (row, len) in rows {
            bytes += len;
            match self.parts.last_mut() {
                Some(Part::Rows(rows)) if bytes <= INSTALL_CHUNK_BYTES as u64 => rows.push(row),
                _ => {
                    self.parts.push(Part::Rows(vec![row]));
                    bytes = len;
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Snapshot");
        debug.field("shard", &self.shard).field("base", &self.base).field("parts", &self.parts);
        debug.finish_non_exhaustive()
    }
}
