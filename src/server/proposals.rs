//! What shards ask of the metadata group, on its way there.

use std::sync::Arc;

use tokio::{sync::mpsc, task::JoinSet};

use super::engine::Engine;
use crate::{
    cluster::{GroupError, MetaCommand},
    limits::PROPOSALS_AT_ONCE_MAX,
    replication::{ShardChange, ShardCommand},
    types::ShardId,
};

/// Proposes what comes, several at once. Runs until the engine is gone.
pub(super) async fn run(engine: Arc<Engine>, mut asked: mpsc::Receiver<ShardCommand>) {
    let mut under_way = JoinSet::new();
    loop {
        tokio::select! {
            command = asked.recv(), if under_way.len() < PROPOSALS_AT_ONCE_MAX => {
                let Some(command) = command else { return };
                let engine = Arc::clone(&engine);
                under_way.spawn(async move { propose(&engine, command).await });
            }
            Some(_) = under_way.join_next() => {}
        }
    }
}

async fn propose(engine: &Engine, command: ShardCommand) {
    let shard = command.shard;
    let change = command.change.clone();
    match engine.group.propose(MetaCommand::Shard(command)).await {
        Ok(_) => tell(shard, &change),
        // Somebody was first, or the group has no leader right now: the core asks again if it still wants it.
        Err(error @ (GroupError::Rejected(_) | GroupError::NoLeader)) => {
            tracing::debug!(%shard, %error, "proposal did nothing");
        }
        Err(error) if error.is_fatal() => engine.fail(&error.to_string()),
        Err(error) => tracing::warn!(%shard, %error, "proposal may be lost"),
    }
}

/// What people look for when they ask since when how many copies there were.
fn tell(shard: ShardId, change: &ShardChange) {
    match change {
        ShardChange::Remove { node, .. } => {
            tracing::warn!(%shard, %node, "a replica that is silent or slow is put out of the commit set");
        }
        ShardChange::ConfirmAdd { replica, .. } => {
            tracing::info!(%shard, node = %replica.node, "a replica has all and is in the commit set");
        }
        ShardChange::Elect { primary, drop, .. } if !drop.is_empty() => {
            let without: Vec<_> = drop.iter().map(ToString::to_string).collect();
            let without = without.join(" ");
            tracing::warn!(%shard, primary = %primary.node, %without, "elected without those that are not heard");
        }
        _ => {}
    }
}
