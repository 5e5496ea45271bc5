//! Who shall lead: the decisions of the node that leads the metadata group, and of any that believes it does.
//!
//! It knows the nodes by their heartbeats and decides by time; that is why nothing it proposes is believed before the
//! metadata has compared versions.

use std::{collections::BTreeMap, time::Duration};

use super::{
    config::{Boots, ShardChange, ShardCommand, ShardConfig},
    entry::LogEnd,
    rhythm::Rhythm,
};
use crate::{
    limits::{BOOT_WAIT, REPLICA_RETRY},
    types::{Boot, NodeId, ShardId},
};

/// What a heartbeat says of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardDigest {
    /// Which.
    pub shard: ShardId,
    /// The durable end of its log on that node.
    pub end: LogEnd,
}

/// The liveness table of one node, and what it would do about it.
#[derive(Clone, Debug)]
pub struct Controller {
    fence: Duration,
    started: Duration,
    heard: BTreeMap<NodeId, Heard>,
    /// Whom each node says it hears, and when it said so.
    reports: BTreeMap<NodeId, (Duration, Vec<NodeId>)>,
    proposed: BTreeMap<ShardId, (u64, Duration)>,
}

#[derive(Clone, Debug)]
struct Heard {
    boot: Boot,
    rhythm: Rhythm,
    ends: BTreeMap<ShardId, LogEnd>,
}

impl Controller {
    /// Begins with an empty table. No silence shorter than `fence` means that a node is down.
    #[must_use]
    pub fn new(fence: Duration, now: Duration) -> Self {
        Self {
            fence,
            started: now,
            heard: BTreeMap::new(),
            reports: BTreeMap::new(),
            proposed: BTreeMap::new(),
        }
    }

    /// A node lives. Heartbeats of an earlier boot than the one heard last are late.
    pub fn heartbeat(&mut self, from: Boot, digest: &[ShardDigest], now: Duration) {
        let mut rhythm = Rhythm::new(self.fence, now);
        match self.heard.get(&from.node) {
            Some(heard) if heard.boot.incarnation > from.incarnation => return,
            Some(heard) if heard.boot == from => {
                rhythm = heard.rhythm;
                rhythm.heard(now);
            }
            // Of what another boot did nothing is learned.
            Some(_) | None => {}
        }
        let ends = digest.iter().map(|d| (d.shard, d.end)).collect();
        self.heard.insert(from.node, Heard { boot: from, rhythm, ends });
    }

    /// Whom this node hears: to be said in its own heartbeats.
    #[must_use]
    pub fn hears(&self, now: Duration) -> Vec<NodeId> {
        let heard = self.heard.iter().filter(|(_, heard)| heard.rhythm.is_fresh(now));
        heard.map(|(node, _)| *node).collect()
    }

    /// This node itself has stood still for so long: what others have said meanwhile may wait to be heard, and is no
    /// silence of theirs.
    pub fn stood_still(&mut self, time: Duration, now: Duration) {
        for heard in self.heard.values_mut() {
            heard.rhythm.excuse(time, now);
        }
    }

    /// Whether a node was heard of lately enough not to count as down, in whatever boot.
    #[must_use]
    pub fn lives(&self, node: NodeId, now: Duration) -> bool {
        self.heard.get(&node).is_some_and(|heard| !heard.rhythm.is_silent(now))
    }

    /// Whom another node says it hears, with a heartbeat that was taken by [`Self::heartbeat`].
    pub fn reported(&mut self, from: Boot, hears: Vec<NodeId>, now: Duration) {
        if self.heard.get(&from.node).is_some_and(|heard| heard.boot == from) {
            self.reports.insert(from.node, (now, hears));
        }
    }

    /// Whether the way to a node is cut, and the node is not down: one that this node hears says that it hears it.
    #[must_use]
    pub fn is_cut_from(&self, node: NodeId, now: Duration) -> bool {
        let hears = |(from, (at, hears)): (&NodeId, &(Duration, Vec<NodeId>))| {
            let from = self.heard.get(from).filter(|from| !from.rhythm.is_silent(now));
            hears.contains(&node) && from.is_some_and(|f| f.rhythm.would_be_fresh(*at, now))
        };
        !self.lives(node, now) && self.reports.iter().any(hears)
    }

    /// A node that `me` needs for a shard, and is cut from: the one that leads it, or where `me` leads, one that must have each
    /// entry. The primary would have that one taken out if it reached the metadata, so it may itself have been replaced.
    #[must_use]
    pub fn needed_and_cut(
        &self,
        me: NodeId,
        config: &ShardConfig,
        now: Duration,
    ) -> Option<NodeId> {
        let primary = config.primary?.node;
        let pending = config.pending.iter().map(|boot| boot.node);
        let mut members = config.set.iter().copied().chain(pending);
        let is_cut = |node: &NodeId| *node != me && self.is_cut_from(*node, now);
        if primary == me { members.find(is_cut) } else { Some(primary).filter(is_cut) }
    }

    /// The elections to propose now.
    pub fn tick<'a>(
        &mut self,
        now: Duration,
        shards: impl Iterator<Item = (ShardId, &'a ShardConfig)>,
        boots: &Boots,
    ) -> Vec<ShardCommand> {
        let mut commands = Vec::new();
        for (shard, config) in shards {
            let waits = |(version, at): &(_, Duration)| {
                *version == config.version && now < *at + REPLICA_RETRY
            };
            if config.stalled
                || (self.leads(config, boots, now) && !self.is_disputed(config, boots, now))
                || self.proposed.get(&shard).is_some_and(waits)
            {
                continue;
            }
            let Some(change) = self.elect(shard, config, boots, now) else { continue };
            self.proposed.insert(shard, (config.version, now));
            commands.push(ShardCommand { shard, change });
        }
        commands
    }

    /// Whether the shard has a primary that lives, in the boot that was elected.
    fn leads(&self, config: &ShardConfig, boots: &Boots, now: Duration) -> bool {
        config.primary.is_some_and(|primary| {
            let current = boots.get(&primary.node) == Some(&primary.incarnation);
            // A controller that has just begun gives everybody the time to be heard.
            let lives = self.alive(primary.node, boots, now).is_some();
            current && (lives || now < self.started + self.fence)
        })
    }

    /// Whether the primary hears none of two or more other members, though all of them live and hear each other: it would
    /// remove them all, and it is the one that is cut off. Nodes that report nothing dispute nothing.
    fn is_disputed(&self, config: &ShardConfig, boots: &Boots, now: Duration) -> bool {
        let Some(primary) = config.primary else { return false };
        let others: Vec<NodeId> =
            config.set.iter().copied().filter(|node| *node != primary.node).collect();
        let report = |node: NodeId| {
            let rhythm = self.alive(node, boots, now)?.rhythm;
            let (at, hears) = self.reports.get(&node)?;
            rhythm.would_be_fresh(*at, now).then_some(hears)
        };
        let Some(heard_by_primary) = report(primary.node) else { return false };
        others.len() > 1
            && others.iter().all(|node| {
                let hears = |other: &NodeId| report(*node).is_some_and(|h| h.contains(other));
                !heard_by_primary.contains(node) && others.iter().all(|o| o == node || hears(o))
            })
    }

    fn alive(&self, node: NodeId, boots: &Boots, now: Duration) -> Option<&Heard> {
        let heard = self.heard.get(&node)?;
        let current = boots.get(&node) == Some(&heard.boot.incarnation);
        (current && !heard.rhythm.is_silent(now)).then_some(heard)
    }

    /// The live member with the best log. Any member would be legal; the best one hides the silent loss of one disk.
    fn elect(
        &self,
        shard: ShardId,
        config: &ShardConfig,
        boots: &Boots,
        now: Duration,
    ) -> Option<ShardChange> {
        let disputed = config.primary.filter(|_| self.is_disputed(config, boots, now));
        let live: Vec<_> = config
            .set
            .iter()
            .filter(|node| disputed.is_none_or(|primary| primary.node != **node))
            .filter_map(|node| self.alive(*node, boots, now))
            .filter_map(|heard| Some((heard.boot, *heard.ends.get(&shard)?)))
            .collect();
        if live.len() < config.set.len() && now < self.started + BOOT_WAIT {
            // The site may be starting: another member may have more.
            let first = config.primary.is_none_or(|p| boots.get(&p.node) != Some(&p.incarnation));
            if first {
                return None;
            }
        }
        let preference = |boot: &Boot| {
            let at = config.replicas.iter().position(|node| *node == boot.node);
            std::cmp::Reverse((at.unwrap_or(usize::MAX), boot.node))
        };
        let (primary, _) = live.iter().max_by_key(|(boot, end)| (end.rank(), preference(boot)))?;
        let dead = |node: &&NodeId| live.iter().all(|(boot, _)| boot.node != **node);
        let drop = config.set.iter().filter(dead).copied().collect();
        Some(ShardChange::Elect { expect_version: config.version, primary: *primary, drop })
    }
}

#[cfg(test)]
mod tests;
