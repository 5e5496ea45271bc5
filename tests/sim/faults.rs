//! What goes wrong, and how it is mended.

use std::time::Duration;

use super::{
    disk::Image,
    event::{Event, Mend},
    node::Process,
    plan::{Fault, Moment},
    view::Observed,
    world::{TICK, World},
};
use crate::{
    replication::ShardChange,
    types::{Boot, Lsn, NodeId},
};

impl World {
    /// Lets something go wrong. What would lose more than the promise covers does not happen: see [`Self::may_lose`].
    pub(crate) fn fault(&mut self, fault: Fault) {
        self.fault_at(fault, 0);
    }

    /// The same for a fault that lay in wait for something to happen to node `there`.
    pub(crate) fn fault_at(&mut self, fault: Fault, there: usize) {
        let leads =
            |at: &usize| self.nodes[*at].process.as_ref().is_some_and(|p| p.leads().is_some());
        let primary = (0..self.nodes.len()).rfind(leads).unwrap_or(0);
        match fault.at(primary, there) {
            Fault::Crash { node, down, survives } => {
                self.stop(node, survives);
                self.schedule(down, Event::Start { node });
            }
            Fault::PowerCut { down, spread, survives } => {
                for node in 0..self.nodes.len() {
                    self.stop(node, survives >> node & 1 == 1);
                    let later = self.rng.below(spread + 1);
                    self.schedule(down + later, Event::Start { node });
                }
            }
            Fault::Pause { node, time } => {
                self.nodes[node].paused = self.now + time;
            }
            Fault::Clock { node, by } => self.nodes[node].clock += by,
            Fault::Cut { from, to, time } => self.cut(from, to, time),
            Fault::Part { a, b, time } => {
                self.cut(a, b, time);
                self.cut(b, a, time);
            }
            Fault::Isolate { node, time } => {
                for other in (0..self.nodes.len()).filter(|other| *other != node) {
                    self.cut(node, other, time);
                    self.cut(other, node, time);
                }
            }
            Fault::Restore { node, image, down } => {
                if self.may_lose(node) {
                    self.restore(node, image, down);
                }
            }
            Fault::Wipe { node, down } => {
                if self.may_lose(node) {
                    self.stop(node, false);
                    self.wipe(node);
                    self.schedule(down, Event::Start { node });
                }
            }
            Fault::Eio { node, down, survives } => {
                if self.may_lose(node) {
                    self.stop(node, survives);
                    self.nodes[node].disk.durable.ident.suspect = true;
                    self.nodes[node].lossy = true;
                    self.schedule(down, Event::Start { node });
                }
            }
            Fault::Full { node, time } => {
                self.nodes[node].disk.full = true;
                self.schedule(time, Event::Mend(Mend::Full(node)));
            }
            Fault::Slow { node, times, time } => {
                self.nodes[node].disk.slow = times;
                self.schedule(time, Event::Mend(Mend::Slow(node)));
            }
            Fault::Depose { believes } => {
                let next = self.rng.index(self.nodes.len());
                self.depose(next, believes);
            }
            Fault::HandOver { to } => self.hand_over(to),
            Fault::Compact { node } => self.compact(node),
            Fault::Elect { node } => self.elect(node),
            Fault::Rollback { node, entries, down } => self.roll_back(node, entries, down),
            Fault::Damage { node, down } => self.damage(node, down),
        }
    }

    /// Springs what lay in wait for what happened in this step.
    pub(crate) fn spring(&mut self) {
        if self.plan.ambushes.is_empty() {
            return;
        }
        for (moment, there) in self.moments() {
            for at in 0..self.plan.ambushes.len() {
                let ambush = self.plan.ambushes[at];
                if ambush.moment != moment
                    || ambush.times == 0
                    || !self.rng.permille(ambush.permille)
                {
                    continue;
                }
                self.plan.ambushes[at].times -= 1;
                let delay = self.rng.below(ambush.delay + 1);
                self.schedule(delay, Event::Ambush(ambush.fault, there));
            }
        }
    }

    /// What happened in this step for which a fault may wait, and to which node.
    fn moments(&self) -> Vec<(Moment, usize)> {
        let mut moments = Vec::new();
        for observed in &self.observed {
            match observed {
                Observed::Leads { node, .. } => moments.push((Moment::Leads, *node)),
                Observed::InstallBegan { node } => moments.push((Moment::Installs, *node)),
                Observed::Cut { node, .. } => moments.push((Moment::Cut, *node)),
                Observed::Started { node } => moments.push((Moment::Starts, *node)),
                Observed::Agreed => self.changes(&mut moments),
                _ => {}
            }
        }
        moments
    }

    fn changes(&self, moments: &mut Vec<(Moment, usize)>) {
        let [.., before, after] = &self.metadata.agreed[..] else { return };
        let (before, after) = (&before.config, &after.config);
        let mut push = |moment, id: &NodeId| {
            moments.extend(self.ids.get(id).map(|at| (moment, *at)));
        };
        let was_pending = |id: &NodeId| before.pending.iter().any(|boot| boot.node == *id);
        for boot in after.pending.iter().filter(|boot| !was_pending(&boot.node)) {
            push(Moment::Joins, &boot.node);
        }
        for id in after.set.iter().filter(|id| !before.set.contains(id)) {
            push(Moment::Joined, id);
        }
        for id in before.set.iter().filter(|id| !after.set.contains(id)) {
            push(Moment::Left, id);
        }
        if before.epoch != after.epoch
            && let Some(primary) = after.primary
        {
            push(Moment::Elected, &primary.node);
        }
    }

    /// Somebody proposes a node as the primary for no good reason, or a member to leave the set.
    fn elect(&mut self, at: usize) {
        let newest = std::rc::Rc::clone(self.metadata.newest());
        let Some(node) = self.nodes[at].disk.durable.ident.node else { return };
        let Some(incarnation) = newest.boots.get(&node).copied() else { return };
        let primary = Boot { node, incarnation };
        let expect_version = newest.config.version;
        let delay = self.network.delay();
        let member = newest.config.set.contains(&node) && newest.config.primary != Some(primary);
        // As one that is about to stop.
        let leaves = member && expect_version.is_multiple_of(3);
        let change = match leaves {
            true => ShardChange::Leave { expect_version, replica: primary },
            false => ShardChange::Elect { expect_version, primary, drop: Vec::new() },
        };
        self.schedule(delay, Event::Propose(change));
    }

    /// Takes the last entries from a disk, within one boot: nothing but their absence tells.
    fn roll_back(&mut self, at: usize, entries: usize, down: u64) {
        self.stop(at, false);
        let image = &mut self.nodes[at].disk.durable;
        if !image.installing {
            let kept = image.log.len().saturating_sub(entries).max(super::disk::index(image.start));
            image.log.truncate(kept);
            image.high_watermark = image.high_watermark.min(Lsn(kept as u64));
            self.nodes[at].lossy = true;
            self.observed.push(Observed::Replaced { node: at });
        }
        self.schedule(down, Event::Start { node: at });
    }

    /// Makes something else of the last entry on a disk, of one disk in a run.
    fn damage(&mut self, at: usize, down: u64) {
        if std::mem::replace(&mut self.damaged, true) {
            return;
        }
        self.stop(at, false);
        let image = &mut self.nodes[at].disk.durable;
        if let Some(last) = image.log.last_mut() {
            let mut record = (**last).clone();
            record.entry.header.chain ^= 1;
            record.chain = record.entry.header.chain;
            *last = record.into();
            self.nodes[at].lossy = true;
            self.observed.push(Observed::Replaced { node: at });
        }
        self.schedule(down, Event::Start { node: at });
    }

    pub(crate) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Link(from, to) => self.network.mend(from, to),
            Mend::Full(node) => self.nodes[node].disk.full = false,
            Mend::Slow(node) => self.nodes[node].disk.slow = 1,
        }
    }

    /// Ends a process. What its disk had under way is there afterwards, or not.
    pub(crate) fn stop(&mut self, at: usize, survives: bool) {
        let node = &mut self.nodes[at];
        let Some(process) = node.process.take() else { return };
        node.life += 1;
        node.paused = 0;
        let done = node.disk.lose_power(survives);
        if let Some(epoch) = process.leads() {
            self.observed.push(Observed::Resigned { node: at, epoch });
        }
        self.note(at, &done);
        self.observed.push(Observed::Stopped { node: at });
    }

    /// Starts a process, if none runs.
    pub(crate) fn start(&mut self, at: usize) {
        let now = Duration::from_micros(self.now);
        let node = &mut self.nodes[at];
        if node.process.is_some() {
            return;
        }
        node.life += 1;
        // Before anything is said to anybody, and durable at once.
        node.disk.durable.ident.boot += 1;
        let nonce = self.rng.next();
        node.disk.durable.ident.nonces.push(nonce);
        node.process = Some(Process::new(nonce, now));
        let life = node.life;
        self.observed.push(Observed::Started { node: at });
        let delay = self.rng.between(1_000, TICK);
        self.schedule(delay, Event::Tick { node: at, life });
    }

    /// Puts back an image of an earlier boot. One of the present boot could not be told from the disk itself by anything
    /// but its content, and is left to directed schedules.
    fn restore(&mut self, at: usize, image: usize, down: u64) {
        self.stop(at, false);
        let disk = &mut self.nodes[at].disk;
        let present = disk.durable.ident.clone();
        // A boot that ended before it registered is not known to the site.
        let known = present.node.map_or(0, |node| self.metadata.boot_of(node));
        let older: Vec<&Image> = disk
            .images
            .iter()
            .filter(|old| old.ident.boot < known && old.ident.disk_id == present.disk_id)
            .collect();
        if !older.is_empty() {
            disk.durable = older[image % older.len()].clone();
            self.nodes[at].lossy = true;
            self.observed.push(Observed::Replaced { node: at });
        }
        self.schedule(down, Event::Start { node: at });
    }

    pub(crate) fn wipe(&mut self, at: usize) {
        let name = self.new_name();
        let disk_id = u128::from(self.rng.next());
        self.nodes[at].disk.durable = Image::empty(name, disk_id);
        self.nodes[at].disk.images.clear();
        self.nodes[at].lossy = true;
        self.observed.push(Observed::Replaced { node: at });
    }

    fn hand_over(&mut self, to: usize) {
        let now = Duration::from_micros(self.now);
        let Some(target) = self.nodes[to].disk.durable.ident.node else { return };
        for at in 0..self.nodes.len() {
            self.drive(at, |replica, _, _| {
                // Who does not lead says so, and who cannot says why: nothing changes then.
                let _ = replica.hand_over(target, now);
            });
        }
    }

    fn cut(&mut self, from: usize, to: usize, time: u64) {
        if from != to {
            self.network.cut(from, to);
            self.schedule(time, Event::Mend(Mend::Link(from, to)));
        }
    }

    /// Whether a disk may lose data: the site promises to survive the loss of one disk where there are two. Another
    /// member of the set must have all that is committed, and nothing that the site does not know of must have happened
    /// to it.
    fn may_lose(&self, at: usize) -> bool {
        let config = &self.metadata.newest().config;
        let id = self.nodes[at].disk.durable.ident.node;
        let sound = |node| self.ids.get(node).is_some_and(|n| !self.nodes[*n].lossy);
        let others = config.set.iter().filter(|node| Some(**node) != id);
        others.filter(|node| sound(node)).count() >= 1 && !self.nodes[at].lossy
    }

    /// Mends all that is broken, and starts all that is down.
    pub(crate) fn heal(&mut self) {
        self.network.heal();
        for at in 0..self.nodes.len() {
            let node = &mut self.nodes[at];
            node.disk.full = false;
            node.disk.slow = 1;
            node.paused = node.paused.min(self.now);
            if node.process.is_none() {
                self.schedule(1_000, Event::Start { node: at });
            }
        }
    }
}
