//! Control messages: CBOR maps. Fields that a reader does not know are skipped, fields that are missing have a default.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    cluster::{BalancePlan, ClusterStatus, Invited, RecoveryPlan},
    fault::Fault,
};
use crate::types::{
    Acks, NodeId, NodeRole, Offset, Position, ProducerId, Retention, Timestamp, TopicId, TopicName,
    TopicSettings, Versions,
};

/// Newest version of the protocol.
pub const PROTOCOL_VERSION: u16 = Versions::SPOKEN.max;
/// Oldest version that is still served.
pub const PROTOCOL_VERSION_MIN: u16 = Versions::SPOKEN.min;

/// First message of a client, on the first bidirectional stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest version that it speaks.
    pub version_min: u16,
    /// Newest version that it speaks.
    pub version_max: u16,
    /// Name and version of the program, for the log.
    #[serde(default)]
    pub software: String,
    /// Features that it knows.
    #[serde(default)]
    pub features: Vec<String>,
    /// It comes because another node has asked it to: it is not asked again for a while.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moved: bool,
}

/// The node's answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both speak from here on.
    pub version: u16,
    /// Name and version of the program.
    pub software: String,
    /// Name of the site.
    pub site: String,
    /// Name of the node.
    pub node: String,
    /// Number of the node in its site.
    pub node_id: NodeId,
    /// The identity that the node read from the client's certificate; none for an anonymous client.
    #[serde(default)]
    pub you: Option<String>,
    /// Features that it knows.
    #[serde(default)]
    pub features: Vec<String>,
    /// What the client must keep to.
    pub limits: WireLimits,
    /// All nodes of the site.
    #[serde(default)]
    pub nodes: Vec<NodeInfo>,
}

/// Limits that a node tells its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireLimits {
    /// Largest batch, in bytes.
    pub batch_len_max: u32,
    /// Largest control frame, in bytes.
    pub control_len_max: u32,
    /// Streams that may be open at once.
    pub streams_max: u32,
}

/// A node as its site knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where it listens, `host:port` each.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// A node asks a client to leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoAway {
    /// Why, for people.
    pub reason: String,
    /// Milliseconds until the node closes the connection; 0 where the client may stay.
    pub within_ms: u32,
    /// Where to go, the best first.
    #[serde(default)]
    pub nodes: Vec<NodeInfo>,
    /// What becomes of who does not leave.
    #[serde(default, skip_serializing_if = "Leave::is_now")]
    pub leave: Leave,
}

/// How much a node insists that a client leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Leave {
    /// Its streams end now.
    #[default]
    Now,
    /// It is served until the time is over.
    Soon,
    /// It is served for as long as it stays.
    Please,
}

impl Leave {
    fn is_now(&self) -> bool {
        *self == Self::Now
    }
}

/// One question on a stream of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Make a topic. One of the same name and settings is success.
    CreateTopic {
        /// Its name.
        name: TopicName,
        /// What is asked for; what is left out comes from the site's defaults.
        settings: TopicRequest,
    },
    /// Topics in order of their names.
    ListTopics {
        /// Only those behind this name.
        #[serde(default)]
        after: Option<TopicName>,
        /// At most this many.
        limit: u32,
    },
    /// One topic with its partitions.
    ShowTopic {
        /// Its name.
        name: TopicName,
    },
    /// Change settings of a topic.
    SetTopic {
        /// Its name.
        name: TopicName,
        /// What changes.
        change: RetentionChange,
    },
    /// Delete a topic with all that is in it.
    DeleteTopic {
        /// Its name.
        name: TopicName,
    },
    /// Find an offset.
    FindOffset {
        /// The topic.
        topic: TopicName,
        /// Its partition.
        partition: u32,
        /// What to look for.
        position: Position,
    },
    /// What the node knows of itself.
    NodeStatus,
    /// Make an invite, with which one machine may become a node.
    Invite {
        /// What the node will be for.
        #[serde(default)]
        role: NodeRole,
        /// Milliseconds until it ends, else the default.
        #[serde(default)]
        lifetime_ms: Option<u64>,
        /// Where the joiner shall look for the site, else where the node says that it is; `host:port` each.
        #[serde(default)]
        addresses: Vec<String>,
    },
    /// The site's nodes and shards.
    ClusterStatus,
    /// Change how much a node is given to do.
    SetNode {
        /// Its number.
        node: NodeId,
        /// Its share of the shards, beside those of the others.
        #[serde(default)]
        weight: Option<u32>,
        /// Whether it gives away all that it has.
        #[serde(default)]
        draining: Option<bool>,
    },
    /// Let one node take over all that another one holds.
    ReplaceNode {
        /// Which gives it away.
        old: NodeId,
        /// Which takes it.
        new: NodeId,
    },
    /// Which shards cannot go on by themselves, and what is left of them.
    RecoveryPlan,
    /// Let a shard go on with what one node has of it. What others had more is lost.
    Recover {
        /// Which shard.
        shard: u16,
        /// Its version in the plan: nothing is done if it has changed since.
        version: u64,
        /// Which node, one of those in the plan.
        node: NodeId,
    },
    /// Look through what a node holds for damage, now.
    Scrub {
        /// Its number; none for all nodes.
        #[serde(default)]
        node: Option<NodeId>,
    },
    /// Take a node that holds nothing out of the site, for ever.
    RemoveNode {
        /// Its number.
        node: NodeId,
    },
    /// Who should have how many clients and lead how many shards, and what will move.
    BalancePlan,
    /// Move what should move now, without waiting.
    Balance,
}

/// What is asked of a new topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TopicRequest {
    /// Number of partitions, else the site's default.
    pub partitions: Option<u32>,
    /// What differs from the site's default retention.
    pub retention: RetentionChange,
}

/// What changes of a retention; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetentionChange {
    /// Milliseconds.
    pub age_ms: Change<u64>,
    /// Bytes of a partition.
    pub bytes: Change<u64>,
    /// Records of a partition.
    pub records: Change<u64>,
}

/// What becomes of one setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change<T> {
    /// It stays.
    #[default]
    Keep,
    /// No limit any more.
    Clear,
    /// This value.
    Set(T),
}

impl<T: Copy> Change<T> {
    /// The setting after the change.
    #[must_use]
    pub fn apply(self, old: Option<T>) -> Option<T> {
        match self {
            Self::Keep => old,
            Self::Clear => None,
            Self::Set(value) => Some(value),
        }
    }
}

impl RetentionChange {
    /// The retention after the change.
    #[must_use]
    pub fn apply(&self, old: &Retention) -> Retention {
        Retention {
            age_ms: self.age_ms.apply(old.age_ms),
            bytes: self.bytes.apply(old.bytes),
            records: self.records.apply(old.records),
        }
    }
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done, nothing to say.
    Done,
    /// To `CreateTopic`, `SetTopic`, `ShowTopic`.
    Topic(TopicStatus),
    /// To `ListTopics`.
    Topics {
        /// A page of them, without partitions.
        topics: Vec<TopicStatus>,
        /// Whether there are more.
        more: bool,
    },
    /// To `FindOffset`.
    Offset(Offset),
    /// To `NodeStatus`.
    Node(NodeStatus),
    /// It did not work.
    Fault(Fault),
    /// To `Invite`.
    Invited(Invited),
    /// To `ClusterStatus`.
    Cluster(ClusterStatus),
    /// To `RecoveryPlan`.
    RecoveryPlan(RecoveryPlan),
    /// To `BalancePlan`.
    BalancePlan(BalancePlan),
}

/// A topic as a node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicStatus {
    /// Its name.
    pub name: TopicName,
    /// Its id.
    pub id: TopicId,
    /// Its settings.
    pub settings: TopicSettings,
    /// When it was made.
    pub created: Timestamp,
    /// Its partitions; left out in lists.
    #[serde(default)]
    pub partitions: Vec<PartitionStatus>,
}

/// A partition as a node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionStatus {
    /// Which.
    pub partition: u32,
    /// Oldest offset that is kept.
    pub start: Offset,
    /// Offset behind the newest record that can be read.
    pub end: Offset,
    /// Stored bytes.
    pub bytes: u64,
}

/// What a node knows of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: NodeId,
    /// Its program.
    pub software: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Open connections.
    pub connections: u32,
    /// Topics of the site.
    pub topics: u32,
    /// Free bytes of its disk.
    pub disk_free: u64,
    /// Whether publishes are refused because the disk is low.
    pub disk_low: bool,
}

/// First message of a publish stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishOpen {
    /// Where the batches go.
    pub topic: TopicName,
    /// What acks wait for.
    #[serde(default)]
    pub acks: Acks,
    /// Acks only with at least this many copies.
    #[serde(default)]
    pub require_copies: Option<u32>,
    /// Who writes, for the log; each batch carries the id again.
    #[serde(default)]
    pub producer: ProducerId,
    /// Batches for a partition that another node leads are refused with `NotPrimary`, not passed on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct: bool,
}

/// The node's answer to [`PublishOpen`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishOk {
    /// The topic's id.
    pub topic_id: TopicId,
    /// How many partitions it has.
    pub partitions: u32,
    /// Batches that may wait for their ack.
    pub window_batches: u32,
    /// Bytes that may wait for their ack.
    pub window_bytes: u32,
}

/// A batch was not stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nack {
    /// Number of the batch on its stream, from 0.
    pub index: u64,
    /// Why.
    pub fault: Fault,
}

/// First message of a subscribe stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscribeOpen {
    /// What to read.
    pub topic: TopicName,
    /// Which partitions; none for all.
    #[serde(default)]
    pub partitions: Option<Vec<u32>>,
    /// Where to start in each.
    #[serde(default)]
    pub from: Position,
    /// Where to start in single partitions instead: (partition, offset).
    #[serde(default)]
    pub resume: Vec<(u32, Offset)>,
    /// Refuse what this node holds no whole copy of, rather than read it from another node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct: bool,
}

/// The node's answer to [`SubscribeOpen`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscribeOk {
    /// The topic's id: a reader that resumes compares it.
    pub topic_id: TopicId,
    /// Where the reader starts and what there is now.
    pub partitions: Vec<ReadStart>,
}

/// Where a reader starts in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadStart {
    /// Which partition.
    pub partition: u32,
    /// First offset that will be delivered.
    pub from: Offset,
    /// Offset behind the newest record that can be read.
    pub end: Offset,
}

/// The reader has been sent all that there was when it had read the last of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaughtUp {
    /// (partition, next offset) of each.
    pub positions: Vec<(u32, Offset)>,
}

/// A batch on its way to the node. Layout: `u32 partition | batch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Which partition of the stream's topic.
    pub partition: u32,
    /// The batch, not checked yet.
    pub batch: Bytes,
}

/// A batch is stored. Layout: `u64 index | u32 partition | u64 base offset | u8 level | u8 copies`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Number of the batch on its stream, from 0.
    pub index: u64,
    /// Which partition.
    pub partition: u32,
    /// Offset of its first record. For a batch that was sent again it is the first one's.
    pub base_offset: Offset,
    /// What was reached.
    pub level: Acks,
    /// On how many nodes it is.
    pub copies: u8,
}

/// Stored batches on their way to a reader. Layout: `u32 partition | batch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deliver {
    /// Which partition of the stream's topic.
    pub partition: u32,
    /// The batch as it is stored; the reader checks it.
    pub batch: Bytes,
}
