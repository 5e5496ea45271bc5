//! What replication has to know of an entry, and of the log on the disk.

use serde::{Deserialize, Serialize};

use crate::types::{Epoch, Lsn};

/// Where a log ends. Two logs with equal ends are equal: the chain value covers every entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// The position behind its last entry.
    pub lsn: Lsn,
    /// The epoch of its last entry, 0 when there is none.
    pub epoch: Epoch,
    /// The chain value of its last entry, 0 when there is none.
    pub chain: u64,
}

/// An entry of a shard's log.
pub trait LogEntry {
    /// The log's end when this entry is the last.
    fn end(&self) -> LogEnd;

    /// Whether its position, epoch and chain value follow a log that ends at `prev`.
    fn follows(&self, prev: LogEnd) -> bool;
}

/// The part of a shard's log that is durable on this node.
pub trait LogView {
    /// What the log's end would be if it ended at `lsn`; none if `lsn` lies before its first kept entry or behind its end.
    fn end_at(&self, lsn: Lsn) -> Option<LogEnd>;
}

impl LogEnd {
    /// What an election compares: of two logs of one shard the one with the greater rank has all that is committed if
    /// any of the two has.
    #[must_use]
    pub fn rank(&self) -> (Epoch, Lsn) {
        (self.epoch, self.lsn)
    }
}
