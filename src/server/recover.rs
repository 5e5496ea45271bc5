//! Shards that cannot go on by themselves, and the operator's word that they shall go on with what is left.

use std::cmp::Reverse;

use super::{connection::Shared, site_admin::group_fault};
use crate::{
    cluster::{MetaCommand, NodeRecord, SiteState},
    replication::{ShardChange, ShardCommand, ShardConfig},
    types::{Boot, NodeId, NodeRole, ShardId},
    wire::{Answer, Code, Fault, RecoveryPlan, StuckShard, Survivor},
};

/// The shards none of whose members can lead, as this node sees it.
pub(super) fn plan(shared: &Shared) -> RecoveryPlan {
    let shards = shared.engine.group.read(|site| {
        let shards = (0..).map(ShardId).zip(&site.shards);
        shards.filter_map(|(id, shard)| stuck(shared, site, id, shard)).collect()
    });
    RecoveryPlan { site: shared.site.to_string(), shards }
}

/// Has a shard of the plan go on with what one node has.
pub(super) fn recover(
    shared: &Shared,
    who: &str,
    shard: ShardId,
    version: u64,
    node: NodeId,
) -> Result<Answer, Fault> {
    let invalid = |message: String| {
        Fault::new(Code::Invalid, message).with_hint("see how it is: dunlin cluster recover")
    };
    let plan = plan(shared);
    let Some(stuck) = plan.shards.iter().find(|stuck| stuck.shard == shard.0) else {
        return Err(invalid(format!("shard {shard} can go on by itself")));
    };
    if stuck.version != version {
        return Err(invalid(format!("shard {shard} is not as it was when that was decided")));
    }
    if stuck.survivors.iter().all(|survivor| survivor.node != node) {
        return Err(invalid(format!("node {node} is not up, or holds no records")));
    }
    let group = &shared.engine.group;
    let incarnation = group.read(|site| site.nodes.get(&node).map(|record| record.incarnation));
    let Some(incarnation) = incarnation else {
        return Err(invalid(format!("there is no node {node}")));
    };
    let replica = Boot { node, incarnation };
    let change = ShardChange::Recover { expect_version: version, replica };
    tracing::error!(client = who, %shard, %node, "the operator accepts that data is lost");
    let command = MetaCommand::Shard(ShardCommand { shard, change });
    group.propose_blocking(command).map_err(|error| group_fault(&error))?;
    Ok(Answer::Done)
}

fn stuck(
    shared: &Shared,
    site: &SiteState,
    id: ShardId,
    shard: &ShardConfig,
) -> Option<StuckShard> {
    let now = shared.engine.clock.uptime();
    let is_up = |node: NodeId| {
        node == shared.engine.me.node || shared.liveness.of(node, now).is_some_and(|l| l.up)
    };
    // Nothing is known of a node that has not had the time to be heard.
    let is_down = |node: &NodeId| shared.liveness.of(*node, now).is_some_and(|l| !l.up);
    let why = if shard.stalled {
        "the last member of its set has lost data"
    } else if shard.set.iter().all(|node| *node != shared.engine.me.node && is_down(node)) {
        "no member of its set is up"
    } else {
        return None;
    };
    let holds = |(node, record): (&NodeId, &NodeRecord)| {
        let takes = record.role == NodeRole::Data && record.has_booted() && is_up(*node);
        let end = shared.liveness.end(*node, id).filter(|end| end.lsn.0 > 0);
        takes.then_some(Survivor {
            node: *node,
            end: end.map(|end| end.lsn),
            epoch: end.map(|end| end.epoch).unwrap_or_default(),
        })
    };
    let mut survivors: Vec<Survivor> = site.nodes.iter().filter_map(holds).collect();
    survivors.sort_by_key(|survivor| Reverse((survivor.epoch, survivor.end)));
    Some(StuckShard {
        shard: id.0,
        version: shard.version,
        why: why.to_owned(),
        members: shard.set.clone(),
        partitions: u32::try_from(site.partitions_of(id).count()).unwrap_or(u32::MAX),
        floor: shard.floor.map(|floor| floor.lsn),
        survivors,
    })
}
