//! A process: takes inputs to the core and performs its effects, as the driver of a real node does.

use std::{collections::BTreeMap, rc::Rc, time::Duration};

use super::{
    clients::Answer,
    disk::{Disk, Done, Op},
    event::Event,
    metadata::SHARD,
    view::{Commit, Observed, Record},
    world::World,
};
use crate::{
    broker::{Effect, PublishInput, Recovery, Reject, Replica, Waiter},
    limits::FENCE_AFTER,
    replication::{
        self, Append, Body, Chunk, Controller, Envelope, LogEnd, LogView, ShardChange, ShardDigest,
    },
    types::{Acks, Boot, Epoch, Lsn, NodeId, Offset, PartitionId, Timestamp, TopicId},
    wire::{BatchHeader, Entry, EntryKind},
};

/// Who waits for an ack: a producer and the number of its attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handle {
    pub(crate) client: usize,
    pub(crate) attempt: u64,
    pub(crate) value: u64,
}

/// A machine: its disk, its clock, and the process that runs on it.
pub(crate) struct Node {
    pub(crate) disk: Disk,
    pub(crate) process: Option<Process>,
    /// Grows with each process: events of an earlier one are void.
    pub(crate) life: u64,
    /// Nothing happens in it until then.
    pub(crate) paused: u64,
    /// Wall clock against simulated time, in milliseconds.
    pub(crate) clock: i64,
    pub(crate) witness: bool,
    /// Has lost data, and the site does not know yet.
    pub(crate) lossy: bool,
}

/// A process that runs.
pub(crate) struct Process {
    /// What it registers with, until it has.
    pub(crate) nonce: u64,
    pub(crate) boot: Option<Boot>,
    pub(crate) replica: Option<Replica<Handle>>,
    pub(crate) controller: Controller,
    /// Index of the metadata that was applied here.
    pub(crate) applied: u64,
    /// Metadata is on its way.
    pub(crate) learning: bool,
    pub(crate) ticks: u64,
    /// The last question of a primary that was answered, in its epoch.
    barrier: (Epoch, u64),
    /// Base and number of chunks of the snapshots that are sent.
    snapshots: BTreeMap<NodeId, (LogEnd, u32)>,
    seen: (Lsn, Option<Epoch>),
}

/// Partitions of the one topic.
pub(crate) const PARTITIONS: u32 = 2;
const TOPIC: TopicId = TopicId(1);
/// The wall clock at the start of a run.
const WALL: i64 = 1_700_000_000_000;
/// The patience of the site with silent producers passes this many times as fast as all else, a day in 24 seconds: a run
/// is short. Producers give up after half of that.
const PATIENCE_RATE: u32 = 3_600;
/// Records in one answer to a reader.
const POLL_MAX: usize = 20;

pub(crate) fn partition(index: u32) -> PartitionId {
    PartitionId { topic: TOPIC, index }
}

impl Process {
    pub(crate) fn new(nonce: u64, now: Duration) -> Self {
        Self {
            nonce,
            boot: None,
            replica: None,
            controller: Controller::new(FENCE_AFTER, now),
            applied: 0,
            learning: false,
            ticks: 0,
            barrier: (Epoch(0), 0),
            snapshots: BTreeMap::new(),
            seen: (Lsn(0), None),
        }
    }

    /// The site has taken it in.
    pub(crate) fn registered(&mut self, boot: Boot, disk: &Disk, witness: bool) {
        self.boot = Some(boot);
        if !witness {
            let stored = disk.durable.stored();
            self.seen = (stored.high_watermark, None);
            self.replica = Some(Replica::new(SHARD, boot, stored, FENCE_AFTER));
        }
    }

    pub(crate) fn leads(&self) -> Option<Epoch> {
        Some(self.replica.as_ref()?.shard()?.primary().epoch())
    }
}

impl Node {
    pub(crate) fn wall(&self, now: u64) -> Timestamp {
        let ms = WALL + i64::try_from(now / 1_000).unwrap_or(0) + self.clock;
        Timestamp(u64::try_from(ms).unwrap_or(0))
    }
}

impl World {
    /// Gives an input to the replica of a node, and performs what it asks for.
    pub(crate) fn drive(
        &mut self,
        at: usize,
        act: impl FnOnce(&mut Replica<Handle>, &Disk, &mut Vec<Effect<Handle>>),
    ) {
        let node = &mut self.nodes[at];
        let Some(process) = &mut node.process else { return };
        let Some(replica) = &mut process.replica else { return };
        let mut out = Vec::new();
        act(replica, &node.disk, &mut out);
        self.perform(at, out);
        self.compare(at);
    }

    pub(crate) fn publish(
        &mut self,
        at: usize,
        handle: Handle,
        index: u32,
        header: BatchHeader,
        batch: bytes::BytesMut,
    ) {
        let now = self.now;
        if self.nodes[at].disk.full {
            self.answer(at, handle, Answer::Refused(None));
            return;
        }
        let time = self.nodes[at].wall(now);
        self.drive(at, |replica, _, out| {
            let waiter = Waiter { handle, index: handle.attempt };
            let partition = partition(index);
            let acks = Acks::Replicated;
            let input = PublishInput { waiter, partition, acks, require_copies: 0, header, batch };
            replica.publish(input, time, out);
        });
    }

    /// What a reader gets: records from `from` on, and the committed end; none if this node does not serve.
    pub(crate) fn read(
        &self,
        at: usize,
        index: u32,
        from: Offset,
    ) -> Option<(Vec<(Offset, u64)>, Offset)> {
        let node = &self.nodes[at];
        let shard = node.process.as_ref()?.replica.as_ref()?.shard()?;
        if !shard.is_recovered() {
            return None;
        }
        let end = shard.view(partition(index))?.end;
        let mut got = Vec::new();
        // Newest first until the offset is found: readers are near the end.
        let mut batches: Vec<&Rc<Record>> = Vec::new();
        for record in node.disk.durable.log.iter().rev() {
            let Some((p, base, _)) = &record.values else { continue };
            if *p == index && *base < end {
                batches.push(record);
                if *base <= from {
                    break;
                }
            }
        }
        for record in batches.into_iter().rev() {
            let Some((_, base, values)) = &record.values else { continue };
            for (offset, value) in (base.0..).zip(values) {
                if offset >= from.0 && offset < end.0 && got.len() < POLL_MAX {
                    got.push((Offset(offset), *value));
                }
            }
        }
        Some((got, end))
    }

    fn perform(&mut self, at: usize, out: Vec<Effect<Handle>>) {
        for effect in out {
            match effect {
                Effect::Append(entry) => self.ask(at, Op::Append(Rc::new(Record::new(entry)))),
                Effect::Ack(handle, ack) => {
                    let (base, copies) = (ack.base_offset, ack.copies);
                    let epoch = self.nodes[at].process.as_ref().and_then(Process::leads);
                    self.observed.push(Observed::Acked {
                        node: at,
                        value: handle.value,
                        partition: ack.partition,
                        base,
                        copies,
                        epoch: epoch.unwrap_or_default(),
                    });
                    self.answer(at, handle, Answer::Stored { base, copies });
                }
                Effect::Refuse(waiter, reject) => {
                    let answer = match reject {
                        Reject::NotPrimary { node } => {
                            Answer::Refused(node.and_then(|id| self.ids.get(&id).copied()))
                        }
                        Reject::NotEnoughCopies(_) | Reject::UnknownPartition(_) => {
                            Answer::Refused(None)
                        }
                        _ => Answer::Forgotten,
                    };
                    self.answer(at, waiter.handle, answer);
                }
                Effect::Unknown(waiter) => self.answer(at, waiter.handle, Answer::Unknown),
                Effect::Committed(_) | Effect::Dropped(_) => {}
                Effect::Replication(effect) => self.replicate(at, effect),
            }
        }
    }

    fn replicate(&mut self, at: usize, effect: replication::Effect<Entry>) {
        use replication::Effect as E;
        let Some(from) = self.nodes[at].process.as_ref().and_then(|p| p.boot) else { return };
        match effect {
            E::Append(entry) => self.ask(at, Op::Append(Rc::new(Record::new(entry)))),
            E::Change(change) => self.ask(at, Op::Change(change)),
            E::Committed(lsn) => {
                let disk = &mut self.nodes[at].disk;
                disk.committed = disk.committed.max(lsn);
            }
            E::Send { to, epoch, body } => {
                self.send(at, Envelope { shard: SHARD, epoch, from, to, body });
            }
            E::Replicate { to, epoch, from: first, until, high_watermark } => {
                self.send_entries(at, from, to, epoch, (first, until), high_watermark);
            }
            E::Snapshot { to, least } => self.snapshot(at, to, least),
            E::SendChunk { to, epoch, base, number, index } => {
                let Some(process) = &self.nodes[at].process else { return };
                let Some((known, chunks)) = process.snapshots.get(&to.node) else { return };
                if *known != base {
                    return;
                }
                let (index64, chunks) = (u64::from(index), u64::from(*chunks));
                let log = &self.nodes[at].disk.durable.log;
                let cut = |n: u64| super::disk::index(Lsn(base.lsn.0 * n / chunks));
                let part = &log[cut(index64)..cut(index64 + 1)];
                let entries = part.iter().map(|record| record.entry.clone()).collect();
                let chunk = Chunk { entries, state: Vec::new() };
                let body = Body::InstallChunk { number, index, chunk };
                self.send(at, Envelope { shard: SHARD, epoch, from, to, body });
            }
            E::Propose(change) => self.propose(at, change),
            E::Recover(epoch) => self.recover(at, epoch),
            E::Superseded => self.stop(at, true),
            E::Alarm(alarm) => {
                self.counters.alarms += 1;
                self.observed.push(Observed::Alarm { node: at, text: format!("{alarm:?}") });
            }
        }
    }

    fn send_entries(
        &mut self,
        at: usize,
        from: Boot,
        to: Boot,
        epoch: Epoch,
        (mut first, until): (Lsn, Lsn),
        high_watermark: Lsn,
    ) {
        loop {
            let most = self.rng.between(1, 40);
            let part = until.min(Lsn(first.0 + most));
            let (prev, entries) = self.nodes[at].disk.read(first, part);
            let body = Body::Append(Append { prev, entries, high_watermark });
            self.send(at, Envelope { shard: SHARD, epoch, from, to, body });
            first = part;
            if first >= until {
                return;
            }
        }
    }

    fn snapshot(&mut self, at: usize, to: Boot, least: Lsn) {
        let chunks = u32::try_from(self.rng.between(1, 4)).unwrap_or(1);
        let disk = &self.nodes[at].disk.durable;
        let Some(process) = &self.nodes[at].process else { return };
        let Some(log) = process.replica.as_ref().and_then(Replica::log) else { return };
        let least = disk.start.max(least).0;
        let most = log.high_watermark().0.min(disk.end().0);
        if most == 0 || most < least {
            return;
        }
        let Some(base) = disk.end_at(Lsn(self.rng.between(least.max(1), most))) else { return };
        if let Some(process) = &mut self.nodes[at].process {
            process.snapshots.insert(to.node, (base, chunks));
        }
        self.drive(at, |replica, _, out| replica.snapshot(to, base, chunks, out));
    }

    /// Reads back what the log holds, and begins to lead on it.
    fn recover(&mut self, at: usize, epoch: Epoch) {
        let (now, time) = (Duration::from_micros(self.now), self.nodes[at].wall(self.now));
        let mut found = Recovery::default();
        let log = &self.nodes[at].disk.durable.log;
        let mut bounds: BTreeMap<PartitionId, (u64, Timestamp)> = BTreeMap::new();
        for record in log {
            match record.entry.header.kind {
                EntryKind::PartitionCreate => {
                    bounds.insert(record.entry.header.partition, (0, Timestamp(0)));
                }
                EntryKind::Records => {
                    let Some((time, end)) = record.stamp() else { continue };
                    bounds.insert(record.entry.header.partition, (end, time));
                }
                _ => {}
            }
        }
        let partitions = bounds.into_iter().map(|(id, (end, t))| (id, Offset(0), Offset(end), t));
        found.partitions = partitions.collect();
        found.tail = log.iter().map(|record| record.entry.clone()).collect();
        self.drive(at, |replica, _, out| {
            replica.recovered(epoch, found, time, now, out).expect("our own entries");
        });
        self.drive(at, |replica, _, out| {
            replica.with_shard(out, |shard, out| {
                for index in 0..PARTITIONS {
                    shard.create(partition(index), b"topic", out);
                }
            });
        });
    }

    /// What happens at each tick of a node that runs.
    pub(crate) fn tick(&mut self, at: usize) {
        let now = Duration::from_micros(self.now);
        self.learn(at);
        let node = &mut self.nodes[at];
        let Some(process) = &mut node.process else { return };
        process.ticks += 1;
        let ticks = process.ticks;
        let Some(boot) = process.boot else {
            if ticks % 4 == 1 {
                self.register(at);
            }
            return;
        };
        let time = self.nodes[at].wall(self.now);
        let expires = self.plan.expires && ticks.is_multiple_of(8);
        self.drive(at, |replica, disk, out| {
            replica.set_disk_full(disk.full);
            replica.tick(now, &disk.durable, out);
            if expires {
                let quick = now * PATIENCE_RATE;
                replica.with_shard(out, |shard, out| shard.expire_producers(time, quick, 10, out));
            }
        });
        let after = Duration::from_micros(self.plan.preferred_after);
        if !after.is_zero() {
            self.drive(at, |replica, _, _| replica.hand_over_to_preferred(after, now));
        }
        if self.plan.barriers > 0 && self.rng.permille(self.plan.barriers) {
            self.ask_barrier(at);
        }
        let compacts = self.plan.compacting >> at & 1 == 1 && self.plan.compaction > 0;
        if compacts && self.rng.below(self.plan.compaction) == 0 {
            self.compact(at);
        }
        let digest = [ShardDigest { shard: SHARD, end: self.nodes[at].disk.durable.log_end() }];
        let digest = if self.nodes[at].witness { &digest[..0] } else { &digest[..] };
        for to in 0..self.nodes.len() {
            if to == at {
                if let Some(process) = &mut self.nodes[at].process {
                    process.controller.heartbeat(boot, digest, now);
                    let hears = process.controller.hears(now);
                    process.controller.reported(boot, hears, now);
                }
                continue;
            }
            for delay in self.network.send(at, to).into_iter().flatten() {
                let digest = digest.to_vec();
                let hears = self.nodes[at].process.as_ref().map(|p| p.controller.hears(now));
                let hears = hears.unwrap_or_default();
                self.schedule(delay, Event::Heartbeat { to, from: boot, digest, hears });
            }
        }
        self.control(at, now);
    }

    /// Asks the replica of a node whether it still leads, if it believes so.
    pub(crate) fn ask_barrier(&mut self, at: usize) {
        let Some(epoch) = self.nodes[at].process.as_ref().and_then(Process::leads) else { return };
        let mut asked = Vec::new();
        self.drive(at, |replica, _, out| {
            // It was asked before any answer can be there.
            asked.extend(replica.ask_barrier(out));
        });
        let asked = asked.into_iter();
        self.observed
            .splice(0..0, asked.map(|number| Observed::BarrierAsked { node: at, epoch, number }));
    }

    /// Lets the controller of a node decide, if it believes that it leads the metadata group.
    fn control(&mut self, at: usize, now: Duration) {
        if !self.believes(at) {
            return;
        }
        let Some(process) = &mut self.nodes[at].process else { return };
        let agreed = &self.metadata.agreed[super::disk::index(Lsn(process.applied))];
        let shards = std::iter::once((SHARD, &agreed.config));
        let commands = process.controller.tick(now, shards, &agreed.boots);
        for command in commands {
            self.propose(at, command.change);
        }
    }

    pub(crate) fn compact(&mut self, at: usize) {
        let disk = &mut self.nodes[at].disk.durable;
        let most = disk.high_watermark.0.min(disk.end().0);
        if disk.installing || most <= disk.start.0 {
            return;
        }
        let start = Lsn(self.rng.between(disk.start.0, most));
        disk.start = start;
        self.drive(at, |replica, _, _| replica.log_starts_at(start));
    }

    fn propose(&mut self, at: usize, change: ShardChange) {
        if !self.reaches_metadata(at) {
            return;
        }
        let delay = self.network.delay();
        if self.rng.permille(self.plan.late_proposals) {
            let late = self.rng.between(100_000, 5_000_000);
            self.schedule(late, Event::Propose(change.clone()));
        }
        self.schedule(delay, Event::Propose(change));
    }

    fn answer(&mut self, at: usize, handle: Handle, answer: Answer) {
        let _ = at;
        // A connection may break with the answer on it.
        if self.deaf || self.rng.permille(self.network.links.lost) {
            return;
        }
        let delay = self.network.delay();
        let Handle { client, attempt, .. } = handle;
        self.schedule(delay, Event::Answer { client, attempt, answer });
    }

    fn ask(&mut self, at: usize, op: Op) {
        self.nodes[at].disk.queue.push_back(op);
        self.start_commit(at);
    }

    pub(crate) fn start_commit(&mut self, at: usize) {
        let disk = &mut self.nodes[at].disk;
        if disk.flying > 0 || disk.queue.is_empty() {
            return;
        }
        // Usually all that waits goes together; sometimes a cut falls between.
        let all = disk.queue.len();
        disk.flying = if self.rng.permille(800) { all } else { 1 + self.rng.index(all) };
        let delay = self.rng.between(200, 4_000) * disk.slow;
        let life = self.nodes[at].life;
        self.schedule(delay, Event::Committed { node: at, life });
    }

    pub(crate) fn committed(&mut self, at: usize) {
        let done = self.nodes[at].disk.commit();
        self.note(at, &done);
        let count = self.nodes[at].disk.done;
        self.start_commit(at);
        self.drive(at, |replica, _, out| replica.written(count, out));
    }

    /// Tells checkers what a commit did.
    pub(crate) fn note(&mut self, at: usize, done: &[Done]) {
        let by = self.nodes[at].disk.durable.promised;
        for done in done {
            let observed = match *done {
                Done::Appended(lsn) => match self.observed.last() {
                    Some(Observed::Written { node, .. }) if *node == at => continue,
                    _ => Observed::Written { node: at, from: lsn },
                },
                Done::Cut(end) => {
                    self.counters.truncations += 1;
                    Observed::Cut { node: at, end, by }
                }
                Done::InstallBegan => Observed::InstallBegan { node: at },
                Done::InstallEnded => {
                    self.counters.installs += 1;
                    self.observed.push(Observed::Replaced { node: at });
                    Observed::InstallEnded { node: at }
                }
                Done::Other => continue,
            };
            self.observed.push(observed);
        }
    }

    /// Tells checkers what changed in a process.
    fn compare(&mut self, at: usize) {
        let Some(process) = &mut self.nodes[at].process else { return };
        let Some(replica) = &process.replica else { return };
        let leads = replica.shard().map(|shard| shard.primary());
        let Some(log) = replica.log() else { return };
        let (from, before) = process.seen;
        let to = log.high_watermark();
        let epoch = leads.map(|primary| primary.epoch());
        if epoch != before {
            if let Some(epoch) = before {
                self.observed.push(Observed::Resigned { node: at, epoch });
            }
            if let (Some(epoch), Some(boot)) = (epoch, process.boot) {
                self.counters.failovers += 1;
                self.observed.push(Observed::Leads { node: at, boot, epoch });
            }
        }
        if to != from {
            let by = leads.map(|primary| {
                let config = primary.config();
                Commit {
                    epoch: config.epoch,
                    version: config.version,
                    set: config.set.clone(),
                    pending: config.pending.iter().map(|boot| boot.node).collect(),
                    copies_min: config.copies_min,
                }
            });
            self.observed.push(Observed::Committed { node: at, from, to, by });
        }
        process.seen = (to, epoch);
        if let Some(primary) = leads {
            let held = (primary.epoch(), primary.barrier());
            if held > process.barrier {
                process.barrier = held;
                let (epoch, number) = held;
                let answer = Observed::BarrierHeld { node: at, epoch, number, end: to };
                self.counters.barriers += u64::from(number > 0);
                self.observed.extend((number > 0).then_some(answer));
            }
        }
    }
}
