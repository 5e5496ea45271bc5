//! Damage on this node's disk: told loudly, and repaired from another node. The decisions are `broker::damage`'s.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use super::{connection::Shared, drain, engine::Engine};
use crate::{
    broker::{Repair, WhyKept},
    limits::{DAMAGE_LOOK, DAMAGE_RETRY, SUSPECTS_WAITING_MAX},
    replication::ShardCommand,
    storage::{ReadError, Store},
    types::{Lsn, NodeId, Offset, PartitionId, ShardId},
};

/// Something that could not be read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Suspect {
    /// Records.
    Batch(ShardId, PartitionId, Offset),
    /// An entry of a log.
    Entry(ShardId, Lsn),
}

/// The damaged copies of this node.
#[derive(Debug)]
pub(super) struct DamageTable {
    found: Mutex<BTreeMap<ShardId, Found>>,
    suspects: mpsc::Sender<Suspect>,
}

/// A damaged copy.
#[derive(Clone, Debug)]
struct Found {
    reason: String,
    /// Readers are sent away: another node that lives has all.
    elsewhere: bool,
    step: Step,
    /// When that was tried last.
    tried_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Found,
    Kept(WhyKept),
    Leaves,
    /// It is dropped, and made anew from another node.
    Anew,
}

impl DamageTable {
    pub(super) fn new() -> (Self, mpsc::Receiver<Suspect>) {
        let (suspects, asked) = mpsc::channel(SUSPECTS_WAITING_MAX);
        (Self { found: Mutex::default(), suspects }, asked)
    }

    /// Number of damaged copies.
    pub(super) fn len(&self) -> usize {
        self.found().len()
    }

    /// Whether the copy of a shard is damaged, and another node serves what it holds.
    pub(super) fn is_elsewhere(&self, shard: ShardId) -> bool {
        self.found().get(&shard).is_some_and(|found| found.elsewhere)
    }

    /// What people are told of a damaged copy.
    pub(super) fn told(&self, shard: ShardId) -> Option<String> {
        let found = self.found().get(&shard)?.clone();
        let then = match found.step {
            Step::Found | Step::Leaves => "others take over from it".to_owned(),
            Step::Kept(why) => format!("it stays in use, {why}"),
            Step::Anew => "it is made anew from another node".to_owned(),
        };
        Some(format!("DAMAGED, {then}: {}", found.reason))
    }

    fn found(&self) -> MutexGuard<'_, BTreeMap<ShardId, Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Something of a shard could not be read: if that is damage on the disk, it is looked at again.
    pub(super) fn suspect(&self, shard: ShardId, error: &ReadError) {
        let suspect = match error {
            ReadError::Corrupted { partition, offset, .. } => {
                Suspect::Batch(shard, *partition, *offset)
            }
            ReadError::LogCorrupted { lsn, .. } => Suspect::Entry(shard, *lsn),
            _ => return,
        };
        // When too many wait it is dropped: damage shows itself again.
        let _ = self.damage.suspects.try_send(suspect);
    }

    /// The copy of a shard here is damaged.
    pub(super) fn damaged(&self, shard: ShardId, reason: &str) {
        let mut found = self.damage.found();
        if found.contains_key(&shard) {
            return;
        }
        let reason = reason.to_owned();
        tracing::error!(%shard, reason, "DAMAGED: this node's copy of the shard cannot be read whole");
        found.insert(shard, Found { reason, elsewhere: false, step: Step::Found, tried_at: None });
        drop(found);
        self.metrics.damage_found();
        self.slot(shard).lock().replica.set_damaged();
    }

    /// The copy of a shard here was made anew.
    pub(super) fn repaired(&self, shard: ShardId) {
        if self.damage.found().remove(&shard).is_some() {
            self.metrics.damage_repaired();
            tracing::warn!(%shard, "the damaged copy of the shard is repaired from another node");
        }
    }
}

/// Looks at what could not be read, and repairs what is damaged. Runs until the node stops.
pub(super) async fn run(shared: Arc<Shared>, mut suspects: mpsc::Receiver<Suspect>) {
    let engine = Arc::clone(&shared.engine);
    let mut looks = interval(DAMAGE_LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            Some(suspect) = suspects.recv() => look_again(&engine, suspect).await,
        }
        let found: Vec<ShardId> = engine.damage.found().keys().copied().collect();
        for shard in found {
            step(&shared, shard);
        }
    }
}

/// What could not be read may have been trimmed or cut in the same moment: only what cannot be read twice is damaged.
async fn look_again(engine: &Arc<Engine>, suspect: Suspect) {
    let (Suspect::Batch(shard, ..) | Suspect::Entry(shard, _)) = suspect;
    if engine.damage.found().contains_key(&shard) {
        return;
    }
    let store = engine.store.clone();
    let read = tokio::task::spawn_blocking(move || reread(&store, suspect)).await;
    if let Ok(Err(error @ (ReadError::Corrupted { .. } | ReadError::LogCorrupted { .. }))) = read {
        engine.damaged(shard, &error.to_string());
    }
}

fn reread(store: &Store, suspect: Suspect) -> Result<(), ReadError> {
    match suspect {
        Suspect::Batch(_, partition, offset) => {
            store.read(partition, offset, Offset(u64::MAX), 1).map(drop)
        }
        Suspect::Entry(shard, lsn) => store.read_log(shard, lsn, lsn.next(), 1).map(drop),
    }
}

/// Does for one damaged copy what can be done now.
fn step(shared: &Shared, shard: ShardId) {
    let engine = &shared.engine;
    let now = engine.clock.uptime();
    let lives = |node: NodeId| shared.liveness.of(node, now).is_some_and(|l| l.up);
    let (repair, elsewhere) = {
        let core = engine.slot(shard).lock();
        let set = &core.replica.config().set;
        let others = set.iter().any(|node| *node != engine.me.node && lives(*node));
        (core.replica.repair(lives), others)
    };
    let Some(before) = engine.damage.found().get(&shard).cloned() else { return };
    let due = before.tried_at.is_none_or(|at| now >= at + DAMAGE_RETRY);
    let mut tried = false;
    let step = match repair {
        None => Step::Anew,
        Some(Repair::Keep(why)) => Step::Kept(why),
        Some(Repair::Await) => Step::Leaves,
        Some(Repair::HandOver) => {
            tried = due;
            if due {
                drain::hand_over(engine, engine.slot(shard));
            }
            Step::Found
        }
        Some(Repair::Leave(change)) => {
            // A hand-over that has just succeeded does not delay it.
            tried = due || before.step != Step::Leaves;
            if tried {
                engine.ask(ShardCommand { shard, change });
            }
            Step::Leaves
        }
    };
    if step != before.step {
        match step {
            Step::Found => {}
            Step::Kept(why) => tracing::error!(%shard, %why, "DAMAGED: the copy stays in use"),
            Step::Leaves => tracing::warn!(%shard, "the damaged copy leaves the commit set"),
            Step::Anew => tracing::warn!(%shard, "the damaged copy is dropped and made anew"),
        }
    }
    if let Some(found) = engine.damage.found().get_mut(&shard) {
        (found.step, found.elsewhere) = (step, elsewhere);
        if tried {
            found.tried_at = Some(now);
        }
    }
}
