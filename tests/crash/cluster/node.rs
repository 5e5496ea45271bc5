//! One node: replica, applied state and store, on a disk of its own, joined as the server joins them.

use std::{collections::VecDeque, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dunlin::{
    broker::{Applied, Effect, Recovery, Reject, Replica},
    limits::FENCE_AFTER,
    replication::{
        self, Append, Body, Chunk, Envelope, EpochHistory, LogChange, LogEnd, LogEntry, LogView,
        ShardChange, ShardReport, StateRow, Stored,
    },
    storage::{
        Change, LogPoint, Options, Recovered, RecoveredShard, STATE_PARTITION, ShardCheckpoint,
        Snapshot, Store, StoreError, Writer,
    },
    types::{Boot, Lsn, Offset, PartitionId, ProducerId, ShardId, Timestamp, TopicId},
    wire::{Ack, Entry},
};

use crate::crash::{
    disk::{Disk, Honesty, Image, Platter, Survival},
    rng::Rng,
};

pub(super) const SHARD: ShardId = ShardId(0);
pub(super) const PARTITIONS: u32 = 2;
const OPTIONS: Options =
    Options { cache_bytes: 1 << 20, shards: 1, disk_id: 0x77, journal_len: 96 << 10 };
/// The wall clock at the start of a run.
const WALL: u64 = 1_700_000_000_000;
/// Bytes of entries in one message.
const MESSAGE_BYTES: usize = 16 << 10;
const STATE_PRODUCER: u8 = 1;

/// What a node tells the world.
pub(super) enum Out {
    Send(Envelope<Entry>),
    Propose(ShardChange),
    Ack(u64, Ack),
    /// Not stored by this attempt.
    Refuse(u64, Reject),
    /// The log is committed up to this end.
    Committed(LogEnd),
    Truncated,
    Installed,
    /// An entry is durable.
    Durable(LogEnd),
    Failed(String),
}

enum Op {
    Append(Entry),
    Change(Change),
}

/// What a node writes at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// What waits, or the first part of it.
    Commit,
    Checkpoint,
    /// Frees what was trimmed.
    Collect,
    Nothing,
}

/// A store that is open, on a disk whose power can be cut.
pub(super) struct Found {
    disk: Disk,
    platter: Platter,
    store: Store,
    writer: Writer,
    recovered: Recovered,
}

pub(super) struct Node {
    pub(super) boot: Boot,
    pub(super) replica: Replica<u64>,
    pub(super) applied: Applied,
    pub(super) store: Store,
    writer: Writer,
    disk: Disk,
    platter: Platter,
    installing: Option<Vec<(u8, Bytes, Bytes)>>,
    /// Entries of this boot, durable or not.
    recent: Vec<Entry>,
    queue: VecDeque<Op>,
    queued: u64,
    snapshot: Option<Snapshot>,
    wants_checkpoint: bool,
    /// The control: it does not wait for the disk.
    hasty: bool,
    now: Duration,
}

/// The log as the replica may look at it.
pub(super) struct View<'a> {
    store: &'a Store,
    recent: &'a [Entry],
}

pub(super) fn partition(index: u32) -> PartitionId {
    PartitionId { topic: TopicId(1), index }
}

fn log_end(point: LogPoint) -> LogEnd {
    LogEnd { lsn: point.lsn, epoch: point.epoch, chain: point.chain }
}

impl LogView for View<'_> {
    fn end_at(&self, lsn: Lsn) -> Option<LogEnd> {
        if lsn == Lsn(0) {
            return Some(LogEnd::default());
        }
        let first = self.recent.first().map(|entry| entry.header.lsn);
        let at = first.and_then(|first| lsn.0.checked_sub(first.0 + 1));
        let recent = at.and_then(|at| self.recent.get(usize::try_from(at).ok()?));
        recent.map(LogEntry::end).or_else(|| {
            self.store.log_point(SHARD, lsn).expect("a log that can be read").map(log_end)
        })
    }
}

impl View<'_> {
    fn read(&self, from: Lsn, until: Lsn) -> Vec<Entry> {
        let wanted = |entry: &&Entry| (from..until).contains(&entry.header.lsn);
        match self.recent.first() {
            Some(first) if first.header.lsn <= from => {
                self.recent.iter().filter(wanted).take(30).cloned().collect()
            }
            _ => self.store.read_log(SHARD, from, until, MESSAGE_BYTES).unwrap_or_default(),
        }
    }
}

/// An empty store on a disk: how a store is made is tried elsewhere.
pub(super) fn formatted() -> Image {
    let disk = Disk::default();
    let (_, writer, _) =
        Store::open_backend(disk.clone(), disk.journal(), OPTIONS).expect("a good disk");
    drop(writer);
    disk.image()
}

impl Found {
    /// Opens what is on a disk. With `cut` the power goes in the middle of it, and there is an image instead.
    pub(super) fn open(
        image: Image,
        cut: Option<&mut Rng>,
    ) -> Result<Result<Self, Image>, StoreError> {
        let mut platter = Platter::new(image.clone(), Honesty::Honest);
        let disk = Disk::holding(image);
        let (store, writer, recovered) =
            Store::open_backend(disk.clone(), disk.journal(), OPTIONS)?;
        if let Some(image) = pass(&disk, &mut platter, cut) {
            return Ok(Err(image));
        }
        Ok(Ok(Self { disk, platter, store, writer, recovered }))
    }

    /// What the site is told at the registration.
    pub(super) fn report(&self) -> ShardReport {
        let stored = stored(&self.recovered.shards[0]);
        ShardReport { end: stored.end, installing: stored.installing }
    }
}

/// What was written since the last call reaches the disk; with `cut` the power goes at one of these I/Os.
fn pass(disk: &Disk, platter: &mut Platter, cut: Option<&mut Rng>) -> Option<Image> {
    let trace = disk.drain();
    let Some(rng) = cut else {
        trace.iter().for_each(|io| platter.step(io));
        return None;
    };
    let at = rng.below(trace.len() + 1);
    trace[..at].iter().for_each(|io| platter.step(io));
    let seed = rng.next();
    let survival = match rng.below(5) {
        0 => Survival::None,
        1 => Survival::All,
        2 => Survival::Sectors(seed),
        3 => Survival::Prefix(seed),
        _ => Survival::Torn(seed),
    };
    Some(platter.cut(trace.get(at), survival))
}

fn stored(found: &RecoveredShard) -> Stored {
    Stored {
        promised: found.promised,
        history: EpochHistory::new(found.epochs.iter().copied()),
        start: found.start,
        end: LogEnd { lsn: found.end, epoch: found.last_epoch, chain: found.chain },
        high_watermark: found.high_watermark,
        installing: found.installing,
    }
}

fn recovery(
    state: Vec<(u8, Bytes, Bytes)>,
    tail: Vec<Entry>,
    partitions: Vec<(PartitionId, Offset, Offset, Timestamp)>,
) -> Recovery {
    let mut recovery = Recovery { partitions, tail, ..Recovery::default() };
    for (kind, mut key, value) in state {
        assert_eq!(kind, STATE_PRODUCER);
        let id = PartitionId { topic: key.get_u64().into(), index: key.get_u32() };
        let producer = ProducerId(key.get_u128());
        recovery.add_producer(id, producer, &value).expect("our own state");
    }
    recovery
}

fn handed(checkpoint: dunlin::broker::Checkpoint) -> ShardCheckpoint {
    let key = |partition: PartitionId, producer: ProducerId| {
        let mut key = BytesMut::new();
        key.put_u64(partition.topic.0);
        key.put_u32(partition.index);
        key.put_u128(producer.0);
        key.freeze()
    };
    let put = checkpoint.put.into_iter().map(|(p, id, v)| (STATE_PRODUCER, key(p, id), v));
    let delete = checkpoint.delete.into_iter().map(|(p, id)| (STATE_PRODUCER, key(p, id)));
    ShardCheckpoint {
        shard: SHARD,
        applied: checkpoint.applied,
        put: put.collect(),
        delete: delete.collect(),
    }
}

impl Node {
    /// A process begins with what the disk holds, in a boot that is registered.
    pub(super) fn begin(found: Found, boot: Boot, now: Duration, hasty: bool) -> Self {
        let Found { disk, platter, store, writer, mut recovered } = found;
        let shard = recovered.shards.remove(0);
        let stored = stored(&shard);
        let bounds = recovered.partitions.iter();
        let bounds =
            bounds.map(|p| (p.id, p.applied_start, p.bounds.end, p.bounds.last_time)).collect();
        let found = recovery(shard.state, shard.tail, bounds);
        let applied = Applied::new(found, stored.high_watermark).expect("our own entries");
        Self {
            boot,
            replica: Replica::new(SHARD, boot, stored, FENCE_AFTER),
            applied,
            store,
            writer,
            disk,
            platter,
            installing: None,
            recent: Vec::new(),
            queue: VecDeque::new(),
            queued: 0,
            snapshot: None,
            wants_checkpoint: false,
            hasty,
            now,
        }
    }

    pub(super) fn wall(&self) -> Timestamp {
        Timestamp(WALL + u64::try_from(self.now.as_millis()).expect("a short run"))
    }

    /// The durable end of the log.
    pub(super) fn digest(&self) -> Option<LogEnd> {
        let log = self.replica.log().filter(|log| !log.is_installing())?;
        View { store: &self.store, recent: &self.recent }.end_at(log.durable_end())
    }

    /// Gives an input to the replica, and performs what it asks for.
    pub(super) fn drive(
        &mut self,
        now: Duration,
        out: &mut Vec<Out>,
        act: impl FnOnce(&mut Replica<u64>, &View<'_>, &mut Vec<Effect<u64>>),
    ) {
        self.now = now;
        let mut effects = Vec::new();
        let Self { replica, store, recent, .. } = self;
        let view = View { store, recent };
        act(replica, &view, &mut effects);
        self.perform(effects, out);
        if self.hasty {
            let (queued, mut effects) = (self.queued, Vec::new());
            self.replica.written(queued, &mut effects);
            self.perform(effects, out);
        }
    }

    /// Does work on the disk. With `cut` the power goes in the middle, and what the disk holds then is given back.
    pub(super) fn work(
        &mut self,
        work: Work,
        now: Duration,
        rng: &mut Rng,
        cut: bool,
        out: &mut Vec<Out>,
    ) -> Option<Image> {
        let mut told = Vec::new();
        let done = match work {
            Work::Commit => self.commit(rng, &mut told),
            Work::Checkpoint => self.checkpoint().map(|()| 0),
            Work::Collect => self.collect(rng).map(|()| 0),
            Work::Nothing => Ok(0),
        };
        let image = pass(&self.disk, &mut self.platter, cut.then_some(rng));
        if image.is_some() {
            return image;
        }
        out.extend(told);
        match done {
            Err(error) => out.push(Out::Failed(error.to_string())),
            Ok(0) => {}
            Ok(done) if !self.hasty => {
                self.drive(now, out, |replica, _, effects| replica.written(done, effects));
            }
            Ok(_) => {}
        }
        None
    }

    fn commit(&mut self, rng: &mut Rng, told: &mut Vec<Out>) -> Result<u64, StoreError> {
        if self.queue.is_empty() {
            return Ok(0);
        }
        let count = if rng.flip() { self.queue.len() } else { 1 + rng.below(self.queue.len()) };
        let (mut entries, mut changes) = (Vec::new(), Vec::new());
        for op in self.queue.drain(..count) {
            match op {
                Op::Append(entry) => {
                    told.push(Out::Durable(LogEntry::end(&entry)));
                    entries.push(entry);
                }
                Op::Change(change) => {
                    match &change {
                        Change::Truncate(end) if *end < self.store.log_end(SHARD) => {
                            told.push(Out::Truncated);
                        }
                        Change::InstallEnd { .. } => told.push(Out::Installed),
                        _ => {}
                    }
                    changes.push((entries.len(), SHARD, change));
                }
            }
        }
        let done = self.writer.perform(&entries, changes)?;
        Ok(done.first().map_or(0, |(_, count)| *count))
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        self.wants_checkpoint = false;
        let handed = match self.installing {
            None => vec![handed(self.applied.checkpoint())],
            Some(_) => Vec::new(),
        };
        self.writer.checkpoint(handed)
    }

    fn collect(&mut self, rng: &mut Rng) -> Result<(), StoreError> {
        self.writer.begin_pass();
        for _ in 0..1 + rng.below(4) {
            if !self.writer.collect_garbage(1 << 20)? {
                break;
            }
        }
        for (_, start) in self.writer.take_starts() {
            self.replica.log_starts_at(start);
        }
        Ok(())
    }

    pub(super) fn wants_checkpoint(&self) -> bool {
        self.wants_checkpoint || self.writer.checkpoint_due()
    }

    fn push(&mut self, op: Op) {
        self.queue.push_back(op);
        self.queued += 1;
    }

    fn perform(&mut self, effects: Vec<Effect<u64>>, out: &mut Vec<Out>) {
        let mut effects = VecDeque::from(effects);
        let mut begins = false;
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Append(entry) | Effect::Replication(replication::Effect::Append(entry)) => {
                    self.applied.append(&entry);
                    self.recent.push(entry.clone());
                    self.push(Op::Append(entry));
                }
                Effect::Ack(handle, ack) => out.push(Out::Ack(handle, ack)),
                Effect::Refuse(waiter, reject) => out.push(Out::Refuse(waiter.handle, reject)),
                Effect::Unknown(_) | Effect::Committed(_) | Effect::Dropped(_) => {}
                Effect::Replication(replication::Effect::Recover(epoch)) => {
                    let found = self.applied.recovery().expect("our own entries");
                    let (wall, mut more) = (self.wall(), Vec::new());
                    let led = self.replica.recovered(epoch, found, wall, self.now, &mut more);
                    led.expect("our own entries");
                    begins = true;
                    effects.extend(more);
                }
                Effect::Replication(effect) => self.replicate(effect, out),
            }
        }
        self.apply(out);
        if begins {
            let mut more = Vec::new();
            self.replica.with_shard(&mut more, |shard, more| {
                (0..PARTITIONS).for_each(|index| shard.create(partition(index), b"topic", more));
            });
            self.perform(more, out);
        }
    }

    fn replicate(&mut self, effect: replication::Effect<Entry>, out: &mut Vec<Out>) {
        use replication::Effect as Asked;
        let from = self.boot;
        let send = |to, epoch, body| Out::Send(Envelope { shard: SHARD, epoch, from, to, body });
        let view = View { store: &self.store, recent: &self.recent };
        match effect {
            Asked::Append(_) | Asked::Recover(_) => unreachable!("performed above"),
            Asked::Change(change) => self.change(change),
            Asked::Committed(lsn) => {
                self.writer.note_committed(SHARD, lsn);
                out.extend(view.end_at(lsn).map(Out::Committed));
            }
            Asked::Send { to, epoch, body } => out.push(send(to, epoch, body)),
            Asked::Replicate { to, epoch, from: mut first, until, high_watermark } => loop {
                let Some(prev) = view.end_at(first) else { return };
                let entries = view.read(first, until);
                let next = entries.last().map_or(until, |entry| entry.header.lsn.next());
                out.push(send(to, epoch, Body::Append(Append { prev, entries, high_watermark })));
                first = next;
                if first >= until {
                    return;
                }
            },
            Asked::Snapshot { to, least } => {
                let fits = |snapshot: &Snapshot| snapshot.base().lsn >= least;
                if !self.snapshot.as_ref().is_some_and(fits) {
                    self.snapshot = self.store.snapshot(SHARD).expect("a good disk").filter(fits);
                }
                let Some(snapshot) = &self.snapshot else {
                    self.wants_checkpoint = true;
                    return;
                };
                let (base, chunks, mut more) =
                    (log_end(snapshot.base()), snapshot.chunks(), Vec::new());
                self.replica.snapshot(to, base, chunks, &mut more);
                self.perform(more, out);
            }
            Asked::SendChunk { to, epoch, base, number, index } => {
                let held = self.snapshot.as_ref().filter(|held| log_end(held.base()) == base);
                let Some(Ok(change)) = held.map(|snapshot| snapshot.chunk(index)) else {
                    self.snapshot = None;
                    return;
                };
                let Change::InstallChunk { entries, state } = change else { unreachable!() };
                let state = state.into_iter().map(|(kind, key, value)| StateRow {
                    kind,
                    key: key.into(),
                    value: value.into(),
                });
                let chunk = Chunk { entries, state: state.collect() };
                out.push(send(to, epoch, Body::InstallChunk { number, index, chunk }));
            }
            Asked::Propose(change) => out.push(Out::Propose(change)),
            Asked::Superseded => out.push(Out::Failed("superseded".to_owned())),
            Asked::Alarm(alarm) => out.push(Out::Failed(format!("{alarm:?}"))),
        }
    }

    fn change(&mut self, change: LogChange<Entry>) {
        let point = |e: LogEnd| LogPoint { lsn: e.lsn, epoch: e.epoch, chain: e.chain };
        let change = match change {
            LogChange::Promise(epoch) => Change::Promise(epoch),
            LogChange::Truncate(end) => {
                self.applied.truncate(end);
                self.recent.retain(|entry| entry.header.lsn < end);
                Change::Truncate(end)
            }
            LogChange::InstallBegin(base) => {
                self.recent.clear();
                self.applied = Applied::default();
                self.installing = Some(Vec::new());
                Change::InstallBegin { base: point(base) }
            }
            LogChange::Forget => unreachable!("no operator is here"),
            LogChange::InstallChunk(chunk) => {
                let rows = chunk.state.into_iter();
                let state: Vec<(u8, Bytes, Bytes)> =
                    rows.map(|row| (row.kind, row.key.into(), row.value.into())).collect();
                let kept = state.iter().filter(|row| row.0 != STATE_PARTITION).cloned();
                self.installing.get_or_insert_default().extend(kept);
                Change::InstallChunk { entries: chunk.entries, state }
            }
            LogChange::InstallEnd { base, history } => {
                Change::InstallEnd { base: point(base), epochs: history.starts().collect() }
            }
        };
        self.push(Op::Change(change));
    }

    /// What it knows, for whoever looks for the reason of a failure.
    pub(super) fn look(&self) -> String {
        let (start, end) = (self.store.log_start(SHARD), self.store.log_end(SHARD));
        let applied = self.applied.committed();
        format!("store {start} to {end}, applied {applied}, {:?}", self.replica)
    }

    /// What is committed, and durable here, takes effect.
    fn apply(&mut self, out: &mut Vec<Out>) {
        let Some(log) = self.replica.log() else { return };
        if self.installing.is_some() && !log.is_installing() && log.is_settled() {
            let bounds = self.store.partitions_of(SHARD).into_iter();
            let bounds = bounds.map(|(id, b)| (id, b.start, b.end, b.last_time)).collect();
            let state = self.installing.take().unwrap_or_default();
            let found = recovery(state, Vec::new(), bounds);
            self.applied = Applied::new(found, log.start()).expect("our own state");
        }
        let committed = log.high_watermark().min(log.durable_end());
        if self.installing.is_none()
            && committed > self.applied.committed()
            && let Err(error) = self.applied.commit_to(committed, &mut Vec::new())
        {
            out.push(Out::Failed(error.to_string()));
        }
    }
}
