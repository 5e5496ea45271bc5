//! The site's nodes and shards, as one node knows them: what administrators ask, and what they are told.

use serde::{Deserialize, Serialize};

use crate::types::{Epoch, InviteToken, Lsn, NodeId, NodeRole, Timestamp};

/// The answer to `Invite`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invited {
    /// The invite as text, for `dunlin join`.
    pub token: InviteToken,
    /// Its number, for the log.
    pub id: u64,
    /// What the new node is for.
    pub role: NodeRole,
    /// When it ends, by the node's clock.
    pub expires: Timestamp,
    /// Where the joiner will look for the site, `host:port` each.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// The answer to `ClusterStatus`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Name of the site.
    pub site: String,
    /// The node that answers: what it cannot know is left out.
    pub node: NodeId,
    /// Who orders changes of the metadata, as far as the node knows.
    #[serde(default)]
    pub leader: Option<NodeId>,
    /// The version of the protocol that all nodes speak by now, also those that are down: what came with a later one is not
    /// used yet.
    #[serde(default)]
    pub level: u16,
    /// All nodes, by number.
    pub nodes: Vec<ClusterNode>,
    /// All shards, by number.
    pub shards: Vec<ClusterShard>,
    /// Invites that can still be used.
    #[serde(default)]
    pub invites: u32,
}

/// A node of the site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNode {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: NodeRole,
    /// Where it listens, `host:port` each.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Its program.
    #[serde(default)]
    pub software: String,
    /// Its share of the shards, beside those of the others.
    pub weight: u32,
    /// Whether it gives away all that it has.
    pub draining: bool,
    /// Whether it has ever started since it joined.
    pub started: bool,
    /// Whether it has a vote on the metadata.
    pub votes: bool,
    /// Whether it lives, as far as the node that answers can tell.
    #[serde(default)]
    pub liveness: Option<Liveness>,
    /// A copy of a shard is damaged there, and not made anew yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub damaged: bool,
}

/// Whether a node lives, as another one sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Liveness {
    /// Whether it was heard of late.
    pub up: bool,
    /// For how many milliseconds it has been so.
    pub since_ms: u64,
    /// Open connections of clients, where that is known.
    #[serde(default)]
    pub clients: Option<u32>,
}

/// A shard of the site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterShard {
    /// Its number.
    pub shard: u16,
    /// Its epoch: grows with each change of primary.
    pub epoch: Epoch,
    /// Who leads it; nobody before the first election.
    #[serde(default)]
    pub primary: Option<NodeId>,
    /// Who must have a record before it is acknowledged, and may lead.
    pub set: Vec<NodeId>,
    /// Who is about to enter the set.
    #[serde(default)]
    pub pending: Vec<NodeId>,
    /// Who should hold it, the preferred primary first.
    #[serde(default)]
    pub replicas: Vec<NodeId>,
    /// Nothing is committed with fewer members.
    pub copies_min: u32,
    /// The last member of the set has lost data: nobody leads until an operator decides.
    #[serde(default)]
    pub stalled: bool,
    /// Replicas that have not all, as far as the node that answers can tell.
    #[serde(default)]
    pub behind: Vec<Lag>,
}

/// The answer to `RecoveryPlan`: the shards that cannot go on by themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPlan {
    /// Name of the site.
    pub site: String,
    /// By number.
    pub shards: Vec<StuckShard>,
}

/// A shard none of whose members can lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StuckShard {
    /// Its number.
    pub shard: u16,
    /// Of what is known of it: to be sent back with `Recover`.
    pub version: u64,
    /// Why it cannot go on, for people.
    pub why: String,
    /// Members of its set, who have all, or had.
    pub members: Vec<NodeId>,
    /// Partitions that it holds.
    pub partitions: u32,
    /// Entries that are known to have been committed; there may have been more.
    #[serde(default)]
    pub floor: Option<Lsn>,
    /// Replicas that are left, the best first.
    pub survivors: Vec<Survivor>,
}

/// What is left of a shard on a node that is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survivor {
    /// Which node.
    pub node: NodeId,
    /// The end of its log; none if it has no usable copy.
    #[serde(default)]
    pub end: Option<Lsn>,
    /// The epoch of its last entry.
    #[serde(default)]
    pub epoch: Epoch,
}

/// A replica that has not all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// Which node.
    pub node: NodeId,
    /// How many entries it lacks, where that is known.
    #[serde(default)]
    pub entries: Option<u64>,
    /// Why, for people.
    pub why: String,
}

/// The answer to `BalancePlan`: shares wanted and held, as the node that answers knows them, and what will move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalancePlan {
    /// Name of the site.
    pub site: String,
    /// The node that answers.
    pub node: NodeId,
    /// All nodes, by number.
    pub nodes: Vec<BalanceNode>,
    /// Clients that will be asked to move; none while all nodes are near enough to their shares.
    #[serde(default)]
    pub clients: Vec<ClientMove>,
    /// Shards whose lead will go to another node, one after the other.
    #[serde(default)]
    pub primaries: Vec<PrimaryMove>,
}

/// What a node has of what it should have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalanceNode {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// The weight that counts: 0 for one that gives its work away, or is no place for it.
    pub weight: u32,
    /// Whether it was heard of late.
    pub up: bool,
    /// Whether it was up for long enough to be given clients.
    pub settled: bool,
    /// How busy it is, in percent, where that is known.
    #[serde(default)]
    pub load: Option<u8>,
    /// Clients that it has, where that is known.
    #[serde(default)]
    pub clients: Option<u64>,
    /// Clients that it should have.
    pub clients_wanted: u64,
    /// Shards that it leads.
    pub primaries: u32,
    /// Shards that it should lead.
    pub primaries_wanted: u32,
}

/// Clients that will go from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientMove {
    /// From where.
    pub from: NodeId,
    /// To where.
    pub to: NodeId,
    /// How many.
    pub clients: u64,
}

/// A shard whose lead will go to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrimaryMove {
    /// Its number.
    pub shard: u16,
    /// Who leads it.
    pub from: NodeId,
    /// Who will.
    pub to: NodeId,
    /// Whether that can be done now: the node is in the commit set and has been up for a while.
    pub due: bool,
}
