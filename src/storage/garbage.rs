//! Frees rows in which nothing lives, and shrinks those in which little does.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, atomic::Ordering::Relaxed},
};

use redb::{ReadableDatabase, WriteTransaction};

use super::{
    error::StoreError,
    open::begin,
    row::{Piece, pieces},
    schema::{CHECKPOINT, ROWS, start_key},
    shard_log::{LogPoint, ShardLog, is_cut},
    view::View,
    writer::Writer,
};
use crate::{
    limits::ROW_LEN_MAX,
    types::{Lsn, ShardId},
    wire::{BadEntry, BatchHeader, EntryKind},
};

/// A pass over all rows starts when so much died since the last one, or a quarter of what lives if that is more:
/// reading everything for less would cost more than it frees.
const PASS_DEAD_MIN: u64 = 16 * 1024 * 1024;

/// What to do with a row, and where the logs start that lose entries by it.
enum Verdict {
    Keep,
    Delete(Starts),
    Shrink(Vec<u8>, Starts),
}

type Starts = BTreeMap<ShardId, LogPoint>;

impl Writer {
    /// Tells whether [`Writer::collect_garbage`] would find work.
    #[must_use]
    pub fn garbage_due(&self) -> bool {
        !self.poisoned
            && (self.garbage.starts_moved
                || self.garbage.cursor.is_some()
                || self.garbage.dead >= self.pass_threshold())
    }

    /// Frees about `budget_bytes` of log, or reads as much in search of it. Returns whether there is more to do.
    /// Entries that are needed for replay are never touched.
    ///
    /// # Errors
    /// [`StoreError`]; every later call fails too.
    pub fn collect_garbage(&mut self, budget_bytes: usize) -> Result<bool, StoreError> {
        self.exclusively(|writer| {
            if writer.garbage.starts_moved {
                writer.drop_head(budget_bytes)?;
            } else {
                writer.pass(budget_bytes)?;
            }
            writer.show_garbage();
            Ok(writer.garbage_due())
        })
    }

    /// Begins a pass over all rows, however little died: for a disk that runs full.
    pub fn begin_pass(&mut self) {
        self.garbage.cursor = Some(self.garbage.first_row);
    }

    /// The disk runs full: frees what is dead, however little, unless a pass is under way.
    pub fn press(&mut self) {
        if self.garbage.dead > 0 && self.garbage.cursor.is_none() {
            self.begin_pass();
        }
    }

    /// The first row that replay needs.
    fn replay_row(&self) -> u64 {
        self.view().shards.iter().map(|log| log.replay_row).min().unwrap_or(0)
    }

    fn pass_threshold(&self) -> u64 {
        let view = self.store.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        PASS_DEAD_MIN.max(view.live / 4)
    }

    /// Deletes rows before the lowest one in which something lives.
    fn drop_head(&mut self, budget_bytes: usize) -> Result<(), StoreError> {
        let low = {
            let view = self.store.inner.view.read().unwrap_or_else(PoisonError::into_inner);
            let facts = view.partitions.values().map(|partition| &partition.facts);
            let lowest = facts.filter(|f| f.kept.offset < f.end).map(|f| f.kept.row).min();
            lowest.unwrap_or(u64::MAX)
        };
        let low = low.min(self.replay_row());
        let first = self.garbage.first_row;
        let step = (budget_bytes / ROW_LEN_MAX).max(1) as u64;
        let to = low.min(first.saturating_add(step));
        if to > first {
            let mut freed = 0;
            let mut starts = Starts::new();
            let txn = begin(&self.store.inner.db)?;
            {
                let view = self.store.inner.view.read().unwrap_or_else(PoisonError::into_inner);
                txn.open_table(ROWS)?.retain_in(first..to, |number, row| {
                    // What cannot be read is evidence, and stays.
                    let known = starts_behind(number, row, &view, &mut starts).is_ok();
                    freed += if known { row.len() as u64 } else { 0 };
                    !known
                })?;
            }
            self.start_logs(&txn, &starts)?;
            txn.commit()?;
            self.garbage.first_row = to;
            self.freed(freed);
        }
        self.garbage.starts_moved = to < low;
        Ok(())
    }

    /// Looks at the next rows of a pass.
    fn pass(&mut self, budget_bytes: usize) -> Result<(), StoreError> {
        let cursor = match self.garbage.cursor {
            Some(cursor) => cursor.max(self.garbage.first_row),
            None if self.garbage.dead >= self.pass_threshold() => self.garbage.first_row,
            None => return Ok(()),
        };
        let end = self.replay_row();
        let (mut next, mut seen) = (cursor, 0);
        let mut verdicts = Vec::new();
        if cursor < end {
            let txn = self.store.inner.db.begin_read()?;
            let view = self.store.inner.view.read().unwrap_or_else(PoisonError::into_inner);
            for item in txn.open_table(ROWS)?.range(cursor..end)? {
                let (row, value) = item?;
                next = row.value() + 1;
                seen += value.value().len();
                match judge(row.value(), value.value(), &view) {
                    Verdict::Keep => {}
                    verdict => verdicts.push((row.value(), value.value().len(), verdict)),
                }
                if seen >= budget_bytes {
                    break;
                }
            }
        }
        let more = seen >= budget_bytes && next < end;
        self.carry_out(verdicts)?;
        self.garbage.cursor = more.then_some(next);
        if !more {
            self.garbage.dead = 0;
        }
        Ok(())
    }

    fn carry_out(&mut self, verdicts: Vec<(u64, usize, Verdict)>) -> Result<(), StoreError> {
        if verdicts.is_empty() {
            return Ok(());
        }
        let mut freed = 0;
        let mut all = Starts::new();
        let txn = begin(&self.store.inner.db)?;
        {
            let mut rows = txn.open_table(ROWS)?;
            for (row, len, verdict) in verdicts {
                match verdict {
                    Verdict::Keep => {}
                    Verdict::Delete(starts) => {
                        all.extend(starts);
                        freed += len as u64;
                        rows.remove(row)?;
                    }
                    Verdict::Shrink(bytes, starts) => {
                        all.extend(starts);
                        freed += (len - bytes.len()) as u64;
                        rows.insert(row, &bytes[..])?;
                    }
                }
            }
        }
        self.start_logs(&txn, &all)?;
        txn.commit()?;
        self.freed(freed);
        Ok(())
    }

    /// The logs that start later now than at the last call, by what the collector took away.
    pub fn take_starts(&mut self) -> Vec<(ShardId, Lsn)> {
        std::mem::take(&mut self.starts)
    }

    /// Logs start where all their entries are there. Readers learn it before the rows are gone.
    fn start_logs(&mut self, txn: &WriteTransaction, starts: &Starts) -> Result<(), StoreError> {
        let mut table = txn.open_table(CHECKPOINT)?;
        for (shard, start) in starts {
            let moves = |log: &&mut ShardLog| log.start.lsn < start.lsn;
            let mut view = self.store.inner.view.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(log) = view.shards.get_mut(usize::from(shard.0)).filter(moves) {
                log.start = *start;
                table.insert(start_key(*shard), &start.encode()[..])?;
                self.starts.push((*shard, start.lsn));
            }
        }
        Ok(())
    }

    fn freed(&mut self, bytes: u64) {
        self.garbage.dead = self.garbage.dead.saturating_sub(bytes);
        self.store.inner.counters.collected.fetch_add(bytes, Relaxed);
    }
}

/// Judges a row all of whose entries are applied. What cannot be read is evidence, and stays as it is.
fn judge(number: u64, row: &[u8], view: &View) -> Verdict {
    let mut alive = Vec::new();
    let mut at = 0;
    for piece in pieces(row) {
        let Ok(piece) = piece else { return Verdict::Keep };
        let place = at..at + piece.len();
        at = place.end;
        let Piece::Entry(header, body) = piece else { continue };
        let cuts = view.log(header.shard).map(|log| &log.cuts[..]).unwrap_or_default();
        if header.kind != EntryKind::Records || is_cut(cuts, header.lsn, number) {
            continue;
        }
        let Ok(batch) = BatchHeader::decode(body) else { return Verdict::Keep };
        let lives = view
            .partitions
            .get(&header.partition)
            .is_some_and(|partition| batch.end_offset() > partition.facts.kept.offset);
        if lives {
            alive.push(place);
        }
    }
    let len: usize = alive.iter().map(ExactSizeIterator::len).sum();
    if len >= row.len() / 2 && len > 0 {
        return Verdict::Keep;
    }
    let mut starts = Starts::new();
    if starts_behind(number, row, view, &mut starts).is_err() {
        return Verdict::Keep;
    }
    if len == 0 {
        return Verdict::Delete(starts);
    }
    Verdict::Shrink(alive.into_iter().flat_map(|entry| &row[entry]).copied().collect(), starts)
}

/// Where logs start when this row is not whole any more.
fn starts_behind(
    number: u64,
    row: &[u8],
    view: &View,
    starts: &mut Starts,
) -> Result<(), BadEntry> {
    for piece in pieces(row) {
        let Piece::Entry(header, _) = piece? else { continue };
        let Some(log) = view.log(header.shard) else { continue };
        if header.lsn >= log.start.lsn && !is_cut(&log.cuts, header.lsn, number) {
            starts.insert(header.shard, LogPoint::behind(&header));
        }
    }
    Ok(())
}
