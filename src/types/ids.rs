//! Identifiers: plain numbers with a type each, so that one cannot be passed for another.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

number! {
    /// Names the reign of one primary over one shard: grows by one at each change of primary.
    Epoch(u64)
}
number! {
    /// Names one boot of one node: the metadata index at which it registered.
    Incarnation(u64)
}
number! {
    /// Position of an entry in a shard's log, from 0, without gaps.
    Lsn(u64)
}
number! {
    /// Names a node for ever: given by the metadata log, never used again.
    NodeId(u64)
}
number! {
    /// Position of a record in a partition, from 0, without gaps.
    Offset(u64)
}
number! {
    /// Number of a batch of one producer in one partition, from 0, without gaps.
    Sequence(u64)
}
number! {
    /// Names a shard: the unit of replication, one totally ordered log of many partitions.
    ShardId(u16)
}
number! {
    /// Names a topic for ever: a topic that is deleted and made again has another id.
    TopicId(u64)
}

/// One boot of one node. A node that restarts is another one to its peers: what its former self said holds no more.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Boot {
    /// The node.
    pub node: NodeId,
    /// Which boot.
    pub incarnation: Incarnation,
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.incarnation)
    }
}

impl Lsn {
    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Offset {
    /// The offset `count` records further on, or none past the end of the number line.
    #[must_use]
    pub fn checked_add(self, count: u64) -> Option<Self> {
        self.0.checked_add(count).map(Self)
    }
}

/// A random 128-bit number that a producer chooses for itself; 0 is "no producer", which is not deduplicated.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProducerId(pub u128);

impl ProducerId {
    /// Marks batches that nobody deduplicates.
    pub const NONE: Self = Self(0);

    /// Tells whether batches under this id are deduplicated.
    #[must_use]
    pub fn is_some(self) -> bool {
        self != Self::NONE
    }
}

impl fmt::Display for ProducerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ProducerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One partition of one topic.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct PartitionId {
    /// The topic.
    pub topic: TopicId,
    /// Which of the topic's partitions, from 0.
    pub index: u32,
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.index)
    }
}
