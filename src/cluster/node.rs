//! The nodes of a site, those that may come and those that are gone.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{command::BootClaim, reject::MetaReject};
pub use crate::types::NodeRole;
use crate::{
    limits::{NODE_ADDRESS_LEN_MAX, NODE_ADDRESSES_MAX, SOFTWARE_LEN_MAX},
    types::{Incarnation, NodeId, NodeName, Timestamp, Versions},
};

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub name: NodeName,
    /// The identity of its disk.
    pub disk_id: u128,
    /// What it is for.
    pub role: NodeRole,
    /// Its share of the shards, beside those of the others. With 0 it is given none.
    pub weight: u32,
    /// Whether it gives away all that it has.
    pub draining: bool,
    /// Its newest boot; 0 until it has registered for the first time.
    pub incarnation: Incarnation,
    /// What that boot said of itself.
    pub claim: BootClaim,
    /// How others reach it, as it said then.
    pub info: NodeInfo,
    /// The node that takes over what it holds, while it gives that away.
    #[serde(default)]
    pub replaced_by: Option<NodeId>,
    /// When it was asked last to look for damage: the index of that command, 0 if never.
    #[serde(default)]
    pub scrub: u64,
}

impl NodeRecord {
    /// Whether it has ever registered.
    #[must_use]
    pub fn has_booted(&self) -> bool {
        self.incarnation > Incarnation(0)
    }
}

/// How others reach a node, and what they can say to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// `host:port`, the best first.
    pub addresses: Vec<String>,
    /// Name and version of its program.
    pub software: String,
    /// The oldest and the newest protocol that it speaks with other nodes.
    pub protocol: (u16, u16),
}

impl NodeInfo {
    /// The versions that the node speaks.
    #[must_use]
    pub fn speaks(&self) -> Versions {
        Versions { min: self.protocol.0, max: self.protocol.1 }
    }

    pub(super) fn check(&self) -> Result<(), MetaReject> {
        let bad = |text: String| Err(MetaReject::NodeInfo(text));
        if self.addresses.len() > NODE_ADDRESSES_MAX {
            return bad(format!(
                "addresses are {}, most are {NODE_ADDRESSES_MAX}",
                self.addresses.len()
            ));
        }
        if let Some(address) = self.addresses.iter().find(|address| !is_address(address)) {
            return bad(format!("address '{address}' is not host:port"));
        }
        if self.software.len() > SOFTWARE_LEN_MAX {
            return bad(format!("software has a name of more than {SOFTWARE_LEN_MAX} bytes"));
        }
        if self.protocol.0 > self.protocol.1 {
            return bad(format!("protocols are {} to {}", self.protocol.0, self.protocol.1));
        }
        Ok(())
    }
}

fn is_address(address: &str) -> bool {
    let parts = address.rsplit_once(':');
    let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    address.len() <= NODE_ADDRESS_LEN_MAX
        && !address.contains(char::is_whitespace)
        && parts.is_some_and(|(host, p)| !host.is_empty() && port(p))
}

/// Names an invite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InviteId(pub u64);

impl fmt::Display for InviteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A node that may come, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InviteRecord {
    /// The hash of the secret that it must show.
    pub secret_hash: [u8; 32],
    /// What it is for.
    pub role: NodeRole,
    /// When the invite ends.
    pub expires: Timestamp,
    /// Who came with it. It stays until it ends, so that a joiner that heard no answer can ask again.
    #[serde(default)]
    pub used_by: Option<NodeId>,
}

/// A node that has left for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedNode {
    /// Its name, which another node may have by now.
    pub name: NodeName,
    /// Its disk, which never comes back.
    pub disk_id: u128,
}
