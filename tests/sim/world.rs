//! Time, events and what chance does with them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    rc::Rc,
    time::Duration,
};

use super::{
    clients::{Answer, Producer, Reader},
    disk::{Disk, Image},
    event::Event,
    metadata::Metadata,
    network::Network,
    node::{Handle, Node, PARTITIONS, Process},
    plan::Plan,
    rng::Rng,
    trace::Trace,
    view::{ClientEvent, Counters, Observed},
};
use crate::{
    cluster::{BootClaim, MetaReject},
    replication::{Envelope, ShardChange},
    types::{Boot, NodeId, Offset},
    wire::Entry,
};

/// What a directed schedule does with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Pass,
    Drop,
    /// Kept in [`World::held`] until it is released.
    Hold,
}

/// Looks at each message between replicas before it is sent: from which node, to which, what.
pub(crate) type Filter = Box<dyn FnMut(usize, usize, &Envelope<Entry>) -> Fate>;

/// A simulated site.
pub(crate) struct World {
    pub(crate) plan: Plan,
    /// Microseconds.
    pub(crate) now: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) ids: BTreeMap<NodeId, usize>,
    pub(crate) network: Network,
    pub(crate) metadata: Metadata,
    pub(crate) rng: Rng,
    pub(crate) observed: Vec<Observed>,
    pub(crate) counters: Counters,
    pub(crate) history: Vec<ClientEvent>,
    pub(crate) producers: Vec<Producer>,
    pub(crate) readers: Vec<Reader>,
    pub(crate) trace: Trace,
    pub(crate) filter: Option<Filter>,
    pub(crate) held: Vec<(usize, Envelope<Entry>)>,
    /// A disk holds something else than was written.
    pub(crate) damaged: bool,
    /// Answers to producers are lost.
    pub(crate) deaf: bool,
    /// Producers begin no new batches.
    pub(crate) quiet: bool,
    /// Acks when the site was whole again.
    pub(crate) acks_at_rest: Option<u64>,
    /// Node that leads the metadata group, and those that still believe that they do.
    leader: usize,
    leaderless: u64,
    believers: Vec<bool>,
    events: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slots: Vec<Option<Event>>,
    free: Vec<usize>,
    numbered: u64,
    names: u64,
}

/// How often a node ticks, in microseconds.
pub(crate) const TICK: u64 = 150_000;

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let nodes = plan.shape.data + plan.shape.witnesses;
        let mut world = Self {
            now: 0,
            nodes: Vec::new(),
            ids: BTreeMap::new(),
            network: Network::new(nodes, plan.links, Rng::new(plan.seed, 2)),
            metadata: Metadata::new(),
            rng: Rng::new(plan.seed, 3),
            observed: Vec::new(),
            counters: Counters::default(),
            history: Vec::new(),
            producers: Vec::new(),
            readers: Vec::new(),
            trace: Trace::default(),
            filter: None,
            held: Vec::new(),
            damaged: false,
            deaf: false,
            quiet: false,
            acks_at_rest: None,
            leader: nodes - 1,
            leaderless: 0,
            believers: vec![false; nodes],
            events: BinaryHeap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            numbered: 0,
            names: 0,
            plan,
        };
        world.found(nodes);
        world
    }

    /// The site is there, every node registered, every process up, nobody leads.
    fn found(&mut self, nodes: usize) {
        let shape = self.plan.shape;
        let mut replicas = Vec::new();
        for at in 0..nodes {
            let name = self.new_name();
            let mut image = Image::empty(name.clone(), u128::from(self.names));
            image.ident.boot = 1;
            let claim = BootClaim { boot: 1, nonce: self.rng.next(), ..BootClaim::default() };
            image.ident.nonces = vec![claim.nonce];
            let boot = self.metadata.register(&name, image.ident.disk_id, claim).expect("new");
            image.ident.node = Some(boot.node);
            self.ids.insert(boot.node, at);
            if at < shape.replicas {
                replicas.push(boot.node);
            }
            let mut node = Node {
                disk: Disk::new(image),
                process: None,
                life: 1,
                paused: 0,
                clock: 0,
                witness: at >= shape.data,
                lossy: false,
            };
            let mut process = Process::new(0, Duration::ZERO);
            process.registered(boot, &node.disk, node.witness);
            node.process = Some(process);
            self.nodes.push(node);
            self.schedule(1_000 * (at as u64 + 1), Event::Tick { node: at, life: 1 });
        }
        self.metadata.place(replicas, shape);
        self.believers[self.leader] = true;
        for client in 0..self.plan.producers {
            let partition = u32::try_from(client).unwrap_or(0) % PARTITIONS;
            let careless = self.rng.permille(150);
            self.producers.push(Producer::new(client, partition, careless));
            self.schedule(100_000, Event::Producer(client));
        }
        for reader in 0..self.plan.readers {
            let partition = u32::try_from(reader).unwrap_or(0) % PARTITIONS;
            self.readers.push(Reader { partition, next: Offset(0), target: 0 });
            self.schedule(100_000, Event::Reader(reader));
        }
        for (at, fault) in std::mem::take(&mut self.plan.faults) {
            self.schedule(at, Event::Fault(fault));
        }
    }

    /// Processes the next event. False if there is none.
    pub(crate) fn step(&mut self) -> bool {
        let Some(Reverse((at, _, slot))) = self.events.pop() else { return false };
        self.now = at;
        self.counters.steps += 1;
        self.observed.clear();
        let event = self.slots[slot].take();
        self.free.push(slot);
        let Some(event) = event else { return true };
        if let Some(node) = event.node() {
            let paused = self.nodes[node].paused;
            if paused > self.now {
                // The machine stands still: everything in it happens when it wakes up.
                self.schedule(paused - self.now, event);
                return true;
            }
        }
        self.trace.event(self.now, &event);
        self.handle(event);
        self.spring();
        true
    }

    pub(crate) fn schedule(&mut self, delay: u64, event: Event) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(event);
        self.numbered += 1;
        self.events.push(Reverse((self.now + delay, self.numbered, slot)));
    }

    /// Sends a message between replicas.
    pub(crate) fn send(&mut self, from: usize, envelope: Envelope<Entry>) {
        let Some(to) = self.ids.get(&envelope.to.node).copied() else { return };
        let fate = self.filter.as_mut().map_or(Fate::Pass, |filter| filter(from, to, &envelope));
        match fate {
            Fate::Drop => {}
            Fate::Hold => self.held.push((to, envelope)),
            Fate::Pass => {
                let copies = self.network.send(from, to);
                if let [_, Some(delay)] = copies {
                    self.schedule(delay, Event::Message(to, Box::new(envelope.clone())));
                }
                if let [Some(delay), _] = copies {
                    self.schedule(delay, Event::Message(to, Box::new(envelope)));
                }
            }
        }
    }

    /// Lets the messages go that were held back, in their order.
    pub(crate) fn release(&mut self) {
        for (to, envelope) in std::mem::take(&mut self.held) {
            self.schedule(1, Event::Message(to, Box::new(envelope)));
        }
    }

    /// No fault that was planned comes any more.
    pub(crate) fn forget_faults(&mut self) {
        self.plan.ambushes.clear();
        for slot in &mut self.slots {
            if matches!(slot, Some(Event::Fault(_) | Event::Ambush(..))) {
                // The slot stays taken until its time comes: the queue still names it.
                *slot = None;
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let now = Duration::from_micros(self.now);
        match event {
            Event::Tick { node, life } => {
                if self.nodes[node].life == life && self.nodes[node].process.is_some() {
                    self.schedule(TICK, Event::Tick { node, life });
                    self.tick(node);
                }
                self.look_after_leader();
            }
            Event::Message(to, envelope) => {
                self.drive(to, |replica, disk, out| {
                    replica.message(*envelope, now, &disk.durable, out);
                });
            }
            Event::Heartbeat { to, from, digest, hears } => {
                if let Some(process) = &mut self.nodes[to].process {
                    process.controller.heartbeat(from, &digest, now);
                    process.controller.reported(from, hears, now);
                }
            }
            Event::Committed { node, life } => {
                if self.nodes[node].life == life && self.nodes[node].process.is_some() {
                    self.committed(node);
                }
            }
            Event::Register { node, life, claim } => self.apply_register(node, life, claim),
            Event::Registered { node, life, result } => self.registered(node, life, result),
            Event::Propose(change) => {
                let before = self.metadata.newest().config.clone();
                let expected = expected(&change);
                // What does not fit any more is refused; the proposer learns of it by the metadata.
                let _ = self.metadata.change(change);
                let after = &self.metadata.newest().config;
                let changed = (&before.set, &before.pending) != (&after.set, &after.pending);
                self.counters.set_changes += u64::from(changed);
                if let Some(expected) = expected.filter(|_| after.version > before.version) {
                    let found = before.version;
                    self.observed.push(Observed::Applied { expected, found });
                }
                self.observed.push(Observed::Agreed);
            }
            Event::Learn { node, life, upto } => self.apply_metadata(node, life, upto),
            Event::Start { node } => self.start(node),
            Event::Fault(fault) => self.fault(fault),
            Event::Ambush(fault, there) => self.fault_at(fault, there),
            Event::Mend(mend) => self.mend(mend),
            Event::Producer(client) => self.producer(client),
            Event::Reader(client) => self.reader(client),
            Event::Publish { node, life, handle, partition, header, batch } => {
                if self.nodes[node].life == life {
                    self.publish(node, handle, partition, header, batch);
                }
            }
            Event::Answer { client, attempt, answer } => self.answered(client, attempt, answer),
            Event::Poll { client, node, from } => self.poll(client, node, from),
            Event::Unbelieve { node } => self.believers[node] = node == self.leader,
        }
    }

    /// Asks the site to take a process in.
    pub(crate) fn register(&mut self, at: usize) {
        if !self.reaches_metadata(at) {
            return;
        }
        let Node { disk, process, life, .. } = &self.nodes[at];
        let Some(process) = process else { return };
        let ident = &disk.durable.ident;
        let claim = BootClaim {
            boot: ident.boot,
            nonce: process.nonce,
            before: ident.nonces.clone(),
            suspect: ident.suspect,
            shards: vec![(super::metadata::SHARD, disk.durable.report())],
        };
        let life = *life;
        let delay = self.network.delay();
        self.schedule(delay, Event::Register { node: at, life, claim });
    }

    fn apply_register(&mut self, at: usize, life: u64, claim: BootClaim) {
        let ident = self.nodes[at].disk.durable.ident.clone();
        if self.nodes[at].life != life {
            return; // The connection ended with its process.
        }
        let before = self.metadata.newest().config.clone();
        let result = self.metadata.register(&ident.name, ident.disk_id, claim);
        let after = &self.metadata.newest().config;
        self.counters.set_changes += u64::from(before.set != after.set);
        self.observed.push(Observed::Agreed);
        if let Ok(boot) = result {
            self.nodes[at].lossy = false;
            if self.ids.insert(boot.node, at).is_none() {
                self.replace(at, boot.node);
            }
        }
        let delay = self.network.delay();
        self.schedule(delay, Event::Registered { node: at, life, result });
    }

    /// A machine came back as another node: an operator puts it in the place of the former one.
    fn replace(&mut self, at: usize, new: NodeId) {
        let shape = self.plan.shape;
        let old: Vec<NodeId> =
            self.ids.iter().filter(|(id, n)| **n == at && **id != new).map(|(id, _)| *id).collect();
        self.ids.retain(|id, _| !old.contains(id));
        let mut replicas = self.metadata.newest().config.replicas.clone();
        for replica in &mut replicas {
            if old.contains(replica) {
                *replica = new;
            }
        }
        self.metadata.place(replicas, shape);
    }

    fn registered(&mut self, at: usize, life: u64, result: Result<Boot, MetaReject>) {
        let node = &mut self.nodes[at];
        let Some(process) = node.process.as_mut().filter(|_| node.life == life) else { return };
        if process.boot.is_some() {
            return;
        }
        match result {
            Ok(boot) => {
                let ident = &mut node.disk.durable.ident;
                (ident.node, ident.suspect) = (Some(boot.node), false);
                ident.nonces = vec![process.nonce];
                process.registered(boot, &node.disk, node.witness);
                self.learn(at);
            }
            Err(MetaReject::StaleBoot { have, .. }) => {
                let ident = &mut node.disk.durable.ident;
                (ident.boot, ident.suspect) = (have + 1, true);
                process.nonce = self.rng.next();
                ident.nonces.push(process.nonce);
                self.register(at);
            }
            Err(other) => unreachable!("a registration is refused for its boot only: {other}"),
        }
    }

    /// Fetches newer metadata, if there is some and the group can be reached.
    pub(crate) fn learn(&mut self, at: usize) {
        let upto = self.metadata.newest().index;
        let reached = self.reaches_metadata(at);
        let life = self.nodes[at].life;
        let Some(process) = &mut self.nodes[at].process else { return };
        if process.boot.is_none() || process.learning || process.applied >= upto || !reached {
            return;
        }
        process.learning = true;
        let delay = self.network.delay();
        self.schedule(delay, Event::Learn { node: at, life, upto });
    }

    fn apply_metadata(&mut self, at: usize, life: u64, upto: u64) {
        let now = Duration::from_micros(self.now);
        if self.nodes[at].life != life {
            return;
        }
        while let Some(process) = self.nodes[at].process.as_mut() {
            if process.applied >= upto {
                process.learning = false;
                break;
            }
            process.applied += 1;
            let index = usize::try_from(process.applied).expect("a run is short");
            let agreed = Rc::clone(&self.metadata.agreed[index]);
            let before = &self.metadata.agreed[index - 1];
            // Its own registration comes first: a boot does not look at what was before it.
            let mine = process
                .boot
                .is_some_and(|boot| agreed.boots.get(&boot.node) >= Some(&boot.incarnation));
            if mine && (agreed.config != before.config || agreed.boots != before.boots) {
                self.drive(at, |replica, _, out| {
                    replica.configure(&agreed.config, &agreed.boots, now, out);
                });
            }
        }
        self.learn(at);
    }

    /// Whether a node and a majority of the voters hear each other.
    pub(crate) fn reaches_metadata(&self, at: usize) -> bool {
        let voters = self.nodes.len();
        let hears = |v: &usize| {
            self.nodes[*v].process.is_some()
                && self.nodes[*v].paused <= self.now
                && self.network.passes(at, *v)
                && self.network.passes(*v, at)
        };
        (0..voters).filter(hears).count() * 2 > voters
    }

    pub(crate) fn believes(&self, at: usize) -> bool {
        self.believers[at]
    }

    fn look_after_leader(&mut self) {
        let fit = |at: usize| self.nodes[at].process.is_some() && self.reaches_metadata(at);
        if fit(self.leader) {
            self.leaderless = self.now;
        } else if self.now > self.leaderless + 1_000_000
            && let Some(next) = (0..self.nodes.len()).find(|at| fit(*at))
        {
            self.depose(next, 2_000_000);
        }
    }

    /// Another node leads the metadata group; the former leader learns of it later.
    pub(crate) fn depose(&mut self, next: usize, believes: u64) {
        let old = std::mem::replace(&mut self.leader, next);
        self.schedule(believes, Event::Unbelieve { node: old });
        self.believers[next] = true;
        self.leaderless = self.now;
    }

    pub(crate) fn new_name(&mut self) -> String {
        self.names += 1;
        format!("n{}", self.names)
    }

    fn producer(&mut self, client: usize) {
        let now = self.now;
        let pace = self.rng.between(1_000, self.plan.pace.max(1_001));
        self.schedule(pace, Event::Producer(client));
        let producer = &mut self.producers[client];
        match &producer.open {
            None if self.quiet => return,
            None => producer.invoke(client, &mut self.rng, &mut self.history),
            Some(open) if open.until > now => return,
            Some(open) if open.attempt != 0 => {
                producer.timed_out();
                producer.target = self.rng.index(self.nodes.len());
            }
            Some(_) => {}
        }
        let value = producer.open.as_ref().and_then(|open| open.values.first().copied());
        let Some((attempt, header, batch)) = producer.attempt(client, now, &mut self.history)
        else {
            return;
        };
        let (node, partition) = (producer.target % self.nodes.len(), producer.partition);
        let handle = Handle { client, attempt, value: value.unwrap_or(0) };
        if self.rng.permille(self.network.links.lost) {
            return;
        }
        let delay = self.network.delay();
        let life = self.nodes[node].life;
        self.schedule(delay, Event::Publish { node, life, handle, partition, header, batch });
    }

    fn answered(&mut self, client: usize, attempt: u64, answer: Answer) {
        if let Answer::Refused(to) = answer {
            let any = self.rng.index(self.nodes.len());
            self.producers[client].target = to.unwrap_or(any);
        }
        let before = self.producers[client].open.is_some();
        let done = self.producers[client].answered(client, attempt, answer, &mut self.history);
        let acked = before && done && matches!(answer, Answer::Stored { .. });
        self.counters.acks += u64::from(acked);
        if acked && self.plan.renewed > 0 && self.rng.permille(self.plan.renewed) {
            self.producers[client].renew();
        }
        // Some producers do not try again what was refused.
        if matches!(answer, Answer::Refused(_)) && self.rng.permille(50) && !done {
            let open = self.producers[client].open.as_ref();
            if open.is_some_and(|open| open.attempt == 0) {
                self.producers[client].give_up(client, &mut self.history);
            }
        }
    }

    fn reader(&mut self, client: usize) {
        let pace = self.rng.between(10_000, 200_000);
        self.schedule(pace, Event::Reader(client));
        let Reader { next, target, .. } = self.readers[client];
        let delay = self.network.delay();
        self.schedule(delay, Event::Poll { client, node: target, from: next });
    }

    fn poll(&mut self, client: usize, node: usize, from: Offset) {
        let partition = self.readers[client].partition;
        let Some((got, end)) = self.read(node, partition, from) else {
            self.readers[client].target = self.rng.index(self.nodes.len());
            return;
        };
        if end < from {
            // This node knows less than the one before: wait for it, or ask another.
            self.readers[client].target = self.rng.index(self.nodes.len());
            return;
        }
        let reader = &mut self.readers[client];
        if let Some((last, _)) = got.last() {
            reader.next = reader.next.max(Offset(last.0 + 1));
            self.counters.reads += got.len() as u64;
        }
        self.history.push(ClientEvent::Poll { client, node, partition, from, got, end });
    }
}

/// The version that a change names.
fn expected(change: &ShardChange) -> Option<u64> {
    match change {
        ShardChange::Elect { expect_version, .. }
        | ShardChange::AddPending { expect_version, .. }
        | ShardChange::ConfirmAdd { expect_version, .. }
        | ShardChange::Remove { expect_version, .. }
        | ShardChange::Leave { expect_version, .. }
        | ShardChange::Recover { expect_version, .. } => Some(*expect_version),
        ShardChange::Floor { .. } | ShardChange::Place { .. } => None,
    }
}
