//! The one that writes: packs entries into rows and commits them.

use std::{
    collections::{HashMap, HashSet},
    io,
    ops::Range,
    sync::{PoisonError, RwLockWriteGuard, atomic::Ordering::Relaxed},
    time::Instant,
};

use bytes::Bytes;
use redb::WriteTransaction;

use super::{
    change::Change,
    error::{StoreError, guarded},
    fact::{Fact, What},
    journal::Journal,
    mover::{Move, Mover, write_rows},
    open::begin,
    read::Store,
    row::Cursor,
    schema::{CHECKPOINT_BYTES, CHECKPOINT_ENTRIES, META, ROWS},
    shard_log::PendingEnding,
    view::{Ending, Point, View},
};
use crate::{
    types::{Epoch, Lsn, Offset, PartitionId, ShardId},
    wire::{Entry, EntryKind},
};

/// Writes the log. Belongs to one OS thread: its calls wait for the disk.
#[derive(Debug)]
pub struct Writer {
    pub(super) store: Store,
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
    /// Facts that go with the next commit.
    facts: Vec<u8>,
    /// Positions below which the log is committed, to be made durable with the next commit.
    noted: Vec<(ShardId, Lsn)>,
    /// Logs that start later than their shards know.
    pub(super) starts: Vec<(ShardId, Lsn)>,
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
    pub(super) fn new(store: Store, journal: Journal, next_row: u64, garbage: Garbage) -> Self {
        Self {
            store,
            cursor: Cursor::at(next_row),
            dirty: HashSet::new(),
            garbage,
            since: (0, 0),
            poisoned: false,
            journal,
            mover: Mover::default(),
            buffer: Vec::new(),
            facts: Vec::new(),
            noted: Vec::new(),
            starts: Vec::new(),
        }
    }

    /// Takes over what replay found behind the checkpoint.
    pub(super) fn resume(&mut self, dirty: HashSet<PartitionId>, entries: usize, bytes: usize) {
        self.dirty = dirty;
        self.since = (entries, bytes);
    }

    /// Commits entries of any shards, each shard's in order. When it returns they survive a power cut, and readers see
    /// them. Returns how much was done for each shard that has entries among them, as [`Writer::perform`] does.
    ///
    /// # Errors
    /// [`StoreError`]; it is then unknown which entries are on disk, and every later call fails too.
    ///
    /// # Panics
    /// If an entry does not follow the one before it in its shard or partition, or comes for a dropped partition: the
    /// shard decides, the log only follows.
    pub fn commit(&mut self, entries: &[Entry]) -> Result<Vec<(ShardId, u64)>, StoreError> {
        self.perform(entries, Vec::new())
    }

    /// Commits entries, and changes in between: each says before which of the entries it comes. A change other than a
    /// promise is a transaction of its own. Returns how many appends and changes were done since the store was opened,
    /// for each shard that is among these.
    ///
    /// # Errors
    /// [`StoreError`]; it is then unknown what of it is on disk, and every later call fails too.
    ///
    /// # Panics
    /// As [`Writer::commit`], and if a change contradicts what is known to be committed.
    pub fn perform(
        &mut self,
        entries: &[Entry],
        changes: Vec<(usize, ShardId, Change)>,
    ) -> Result<Vec<(ShardId, u64)>, StoreError> {
        let mut touched: Vec<ShardId> = entries.iter().map(|entry| entry.header.shard).collect();
        let mut from = 0;
        for (at, shard, change) in changes {
            touched.push(shard);
            if !matches!(change, Change::Promise(_)) {
                self.commit_part(&entries[from..at])?;
                from = at;
            }
            self.change(shard, &change)?;
        }
        self.commit_part(&entries[from..])?;
        touched.sort_unstable();
        touched.dedup();
        let view = self.store.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        let done = |shard: ShardId| view.log(shard).map(|log| (shard, log.done));
        Ok(touched.into_iter().filter_map(done).collect())
    }

    /// Notes that positions of a shard below `committed` are committed, to be made durable with the next commit.
    pub fn note_committed(&mut self, shard: ShardId, committed: Lsn) {
        match self.noted.iter_mut().find(|(noted, _)| *noted == shard) {
            Some((_, lsn)) => *lsn = committed.max(*lsn),
            None => self.noted.push((shard, committed)),
        }
    }

    /// What is known to be committed of a shard is void.
    pub(super) fn forget_committed(&mut self, shard: ShardId) {
        self.noted.retain(|(noted, _)| *noted != shard);
        self.view().shards[usize::from(shard.0)].high_watermark = Lsn(0);
    }

    /// Tells whether the log behind the last checkpoint has grown so far that a new one is due.
    #[must_use]
    pub fn checkpoint_due(&self) -> bool {
        self.since.0 >= CHECKPOINT_ENTRIES || self.since.1 >= CHECKPOINT_BYTES
    }

    /// Tells whether records were trimmed or dropped since the last checkpoint: their room is free only after one.
    #[must_use]
    pub fn has_endings(&self) -> bool {
        let view = self.store.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        view.shards.iter().any(|log| !log.endings.is_empty())
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
        let view = self.store.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        view.log(shard).map(|log| log.end.lsn)
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

    /// Commits entries that no change lies between, and the facts that wait.
    fn commit_part(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        if entries.is_empty() && self.facts.is_empty() {
            return Ok(());
        }
        self.check_order(entries);
        self.exclusively(|writer| writer.commit_all(entries))
    }

    fn commit_all(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        let begun = clock();
        if !self.noted.is_empty() {
            self.take_noted();
        }
        let facts = std::mem::take(&mut self.facts);
        let entry_bytes: usize = entries.iter().map(|entry| entry.header.entry_len()).sum();
        let bytes = entry_bytes + facts.len();
        let rows = if self.journal.takes(bytes) {
            self.make_room(bytes)?;
            let rows = self.cut(entries, &facts);
            let frame = self.journal.append(entries, &facts, bytes)?;
            self.wait(&rows, entries, &facts, frame);
            rows
        } else {
            let txn = self.begin()?;
            let rows = self.cut(entries, &facts);
            self.write(&txn, &rows, entries, &facts)?;
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
                for Entry { header, body } in &entries[range.start..range.end.min(entries.len())] {
                    let log = &mut view.shards[usize::from(header.shard.0)];
                    log.take(row, header).map_err(|e| StoreError::Corrupted(e.to_string()))?;
                    log.done += 1;
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
        self.count(entries.len(), entry_bytes, nanos);
        Ok(())
    }

    pub(super) fn promise(&mut self, shard: ShardId, epoch: Epoch) {
        {
            let mut view = self.view();
            let log = &mut view.shards[usize::from(shard.0)];
            log.promised = log.promised.max(epoch);
        }
        Fact { shard, what: What::Promise(epoch) }.encode(&mut self.facts);
    }

    /// Makes facts of what was noted as committed, as far as it is durable.
    fn take_noted(&mut self) {
        let view = &self.store.inner.view;
        let mut view = view.write().unwrap_or_else(PoisonError::into_inner);
        for (shard, noted) in &self.noted {
            let Some(log) = view.shards.get_mut(usize::from(shard.0)) else { continue };
            let committed = (*noted).min(log.end.lsn);
            if committed > log.high_watermark && !log.installing {
                log.high_watermark = committed;
                let what = What::HighWatermark(committed);
                Fact { shard: *shard, what }.encode(&mut self.facts);
            }
        }
        let ahead = |(shard, noted): &(ShardId, Lsn)| {
            view.log(*shard).is_some_and(|log| *noted > log.high_watermark)
        };
        self.noted.retain(ahead);
    }

    /// Cuts entries into rows. What lies behind the last of them stands for the facts.
    pub(super) fn cut(&mut self, entries: &[Entry], facts: &[u8]) -> Vec<(u64, Range<usize>)> {
        let facts = (!facts.is_empty()).then_some(facts.len());
        self.cursor.cut(entries.iter().map(|entry| entry.header.entry_len()).chain(facts))
    }

    /// Writes the rows of a commit into the database.
    pub(super) fn write(
        &mut self,
        txn: &WriteTransaction,
        rows: &[(u64, Range<usize>)],
        entries: &[Entry],
        facts: &[u8],
    ) -> Result<(), StoreError> {
        let mut table = txn.open_table(ROWS)?;
        for (row, range) in rows {
            self.buffer.clear();
            for at in range.clone() {
                match entries.get(at) {
                    Some(entry) => entry.encode(&mut self.buffer),
                    None => self.buffer.extend_from_slice(facts),
                }
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
    fn wait(
        &self,
        rows: &[(u64, Range<usize>)],
        entries: &[Entry],
        facts: &[u8],
        mut frame: Bytes,
    ) {
        let mut view = self.view();
        let len = |at: usize| entries.get(at).map_or(facts.len(), |entry| entry.header.entry_len());
        for (row, range) in rows {
            let len = range.clone().map(len).sum();
            view.waiting.push(*row, frame.split_to(len));
        }
    }

    pub(super) fn view(&self) -> RwLockWriteGuard<'_, View> {
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
            self.view().shards[usize::from(shard.0)].endings.push_back((lsn, pending));
        }
        Ok(())
    }

    fn trim(&mut self, id: PartitionId, offset: Offset) -> Result<Option<Point>, StoreError> {
        // Also of a partition that is going: the entry that ends it may be cut off.
        let facts = self.view().partitions.get(&id).map(|partition| partition.facts);
        let Some(facts) = facts else { return Ok(None) };
        let offset = offset.min(facts.end);
        let point = self.store.locate(id, offset)?;
        if offset > facts.start.offset {
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
            let Some(log) = view.log(header.shard) else {
                panic!("entry of shard {}, there are {}", header.shard, view.shards.len());
            };
            assert!(!log.installing, "nothing is appended to a log that is half installed");
            assert_eq!(body.len(), header.body_len as usize, "an entry is committed whole");
            let (lsn, chain) = shards.entry(header.shard).or_insert((log.end.lsn, log.end.chain));
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
