//! Why a node's records are not in a zone: who is at fault, and what to do.

use std::{fmt, net::SocketAddr};

/// What keeps a node's records out of a zone, or in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The key cannot be read.
    KeyFile(String),
    /// Nobody says who takes updates.
    NoServer {
        /// The domain of the site.
        domain: String,
        /// Why.
        why: String,
    },
    /// The name server does not answer.
    Silent {
        /// Which.
        server: SocketAddr,
        /// What happened instead.
        why: String,
    },
    /// All together took too long.
    Slow {
        /// The domain of the site.
        domain: String,
        /// How many seconds there were.
        limit_s: u64,
    },
    /// The name server does not hold the zone.
    NotPrimary {
        /// Which.
        server: SocketAddr,
        /// The domain of the site.
        domain: String,
    },
    /// The name server has no key of this name and algorithm.
    UnknownKey {
        /// Which.
        server: SocketAddr,
        /// The key.
        key: String,
    },
    /// The name server has another secret under this name.
    BadSecret {
        /// Which.
        server: SocketAddr,
        /// The key.
        key: String,
    },
    /// The clocks differ by more than signatures allow.
    BadTime {
        /// Which.
        server: SocketAddr,
        /// By how many seconds the server's is ahead, if it said so.
        ahead_s: Option<i64>,
    },
    /// The key may not change these names.
    Refused {
        /// Which.
        server: SocketAddr,
        /// The key.
        key: String,
        /// The zone.
        zone: String,
    },
    /// Whoever answered does not have the key.
    Unsigned {
        /// Who should have answered.
        server: SocketAddr,
        /// The key.
        key: String,
    },
    /// The name of this node is another's in this zone.
    Taken {
        /// The name.
        instance: String,
        /// Whose it is, as far as that can be read.
        by: String,
    },
    /// Somebody else has changed the records since they were read.
    Overtaken,
    /// The name server answers with something else.
    Odd {
        /// Which.
        server: SocketAddr,
        /// What.
        what: String,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyFile(why) => f.write_str(why),
            Self::NoServer { domain, why } => {
                write!(f, "nobody says which name server takes updates of {domain}: {why}")
            }
            Self::Silent { server, why } => {
                write!(f, "the name server {server} does not answer: {why}")
            }
            Self::Slow { domain, limit_s } => {
                write!(f, "the name servers of {domain} took longer than {limit_s} s")
            }
            Self::NotPrimary { server, domain } => {
                write!(f, "the name server {server} does not keep the zone of {domain}")
            }
            Self::UnknownKey { server, key } => {
                write!(f, "the name server {server} does not know the key '{key}' (BADKEY)")
            }
            Self::BadSecret { server, key } => {
                write!(
                    f,
                    "the name server {server} has another secret for the key '{key}' (BADSIG)"
                )
            }
            Self::BadTime { server, ahead_s: None } => {
                write!(
                    f,
                    "the clocks of the name server {server} and of this machine differ (BADTIME)"
                )
            }
            Self::BadTime { server, ahead_s: Some(s) } => {
                let (by, how) = (s.unsigned_abs(), if *s < 0 { "behind" } else { "ahead of" });
                write!(
                    f,
                    "the clock of the name server {server} is {by} s {how} this machine's (BADTIME)"
                )
            }
            Self::Refused { server, key, zone } => write!(
                f,
                "the name server {server} does not let the key '{key}' change these names of the zone {zone}"
            ),
            Self::Unsigned { server, key } => {
                write!(f, "the answer in the name of {server} is not signed with the key '{key}'")
            }
            Self::Taken { instance, by } => write!(f, "the name {instance} is that of {by}"),
            Self::Overtaken => f.write_str("somebody else has changed the records meanwhile"),
            Self::Odd { server, what } => write!(f, "the name server {server} says {what}"),
        }
    }
}

impl Trouble {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::KeyFile(_) => {
                "put the key into the file that discovery.tsig_key_file names: mode 0600, the node's user its owner"
            }
            Self::NoServer { .. } => {
                "name the zone's primary server in discovery.domain_server, or mend the DNS of this machine"
            }
            Self::Slow { .. } => "is the line to them slow, or does it lose packets?",
            Self::Silent { .. } => "does it run, and does TCP port 53 pass the firewall?",
            Self::NotPrimary { .. } => "name the zone's primary server in discovery.domain_server",
            Self::UnknownKey { .. } => {
                "give the server the key of discovery.tsig_key_file: same name, same algorithm"
            }
            Self::BadSecret { .. } => "one of the two has a wrong copy: give both the same key",
            Self::BadTime { .. } => "set both clocks, by NTP",
            Self::Refused { .. } => {
                "let the key update the zone there: update-policy or allow-update of BIND, an acl of Knot DNS"
            }
            Self::Unsigned { .. } => "who is between? The answer counts for nothing",
            Self::Taken { .. } => {
                "give one of the two nodes another name, or another domain; records that nobody needs any more \
                 are taken out with nsupdate or knsupdate"
            }
            Self::Overtaken => "nothing: it is tried again",
            Self::Odd { .. } => "its log may say why",
        }
    }

    /// Whether the operator has read of this already when the other was told.
    #[must_use]
    pub fn is_like(&self, told: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(told)
    }
}
