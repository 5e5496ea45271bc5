//! What is known of one shard's log: where it begins and ends, in which row each entry lies, and what was cut off.

use std::{collections::VecDeque, sync::Arc};

use super::{
    schema::{ReplicaInfo, ShardInfo},
    view::Point,
};
use crate::{
    limits::EPOCHS_REMEMBERED,
    types::{Epoch, Lsn, PartitionId},
    wire::{BadEntry, EntryHeader},
};

/// Where a log ends, or would end. Two logs with the same point are equal up to it: the chain covers every entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPoint {
    /// The position behind the last entry.
    pub lsn: Lsn,
    /// The epoch of the last entry, 0 when there is none.
    pub epoch: Epoch,
    /// The chain of the last entry, 0 when there is none.
    pub chain: u64,
}

impl LogPoint {
    /// The end of a log whose last entry has this header.
    pub(super) fn behind(header: &EntryHeader) -> Self {
        Self { lsn: header.lsn.next(), epoch: header.epoch, chain: header.chain }
    }
}

/// Entries from `lsn` on that lie in rows before `row` were cut off. Rows are never rewritten for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) lsn: Lsn,
    pub(super) row: u64,
}

/// Tells whether an entry that lies in `row` was cut off.
pub(super) fn is_cut(cuts: &[Cut], lsn: Lsn, row: u64) -> bool {
    cuts.iter().any(|cut| row < cut.row && lsn >= cut.lsn)
}

/// The log of one shard.
#[derive(Debug, Default)]
pub(super) struct ShardLog {
    /// All entries from here on are there.
    pub(super) start: LogPoint,
    pub(super) end: LogPoint,
    pub(super) applied: Lsn,
    /// The row that holds the entry at `applied`, as of the last checkpoint.
    pub(super) replay_row: u64,
    pub(super) epochs: VecDeque<(Epoch, Lsn)>,
    /// First entry in each row from `replay_row` on.
    pub(super) rows: VecDeque<(Lsn, u64)>,
    /// Rows before this one are in the log index on disk.
    pub(super) stored_row: u64,
    /// What ends once its entry is applied.
    pub(super) endings: VecDeque<(Lsn, PendingEnding)>,
    /// Ascending in both fields. Shared with readers.
    pub(super) cuts: Arc<[Cut]>,
    pub(super) promised: Epoch,
    /// As far as the log is known to be committed, and that is durable.
    pub(super) high_watermark: Lsn,
    /// An install is half done: what is there means nothing.
    pub(super) installing: bool,
    /// Appends and changes since the store was opened.
    pub(super) done: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum PendingEnding {
    Trim(PartitionId, Point),
    Drop(PartitionId),
}

impl ShardLog {
    /// What a checkpoint says. A store that was written before replicas were known has no log index.
    pub(super) fn new(
        info: ShardInfo,
        replica: Option<ReplicaInfo>,
        start: Option<LogPoint>,
        stored_row: u64,
    ) -> Self {
        let last_epoch = info.epochs.last().map(|(epoch, _)| *epoch).unwrap_or_default();
        let end = LogPoint { lsn: info.end, epoch: last_epoch, chain: info.chain };
        let replica = replica.unwrap_or(ReplicaInfo { last_epoch, ..ReplicaInfo::default() });
        Self {
            start: start.unwrap_or(end),
            end: LogPoint { epoch: replica.last_epoch, ..end },
            applied: info.applied,
            replay_row: info.replay_row,
            epochs: info.epochs.into(),
            rows: VecDeque::new(),
            stored_row,
            endings: VecDeque::new(),
            cuts: replica.cuts.into(),
            promised: replica.promised,
            high_watermark: replica.high_watermark.max(info.applied),
            installing: replica.installing,
            done: 0,
        }
    }

    /// What a checkpoint is to say. `next_row` is the first row behind it.
    pub(super) fn info(&self, next_row: u64) -> (ShardInfo, ReplicaInfo) {
        let info = ShardInfo {
            end: self.end.lsn,
            chain: self.end.chain,
            applied: self.applied,
            replay_row: self.replay_row(next_row),
            epochs: self.epochs.iter().copied().collect(),
        };
        let replica = ReplicaInfo {
            promised: self.promised,
            high_watermark: self.high_watermark,
            last_epoch: self.end.epoch,
            installing: self.installing,
            cuts: self.cuts.to_vec(),
        };
        (info, replica)
    }

    /// Takes over an entry that lies in `row`, if it follows the one before it.
    pub(super) fn take(&mut self, row: u64, header: &EntryHeader) -> Result<(), BadEntry> {
        if header.lsn != self.end.lsn || header.chain != header.chain_after(self.end.chain) {
            let (shard, found, want) = (header.shard, header.lsn, self.end.lsn);
            return Err(BadEntry::Chain { shard, found, want });
        }
        self.note_row(row, header.lsn);
        if self.epochs.back().is_none_or(|(epoch, _)| *epoch != header.epoch) {
            if self.epochs.len() == EPOCHS_REMEMBERED {
                self.epochs.pop_front();
            }
            self.epochs.push_back((header.epoch, header.lsn));
        }
        self.end = LogPoint::behind(header);
        Ok(())
    }

    pub(super) fn note_row(&mut self, row: u64, lsn: Lsn) {
        if self.rows.back().is_none_or(|(_, last)| *last != row) {
            self.rows.push_back((lsn, row));
        }
    }

    /// Ends the log at `end`. What lies behind, in rows before `row`, is cut off.
    pub(super) fn cut(&mut self, end: LogPoint, row: u64) {
        let mut cuts: Vec<Cut> = self.cuts.to_vec();
        cuts.retain(|cut| cut.lsn < end.lsn);
        cuts.push(Cut { lsn: end.lsn, row });
        self.cuts = cuts.into();
        self.end = end;
        while self.epochs.back().is_some_and(|(_, first)| *first >= end.lsn) {
            self.epochs.pop_back();
        }
        while self.rows.back().is_some_and(|(first, _)| *first >= end.lsn) {
            self.rows.pop_back();
        }
    }

    /// Forgets cuts of rows that are gone: all before `first_row`.
    pub(super) fn forget_cuts(&mut self, first_row: u64) {
        if self.cuts.iter().any(|cut| cut.row <= first_row) {
            self.cuts = self.cuts.iter().copied().filter(|cut| cut.row > first_row).collect();
        }
    }

    /// The row that holds the entry at `applied`, or the next one.
    pub(super) fn replay_row(&self, next_row: u64) -> u64 {
        if self.applied == self.end.lsn {
            return next_row;
        }
        let behind = self.rows.partition_point(|(lsn, _)| *lsn <= self.applied);
        behind.checked_sub(1).map_or(self.replay_row, |at| self.rows[at].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_off_stays_so_and_what_came_later_counts() {
        let mut log = ShardLog::default();
        let at = |lsn| LogPoint { lsn: Lsn(lsn), ..LogPoint::default() };
        log.cut(at(10), 3);
        log.cut(at(12), 5);
        assert!(is_cut(&log.cuts, Lsn(10), 2));
        assert!(!is_cut(&log.cuts, Lsn(9), 2));
        assert!(!is_cut(&log.cuts, Lsn(10), 3), "it came after the first cut");
        assert!(is_cut(&log.cuts, Lsn(12), 4));
        log.cut(at(7), 8);
        assert_eq!(log.cuts[..], [Cut { lsn: Lsn(7), row: 8 }], "a deeper cut covers the others");
        log.forget_cuts(8);
        assert!(log.cuts.is_empty());
    }
}
