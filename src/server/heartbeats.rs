//! The pulse of a node: tells the others that it lives, ticks its shards, and decides about elections while it leads the
//! metadata group.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use super::{connection::Shared, engine::Engine, slot::Slot};
use crate::{
    limits::HEARTBEAT,
    peer::Heartbeat,
    replication::{Controller, LogEnd, ShardDigest},
    types::ShardId,
};

/// What this node knows of the others, and of itself.
struct Pulse {
    controller: Controller,
    sent: u64,
}

/// Runs until the node stops.
pub(super) async fn run(shared: Arc<Shared>, mut heard: mpsc::Receiver<Heartbeat>) {
    let engine = Arc::clone(&shared.engine);
    let mut applied = engine.group.applied();
    let mut leader = engine.group.leader();
    let mut pulse = Pulse { controller: Controller::new(engine.clock.uptime()), sent: 0 };
    let mut ticks = interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            _ = ticks.tick() => pulse.beat(&shared),
            Some(beat) = heard.recv() => pulse.hear(&engine, beat),
            // The senders live in the group.
            _ = applied.changed() => {}
            _ = leader.changed() => {}
        }
        pulse.decide(&engine);
    }
}

impl Pulse {
    fn beat(&mut self, shared: &Shared) {
        let engine = &shared.engine;
        engine.tick();
        self.sent += 1;
        let now = engine.clock.uptime();
        let beat = Heartbeat {
            from: engine.me,
            sent: self.sent,
            applied: engine.group.read(|site| site.applied),
            hears: self.controller.hears(now),
            digests: engine.slots.iter().filter_map(digest).collect(),
            connections: u32::try_from(shared.connections.len()).unwrap_or(u32::MAX),
            load: 0,
            draining: shared.is_draining(),
        };
        if let Some(links) = engine.links.get() {
            links.heartbeat(&beat);
        }
        self.take(beat, now);
    }

    fn hear(&mut self, engine: &Engine, beat: Heartbeat) {
        self.take(beat, engine.clock.uptime());
    }

    fn take(&mut self, beat: Heartbeat, now: Duration) {
        self.controller.heartbeat(beat.from, &beat.digests, now);
        if !beat.hears.is_empty() {
            self.controller.reported(beat.from, beat.hears, now);
        }
    }

    /// Proposes elections, while this node leads the group.
    fn decide(&mut self, engine: &Engine) {
        if !engine.group.is_leader() {
            return;
        }
        let now = engine.clock.uptime();
        let commands = engine.group.read(|site| {
            let shards = (0..).map(ShardId).zip(&site.shards);
            self.controller.tick(now, shards, &site.boots())
        });
        for command in commands {
            engine.ask(command);
        }
    }
}

/// The durable end of a shard's log here.
fn digest(slot: &Slot) -> Option<ShardDigest> {
    let core = slot.lock();
    let log = core.replica.log()?;
    if log.is_installing() {
        return None;
    }
    let end = match log.durable_end() {
        durable if durable == log.end().lsn => log.end(),
        durable => core.recent.end_at(durable).unwrap_or(LogEnd { lsn: durable, ..log.end() }),
    };
    Some(ShardDigest { shard: slot.id, end })
}
