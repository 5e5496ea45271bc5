//! Who may commit what: the decisions of primary-backup replication, as plain synchronous values.
//!
//! Layer 2, pure: no clock, socket, randomness or hash order. `now` is the time since any fixed moment, by a clock that
//! never goes back; no rule that keeps data safe depends on it. A site of one node runs the same code with a commit set
//! of one member.
//!
//! One shard on one node is a [`LocalLog`] with a role around it: [`Backup`] or [`Primary`]. What the site agrees on is a
//! [`ShardConfig`], changed by [`ShardChange`]s that are checked when they are applied. The [`Controller`] proposes
//! elections.

mod backup;
mod barrier;
mod config;
mod controller;
mod effect;
mod entry;
#[cfg(test)]
mod fixture;
mod follower;
mod hand_over;
mod history;
mod install;
mod local_log;
mod message;
#[cfg(test)]
pub(crate) mod mutation;
mod primary;
mod rhythm;
mod set_change;

pub use backup::Backup;
pub use config::{Boots, ConfigReject, ShardChange, ShardCommand, ShardConfig, ShardReport};
pub use controller::{Controller, ShardDigest};
pub use effect::{Alarm, Effect, LogChange};
pub use entry::{LogEnd, LogEntry, LogView};
pub use hand_over::CannotHandOver;
pub use history::EpochHistory;
pub use local_log::{LocalLog, Stored};
pub use message::{Append, Body, Chunk, Envelope, FollowerState, Refusal, StateRow};
pub use primary::{NotEnoughCopies, Primary};
pub use rhythm::Rhythm;

/// Whether this seeded bug is switched on. Only tests know the switches; in the product this is `false`.
macro_rules! mutant {
    ($mutation:ident) => {{
        #[cfg(test)]
        let on =
            crate::replication::mutation::is_on(crate::replication::mutation::Mutation::$mutation);
        #[cfg(not(test))]
        let on = false;
        on
    }};
}
pub(crate) use mutant;
