//! What the site agrees on for one shard: who leads, who must have an entry, who may lead next.
//!
//! Every check is made when a change is applied, in the order of the metadata log, so that what a deposed proposer asks
//! for late fails by itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{entry::LogEnd, mutant};
use crate::types::{Boot, Epoch, Incarnation, NodeId, ShardId};

/// The newest boot of each node that the site knows.
pub type Boots = BTreeMap<NodeId, Incarnation>;

/// A shard as the site agrees on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardConfig {
    /// Grows by one at each change.
    pub version: u64,
    /// Grows by one at each change of primary.
    pub epoch: Epoch,
    /// The primary, in the boot that was elected: a restarted node never goes on with an old epoch.
    pub primary: Option<Boot>,
    /// The commit set: replicas that must have an entry and may become primary.
    pub set: Vec<NodeId>,
    /// Replicas that must have an entry and may not yet become primary.
    pub pending: Vec<Boot>,
    /// Nodes that should hold the shard, the preferred primary first.
    pub replicas: Vec<NodeId>,
    /// Nothing is committed with fewer members.
    pub copies_min: u32,
    /// An end that is known to be committed, a little behind: a member whose disk has less has lost data.
    pub floor: Option<LogEnd>,
    /// The last member of the set has lost data: nobody may lead until an operator decides.
    pub stalled: bool,
    /// Grows by one when an operator has the shard go on with what is left: another history of the log begins.
    #[serde(default)]
    pub lineage: u64,
    /// The epoch in which it began. A log that holds nothing of this epoch or a later one is of an older lineage, and is
    /// never continued, whatever it knows to be committed.
    #[serde(default)]
    pub lineage_start: Epoch,
}

/// A change of one shard, as it is proposed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardCommand {
    /// Which shard.
    pub shard: ShardId,
    /// What changes.
    pub change: ShardChange,
}

/// A change of a shard. All but [`ShardChange::Floor`] and [`ShardChange::Place`] name the version that the proposer
/// saw, and do nothing at another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShardChange {
    /// A new primary and a new epoch.
    Elect {
        /// The version that the proposer saw.
        expect_version: u64,
        /// The new primary: a member of the set in its newest boot.
        primary: Boot,
        /// Members to leave out, if enough stay.
        drop: Vec<NodeId>,
    },
    /// A replica must have each entry from now on, and may not lead yet.
    AddPending {
        /// The version that the proposer saw.
        expect_version: u64,
        /// The primary.
        from: Boot,
        /// The replica.
        replica: Boot,
    },
    /// A pending replica has all that is committed: it may lead.
    ConfirmAdd {
        /// The version that the proposer saw.
        expect_version: u64,
        /// The primary.
        from: Boot,
        /// The replica.
        replica: Boot,
    },
    /// A member or a pending replica leaves.
    Remove {
        /// The version that the proposer saw.
        expect_version: u64,
        /// The primary.
        from: Boot,
        /// Who leaves.
        node: NodeId,
        /// It has lost data: it leaves even if too few stay.
        lost: bool,
    },
    /// A member that is about to stop leaves the set by itself, if enough stay: nobody then waits for it.
    Leave {
        /// The version that it saw.
        expect_version: u64,
        /// Who leaves, in its newest boot.
        replica: Boot,
    },
    /// An operator accepts that data is lost: the shard goes on with what this replica has, in another lineage.
    Recover {
        /// The version that the operator saw.
        expect_version: u64,
        /// The replica, in its newest boot.
        replica: Boot,
    },
    /// The log is committed up to this end.
    Floor {
        /// The primary.
        from: Boot,
        /// Its epoch.
        epoch: Epoch,
        /// The end.
        committed: LogEnd,
    },
    /// Which nodes should hold the shard, and with how few copies it may go on.
    Place {
        /// The nodes, the preferred primary first.
        replicas: Vec<NodeId>,
        /// Nothing is committed with fewer members.
        copies_min: u32,
    },
}

/// What a node that registers has of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardReport {
    /// Where its log ends.
    pub end: LogEnd,
    /// An install is half done: the rest means nothing.
    pub installing: bool,
}

/// Why a change changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ConfigReject {
    /// Somebody else was first.
    #[error("the shard is at version {have}, the proposal expected {expected}")]
    StaleVersion {
        /// As it is.
        have: u64,
        /// As the proposer saw it.
        expected: u64,
    },
    /// The node or its boot is not the registered one.
    #[error("node {0} is not registered in this boot")]
    StaleBoot(Boot),
    /// Only the primary may ask for this.
    #[error("node {0} does not lead the shard")]
    NotPrimary(Boot),
    /// The replica is not where the change needs it: in the set, pending, outside.
    #[error("node {0} is not in the place that the change needs")]
    WrongPlace(NodeId),
    /// Too few members would stay.
    #[error("{would_stay} members would stay in the set, {need} are required")]
    TooFewMembers {
        /// As many would stay.
        would_stay: u32,
        /// As many must.
        need: u32,
    },
    /// The last member has lost data.
    #[error("the last member of the set has lost data; an operator must decide")]
    Stalled,
}

impl ShardConfig {
    /// A shard before any node holds it.
    #[must_use]
    pub fn new(copies_min: u32) -> Self {
        Self { copies_min, ..Self::default() }
    }

    /// The first node of a site holds every shard.
    pub fn found(&mut self, node: NodeId) {
        self.set = vec![node];
        self.replicas = vec![node];
        self.version += 1;
    }

    /// Applies a change. A reject changes nothing.
    ///
    /// # Errors
    /// [`ConfigReject`].
    pub fn apply(&mut self, change: ShardChange, boots: &Boots) -> Result<(), ConfigReject> {
        match change {
            ShardChange::Elect { expect_version, primary, drop } => {
                self.check_version(expect_version)?;
                self.elect(primary, &drop, boots)
            }
            ShardChange::AddPending { expect_version, from, replica } => {
                self.check_version(expect_version)?;
                self.check_primary(from, boots)?;
                self.add_pending(replica, boots)
            }
            ShardChange::ConfirmAdd { expect_version, from, replica } => {
                self.check_version(expect_version)?;
                self.check_primary(from, boots)?;
                self.confirm_add(replica, boots)
            }
            ShardChange::Remove { expect_version, from, node, lost } => {
                self.check_version(expect_version)?;
                self.check_primary(from, boots)?;
                self.remove(node, lost)
            }
            ShardChange::Leave { expect_version, replica } => {
                self.check_version(expect_version)?;
                check_boot(replica, boots)?;
                self.remove(replica.node, false)
            }
            ShardChange::Recover { expect_version, replica } => {
                self.check_version(expect_version)?;
                check_boot(replica, boots)?;
                self.recover(replica);
                Ok(())
            }
            ShardChange::Floor { from, epoch, committed } => {
                self.check_primary(from, boots)?;
                if epoch == self.epoch && self.floor.is_none_or(|floor| floor.lsn < committed.lsn) {
                    self.floor = Some(committed);
                }
                Ok(())
            }
            ShardChange::Place { replicas, copies_min } => {
                self.replicas = replicas;
                self.copies_min = copies_min;
                self.version += 1;
                Ok(())
            }
        }
    }

    /// A node has registered a new boot. What it was told as a pending replica is void. A member stays one: it acked
    /// nothing that was not durable; but if its disk has lost data it leaves, and if it is the last one, the shard stalls.
    pub fn registered(&mut self, node: NodeId, suspect: bool, report: Option<&ShardReport>) {
        let pending = self.pending.len();
        if !mutant!(StaleIncarnationConfirmed) {
            self.pending.retain(|boot| boot.node != node);
        }
        let mut changed = self.pending.len() != pending;
        let end = report.filter(|r| !r.installing).map(|r| r.end).unwrap_or_default();
        let lost = suspect || self.floor.is_some_and(|floor| end.lsn < floor.lsn);
        if lost && self.set.contains(&node) && !mutant!(LostStaysInSet) {
            if self.set.len() == 1 {
                self.stalled = true;
            } else {
                self.set.retain(|member| *member != node);
            }
            changed = true;
        }
        if changed {
            self.version += 1;
        }
    }

    /// Replicas whose acks the primary needs.
    pub fn required(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.set.iter().copied().chain(self.pending.iter().map(|boot| boot.node))
    }

    /// Whether one member more may be missing from the set.
    #[must_use]
    pub fn can_shrink(&self) -> bool {
        self.set.len() > (self.copies_min as usize).max(1)
    }

    fn check_version(&self, expected: u64) -> Result<(), ConfigReject> {
        if self.version == expected || mutant!(NoVersionCheck) {
            return Ok(());
        }
        Err(ConfigReject::StaleVersion { have: self.version, expected })
    }

    fn check_primary(&self, from: Boot, boots: &Boots) -> Result<(), ConfigReject> {
        check_boot(from, boots)?;
        if self.primary == Some(from) { Ok(()) } else { Err(ConfigReject::NotPrimary(from)) }
    }

    fn elect(&mut self, primary: Boot, drop: &[NodeId], boots: &Boots) -> Result<(), ConfigReject> {
        check_boot(primary, boots)?;
        if self.stalled && !mutant!(StalledElectable) {
            return Err(ConfigReject::Stalled);
        }
        let member = self.set.contains(&primary.node);
        let outsider = mutant!(ElectOutsideSet) && self.replicas.contains(&primary.node);
        if !member && !outsider {
            return Err(ConfigReject::WrongPlace(primary.node));
        }
        let stays = |node: &NodeId| *node == primary.node || !drop.contains(node);
        let kept = self.set.iter().filter(|node| stays(node)).count();
        if kept >= self.copies_min as usize {
            self.set.retain(stays);
        }
        if !member {
            self.set.push(primary.node);
        }
        self.epoch = self.epoch.next();
        self.primary = Some(primary);
        self.pending.clear();
        self.version += 1;
        Ok(())
    }

    /// One replica alone, in a new epoch: what it has is all that there is.
    fn recover(&mut self, replica: Boot) {
        self.epoch = self.epoch.next();
        (self.lineage, self.lineage_start) = (self.lineage + 1, self.epoch);
        (self.primary, self.set) = (Some(replica), vec![replica.node]);
        self.pending.clear();
        if !self.replicas.contains(&replica.node) {
            self.replicas.insert(0, replica.node);
        }
        // More copies are asked for once they are there.
        (self.copies_min, self.floor, self.stalled) = (1, None, false);
        self.version += 1;
    }

    fn add_pending(&mut self, replica: Boot, boots: &Boots) -> Result<(), ConfigReject> {
        check_boot(replica, boots)?;
        let there = self.required().any(|node| node == replica.node);
        if there || !self.replicas.contains(&replica.node) {
            return Err(ConfigReject::WrongPlace(replica.node));
        }
        if mutant!(OneStepAdd) {
            self.set.push(replica.node);
        } else {
            self.pending.push(replica);
        }
        self.version += 1;
        Ok(())
    }

    fn confirm_add(&mut self, replica: Boot, boots: &Boots) -> Result<(), ConfigReject> {
        let same = |pending: &Boot| {
            *pending == replica
                || (mutant!(StaleIncarnationConfirmed) && pending.node == replica.node)
        };
        if !mutant!(StaleIncarnationConfirmed) {
            check_boot(replica, boots)?;
        }
        if !self.pending.iter().any(same) {
            return Err(ConfigReject::WrongPlace(replica.node));
        }
        self.pending.retain(|pending| !same(pending));
        self.set.push(replica.node);
        self.version += 1;
        Ok(())
    }

    fn remove(&mut self, node: NodeId, lost: bool) -> Result<(), ConfigReject> {
        if self.pending.iter().any(|boot| boot.node == node) {
            self.pending.retain(|boot| boot.node != node);
            self.version += 1;
            return Ok(());
        }
        let leads = self.primary.is_some_and(|primary| primary.node == node);
        if leads || !self.set.contains(&node) {
            return Err(ConfigReject::WrongPlace(node));
        }
        if !lost && !self.can_shrink() {
            let would_stay = u32::try_from(self.set.len() - 1).unwrap_or(u32::MAX);
            return Err(ConfigReject::TooFewMembers { would_stay, need: self.copies_min });
        }
        self.set.retain(|member| *member != node);
        self.version += 1;
        Ok(())
    }
}

fn check_boot(boot: Boot, boots: &Boots) -> Result<(), ConfigReject> {
    let newest = boots.get(&boot.node) == Some(&boot.incarnation);
    if newest { Ok(()) } else { Err(ConfigReject::StaleBoot(boot)) }
}

#[cfg(test)]
mod tests;
