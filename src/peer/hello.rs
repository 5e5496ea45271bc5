//! How two nodes begin: who dials says who it is and what the connection is for, the other says who it is.

use serde::{Deserialize, Serialize};

use crate::types::{Incarnation, NodeId, NodeName, SiteName};

/// Newest version of the protocol between nodes.
pub const PEER_VERSION: u16 = 1;
/// Oldest version that is still spoken.
pub const PEER_VERSION_MIN: u16 = 1;

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
    /// The newest version that both speak.
    #[must_use]
    pub fn common_version(&self) -> Option<u16> {
        let version = self.version_max.min(PEER_VERSION);
        (version >= self.version_min.max(PEER_VERSION_MIN)).then_some(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_spoken() {
        let version = |version_min, version_max| {
            PeerHello {
                version_min,
                version_max,
                site: "plant".parse().expect("name"),
                node: NodeId(1),
                name: "n-1".parse().expect("name"),
                incarnation: Incarnation(0),
                kind: LinkKind::Control,
                software: String::new(),
                features: vec![],
            }
            .common_version()
        };
        assert_eq!(version(1, 1), Some(1));
        assert_eq!(version(0, 9), Some(1));
        assert_eq!(version(2, 9), None);
        assert_eq!(version(0, 0), None);
        assert_eq!(version(1, 0), None, "upside down");
    }
}
