//! Why a publish was refused. Nothing was appended: the refusal is definite.

use crate::{
    replication::NotEnoughCopies,
    types::{NodeId, PartitionId, Sequence},
    wire::{Code, Detail, Fault},
};

/// Why a publish was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// Another node leads the shard, or none.
    #[error("this node does not lead the partition{}", to_whom(*node))]
    NotPrimary {
        /// Who does, or will in a moment, as far as it is known.
        node: Option<NodeId>,
    },
    /// The partition is not (or no longer) in this shard.
    #[error("partition {0} does not exist")]
    UnknownPartition(PartitionId),
    /// The set is too small.
    #[error(transparent)]
    NotEnoughCopies(#[from] NotEnoughCopies),
    /// The producer is not known here, and this is not its first batch.
    #[error("producer is not known in this partition, and its sequence {sequence} is not 0")]
    UnknownProducer {
        /// The sequence that came.
        sequence: Sequence,
    },
    /// A batch before this one is missing.
    #[error("producer sequence {sequence} leaves a gap, expected {expected}")]
    SequenceGap {
        /// The sequence that came.
        sequence: Sequence,
        /// The one that is missing.
        expected: Sequence,
    },
    /// Older than what is remembered: whether it was stored cannot be told.
    #[error("producer sequence {sequence} is older than what is remembered, expected {expected}")]
    SequenceTooOld {
        /// The sequence that came.
        sequence: Sequence,
        /// The next one of this producer.
        expected: Sequence,
    },
    /// The partition has given out all offsets that there are.
    #[error("partition {0} has no offsets left")]
    OffsetsExhausted(PartitionId),
}

impl Reject {
    /// The error as it travels.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let message = self.to_string();
        match self {
            Self::UnknownPartition(_) => Fault::new(Code::UnknownPartition, message),
            Self::NotEnoughCopies(copies) => Fault::new(Code::NotEnoughCopies, message)
                .with_detail(Detail {
                    have: Some(copies.have),
                    need: Some(copies.need),
                    ..Detail::default()
                }),
            Self::UnknownProducer { .. } => Fault::new(Code::UnknownProducer, message)
                .with_hint("start with a new producer id and sequence 0"),
            Self::SequenceGap { expected, .. } => Fault::new(Code::SequenceGap, message)
                .with_detail(Detail { expected: Some(*expected), ..Detail::default() }),
            Self::SequenceTooOld { expected, .. } => Fault::new(Code::SequenceTooOld, message)
                .with_detail(Detail { expected: Some(*expected), ..Detail::default() }),
            Self::NotPrimary { node: Some(_) } => Fault::new(Code::NotPrimary, message),
            Self::NotPrimary { node: None } => Fault::new(Code::Electing, message),
            Self::OffsetsExhausted(_) => Fault::new(Code::LimitReached, message),
        }
    }
}

fn to_whom(node: Option<NodeId>) -> String {
    node.map_or_else(String::new, |node| format!(", node {node} does"))
}
