//! One shard on this node as its driver holds it: the pure replica, the applied state, the newest entries.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;

use super::{acks::AckHandle, topics::Partition};
use crate::{
    broker::{Applied, Replica},
    limits::RECENT_LOG_BYTES_MAX,
    replication::{Boots, LogEnd, LogEntry, LogView},
    storage::Store,
    types::{Epoch, Lsn, NodeId, PartitionId, ShardId},
    wire::Entry,
};

/// A shard and its driver's state.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: ShardId,
    /// The node that leads, 0 when there is none: to be read without the lock.
    primary: AtomicU64,
    core: Mutex<Core>,
    partitions: RwLock<HashMap<PartitionId, Arc<Partition>>>,
}

/// What the shard's lock guards.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) replica: Replica<AckHandle>,
    pub(super) applied: Applied,
    pub(super) recent: RecentLog,
    /// The boots that the replica was told last.
    pub(super) boots: Boots,
    /// The state that came with an install so far, until the log is whole and the applied state can be taken up.
    pub(super) installing: Option<Vec<(u8, Bytes, Bytes)>>,
    /// The epoch, led here, in which the partitions were last compared with the metadata.
    pub(super) compared: Option<Epoch>,
}

/// The newest entries of a log, durable or not: for the replicas that keep pace, who need not wait for a disk to be
/// read. Empty on a site of one node.
#[derive(Debug, Default)]
pub(super) struct RecentLog {
    entries: VecDeque<Entry>,
    bytes: usize,
}

/// A shard's log as its core may look at it.
pub(super) struct LocalView<'a> {
    id: ShardId,
    recent: &'a RecentLog,
    store: &'a Store,
}

impl Slot {
    pub(super) fn new(id: ShardId, replica: Replica<AckHandle>, applied: Applied) -> Self {
        let recent = RecentLog::default();
        let (boots, compared, installing) = (Boots::new(), None, None);
        let core = Core { replica, applied, recent, boots, installing, compared };
        let primary = AtomicU64::new(0);
        Self { id, primary, core: Mutex::new(core), partitions: RwLock::default() }
    }

    /// The node that leads the shard, by the newest metadata that was taken over here.
    pub(super) fn primary(&self) -> Option<NodeId> {
        Some(NodeId(self.primary.load(Ordering::Acquire))).filter(|node| node.0 != 0)
    }

    pub(super) fn set_primary(&self, primary: Option<NodeId>) {
        self.primary.store(primary.map_or(0, |node| node.0), Ordering::Release);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic under this lock is our own bug; the shard's log on disk is still in order.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn partition(&self, id: PartitionId) -> Option<Arc<Partition>> {
        self.partitions().get(&id).cloned()
    }

    pub(super) fn partitions(&self) -> RwLockReadGuard<'_, HashMap<PartitionId, Arc<Partition>>> {
        self.partitions.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn partitions_mut(
        &self,
    ) -> RwLockWriteGuard<'_, HashMap<PartitionId, Arc<Partition>>> {
        self.partitions.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Whether clients can be served what this node can serve of the shard: as its primary, or as one that knows another.
    pub(super) fn is_ready(&self) -> bool {
        match (self.replica.shard(), self.replica.config().primary) {
            (Some(shard), _) => shard.is_recovered(),
            (None, Some(primary)) => primary.node != self.replica.me().node,
            (None, None) => false,
        }
    }

    /// The core and what it may look at.
    pub(super) fn split<'a>(
        &'a mut self,
        id: ShardId,
        store: &'a Store,
    ) -> (&'a mut Replica<AckHandle>, LocalView<'a>) {
        (&mut self.replica, LocalView { id, recent: &self.recent, store })
    }
}

impl RecentLog {
    /// Keeps an entry. Where those before it were not kept, as while there was no other replica, those before them are of no
    /// use: all that is kept is in one piece.
    pub(super) fn push(&mut self, entry: Entry) {
        if self.entries.back().is_some_and(|last| last.header.lsn.next() != entry.header.lsn) {
            self.clear();
        }
        self.bytes += entry.header.entry_len();
        self.entries.push_back(entry);
        while self.bytes > RECENT_LOG_BYTES_MAX
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= oldest.header.entry_len();
        }
    }

    /// The log was cut: entries from `end` on are no more.
    pub(super) fn truncate(&mut self, end: Lsn) {
        while let Some(last) = self.entries.pop_back_if(|entry| entry.header.lsn >= end) {
            self.bytes -= last.header.entry_len();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Entries from `from` up to `until`, about `bytes_max` but at least one; none when the first is not here.
    pub(super) fn read(&self, from: Lsn, until: Lsn, bytes_max: usize) -> Option<Vec<Entry>> {
        let first = self.entries.front()?.header.lsn;
        let at = usize::try_from(from.0.checked_sub(first.0)?).ok()?;
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let room = bytes == 0 || bytes + entry.header.entry_len() <= bytes_max;
            bytes += entry.header.entry_len();
            room && entry.header.lsn < until
        };
        let found: Vec<_> =
            self.entries.range(at.min(self.entries.len())..).take_while(fits).cloned().collect();
        (!found.is_empty()).then_some(found)
    }

    /// What the log's end is if it ends at `end`.
    pub(super) fn end_at(&self, end: Lsn) -> Option<LogEnd> {
        let first = self.entries.front()?.header.lsn;
        let at = usize::try_from(end.0.checked_sub(first.0 + 1)?).ok()?;
        self.entries.get(at).map(LogEntry::end)
    }
}

impl LogView for LocalView<'_> {
    fn end_at(&self, lsn: Lsn) -> Option<LogEnd> {
        if lsn == Lsn(0) {
            return Some(LogEnd::default());
        }
        self.recent.end_at(lsn).or_else(|| log_end_at(self.store, self.id, lsn))
    }
}

/// What the durable log's end would be at `lsn`, as the store has it.
pub(super) fn log_end_at(store: &Store, id: ShardId, lsn: Lsn) -> Option<LogEnd> {
    match store.log_point(id, lsn) {
        Ok(point) => point.map(|p| LogEnd { lsn: p.lsn, epoch: p.epoch, chain: p.chain }),
        Err(error) => {
            // The core asks again; a log that cannot be read shows itself to readers, too.
            tracing::error!(shard = %id, %error, "the log cannot be read");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        types::PartitionId,
        wire::{EntryKind, entry::Place},
    };

    fn log(len: u64) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        for lsn in 0..len {
            let prev_chain = entries.last().map_or(0, |entry| entry.header.chain);
            let place = Place { shard: ShardId(0), lsn: Lsn(lsn), epoch: Epoch(1), prev_chain };
            let body = Bytes::from(vec![0; 8]);
            entries.push(Entry::seal(place, EntryKind::Trim, PartitionId::default(), body));
        }
        entries
    }

    #[test]
    fn recent_entries_are_found_by_position() {
        let entries = log(10);
        let mut recent = RecentLog::default();
        entries[3..].iter().for_each(|entry| recent.push(entry.clone()));
        assert_eq!(recent.read(Lsn(2), Lsn(9), 1_000), None);
        assert_eq!(recent.read(Lsn(3), Lsn(5), 1_000).as_deref(), Some(&entries[3..5]));
        assert_eq!(recent.read(Lsn(8), Lsn(20), 1_000).as_deref(), Some(&entries[8..]));
        assert_eq!(recent.read(Lsn(5), Lsn(9), 1).as_deref(), Some(&entries[5..6]), "at least one");
        assert_eq!(recent.read(Lsn(10), Lsn(20), 1_000), None);
        assert_eq!((recent.end_at(Lsn(3)), recent.end_at(Lsn(11))), (None, None));
        assert_eq!(recent.end_at(Lsn(4)), Some(entries[3].end()));
        recent.truncate(Lsn(6));
        assert_eq!(recent.read(Lsn(5), Lsn(9), 1_000).as_deref(), Some(&entries[5..6]));
        assert_eq!(recent.end_at(Lsn(7)), None);
    }

    #[test]
    fn nothing_is_kept_from_before_a_gap() {
        let entries = log(20);
        let mut recent = RecentLog::default();
        // From 8 to 14 the node was alone.
        entries[2..8].iter().chain(&entries[15..]).cloned().for_each(|entry| recent.push(entry));
        for lsn in (3..=15).map(Lsn) {
            assert_eq!(recent.end_at(lsn), None, "{lsn}");
        }
        assert_eq!(recent.read(Lsn(7), Lsn(20), 1_000), None);
        assert_eq!(recent.read(Lsn(8), Lsn(20), 1_000), None);
        assert_eq!(recent.end_at(Lsn(16)), Some(entries[15].end()));
        assert_eq!(recent.read(Lsn(15), Lsn(20), 1_000).as_deref(), Some(&entries[15..]));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut recent = RecentLog::default();
        for entry in log(RECENT_LOG_BYTES_MAX as u64 / 60 + 100) {
            recent.push(entry);
        }
        assert!(recent.bytes <= RECENT_LOG_BYTES_MAX && recent.bytes > RECENT_LOG_BYTES_MAX / 2);
    }
}
