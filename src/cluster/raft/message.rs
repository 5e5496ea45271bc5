//! What members of the group say to each other, in CBOR.

use std::fmt;

use openraft::{
    error::InstallSnapshotError,
    raft::{AppendEntriesResponse, InstallSnapshotResponse, VoteRequest, VoteResponse},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::type_config::{LogId, MetaAnswer, SnapshotMeta, Vote};
use crate::{cluster::command::MetaCommand, types::NodeId};

/// A request of one member to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::cluster) enum GroupRequest {
    /// Raft: entries of the leader, or its heartbeat.
    Append {
        vote: Vote,
        previous: Option<LogId>,
        /// As they lie in the log.
        entries: Vec<Blob>,
        committed: Option<LogId>,
    },
    /// Raft: elect me.
    Vote(VoteRequest<NodeId>),
    /// Raft: a piece of the leader's snapshot.
    Snapshot { vote: Vote, meta: SnapshotMeta, offset: u64, data: Blob, done: bool },
    /// To the leader: order this command.
    Propose(MetaCommand),
    /// To the leader: change the membership.
    Change(MemberChange),
    /// To the leader: up to where must a reader have applied?
    Current,
}

/// A change of the membership. Each is safe to repeat: ids are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cluster) enum MemberChange {
    /// Gets the log, has no vote.
    AddLearner(NodeId),
    /// A learner that has caught up gets a vote.
    Promote(NodeId),
    /// Is no member any more.
    Remove(NodeId),
}

/// The answer to a request.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::cluster) enum GroupAnswer {
    Append(AppendEntriesResponse<NodeId>),
    Vote(VoteResponse<NodeId>),
    Snapshot(Result<InstallSnapshotResponse<NodeId>, InstallSnapshotError>),
    /// The command was applied at this index, with this result.
    Proposed {
        index: u64,
        answer: MetaAnswer,
    },
    /// The membership is as asked, by an entry at or before this index.
    Changed {
        index: u64,
    },
    /// Who has applied up to here has seen all that was acknowledged before the question.
    Current {
        index: u64,
    },
    /// Nothing was done: this node does not lead, or not a majority any more. It may know who does.
    NotLeader(Option<NodeId>),
    /// Nothing was done yet, and will be when this is mended.
    NotYet(String),
    /// It may be done later, or never.
    Unknown,
    /// Nothing was done, and asking again will not help.
    Refused(String),
}

/// Bytes as bytes: serde would write a list of numbers.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::cluster) struct Blob(pub(in crate::cluster) Vec<u8>);

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl de::Visitor<'_> for Bytes {
            type Value = Blob;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.to_vec()))
            }

            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}
