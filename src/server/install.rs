//! Snapshots for replicas whose log is too old to be continued.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::mpsc;

use super::engine::{Engine, InstallWork};
use crate::{
    peer::Outgoing,
    replication::{Body, Chunk, Envelope, LogEnd, StateRow},
    storage::{Change, LogPoint, ReadError, Reservation, Snapshot},
    types::{Boot, Epoch, Lsn, ShardId},
};

/// Makes snapshots and sends their chunks, one thing at a time: an install must not crowd out what keeps pace. Runs until
/// the engine is gone.
pub(super) async fn run(engine: Arc<Engine>, mut asked: mpsc::Receiver<InstallWork>) {
    // One a shard; replicas that need one at the same time share it.
    let mut snapshots: BTreeMap<ShardId, Arc<Snapshot>> = BTreeMap::new();
    while let Some(work) = asked.recv().await {
        match work {
            InstallWork::Snapshot { shard, to, least } => {
                let held = snapshots.get(&shard).filter(|held| held.base().lsn >= least).cloned();
                let snapshot = match held {
                    Some(held) => Some(held),
                    None => make(&engine, shard, least).await,
                };
                let Some(snapshot) = snapshot else { continue };
                let (base, chunks) = (log_end(snapshot.base()), snapshot.chunks());
                snapshots.insert(shard, snapshot);
                tracing::info!(%shard, node = %to.node, base = %base.lsn, chunks, "install begins");
                engine.with(shard, Reservation::FREE, |replica, _, out| {
                    replica.snapshot(to, base, chunks, out);
                });
            }
            InstallWork::Chunk { shard, to, epoch, base, number, index } => {
                let held = snapshots.get(&shard).filter(|held| log_end(held.base()) == base);
                let Some(snapshot) = held.cloned() else { continue };
                if !send(&engine, snapshot, shard, to, epoch, (number, index)).await {
                    // The collector was faster: the next question makes a new one.
                    snapshots.remove(&shard);
                }
            }
        }
        let wanted = |shard: &ShardId| engine.leads(*shard);
        snapshots.retain(|shard, _| wanted(shard));
    }
}

async fn make(engine: &Arc<Engine>, shard: ShardId, least: Lsn) -> Option<Arc<Snapshot>> {
    let store = engine.store.clone();
    let made = tokio::task::spawn_blocking(move || store.snapshot(shard)).await.ok()?;
    match made {
        Ok(Some(snapshot)) if snapshot.base().lsn >= least => Some(Arc::new(snapshot)),
        Ok(None) => None,
        Ok(Some(_)) => {
            // Its state is that of the last checkpoint, which is too old: the next question finds a newer one.
            engine.queue.ask_checkpoint();
            None
        }
        Err(error) => {
            tracing::error!(%shard, %error, "no snapshot can be made");
            engine.suspect(shard, &error);
            None
        }
    }
}

async fn send(
    engine: &Arc<Engine>,
    snapshot: Arc<Snapshot>,
    shard: ShardId,
    to: Boot,
    epoch: Epoch,
    (number, index): (u32, u32),
) -> bool {
    let read = tokio::task::spawn_blocking(move || snapshot.chunk(index)).await;
    let change = match read {
        Ok(Ok(change)) => change,
        Ok(Err(ReadError::OutOfRange { .. })) | Err(_) => return false,
        Ok(Err(error)) => {
            tracing::error!(%shard, %error, "a snapshot cannot be read");
            engine.suspect(shard, &error);
            return false;
        }
    };
    let Change::InstallChunk { entries, state } = change else { return false };
    let row = |(kind, key, value): (u8, bytes::Bytes, bytes::Bytes)| StateRow {
        kind,
        key: key.into(),
        value: value.into(),
    };
    let chunk = Chunk { entries, state: state.into_iter().map(row).collect() };
    let body = Body::InstallChunk { number, index, chunk };
    let envelope = Envelope { shard, epoch, from: engine.me, to, body };
    engine.send(shard, to, Outgoing::Message(envelope));
    true
}

fn log_end(point: LogPoint) -> LogEnd {
    LogEnd { lsn: point.lsn, epoch: point.epoch, chain: point.chain }
}
