//! One partition as its shard sees it.

use std::collections::BTreeMap;

use super::producer::ProducerState;
use crate::types::{Offset, ProducerId, Timestamp};

/// What lies in a partition, as readers may know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionView {
    /// Oldest offset that is kept.
    pub start: Offset,
    /// Offset behind the newest committed record.
    pub end: Offset,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Partition {
    /// Oldest offset that is kept.
    pub(super) start: Offset,
    /// Offset behind the newest committed record.
    pub(super) committed: Offset,
    /// Offset behind the newest appended record.
    pub(super) end: Offset,
    /// Append time of the newest batch: it never goes back, whatever the clock does.
    pub(super) newest: Timestamp,
    /// `end` as it was found at the start of the epoch.
    pub(super) found_end: Offset,
    /// A trim to here is appended and not committed yet.
    pub(super) trimming: Offset,
    pub(super) producers: BTreeMap<ProducerId, ProducerState>,
}

impl Partition {
    pub(super) fn view(&self) -> PartitionView {
        PartitionView { start: self.start, end: self.committed }
    }

    /// The producer whose newest batch is the oldest.
    pub(super) fn stalest_producer(&self) -> Option<ProducerId> {
        let age = |(id, state): &(&ProducerId, &ProducerState)| (state.last().map(|b| b.lsn), **id);
        self.producers.iter().min_by_key(age).map(|(id, _)| *id)
    }
}
