//! What an operator decides about a topic.

use serde::{Deserialize, Serialize};

/// How long records are kept. Each limit that is set holds; records go when any of them says so.
///
/// Limits are per partition, and work in whole batches: a batch goes when all of it may go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Retention {
    /// Milliseconds since the site took the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// Stored bytes of a partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Records of a partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub records: Option<u64>,
}

/// The settings of one topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicSettings {
    /// How many partitions; fixed when the topic is made, because keys would move.
    pub partitions: u32,
    /// How long records are kept.
    #[serde(default)]
    pub retention: Retention,
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self { partitions: 1, retention: Retention::default() }
    }
}
