//! Seeded bugs, to see whether the simulator finds them. Switched on for one thread, in tests only.

use std::cell::Cell;

/// A bug that somebody could write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mutation {
    /// `LocalLog::promise` does not write the promise to the disk.
    ForgetPromise,
    /// `LocalLog::when_durable` lets messages go before what they tell of is durable.
    AckBeforeCommit,
    /// `Primary::message` and `Backup::message` take messages of a boot that is over.
    CountOldIncarnation,
    /// `Primary` shrinks its own commit set when it proposes a removal, before the metadata has it.
    ShrinkLocally,
    /// `Backup::align` cuts below the high watermark.
    TruncateBelowHighWatermark,
    /// `Primary` moves the high watermark without pending replicas.
    IgnorePending,
    /// `Primary` moves the high watermark, and takes publishes, with fewer members than `copies_min`.
    IgnoreCopiesMin,
    /// `Shard::publish` acks a batch that was sent again at once, though the original is not committed.
    DedupeAcksEarly,
    /// `Replica` goes on with the epoch of its former boot.
    ResumeEpoch,
    /// `LocalLog::truncate` leaves the epoch history as it was.
    HistoryNotTruncated,
    /// `Shard::begin` forgets producers that are silent by the wall clock, without an entry in the log.
    WallClockExpiry,
    /// `Shard::expire_producers` goes by the wall clock alone.
    ImpatientExpiry,
    /// A replica whose install is half done is taken for a short log: by the primary and by itself.
    InstallingElectable,
    /// `set_change` adds and confirms a candidate that has not the epoch's start.
    NoEpochStartRule,
    /// `ShardConfig` confirms a candidate in whatever boot it is.
    StaleIncarnationConfirmed,
    /// `ShardConfig` adds to the set in one step, without pending.
    OneStepAdd,
    /// `ShardConfig` applies changes without comparing versions.
    NoVersionCheck,
    /// `ShardConfig` elects replicas outside the set.
    ElectOutsideSet,
    /// `ShardConfig` leaves a node in the set whose disk has lost data.
    LostStaysInSet,
    /// `Backup` does not compare what comes before an append with its own log.
    NoPrefixCheck,
    /// `ShardConfig` lets a sole member be elected that has lost data.
    StalledElectable,
    /// `Primary::barrier` takes each question for answered.
    BarrierUnasked,
    /// `Primary::barrier` does not wait for pending replicas.
    BarrierSkipsPending,
}

impl Mutation {
    /// All of them.
    pub(crate) const ALL: [Self; 23] = [
        Self::ForgetPromise,
        Self::AckBeforeCommit,
        Self::CountOldIncarnation,
        Self::ShrinkLocally,
        Self::TruncateBelowHighWatermark,
        Self::IgnorePending,
        Self::IgnoreCopiesMin,
        Self::DedupeAcksEarly,
        Self::ResumeEpoch,
        Self::HistoryNotTruncated,
        Self::WallClockExpiry,
        Self::ImpatientExpiry,
        Self::InstallingElectable,
        Self::NoEpochStartRule,
        Self::StaleIncarnationConfirmed,
        Self::OneStepAdd,
        Self::NoVersionCheck,
        Self::ElectOutsideSet,
        Self::LostStaysInSet,
        Self::NoPrefixCheck,
        Self::StalledElectable,
        Self::BarrierUnasked,
        Self::BarrierSkipsPending,
    ];
}

thread_local! {
    static ON: Cell<Option<Mutation>> = const { Cell::new(None) };
}

/// Whether this one is on in this thread.
pub(crate) fn is_on(mutation: Mutation) -> bool {
    ON.get() == Some(mutation)
}

/// Switches one on for this thread, or all off.
pub(crate) fn switch(mutation: Option<Mutation>) {
    ON.set(mutation);
}
