//! Who talks to whom over QUIC: sockets, TLS, certificates and the names in them.
//!
//! Invariant: every name that access rules speak of comes from [`identity`], which reads it from a
//! certificate that TLS has verified against the site's authority. Nothing else proves a name.

pub mod advertise;
pub mod authority;
pub mod endpoint;
pub mod frames;
pub mod group;
pub mod handshakes;
pub mod identity;
pub mod invite;
pub mod joiner;
pub mod secret_file;
mod socket;
pub mod tls;

pub use authority::SiteAuthority;
pub use endpoint::ConnectionLimits;
pub use group::Group;
pub use handshakes::Handshakes;
pub use identity::{Identity, Who};
pub use invite::Invite;
pub use tls::{Credentials, ReloadableTls};

pub use crate::types::Address;
