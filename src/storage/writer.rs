//! The one that writes: packs entries into rows and commits them.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    ops::Range,
    sync::{PoisonError, RwLockWriteGuard, atomic::Ordering::Relaxed},
    time::Instant,
};

use bytes::Bytes;
use redb::WriteTransaction;

use super::{
    error::{StoreError, guarded},
    journal::Journal,
    mover::{Move, Mover, write_rows},
    open::begin,
    read::Store,
    row::Cursor,
    schema::{CHECKPOINT_BYTES, CHECKPOINT_ENTRIES, META, ROWS},
    view::{Ending, Point, View},
};
use crate::{
    types::{Epoch, Lsn, Offset, PartitionId, ShardId},
    wire::{BadEntry, Entry, EntryHeader, EntryKind},
};

/// Writes the log. Belongs to one OS thread: its calls wait for the disk.
#[derive(Debug)]
pub struct Writer {
    pub(super) store: Store,
    pub(super) shards: Vec<ShardLog>,
    pub(super) cursor: Cursor,
    pub(super) dirty: HashSet<PartitionId>,
    pub(super) garbage: Garbage,
    /// Entries and bytes since the last checkpoint.
    pub(super) since: (usize, usize),
    pub(super) poisoned: bool,
    journal: Journal,
    mover: Mover,
    /// A row on its way into the database.
    buffer: Vec<u8>,
}

/// What is known of a shard's log.
#[derive(Debug)]
pub(super) struct ShardLog {
    pub(super) end: Lsn,
    pub(super) chain: u64,
    pub(super) applied: Lsn,
    /// The row that holds the entry at `applied`, as of the last checkpoint.
    pub(super) replay_row: u64,
    pub(super) epochs: Vec<(Epoch, Lsn)>,
    /// First entry in each row from `replay_row` on.
    pub(super) rows: VecDeque<(Lsn, u64)>,
    /// What ends once its entry is applied.
    pub(super) endings: VecDeque<(Lsn, PendingEnding)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum PendingEnding {
    Trim(PartitionId, Point),
    Drop(PartitionId),
}

/// Where the collector is.
#[derive(Debug)]
pub(super) struct Garbage {
    /// Bytes that died since its last pass.
    pub(super) dead: u64,
    /// No row lies before this one.
    pub(super) first_row: u64,
    /// Where the pass under way goes on.
    pub(super) cursor: Option<u64>,
    /// The lowest live row may have changed.
    pub(super) starts_moved: bool,
}

impl Writer {
    pub(super) fn new(
        store: Store,
        journal: Journal,
        shards: Vec<ShardLog>,
        next_row: u64,
        garbage: Garbage,
    ) -> Self {
        Self {
            store,
            shards,
            cursor: Cursor::at(next_row),
            dirty: HashSet::new(),
            garbage,
            since: (0, 0),
            poisoned: false,
            journal,
            mover: Mover::default(),
            buffer: Vec::new(),
        }
    }

    /// Takes over what replay found behind the checkpoint.
    pub(super) fn resume(&mut self, dirty: HashSet<PartitionId>, entries: usize, bytes: usize) {
        self.dirty = dirty;
        self.since = (entries, bytes);
    }

    /// Commits entries of any shards, each shard's in order. When it returns they survive a power cut, and readers see
    /// them. Returns the new end of each shard that has entries among them.
    ///
    /// # Errors
    /// [`StoreError`]; it is then unknown which entries are on disk, and every later call fails too.
    ///
    /// # Panics
    /// If an entry does not follow the one before it in its shard or partition, or comes for a dropped partition: the
    /// shard decides, the log only follows.
    pub fn commit(&mut self, entries: &[Entry]) -> Result<Vec<(ShardId, Lsn)>, StoreError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        self.check_order(entries);
        self.exclusively(|writer| writer.commit_all(entries))
    }

    /// Tells whether the log behind the last checkpoint has grown so far that a new one is due.
    #[must_use]
    pub fn checkpoint_due(&self) -> bool {
        self.since.0 >= CHECKPOINT_ENTRIES || self.since.1 >= CHECKPOINT_BYTES
    }

    /// Tells whether records were trimmed or dropped since the last checkpoint: their room is free only after one.
    #[must_use]
    pub fn has_endings(&self) -> bool {
        self.shards.iter().any(|log| !log.endings.is_empty())
    }

    /// Closes the store and marks that it was closed.
    ///
    /// # Errors
    /// [`StoreError`]; the log itself is safe, the mark is missing.
    pub fn close(mut self) -> Result<(), StoreError> {
        self.exclusively(|writer| {
            let txn = writer.begin()?;
            txn.open_table(META)?.insert("clean", &[1][..])?;
            txn.commit()?;
            writer.moved();
            Ok(())
        })
    }

    /// Position of the next entry of a shard.
    #[must_use]
    pub fn end_of(&self, shard: ShardId) -> Option<Lsn> {
        self.shards.get(usize::from(shard.0)).map(|log| log.end)
    }

    /// Runs a write, and refuses all further ones if it fails.
    pub(super) fn exclusively<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.poisoned {
            return Err(StoreError::Poisoned);
        }
        let done = guarded(|| work(self));
        self.poisoned = done.is_err();
        done
    }

    fn commit_all(&mut self, entries: &[Entry]) -> Result<Vec<(ShardId, Lsn)>, StoreError> {
        let begun = clock();
        let bytes = entries.iter().map(|entry| entry.header.entry_len()).sum();
        let rows = if self.journal.takes(bytes) {
            self.make_room(bytes)?;
            let rows = self.cut(entries);
            let frame = self.journal.append(entries, bytes)?;
            self.wait(&rows, entries, frame);
            rows
        } else {
            let txn = self.begin()?;
            let rows = self.cut(entries);
            self.write(&txn, &rows, entries)?;
            txn.commit()?;
            self.cursor.seal();
            self.moved();
            rows
        };
        let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut endings = Vec::new();
        {
            let view = &self.store.inner.view;
            let mut view = view.write().unwrap_or_else(PoisonError::into_inner);
            for (row, range) in rows {
                for Entry { header, body } in &entries[range] {
                    let log = &mut self.shards[usize::from(header.shard.0)];
                    log.take(row, header).map_err(|e| StoreError::Corrupted(e.to_string()))?;
                    let ending = view.apply(row, header, body).map_err(StoreError::Corrupted)?;
                    endings.extend(ending.map(|ending| (header.shard, header.lsn, ending)));
                    self.dirty.insert(header.partition);
                    if header.kind != EntryKind::Records {
                        self.garbage.dead += header.entry_len() as u64;
                    }
                }
            }
        }
        self.since = (self.since.0 + entries.len(), self.since.1 + bytes);
        self.end(endings)?;
        self.count(entries.len(), bytes, nanos);
        Ok(self.ends(entries))
    }

    fn cut(&mut self, entries: &[Entry]) -> Vec<(u64, Range<usize>)> {
        self.cursor.cut(entries.iter().map(|entry| entry.header.entry_len()))
    }

    /// Writes the rows of a commit into the database.
    fn write(
        &mut self,
        txn: &WriteTransaction,
        rows: &[(u64, Range<usize>)],
        entries: &[Entry],
    ) -> Result<(), StoreError> {
        let mut table = txn.open_table(ROWS)?;
        for (row, range) in rows {
            self.buffer.clear();
            for entry in &entries[range.clone()] {
                entry.encode(&mut self.buffer);
            }
            table.insert(row, &self.buffer[..])?;
        }
        Ok(())
    }

    /// Moves from the journal are made by a thread of its own from now on.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn move_aside(&mut self) -> io::Result<()> {
        self.mover.spawn()
    }

    /// Makes room for a commit in the journal: begins to move a half that is ripe, waits only when both are full.
    fn make_room(&mut self, bytes: usize) -> Result<(), StoreError> {
        self.finish_move(false)?;
        let fits = self.journal.fits(bytes);
        if fits && (self.mover.is_busy() || !self.journal.is_ripe()) {
            return Ok(());
        }
        self.finish_move(true)?;
        self.begin_move();
        Ok(())
    }

    /// Begins to move what waits, and goes on in the other half.
    fn begin_move(&mut self) {
        self.cursor.seal();
        let rows = self.view().waiting.all();
        let rows = Move { store: self.store.clone(), rows, next_frame: self.journal.next() };
        self.mover.begin(rows);
        self.journal.switch();
    }

    fn finish_move(&mut self, wait: bool) -> Result<(), StoreError> {
        if let Some(row) = self.mover.finish(wait)? {
            self.view().waiting.forget_before(row);
        }
        Ok(())
    }

    /// Begins a transaction that takes along all that waits. [`Writer::moved`] follows its commit.
    pub(super) fn begin(&mut self) -> Result<WriteTransaction, StoreError> {
        self.finish_move(true)?;
        self.cursor.seal();
        let rows = self.view().waiting.all();
        let txn = begin(&self.store.inner.db)?;
        if !rows.is_empty() {
            write_rows(&txn, &rows, self.journal.next())?;
        }
        Ok(txn)
    }

    /// What waited is in the database.
    pub(super) fn moved(&mut self) {
        self.view().waiting.clear();
        self.journal.restart();
    }

    /// Entries that are in the journal wait in memory, where readers find them.
    fn wait(&self, rows: &[(u64, Range<usize>)], entries: &[Entry], mut frame: Bytes) {
        let mut view = self.view();
        for (row, range) in rows {
            let len = entries[range.clone()].iter().map(|entry| entry.header.entry_len()).sum();
            view.waiting.push(*row, frame.split_to(len));
        }
    }

    fn view(&self) -> RwLockWriteGuard<'_, View> {
        self.store.inner.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the places of what entries end, and shows the new starts to the readers.
    pub(super) fn end(&mut self, endings: Vec<(ShardId, Lsn, Ending)>) -> Result<(), StoreError> {
        for (shard, lsn, ending) in endings {
            let pending = match ending {
                Ending::Drop(id) => PendingEnding::Drop(id),
                Ending::Trim(id, offset) => match self.trim(id, offset)? {
                    Some(point) => PendingEnding::Trim(id, point),
                    None => continue,
                },
            };
            self.shards[usize::from(shard.0)].endings.push_back((lsn, pending));
        }
        Ok(())
    }

    fn trim(&mut self, id: PartitionId, offset: Offset) -> Result<Option<Point>, StoreError> {
        let Some(bounds) = self.store.bounds(id) else { return Ok(None) };
        let offset = offset.min(bounds.end);
        let point = match self.store.locate(id, offset) {
            Ok(point) => point,
            Err(super::ReadError::Store(error)) => return Err(error),
            Err(error) => return Err(StoreError::Corrupted(error.to_string())),
        };
        if offset > bounds.start {
            let time = self.store.time_of(id, offset);
            let view = &self.store.inner.view;
            let mut view = view.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(partition) = view.partitions.get_mut(&id) {
                partition.facts.start = point;
                partition.facts.first_time = time.unwrap_or(partition.facts.first_time);
            }
        }
        Ok(Some(point))
    }

    fn ends(&self, entries: &[Entry]) -> Vec<(ShardId, Lsn)> {
        let mut touched: Vec<ShardId> = entries.iter().map(|entry| entry.header.shard).collect();
        touched.sort_unstable();
        touched.dedup();
        touched.into_iter().map(|s| (s, self.shards[usize::from(s.0)].end)).collect()
    }

    fn count(&self, entries: usize, bytes: usize, nanos: u64) {
        let counters = &self.store.inner.counters;
        counters.commits.fetch_add(1, Relaxed);
        counters.entries.fetch_add(entries as u64, Relaxed);
        counters.entry_bytes.fetch_add(bytes as u64, Relaxed);
        counters.commit_nanos_last.store(nanos, Relaxed);
        counters.commit_nanos_max.fetch_max(nanos, Relaxed);
        counters.commit_nanos_sum.fetch_add(nanos, Relaxed);
        self.show_garbage();
    }

    pub(super) fn show_garbage(&self) {
        let counters = &self.store.inner.counters;
        counters.rows_next.store(self.cursor.next(), Relaxed);
        counters.rows_first.store(self.garbage.first_row, Relaxed);
        counters.dead.store(self.garbage.dead, Relaxed);
    }

    fn check_order(&self, entries: &[Entry]) {
        let view = self.store.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        let mut shards = HashMap::new();
        let mut ends: HashMap<PartitionId, Offset> = HashMap::new();
        for Entry { header, body } in entries {
            let Some(log) = self.shards.get(usize::from(header.shard.0)) else {
                panic!("entry of shard {}, there are {}", header.shard, self.shards.len());
            };
            assert_eq!(body.len(), header.body_len as usize, "an entry is committed whole");
            let (lsn, chain) = shards.entry(header.shard).or_insert((log.end, log.chain));
            assert_eq!(header.lsn, *lsn, "entries of shard {} follow each other", header.shard);
            assert_eq!(header.chain, header.chain_after(*chain), "entries of a shard are a chain");
            (*lsn, *chain) = (lsn.next(), header.chain);
            if header.kind != EntryKind::Records {
                continue;
            }
            assert!(!view.is_dropped(header.partition), "a dropped partition never comes back");
            let Ok(batch) = crate::wire::BatchHeader::decode(body) else {
                panic!("a records entry holds a batch that was checked when it came");
            };
            let end = ends.entry(header.partition).or_insert_with(|| {
                view.partitions.get(&header.partition).map_or(batch.base_offset, |p| p.facts.end)
            });
            assert_eq!(
                batch.base_offset, *end,
                "batches of {} follow each other",
                header.partition
            );
            *end = batch.end_offset();
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "times the disk, on a thread of its own; no decision about the log hangs on it"
)]
pub(super) fn clock() -> Instant {
    Instant::now()
}

impl ShardLog {
    /// Takes over an entry that lies in `row`, if it follows the one before it.
    pub(super) fn take(&mut self, row: u64, header: &EntryHeader) -> Result<(), BadEntry> {
        if header.lsn != self.end || header.chain != header.chain_after(self.chain) {
            let (shard, found, want) = (header.shard, header.lsn, self.end);
            return Err(BadEntry::Chain { shard, found, want });
        }
        self.note_row(row, header.lsn);
        if self.epochs.last().is_none_or(|(epoch, _)| *epoch != header.epoch) {
            self.epochs.push((header.epoch, header.lsn));
        }
        (self.end, self.chain) = (header.lsn.next(), header.chain);
        Ok(())
    }

    pub(super) fn note_row(&mut self, row: u64, lsn: Lsn) {
        if self.rows.back().is_none_or(|(_, last)| *last != row) {
            self.rows.push_back((lsn, row));
        }
    }
}
