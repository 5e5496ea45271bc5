//! The durable log of one node, and the small store of the metadata group.
//!
//! **Packed log.** The entries of all shards lie in one table of rows, in commit order, so that a commit only appends.
//! Which row holds which offset of a partition, where a partition starts, where a shard ends: all of that is a function
//! of the log. It lives in memory, is checkpointed behind the log, and is rebuilt from the log's tail at open.
//!
//! **Journal.** A small commit is made durable by a frame in a file beside the database, and its rows wait in memory
//! until they move into the database in bulk.
//!
//! - One OS thread owns the [`Writer`]; [`Store`] reads from any thread.
//! - Nobody is told of an entry before the commit that holds it has returned.
//! - After a failed write nothing is tried again: what the disk holds is unknown, only a restart finds out.
//! - A store that cannot be read is an error, never "a fresh node".
//! - What an entry trims or drops is destroyed only once its shard has called that entry applied.

mod backend;
mod change;
mod checkpoint;
mod commit;
mod error;
mod fact;
mod garbage;
mod index;
mod journal;
mod journal_file;
mod log;
mod meta;
mod mover;
mod open;
mod queue;
mod read;
mod recover;
mod row;
mod schema;
mod scrub;
mod shard_log;
mod snapshot;
mod space;
mod view;
mod writer;

pub use backend::Backend;
pub use change::{Change, STATE_PARTITION};
pub use checkpoint::ShardCheckpoint;
pub use commit::{CommitHandle, CommitSink, CommitThread};
pub use error::{ReadError, StoreError};
pub use meta::{MetaSnapshot, MetaStore};
pub use open::Options;
pub use queue::{Closed, CommitQueue, Reservation};
pub use read::{Chunk, Stats, Store};
pub use recover::{Recovered, RecoveredPartition, RecoveredShard};
pub use schema::{CHECKPOINT_BYTES, CHECKPOINT_ENTRIES, FORMAT_VERSION};
pub use scrub::{Scrub, Scrubbed};
pub use shard_log::LogPoint;
pub use snapshot::Snapshot;
pub use space::{Ballast, SpaceError, free_bytes};
pub use view::Bounds;
pub use writer::Writer;
