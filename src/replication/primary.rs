//! The primary of one shard: gives entries their place, and knows how far they are committed.

use std::collections::BTreeMap;

use crate::types::{Epoch, Incarnation, Lsn, NodeId};

/// Who must have an entry before it is committed, as the metadata says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitSet {
    /// The reign that this set belongs to.
    pub epoch: Epoch,
    /// The primary and its boot: a restarted node never goes on with an old epoch.
    pub primary: (NodeId, Incarnation),
    /// Replicas that must have an entry and may become primary.
    pub members: Vec<NodeId>,
    /// Replicas that must have an entry and may not yet become primary.
    pub pending: Vec<NodeId>,
    /// Nothing is committed with fewer members.
    pub copies_min: u32,
}

/// Where a log ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// The position behind its last entry.
    pub lsn: Lsn,
    /// The chain value of its last entry, 0 when there is none.
    pub chain: u64,
}

/// The primary of one shard in one epoch.
#[derive(Clone, Debug)]
pub struct Primary {
    me: NodeId,
    set: CommitSet,
    end: LogEnd,
    /// What each replica has on its disk, as far as it was acked in this epoch.
    durable: BTreeMap<NodeId, Lsn>,
    high_watermark: Lsn,
    epoch_start: Lsn,
}

/// The commit set is smaller than the site asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{have} copies can be written, {need} are required")]
pub struct NotEnoughCopies {
    /// Copies that can be written.
    pub have: u32,
    /// Copies that are required.
    pub need: u32,
}

impl Primary {
    /// Begins an epoch on a log that ends at `end`. Its first entry must be the epoch's start.
    #[must_use]
    pub fn begin(me: NodeId, set: CommitSet, end: LogEnd, high_watermark: Lsn) -> Self {
        assert_eq!(set.primary.0, me, "only the elected node begins an epoch");
        assert!(high_watermark <= end.lsn, "nothing is committed that is not in the log");
        let epoch_start = end.lsn;
        Self { me, set, end, durable: BTreeMap::new(), high_watermark, epoch_start }
    }

    /// The place of the next entry.
    #[must_use]
    pub fn end(&self) -> LogEnd {
        self.end
    }

    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.set.epoch
    }

    /// The commit set.
    #[must_use]
    pub fn set(&self) -> &CommitSet {
        &self.set
    }

    /// Positions below this are committed.
    #[must_use]
    pub fn high_watermark(&self) -> Lsn {
        self.high_watermark
    }

    /// The position below which this node itself has everything on its disk.
    #[must_use]
    pub fn durable_here(&self) -> Lsn {
        self.durable.get(&self.me).copied().unwrap_or_default()
    }

    /// Whether the epoch's own start is committed: until then the end of the log is not known to be.
    #[must_use]
    pub fn is_recovered(&self) -> bool {
        self.high_watermark > self.epoch_start
    }

    /// Notes that the entry at the end was written with this chain value.
    pub fn appended(&mut self, chain: u64) {
        self.end = LogEnd { lsn: self.end.lsn.next(), chain };
    }

    /// Whether a publish may be taken; said before anything is appended, so that a refusal is definite.
    ///
    /// # Errors
    /// [`NotEnoughCopies`] when the set is smaller than the site or the producer asks for.
    pub fn check_copies(&self, require: u32) -> Result<(), NotEnoughCopies> {
        let have = u32::try_from(self.set.members.len()).unwrap_or(u32::MAX);
        let need = require.max(self.set.copies_min);
        if have < need { Err(NotEnoughCopies { have, need }) } else { Ok(()) }
    }

    /// How many members of the set have the entry at `lsn` on their disk.
    #[must_use]
    pub fn copies_of(&self, lsn: Lsn) -> u8 {
        let has = |node: &&NodeId| self.durable.get(node).is_some_and(|end| *end > lsn);
        u8::try_from(self.set.members.iter().filter(has).count()).unwrap_or(u8::MAX)
    }

    /// Takes a replica's word, of this epoch, that it has everything below `end` on its disk.
    /// Returns the high watermark if it moved.
    pub fn durable(&mut self, node: NodeId, end: Lsn) -> Option<Lsn> {
        if end > self.end.lsn {
            return None;
        }
        let known = self.durable.entry(node).or_default();
        *known = end.max(*known);
        let required = self.set.members.iter().chain(&self.set.pending);
        let all = required
            .map(|node| self.durable.get(node).copied().unwrap_or_default())
            .min()
            .unwrap_or_default();
        let enough = self.check_copies(0).is_ok();
        // An end inside older epochs says nothing: another log may have had the same length.
        if !enough || all <= self.high_watermark || all <= self.epoch_start {
            return None;
        }
        self.high_watermark = all;
        Some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    fn primary(members: &[NodeId], pending: &[NodeId], copies_min: u32) -> Primary {
        let set = CommitSet {
            epoch: Epoch(4),
            primary: (A, Incarnation(9)),
            members: members.to_vec(),
            pending: pending.to_vec(),
            copies_min,
        };
        let mut primary = Primary::begin(A, set, LogEnd { lsn: Lsn(10), chain: 77 }, Lsn(8));
        primary.appended(78);
        primary.appended(79);
        primary
    }

    #[test]
    fn a_set_of_one_commits_what_its_own_disk_has() {
        let mut p = primary(&[A], &[], 1);
        assert!(!p.is_recovered());
        assert_eq!(p.durable(A, Lsn(10)), None, "the epoch has not begun on the disk");
        assert_eq!(p.durable(A, Lsn(11)), Some(Lsn(11)));
        assert!(p.is_recovered());
        assert_eq!(p.durable(A, Lsn(11)), None, "it did not move");
        assert_eq!(p.durable(A, Lsn(12)), Some(Lsn(12)));
        assert_eq!(p.copies_of(Lsn(11)), 1);
    }

    #[test]
    fn every_member_and_every_pending_replica_must_have_it() {
        let mut p = primary(&[A, B], &[C], 1);
        assert_eq!(p.durable(A, Lsn(12)), None);
        assert_eq!(p.durable(B, Lsn(12)), None);
        assert_eq!(p.durable(C, Lsn(11)), Some(Lsn(11)));
        assert_eq!(p.copies_of(Lsn(10)), 2, "a pending replica is no copy to count on");
    }

    #[test]
    fn too_small_a_set_commits_nothing() {
        let mut p = primary(&[A], &[], 2);
        assert_eq!(p.check_copies(0), Err(NotEnoughCopies { have: 1, need: 2 }));
        assert_eq!(p.durable(A, Lsn(12)), None);
    }

    #[test]
    fn an_end_past_the_log_is_not_believed() {
        let mut p = primary(&[A], &[], 1);
        assert_eq!(p.durable(A, Lsn(13)), None);
        assert_eq!(p.high_watermark(), Lsn(8));
    }

    #[test]
    fn an_end_never_goes_back() {
        let mut p = primary(&[A], &[], 1);
        assert_eq!(p.durable(A, Lsn(12)), Some(Lsn(12)));
        assert_eq!(p.durable(A, Lsn(11)), None);
        assert_eq!(p.durable_here(), Lsn(12));
    }
}
