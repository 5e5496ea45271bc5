//! A node that gives its work to others: because it stops, or because the operator says so.

use std::sync::{Arc, atomic::Ordering};

use tokio::time::{Instant, sleep_until};

use super::{connection::Shared, engine::Engine, slot::Slot};
use crate::{
    limits::{BALANCE_DRAIN_MAX, DRAIN_LOOK, GIVE_AWAY_MAX, LEAVE_MAX},
    replication::{ShardChange, ShardCommand, ShardConfig},
    storage::Reservation,
    types::NodeId,
};

/// Follows what the operator says of this node. Runs until the node stops.
pub(super) async fn run(shared: Arc<Shared>) {
    let engine = Arc::clone(&shared.engine);
    let mut applied = engine.group.applied();
    let mut drains = false;
    // When those that have not gone when they were asked are told to.
    let mut go_at: Option<Instant> = None;
    loop {
        let me = engine.me.node;
        let wanted = engine.group.read(|site| site.nodes.get(&me).is_some_and(|n| n.draining));
        if wanted != drains {
            drains = wanted;
            shared.draining.store(wanted, Ordering::Relaxed);
            tracing::info!(draining = wanted, "the operator has spoken");
            if wanted {
                hand_over_all(&engine).await;
            }
            go_at = wanted.then(|| Instant::now() + BALANCE_DRAIN_MAX);
        }
        if go_at.is_some_and(|at| at <= Instant::now()) {
            go_at = None;
            shared.move_clients();
        }
        // What was led by others when they were lost may have come here.
        if drains && engine.slots.iter().any(leads) {
            hand_over_all(&engine).await;
        }
        let again = Instant::now() + GIVE_AWAY_MAX;
        tokio::select! {
            // The sender lives in the group.
            _ = applied.changed() => {}
            () = sleep_until(go_at.map_or(again, |at| again.min(at))), if drains => {}
        }
    }
}

/// Gives away, before the node stops, what others would have to wait for: its shards, and its places in commit sets.
pub(super) async fn give_away(shared: &Shared) {
    let engine = &shared.engine;
    if engine.group.read(|site| site.nodes.len()) <= 1 {
        return;
    }
    shared.draining.store(true, Ordering::Relaxed);
    engine.set_leaving();
    hand_over_all(engine).await;
    leave_sets(engine).await;
}

/// Hands every shard that is led here to a member of its set that keeps pace. Takes no longer than [`GIVE_AWAY_MAX`]: what
/// is left fails over.
async fn hand_over_all(engine: &Engine) {
    let deadline = Instant::now() + GIVE_AWAY_MAX;
    loop {
        let mut led = 0;
        for slot in engine.slots.iter().filter(|slot| leads(slot)) {
            led += usize::from(hand_over(engine, slot));
        }
        if led == 0 || Instant::now() >= deadline {
            return;
        }
        sleep_until(Instant::now() + DRAIN_LOOK).await;
        engine.tick();
    }
}

fn leads(slot: &Slot) -> bool {
    slot.lock().replica.shard().is_some()
}

/// Whether somebody can take the shard.
pub(super) fn hand_over(engine: &Engine, slot: &Slot) -> bool {
    let now = engine.clock.uptime();
    engine.with(slot.id, Reservation::FREE, |replica, _, _| {
        let under_way = replica.shard().is_some_and(|s| s.primary().handing_over().is_some());
        let config = replica.config();
        // In the order of preference, those that are to keep the shard first.
        let wanted = config.replicas.iter().chain(&config.set);
        let others: Vec<NodeId> = wanted.copied().filter(|node| *node != engine.me.node).collect();
        under_way || others.into_iter().any(|node| replica.hand_over(node, now).is_ok())
    })
}

/// Leaves the commit sets that can do without this node.
async fn leave_sets(engine: &Engine) {
    let waiting = |config: &ShardConfig| config.pending.contains(&engine.me);
    let mine = |slot: &Slot| {
        let core = slot.lock();
        let config = core.replica.config();
        config.primary != Some(engine.me)
            && (waiting(config) || config.set.contains(&engine.me.node) && config.can_shrink())
    };
    let deadline = Instant::now() + LEAVE_MAX;
    let mut asked = vec![None; engine.slots.len()];
    loop {
        let mut left = 0;
        for (slot, asked) in engine.slots.iter().zip(&mut asked).filter(|(slot, _)| mine(slot)) {
            left += 1;
            let expect_version = slot.lock().replica.config().version;
            // Asked again only if somebody else's change came first.
            if asked.replace(expect_version) != Some(expect_version) {
                let change = ShardChange::Leave { expect_version, replica: engine.me };
                engine.ask(ShardCommand { shard: slot.id, change });
            }
        }
        if left == 0 || Instant::now() >= deadline {
            return;
        }
        sleep_until(Instant::now() + DRAIN_LOOK).await;
    }
}
