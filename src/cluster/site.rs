//! The site's state: a pure function of its commands, in their order.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    command::{MetaCommand, MetaOutcome},
    node::{InviteId, InviteRecord, NodeRecord, RemovedNode},
    reject::MetaReject,
};
use crate::{
    limits::{PARTITIONS_MAX, PARTITIONS_PER_TOPIC_MAX, TOPICS_MAX},
    replication::{Boots, ShardCommand, ShardConfig},
    types::{
        NodeId, PartitionId, Retention, ShardId, SiteName, Timestamp, TopicId, TopicName,
        TopicSettings,
    },
};

mod nodes;

pub use nodes::FOUNDER;

/// All that the site agrees on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteState {
    /// The last entry of the log that is in it.
    pub applied: u64,
    /// The site's name, once it is founded.
    pub site: Option<SiteName>,
    /// Its nodes.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Its shards, by number.
    pub shards: Vec<ShardConfig>,
    /// Its topics.
    pub topics: BTreeMap<TopicName, TopicRecord>,
    /// Deleted topics whose partitions may still lie in a shard: only these are ever dropped.
    pub tombstones: BTreeMap<TopicId, Tombstone>,
    /// Who has a vote in the metadata group.
    #[serde(default)]
    pub voters: BTreeSet<NodeId>,
    /// When nodes were asked last to balance at once: the index of that command, 0 if never.
    #[serde(default)]
    pub balance: u64,
    /// What all nodes understand, also those that are down and witnesses: the newest version that each of them has said to
    /// speak. It never falls. Kinds of commands and of entries that came with a version are written from then on.
    #[serde(default)]
    pub level: u16,
    /// Nodes that have left for ever.
    #[serde(default)]
    pub removed: BTreeMap<NodeId, RemovedNode>,
    /// Nodes that may come.
    #[serde(default)]
    pub invites: BTreeMap<InviteId, InviteRecord>,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicRecord {
    /// Its id, for ever.
    pub id: TopicId,
    /// Its settings.
    pub settings: TopicSettings,
    /// In which shard each partition lives, for ever.
    pub shards: Vec<ShardId>,
    /// When it was made.
    pub created: Timestamp,
}

/// A deleted topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Its name, for the log.
    pub name: TopicName,
    /// Where its partitions were.
    pub shards: Vec<ShardId>,
}

impl SiteState {
    /// Applies the command at `index`. A reject changes nothing but `applied`.
    ///
    /// # Errors
    /// [`MetaReject`].
    ///
    /// # Panics
    /// If the index is not behind all that was applied: commands are applied in order, once.
    pub fn apply(&mut self, index: u64, command: MetaCommand) -> Result<MetaOutcome, MetaReject> {
        assert!(index > self.applied, "commands are applied in order");
        self.applied = index;
        match command {
            MetaCommand::Found { site, shards } => self.found(site, shards),
            MetaCommand::Register { name, disk_id, claim, info } => {
                self.register(name, disk_id, &claim, info)
            }
            MetaCommand::Shard(command) => self.change_shard(command),
            MetaCommand::CreateTopic { name, settings, now } => self.create(name, settings, now),
            MetaCommand::SetTopic { name, change } => {
                let topic = self.topics.get_mut(&name).ok_or(MetaReject::UnknownTopic(name))?;
                let retention = change.apply(&topic.settings.retention);
                check_retention(&retention)?;
                topic.settings.retention = retention;
                Ok(MetaOutcome::Topic(topic.clone()))
            }
            MetaCommand::DeleteTopic { name } => {
                let Some(topic) = self.topics.remove(&name) else {
                    return Err(MetaReject::UnknownTopic(name));
                };
                let tombstone = Tombstone { name, shards: topic.shards.clone() };
                self.tombstones.insert(topic.id, tombstone);
                Ok(MetaOutcome::Topic(topic))
            }
            MetaCommand::ForgetTopic { id } => {
                self.tombstones.remove(&id);
                Ok(MetaOutcome::Done)
            }
            MetaCommand::AddNode { name, disk_id, role, invite, now } => {
                self.add_node(name, disk_id, role, invite, now)
            }
            MetaCommand::RemoveNode { node } => self.remove_node(node),
            MetaCommand::SetNode { node, weight, draining } => {
                self.set_node(node, weight, draining)
            }
            MetaCommand::Replace { old, new } => self.replace(old, new),
            MetaCommand::Scrub { node } => self.scrub(node),
            MetaCommand::Balance => {
                self.balance = self.applied;
                Ok(MetaOutcome::Done)
            }
            MetaCommand::Invite { id, secret_hash, role, expires, now } => {
                self.invite(id, InviteRecord { secret_hash, role, expires, used_by: None }, now)
            }
        }
    }

    /// An entry without a command has this index.
    pub fn pass(&mut self, index: u64) {
        self.applied = self.applied.max(index);
    }

    /// The partitions that `shard` must hold, with the names of their topics.
    pub fn partitions_of(
        &self,
        shard: ShardId,
    ) -> impl Iterator<Item = (&TopicName, PartitionId)> + '_ {
        self.topics
            .iter()
            .flat_map(move |(name, t)| located(t.id, &t.shards, shard).map(move |id| (name, id)))
    }

    /// The partitions that `shard` must not hold any more.
    pub fn dropped_from(&self, shard: ShardId) -> impl Iterator<Item = PartitionId> + '_ {
        self.tombstones.iter().flat_map(move |(id, t)| located(*id, &t.shards, shard))
    }

    /// The newest boot of each node.
    #[must_use]
    pub fn boots(&self) -> Boots {
        let booted = self.nodes.iter().filter(|(_, node)| node.has_booted());
        booted.map(|(id, node)| (*id, node.incarnation)).collect()
    }

    fn found(&mut self, site: SiteName, shards: u16) -> Result<MetaOutcome, MetaReject> {
        match &self.site {
            None => {
                self.site = Some(site);
                self.shards = vec![ShardConfig::new(1); usize::from(shards)];
                Ok(MetaOutcome::Done)
            }
            Some(have) if *have != site => Err(MetaReject::OtherSite(have.clone())),
            Some(_) => {
                let have = u16::try_from(self.shards.len()).unwrap_or(u16::MAX);
                if have == shards {
                    Ok(MetaOutcome::Done)
                } else {
                    Err(MetaReject::OtherShards { have, want: shards })
                }
            }
        }
    }

    fn change_shard(&mut self, command: ShardCommand) -> Result<MetaOutcome, MetaReject> {
        let boots = self.boots();
        let ShardCommand { shard: id, change } = command;
        let shard = self.shards.get_mut(usize::from(id.0)).ok_or(MetaReject::UnknownShard(id))?;
        shard.apply(change, &boots).map_err(|reason| MetaReject::Shard { shard: id, reason })?;
        Ok(MetaOutcome::Done)
    }

    fn create(
        &mut self,
        name: TopicName,
        settings: TopicSettings,
        now: Timestamp,
    ) -> Result<MetaOutcome, MetaReject> {
        if self.shards.is_empty() {
            return Err(MetaReject::NotFounded);
        }
        if let Some(topic) = self.topics.get(&name) {
            return if topic.settings == settings {
                Ok(MetaOutcome::Topic(topic.clone()))
            } else {
                Err(MetaReject::TopicExists(name))
            };
        }
        if !(1..=PARTITIONS_PER_TOPIC_MAX).contains(&settings.partitions) {
            return Err(MetaReject::Partitions(settings.partitions));
        }
        check_retention(&settings.retention)?;
        if self.topics.len() >= TOPICS_MAX {
            return Err(MetaReject::TooManyTopics);
        }
        let mut load = self.partitions_by_shard();
        let total = load.iter().sum::<u32>() + settings.partitions;
        if total > PARTITIONS_MAX {
            return Err(MetaReject::TooManyPartitions(total));
        }
        let shards = (0..settings.partitions).map(|_| place(&mut load)).collect();
        let topic = TopicRecord { id: TopicId(self.applied), settings, shards, created: now };
        self.topics.insert(name, topic.clone());
        Ok(MetaOutcome::Topic(topic))
    }

    fn partitions_by_shard(&self) -> Vec<u32> {
        let mut load = vec![0; self.shards.len()];
        for shard in self.topics.values().flat_map(|t| &t.shards) {
            load[usize::from(shard.0)] += 1;
        }
        load
    }
}

/// Takes the shard with the fewest partitions, the first of several.
fn place(load: &mut [u32]) -> ShardId {
    let least = (0..load.len()).min_by_key(|&i| load[i]).unwrap_or(0);
    load[least] += 1;
    ShardId(u16::try_from(least).unwrap_or(u16::MAX))
}

fn located(
    topic: TopicId,
    shards: &[ShardId],
    shard: ShardId,
) -> impl Iterator<Item = PartitionId> + '_ {
    (0..)
        .zip(shards)
        .filter(move |(_, s)| **s == shard)
        .map(move |(index, _)| PartitionId { topic, index })
}

fn check_retention(retention: &Retention) -> Result<(), MetaReject> {
    let limits =
        [("age", retention.age_ms), ("bytes", retention.bytes), ("records", retention.records)];
    match limits.into_iter().find(|(_, limit)| *limit == Some(0)) {
        Some((name, _)) => Err(MetaReject::Retention(name.to_owned())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
