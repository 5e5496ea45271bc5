//! The types that openraft works with, and their bytes.

use std::io::Cursor;

use bytes::{Bytes, BytesMut};
use openraft::EmptyNode;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    cluster::{
        command::{MetaCommand, MetaOutcome},
        reject::MetaReject,
    },
    types::NodeId,
    wire::cbor::{self, BadCbor},
};

openraft::declare_raft_types!(
    /// Addresses are no part of the membership: they live in the site's state, where they can change by themselves.
    pub(crate) TypeConfig:
        D = MetaCommand,
        R = MetaAnswer,
        NodeId = NodeId,
        Node = EmptyNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
);

/// What came of a command when it was applied. A reject is an outcome like any other: all members come to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MetaAnswer(pub(crate) Result<MetaOutcome, MetaReject>);

pub(in crate::cluster) type Entry = openraft::Entry<TypeConfig>;
pub(in crate::cluster) type LogId = openraft::LogId<NodeId>;
pub(in crate::cluster) type Vote = openraft::Vote<NodeId>;
pub(in crate::cluster) type Membership = openraft::StoredMembership<NodeId, EmptyNode>;
pub(in crate::cluster) type SnapshotMeta = openraft::SnapshotMeta<NodeId, EmptyNode>;
pub(in crate::cluster) type StorageError = openraft::StorageError<NodeId>;

pub(in crate::cluster) fn encode(value: &impl Serialize) -> Bytes {
    let mut bytes = BytesMut::new();
    cbor::put(value, &mut bytes);
    bytes.freeze()
}

pub(in crate::cluster) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadCbor> {
    cbor::get(bytes)
}
