//! What administrators ask of the site's nodes: invites, how all are, weights, and goodbyes.

use std::{sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::{connection::Shared, members, streams};
use crate::{
    cluster::{FOUNDER, GroupError, InviteId, MetaCommand, MetaReject, NodeRecord, SiteState},
    limits::{INVITE_LIFETIME_DEFAULT, INVITE_LIFETIME_MAX, JOIN_ADDRESSES_MAX},
    net::{
        Invite,
        authority::{CA_CERTIFICATE_FILE, CA_KEY_FILE, Fingerprint},
        invite::secret_hash,
        secret_file,
    },
    replication::ShardConfig,
    types::{Address, InviteSecret, NodeId, NodeRole, ShardId, Timestamp},
    wire::{
        Answer, ClusterNode, ClusterShard, ClusterStatus, Code, Fault, Invited, Lag, Liveness,
        NodeInfo,
    },
};

/// Makes an invite. `who` asks.
pub(super) fn invite(
    shared: &Shared,
    who: &str,
    role: NodeRole,
    lifetime_ms: Option<u64>,
    addresses: &[String],
) -> Result<Answer, Fault> {
    let lifetime = lifetime_ms.map_or(INVITE_LIFETIME_DEFAULT, Duration::from_millis);
    if lifetime.is_zero() || lifetime > INVITE_LIFETIME_MAX {
        let days = INVITE_LIFETIME_MAX.as_secs() / (24 * 60 * 60);
        let message = format!("an invite lives up to {days} days, not {} s", lifetime.as_secs());
        return Err(Fault::new(Code::Invalid, message));
    }
    let addresses = addresses_of_invite(shared, addresses)?;
    let ca = fingerprint(shared)?;
    let now = shared.engine.clock.wall();
    let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
    let invite = Invite {
        site: shared.site.clone(),
        ca,
        addresses,
        id: rand::random(),
        secret: InviteSecret::new(rand::random()),
        role,
        expires: Timestamp(now.0.saturating_add(lifetime_ms)),
    };
    let command = MetaCommand::Invite {
        id: InviteId(invite.id),
        secret_hash: secret_hash(invite.secret),
        role,
        expires: invite.expires,
        now,
    };
    shared.engine.group.propose_blocking(command).map_err(|error| group_fault(&error))?;
    tracing::info!(client = who, invite = %InviteId(invite.id), %role, "invite made");
    Ok(Answer::Invited(Invited {
        token: invite.to_token(),
        id: invite.id,
        role,
        expires: invite.expires,
        addresses: invite.addresses.iter().map(Address::to_string).collect(),
    }))
}

/// Changes how much a node is given to do.
pub(super) fn set_node(
    shared: &Shared,
    who: &str,
    node: NodeId,
    weight: Option<u32>,
    draining: Option<bool>,
) -> Result<Answer, Fault> {
    let command = MetaCommand::SetNode { node, weight, draining };
    shared.engine.group.propose_blocking(command).map_err(|error| group_fault(&error))?;
    tracing::info!(client = who, %node, ?weight, ?draining, "node changed");
    Ok(Answer::Done)
}

/// Lets one node take over all that another one holds.
pub(super) fn replace_node(
    shared: &Shared,
    who: &str,
    old: NodeId,
    new: NodeId,
) -> Result<Answer, Fault> {
    let command = MetaCommand::Replace { old, new };
    shared.engine.group.propose_blocking(command).map_err(|error| group_fault(&error))?;
    tracing::info!(client = who, %old, %new, "one node takes over from another");
    Ok(Answer::Done)
}

/// Asks one node, or all, to look through what it holds for damage now.
pub(super) fn scrub(shared: &Shared, who: &str, node: Option<NodeId>) -> Result<Answer, Fault> {
    let command = MetaCommand::Scrub { node };
    shared.engine.group.propose_blocking(command).map_err(|error| group_fault(&error))?;
    tracing::info!(client = who, ?node, "a search for damage is asked for");
    Ok(Answer::Done)
}

/// Has all nodes move clients and primaries to where they should be without waiting.
pub(super) fn balance(shared: &Shared, who: &str) -> Result<Answer, Fault> {
    shared.engine.group.propose_blocking(MetaCommand::Balance).map_err(|e| group_fault(&e))?;
    tracing::info!(client = who, "clients and primaries are to move now");
    Ok(Answer::Done)
}

/// Takes a node out of the site.
pub(super) fn remove_node(shared: &Shared, who: &str, node: NodeId) -> Result<Answer, Fault> {
    let group = Arc::clone(&shared.engine.group);
    let left = Handle::current().block_on(members::let_go(&group, node));
    left.map_err(|error| group_fault(&error))?;
    tracing::info!(client = who, %node, "node removed from the site");
    Ok(Answer::Done)
}

/// The site's nodes and shards, as this node knows them.
pub(super) fn status(shared: &Shared) -> ClusterStatus {
    let group = &shared.engine.group;
    let (leader, now) = (group.status().leader, shared.engine.clock.wall());
    group.read(|site| ClusterStatus {
        site: shared.site.to_string(),
        node: shared.engine.me.node,
        leader,
        level: site.level,
        nodes: site.nodes.iter().map(|(id, node)| node_status(shared, site, *id, node)).collect(),
        shards: (0..)
            .zip(&site.shards)
            .map(|(id, shard)| shard_status(shared, id, shard))
            .collect(),
        invites: open_invites(site, now),
    })
}

/// The site's nodes as clients and joiners are told, all but one.
pub(super) fn node_infos(site: &SiteState, but: Option<NodeId>) -> Vec<NodeInfo> {
    let others = site.nodes.iter().filter(|(id, _)| Some(**id) != but);
    others.map(|(id, node)| node_info(*id, node)).collect()
}

/// A node as clients and joiners are told.
pub(super) fn node_info(id: NodeId, node: &NodeRecord) -> NodeInfo {
    NodeInfo { id, name: node.name.to_string(), addresses: node.info.addresses.clone() }
}

/// A metadata error with what to do about it.
pub(super) fn group_fault(error: &GroupError) -> Fault {
    let fault = streams::group_fault(error);
    let GroupError::Rejected(reject) = error else { return fault };
    let hint = match reject {
        MetaReject::NoNode(_) => "see the site's nodes: dunlin cluster status".to_owned(),
        MetaReject::NodeInUse { node, .. } => {
            format!("let it give away what it holds first: dunlin cluster drain {node}")
        }
        MetaReject::TooManyNodes => "remove one: dunlin cluster remove NODE".to_owned(),
        MetaReject::NoInvite(_) => "make a new one on a node of the site: dunlin invite".to_owned(),
        MetaReject::TooManyInvites => "use one of them, or wait until they end".to_owned(),
        MetaReject::OtherDisk(name) => format!(
            "give the new machine another name (--name), or take the old node out first: \
             dunlin cluster remove {name}"
        ),
        MetaReject::LastVoter(_) => "let another machine join first: dunlin invite".to_owned(),
        _ => return fault,
    };
    let fault = match reject {
        // Its code says that the node is at fault, which holds for a start and not for a joiner.
        MetaReject::OtherDisk(_) => Fault::new(Code::Invalid, fault.message),
        _ => fault,
    };
    fault.with_hint(hint)
}

fn node_status(shared: &Shared, site: &SiteState, id: NodeId, node: &NodeRecord) -> ClusterNode {
    ClusterNode {
        id,
        name: node.name.to_string(),
        role: node.role,
        addresses: node.info.addresses.clone(),
        software: node.info.software.clone(),
        weight: node.weight,
        draining: node.draining,
        started: node.has_booted(),
        votes: site.voters.contains(&id),
        liveness: shared.liveness(id),
        damaged: shared.liveness.is_damaged(id),
    }
}

fn shard_status(shared: &Shared, id: u16, shard: &ShardConfig) -> ClusterShard {
    let mut behind = shared.liveness.behind(ShardId(id), shard, shared.engine.clock.uptime());
    if let Some(why) = shared.engine.damage.told(ShardId(id)) {
        let node = shared.engine.me.node;
        behind.retain(|lag| lag.node != node);
        behind.push(Lag { node, entries: None, why });
    }
    ClusterShard {
        shard: id,
        epoch: shard.epoch,
        primary: shard.primary.map(|boot| boot.node),
        set: shard.set.clone(),
        pending: shard.pending.iter().map(|boot| boot.node).collect(),
        replicas: shard.replicas.clone(),
        copies_min: shard.copies_min,
        stalled: shard.stalled,
        behind,
    }
}

fn open_invites(site: &SiteState, now: Timestamp) -> u32 {
    let open = site.invites.values().filter(|i| i.used_by.is_none() && i.expires > now);
    u32::try_from(open.count()).unwrap_or(u32::MAX)
}

impl Shared {
    /// What this node knows of the life of a node.
    fn liveness(&self, node: NodeId) -> Option<Liveness> {
        let engine = &self.engine;
        let uptime = engine.clock.uptime();
        if node != engine.me.node {
            return self.liveness.of(node, uptime);
        }
        Some(Liveness {
            up: true,
            since_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            clients: Some(self.clients.len()),
        })
    }
}

/// Those that were asked for, else where a node that can sign listens.
fn addresses_of_invite(shared: &Shared, asked: &[String]) -> Result<Vec<Address>, Fault> {
    let invalid = |message: String| Fault::new(Code::Invalid, message);
    if asked.len() > JOIN_ADDRESSES_MAX {
        let (have, max) = (asked.len(), JOIN_ADDRESSES_MAX);
        return Err(invalid(format!("{have} addresses, limit is {max}")));
    }
    let asked: Result<Vec<Address>, _> = asked.iter().map(|address| address.parse()).collect();
    let asked = asked.map_err(|error| invalid(error.to_string()))?;
    if !asked.is_empty() {
        return Ok(asked);
    }
    let founder = || {
        shared.engine.group.read(|site| {
            site.nodes.get(&FOUNDER).map(|node| node.info.addresses.clone()).unwrap_or_default()
        })
    };
    let signs = secret_file::exists(&shared.pki_dir.join(CA_KEY_FILE));
    let own = if signs { shared.addresses.clone() } else { founder() };
    let own: Vec<Address> = own.iter().filter_map(|address| address.parse().ok()).collect();
    if own.is_empty() {
        return Err(invalid(
            "no address is known under which another machine finds the site".into(),
        )
        .with_hint("name one: dunlin invite --address HOST:PORT, or set listen.advertise"));
    }
    Ok(own.into_iter().take(JOIN_ADDRESSES_MAX).collect())
}

fn fingerprint(shared: &Shared) -> Result<Fingerprint, Fault> {
    let path = shared.pki_dir.join(CA_CERTIFICATE_FILE);
    let read = secret_file::read_public(&path).map_err(|error| error.to_string());
    let found = read.and_then(|pem| {
        Fingerprint::of_pem(&pem)
            .ok_or_else(|| format!("{} holds no PEM certificate", path.display()))
    });
    found.map_err(|error| {
        tracing::error!(error, "the site's authority cannot be read");
        Fault::new(Code::Internal, "the node cannot read its site's authority")
            .with_hint("see the node's log")
    })
}
