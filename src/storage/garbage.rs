//! Frees rows in which nothing lives, and shrinks those in which little does.

use std::sync::{PoisonError, atomic::Ordering::Relaxed};

use redb::ReadableDatabase;

use super::{error::StoreError, open::begin, row::walk, schema::ROWS, view::View, writer::Writer};
use crate::{
    limits::ROW_LEN_MAX,
    wire::{BatchHeader, EntryKind},
};

/// A pass over all rows starts when so much died since the last one, or a quarter of what lives if that is more:
/// reading everything for less would cost more than it frees.
const PASS_DEAD_MIN: u64 = 16 * 1024 * 1024;

/// What to do with a row.
enum Verdict {
    Keep,
    Delete,
    Shrink(Vec<u8>),
}

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
        self.shards.iter().map(|log| log.replay_row).min().unwrap_or(0)
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
            lowest.unwrap_or(u64::MAX).min(self.replay_row())
        };
        let first = self.garbage.first_row;
        let step = (budget_bytes / ROW_LEN_MAX).max(1) as u64;
        let to = low.min(first.saturating_add(step));
        if to > first {
            let mut freed = 0;
            let txn = begin(&self.store.inner.db)?;
            txn.open_table(ROWS)?.retain_in(first..to, |_, row| {
                freed += row.len() as u64;
                false
            })?;
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
                match judge(value.value(), &view) {
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
        let txn = begin(&self.store.inner.db)?;
        {
            let mut rows = txn.open_table(ROWS)?;
            for (row, len, verdict) in verdicts {
                match verdict {
                    Verdict::Keep => {}
                    Verdict::Delete => {
                        freed += len as u64;
                        rows.remove(row)?;
                    }
                    Verdict::Shrink(bytes) => {
                        freed += (len - bytes.len()) as u64;
                        rows.insert(row, &bytes[..])?;
                    }
                }
            }
        }
        txn.commit()?;
        self.freed(freed);
        Ok(())
    }

    fn freed(&mut self, bytes: u64) {
        self.garbage.dead = self.garbage.dead.saturating_sub(bytes);
        self.store.inner.counters.collected.fetch_add(bytes, Relaxed);
    }
}

/// Judges a row all of whose entries are applied. What cannot be read is evidence, and stays as it is.
fn judge(row: &[u8], view: &View) -> Verdict {
    let mut alive = Vec::new();
    let mut at = 0;
    for item in walk(row) {
        let Ok((header, body)) = item else { return Verdict::Keep };
        let entry = at..at + header.entry_len();
        at = entry.end;
        if header.kind != EntryKind::Records {
            continue;
        }
        let Ok(batch) = BatchHeader::decode(body) else { return Verdict::Keep };
        let lives = view
            .partitions
            .get(&header.partition)
            .is_some_and(|partition| batch.end_offset() > partition.facts.kept.offset);
        if lives {
            alive.push(entry);
        }
    }
    let len: usize = alive.iter().map(ExactSizeIterator::len).sum();
    if len == 0 {
        Verdict::Delete
    } else if len < row.len() / 2 {
        Verdict::Shrink(alive.into_iter().flat_map(|entry| &row[entry]).copied().collect())
    } else {
        Verdict::Keep
    }
}
