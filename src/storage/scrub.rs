//! Looks for damage in all that is kept, row by row, without regard to who reads what.
//!
//! A row that looks wrong is not enough: what is damaged there may be dead, or have been cut off. Which shards are harmed is
//! found by reading what the row holds of each as its readers and replicas do.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
};

use redb::{ReadableDatabase, ReadableTable};

use super::{
    error::{ReadError, StoreError, guarded},
    log::rows_with,
    read::Store,
    row::{Piece, pieces},
    schema::{INDEX, ROWS, decode_index},
    shard_log::{LogPoint, is_cut},
};
use crate::{
    limits::SCRUB_STEP_BYTES,
    types::{Lsn, Offset, PartitionId, ShardId, TopicId},
};

/// One pass over all rows.
#[derive(Debug)]
pub struct Scrub {
    store: Store,
    next_row: u64,
    /// The entry of each shard that was seen last.
    seen: BTreeMap<ShardId, LogPoint>,
}

/// What a part of a pass found.
#[derive(Debug, Default)]
pub struct Scrubbed {
    /// Bytes that were read.
    pub read: u64,
    /// Shards of which something that is kept cannot be read, and why.
    pub damage: Vec<(ShardId, String)>,
    /// The pass is not at its end.
    pub more: bool,
}

impl Scrub {
    /// Begins at the oldest row.
    #[must_use]
    pub fn begin(store: Store) -> Self {
        Self { store, next_row: 0, seen: BTreeMap::new() }
    }

    /// Looks at the next rows, about so many bytes but at least one row.
    ///
    /// # Errors
    /// [`ReadError`] when the database itself cannot be read.
    pub fn step(&mut self, max_bytes: usize) -> Result<Scrubbed, ReadError> {
        guarded(|| {
            let mut done = Scrubbed::default();
            let mut suspects = Vec::new();
            // No transaction stays open between two steps: it would keep what is freed from being used again.
            let txn = self.store.inner.db.begin_read().map_err(StoreError::from)?;
            for item in txn.open_table(ROWS)?.range(self.next_row..)? {
                let (number, row) = item?;
                let number = number.value();
                if done.read >= max_bytes as u64 {
                    done.more = true;
                    break;
                }
                done.read += row.value().len() as u64;
                self.next_row = number + 1;
                if !self.is_right(number, row.value()) {
                    suspects.push(number);
                }
            }
            drop(txn);
            for row in suspects {
                done.damage.extend(self.store.harmed_by(row)?);
            }
            Ok(done)
        })
    }

    fn is_right(&mut self, number: u64, row: &[u8]) -> bool {
        let logs: Vec<_> = {
            let view = &self.store.inner.view;
            let view = view.read().unwrap_or_else(PoisonError::into_inner);
            view.shards.iter().map(|log| (Arc::clone(&log.cuts), log.start.lsn)).collect()
        };
        let mut right = true;
        for piece in pieces(row) {
            let (header, body) = match piece {
                Ok(Piece::Entry(header, body)) => (header, body),
                Ok(Piece::Fact(_)) => continue,
                Err(_) => return false,
            };
            let Some((cuts, start)) = logs.get(usize::from(header.shard.0)) else { return false };
            if is_cut(cuts, header.lsn, number) {
                continue;
            }
            let before = self.seen.insert(header.shard, LogPoint::behind(&header));
            // From its start on, all of a log is there.
            right &= match before {
                Some(before) if before.lsn == header.lsn => {
                    header.chain == header.chain_after(before.chain)
                }
                before => header.lsn <= before.map_or(Lsn(0), |before| before.lsn).max(*start),
            };
            right &= header.check_body(body).is_ok();
        }
        right
    }
}

impl Store {
    /// The shards of which something that is kept in this row cannot be read.
    fn harmed_by(&self, row: u64) -> Result<Vec<(ShardId, String)>, ReadError> {
        let shards = {
            let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
            let whole = view.shards.iter().zip(0..).filter(|(log, _)| !log.installing);
            whole.map(|(_, shard)| ShardId(shard)).collect::<BTreeSet<_>>()
        };
        let mut harmed = BTreeMap::new();
        for shard in shards {
            if let Err(error) = self.check_log(shard, row) {
                harmed.insert(shard, damage_of(error)?);
            }
        }
        for (shard, partition, from, to) in self.partitions_in(row)? {
            if !harmed.contains_key(&shard)
                && let Err(error) = self.check_records(partition, from, to)
            {
                harmed.insert(shard, damage_of(error)?);
            }
        }
        Ok(harmed.into_iter().collect())
    }

    /// Reads the entries of a shard's log in this row as a replica would get them.
    fn check_log(&self, shard: ShardId, row: u64) -> Result<(), ReadError> {
        let Some((first, behind)) = rows_with(self, shard, row)? else { return Ok(()) };
        let mut next = first.max(self.log_start(shard));
        let until = behind.min(self.log_end(shard));
        let mut before = match next < until {
            true => self.log_point(shard, next)?,
            false => None,
        };
        while next < until {
            let entries = match self.read_log(shard, next, until, SCRUB_STEP_BYTES) {
                // The collector was faster.
                Err(ReadError::LogOutOfRange { .. }) => return Ok(()),
                entries => entries?,
            };
            if entries.is_empty() {
                return Ok(());
            }
            for entry in entries {
                let header = entry.header;
                if before.is_some_and(|before| header.chain != header.chain_after(before.chain)) {
                    let reason = "it does not follow the entry before it".to_owned();
                    return Err(ReadError::LogCorrupted { shard, lsn: header.lsn, reason });
                }
                before = Some(LogPoint::behind(&header));
                next = header.lsn.next();
            }
        }
        Ok(())
    }

    fn check_records(
        &self,
        partition: PartitionId,
        from: Offset,
        to: Offset,
    ) -> Result<(), ReadError> {
        let mut next = from;
        while next < to {
            // It may have been trimmed or dropped meanwhile.
            let Some(bounds) = self.bounds(partition) else { return Ok(()) };
            next = next.max(bounds.start);
            match self.read(partition, next, bounds.end, SCRUB_STEP_BYTES) {
                Ok(chunk) if chunk.batches.is_empty() => return Ok(()),
                Ok(chunk) => next = chunk.next,
                Err(ReadError::OutOfRange { .. } | ReadError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The partitions that have records in this row, and which.
    fn partitions_in(
        &self,
        row: u64,
    ) -> Result<Vec<(ShardId, PartitionId, Offset, Offset)>, ReadError> {
        let mut found: BTreeMap<PartitionId, (Offset, Option<Offset>)> = BTreeMap::new();
        let mut note = |id: PartitionId, base: Offset, at: u64| match found.get_mut(&id) {
            _ if at == row => {
                found.insert(id, (base, None));
            }
            Some((_, to)) if at > row && to.is_none() => *to = Some(base),
            _ => {}
        };
        // Both as of one moment. The commit thread waits for the view: it is not held while the index is read.
        let (txn, tails) = {
            let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
            let txn = self.inner.db.begin_read().map_err(StoreError::from)?;
            let tails = view.partitions.iter().flat_map(|(id, partition)| {
                partition.tail.iter().map(|entry| (*id, entry.base, entry.row))
            });
            (txn, tails.collect::<Vec<_>>())
        };
        for item in txn.open_table(INDEX)?.iter()? {
            let (key, value) = item?;
            let (topic, index, _) = key.value();
            let id = PartitionId { topic: TopicId(topic), index };
            for entry in decode_index(value.value())? {
                note(id, entry.base, entry.row);
            }
        }
        tails.into_iter().for_each(|(id, base, at)| note(id, base, at));
        let bounds = found.into_iter().filter_map(|(id, (from, to))| {
            let bounds = self.bounds(id)?;
            Some((bounds.shard, id, from.max(bounds.start), to.unwrap_or(bounds.end)))
        });
        Ok(bounds.collect())
    }
}

/// What is damage of one shard; the rest is an error.
fn damage_of(error: ReadError) -> Result<String, ReadError> {
    match error {
        ReadError::Corrupted { .. } | ReadError::LogCorrupted { .. } => Ok(error.to_string()),
        error => Err(error),
    }
}
