//! Entries and logs for the tests of this module.

use super::{LogEnd, LogEntry, LogView};
use crate::types::{Boot, Epoch, Incarnation, Lsn, NodeId};

/// An entry that is nothing but its place. `what` tells two of one place apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bare {
    end: LogEnd,
    what: u64,
}

impl LogEntry for Bare {
    fn end(&self) -> LogEnd {
        self.end
    }

    fn follows(&self, prev: LogEnd) -> bool {
        after(prev, self.end.epoch.0, self.what) == *self
    }
}

/// A log of bare entries, all durable.
#[derive(Clone, Debug, Default)]
pub(super) struct BareLog(pub(super) Vec<Bare>);

impl BareLog {
    /// One entry for each epoch given.
    pub(super) fn of(epochs: &[u64]) -> Self {
        let mut log = Self::default();
        for epoch in epochs {
            log.0.push(after(log.end(), *epoch, 0));
        }
        log
    }

    pub(super) fn end(&self) -> LogEnd {
        self.0.last().map(Bare::end).unwrap_or_default()
    }
}

impl LogView for BareLog {
    fn end_at(&self, lsn: Lsn) -> Option<LogEnd> {
        match usize::try_from(lsn.0).expect("small") {
            0 => Some(LogEnd::default()),
            n => self.0.get(n - 1).map(Bare::end),
        }
    }
}

pub(super) fn after(prev: LogEnd, epoch: u64, what: u64) -> Bare {
    let chain = prev.chain.wrapping_mul(31).wrapping_add(epoch * 7 + what + 1);
    Bare { end: LogEnd { lsn: prev.lsn.next(), epoch: Epoch(epoch), chain }, what }
}

pub(super) fn boot(node: u64, incarnation: u64) -> Boot {
    Boot { node: NodeId(node), incarnation: Incarnation(incarnation) }
}
