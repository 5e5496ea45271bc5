//! The metadata group as a log: whatever is proposed arrives some time, is applied once, in one order for all.

use std::rc::Rc;

use super::{plan::Shape, view::Agreed};
use crate::{
    cluster::{BootClaim, MetaCommand, MetaOutcome, MetaReject, NodeInfo, NodeRole, SiteState},
    replication::{ShardChange, ShardCommand},
    types::{Boot, NodeId, NodeName, ShardId, Timestamp},
};

/// The one shard of a simulated site.
pub(crate) const SHARD: ShardId = ShardId(0);

/// The log, the state, and all states of the shard that there ever were.
pub(crate) struct Metadata {
    site: SiteState,
    /// One for each index, from 0 for the state before the first command.
    pub(crate) agreed: Vec<Rc<Agreed>>,
}

impl Metadata {
    pub(crate) fn new() -> Self {
        let mut metadata = Self { site: SiteState::default(), agreed: Vec::new() };
        metadata.agreed.push(Rc::new(Agreed {
            index: 0,
            config: crate::replication::ShardConfig::default(),
            boots: crate::replication::Boots::new(),
        }));
        let site = "sim".parse().expect("allowed");
        metadata.apply(MetaCommand::Found { site, shards: 1 }).expect("new");
        metadata
    }

    /// Registers a boot.
    pub(crate) fn register(
        &mut self,
        name: &str,
        disk_id: u128,
        claim: BootClaim,
    ) -> Result<Boot, MetaReject> {
        let name: NodeName = name.parse().expect("allowed");
        let known = self.site.nodes.values().any(|node| node.name == name);
        if !known && !self.site.nodes.is_empty() {
            let (role, now) = (NodeRole::Data, Timestamp(0));
            let name = name.clone();
            self.apply(MetaCommand::AddNode { name, disk_id, role, invite: None, now })?;
        }
        let info = NodeInfo::default();
        match self.apply(MetaCommand::Register { name, disk_id, claim, info })? {
            MetaOutcome::Registered(node, incarnation) => Ok(Boot { node, incarnation }),
            other => unreachable!("a registration is answered by a boot, not by {other:?}"),
        }
    }

    /// Changes the shard.
    pub(crate) fn change(&mut self, change: ShardChange) -> Result<(), MetaReject> {
        let command = ShardCommand { shard: SHARD, change };
        self.apply(MetaCommand::Shard(command)).map(drop)
    }

    pub(crate) fn place(&mut self, replicas: Vec<NodeId>, shape: Shape) {
        let change = ShardChange::Place { replicas, copies_min: shape.copies_min };
        self.change(change).expect("a placement is never refused");
    }

    /// The number of a node's last boot that registered.
    pub(crate) fn boot_of(&self, node: NodeId) -> u64 {
        self.site.nodes.get(&node).map_or(0, |record| record.claim.boot)
    }

    pub(crate) fn newest(&self) -> &Rc<Agreed> {
        self.agreed.last().expect("the first is always there")
    }

    fn apply(&mut self, command: MetaCommand) -> Result<MetaOutcome, MetaReject> {
        let index = self.site.applied + 1;
        let outcome = self.site.apply(index, command);
        let config = self.site.shards.first().cloned().unwrap_or_default();
        self.agreed.push(Rc::new(Agreed { index, config, boots: self.site.boots() }));
        outcome
    }
}
