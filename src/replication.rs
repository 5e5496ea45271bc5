//! Who may commit what: the decisions of primary-backup replication, as plain synchronous values.
//!
//! Layer 2, pure: no clock, socket, randomness or hash order. A site of one node runs the same code with a commit set
//! of one member.

mod primary;

pub use primary::{CommitSet, LogEnd, NotEnoughCopies, Primary};
