//! The pulse of a node: tells the others that it lives, ticks its shards, and decides about elections while it leads the
//! metadata group.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use super::{connection::Shared, engine::Engine, slot::Slot};
use crate::{
    limits::{
        CUT_OFF_AFTER, CUT_OFF_AGAIN, HEARTBEAT, ISOLATED_AFTER, STAND_AGAIN, STOOD_STILL_AFTER,
    },
    peer::Heartbeat,
    replication::{Controller, LogEnd, ShardDigest},
    types::{NodeId, ShardId},
};

/// What this node knows of the others, and of itself.
struct Pulse {
    controller: Controller,
    /// How often the others hear of this node.
    every: Duration,
    sent: u64,
    sent_at: Option<Duration>,
    /// When a majority of the voters was heard last.
    majority_at: Duration,
    /// Since when a node that is needed is heard by others and not by this one.
    cut_since: Option<Duration>,
    /// When clients were sent away for that last.
    sent_away_at: Option<Duration>,
    /// When this node asked for the lead of the metadata group last.
    stood_at: Duration,
    /// When this node beat last.
    beat_at: Duration,
}

/// Runs until the node stops.
pub(super) async fn run(
    shared: Arc<Shared>,
    every: Duration,
    mut heard: mpsc::Receiver<Heartbeat>,
) {
    let engine = Arc::clone(&shared.engine);
    let mut applied = engine.group.applied();
    let mut leader = engine.group.leader();
    let now = engine.clock.uptime();
    let mut pulse = Pulse {
        controller: Controller::new(engine.fence, now),
        every,
        sent: 0,
        sent_at: None,
        majority_at: now,
        cut_since: None,
        sent_away_at: None,
        stood_at: now,
        beat_at: now,
    };
    let mut ticks = interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            _ = ticks.tick() => {
                pulse.beat(&shared);
                pulse.look_whether_isolated(&shared);
                pulse.look_whether_cut_off(&shared);
            }
            Some(beat) = heard.recv() => pulse.hear(&shared, &beat),
            // The senders live in the group.
            _ = applied.changed() => {}
            _ = leader.changed() => {}
        }
        pulse.decide(&engine);
        if pulse.must_stand(&engine)
            && let Err(error) = engine.group.stand().await
        {
            tracing::debug!(%error, "cannot stand for the metadata group");
        }
    }
}

impl Pulse {
    fn beat(&mut self, shared: &Shared) {
        let engine = &shared.engine;
        let now = engine.clock.uptime();
        if now > self.beat_at + STOOD_STILL_AFTER {
            let still = now.saturating_sub(self.beat_at + HEARTBEAT);
            tracing::debug!(?still, "this machine is busy");
            self.controller.stood_still(still, now);
            engine.stood_still(still, now);
            shared.liveness.stood_still(still, now);
            self.majority_at = (self.majority_at + still).min(now);
        }
        self.beat_at = now;
        engine.tick();
        let due = self.sent_at.is_none_or(|at| now + HEARTBEAT / 2 >= at + self.every);
        if due {
            (self.sent, self.sent_at) = (self.sent + 1, Some(now));
        }
        let beat = Heartbeat {
            from: engine.me,
            sent: self.sent,
            applied: engine.group.read(|site| site.applied),
            hears: self.controller.hears(now),
            digests: engine.slots.iter().filter_map(digest).collect(),
            connections: shared.clients.len(),
            load: shared.load(),
            draining: shared.gives_clients_away(),
            damaged: engine.damage.len() > 0,
        };
        if due && let Some(links) = engine.links.get() {
            links.heartbeat(&beat);
        }
        shared.liveness.retain(|node| engine.group.read(|site| site.nodes.contains_key(&node)));
        self.hear(shared, &beat);
    }

    /// A node that hears no majority takes no publishes: they could wait for ever, while others lead. What waits is
    /// answered, and clients are sent to those who may know more.
    fn look_whether_isolated(&mut self, shared: &Shared) {
        let engine = &shared.engine;
        let now = engine.clock.uptime();
        let (voters, _) = engine.group.members();
        let heard = self.controller.hears(now);
        let there = |node: &&NodeId| **node == engine.me.node || heard.contains(node);
        let there = voters.iter().filter(there).count();
        if there > voters.len() / 2 {
            self.majority_at = now;
        }
        let isolated = now > self.majority_at + ISOLATED_AFTER.max(engine.fence * 2 + HEARTBEAT);
        if isolated == engine.is_isolated() {
            return;
        }
        engine.set_isolated(isolated);
        if isolated {
            tracing::error!("no majority of the site's nodes is heard, publishes are refused");
            engine.abandon("the node hears no majority of the site's nodes", |_| true);
            shared.move_clients();
        } else {
            tracing::warn!("a majority of the site's nodes is heard again, publishes are taken");
        }
    }

    /// A node that does not reach one that it needs, where others do, is of no use to clients: they are asked to go to nodes
    /// that it hears, and come back by weight when the way is there again. It needs those that lead, and in the sets of what
    /// it leads itself whoever the metadata has not let it take out: it may have been replaced, and be the last to hear.
    fn look_whether_cut_off(&mut self, shared: &Shared) {
        let engine = &shared.engine;
        let now = engine.clock.uptime();
        let cut: BTreeMap<ShardId, NodeId> = engine.group.read(|site| {
            let shards = (0..).map(ShardId).zip(&site.shards);
            let cut = |config| self.controller.needed_and_cut(engine.me.node, config, now);
            shards.filter_map(|(shard, config)| Some((shard, cut(config)?))).collect()
        });
        self.cut_since = cut.first_key_value().map(|_| self.cut_since.unwrap_or(now));
        let cut_off = self.cut_since.is_some_and(|since| now >= since + CUT_OFF_AFTER);
        if cut_off && self.sent_away_at.is_none_or(|at| now >= at + CUT_OFF_AGAIN) {
            self.sent_away_at = Some(now);
            shared.move_clients();
            // Nobody leaves before all is answered that it has sent.
            engine.abandon("a node that must store it is not heard here", |shard| {
                cut.contains_key(&shard)
            });
        }
        if cut_off == shared.cut_off.swap(cut_off, Ordering::Relaxed) {
            return;
        }
        match cut.values().next().filter(|_| cut_off) {
            Some(node) => tracing::error!(
                %node,
                "a node that is needed is heard by others, and not by this one: clients are asked to go to others"
            ),
            None => tracing::warn!("all nodes that are needed are heard again"),
        }
    }

    fn hear(&mut self, shared: &Shared, beat: &Heartbeat) {
        let now = shared.engine.clock.uptime();
        shared.liveness.take(beat, now);
        self.controller.heartbeat(beat.from, &beat.digests, now);
        if !beat.hears.is_empty() {
            self.controller.reported(beat.from, beat.hears.clone(), now);
        }
    }

    /// Whether this node is to ask for the lead of the metadata group: its leader is gone, and of the voters that live this
    /// is the one with the lowest number.
    fn must_stand(&mut self, engine: &Engine) -> bool {
        let now = engine.clock.uptime();
        let Some(leader) = *engine.group.leader().borrow() else { return false };
        let me = engine.me.node;
        if leader == me || self.controller.lives(leader, now) || now < self.stood_at + STAND_AGAIN {
            return false;
        }
        let (voters, _) = engine.group.members();
        let lives = |node: &NodeId| *node == me || self.controller.lives(*node, now);
        let first = voters.iter().copied().filter(lives).min();
        let stands = first == Some(me) && voters.contains(&me);
        if stands {
            self.stood_at = now;
        }
        stands
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
