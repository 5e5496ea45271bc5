//! What can be asked of the site's state, and what comes of it.

use serde::{Deserialize, Serialize};

use super::{
    node::{InviteId, NodeInfo, NodeRole},
    site::TopicRecord,
};
use crate::{
    replication::{ShardCommand, ShardReport},
    types::{
        Incarnation, NodeId, NodeName, ShardId, SiteName, Timestamp, TopicId, TopicName,
        TopicSettings,
    },
    wire::RetentionChange,
};

/// A change of the site's state. Stored in the metadata log: variants and fields are only ever added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaCommand {
    /// The first command of a site.
    Found {
        /// Its name.
        site: SiteName,
        /// Its number of shards, for ever.
        shards: u16,
    },
    /// A node has started. Its incarnation is the index of this command.
    Register {
        /// Its name.
        name: NodeName,
        /// The identity of its disk: a node whose disk is another one is another node.
        disk_id: u128,
        /// What the boot says of itself.
        claim: BootClaim,
        /// How others reach the node, and what they can say to it.
        #[serde(default)]
        info: NodeInfo,
    },
    /// A shard gets another primary or commit set.
    Shard(ShardCommand),
    /// Make a topic.
    CreateTopic {
        /// Its name.
        name: TopicName,
        /// Its settings, whole.
        settings: TopicSettings,
        /// The proposer's clock.
        now: Timestamp,
    },
    /// Change how long a topic keeps its records.
    SetTopic {
        /// Its name.
        name: TopicName,
        /// What changes.
        change: RetentionChange,
    },
    /// Delete a topic.
    DeleteTopic {
        /// Its name.
        name: TopicName,
    },
    /// The partitions of a deleted topic are gone from all shards.
    ForgetTopic {
        /// Its id.
        id: TopicId,
    },
    /// A node may join. Its number is the index of this command.
    AddNode {
        /// Its name, which no other node has.
        name: NodeName,
        /// The identity of its disk, which no other node has or had.
        disk_id: u128,
        /// What it is for.
        role: NodeRole,
        /// The invite that it came with; none if an operator adds it.
        invite: Option<InviteId>,
        /// The proposer's clock.
        now: Timestamp,
    },
    /// A node leaves for ever.
    RemoveNode {
        /// Which.
        node: NodeId,
    },
    /// Change how much a node is given to do.
    SetNode {
        /// Which.
        node: NodeId,
        /// Its share, beside those of the others.
        weight: Option<u32>,
        /// Whether it gives away all that it has.
        draining: Option<bool>,
    },
    /// One node takes over all that another one holds.
    Replace {
        /// Which gives it away.
        old: NodeId,
        /// Which takes it.
        new: NodeId,
    },
    /// A node is to look for damage.
    Scrub {
        /// Which; none for all.
        node: Option<NodeId>,
    },
    /// Clients and primaries are to move to where they should be without waiting.
    Balance,
    /// A node may come with this secret, once.
    Invite {
        /// Random.
        id: InviteId,
        /// The hash of the secret.
        secret_hash: [u8; 32],
        /// What the node is for.
        role: NodeRole,
        /// When it ends.
        expires: Timestamp,
        /// The proposer's clock.
        now: Timestamp,
    },
}

impl MetaCommand {
    /// Whether the command may be proposed again when the answer to it was lost: whatever came of the first, and whatever
    /// others did in between, the second does no harm.
    #[must_use]
    pub fn is_repeatable(&self) -> bool {
        match self {
            // The founding of the same site, the same boot (by its nonce), the same name and disk are known again.
            Self::Found { .. } | Self::Register { .. } | Self::AddNode { .. } => true,
            // Compared with the version, or with the boot and the epoch, or derived anew from the state: `Place`.
            Self::Shard(_) => true,
            // Ids are never used again. Looking twice finds the same.
            Self::ForgetTopic { .. } | Self::RemoveNode { .. } | Self::Scrub { .. } => true,
            // What is where it should be stays there.
            Self::Balance => true,
            // Somebody may have deleted, set or used it in between: it would come back.
            Self::CreateTopic { .. }
            | Self::SetTopic { .. }
            | Self::DeleteTopic { .. }
            | Self::SetNode { .. }
            | Self::Replace { .. }
            | Self::Invite { .. } => false,
        }
    }
}

/// What a boot says of itself and of its disk. Each boot writes its number and nonce to the disk before it registers: a
/// disk that does not know the boot that the site knows was put back from a copy, and has lost what came after.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootClaim {
    /// Grows with each boot.
    pub boot: u64,
    /// Drawn anew at each boot: tells two boots of one number apart.
    pub nonce: u64,
    /// The nonces of the boots of this disk since the last one that is known to have registered, that one too. A number
    /// alone would not do: an old copy that starts a few times without registering counts up as well.
    pub before: Vec<u64>,
    /// The disk has failed, or was put back: what it holds is not to be relied on.
    pub suspect: bool,
    /// What it holds of each shard.
    pub shards: Vec<(ShardId, ShardReport)>,
}

impl BootClaim {
    pub(super) fn is_same_boot(&self, other: &Self) -> bool {
        (self.boot, self.nonce) == (other.boot, other.nonce)
    }

    /// Whether this boot's disk is one that the `last` registered boot has written to.
    pub(super) fn follows(&self, last: &Self) -> bool {
        self.boot > last.boot && (self.suspect || self.before.contains(&last.nonce))
    }

    pub(super) fn report(&self, shard: ShardId) -> Option<&ShardReport> {
        self.shards.iter().find(|(id, _)| *id == shard).map(|(_, report)| report)
    }
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaOutcome {
    /// It is done.
    Done,
    /// The node's number and boot.
    Registered(NodeId, Incarnation),
    /// The topic as it is now.
    Topic(TopicRecord),
    /// The number that the node has, or has had before.
    NodeAdded(NodeId),
}
