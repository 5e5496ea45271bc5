//! The site around the nodes: metadata, network, clients, and the power.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use dunlin::{
    broker::{PublishInput, Reject, Waiter},
    limits::FENCE_AFTER,
    replication::{
        Boots, Controller, Envelope, LogEnd, ShardChange, ShardConfig, ShardDigest, ShardReport,
    },
    types::{Acks, Boot, Epoch, Incarnation, Lsn, NodeId, Offset, ProducerId, Sequence},
    wire::{Ack, BatchBuilder, BatchHeader, Compression, Entry, Record},
};

use super::node::{Found, Node, Out, PARTITIONS, SHARD, Work, formatted, partition};
use crate::crash::{disk::Image, rng::Rng};

pub(super) const NODES: usize = 3;
/// Steps with faults, and at most as many to come to rest afterwards.
const STEPS: u64 = 6_000;
const REST_MAX: u64 = 30_000;
const STEP: Duration = Duration::from_millis(5);
/// Steps between two ticks of a node: 150 ms.
const TICK: u64 = 30;
/// A producer sends again after so many steps.
const PATIENCE: u64 = 200;
/// More messages than these are not under way: the oldest are lost.
const MESSAGES_MAX: usize = 300;

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) cuts_of_all: u64,
    pub(super) cuts_of_one: u64,
    pub(super) cuts_at_open: u64,
    pub(super) wiped: u64,
    pub(super) truncations: u64,
    pub(super) installs: u64,
    pub(super) elections: u64,
    pub(super) acks: u64,
    pub(super) records: u64,
}

/// A machine.
pub(super) enum Machine {
    On(Box<Node>),
    /// Off until this step, with this on its disk; it may be another disk than before.
    Off {
        until: u64,
        image: Image,
        suspect: bool,
    },
}

pub(super) struct Producer {
    pub(super) id: ProducerId,
    sequence: u64,
    /// The batch that is not acked yet: its records and bytes.
    open: Option<(Vec<Bytes>, BytesMut)>,
    sent: u64,
    target: usize,
    attempt: u64,
}

/// A batch that was acked.
pub(super) struct Acked {
    pub(super) partition: u32,
    pub(super) base: Offset,
    pub(super) values: Vec<Bytes>,
}

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) machines: Vec<Machine>,
    pub(super) config: ShardConfig,
    boots: Boots,
    /// What the site agreed on, in order, and how much of it each node knows.
    agreed: Vec<(ShardConfig, Boots)>,
    known: [usize; NODES],
    controller: Controller,
    messages: VecDeque<Envelope<Entry>>,
    producers: Vec<Producer>,
    pub(super) acked: Vec<Acked>,
    /// The chain value of each entry that was durable anywhere.
    chains: BTreeMap<(Lsn, Epoch), u64>,
    committed: BTreeMap<Lsn, LogEnd>,
    pub(super) counters: Counters,
    step: u64,
    faults: bool,
    values: u64,
    hasty: bool,
}

impl Counters {
    pub(super) fn add(&mut self, other: &Self) {
        self.cuts_of_all += other.cuts_of_all;
        self.cuts_of_one += other.cuts_of_one;
        self.cuts_at_open += other.cuts_at_open;
        self.wiped += other.wiped;
        self.truncations += other.truncations;
        self.installs += other.installs;
        self.elections += other.elections;
        self.acks += other.acks;
        self.records += other.records;
    }
}

impl World {
    pub(super) fn new(seed: u64, hasty: bool) -> Self {
        let nodes: Vec<NodeId> = (1..=NODES as u64).map(NodeId).collect();
        let mut config = ShardConfig::new(2);
        config.found(nodes[0]);
        (config.set, config.replicas) = (nodes.clone(), nodes);
        let image = formatted();
        let off = || Machine::Off { until: 0, image: image.clone(), suspect: false };
        let producer = |n: u64| Producer {
            id: ProducerId(u128::from(seed) << 8 | u128::from(n + 1)),
            sequence: 0,
            open: None,
            sent: 0,
            target: 0,
            attempt: 0,
        };
        Self {
            rng: Rng(seed),
            machines: (0..NODES).map(|_| off()).collect(),
            config,
            boots: Boots::new(),
            agreed: Vec::new(),
            known: [0; NODES],
            controller: Controller::new(FENCE_AFTER, Duration::ZERO),
            messages: VecDeque::new(),
            producers: (0..u64::from(PARTITIONS)).map(producer).collect(),
            acked: Vec::new(),
            chains: BTreeMap::new(),
            committed: BTreeMap::new(),
            counters: Counters::default(),
            step: 0,
            faults: true,
            values: 0,
            hasty,
        }
    }

    fn now(&self) -> Duration {
        STEP * u32::try_from(self.step).expect("a short run")
    }

    /// Works, with faults.
    pub(super) fn run(&mut self) {
        for _ in 0..STEPS {
            self.step();
            if self.rng.one_in(90) {
                self.fault();
            }
        }
    }

    /// Everything runs, nothing fails: all nodes must come to have the same, and all of it committed.
    pub(super) fn settle(&mut self) {
        self.faults = false;
        for _ in 0..REST_MAX {
            self.step();
            if self.is_at_rest() {
                return;
            }
        }
        let nodes = self.machines.iter().filter_map(Machine::node);
        for node in nodes {
            println!("{}", node.look());
        }
        panic!("it does not come to rest: {:?}", self.config);
    }

    fn is_at_rest(&self) -> bool {
        let nodes = self.machines.iter().filter_map(Machine::node);
        let ends = nodes.map(|node| {
            let log = node.replica.log()?;
            let whole = log.high_watermark() == log.end().lsn && log.is_settled();
            (whole && node.applied.committed() == log.end().lsn).then(|| log.end())
        });
        let ends: Vec<_> = ends.collect();
        self.config.set.len() == NODES
            && ends.len() == NODES
            && ends[0].is_some()
            && ends.iter().all(|end| *end == ends[0])
            && self.producers.iter().all(|producer| producer.open.is_none())
    }

    fn step(&mut self) {
        self.step += 1;
        for at in 0..NODES {
            self.start(at);
            if (self.step + at as u64).is_multiple_of(TICK) {
                self.tick(at);
            }
            if self.rng.flip() {
                self.learn(at);
            }
        }
        for _ in 0..self.rng.below(6) {
            self.deliver();
        }
        let at = self.rng.below(NODES);
        let wants = self.machines[at].node().is_some_and(Node::wants_checkpoint);
        let work = match self.rng.below(300) {
            0 => Work::Checkpoint,
            1 => Work::Collect,
            _ if wants => Work::Checkpoint,
            2..180 => Work::Commit,
            _ => Work::Nothing,
        };
        self.work(at, work, false);
        if self.rng.one_in(3) {
            self.publish();
        }
        if self.rng.one_in(200) {
            self.trim();
        }
    }

    /// The power goes, of one node or of all, in the middle of whatever they do.
    fn fault(&mut self) {
        let all = self.rng.flip();
        let victim = self.rng.below(NODES);
        let mut cut = 0;
        for at in 0..NODES {
            if all || at == victim {
                let work = [Work::Commit, Work::Checkpoint, Work::Collect, Work::Nothing];
                let work = work[[0, 0, 0, 1, 2, 3][self.rng.below(6)]];
                cut += u64::from(self.machines[at].node().is_some());
                self.work(at, work, true);
            }
        }
        if all {
            self.counters.cuts_of_all += u64::from(cut > 0);
            self.messages.clear();
            return;
        }
        self.counters.cuts_of_one += u64::from(cut > 0);
        // Another disk in its place: the site knows, and does without the node until it has all again.
        let spare = self.config.set.len() == NODES || !self.config.set.contains(&id(victim));
        // Two at a time are more than the site promises to survive.
        let lost = |machine: &Machine| matches!(machine, Machine::Off { suspect: true, .. });
        if spare && !self.machines.iter().any(lost) && self.rng.one_in(3) {
            self.counters.wiped += 1;
            let (until, image) = (self.step + self.rng.next() % 300, formatted());
            self.machines[victim] = Machine::Off { until, image, suspect: true };
        }
    }

    fn start(&mut self, at: usize) {
        let Machine::Off { until, image, suspect } = &mut self.machines[at] else { return };
        if *until > self.step {
            return;
        }
        let cut = (self.faults && self.rng.one_in(8)).then_some(&mut self.rng);
        let found = match Found::open(std::mem::take(image), cut) {
            Err(error) => panic!("node {} does not start after a power cut: {error}", at + 1),
            Ok(Err(left)) => {
                self.counters.cuts_at_open += 1;
                *image = left;
                return;
            }
            Ok(Ok(found)) => found,
        };
        let (suspect, report): (bool, ShardReport) = (*suspect, found.report());
        let incarnation = self.boots.entry(id(at)).or_default();
        *incarnation = Incarnation(incarnation.0 + 1);
        let boot = Boot { node: id(at), incarnation: *incarnation };
        let before = self.config.set.len();
        self.config.registered(id(at), suspect, Some(&report));
        assert!(suspect || self.config.set.len() == before, "node {} has lost data", at + 1);
        assert!(!self.config.stalled);
        let node = Node::begin(found, boot, self.now(), self.hasty);
        self.machines[at] = Machine::On(Box::new(node));
        self.agree();
        // A boot does not look at what was before it.
        self.known[at] = self.agreed.len() - 1;
    }

    fn agree(&mut self) {
        self.agreed.push((self.config.clone(), self.boots.clone()));
    }

    fn learn(&mut self, at: usize) {
        while self.known[at] < self.agreed.len() && self.machines[at].node().is_some() {
            let (config, boots) = self.agreed[self.known[at]].clone();
            self.known[at] += 1;
            self.drive(at, |replica, _, now, effects| {
                replica.configure(&config, &boots, now, effects);
            });
        }
    }

    fn tick(&mut self, at: usize) {
        let now = self.now();
        self.drive(at, |replica, view, now, effects| replica.tick(now, view, effects));
        if let Some(node) = self.machines[at].node() {
            let digest = node.digest().map(|end| ShardDigest { shard: SHARD, end });
            self.controller.heartbeat(node.boot, digest.as_slice(), now);
        }
        let shards = [(SHARD, &self.config)];
        for command in self.controller.tick(now, shards.into_iter(), &self.boots) {
            self.propose(command.change);
        }
    }

    fn propose(&mut self, change: ShardChange) {
        let epoch = self.config.epoch;
        if self.config.apply(change, &self.boots).is_ok() {
            self.counters.elections += u64::from(self.config.epoch > epoch);
            self.agree();
        }
    }

    fn deliver(&mut self) {
        if self.messages.is_empty() {
            return;
        }
        // Most come in their order.
        let far = if self.rng.one_in(6) { self.messages.len() } else { 1 };
        let at = self.rng.below(far);
        let Some(envelope) = self.messages.remove(at) else { return };
        if self.rng.one_in(30) {
            return;
        }
        if self.rng.one_in(30) {
            self.messages.push_back(envelope.clone());
        }
        let to = usize::try_from(envelope.to.node.0 - 1).expect("one of three");
        self.drive(to, |replica, view, now, effects| {
            replica.message(envelope, now, view, effects);
        });
    }

    fn drive(
        &mut self,
        at: usize,
        act: impl FnOnce(
            &mut dunlin::broker::Replica<u64>,
            &super::node::View<'_>,
            Duration,
            &mut Vec<dunlin::broker::Effect<u64>>,
        ),
    ) {
        let (now, mut out) = (self.now(), Vec::new());
        let Some(node) = self.machines[at].node_mut() else { return };
        node.drive(now, &mut out, |replica, view, effects| act(replica, view, now, effects));
        self.take(at, out);
    }

    fn work(&mut self, at: usize, work: Work, cut: bool) {
        let (now, mut out) = (self.now(), Vec::new());
        let Machine::On(node) = &mut self.machines[at] else { return };
        if let Some(image) = node.work(work, now, &mut self.rng, cut, &mut out) {
            let until = self.step + self.rng.next() % 300;
            self.machines[at] = Machine::Off { until, image, suspect: false };
        }
        self.take(at, out);
    }

    fn take(&mut self, at: usize, out: Vec<Out>) {
        for out in out {
            match out {
                Out::Send(envelope) => {
                    self.messages.push_back(envelope);
                    if self.messages.len() > MESSAGES_MAX {
                        self.messages.pop_front();
                    }
                }
                Out::Propose(change) => self.propose(change),
                Out::Ack(attempt, ack) => self.ack(attempt, ack),
                Out::Refuse(attempt, reject) => self.refused(attempt, &reject),
                Out::Truncated => self.counters.truncations += 1,
                Out::Installed => self.counters.installs += 1,
                Out::Durable(end) => {
                    let chain = *self.chains.entry((end.lsn, end.epoch)).or_insert(end.chain);
                    assert_eq!(chain, end.chain, "equal ends, other content: {end:?}");
                }
                Out::Committed(end) => {
                    let first = *self.committed.entry(end.lsn).or_insert(end);
                    assert_eq!(first, end, "node {} has something else committed", at + 1);
                }
                Out::Failed(why) => panic!("node {}: {why}", at + 1),
            }
        }
    }

    fn publish(&mut self) {
        let index = self.rng.below(self.producers.len());
        let step = self.step;
        let producer = &mut self.producers[index];
        match &producer.open {
            Some(_) if producer.sent + PATIENCE > step => return,
            // Nothing new is begun at the end.
            None if !self.faults => return,
            Some(_) => producer.target = self.rng.below(NODES),
            None => {
                let size = [8, 200, 4_000][self.rng.below(3)];
                let mut builder = BatchBuilder::new(64 << 10);
                let mut values = Vec::new();
                for _ in 0..1 + self.rng.below(3) {
                    self.values += 1;
                    let mut value = self.values.to_be_bytes().to_vec();
                    value
                        .resize_with(8 + self.rng.below(size), || self.rng.next().to_be_bytes()[7]);
                    builder.push(&Record::new(value.clone())).expect("within limits");
                    values.push(Bytes::from(value));
                }
                let sequence = Sequence(producer.sequence);
                let batch = builder.finish(Compression::None, producer.id, sequence);
                producer.open = Some((values, BytesMut::from(&batch[..])));
            }
        }
        let Some((_, batch)) = producer.open.clone() else { return };
        producer.sent = step;
        producer.attempt = (step << 8) | index as u64;
        let (target, handle) = (producer.target, producer.attempt);
        let partition = partition(u32::try_from(index).expect("small"));
        let header = BatchHeader::decode(&batch).expect("our own batch");
        let Some(time) = self.machines[target].node().map(Node::wall) else { return };
        self.drive(target, |replica, _, _, effects| {
            let waiter = Waiter { handle, index: 0 };
            let acks = Acks::Replicated;
            let input = PublishInput { waiter, partition, acks, require_copies: 0, header, batch };
            replica.publish(input, time, effects);
        });
    }

    fn ack(&mut self, attempt: u64, ack: Ack) {
        let index = usize::try_from(attempt & 0xff).expect("small");
        let producer = &mut self.producers[index];
        if producer.attempt != attempt {
            return;
        }
        let Some((values, _)) = producer.open.take() else { return };
        producer.sequence += 1;
        self.counters.acks += 1;
        self.acked.push(Acked { partition: ack.partition, base: ack.base_offset, values });
    }

    fn refused(&mut self, attempt: u64, reject: &Reject) {
        let index = usize::try_from(attempt & 0xff).expect("small");
        let producer = &mut self.producers[index];
        if producer.attempt != attempt {
            return;
        }
        match reject {
            Reject::NotPrimary { node } => {
                // Asks again soon, the one that is named.
                producer.sent = (self.step + 20).saturating_sub(PATIENCE);
                if let Some(node) = node {
                    producer.target = usize::try_from(node.0 - 1).expect("one of three");
                }
            }
            Reject::NotEnoughCopies(_) | Reject::UnknownPartition(_) => {}
            reject => panic!("a producer that did nothing wrong: {reject}"),
        }
    }

    fn trim(&mut self) {
        let index = u32::try_from(self.rng.below(self.producers.len())).expect("small");
        let keep = self.rng.next() % 20;
        for at in 0..NODES {
            self.drive(at, |replica, _, _, effects| {
                replica.with_shard(effects, |shard, effects| {
                    let end = shard.view(partition(index)).map_or(0, |view| view.end.0);
                    shard.trim(partition(index), Offset(end.saturating_sub(keep)), effects);
                });
            });
        }
    }
}

impl Machine {
    pub(super) fn node(&self) -> Option<&Node> {
        match self {
            Self::On(node) => Some(node),
            Self::Off { .. } => None,
        }
    }

    fn node_mut(&mut self) -> Option<&mut Node> {
        match self {
            Self::On(node) => Some(node),
            Self::Off { .. } => None,
        }
    }
}

fn id(at: usize) -> NodeId {
    NodeId(at as u64 + 1)
}
