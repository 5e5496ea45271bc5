//! Reads of a shard's log, entry by entry: what replicas compare and copy.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use redb::{ReadOnlyTable, ReadableDatabase};

use super::{
    error::{ReadError, StoreError, guarded},
    read::Store,
    row::walk,
    schema::{LOG_INDEX, LogIndexKey, ROWS, decode_log_index},
    shard_log::{Cut, LogPoint, is_cut},
};
use crate::{
    types::{Lsn, ShardId},
    wire::Entry,
};

/// Most rows looked up in memory at a time.
const RUN_MAX: usize = 64;

/// A moment of a shard's log: rows to look in, from the one on that holds the wanted entry.
struct Look {
    start: LogPoint,
    end: LogPoint,
    cuts: Arc<[Cut]>,
    run: Vec<(Lsn, u64)>,
    waiting: Vec<(u64, Arc<Vec<Bytes>>)>,
    rows: ReadOnlyTable<u64, &'static [u8]>,
}

impl Store {
    /// What the end of a shard's log would be if it ended at `lsn`: none before its start or behind its durable end, and
    /// while it is half installed.
    ///
    /// # Errors
    /// [`ReadError::LogCorrupted`] when the entry before it cannot be read.
    pub fn log_point(&self, shard: ShardId, lsn: Lsn) -> Result<Option<LogPoint>, ReadError> {
        guarded(|| {
            let Some(look) = self.look_log(shard, Lsn(lsn.0.saturating_sub(1)))? else {
                return Ok(None);
            };
            if lsn < look.start.lsn || lsn > look.end.lsn {
                return Ok(None);
            }
            for known in [look.end, look.start] {
                if lsn == known.lsn {
                    return Ok(Some(known));
                }
            }
            let mut found = None;
            look.scan(shard, Lsn(lsn.0 - 1), lsn, |entry| {
                found = Some(LogPoint::behind(&entry.header));
                false
            })?;
            Ok(found)
        })
    }

    /// The first entry of a shard's log that is kept.
    #[must_use]
    pub fn log_start(&self, shard: ShardId) -> Lsn {
        let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        view.log(shard).map(|log| log.start.lsn).unwrap_or_default()
    }

    /// The durable end of a shard's log.
    #[must_use]
    pub fn log_end(&self, shard: ShardId) -> Lsn {
        let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        view.log(shard).map(|log| log.end.lsn).unwrap_or_default()
    }

    /// Whole entries of a shard's log from `from` on, before `until`, as far as they are durable: about `max_bytes`, but
    /// at least one if there is one. Their checksums are right, and they are a chain.
    ///
    /// # Errors
    /// [`ReadError::LogOutOfRange`] before the start; [`ReadError::LogCorrupted`] when the first entry is broken. What
    /// lies before a broken entry is returned first.
    pub fn read_log(
        &self,
        shard: ShardId,
        from: Lsn,
        until: Lsn,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        guarded(|| {
            let (mut entries, mut bytes) = (Vec::<Entry>::new(), 0);
            loop {
                let next = entries.last().map_or(from, |entry| entry.header.lsn.next());
                let Some(look) = self.look_log(shard, next)? else { return Ok(entries) };
                if next < look.start.lsn {
                    let (start, end) = (look.start.lsn, look.end.lsn);
                    return Err(ReadError::LogOutOfRange { shard, start, end });
                }
                let until = until.min(look.end.lsn);
                if next >= until {
                    return Ok(entries);
                }
                let mut full = false;
                let scanned = look.scan(shard, next, until, |entry| {
                    let len = entry.header.entry_len();
                    let follows = entries.last().is_none_or(|last| {
                        entry.header.chain == entry.header.chain_after(last.header.chain)
                    });
                    // Cut off and written anew since the last look.
                    full = !follows || (!entries.is_empty() && bytes + len > max_bytes);
                    if !full {
                        bytes += len;
                        entries.push(entry);
                    }
                    !full
                });
                match scanned {
                    Err(_) if !entries.is_empty() => return Ok(entries),
                    scanned => scanned?,
                }
                if full || bytes >= max_bytes {
                    return Ok(entries);
                }
            }
        })
    }

    /// None while the log is half installed, and for a shard that is not here.
    fn look_log(&self, shard: ShardId, lsn: Lsn) -> Result<Option<Look>, StoreError> {
        let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        let Some(log) = view.log(shard).filter(|log| !log.installing) else { return Ok(None) };
        let behind = log.rows.partition_point(|(first, _)| *first <= lsn);
        let run: Vec<_> = match behind.checked_sub(1) {
            Some(at) => log.rows.range(at..).take(RUN_MAX).copied().collect(),
            None => Vec::new(),
        };
        let waiting = run.iter().filter_map(|(_, row)| Some((*row, view.waiting.get(*row)?)));
        let waiting = waiting.collect();
        let (start, end, cuts) = (log.start, log.end, Arc::clone(&log.cuts));
        // Under the lock: see `Store::look`.
        let txn = self.inner.db.begin_read()?;
        drop(view);
        let (rows, index) = (txn.open_table(ROWS)?, txn.open_table(LOG_INDEX)?);
        let run = match run.is_empty() {
            false => run,
            true => rows_from(&index, shard, lsn)?,
        };
        Ok(Some(Look { start, end, cuts, run, waiting, rows }))
    }
}

/// The rows of a chunk of the log index, from the one on that holds the entry at `lsn`.
pub(super) fn rows_from(
    index: &ReadOnlyTable<LogIndexKey, &'static [u8]>,
    shard: ShardId,
    lsn: Lsn,
) -> Result<Vec<(Lsn, u64)>, StoreError> {
    let Some(item) = index.range((shard.0, 0)..=(shard.0, lsn.0))?.next_back() else {
        return Ok(Vec::new());
    };
    let mut pairs = decode_log_index(item?.1.value())?;
    let behind = pairs.partition_point(|(first, _)| *first <= lsn);
    pairs.drain(..behind.saturating_sub(1));
    Ok(pairs)
}

/// The first entry of a shard's log in a row, and the one behind the last; none if it has none there.
pub(super) fn rows_with(
    store: &Store,
    shard: ShardId,
    row: u64,
) -> Result<Option<(Lsn, Lsn)>, StoreError> {
    let view = store.inner.view.read().unwrap_or_else(PoisonError::into_inner);
    let Some(log) = view.log(shard) else { return Ok(None) };
    let (end, rows) = (log.end.lsn, log.rows.clone());
    let txn = store.inner.db.begin_read()?;
    drop(view);
    let mut first = None;
    let index = txn.open_table(LOG_INDEX)?;
    let stored = index.range((shard.0, 0)..=(shard.0, u64::MAX))?;
    for item in stored {
        for (lsn, at) in decode_log_index(item?.1.value())? {
            match first {
                None if at == row => first = Some(lsn),
                Some(first) if at > row => return Ok(Some((first, lsn))),
                _ => {}
            }
        }
    }
    for (lsn, at) in rows {
        match first {
            None if at == row => first = Some(lsn),
            Some(first) if at > row => return Ok(Some((first, lsn))),
            _ => {}
        }
    }
    Ok(first.map(|first| (first, end)))
}

impl Look {
    /// Visits entries from `next` on, before `until`, as far as the rows of this look go and `visit` wants more.
    fn scan(
        &self,
        shard: ShardId,
        mut next: Lsn,
        until: Lsn,
        mut visit: impl FnMut(Entry) -> bool,
    ) -> Result<(), ReadError> {
        let first = next;
        for (_, number) in &self.run {
            let stored;
            let parts: &[Bytes] =
                match self.waiting.binary_search_by_key(number, |(number, _)| *number) {
                    Ok(at) => &self.waiting[at].1,
                    Err(_) => match self.rows.get(number).map_err(StoreError::from)? {
                        Some(row) => {
                            stored = [Bytes::copy_from_slice(row.value())];
                            &stored
                        }
                        None => return Err(corrupted(shard, next, "its row is missing")),
                    },
                };
            for part in parts {
                for item in walk(part) {
                    let (header, body) = item.map_err(|e| corrupted(shard, next, e))?;
                    let wanted = header.shard == shard && header.lsn == next;
                    if !wanted || is_cut(&self.cuts, header.lsn, *number) {
                        continue;
                    }
                    header.check_body(body).map_err(|e| corrupted(shard, next, e))?;
                    if !visit(Entry { header, body: part.slice_ref(body) }) {
                        return Ok(());
                    }
                    next = next.next();
                    if next >= until {
                        return Ok(());
                    }
                }
            }
            if next == first {
                break;
            }
        }
        if next == first {
            return Err(corrupted(shard, first, "no row holds it"));
        }
        Ok(())
    }
}

fn corrupted(shard: ShardId, lsn: Lsn, reason: impl ToString) -> ReadError {
    ReadError::LogCorrupted { shard, lsn, reason: reason.to_string() }
}
