//! A site that a schedule drives, with its judges.

use std::time::Duration;

use super::{
    super::{
        history::History,
        invariants::{Invariants, rule::Rule},
        plan::{Fault, Plan, Shape},
        run::REST_MAX,
        view::{Agreed, Checker, Observed, Violation},
        world::{Fate, World},
    },
    NOT_REACHED,
};
use crate::{
    replication::{Body, Envelope, ShardChange},
    types::{Lsn, NodeId},
    wire::Entry,
};

/// The most that a schedule waits for anything.
const WAIT_MAX: Duration = Duration::from_secs(30);

pub(super) struct Stage {
    pub(super) world: World,
    judges: Vec<Box<dyn Checker>>,
}

pub(super) type Played = Result<(), Violation>;

/// Three nodes that hold data, of which two must have an entry.
pub(super) const THREE: Shape = Shape { data: 3, witnesses: 0, replicas: 3, copies_min: 2 };
/// Two nodes that hold data, of which one may go on alone, and a witness.
pub(super) const PAIR: Shape = Shape { data: 2, witnesses: 1, replicas: 2, copies_min: 1 };
/// The same, but neither goes on alone.
pub(super) const STRICT_PAIR: Shape = Shape { data: 2, witnesses: 1, replicas: 2, copies_min: 2 };

impl Stage {
    /// A site whose set is full and which serves.
    pub(super) fn whole(shape: Shape) -> Result<Self, Violation> {
        Self::waiving(shape, &[])
    }

    /// The same, with rules that the schedule breaks by a fault beyond what the site promises to survive.
    pub(super) fn waiving(shape: Shape, rules: &[Rule]) -> Result<Self, Violation> {
        let judges: Vec<Box<dyn Checker>> =
            vec![Box::new(Invariants::waiving(rules)), Box::new(History)];
        let mut stage = Self { world: World::new(Plan::quiet(shape)), judges };
        stage.until_whole()?;
        let acks = stage.world.counters.acks;
        stage.until("some acks", |world| world.counters.acks > acks + 5)?;
        Ok(stage)
    }

    pub(super) fn judge(&mut self) -> Played {
        self.judges.iter_mut().try_for_each(|judge| judge.check(&self.world))
    }

    /// Does something by hand, and lets the judges look.
    pub(super) fn act<T>(&mut self, act: impl FnOnce(&mut World) -> T) -> Result<T, Violation> {
        self.world.observed.clear();
        let done = act(&mut self.world);
        self.judge()?;
        Ok(done)
    }

    /// Steps until this holds.
    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut(&World) -> bool) -> Played {
        let until = self.world.now + micros(WAIT_MAX);
        while !done(&self.world) {
            if self.world.now > until || !World::step(&mut self.world) {
                let text = format!("{what}: {}", self.world.describe());
                return Err(Violation { rule: NOT_REACHED, text });
            }
            self.judge()?;
        }
        Ok(())
    }

    /// Lets so much time pass.
    pub(super) fn pass(&mut self, ms: u64) -> Played {
        let until = self.world.now + ms * 1_000;
        self.until("time", |world| world.now >= until)
    }

    pub(super) fn until_whole(&mut self) -> Played {
        self.until("a full set that serves", |world| {
            let config = &world.metadata.newest().config;
            let wanted = config.replicas.len();
            config.set.len() == wanted && config.pending.is_empty() && leader(world).is_some()
        })
    }

    /// The node that leads, and its followers in the order of their index.
    pub(super) fn roles(&mut self) -> Result<(usize, Vec<usize>), Violation> {
        self.until("a primary", |world| leader(world).is_some())?;
        let primary = leader(&self.world).expect("just seen");
        let data = 0..self.world.plan.shape.data;
        Ok((primary, data.filter(|node| *node != primary).collect()))
    }

    pub(super) fn fault(&mut self, fault: Fault) -> Played {
        self.act(|world| world.fault(fault))
    }

    /// Ends a process until somebody starts it.
    pub(super) fn stop(&mut self, node: usize) -> Played {
        self.act(|world| world.stop(node, false))
    }

    pub(super) fn start(&mut self, node: usize) -> Played {
        self.act(|world| world.start(node))
    }

    /// Restarts a node, so that its disk has an image of an earlier boot.
    pub(super) fn restart(&mut self, node: usize) -> Played {
        let boot = self.boot(node);
        self.fault(Fault::Crash { node, down: 1_000, survives: true })?;
        self.until("a restart", |world| newest_boot(world, node) > boot)?;
        self.until_whole()?;
        // A member stays one while it is away: acks say that it is back.
        let acks = self.world.counters.acks;
        self.until("acks", |world| world.counters.acks > acks + 5)
    }

    /// Puts back the oldest image that the disk has.
    pub(super) fn restore(&mut self, node: usize) -> Played {
        self.fault(Fault::Restore { node, image: 0, down: 1_000 })
    }

    /// What the site knows as the newest boot of a node.
    pub(super) fn boot(&self, node: usize) -> Option<u64> {
        newest_boot(&self.world, node)
    }

    pub(super) fn until_registered(&mut self, node: usize, before: Option<u64>) -> Played {
        self.until("a registration", |world| newest_boot(world, node) > before)
    }

    /// What happens to messages between replicas from now on.
    pub(super) fn filter(
        &mut self,
        mut fate: impl FnMut(usize, usize, &Body<Entry>) -> Fate + 'static,
    ) {
        let filter = move |from: usize, to: usize, envelope: &Envelope<Entry>| {
            fate(from, to, &envelope.body)
        };
        self.world.filter = Some(Box::new(filter));
    }

    pub(super) fn pass_all(&mut self) {
        self.world.filter = None;
    }

    pub(super) fn release(&mut self) {
        self.world.filter = None;
        self.world.release();
    }

    /// Nobody hears this node until [`Self::join`].
    pub(super) fn isolate(&mut self, node: usize) {
        for other in (0..self.world.nodes.len()).filter(|other| *other != node) {
            self.world.network.cut(node, other);
            self.world.network.cut(other, node);
        }
    }

    pub(super) fn join(&mut self, node: usize) {
        for other in (0..self.world.nodes.len()).filter(|other| *other != node) {
            self.world.network.mend(node, other);
            self.world.network.mend(other, node);
        }
    }

    /// Isolates a node until it is out of the set.
    pub(super) fn drive_out(&mut self, node: usize) -> Played {
        self.isolate(node);
        self.until("a removal", |world| !is_member(world, node))
    }

    pub(super) fn id(&self, node: usize) -> NodeId {
        self.world.nodes[node].disk.durable.ident.node.expect("every disk of a schedule has one")
    }

    pub(super) fn config(&self) -> &crate::replication::ShardConfig {
        &self.world.metadata.newest().config
    }

    /// Lets a proposal arrive now. Whether it is accepted is for the judges.
    pub(super) fn propose(&mut self, change: ShardChange) -> Result<bool, Violation> {
        self.act(|world| {
            world.observed.push(Observed::Agreed);
            world.metadata.change(change).is_ok()
        })
    }

    /// Producers begin nothing more, and all that is open is acked and known to every replica.
    pub(super) fn settle(&mut self) -> Played {
        self.world.quiet = true;
        self.until("quiet", |world| {
            let ends: Vec<_> = (0..world.plan.shape.data)
                .filter(|node| is_member(world, *node))
                .map(|node| ends(world, node))
                .collect();
            world.producers.iter().all(|p| p.open.is_none())
                && ends.iter().all(|(end, known)| end == known && *end == ends[0].0)
        })
    }

    /// All faults are over: the site comes to rest, and the end is judged.
    pub(super) fn finish(mut self) -> Played {
        self.pass_all();
        self.world.held.clear();
        self.world.quiet = false;
        self.act(World::begin_rest)?;
        let until = self.world.now + micros(REST_MAX);
        while !self.world.is_at_rest() {
            if self.world.now > until || !World::step(&mut self.world) {
                let text = self.world.describe();
                return Err(Violation { rule: "comes_to_rest", text });
            }
            self.judge()?;
        }
        self.judges.iter_mut().try_for_each(|judge| judge.finish(&self.world))
    }
}

/// The node that leads the newest epoch and knows how far it is committed.
pub(super) fn leader(world: &World) -> Option<usize> {
    let config = &world.metadata.newest().config;
    (0..world.nodes.len()).find(|at| {
        let replica = world.nodes[*at].process.as_ref().and_then(|p| p.replica.as_ref());
        let shard = replica.and_then(|replica| replica.shard());
        shard.is_some_and(|s| s.is_recovered() && s.primary().epoch() == config.epoch)
    })
}

/// Where a node's log ends on its disk, and how far the process knows it to be committed.
pub(super) fn ends(world: &World, node: usize) -> (Lsn, Lsn) {
    let process = world.nodes[node].process.as_ref().and_then(|p| p.replica.as_ref());
    let known = process.and_then(|r| r.log()).map(|log| log.high_watermark());
    (world.nodes[node].disk.durable.end(), known.unwrap_or_default())
}

pub(super) fn is_member(world: &World, node: usize) -> bool {
    let id = world.nodes[node].disk.durable.ident.node;
    id.is_some_and(|id| world.metadata.newest().config.set.contains(&id))
}

/// Whether a node waits to be confirmed.
pub(super) fn is_pending(world: &World, node: usize) -> bool {
    let id = world.nodes[node].disk.durable.ident.node;
    let Agreed { config, .. } = &**world.metadata.newest();
    config.pending.iter().any(|boot| Some(boot.node) == id)
}

/// Whether a message carries entries.
pub(super) fn carries(body: &Body<Entry>) -> bool {
    matches!(body, Body::Append(append) if !append.entries.is_empty())
}

fn newest_boot(world: &World, node: usize) -> Option<u64> {
    let id = world.nodes[node].disk.durable.ident.node?;
    world.metadata.newest().boots.get(&id).map(|incarnation| incarnation.0)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).expect("short")
}
