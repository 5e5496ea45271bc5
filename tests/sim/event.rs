//! What happens at a time.

use bytes::BytesMut;

use super::{clients::Answer, node::Handle, plan::Fault};
use crate::{
    cluster::{BootClaim, MetaReject},
    replication::{Envelope, ShardChange, ShardDigest},
    types::{Boot, NodeId, Offset},
    wire::{BatchHeader, Entry},
};

/// Something that happens at a time.
#[derive(Debug)]
pub(crate) enum Event {
    Tick {
        node: usize,
        life: u64,
    },
    Message(usize, Box<Envelope<Entry>>),
    Heartbeat {
        to: usize,
        from: Boot,
        digest: Vec<ShardDigest>,
        hears: Vec<NodeId>,
    },
    Committed {
        node: usize,
        life: u64,
    },
    Register {
        node: usize,
        life: u64,
        claim: BootClaim,
    },
    Registered {
        node: usize,
        life: u64,
        result: Result<Boot, MetaReject>,
    },
    Propose(ShardChange),
    Learn {
        node: usize,
        life: u64,
        upto: u64,
    },
    Start {
        node: usize,
    },
    Fault(Fault),
    /// A fault that lay in wait, and the node to which what it waited for happened.
    Ambush(Fault, usize),
    Mend(Mend),
    Producer(usize),
    Reader(usize),
    Publish {
        node: usize,
        life: u64,
        handle: Handle,
        partition: u32,
        header: BatchHeader,
        batch: BytesMut,
    },
    Answer {
        client: usize,
        attempt: u64,
        answer: Answer,
    },
    Poll {
        client: usize,
        node: usize,
        from: Offset,
    },
    Unbelieve {
        node: usize,
    },
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mend {
    Link(usize, usize),
    Full(usize),
    Slow(usize),
}

impl Event {
    /// The machine in which it happens.
    pub(crate) fn node(&self) -> Option<usize> {
        match self {
            Self::Tick { node, .. }
            | Self::Message(node, _)
            | Self::Heartbeat { to: node, .. }
            | Self::Committed { node, .. }
            | Self::Registered { node, .. }
            | Self::Learn { node, .. }
            | Self::Publish { node, .. }
            | Self::Poll { node, .. } => Some(*node),
            Self::Register { .. }
            | Self::Propose(_)
            | Self::Start { .. }
            | Self::Fault(_)
            | Self::Ambush(..)
            | Self::Mend(_)
            | Self::Producer(_)
            | Self::Reader(_)
            | Self::Answer { .. }
            | Self::Unbelieve { .. } => None,
        }
    }
}
