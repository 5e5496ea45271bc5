//! How two nodes begin: who dials says who it is and what the connection is for, the other says who it is.

use serde::{Deserialize, Serialize};

use crate::types::{Incarnation, NodeId, NodeName, SiteName, Versions};

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// Calls and heartbeats.
    Control,
    /// Messages of replicas, a stream a shard.
    Data,
}

/// First message of the node that dials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHello {
    /// Oldest version that it speaks.
    pub version_min: u16,
    /// Newest version that it speaks.
    pub version_max: u16,
    /// Its site.
    pub site: SiteName,
    /// Its number in the site.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Which boot of it; 0 while that is not registered.
    #[serde(default)]
    pub incarnation: Incarnation,
    /// What the connection is for.
    pub kind: LinkKind,
    /// Name and version of the program, for the log.
    #[serde(default)]
    pub software: String,
    /// Features that it knows.
    #[serde(default)]
    pub features: Vec<String>,
}

/// The answer to [`PeerHello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerWelcome {
    /// The version that both speak from here on.
    pub version: u16,
    /// Its site.
    pub site: SiteName,
    /// Its number in the site.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Name and version of the program, for the log.
    #[serde(default)]
    pub software: String,
    /// Features that it knows.
    #[serde(default)]
    pub features: Vec<String>,
}

impl PeerHello {
    /// The versions that it speaks.
    #[must_use]
    pub fn speaks(&self) -> Versions {
        Versions { min: self.version_min, max: self.version_max }
    }
}
