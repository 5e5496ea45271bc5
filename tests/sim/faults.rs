//! What goes wrong, and how it is mended.

use std::time::Duration;

use super::{
    disk::Image,
    node::Process,
    plan::Fault,
    view::Observed,
    world::{Event, Mend, TICK, World},
};

impl World {
    /// Lets something go wrong. What would lose more than the promise covers does not happen: see [`Self::may_lose`].
    pub(crate) fn fault(&mut self, fault: Fault) {
        let leads =
            |at: &usize| self.nodes[*at].process.as_ref().is_some_and(|p| p.leads().is_some());
        let primary = (0..self.nodes.len()).rfind(leads).unwrap_or(0);
        match fault.at(primary) {
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
        }
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
