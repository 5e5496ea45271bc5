//! How a machine without a certificate becomes a node: one question with an invite's secret, one answer.

use serde::{Deserialize, Serialize};

use super::{control::NodeInfo, fault::Fault, octets::Octets};
use crate::types::{InviteSecret, NodeId, NodeName, NodeRole, SiteName};

/// What a joiner asks, on the one stream of a connection under the join ALPN. It may ask again when the answer is lost:
/// the same name and disk get the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Oldest version of the protocol that it speaks.
    pub version_min: u16,
    /// Newest version that it speaks.
    pub version_max: u16,
    /// Number of the invite.
    pub invite: u64,
    /// Its secret.
    pub secret: InviteSecret,
    /// Name that the node shall have.
    pub name: NodeName,
    /// Random number of its disk.
    pub disk_id: u128,
    /// Signing request (PKCS #10, DER) for its key, which stays where it is. Only the key is taken from it.
    pub csr: Octets,
    /// Where it will listen, `host:port` each.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Name and version of the program, for the log.
    #[serde(default)]
    pub software: String,
}

/// The node's answer to a [`JoinRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    /// It is a node of the site now.
    Welcome(JoinWelcome),
    /// It is not.
    Fault(Fault),
}

/// All that a machine needs to be a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinWelcome {
    /// Its number, for ever.
    pub node: NodeId,
    /// Name of the site.
    pub site: SiteName,
    /// What it is for.
    pub role: NodeRole,
    /// Its certificate (PEM).
    pub certificate_pem: String,
    /// The certificate of the site's authority (PEM).
    pub ca_pem: String,
    /// How many shards the site has, for ever.
    pub shards: u16,
    /// The other nodes.
    #[serde(default)]
    pub nodes: Vec<NodeInfo>,
}
