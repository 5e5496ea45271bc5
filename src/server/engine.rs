//! The driver of the shards: takes inputs to the pure core, performs its effects.
//!
//! A shard is a value behind a lock. What goes to the disk and to the replicas leaves under that lock, so that both see
//! the order that the shard decided; none of it waits. Everything else happens after the lock is released.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::{
    acks::AckHandle,
    clock::Clock,
    damage::{DamageTable, Suspect},
    metrics::Metrics,
    recovery,
    slot::{Core, LocalView, Slot},
    topics::{Partition, TopicTable},
};
use crate::{
    broker::{Applied, Committed, Effect, PublishInput, Reject, Replica, Seen},
    cluster::{GroupError, MetaGroup},
    limits::{PROPOSALS_WAITING_MAX, RELAY_RETRY, TAIL_CACHE_BYTES_MAX},
    peer::{Links, Outgoing},
    replication::{self, Alarm, Envelope, LogChange, ShardCommand, ShardConfig},
    storage::{
        CommitQueue, Recovered, RecoveredPartition, RecoveredShard, Reservation, STATE_PARTITION,
        Store,
    },
    types::{Boot, Lsn, Offset, PartitionId, ShardId, Timestamp},
    wire::{Code, Entry, EntryKind, Fault, Retry},
};

/// Everything that streams, requests, links and the commit thread share.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) me: Boot,
    pub(super) store: Store,
    pub(super) queue: CommitQueue,
    pub(super) group: Arc<MetaGroup>,
    pub(super) topics: TopicTable,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) slots: Vec<Slot>,
    pub(super) damage: DamageTable,
    /// The ways to the other nodes; none before they are opened.
    pub(super) links: OnceLock<Links>,
    tail: Mutex<TailCache>,
    /// Partitions whose drop is committed.
    dropped: Mutex<HashSet<PartitionId>>,
    disk_low: AtomicBool,
    /// No majority of the site's voters is heard.
    isolated: AtomicBool,
    /// The node is about to stop.
    leaving: AtomicBool,
    /// Held while what the metadata says is taken over: table and shards change together.
    pub(super) topic_change: Mutex<()>,
    newest_record: Timestamp,
    /// No silence shorter than this means that a node is down.
    pub(super) fence: Duration,
    /// What shards ask of the metadata group. When it is full they ask again.
    proposals: mpsc::Sender<ShardCommand>,
    /// Snapshots that shards ask for.
    installs: mpsc::Sender<InstallWork>,
    failed: watch::Sender<Option<String>>,
    ready: watch::Sender<bool>,
}

/// What a shard asks of the one that makes snapshots.
#[derive(Clone, Copy, Debug)]
pub(super) enum InstallWork {
    /// Make one, no older than this, for that replica.
    Snapshot { shard: ShardId, to: Boot, least: Lsn },
    /// Send a chunk of it.
    Chunk {
        shard: ShardId,
        to: Boot,
        epoch: crate::types::Epoch,
        base: replication::LogEnd,
        number: u32,
        index: u32,
    },
}

/// The ends of the channels that an engine fills.
pub(super) struct Asked {
    pub(super) proposals: mpsc::Receiver<ShardCommand>,
    pub(super) installs: mpsc::Receiver<InstallWork>,
    pub(super) suspects: mpsc::Receiver<Suspect>,
}

/// Batches that were appended a moment ago, oldest first, of all partitions that somebody reads.
#[derive(Debug, Default)]
struct TailCache {
    order: VecDeque<(Arc<Partition>, usize)>,
    bytes: usize,
}

/// Why the node cannot start on what it found.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    /// The metadata group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// A shard's log or state.
    #[error("shard {shard}: {reason}")]
    Shard {
        /// Which.
        shard: ShardId,
        /// Why.
        reason: String,
    },
}

/// What an engine stands on.
pub(super) struct Ground {
    pub(super) me: Boot,
    pub(super) group: Arc<MetaGroup>,
    pub(super) store: Store,
    pub(super) queue: CommitQueue,
    pub(super) clock: Clock,
    /// No silence shorter than this means that a node is down.
    pub(super) fence: Duration,
    pub(super) metrics: Metrics,
}

impl Engine {
    /// Takes up what the disk holds: every shard follows, until this boot is elected.
    pub(super) fn begin(
        ground: Ground,
        recovered: Recovered,
    ) -> Result<(Arc<Self>, Asked), EngineError> {
        let Ground { me, group, store, queue, clock, fence, metrics } = ground;
        let newest = recovered.partitions.iter().map(|found| found.bounds.last_time).max();
        let newest_record = newest.filter(|t| *t > Timestamp(0)).unwrap_or_else(|| clock.wall());
        let mut bounds: HashMap<ShardId, Vec<_>> = HashMap::new();
        for RecoveredPartition { shard, id, bounds: b, applied_start } in recovered.partitions {
            bounds.entry(shard).or_default().push((id, applied_start, b.end, b.last_time));
        }
        let mut slots = Vec::new();
        for found in recovered.shards {
            let id = found.shard;
            let bad = |reason: String| EngineError::Shard { shard: id, reason };
            let stored = recovery::stored(&found);
            let committed = stored.high_watermark;
            let found = recovery::recovery(found, bounds.remove(&id).unwrap_or_default())?;
            let applied = Applied::new(found, committed).map_err(|error| bad(error.to_string()))?;
            slots.push(Slot::new(id, Replica::new(id, me, stored, fence), applied));
        }
        let (proposals, asked_proposals) = mpsc::channel(PROPOSALS_WAITING_MAX);
        let (installs, asked_installs) = mpsc::channel(PROPOSALS_WAITING_MAX);
        let (damage, suspects) = DamageTable::new();
        let engine = Arc::new(Self {
            me,
            store,
            queue,
            group,
            topics: TopicTable::default(),
            clock,
            fence,
            metrics,
            slots,
            damage,
            links: OnceLock::new(),
            tail: Mutex::default(),
            dropped: Mutex::default(),
            disk_low: AtomicBool::new(false),
            isolated: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            topic_change: Mutex::default(),
            newest_record,
            proposals,
            installs,
            failed: watch::Sender::new(None),
            ready: watch::Sender::new(false),
        });
        let asked = Asked { proposals: asked_proposals, installs: asked_installs, suspects };
        Ok((engine, asked))
    }

    /// Puts a batch into its shard. The answer comes through the input's handle.
    pub(super) fn publish(
        &self,
        shard: ShardId,
        input: PublishInput<AckHandle>,
        room: Reservation,
    ) {
        let now = self.clock.wall();
        self.with(shard, room, |replica, _, out| replica.publish(input, now, out));
    }

    /// Drops the records of a partition before `start`, if it is led here.
    pub(super) fn trim(&self, partition: &Partition, start: Offset) {
        self.with(partition.shard, Reservation::FREE, |replica, _, out| {
            replica.with_shard(out, |shard, out| shard.trim(partition.id, start, out));
        });
    }

    /// Forgets producers that have been silent for long, in the shards that are led here.
    pub(super) fn expire_producers(&self, most: usize) {
        let (wall, now) = (self.clock.wall(), self.clock.uptime());
        for slot in &self.slots {
            self.with(slot.id, Reservation::FREE, |replica, _, out| {
                replica.with_shard(out, |shard, out| shard.expire_producers(wall, now, most, out));
            });
        }
    }

    /// Whether this node leads the shard.
    pub(super) fn leads(&self, shard: ShardId) -> bool {
        self.slot(shard).lock().replica.shard().is_some()
    }

    /// Takes a message of another replica.
    pub(super) fn message(&self, envelope: Envelope<Entry>) {
        if usize::from(envelope.shard.0) >= self.slots.len() {
            return;
        }
        let now = self.clock.uptime();
        let leaving = self.leaving.load(Ordering::Relaxed);
        self.with(envelope.shard, Reservation::FREE, |replica, view, out| {
            // Who answers is taken into the set again, and then waited for.
            if leaving && replica.config().required().all(|node| node != self.me.node) {
                return;
            }
            replica.message(envelope, now, view, out);
        });
    }

    /// Time has passed.
    pub(super) fn tick(&self) {
        let now = self.clock.uptime();
        for slot in &self.slots {
            self.with(slot.id, Reservation::FREE, |replica, view, out| {
                if is_alone(replica.config()) {
                    // Nobody to ask, and nobody to compare with.
                    return;
                }
                replica.tick(now, view, out);
            });
        }
    }

    /// This node has stood still for so long, until now.
    pub(super) fn stood_still(&self, time: Duration, now: Duration) {
        for slot in &self.slots {
            slot.lock().replica.stood_still(time, now);
        }
    }

    /// The disk has done so many appends and changes of a shard since the start.
    pub(super) fn written(&self, done: &[(ShardId, u64)]) {
        for (id, count) in done {
            self.with(*id, Reservation::FREE, |replica, _, out| replica.written(*count, out));
        }
        self.look_whether_ready();
    }

    /// Tells those who wait once every shard can be served.
    pub(super) fn look_whether_ready(&self) {
        if !*self.ready.borrow() && self.slots.iter().all(|slot| slot.lock().is_ready()) {
            self.ready.send_replace(true);
        }
    }

    /// Append time of the newest record that was found at the start, or the time of the start.
    pub(super) fn newest_record(&self) -> Timestamp {
        self.newest_record
    }

    /// Whether publishes are refused because the disk is low.
    pub(super) fn is_disk_low(&self) -> bool {
        self.disk_low.load(Ordering::Relaxed)
    }

    /// Whether publishes are refused because this node may be cut off: others may lead by now.
    pub(super) fn is_isolated(&self) -> bool {
        self.isolated.load(Ordering::Relaxed)
    }

    pub(super) fn set_isolated(&self, isolated: bool) {
        self.isolated.store(isolated, Ordering::Relaxed);
    }

    /// From now on this node stays out of the commit sets that it is not in.
    pub(super) fn set_leaving(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_disk_low(&self, low: bool) {
        self.disk_low.store(low, Ordering::Relaxed);
        for slot in &self.slots {
            slot.lock().replica.set_disk_full(low);
        }
    }

    /// Becomes the reason once the node can write no more.
    pub(super) fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failed.subscribe()
    }

    /// Tells that the node can write no more.
    pub(super) fn fail(&self, reason: &str) {
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert_with(|| reason.to_owned());
            first
        });
    }

    /// Becomes true once every shard has a primary, and those that this node leads know their log to be committed.
    pub(super) fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Batches that wait for their ack.
    pub(super) fn waiting(&self) -> usize {
        let waiting = |slot: &Slot| slot.lock().replica.shard().map_or(0, |s| s.waiting());
        self.slots.iter().map(waiting).sum()
    }

    /// Answers all that wait for an ack of such shards: what becomes of their batches is not known.
    pub(super) fn abandon(&self, why: &str, is_such: impl Fn(ShardId) -> bool) {
        for slot in self.slots.iter().filter(|slot| is_such(slot.id)) {
            let mut waiters = Vec::new();
            let mut core = slot.lock();
            core.replica.with_shard(&mut Vec::new(), |shard, _| waiters = shard.abandon());
            drop(core);
            for waiter in waiters {
                waiter.handle.refuse(waiter.index, Fault::new(Code::Unknown, why));
            }
        }
    }

    /// What clients are told who are to leave: with other nodes about, they need not wait for this one.
    pub(super) fn goodbye(&self) -> Fault {
        let stopping = Fault::new(Code::Stopping, "the node is stopping");
        let alone = self.group.read(|site| site.nodes.len()) <= 1;
        match (alone, self.leaving.load(Ordering::Relaxed)) {
            (true, _) => stopping,
            (false, true) => Fault { retry: soon(), ..stopping },
            // It drains, or does not reach the others.
            (false, false) => Fault {
                retry: soon(),
                ..Fault::new(Code::Stopping, "the node gives its clients away")
            },
        }
    }

    pub(super) fn slot(&self, id: ShardId) -> &Slot {
        &self.slots[usize::from(id.0)]
    }

    pub(super) fn dropped(&self) -> MutexGuard<'_, HashSet<PartitionId>> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a shard an input, and performs what follows from it.
    pub(super) fn with<T>(
        &self,
        id: ShardId,
        room: Reservation,
        act: impl FnOnce(&mut Replica<AckHandle>, &LocalView<'_>, &mut Vec<Effect<AckHandle>>) -> T,
    ) -> T {
        let slot = self.slot(id);
        let mut out = Vec::new();
        let mut core = slot.lock();
        let (replica, view) = core.split(id, &self.store);
        let done = act(replica, &view, &mut out);
        if out.is_empty() {
            return done;
        }
        let begins = self.perform(slot, core, out, room);
        if begins {
            self.compare_partitions(id);
        }
        done
    }

    /// Performs effects. True if this node leads the shard since now.
    fn perform(
        &self,
        slot: &Slot,
        mut core: MutexGuard<'_, Core>,
        out: Vec<Effect<AckHandle>>,
        room: Reservation,
    ) -> bool {
        let mut room = Some(room);
        let (mut closed, mut begins) = (false, false);
        let mut later = Vec::new();
        let mut effects = VecDeque::from(out);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Append(entry) => {
                    let room = match entry.header.kind {
                        EntryKind::Records => room.take().unwrap_or(Reservation::FREE),
                        _ => Reservation::FREE,
                    };
                    self.note(slot, &mut core, &entry);
                    closed |= self.queue.push(entry, room).is_err();
                }
                Effect::Replication(effect) => {
                    self.replicate(slot, &mut core, effect, &mut effects, &mut begins);
                }
                // Readers are told by the applied state, which every replica has.
                Effect::Committed(_) | Effect::Dropped(_) => {}
                Effect::Ack(..) | Effect::Refuse(..) | Effect::Unknown(_) => later.push(effect),
            }
        }
        self.apply(slot, &mut core);
        // The log takes nothing any more: what waits will never be told otherwise.
        if closed {
            let abandon = |shard: &mut crate::broker::Shard<AckHandle>, _: &mut Vec<_>| {
                later.extend(shard.abandon().into_iter().map(Effect::Unknown));
            };
            core.replica.with_shard(&mut Vec::new(), abandon);
        }
        drop(core);
        for effect in later {
            self.tell(slot, effect);
        }
        begins
    }

    fn replicate(
        &self,
        slot: &Slot,
        core: &mut Core,
        effect: replication::Effect<Entry>,
        effects: &mut VecDeque<Effect<AckHandle>>,
        begins: &mut bool,
    ) {
        use replication::Effect as Asked;
        let shard = slot.id;
        match effect {
            Asked::Append(entry) => effects.push_front(Effect::Append(entry)),
            Asked::Change(change) => {
                self.note_change(slot, core, &change);
                // A closed log takes nothing; the core waits for it in vain, as the node stops.
                let _ = self.queue.push_change(shard, recovery::change(change));
            }
            Asked::Committed(end) => self.queue.note_committed(shard, end),
            Asked::Send { to, epoch, body } => {
                let envelope = Envelope { shard, epoch, from: self.me, to, body };
                self.send(shard, to, Outgoing::Message(envelope));
            }
            Asked::Replicate { to, epoch, from, until, high_watermark } => {
                let from_boot = self.me;
                let entries = Outgoing::Entries { epoch, from_boot, from, until, high_watermark };
                self.send(shard, to, entries);
            }
            Asked::Snapshot { to, least } => {
                self.install(InstallWork::Snapshot { shard, to, least });
            }
            Asked::SendChunk { to, epoch, base, number, index } => {
                self.install(InstallWork::Chunk { shard, to, epoch, base, number, index });
            }
            Asked::Propose(change) => self.ask(ShardCommand { shard, change }),
            Asked::Recover(epoch) => {
                let (wall, now) = (self.clock.wall(), self.clock.uptime());
                let mut out = Vec::new();
                // A lineage that begins with nothing.
                if core.installing.is_some() {
                    self.take_up(slot, core, Lsn(0));
                }
                let recovered = core
                    .applied
                    .recovery()
                    .and_then(|found| core.replica.recovered(epoch, found, wall, now, &mut out));
                match recovered {
                    Ok(()) => {
                        tracing::info!(%shard, %epoch, "this node leads the shard");
                        *begins = true;
                        effects.extend(out);
                    }
                    Err(error) => self.fail(&format!("shard {shard} cannot be led: {error}")),
                }
            }
            Asked::Superseded => {
                self.fail("a later start of this node is registered: is its disk in use twice?");
            }
            Asked::Alarm(alarm) => self.alarm(shard, alarm),
        }
    }

    /// Tells a human what only a human can mend.
    fn alarm(&self, shard: ShardId, alarm: Alarm) {
        self.metrics.alarm();
        match alarm {
            Alarm::DivergedBelowHighWatermark { common, high_watermark } => tracing::error!(
                %shard, %common, %high_watermark,
                "the primary's log lacks what this node knows to be committed: committed records were \
                 lost elsewhere, or this disk is of another site; this replica follows no more"
            ),
            Alarm::ChainMismatch { at } => tracing::error!(
                %shard, %at,
                "same position and epoch as on the primary, other content: a damaged disk or a defect; \
                 this replica follows no more"
            ),
            Alarm::Regressed { replica } => tracing::error!(
                %shard, node = %replica.node,
                "a member of the commit set has lost what it had acknowledged; it is taken out of the set"
            ),
        }
    }

    pub(super) fn send(&self, shard: ShardId, to: Boot, outgoing: Outgoing) {
        if let Some(links) = self.links.get() {
            links.send(shard, to, outgoing);
        }
    }

    /// Asks the metadata group for a change of a shard.
    pub(super) fn ask(&self, command: ShardCommand) {
        // When too much waits, whoever wants it asks again.
        let _ = self.proposals.try_send(command);
    }

    fn install(&self, work: InstallWork) {
        // When too much waits, the core asks again.
        let _ = self.installs.try_send(work);
    }

    /// Takes note of an entry on its way to the disk.
    fn note(&self, slot: &Slot, core: &mut Core, entry: &Entry) {
        core.applied.append(entry);
        if !is_alone(core.replica.config()) {
            core.recent.push(entry.clone());
        }
        self.remember(slot, entry);
    }

    fn note_change(&self, slot: &Slot, core: &mut Core, change: &LogChange<Entry>) {
        match change {
            LogChange::Truncate(end) => {
                for (partition, base) in core.applied.truncate(*end) {
                    if let Some(partition) = slot.partition(partition) {
                        partition.forget_from(base);
                    }
                }
                core.recent.truncate(*end);
            }
            LogChange::InstallBegin(_) | LogChange::Forget => {
                core.recent.clear();
                for partition in slot.partitions().values() {
                    partition.forget_from(Offset(0));
                }
                core.applied = Applied::default();
                core.installing = Some(Vec::new());
            }
            LogChange::InstallChunk(chunk) => {
                let rows = chunk.state.iter().filter(|row| row.kind != STATE_PARTITION);
                let rows = rows.map(|row| {
                    let copy = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
                    (row.kind, copy(&row.key), copy(&row.value))
                });
                core.installing.get_or_insert_default().extend(rows);
            }
            LogChange::Promise(_) | LogChange::InstallEnd { .. } => {}
        }
    }

    /// What is committed, and durable here, takes effect.
    fn apply(&self, slot: &Slot, core: &mut Core) {
        let Some(log) = core.replica.log() else { return };
        if core.installing.is_some() && !log.is_installing() && log.is_settled() {
            let base = log.start();
            self.take_up(slot, core, base);
        }
        let Some(log) = core.replica.log() else { return };
        let committed = log.high_watermark().min(log.durable_end());
        if core.installing.is_some() || committed <= core.applied.committed() {
            return;
        }
        let mut seen = Vec::new();
        if let Err(error) = core.applied.commit_to(committed, &mut seen) {
            self.fail(&format!("shard {}: {error}", slot.id));
            return;
        }
        for seen in seen {
            match seen {
                Seen::Bounds(committed) => {
                    if let Some(partition) = slot.partition(committed.partition) {
                        partition.set_view(committed.view);
                    }
                }
                Seen::Dropped(partition) => {
                    slot.partitions_mut().remove(&partition);
                    self.dropped().insert(partition);
                }
            }
        }
    }

    /// Takes up the applied state of a log that was installed: nothing lies behind its base yet.
    fn take_up(&self, slot: &Slot, core: &mut Core, base: Lsn) {
        let partitions = self.store.partitions_of(slot.id);
        let bounds = partitions.into_iter().map(|(id, b)| (id, b.start, b.end, b.last_time));
        let found = RecoveredShard {
            shard: slot.id,
            state: core.installing.take().unwrap_or_default(),
            ..RecoveredShard::default()
        };
        let taken = recovery::recovery(found, bounds.collect()).and_then(|found| {
            let bad = |error: crate::wire::BadEntry| EngineError::Shard {
                shard: slot.id,
                reason: error.to_string(),
            };
            Applied::new(found, base).map_err(bad)
        });
        match taken {
            Ok(applied) => core.applied = applied,
            Err(error) => return self.fail(&error.to_string()),
        }
        for Committed { partition, view } in core.applied.views() {
            if let Some(partition) = slot.partition(partition) {
                partition.set_view(view);
            }
        }
        tracing::info!(shard = %slot.id, %base, "install is whole");
        self.repaired(slot.id);
    }

    fn tell(&self, slot: &Slot, effect: Effect<AckHandle>) {
        match effect {
            Effect::Ack(handle, ack) => handle.ack(ack),
            Effect::Refuse(waiter, reject) => {
                waiter.handle.refuse(waiter.index, refusal(slot, &reject));
            }
            Effect::Unknown(waiter) => {
                let fault = Fault::new(
                    Code::Unknown,
                    "the node stopped leading the partition before the batch was stored",
                );
                waiter.handle.refuse(waiter.index, fault);
            }
            Effect::Append(_)
            | Effect::Committed(_)
            | Effect::Dropped(_)
            | Effect::Replication(_) => {
                unreachable!("performed under the shard's lock")
            }
        }
    }

    /// Keeps a batch in memory for the readers that are at the end of its partition.
    fn remember(&self, slot: &Slot, entry: &Entry) {
        if entry.header.kind != EntryKind::Records {
            return;
        }
        let watched = |p: &Arc<Partition>| p.is_watched();
        let Some(partition) = slot.partition(entry.header.partition).filter(watched) else {
            return;
        };
        let Ok(header) = entry.batch_header() else { return };
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        partition.remember(header.base_offset, header.end_offset(), entry.body.clone());
        tail.bytes += entry.body.len();
        tail.order.push_back((partition, entry.body.len()));
        while tail.bytes > TAIL_CACHE_BYTES_MAX {
            let Some((oldest, len)) = tail.order.pop_front() else { break };
            oldest.forget_oldest();
            tail.bytes -= len;
        }
    }
}

/// Whether a shard has one copy, and is to have no other. A node that gives its shard away is no replica any more, and still in
/// the set.
fn is_alone(config: &ShardConfig) -> bool {
    config.replicas.len() <= 1 && config.set.len() <= 1
}

/// A refusal as the client is told. A partition that the metadata knows and its shard does not is being begun.
fn refusal(slot: &Slot, reject: &Reject) -> Fault {
    match reject {
        Reject::UnknownPartition(id) if slot.partition(*id).is_some_and(|p| !p.is_dropped()) => {
            let fault = Fault::new(Code::Electing, format!("partition {id} is being begun"));
            Fault { retry: soon(), ..fault }
        }
        Reject::NotPrimary { .. } => Fault { retry: soon(), ..reject.fault() },
        reject => reject.fault(),
    }
}

/// A moment, in which another node takes over.
pub(super) fn soon() -> Retry {
    Retry::After(u32::try_from(RELAY_RETRY.as_millis()).unwrap_or(u32::MAX))
}
