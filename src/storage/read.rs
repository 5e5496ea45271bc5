//! Reads from any thread, beside the one that writes.

use std::{
    ops::ControlFlow,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use redb::{AccessGuard, Database, ReadOnlyTable, ReadableDatabase};

use super::{
    backend::Meter,
    error::{ReadError, StoreError, guarded},
    index::{self, IndexEntry, Key},
    row::walk,
    schema::{INDEX, IndexKey, ROWS},
    shard_log::{Cut, is_cut},
    view::{Bounds, Facts, Point, View},
};
use crate::{
    types::{Lsn, Offset, PartitionId, Retention, ShardId, Timestamp},
    wire::{BatchHeader, EntryKind, entry::ENTRY_HEADER_LEN},
};

/// Reads what is committed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) db: Database,
    pub(super) view: RwLock<View>,
    /// Of the database, and of the journal.
    pub(super) meters: [Arc<Meter>; 2],
    pub(super) counters: Counters,
}

/// What the writer did since the store was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) commits: AtomicU64,
    pub(super) checkpoints: AtomicU64,
    pub(super) entries: AtomicU64,
    pub(super) entry_bytes: AtomicU64,
    pub(super) commit_nanos_last: AtomicU64,
    pub(super) commit_nanos_max: AtomicU64,
    pub(super) commit_nanos_sum: AtomicU64,
    pub(super) rows_next: AtomicU64,
    pub(super) rows_first: AtomicU64,
    pub(super) dead: AtomicU64,
    pub(super) collected: AtomicU64,
}

/// Figures of a store; counters start at open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Row numbers from the oldest row to the newest; those in between that are collected count too.
    pub rows: u64,
    /// Length of the file; it is sparse.
    pub file_bytes: u64,
    /// Bytes of log entries that must be kept.
    pub live_bytes: u64,
    /// Bytes of log entries that the collector may free, as far as known.
    pub dead_bytes: u64,
    /// Bytes of rows that the collector freed.
    pub collected_bytes: u64,
    /// Commits of log entries.
    pub commits: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Log entries committed.
    pub entries: u64,
    /// Their bytes.
    pub entry_bytes: u64,
    /// Bytes written to the database and the journal: divided by `entry_bytes`, the write amplification.
    pub written_bytes: u64,
    /// Writes to both.
    pub writes: u64,
    /// Flushes of both.
    pub syncs: u64,
    /// Time of the last commit.
    pub commit_nanos_last: u64,
    /// Time of the slowest commit.
    pub commit_nanos_max: u64,
    /// Time of all commits.
    pub commit_nanos_sum: u64,
}

/// What a read found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Whole batches, one after the other without gaps; the first holds the offset that was asked for.
    pub batches: Vec<Bytes>,
    /// Where to read on.
    pub next: Offset,
}

/// A moment of the store: the tables of one transaction, and the index entries to start from.
struct Look {
    facts: Facts,
    run: Vec<IndexEntry>,
    rows: ReadOnlyTable<u64, &'static [u8]>,
    /// Those rows of `run` that are not in `rows` yet.
    waiting: Vec<(u64, Arc<Vec<Bytes>>)>,
    index: ReadOnlyTable<IndexKey, &'static [u8]>,
    cuts: Arc<[Cut]>,
    /// Where the part of the index that is in memory begins.
    tail_first: Option<IndexEntry>,
}

/// Who reads: the writer sees what is going, too.
#[derive(Clone, Copy, Debug)]
enum Who {
    Readers,
    Writer,
}

/// A batch in its row. Its checksums were found right.
struct Found<'a> {
    header: BatchHeader,
    bytes: &'a [u8],
}

impl Store {
    /// Reads whole batches from the one that holds `from` on, up to `end` (exclusive), about `max_bytes` but at least
    /// one batch if there is one. At or past `end` the chunk is empty.
    ///
    /// # Errors
    /// [`ReadError::OutOfRange`] before the start; [`ReadError::Corrupted`] when the next batch is broken: it is never
    /// skipped. What lies before a broken batch is returned first.
    pub fn read(
        &self,
        partition: PartitionId,
        from: Offset,
        end: Offset,
        max_bytes: usize,
    ) -> Result<Chunk, ReadError> {
        let mut buffer = Vec::new();
        let mut lens = Vec::new();
        let mut next = from;
        let scanned = self.scan(partition, Who::Readers, from, end, |batch| {
            if !lens.is_empty() && buffer.len() + batch.bytes.len() > max_bytes {
                return ControlFlow::Break(());
            }
            if lens.is_empty() {
                buffer.reserve(max_bytes.max(batch.bytes.len()).min(READ_RESERVE));
            }
            buffer.extend_from_slice(batch.bytes);
            lens.push(batch.bytes.len());
            next = batch.header.end_offset();
            if buffer.len() >= max_bytes {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        match scanned {
            Err(ReadError::Corrupted { .. }) if !lens.is_empty() => {}
            scanned => scanned?,
        }
        let mut rest = Bytes::from(buffer);
        let batches = lens.into_iter().map(|len| rest.split_to(len)).collect();
        Ok(Chunk { batches, next })
    }

    /// The partitions of a shard, with the extent of each.
    #[must_use]
    pub fn partitions_of(&self, shard: ShardId) -> Vec<(PartitionId, Bounds)> {
        let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        let here =
            view.partitions.iter().filter(|(_, p)| p.facts.shard == shard && !p.facts.dropped);
        let mut found: Vec<_> = here.map(|(id, p)| (*id, p.facts.bounds())).collect();
        found.sort_by_key(|(id, _)| *id);
        found
    }

    /// The extent of a partition, if it is here.
    #[must_use]
    pub fn bounds(&self, partition: PartitionId) -> Option<Bounds> {
        let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        view.get(partition).map(|partition| partition.facts.bounds())
    }

    /// The first offset whose batch was taken at `time` or later; `end` if there is none before it.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn offset_at_time(
        &self,
        partition: PartitionId,
        time: Timestamp,
        end: Offset,
    ) -> Result<Offset, ReadError> {
        let bounds = self.bounds(partition).ok_or(ReadError::NotFound(partition))?;
        let end = end.min(bounds.end).max(bounds.start);
        if time > bounds.last_time || bounds.start == end {
            return Ok(end);
        }
        let near = guarded(|| self.look(partition, Who::Readers, Key::Time(time)))?;
        let from = near.run.first().map_or(bounds.start, |e| e.base.max(near.facts.start.offset));
        let mut found = end;
        let scanned = self.scan(partition, Who::Readers, from, end, |batch| {
            if batch.header.append_time < time {
                return ControlFlow::Continue(());
            }
            found = batch.header.base_offset.max(near.facts.start.offset);
            ControlFlow::Break(())
        });
        match scanned {
            Ok(()) => Ok(found),
            // Trimmed while we looked; a start only grows, so this ends.
            Err(ReadError::OutOfRange { .. }) => self.offset_at_time(partition, time, end),
            Err(error) => Err(error),
        }
    }

    /// Where the log of a partition should start, by the limits of its topic: at the first batch that none of them lets
    /// go, and not beyond `end`. A batch goes when all of it may go.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn retention_start(
        &self,
        partition: PartitionId,
        retention: &Retention,
        now: Timestamp,
        end: Offset,
    ) -> Result<Offset, ReadError> {
        let bounds = self.bounds(partition).ok_or(ReadError::NotFound(partition))?;
        let mut start = bounds.start;
        if let Some(age) = retention.age_ms
            && let oldest = Timestamp(now.0.saturating_sub(age))
            && bounds.first_time.is_some_and(|first| first < oldest)
        {
            start = start.max(self.offset_at_time(partition, oldest, end)?);
        }
        if let Some(records) = retention.records
            && let Some(target) = end.0.checked_sub(records)
            && target > start.0
        {
            start = start.max(self.batch_start(partition, Offset(target), end)?);
        }
        if let Some(bytes) = retention.bytes
            && bounds.bytes > bytes
        {
            start = start.max(self.start_by_bytes(partition, bounds.bytes - bytes, end)?);
        }
        Ok(start.min(end).max(bounds.start))
    }

    /// Figures for metrics.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Inner { meters, counters, view, .. } = &*self.inner;
        let live_bytes = view.read().unwrap_or_else(PoisonError::into_inner).live;
        let sum = |of: fn(&Meter) -> &AtomicU64| meters.iter().map(|m| of(m).load(Relaxed)).sum();
        Stats {
            rows: counters.rows_next.load(Relaxed) - counters.rows_first.load(Relaxed),
            file_bytes: meters[0].len.load(Relaxed),
            live_bytes,
            dead_bytes: counters.dead.load(Relaxed),
            collected_bytes: counters.collected.load(Relaxed),
            commits: counters.commits.load(Relaxed),
            checkpoints: counters.checkpoints.load(Relaxed),
            entries: counters.entries.load(Relaxed),
            entry_bytes: counters.entry_bytes.load(Relaxed),
            written_bytes: sum(|meter| &meter.written),
            writes: sum(|meter| &meter.writes),
            syncs: sum(|meter| &meter.syncs),
            commit_nanos_last: counters.commit_nanos_last.load(Relaxed),
            commit_nanos_max: counters.commit_nanos_max.load(Relaxed),
            commit_nanos_sum: counters.commit_nanos_sum.load(Relaxed),
        }
    }

    /// The place of an offset: exact, or by row where the row cannot be read.
    pub(super) fn locate(
        &self,
        partition: PartitionId,
        offset: Offset,
    ) -> Result<Point, ReadError> {
        let look = self.look(partition, Who::Writer, Key::Offset(offset))?;
        let at_end = Point { offset: look.facts.end, bytes: look.facts.bytes, row: 0 };
        if offset >= look.facts.end {
            return Ok(at_end);
        }
        let Some(entry) = look.run.first() else { return Err(no_index(partition, offset)) };
        let mut point = Point { offset, bytes: entry.bytes_before, row: entry.row };
        let next = index::following(&look.index, partition, entry.base)?;
        let behind = look.run.get(1).copied().or(next).or(look.tail_first);
        let behind =
            behind.filter(|e| e.base > entry.base).map_or(at_end.bytes, |e| e.bytes_before);
        // Counted from the back: the collector may have removed batches from the front of the row.
        let mut ahead = 0;
        if let Some(row) = look.row(entry.row)? {
            for item in row.parts().flat_map(walk) {
                let Ok((header, body)) = item else { return Ok(point) };
                let other = header.partition != partition || header.kind != EntryKind::Records;
                if other || is_cut(&look.cuts, header.lsn, entry.row) {
                    continue;
                }
                let Ok(batch) = BatchHeader::decode(body) else { return Ok(point) };
                if batch.end_offset() > offset {
                    ahead += header.entry_len() as u64;
                }
            }
        }
        if let Some(before) = behind.checked_sub(ahead).filter(|b| *b >= entry.bytes_before) {
            point.bytes = before;
        }
        Ok(point)
    }

    /// When the batch that holds `offset` was taken.
    pub(super) fn time_of(&self, partition: PartitionId, offset: Offset) -> Option<Timestamp> {
        let mut time = None;
        let end = Offset(u64::MAX);
        let scanned = self.scan(partition, Who::Writer, offset, end, |batch| {
            time = Some(batch.header.append_time);
            ControlFlow::Break(())
        });
        scanned.ok().and(time)
    }

    /// The first batch that stays when whole batches of at most `spare` bytes go.
    fn start_by_bytes(
        &self,
        partition: PartitionId,
        spare: u64,
        end: Offset,
    ) -> Result<Offset, ReadError> {
        let facts = guarded(|| self.look(partition, Who::Readers, Key::Offset(Offset(0))))?.facts;
        let target = facts.start.bytes + spare;
        let near = guarded(|| self.look(partition, Who::Readers, Key::Bytes(target)))?
            .run
            .first()
            .copied();
        // From the start on every batch is there, so bytes can be counted from any row that begins behind it.
        let near = near.filter(|entry| entry.base >= facts.start.offset);
        let (mut start, mut bytes) =
            near.map_or((facts.start.offset, facts.start.bytes), |e| (e.base, e.bytes_before));
        self.scan(partition, Who::Readers, start, end, |batch| {
            bytes += (ENTRY_HEADER_LEN + batch.bytes.len()) as u64;
            if bytes > target {
                return ControlFlow::Break(());
            }
            start = batch.header.end_offset();
            ControlFlow::Continue(())
        })?;
        Ok(start)
    }

    /// The base of the batch that holds `offset`.
    fn batch_start(
        &self,
        partition: PartitionId,
        offset: Offset,
        end: Offset,
    ) -> Result<Offset, ReadError> {
        let mut start = offset;
        self.scan(partition, Who::Readers, offset, end, |batch| {
            start = batch.header.base_offset;
            ControlFlow::Break(())
        })?;
        Ok(start)
    }

    /// Calls `visit` for each batch from the one that holds `from` on, as long as all of it lies before `end`.
    fn scan(
        &self,
        partition: PartitionId,
        who: Who,
        from: Offset,
        end: Offset,
        mut visit: impl FnMut(Found<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        guarded(|| {
            let mut next = from;
            loop {
                let look = self.look(partition, who, Key::Offset(next))?;
                let Facts { start, end: log_end, .. } = look.facts;
                if next < start.offset {
                    return Err(ReadError::OutOfRange { start: start.offset, end: log_end });
                }
                let end = end.min(log_end);
                if next >= end {
                    return Ok(());
                }
                if look.run.is_empty() {
                    return Err(no_index(partition, next));
                }
                for entry in &look.run {
                    let row = look.row(entry.row)?;
                    let row =
                        row.ok_or_else(|| corrupted(partition, next, "its row is missing"))?;
                    let cut = |lsn| is_cut(&look.cuts, lsn, entry.row);
                    match scan_row(&row, partition, cut, &mut next, end, &mut visit)? {
                        ControlFlow::Break(()) => return Ok(()),
                        ControlFlow::Continue(()) if next >= end => return Ok(()),
                        ControlFlow::Continue(()) => {}
                    }
                }
            }
        })
    }

    fn look(&self, id: PartitionId, who: Who, key: Key) -> Result<Look, ReadError> {
        let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        let partition = match who {
            Who::Readers => view.get(id),
            Who::Writer => view.partitions.get(&id),
        };
        let partition = partition.ok_or(ReadError::NotFound(id))?;
        let (facts, tail_first) = (partition.facts, partition.tail.first().copied());
        let cuts = view.log(facts.shard).map(|log| Arc::clone(&log.cuts)).unwrap_or_default();
        let run = index::seek_tail(partition, key);
        let waiting = match &run {
            Some(run) => {
                run.iter().filter_map(|e| Some((e.row, view.waiting.get(e.row)?))).collect()
            }
            None => Vec::new(),
        };
        // Under the lock: the tables may be newer than the view, never older, and what the view calls live is never
        // collected before the view says otherwise.
        let txn = self.inner.db.begin_read().map_err(StoreError::from)?;
        drop(view);
        let (rows, index) = (txn.open_table(ROWS)?, txn.open_table(INDEX)?);
        let run = match run {
            Some(run) => run,
            None => match index::seek_disk(&index, id, key, facts.end)? {
                entries if entries.is_empty() => tail_first.into_iter().collect(),
                entries => entries,
            },
        };
        Ok(Look { facts, run, rows, waiting, index, cuts, tail_first })
    }
}

/// The entries of one row.
enum Row<'a> {
    Stored(AccessGuard<'a, &'static [u8]>),
    Waiting(&'a [Bytes]),
}

impl Row<'_> {
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let (stored, waiting) = match self {
            Self::Stored(row) => (Some(row.value()), &[][..]),
            Self::Waiting(parts) => (None, *parts),
        };
        stored.into_iter().chain(waiting.iter().map(|part| &part[..]))
    }
}

impl Look {
    fn row(&self, row: u64) -> Result<Option<Row<'_>>, StoreError> {
        if let Ok(at) = self.waiting.binary_search_by_key(&row, |(number, _)| *number) {
            return Ok(Some(Row::Waiting(&self.waiting[at].1)));
        }
        Ok(self.rows.get(row)?.map(Row::Stored))
    }
}

/// Most bytes taken for a read before its batches are known.
const READ_RESERVE: usize = 256 * 1024;

/// Visits the batches of one row from `next` on, and moves `next` behind them.
fn scan_row(
    row: &Row<'_>,
    partition: PartitionId,
    cut: impl Fn(Lsn) -> bool,
    next: &mut Offset,
    end: Offset,
    visit: &mut impl FnMut(Found<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, ReadError> {
    let before = *next;
    for item in row.parts().flat_map(walk) {
        let (header, body) = item.map_err(|e| corrupted(partition, *next, e))?;
        let other = header.partition != partition || header.kind != EntryKind::Records;
        if other || cut(header.lsn) {
            continue;
        }
        let batch = BatchHeader::decode(body).map_err(|e| corrupted(partition, *next, e))?;
        if batch.end_offset() <= *next && *next == before {
            continue;
        }
        header.check_body(body).map_err(|e| corrupted(partition, *next, e))?;
        if batch.base_offset > *next || (batch.base_offset < *next && *next != before) {
            let reason = format!("found the batch of offset {}", batch.base_offset);
            return Err(corrupted(partition, *next, reason));
        }
        if batch.end_offset() > end {
            return Ok(ControlFlow::Break(()));
        }
        if visit(Found { header: batch, bytes: body }).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        *next = batch.end_offset();
    }
    if *next == before {
        return Err(corrupted(partition, before, "its row does not hold it"));
    }
    Ok(ControlFlow::Continue(()))
}

fn corrupted(partition: PartitionId, offset: Offset, reason: impl ToString) -> ReadError {
    ReadError::Corrupted { partition, offset, reason: reason.to_string() }
}

fn no_index(partition: PartitionId, offset: Offset) -> ReadError {
    corrupted(partition, offset, "the index does not know it")
}
