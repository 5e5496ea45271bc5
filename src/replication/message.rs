//! What replicas of a shard tell each other.
//!
//! A message counts only in its epoch, from the boot that led or followed in it, to the boot that it names. Everything
//! else is dropped: messages may be lost, doubled, delayed and overtaken at will.

use super::{entry::LogEnd, history::EpochHistory};
use crate::types::{Boot, Epoch, Lsn, ShardId};

/// A message with its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<E> {
    /// Whose log.
    pub shard: ShardId,
    /// The epoch that it belongs to.
    pub epoch: Epoch,
    /// Who says it.
    pub from: Boot,
    /// To whom.
    pub to: Boot,
    /// What.
    pub body: Body<E>,
}

/// What a message says. [`Body::is_of_primary`] tells which go from the primary to a replica; the others go back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body<E> {
    /// "I lead this epoch: tell me of your log." Answered by [`Body::State`].
    StartEpoch,
    /// "Our logs agree up to here: cut the rest." Answered by [`Body::Durable`].
    Align(LogEnd),
    /// Entries; with none of them it carries the high watermark alone. Answered by [`Body::Durable`].
    Append(Append<E>),
    /// "Our logs agree nowhere that I keep: take mine, it begins at this end." Answered by [`Body::ChunkDurable`].
    InstallBegin {
        /// Number of this install in the primary's epoch: chunks of two snapshots with one base must not be mixed.
        number: u32,
        /// The state that is installed is that of all entries before this.
        base: LogEnd,
        /// The epochs of those entries.
        history: EpochHistory,
        /// Number of chunks that follow.
        chunks: u32,
    },
    /// A part of the state that is installed. Answered by [`Body::ChunkDurable`].
    InstallChunk {
        /// The install that it belongs to.
        number: u32,
        /// Number of the chunk, from 0.
        index: u32,
        /// The part.
        chunk: Chunk<E>,
    },
    /// What the replica has. Sent once the promise not to follow an older epoch is durable.
    State(FollowerState),
    /// "All before this is durable here, and it is yours."
    Durable(Lsn),
    /// "All chunks before this one are durable here."
    ChunkDurable {
        /// The install.
        number: u32,
        /// Number of the next chunk.
        next: u32,
    },
    /// "I do not follow."
    Refused(Refusal),
    /// From the primary: "Is this epoch still yours?" Answered by [`Body::BarrierHeld`].
    Barrier(u64),
    /// "When this question came I had promised no later epoch."
    BarrierHeld(u64),
}

impl<E> Body<E> {
    /// Whether only a primary says this.
    #[must_use]
    pub fn is_of_primary(&self) -> bool {
        match self {
            Self::StartEpoch
            | Self::Align(_)
            | Self::Append(_)
            | Self::InstallBegin { .. }
            | Self::InstallChunk { .. }
            | Self::Barrier(_) => true,
            Self::State(_)
            | Self::Durable(_)
            | Self::ChunkDurable { .. }
            | Self::Refused(_)
            | Self::BarrierHeld(_) => false,
        }
    }
}

/// Entries for a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append<E> {
    /// The end of the log before the first of them.
    pub prev: LogEnd,
    /// The entries, in order.
    pub entries: Vec<E>,
    /// Positions below this are committed.
    pub high_watermark: Lsn,
}

/// A part of a shard's state, for a replica whose log is too old to be continued.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk<E> {
    /// Entries of the log before its base that still hold something.
    pub entries: Vec<E>,
    /// Derived state.
    pub state: Vec<StateRow>,
}

/// A row of derived state. Replication carries it, and does not look inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateRow {
    /// Kind of the state.
    pub kind: u8,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// What a replica has of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowerState {
    /// Where its log ends.
    pub end: LogEnd,
    /// Its epochs.
    pub history: EpochHistory,
    /// How far it knows the log to be committed.
    pub high_watermark: Lsn,
    /// An install is half done: the rest means nothing.
    pub installing: bool,
}

/// Why a replica does not follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has promised a newer epoch.
    StaleEpoch(Epoch),
    /// It has not been aligned in this epoch, or its boot is another: ask for its state again.
    NotAligned,
    /// Entries are missing between its end, which is here, and what came.
    Gap(Lsn),
    /// Its log holds something else, and cutting it would lose what is committed. A human must look.
    Diverged,
    /// Its disk takes no more records.
    DiskFull,
}
