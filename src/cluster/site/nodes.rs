//! The commands that are about nodes.

use super::SiteState;
use crate::{
    cluster::{
        command::{BootClaim, MetaOutcome},
        node::{InviteId, InviteRecord, NodeInfo, NodeRecord, NodeRole, RemovedNode},
        reject::MetaReject,
    },
    limits::{
        INVITES_MAX, NODE_WEIGHT_DEFAULT, NODE_WEIGHT_MAX, NODES_MAX, REMOVED_NODES_REMEMBERED,
    },
    types::{Incarnation, NodeId, NodeName, ShardId, Timestamp},
};

/// The number of the node that founds a site. It is a member of the metadata group before there is a log that could give
/// it one; indexes of commands are greater.
pub const FOUNDER: NodeId = NodeId(1);

impl SiteState {
    pub(super) fn register(
        &mut self,
        name: NodeName,
        disk_id: u128,
        claim: &BootClaim,
        info: NodeInfo,
    ) -> Result<MetaOutcome, MetaReject> {
        if self.site.is_none() {
            return Err(MetaReject::NotFounded);
        }
        info.check()?;
        let speaks = info.speaks();
        if self.level > 0 && !speaks.contains(self.level) {
            return Err(MetaReject::Protocol { speaks: speaks.to_string(), level: self.level });
        }
        let incarnation = Incarnation(self.applied);
        let first = self.nodes.is_empty();
        if first {
            self.nodes.insert(FOUNDER, joined(name.clone(), disk_id, NodeRole::Data));
        }
        let Some((id, node)) = self.nodes.iter_mut().find(|(_, node)| node.name == name) else {
            let removed = self.removed.values().any(|removed| removed.disk_id == disk_id);
            return Err(match removed {
                true => MetaReject::Removed(name),
                false => MetaReject::UnknownNode(name),
            });
        };
        let id = *id;
        if node.disk_id != disk_id {
            return Err(MetaReject::OtherDisk(name));
        }
        if node.has_booted() {
            if node.claim.is_same_boot(claim) {
                // The same command twice: its answer was lost.
                return Ok(MetaOutcome::Registered(id, node.incarnation));
            }
            if !claim.follows(&node.claim) {
                return Err(MetaReject::StaleBoot { have: node.claim.boot, claimed: claim.boot });
            }
        }
        node.incarnation = incarnation;
        node.claim = BootClaim { shards: Vec::new(), before: Vec::new(), ..claim.clone() };
        node.info = info;
        self.raise_level();
        for (number, shard) in (0..).zip(&mut self.shards) {
            if first {
                // The first node of a site holds all shards; others are added to their sets later.
                shard.found(id);
            } else {
                shard.registered(id, claim.suspect, claim.report(ShardId(number)));
            }
        }
        Ok(MetaOutcome::Registered(id, incarnation))
    }

    /// Notes what all nodes understand by now. One that has joined and never started has said nothing yet.
    fn raise_level(&mut self) {
        let newest = self.nodes.values().map(|node| node.info.speaks().max).min().unwrap_or(0);
        self.level = self.level.max(newest);
    }

    pub(super) fn add_node(
        &mut self,
        name: NodeName,
        disk_id: u128,
        role: NodeRole,
        invite: Option<InviteId>,
        now: Timestamp,
    ) -> Result<MetaOutcome, MetaReject> {
        // The first node founds the site and registers by itself.
        if self.nodes.is_empty() {
            return Err(MetaReject::NotFounded);
        }
        if let Some((id, node)) = self.nodes.iter().find(|(_, node)| node.name == name) {
            return match node.disk_id == disk_id {
                true => Ok(MetaOutcome::NodeAdded(*id)),
                false => Err(MetaReject::OtherDisk(name)),
            };
        }
        if let Some(node) = self.nodes.values().find(|node| node.disk_id == disk_id) {
            return Err(MetaReject::DiskInUse(node.name.clone()));
        }
        if self.removed.values().any(|removed| removed.disk_id == disk_id) {
            return Err(MetaReject::Removed(name));
        }
        if self.nodes.len() >= NODES_MAX {
            return Err(MetaReject::TooManyNodes);
        }
        let id = NodeId(self.applied);
        if let Some(invite) = invite {
            let is_open =
                |i: &&mut InviteRecord| i.expires > now && i.role == role && i.used_by.is_none();
            let open = self.invites.get_mut(&invite).filter(is_open);
            open.ok_or(MetaReject::NoInvite(invite))?.used_by = Some(id);
        }
        self.nodes.insert(id, joined(name, disk_id, role));
        Ok(MetaOutcome::NodeAdded(id))
    }

    /// Whether nothing lies on a node, so that it can be removed.
    ///
    /// # Errors
    /// [`MetaReject`]: there is no such node, or it holds something.
    pub fn check_unused(&self, node: NodeId) -> Result<(), MetaReject> {
        if !self.nodes.contains_key(&node) {
            return Err(MetaReject::NoNode(node));
        }
        let holds = |(_, shard): &(u16, &crate::replication::ShardConfig)| {
            shard.required().any(|member| member == node) || shard.replicas.contains(&node)
        };
        if let Some((number, _)) = (0..).zip(&self.shards).find(holds) {
            return Err(MetaReject::NodeInUse { node, shard: ShardId(number) });
        }
        Ok(())
    }

    pub(super) fn remove_node(&mut self, node: NodeId) -> Result<MetaOutcome, MetaReject> {
        if self.removed.contains_key(&node) {
            return Ok(MetaOutcome::Done);
        }
        self.check_unused(node)?;
        if self.voters.iter().all(|voter| *voter == node) && !self.voters.is_empty() {
            return Err(MetaReject::LastVoter(node));
        }
        if let Some(NodeRecord { name, disk_id, .. }) = self.nodes.remove(&node) {
            self.removed.insert(node, RemovedNode { name, disk_id });
        }
        self.raise_level();
        while self.removed.len() > REMOVED_NODES_REMEMBERED {
            self.removed.pop_first();
        }
        Ok(MetaOutcome::Done)
    }

    pub(super) fn set_node(
        &mut self,
        id: NodeId,
        weight: Option<u32>,
        draining: Option<bool>,
    ) -> Result<MetaOutcome, MetaReject> {
        if let Some(weight) = weight.filter(|weight| *weight > NODE_WEIGHT_MAX) {
            return Err(MetaReject::Weight(weight));
        }
        let node = self.nodes.get_mut(&id).ok_or(MetaReject::NoNode(id))?;
        node.weight = weight.unwrap_or(node.weight);
        node.draining = draining.unwrap_or(node.draining);
        if !node.draining {
            node.replaced_by = None;
        }
        Ok(MetaOutcome::Done)
    }

    pub(super) fn replace(&mut self, old: NodeId, new: NodeId) -> Result<MetaOutcome, MetaReject> {
        let heir = self.nodes.get(&new).ok_or(MetaReject::NoNode(new))?;
        let why = match heir {
            _ if old == new => Some("it is the same node"),
            heir if heir.role != NodeRole::Data => Some("it is a witness"),
            heir if !heir.has_booted() => Some("it has never started"),
            heir if heir.draining => Some("it gives away what it holds"),
            heir if heir.weight == 0 => Some("its weight is 0"),
            _ => None,
        };
        if let Some(why) = why {
            return Err(MetaReject::Heir { node: new, why: why.to_owned() });
        }
        let node = self.nodes.get_mut(&old).ok_or(MetaReject::NoNode(old))?;
        (node.draining, node.replaced_by) = (true, Some(new));
        Ok(MetaOutcome::Done)
    }

    pub(super) fn scrub(&mut self, node: Option<NodeId>) -> Result<MetaOutcome, MetaReject> {
        if let Some(node) = node.filter(|node| !self.nodes.contains_key(node)) {
            return Err(MetaReject::NoNode(node));
        }
        let asked = self.nodes.iter_mut().filter(|(id, _)| node.is_none_or(|node| node == **id));
        asked.for_each(|(_, record)| record.scrub = self.applied);
        Ok(MetaOutcome::Done)
    }

    pub(super) fn invite(
        &mut self,
        id: InviteId,
        invite: InviteRecord,
        now: Timestamp,
    ) -> Result<MetaOutcome, MetaReject> {
        if self.nodes.is_empty() {
            return Err(MetaReject::NotFounded);
        }
        self.invites.retain(|_, invite| invite.expires > now);
        match self.invites.get(&id) {
            Some(have) if *have == invite => return Ok(MetaOutcome::Done),
            Some(_) => return Err(MetaReject::InviteExists(id)),
            None => {}
        }
        if self.invites.len() >= INVITES_MAX {
            // A used one is only kept for a joiner that asks twice.
            let used = self.invites.iter().find(|(_, invite)| invite.used_by.is_some());
            let used = used.map(|(id, _)| *id).ok_or(MetaReject::TooManyInvites)?;
            self.invites.remove(&used);
        }
        self.invites.insert(id, invite);
        Ok(MetaOutcome::Done)
    }
}

/// A node that has not registered yet.
fn joined(name: NodeName, disk_id: u128, role: NodeRole) -> NodeRecord {
    NodeRecord {
        name,
        disk_id,
        role,
        weight: NODE_WEIGHT_DEFAULT,
        draining: false,
        incarnation: Incarnation(0),
        claim: BootClaim::default(),
        info: NodeInfo::default(),
        replaced_by: None,
        scrub: 0,
    }
}
