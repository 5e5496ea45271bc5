//! What the core asks of its driver.

use super::{
    config::ShardChange,
    entry::LogEnd,
    history::EpochHistory,
    message::{Body, Chunk},
};
use crate::types::{Boot, Epoch, Lsn};

/// What the driver must do for one shard, in order.
///
/// [`Effect::Append`] and [`Effect::Change`] go to the disk, in this order; of several that wait any number of the first
/// may become durable together. The driver counts them, from 1 for the first of a boot, and reports the number of the last
/// that is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect<E> {
    /// Put this entry behind the log.
    Append(E),
    /// Change something else about the log.
    Change(LogChange<E>),
    /// Note, with the next commit or at leisure, that positions below this are committed. Not counted.
    Committed(Lsn),
    /// Send this, in the epoch given.
    Send {
        /// To whom.
        to: Boot,
        /// In which epoch.
        epoch: Epoch,
        /// What.
        body: Body<E>,
    },
    /// Send entries, also those that are not durable yet, as [`Body::Append`]. Long ranges go in several messages, each
    /// with what precedes it.
    Replicate {
        /// To whom.
        to: Boot,
        /// In which epoch.
        epoch: Epoch,
        /// The first.
        from: Lsn,
        /// Behind the last; equal to `from` when only the high watermark is to be told.
        until: Lsn,
        /// Positions below this are committed.
        high_watermark: Lsn,
    },
    /// Make a snapshot of the state at an end that is committed and behind the log's start, and report it by
    /// [`super::Primary::snapshot`].
    Snapshot {
        /// For whom.
        to: Boot,
        /// Not before this.
        least: Lsn,
    },
    /// Send a chunk of the snapshot with this base, as [`Body::InstallChunk`].
    SendChunk {
        /// To whom.
        to: Boot,
        /// In which epoch.
        epoch: Epoch,
        /// Which snapshot.
        base: LogEnd,
        /// Number of the install that sends it.
        number: u32,
        /// Number of the chunk.
        index: u32,
    },
    /// Propose this change of the shard to the metadata group. It may be lost; the core asks again.
    Propose(ShardChange),
    /// This node shall lead: read back what the log holds, all of which is durable, and begin the epoch.
    Recover(Epoch),
    /// The site has registered a later boot of this node: stop, and do not register again.
    Superseded,
    /// Tell a human.
    Alarm(Alarm),
}

/// A change of a shard's durable state other than a new entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogChange<E> {
    /// Messages of older epochs are refused from now on.
    Promise(Epoch),
    /// Entries from here on are cut off. The history of epochs with them.
    Truncate(Lsn),
    /// From here on the log is nothing but a half-done install; what it held is dropped.
    InstallBegin(LogEnd),
    /// The same, and nothing is known to be committed any more: an operator has accepted that it is lost.
    Forget,
    /// A part of the install.
    InstallChunk(Chunk<E>),
    /// The install is whole: the log begins and ends here, and all before is committed.
    InstallEnd {
        /// Begin and end.
        base: LogEnd,
        /// The epochs before it.
        history: EpochHistory,
    },
}

/// What a human must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// A primary's log lacks what this replica knows to be committed: data of the site was lost, or this disk is not of
    /// this site.
    DivergedBelowHighWatermark {
        /// As far as the logs agree.
        common: Lsn,
        /// As far as this replica knows the log to be committed.
        high_watermark: Lsn,
    },
    /// Position and epoch are the same as on the primary, the content is not: a damaged disk or a defect.
    ChainMismatch {
        /// Where.
        at: Lsn,
    },
    /// A member of the set has lost what it had said to be durable.
    Regressed {
        /// Which boot of it.
        replica: Boot,
    },
}
