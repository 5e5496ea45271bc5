//! Between the words of the store and those of the core: what is found at open, what changes, and what a checkpoint takes.

use bytes::{BufMut, Bytes, BytesMut};

use super::engine::EngineError;
use crate::{
    broker::{Checkpoint, Recovery},
    replication::{EpochHistory, LogChange, LogEnd, Stored},
    storage::{Change, LogPoint, RecoveredShard, ShardCheckpoint},
    types::{Offset, PartitionId, ProducerId, ShardId, Timestamp},
    wire::Entry,
};

/// Kind of the state rows that hold producers.
const STATE_PRODUCER: u8 = 1;
const STATE_PRODUCER_KEY_LEN: usize = 28;

/// A change of a log in the words of the store.
pub(super) fn change(change: LogChange<Entry>) -> Change {
    let point = |end: LogEnd| LogPoint { lsn: end.lsn, epoch: end.epoch, chain: end.chain };
    match change {
        LogChange::Promise(epoch) => Change::Promise(epoch),
        LogChange::Truncate(end) => Change::Truncate(end),
        LogChange::InstallBegin(base) => Change::InstallBegin { base: point(base) },
        LogChange::Forget => Change::Forget,
        LogChange::InstallChunk(chunk) => Change::InstallChunk {
            entries: chunk.entries,
            state: chunk
                .state
                .into_iter()
                .map(|r| (r.kind, r.key.into(), r.value.into()))
                .collect(),
        },
        LogChange::InstallEnd { base, history } => {
            Change::InstallEnd { base: point(base), epochs: history.starts().collect() }
        }
    }
}

/// A shard's checkpoint as the store takes it.
pub(super) fn checkpoint(shard: ShardId, checkpoint: Checkpoint) -> ShardCheckpoint {
    let key = |partition: PartitionId, producer: ProducerId| {
        let mut key = BytesMut::with_capacity(STATE_PRODUCER_KEY_LEN);
        key.put_u64(partition.topic.0);
        key.put_u32(partition.index);
        key.put_u128(producer.0);
        key.freeze()
    };
    ShardCheckpoint {
        shard,
        applied: checkpoint.applied,
        put: checkpoint
            .put
            .into_iter()
            .map(|(partition, producer, value)| (STATE_PRODUCER, key(partition, producer), value))
            .collect(),
        delete: checkpoint
            .delete
            .into_iter()
            .map(|(partition, producer)| (STATE_PRODUCER, key(partition, producer)))
            .collect(),
    }
}

fn producer_of_key(mut key: Bytes) -> Option<(PartitionId, ProducerId)> {
    use bytes::Buf;
    if key.len() != STATE_PRODUCER_KEY_LEN {
        return None;
    }
    let partition = PartitionId { topic: key.get_u64().into(), index: key.get_u32() };
    Some((partition, ProducerId(key.get_u128())))
}

/// What the store found of a shard's partitions and producers.
pub(super) fn recovery(
    found: RecoveredShard,
    partitions: Vec<(PartitionId, Offset, Offset, Timestamp)>,
) -> Result<Recovery, EngineError> {
    let bad = |reason: &str| EngineError::Shard { shard: found.shard, reason: reason.to_owned() };
    let mut recovery = Recovery { partitions, ..Recovery::default() };
    for (kind, key, value) in found.state {
        if kind != STATE_PRODUCER {
            return Err(bad("its state has a kind that this program does not know"));
        }
        let Some((partition, producer)) = producer_of_key(key) else {
            return Err(bad("its state has a malformed key"));
        };
        let added = recovery.add_producer(partition, producer, &value);
        added.map_err(|error| bad(&error.to_string()))?;
    }
    recovery.tail = found.tail;
    Ok(recovery)
}

/// What the store found of a shard's log.
pub(super) fn stored(found: &RecoveredShard) -> Stored {
    let history = EpochHistory::new(found.epochs.iter().copied());
    Stored {
        promised: found.promised,
        history,
        start: found.start,
        end: LogEnd { lsn: found.end, epoch: found.last_epoch, chain: found.chain },
        high_watermark: found.high_watermark,
        installing: found.installing,
    }
}
