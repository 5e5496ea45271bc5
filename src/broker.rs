//! What a broker decides: offsets, deduplication, acks, retention, as plain synchronous values.
//!
//! Layer 2, pure: state + input + now -> effects. No clock, socket, randomness or hash order; the driver in `server`
//! performs the effects.

mod applied;
mod damage;
mod entry;
mod partition;
mod producer;
mod reject;
mod replica;
mod retention;
mod shard;

pub use applied::{Applied, Checkpoint, Seen};
pub use damage::{Repair, WhyKept};
pub use partition::PartitionView;
pub use producer::{BadState, ProducerState};
pub use reject::Reject;
pub use replica::Replica;
pub use retention::ClockGuard;
pub use shard::{Committed, Effect, PublishInput, Recovery, Shard, Waiter};
