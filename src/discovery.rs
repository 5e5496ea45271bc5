//! Hints of where nodes are: what they announce by DNS-SD, and the table of all that was heard.
//!
//! Invariant: nothing that is heard here is believed. It says where to dial; who answers there is what the certificate says.

pub mod announcement;
pub mod candidates;
pub mod dns;
pub mod gather;
pub mod mdns;
pub mod registration;
pub mod trouble;
pub mod tsig_key;
pub mod zone;

pub use announcement::{Announcement, BadAnnouncement, CaPrefix};
pub use candidates::{Candidate, Candidates, NodeKey, Sighting, Source};
pub use dns::{Dns, DnsError};
pub use gather::{GatherError, Until, gather};
pub use mdns::{Mdns, MdnsError, MdnsEvent, Reach};
pub use trouble::Trouble;
pub use tsig_key::{BadTsigKey, TsigKey};

/// The service type of a node, without a domain.
pub const SERVICE_TYPE: &str = "_dunlin._udp";
