//! What can go wrong below the log, by who has to act.

use std::io;

use crate::types::{Lsn, Offset, PartitionId, ShardId};

/// Why a store cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Bytes on disk are not what this program wrote. Restore the node or replace it; nothing is guessed.
    #[error("store is corrupted: {0}")]
    Corrupted(String),
    /// The file is there but holds no store of ours, or an unfinished one: refused, so that a node that lost its
    /// data does not pass for a fresh one.
    #[error("not a dunlin store: {0}")]
    Foreign(String),
    /// Another process has it open.
    #[error("store is in use by another process")]
    InUse,
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Written by a newer program.
    #[error(
        "store has format {found}, this program knows formats up to {known}: use a newer dunlin"
    )]
    NewerFormat {
        /// What the file says.
        found: u32,
        /// What this program can read.
        known: u32,
    },
    /// An earlier write failed: what the disk holds is unknown until the store is opened again.
    #[error("an earlier write failed, the store must be opened again")]
    Poisoned,
    /// The store was made for another number of shards.
    #[error(
        "store has {found} shards, asked for {wanted}: the number is fixed when the store is made"
    )]
    Shards {
        /// What the store has.
        found: u16,
        /// What was asked for.
        wanted: u16,
    },
}

/// Why records cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// What lies on disk is not what was written: it is there, but broken. Repair it from another copy.
    #[error("partition {partition} is corrupted at offset {offset}: {reason}")]
    Corrupted {
        /// Whose log.
        partition: PartitionId,
        /// The first offset that cannot be read.
        offset: Offset,
        /// What was found.
        reason: String,
    },
    /// An entry of a shard's log is there, but broken. Repair it from another copy.
    #[error("the log of shard {shard} is corrupted at {lsn}: {reason}")]
    LogCorrupted {
        /// Whose log.
        shard: ShardId,
        /// The first entry that cannot be read.
        lsn: Lsn,
        /// What was found.
        reason: String,
    },
    /// These entries of a shard's log are not kept any more, or not there yet.
    #[error("entry lies outside the log of shard {shard}, which has {start} to {end}")]
    LogOutOfRange {
        /// Whose log.
        shard: ShardId,
        /// The first entry that is kept.
        start: Lsn,
        /// The position of the next entry.
        end: Lsn,
    },
    /// The node has no such partition.
    #[error("no partition {0} here")]
    NotFound(PartitionId),
    /// These records are not kept any more.
    #[error("offset lies outside the log, which has {start} to {end}")]
    OutOfRange {
        /// The oldest offset that is kept.
        start: Offset,
        /// The offset of the next record.
        end: Offset,
    },
    /// The store itself fails.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ReadError> for StoreError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => error,
            error => Self::Corrupted(error.to_string()),
        }
    }
}

macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                from_any(error.into())
            }
        }

        impl From<redb::$error> for ReadError {
            fn from(error: redb::$error) -> Self {
                Self::Store(error.into())
            }
        }
    )*};
}

from_redb!(
    CommitError,
    DatabaseError,
    SetDurabilityError,
    StorageError,
    TableError,
    TransactionError
);

fn from_any(error: redb::Error) -> StoreError {
    match error {
        redb::Error::Io(error) => StoreError::Io(error),
        redb::Error::PreviousIo => StoreError::Poisoned,
        redb::Error::DatabaseAlreadyOpen => StoreError::InUse,
        error => StoreError::Corrupted(error.to_string()),
    }
}

/// Runs what touches redb: on an image that a bad disk made it may panic, which is a corrupted store and not our bug.
pub(super) fn guarded<T, E: From<StoreError>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(StoreError::Corrupted(format!("the database engine gave up: {text}")).into())
    })
}
