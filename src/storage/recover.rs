//! What a store holds when it is opened: the last checkpoint, and the log behind it.

use std::{
    collections::HashSet,
    sync::{Arc, RwLock, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable};

use super::{
    backend::Meter,
    error::StoreError,
    fact::{Fact, What},
    journal::Journal,
    open::Identity,
    read::{Counters, Inner, Store},
    row::{Piece, pieces},
    schema::{
        CHECKPOINT, LOG_KEY, LogInfo, ROWS, ReplicaInfo, STATE, ShardInfo, decode_facts,
        facts_partition, replica_key, shard_key, start_key,
    },
    shard_log::{LogPoint, ShardLog, is_cut},
    view::{Bounds, Ending, Partition, View},
    writer::{Garbage, Writer},
};
use crate::{
    types::{Epoch, Lsn, Offset, PartitionId, ShardId},
    wire::{Entry, EntryHeader, EntryKind, batch::BATCH_HEADER_LEN},
};

/// What a store held when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The identity given to the store when it was made.
    pub disk_id: u128,
    /// It was closed, not killed; also when it was made just now.
    pub clean_shutdown: bool,
    /// Its shards, by number.
    pub shards: Vec<RecoveredShard>,
    /// Its partitions, by id.
    pub partitions: Vec<RecoveredPartition>,
}

/// What a store held of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveredPartition {
    /// The shard that it belongs to.
    pub shard: ShardId,
    /// Which.
    pub id: PartitionId,
    /// What the whole log says of it.
    pub bounds: Bounds,
    /// Where it began as of the last checkpoint. A trim that came later is in the shard's tail, and may be cut off.
    pub applied_start: Offset,
}

/// What a store held of one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredShard {
    /// Which.
    pub shard: ShardId,
    /// Position of the next entry.
    pub end: Lsn,
    /// Chain of the last entry.
    pub chain: u64,
    /// Epoch of the last entry.
    pub last_epoch: Epoch,
    /// Where each epoch starts.
    pub epochs: Vec<(Epoch, Lsn)>,
    /// All entries from here on are kept.
    pub start: Lsn,
    /// Messages of older epochs are refused.
    pub promised: Epoch,
    /// Entries before this one are known to be committed.
    pub high_watermark: Lsn,
    /// An install is half done: of log and state nothing can be used, and nothing is given out.
    pub installing: bool,
    /// Entries before this one are in `state`.
    pub applied: Lsn,
    /// The applied state, as handed over at the last checkpoint: kind, key, value.
    pub state: Vec<(u8, Bytes, Bytes)>,
    /// The entries from `applied` to `end`. Of record batches only the header is there, to bound memory.
    pub tail: Vec<Entry>,
}

/// The log while it is read.
struct Replay {
    log: LogInfo,
    view: View,
    shards: Vec<(ShardLog, RecoveredShard)>,
    dirty: HashSet<PartitionId>,
    endings: Vec<(ShardId, Lsn, Ending)>,
    entries: usize,
    bytes: usize,
}

pub(super) fn recover(
    db: Database,
    meters: [Arc<Meter>; 2],
    journal: Journal,
    identity: Identity,
    shards: u16,
) -> Result<(Store, Writer, Recovered), StoreError> {
    let txn = db.begin_read()?;
    let mut replay = load(&txn, shards)?;
    let (first_row, next_row) = replay.rows(&txn)?;
    drop(txn);
    for (log, shard) in &mut replay.shards {
        shard.check_tail()?;
        shard.take(log);
    }
    let Replay { log, mut view, shards, dirty, endings, entries, bytes } = replay;
    let recovered: Vec<_>;
    (view.shards, recovered) = shards.into_iter().unzip();
    let counters = Counters::default();
    counters.rows_first.store(first_row, Relaxed);
    counters.rows_next.store(next_row, Relaxed);
    counters.dead.store(log.dead, Relaxed);
    let inner = Arc::new(Inner { db, view: RwLock::new(view), meters, counters });
    let store = Store { inner };
    let garbage = Garbage { dead: log.dead, first_row, cursor: None, starts_moved: true };
    let mut writer = Writer::new(store.clone(), journal, next_row, garbage);
    writer.resume(dirty, entries, bytes);
    writer.end(endings)?;
    let mut partitions: Vec<_> = {
        let view = store.inner.view.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let live = view.partitions.keys().filter_map(|id| Some((*id, view.get(*id)?)));
        let found = |(id, Partition { facts, .. }): (PartitionId, &Partition)| {
            let applied_start = facts.kept.offset;
            RecoveredPartition { shard: facts.shard, id, bounds: facts.bounds(), applied_start }
        };
        live.map(found).collect()
    };
    partitions.sort_by_key(|partition: &RecoveredPartition| partition.id);
    let recovered = Recovered {
        disk_id: identity.disk_id,
        clean_shutdown: identity.clean,
        shards: recovered,
        partitions,
    };
    Ok((store, writer, recovered))
}

fn load(txn: &ReadTransaction, shards: u16) -> Result<Replay, StoreError> {
    let table = txn.open_table(CHECKPOINT)?;
    let log = match table.get(LOG_KEY)? {
        Some(value) => LogInfo::decode(value.value())?,
        None => LogInfo::default(),
    };
    let mut view = View::default();
    for item in table.range((2, 0, 0)..(3, 0, 0))? {
        let (key, value) = item?;
        let facts = decode_facts(value.value())?;
        view.live += facts.live();
        view.partitions.insert(facts_partition(key.value()), Partition { facts, tail: Vec::new() });
    }
    let state = txn.open_table(STATE)?;
    let mut all = Vec::with_capacity(usize::from(shards));
    for shard in (0..shards).map(ShardId) {
        let info = match table.get(shard_key(shard))? {
            Some(value) => ShardInfo::decode(value.value())?,
            None => ShardInfo::default(),
        };
        let replica = match table.get(replica_key(shard))? {
            Some(value) => Some(ReplicaInfo::decode(value.value())?),
            None => None,
        };
        let start = match table.get(start_key(shard))? {
            Some(value) => Some(LogPoint::decode(value.value())?),
            None => None,
        };
        let mut recovered = RecoveredShard { shard, ..Default::default() };
        for item in state.range((shard.0, 0, &[][..])..)? {
            let (key, value) = item?;
            let (number, kind, key) = key.value();
            if number != shard.0 {
                break;
            }
            let value = Bytes::copy_from_slice(value.value());
            recovered.state.push((kind, Bytes::copy_from_slice(key), value));
        }
        let log = ShardLog::new(info, replica, start, log.next_row);
        if log.installing {
            recovered.state.clear();
        }
        all.push((log, recovered));
    }
    Ok(Replay {
        log,
        view,
        shards: all,
        dirty: HashSet::new(),
        endings: Vec::new(),
        entries: 0,
        bytes: 0,
    })
}

impl Replay {
    /// Reads the rows that the checkpoint does not cover. Returns the numbers of the first row and of the next one.
    fn rows(&mut self, txn: &ReadTransaction) -> Result<(u64, u64), StoreError> {
        let rows = txn.open_table(ROWS)?;
        let from = self.shards.iter().map(|(log, _)| log.replay_row).min();
        let from = from.unwrap_or(0).min(self.log.next_row);
        let mut next = self.log.next_row;
        for item in rows.range(from..)? {
            let (row, value) = item?;
            let row = row.value();
            for piece in pieces(value.value()) {
                let broken = |why: String| StoreError::Corrupted(format!("log row {row}: {why}"));
                let (header, body) = match piece.map_err(|e| broken(e.to_string()))? {
                    Piece::Entry(header, body) => (header, body),
                    Piece::Fact(fact) => {
                        self.fact(row, fact).map_err(broken)?;
                        continue;
                    }
                };
                header.check_body(body).map_err(|e| broken(e.to_string()))?;
                self.entry(row, &header, body).map_err(broken)?;
            }
            next = next.max(row + 1);
        }
        let first = rows.first()?.map_or(next, |(row, _)| row.value());
        Ok((first, next))
    }

    fn fact(&mut self, row: u64, fact: Fact) -> Result<(), String> {
        let Some((log, _)) = self.shards.get_mut(usize::from(fact.shard.0)) else {
            return Err(format!("fact of shard {}", fact.shard));
        };
        // The checkpoint knows those before it.
        if row >= self.log.next_row {
            match fact.what {
                What::Promise(epoch) => log.promised = log.promised.max(epoch),
                What::HighWatermark(lsn) => log.high_watermark = log.high_watermark.max(lsn),
            }
        }
        Ok(())
    }

    fn entry(&mut self, row: u64, header: &EntryHeader, body: &[u8]) -> Result<(), String> {
        let count = self.shards.len();
        let Some((log, shard)) = self.shards.get_mut(usize::from(header.shard.0)) else {
            return Err(format!("entry of shard {}, there are {count}", header.shard));
        };
        if is_cut(&log.cuts, header.lsn, row) {
            return Ok(());
        }
        if log.installing {
            // What an install brings is in the checkpoint that came with it.
            return match row < self.log.next_row {
                true => Ok(()),
                false => Err(format!("entry of shard {}, which is half installed", header.shard)),
            };
        }
        if row >= self.log.next_row {
            log.take(row, header).map_err(|e| e.to_string())?;
            if let Some(ending) = self.view.apply(row, header, body)? {
                self.endings.push((header.shard, header.lsn, ending));
            }
            self.dirty.insert(header.partition);
            self.entries += 1;
            self.bytes += header.entry_len();
        } else if header.lsn >= log.applied {
            // The checkpoint has it in the index and in the facts, but its shard had not applied it.
            log.note_row(row, header.lsn);
            match header.kind {
                EntryKind::Trim => {
                    let start = body.try_into().map(u64::from_be_bytes);
                    let start = start.map_err(|_| "malformed trim")?;
                    let ending = Ending::Trim(header.partition, start.into());
                    self.endings.push((header.shard, header.lsn, ending));
                }
                // One that there was nothing to drop for must not hit a partition that came later.
                EntryKind::PartitionDrop if self.view.is_dropped(header.partition) => {
                    self.endings.push((header.shard, header.lsn, Ending::Drop(header.partition)));
                }
                _ => {}
            }
        }
        if header.lsn >= log.applied {
            let keep = match header.kind {
                EntryKind::Records => body.len().min(BATCH_HEADER_LEN),
                _ => body.len(),
            };
            shard.tail.push(Entry { header: *header, body: Bytes::copy_from_slice(&body[..keep]) });
        }
        Ok(())
    }
}

impl RecoveredShard {
    fn take(&mut self, log: &ShardLog) {
        self.end = log.end.lsn;
        self.chain = log.end.chain;
        self.last_epoch = log.end.epoch;
        self.epochs = log.epochs.iter().copied().collect();
        self.start = log.start.lsn;
        self.promised = log.promised;
        self.high_watermark = log.high_watermark;
        self.installing = log.installing;
        self.applied = log.applied;
    }

    /// The tail must be one chain.
    fn check_tail(&self) -> Result<(), StoreError> {
        for pair in self.tail.windows(2) {
            let (one, two) = (&pair[0].header, &pair[1].header);
            if two.lsn != one.lsn.next() || two.chain != two.chain_after(one.chain) {
                let (shard, lsn) = (self.shard, two.lsn);
                let reason = format!("entry {lsn} of shard {shard} does not follow {}", one.lsn);
                return Err(StoreError::Corrupted(reason));
            }
        }
        Ok(())
    }
}
