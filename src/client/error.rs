//! What can go wrong, by operation. Each error names who is at fault and, where that is known, what to do.

use std::{io, sync::Arc, time::Duration};

use crate::{
    net::{Address, endpoint::EndpointError, frames::FrameError, tls::TlsError},
    types::{Offset, SiteName, TopicName},
    wire::{BadBatch, BadFrame, BadRecord, Code, Culprit, Fault, Retry},
};

/// Why there is no connection to a node.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The node took the connection and closed it again.
    #[error("{address} closed the connection: {why}")]
    Closed {
        /// Which node.
        address: Address,
        /// What it said.
        why: String,
    },
    /// No socket could be had.
    #[error(transparent)]
    Endpoint(Arc<EndpointError>),
    /// The node answered the greeting with an error.
    #[error("{address}: {fault}")]
    Fault {
        /// Which node.
        address: Address,
        /// What it said.
        fault: Box<Fault>,
    },
    /// The node does not accept the certificate of the profile.
    #[error("{address} refuses the certificate of this profile: {why}")]
    CertificateRefused {
        /// Which node.
        address: Address,
        /// What it said.
        why: String,
    },
    /// Neither the profile nor the caller says where to go.
    #[error("no node address is given")]
    NoAddress,
    /// Nobody announces the site, and no address is given or answers.
    #[error("no node of site '{site}' was found on this network within {} s", waited.as_secs_f32())]
    NotFound {
        /// The site of the profile.
        site: SiteName,
        /// How long it was looked for.
        waited: Duration,
    },
    /// The answer is no greeting of this protocol.
    #[error("{address} does not speak this protocol: {why}")]
    Protocol {
        /// Which node.
        address: Address,
        /// What it did.
        why: String,
    },
    /// The other side is not a node of the profile's site.
    #[error("{address} is no node of this profile's site: {why}")]
    NotThisSite {
        /// Which node.
        address: Address,
        /// What is wrong with its certificate.
        why: String,
    },
    /// The host has no address.
    #[error("cannot find host {host}: {source}", host = address.host())]
    Resolve {
        /// The address as it was given.
        address: Address,
        /// What the resolver said.
        source: Arc<io::Error>,
    },
    /// The certificate or key of the profile cannot be used.
    #[error(transparent)]
    Tls(Arc<TlsError>),
    /// Nobody answered.
    #[error("no answer from {addresses} within {} s", waited.as_secs_f32())]
    Unreachable {
        /// All that were tried.
        addresses: String,
        /// How long.
        waited: Duration,
    },
    /// No version of the protocol that both sides know.
    #[error("{address} speaks no version of the protocol that this program knows")]
    Version {
        /// Which node.
        address: Address,
    },
}

impl ConnectError {
    /// Who has to change something.
    #[must_use]
    pub fn culprit(&self) -> Culprit {
        match self {
            Self::CertificateRefused { .. }
            | Self::Endpoint(_)
            | Self::NoAddress
            | Self::NotThisSite { .. }
            | Self::Resolve { .. }
            | Self::Tls(_)
            | Self::Version { .. } => Culprit::Client,
            Self::Fault { fault, .. } => fault.culprit,
            Self::Closed { .. }
            | Self::NotFound { .. }
            | Self::Protocol { .. }
            | Self::Unreachable { .. } => Culprit::Node,
        }
    }

    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::CertificateRefused { .. } => {
                "have a new profile made on a node of the site: dunlin cert issue NAME"
            }
            Self::Fault { fault, .. } => return fault.hint.clone(),
            Self::NoAddress => "name a node by --server HOST:PORT or in the profile",
            Self::NotFound { .. } => {
                "see what can be heard: dunlin discover; where multicast does not pass, name a node by --server \
                 HOST:PORT or in the profile"
            }
            Self::NotThisSite { why, .. } if why.contains("xpired") => {
                "renew the node's certificate; if it is new, compare the clocks"
            }
            Self::NotThisSite { .. } => "use a profile of the site that this node belongs to",
            Self::Protocol { .. } => "check host and port",
            Self::Resolve { .. } => "check the spelling, or give an IP address",
            Self::Unreachable { .. } => {
                "check that the node runs, and that its UDP port is open in every firewall between"
            }
            Self::Version { .. } => "install the same release on both sides",
            Self::Closed { .. } | Self::Endpoint(_) | Self::Tls(_) => return None,
        };
        Some(hint.into())
    }

    /// Whether to try again is of no use without a change of this side.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        match self {
            Self::CertificateRefused { .. }
            | Self::Endpoint(_)
            | Self::NoAddress
            | Self::NotThisSite { .. }
            | Self::Protocol { .. }
            | Self::Tls(_)
            | Self::Version { .. } => true,
            Self::Fault { fault, .. } => fault.retry == Retry::Never,
            Self::Closed { .. }
            | Self::NotFound { .. }
            | Self::Resolve { .. }
            | Self::Unreachable { .. } => false,
        }
    }
}

/// Why a request has no answer, or a bad one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The node said no.
    #[error(transparent)]
    Fault(Box<Fault>),
    /// The connection went away before the answer came: whether it was done is not known.
    #[error("connection lost before the answer: {0}")]
    Lost(String),
    /// The node broke the protocol.
    #[error("the node broke the protocol: {0}")]
    Protocol(String),
    /// No answer in time: whether it was done is not known.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
}

impl RequestError {
    /// Who has to change something.
    #[must_use]
    pub fn culprit(&self) -> Culprit {
        match self {
            Self::Connect(error) => error.culprit(),
            Self::Fault(fault) => fault.culprit,
            Self::Lost(_) | Self::Protocol(_) | Self::Timeout(_) => Culprit::Node,
        }
    }

    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Connect(error) => error.hint(),
            Self::Fault(fault) => fault_hint(fault),
            Self::Lost(_) | Self::Protocol(_) | Self::Timeout(_) => None,
        }
    }
}

/// Why a record was not published, or may not have been.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PublishError {
    /// The publisher is closed. The record is not stored.
    #[error("the publisher is closed")]
    Closed,
    /// No connection, and none to be had without a change. The record is not stored.
    #[error(transparent)]
    Connect(ConnectError),
    /// Not stored before the deadline, and it never will be.
    #[error("not published within {} s: {cause}", after.as_secs_f32())]
    Expired {
        /// The deadline.
        after: Duration,
        /// What stood in the way last.
        cause: Obstacle,
    },
    /// The node refused the record. It is not stored.
    #[error(transparent)]
    Fault(Box<Fault>),
    /// The record breaks a limit. It is not stored.
    #[error(transparent)]
    Record(#[from] BadRecord),
    /// The record was sent and no answer came: it may be stored or not.
    #[error("whether the record is stored is not known: {cause}")]
    Unknown {
        /// What stood in the way last.
        cause: Obstacle,
    },
}

impl PublishError {
    /// Who has to change something.
    #[must_use]
    pub fn culprit(&self) -> Culprit {
        match self {
            Self::Closed | Self::Record(_) => Culprit::Client,
            Self::Connect(error) => error.culprit(),
            Self::Fault(fault) => fault.culprit,
            Self::Expired { cause, .. } | Self::Unknown { cause } => cause.culprit(),
        }
    }

    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Closed | Self::Record(_) => None,
            Self::Connect(error) => error.hint(),
            Self::Fault(fault) => fault_hint(fault),
            Self::Expired { cause, .. } | Self::Unknown { cause } => cause.hint(),
        }
    }
}

/// What stood between a record and its ack.
#[derive(Clone, Debug, Default, thiserror::Error)]
pub enum Obstacle {
    /// There was no connection.
    #[error(transparent)]
    Connect(ConnectError),
    /// The publisher was dropped instead of closed.
    #[error("the publisher was dropped before the answer came")]
    Dropped,
    /// The node said that it cannot now.
    #[error(transparent)]
    Fault(Box<Fault>),
    /// The connection went away.
    #[error("connection lost: {0}")]
    Lost(String),
    /// Nothing but time.
    #[default]
    #[error("no answer")]
    Silence,
}

impl Obstacle {
    fn culprit(&self) -> Culprit {
        match self {
            Self::Connect(error) => error.culprit(),
            Self::Fault(fault) => fault.culprit,
            Self::Dropped => Culprit::Client,
            Self::Lost(_) | Self::Silence => Culprit::Node,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Connect(error) => error.hint(),
            Self::Fault(fault) => fault_hint(fault),
            Self::Dropped => Some("close the publisher to wait for its acks".into()),
            Self::Lost(_) | Self::Silence => None,
        }
    }
}

/// Why a subscription ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SubscribeError {
    /// Stored bytes are damaged, and were so again when they were asked for once more.
    #[error("batch of partition {partition} at or behind offset {offset} is damaged: {source}")]
    BadBatch {
        /// Which partition.
        partition: u32,
        /// The offset that was to come next.
        offset: Offset,
        /// What is wrong with it.
        source: BadBatch,
    },
    /// No connection, and none to be had without a change.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The node said no.
    #[error(transparent)]
    Fault(Box<Fault>),
    /// Offsets are missing: the node broke its promise.
    #[error("partition {partition} jumps from offset {expected} to {found}")]
    Gap {
        /// Which partition.
        partition: u32,
        /// The offset that was to come next.
        expected: Offset,
        /// The offset that came.
        found: Offset,
    },
    /// The node broke the protocol.
    #[error("the node broke the protocol: {0}")]
    Protocol(String),
    /// The topic was deleted and made again: its offsets mean other records.
    #[error("topic '{topic}' was deleted and made again while it was read")]
    TopicReplaced {
        /// Its name.
        topic: TopicName,
    },
}

impl SubscribeError {
    /// Who has to change something.
    #[must_use]
    pub fn culprit(&self) -> Culprit {
        match self {
            Self::Connect(error) => error.culprit(),
            Self::Fault(fault) => fault.culprit,
            Self::TopicReplaced { .. } => Culprit::Site,
            Self::BadBatch { .. } | Self::Gap { .. } | Self::Protocol(_) => Culprit::Node,
        }
    }

    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Connect(error) => error.hint(),
            Self::Fault(fault) => fault_hint(fault),
            Self::TopicReplaced { .. } => Some("subscribe again".into()),
            Self::BadBatch { .. } | Self::Gap { .. } | Self::Protocol(_) => None,
        }
    }
}

/// Why a stream is of no more use.
#[derive(Clone, Debug)]
pub(super) enum StreamError {
    /// The node ended it with an error.
    Fault(Box<Fault>),
    /// It or its connection went away.
    Lost(String),
    /// The node broke the protocol.
    Protocol(String),
}

impl From<BadFrame> for StreamError {
    fn from(error: BadFrame) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<quinn::ConnectionError> for StreamError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<FrameError> for StreamError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Bad(error) => error.into(),
            FrameError::Read(error) => Self::Lost(error.to_string()),
            // Readers of a client have no such limit.
            FrameError::NoRoom => Self::Lost(error.to_string()),
        }
    }
}

impl From<quinn::WriteError> for StreamError {
    fn from(error: quinn::WriteError) -> Self {
        Self::Lost(error.to_string())
    }
}

fn fault_hint(fault: &Fault) -> Option<String> {
    fault.hint.clone().or_else(|| match fault.code {
        Code::UnknownTopic => Some("dunlin topic create NAME".into()),
        _ => None,
    })
}
