//! When a primary asks for another commit set: out in one step, in by two.
//!
//! A replica that leaves is waited for until the removal is applied here; one that comes is waited for from then on,
//! and may lead only after it is confirmed. So what a primary waits for always contains what may be elected.

use std::time::Duration;

use super::{
    config::{ShardChange, ShardConfig},
    entry::{LogEntry, LogView},
    follower::{Follower, Progress},
    mutant,
    primary::Primary,
};
use crate::{
    limits::{
        FLOOR_INTERVAL, FLOOR_INTERVAL_ALONE, LAG_MAX, LEFT_WAIT, REJOIN_DOUBLINGS_MAX,
        REPLICA_RETRY,
    },
    types::{Boot, Lsn, NodeId},
};

/// A proposal that was made and not seen to be applied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proposed {
    version: u64,
    at: Duration,
}

impl<E: LogEntry> Primary<E> {
    /// The change of the set to ask for now, one at a time.
    pub(super) fn review(&mut self, now: Duration) -> Option<ShardChange> {
        let version = self.config.version;
        let waits = |p: Proposed| p.version == version && now < p.at + REPLICA_RETRY;
        if self.proposed.is_some_and(waits) {
            return None;
        }
        let change = self.hand_over_change(now).or_else(|| self.set_change(now))?;
        self.proposed = Some(Proposed { version, at: now });
        Some(change)
    }

    /// The floor to report now, if it rose.
    pub(super) fn floor(&mut self, now: Duration, view: &impl LogView) -> Option<ShardChange> {
        let committed = self.log.high_watermark();
        let known = self.config.floor.map_or(Lsn(0), |floor| floor.lsn);
        let alone = self.config.set.len() == 1;
        let interval = if alone { FLOOR_INTERVAL_ALONE } else { FLOOR_INTERVAL };
        if !self.is_recovered() || committed <= known || now < self.floor_at + interval {
            return None;
        }
        self.floor_at = now;
        let committed = view.end_at(committed)?;
        Some(ShardChange::Floor { from: self.me, epoch: self.epoch(), committed })
    }

    /// Whether a member that may not be removed is not heard of: what is published now could wait for ever.
    pub(super) fn is_stuck(&self, now: Duration) -> bool {
        let dead = |node: &NodeId| self.followers.get(node).is_some_and(|f| is_dead(f, now));
        !self.config.can_shrink() && self.config.set.iter().any(dead)
    }

    fn set_change(&mut self, now: Duration) -> Option<ShardChange> {
        let expect_version = self.config.version;
        let from = self.me;
        let required: Vec<NodeId> = self.config.required().filter(|n| *n != from.node).collect();
        let regressed = |node: &&NodeId| self.followers.get(*node).is_some_and(|f| f.regressed);
        if let Some(node) = self.config.set.iter().find(regressed).copied() {
            return Some(ShardChange::Remove { expect_version, from, node, lost: true });
        }
        if let Some(replica) = self.config.pending.iter().copied().find(|b| self.may_confirm(*b)) {
            return Some(ShardChange::ConfirmAdd { expect_version, from, replica });
        }
        let gone = required.into_iter().find(|node| self.may_remove(*node, now));
        if let Some(node) = gone {
            if let Some(follower) = self.followers.get_mut(&node) {
                follower.removals += 1;
                follower.in_sync_since = None;
                follower.put_out = true;
            }
            if mutant!(ShrinkLocally) {
                self.config.set.retain(|member| *member != node);
            }
            return Some(ShardChange::Remove { expect_version, from, node, lost: false });
        }
        let replica = self.candidate(now)?;
        Some(ShardChange::AddPending { expect_version, from, replica })
    }

    /// Takes note of who leaves the set by itself. To be called before `self.config` becomes `next`.
    pub(super) fn note_leavers(&mut self, next: &ShardConfig) {
        for node in self.config.required() {
            if next.required().all(|required| required != node)
                && let Some(follower) = self.followers.get_mut(&node)
            {
                let by_itself = !std::mem::take(&mut follower.put_out);
                follower.left_at = by_itself.then_some(self.now);
            }
        }
    }

    /// A pending replica may be confirmed once it has, in its present boot, the start of this epoch and all that is
    /// committed. Before that its log could still end before entries that an earlier primary committed.
    fn may_confirm(&self, replica: Boot) -> bool {
        let Some(follower) = self.followers.get(&replica.node) else { return false };
        follower.incarnation == Some(replica.incarnation) && self.has_all(follower)
    }

    fn has_all(&self, follower: &Follower) -> bool {
        let streams = matches!(follower.progress, Progress::Streaming(_));
        let started = follower.acked > self.epoch_start || mutant!(NoEpochStartRule);
        streams && started && follower.acked >= self.log.high_watermark()
    }

    fn may_remove(&self, node: NodeId, now: Duration) -> bool {
        let Some(follower) = self.followers.get(&node) else { return false };
        let pending = self.config.pending.iter().any(|boot| boot.node == node);
        let unwanted = !self.config.replicas.contains(&node);
        let slow = is_dead(follower, now)
            || now > follower.mark.1 + LAG_MAX.max(follower.rhythm.silence_allowed());
        (pending || self.config.can_shrink()) && (slow || unwanted)
    }

    /// A replica outside the set that has kept pace, longer each time that it was removed.
    fn candidate(&self, now: Duration) -> Option<Boot> {
        let outside = |node: &&NodeId| self.config.required().all(|required| required != **node);
        let replicas = self.config.replicas.iter().filter(outside);
        replicas
            .filter_map(|node| Some((*node, self.followers.get(node)?)))
            .filter(|(_, follower)| self.has_all(follower) && !is_dead(follower, now))
            .filter(|(_, follower)| follower.left_at.is_none_or(|at| now >= at + LEFT_WAIT))
            .find(|(_, follower)| {
                let since = follower.in_sync_since;
                // To keep pace it must have had the epoch's start, too.
                mutant!(NoEpochStartRule)
                    || since.is_some_and(|since| now >= since + rejoin_wait(follower.removals))
            })
            .and_then(|(node, follower)| Some(Boot { node, incarnation: follower.incarnation? }))
    }
}

pub(super) fn is_dead(follower: &Follower, now: Duration) -> bool {
    follower.rhythm.is_silent(now)
}

fn rejoin_wait(removals: u32) -> Duration {
    match removals {
        0 => Duration::ZERO,
        n => LAG_MAX * 2_u32.pow(n.min(REJOIN_DOUBLINGS_MAX)),
    }
}
