//! Links between the nodes of a site: messages of replicas, calls, heartbeats.
//!
//! Each direction owns its connections: a node dials every other twice, for control and for data, and sends only on what
//! it has dialled ([`Links`]); what others have dialled it only reads and answers ([`serve()`]). A cut in one direction
//! then looks like what it is, and no tie between two dials has to be resolved.
//!
//! Invariant: nothing is believed of a peer that its certificate does not say. Whether what it says still counts (epochs,
//! boots) is for `replication`: messages may be lost here, and are, whenever a bound is reached.

mod dial;
mod frame;
pub mod heartbeat;
mod hello;
mod link;
mod links;
pub mod message;
mod serve;

#[cfg(test)]
mod tests;

pub use dial::{BadDialConfig, DialConfig, PeerAddress};
pub use heartbeat::{BadHeartbeat, Heartbeat};
pub use hello::{LinkKind, PeerHello, PeerWelcome};
pub use link::{CallError, LinkStatus, LogSource, Outgoing};
pub use links::Links;
pub use message::BadMessage;
pub use serve::{PeerDoor, PeerSink, serve};

use crate::types::{NodeId, NodeName, SiteName, Versions};

/// Who this node is to its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Me {
    /// Its site.
    pub site: SiteName,
    /// Its number in the site.
    pub node: NodeId,
    /// Its name, as in its certificate.
    pub name: NodeName,
    /// The versions of the protocol between nodes that it speaks.
    pub speaks: Versions,
    /// Shards of the site: as many data streams a peer may open.
    pub shards: u16,
}
