//! The commit thread's way back to the shards.

use std::sync::Arc;

use super::{engine::Engine, recovery};
use crate::{
    storage::{CommitSink, ShardCheckpoint, StoreError},
    types::{Lsn, ShardId},
};

/// Tells an engine what its disk has done.
#[derive(Debug)]
pub(super) struct Sink(pub(super) Arc<Engine>);

impl CommitSink for Sink {
    fn committed(&mut self, done: &[(ShardId, u64)]) {
        self.0.written(done);
    }

    fn checkpoint(&mut self) -> Vec<ShardCheckpoint> {
        let mut checkpoints = Vec::new();
        for slot in &self.0.slots {
            let mut core = slot.lock();
            // Of a half-done install nothing is applied.
            if core.installing.is_none() {
                checkpoints.push(recovery::checkpoint(slot.id, core.applied.checkpoint()));
            }
        }
        checkpoints
    }

    fn log_started(&mut self, starts: &[(ShardId, Lsn)]) {
        for (shard, start) in starts {
            self.0.slot(*shard).lock().replica.log_starts_at(*start);
        }
    }

    fn failed(&mut self, error: &StoreError) {
        tracing::error!(%error, "the log cannot be written, the node stops");
        self.0.abandon("the node's disk failed", |_| true);
        self.0.fail(&error.to_string());
    }
}
