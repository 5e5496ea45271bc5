//! The driver of the shards: takes inputs to the pure core, performs its effects.
//!
//! A shard is a value behind a lock. Entries go to the commit queue under that lock, so that the log keeps the order
//! that the shard decided; everything else happens after it is released.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::watch;

use super::{
    acks::AckHandle,
    clock::Clock,
    metrics::Metrics,
    topics::{Partition, Topic, TopicTable},
};
use crate::{
    broker::{Checkpoint, Effect, PublishInput, Recovery, Shard},
    cluster::{GroupError, MetaCommand, MetaGroup, MetaOutcome},
    limits::TAIL_CACHE_BYTES_MAX,
    replication::{EpochHistory, LocalLog, LogEnd, Primary, ShardChange, ShardCommand, Stored},
    storage::{
        CommitQueue, CommitSink, Recovered, RecoveredShard, Reservation, ShardCheckpoint, Store,
        StoreError,
    },
    types::{Boot, Lsn, NodeId, Offset, PartitionId, ProducerId, ShardId, Timestamp, TopicName},
    wire::{Code, Entry, EntryKind, Fault},
};

/// Everything that streams, requests and the commit thread share.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) me: NodeId,
    pub(super) store: Store,
    pub(super) queue: CommitQueue,
    pub(super) group: MetaGroup,
    pub(super) topics: TopicTable,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    shards: Vec<Slot>,
    tail: Mutex<TailCache>,
    /// Partitions whose drop is committed.
    dropped: Mutex<HashSet<PartitionId>>,
    disk_low: AtomicBool,
    /// Held while a topic is made, changed or deleted: metadata, table and shards change together.
    topic_change: Mutex<()>,
    newest_record: Timestamp,
    failed: watch::Sender<Option<String>>,
    recovered: watch::Sender<bool>,
}

#[derive(Debug)]
struct Slot {
    shard: Mutex<Shard<AckHandle>>,
    partitions: RwLock<HashMap<PartitionId, Arc<Partition>>>,
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

const STATE_PRODUCER: u8 = 1;
const STATE_PRODUCER_KEY_LEN: usize = 28;

impl Engine {
    /// Elects this node for every shard, begins the epochs, and brings shards and metadata into agreement.
    pub(super) fn begin(
        registered: MetaOutcome,
        group: MetaGroup,
        store: Store,
        queue: CommitQueue,
        recovered: Recovered,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Arc<Self>, EngineError> {
        let MetaOutcome::Registered(me, incarnation) = registered else {
            unreachable!("a registration is answered by a number")
        };
        let boot = Boot { node: me, incarnation };
        let mut shards = Vec::new();
        let mut begun = Vec::new();
        let newest = recovered.partitions.iter().map(|(_, _, bounds)| bounds.last_time).max();
        let newest_record = newest.filter(|t| *t > Timestamp(0)).unwrap_or_else(|| clock.wall());
        let mut bounds: HashMap<ShardId, Vec<_>> = HashMap::new();
        for (shard, partition, b) in recovered.partitions {
            bounds.entry(shard).or_default().push((partition, b.start, b.end, b.last_time));
        }
        for found in recovered.shards {
            let id = found.shard;
            let version = group.read(|site| site.shards[usize::from(id.0)].version);
            let change =
                ShardChange::Elect { expect_version: version, primary: boot, drop: Vec::new() };
            group.propose_blocking(MetaCommand::Shard(ShardCommand { shard: id, change }))?;
            let config = group.read(|site| site.shards[usize::from(id.0)].clone());
            let log = LocalLog::new(stored(&found));
            let last = log.promised();
            if config.epoch <= last {
                let reason = format!(
                    "the log is at epoch {last}, the metadata at {}: meta.redb is older than data.redb",
                    config.epoch
                );
                return Err(EngineError::Shard { shard: id, reason });
            }
            let boots = group.read(crate::cluster::SiteState::boots);
            let primary = Primary::begin(boot, config, &boots, log, Duration::ZERO);
            let recovery = recovery(found, bounds.remove(&id).unwrap_or_default())?;
            let mut out = Vec::new();
            let shard = Shard::begin(id, primary, recovery, clock.wall(), &mut out)
                .map_err(|error| EngineError::Shard { shard: id, reason: error.to_string() })?;
            shards.push(Slot { shard: Mutex::new(shard), partitions: RwLock::default() });
            begun.push((id, out));
        }
        let engine = Arc::new(Self {
            me,
            store,
            queue,
            group,
            topics: TopicTable::default(),
            clock,
            metrics,
            shards,
            tail: Mutex::default(),
            dropped: Mutex::default(),
            disk_low: AtomicBool::new(false),
            topic_change: Mutex::default(),
            newest_record,
            failed: watch::Sender::new(None),
            recovered: watch::Sender::new(false),
        });
        for (id, out) in begun {
            let shard = engine.lock(id);
            engine.perform(id, shard, out, Reservation::FREE);
        }
        engine.reconcile();
        Ok(engine)
    }

    /// Puts a batch into its shard. The answer comes through the input's handle.
    pub(super) fn publish(
        &self,
        shard: ShardId,
        input: PublishInput<AckHandle>,
        room: Reservation,
    ) {
        let now = self.clock.wall();
        self.with(shard, room, |core, out| core.publish(input, now, out));
    }

    /// Drops the records of a partition before `start`.
    pub(super) fn trim(&self, partition: &Partition, start: Offset) {
        self.with(partition.shard, Reservation::FREE, |core, out| {
            core.trim(partition.id, start, out);
        });
    }

    /// Forgets producers that have been silent for long.
    pub(super) fn expire_producers(&self, most: usize) {
        let now = self.clock.wall();
        for id in self.shard_ids() {
            self.with(id, Reservation::FREE, |core, out| core.expire_producers(now, most, out));
        }
    }

    /// Makes a topic, or gives the one that there is when it is the same.
    pub(super) fn create_topic(
        &self,
        name: &TopicName,
        settings: crate::types::TopicSettings,
    ) -> Result<Arc<Topic>, GroupError> {
        let now = self.clock.wall();
        let _change = self.change_topics();
        self.propose(MetaCommand::CreateTopic { name: name.clone(), settings, now })?;
        self.put_topic(name)
    }

    /// Changes how long a topic keeps its records.
    pub(super) fn set_topic(
        &self,
        name: &TopicName,
        change: crate::wire::RetentionChange,
    ) -> Result<Arc<Topic>, GroupError> {
        let _change = self.change_topics();
        self.propose(MetaCommand::SetTopic { name: name.clone(), change })?;
        self.put_topic(name)
    }

    /// Deletes a topic with all that is in it.
    pub(super) fn delete_topic(&self, name: &TopicName) -> Result<(), GroupError> {
        let _change = self.change_topics();
        self.propose(MetaCommand::DeleteTopic { name: name.clone() })?;
        if let Some(topic) = self.topics.remove(name) {
            for partition in &topic.partitions {
                partition.set_dropped();
                self.with(partition.shard, Reservation::FREE, |core, out| {
                    core.drop_partition(partition.id, out);
                });
            }
        }
        Ok(())
    }

    /// Removes the tombstones of topics whose partitions are gone from the disk.
    pub(super) fn forget_dropped_topics(&self) -> Result<(), GroupError> {
        let gone: Vec<_> = {
            let dropped = self.dropped();
            self.group.read(|site| {
                let partitions = |t: &crate::cluster::Tombstone, topic| {
                    (0..t.shards.len()).all(|i| {
                        let index = u32::try_from(i).unwrap_or(u32::MAX);
                        dropped.contains(&PartitionId { topic, index })
                    })
                };
                site.tombstones
                    .iter()
                    .filter(|(id, t)| partitions(t, **id))
                    .map(|(id, _)| *id)
                    .collect()
            })
        };
        for id in gone {
            self.propose(MetaCommand::ForgetTopic { id })?;
            self.dropped().retain(|partition| partition.topic != id);
        }
        Ok(())
    }

    /// Append time of the newest record that was found at the start, or the time of the start.
    pub(super) fn newest_record(&self) -> Timestamp {
        self.newest_record
    }

    /// Whether publishes are refused because the disk is low.
    pub(super) fn is_disk_low(&self) -> bool {
        self.disk_low.load(Ordering::Relaxed)
    }

    pub(super) fn set_disk_low(&self, low: bool) {
        self.disk_low.store(low, Ordering::Relaxed);
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

    /// Becomes true once every shard knows the end of its log to be committed.
    pub(super) fn recovered(&self) -> watch::Receiver<bool> {
        self.recovered.subscribe()
    }

    /// Batches that wait for their ack.
    pub(super) fn waiting(&self) -> usize {
        self.shard_ids().map(|id| self.lock(id).waiting()).sum()
    }

    fn change_topics(&self) -> MutexGuard<'_, ()> {
        // It guards no value: a panic under it leaves nothing half done that a restart does not mend.
        self.topic_change.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Proposes a command. A node that cannot write its metadata must stop, as one that cannot write its log.
    fn propose(&self, command: MetaCommand) -> Result<MetaOutcome, GroupError> {
        let outcome = self.group.propose_blocking(command);
        if let Err(error) = &outcome
            && error.is_fatal()
        {
            self.fail(&error.to_string());
        }
        outcome
    }

    fn shard_ids(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..u16::try_from(self.shards.len()).unwrap_or(u16::MAX)).map(ShardId)
    }

    fn lock(&self, id: ShardId) -> MutexGuard<'_, Shard<AckHandle>> {
        // A panic under this lock is our own bug; the shard's log on disk is still in order.
        self.slot(id).shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, id: ShardId) -> &Slot {
        &self.shards[usize::from(id.0)]
    }

    fn dropped(&self) -> MutexGuard<'_, HashSet<PartitionId>> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(
        &self,
        id: ShardId,
        room: Reservation,
        act: impl FnOnce(&mut Shard<AckHandle>, &mut Vec<Effect<AckHandle>>),
    ) {
        let mut out = Vec::new();
        let mut shard = self.lock(id);
        act(&mut shard, &mut out);
        self.perform(id, shard, out, room);
    }

    fn perform(
        &self,
        id: ShardId,
        mut shard: MutexGuard<'_, Shard<AckHandle>>,
        out: Vec<Effect<AckHandle>>,
        room: Reservation,
    ) {
        let mut room = Some(room);
        let mut closed = false;
        let mut later = Vec::new();
        for effect in out {
            let Effect::Append(entry) = effect else {
                later.push(effect);
                continue;
            };
            self.remember(id, &entry);
            let room = match entry.header.kind {
                EntryKind::Records => room.take().unwrap_or(Reservation::FREE),
                _ => Reservation::FREE,
            };
            closed |= self.queue.push(entry, room).is_err();
        }
        // The log takes nothing any more: what waits will never be told otherwise.
        let abandoned = if closed { shard.abandon() } else { Vec::new() };
        drop(shard);
        for effect in later {
            self.tell(id, effect);
        }
        for waiter in abandoned {
            self.tell(id, Effect::Unknown(waiter));
        }
    }

    fn tell(&self, id: ShardId, effect: Effect<AckHandle>) {
        match effect {
            Effect::Append(_) => unreachable!("appends are performed under the shard's lock"),
            Effect::Ack(handle, ack) => handle.ack(ack),
            Effect::Refuse(waiter, reject) => waiter.handle.refuse(waiter.index, reject.fault()),
            Effect::Unknown(waiter) => {
                let fault =
                    Fault::new(Code::Unknown, "the node stopped before the batch was stored");
                waiter.handle.refuse(waiter.index, fault);
            }
            // A primary that is the whole set has nobody to send to. How far the log is committed is not stored: the
            // next start of an epoch confirms all that the log holds.
            Effect::Replication(_) => {}
            Effect::Committed(committed) => {
                if let Some(partition) = self.partition(id, committed.partition) {
                    partition.set_view(committed.view);
                }
            }
            Effect::Dropped(partition) => {
                self.slot_partitions(id).remove(&partition);
                self.dropped().insert(partition);
            }
        }
    }

    fn partition(&self, id: ShardId, partition: PartitionId) -> Option<Arc<Partition>> {
        let partitions = self.slot(id).partitions.read().unwrap_or_else(PoisonError::into_inner);
        partitions.get(&partition).cloned()
    }

    fn slot_partitions(
        &self,
        id: ShardId,
    ) -> std::sync::RwLockWriteGuard<'_, HashMap<PartitionId, Arc<Partition>>> {
        self.slot(id).partitions.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a batch in memory for the readers that are at the end of its partition.
    fn remember(&self, id: ShardId, entry: &Entry) {
        let watched = |p: &Arc<Partition>| p.is_watched();
        let Some(partition) = self.partition(id, entry.header.partition).filter(watched) else {
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

    fn put_topic(&self, name: &TopicName) -> Result<Arc<Topic>, GroupError> {
        let record = self.group.read(|site| site.topics.get(name).cloned());
        let Some(record) = record else {
            // Deleted by another client in this moment.
            return Err(crate::cluster::MetaReject::UnknownTopic(name.clone()).into());
        };
        let topic = self.topics.put(name, &record);
        for partition in &topic.partitions {
            self.slot_partitions(partition.shard).insert(partition.id, Arc::clone(partition));
            self.with(partition.shard, Reservation::FREE, |core, out| {
                core.create(partition.id, name.as_str().as_bytes(), out);
            });
        }
        Ok(topic)
    }

    /// After a start: topics that the metadata has and a shard does not are begun, deleted ones are dropped.
    fn reconcile(&self) {
        let names: Vec<_> = self.group.read(|site| site.topics.keys().cloned().collect());
        for name in names {
            // The name was there under the same lock of a node that serves nobody yet.
            let _ = self.put_topic(&name);
        }
        for id in self.shard_ids() {
            let dropped: Vec<_> = self.group.read(|site| site.dropped_from(id).collect());
            for partition in dropped {
                if self.lock(id).view(partition).is_none() {
                    self.dropped().insert(partition);
                } else {
                    self.with(id, Reservation::FREE, |core, out| {
                        core.drop_partition(partition, out)
                    });
                }
            }
        }
    }
}

/// The commit thread's way back to the shards.
#[derive(Debug)]
pub(super) struct Sink(pub(super) Arc<Engine>);

impl CommitSink for Sink {
    fn committed(&mut self, ends: &[(ShardId, Lsn)]) {
        for (id, end) in ends {
            self.0.with(*id, Reservation::FREE, |core, out| core.durable_here(*end, out));
        }
        if !*self.0.recovered.borrow() {
            let all = self.0.shard_ids().all(|id| self.0.lock(id).is_recovered());
            self.0.recovered.send_replace(all);
        }
    }

    fn checkpoint(&mut self) -> Vec<ShardCheckpoint> {
        let engine = &self.0;
        engine.shard_ids().map(|id| stored_checkpoint(id, engine.lock(id).checkpoint())).collect()
    }

    fn failed(&mut self, error: &StoreError) {
        tracing::error!(%error, "the log cannot be written, the node stops");
        for id in self.0.shard_ids() {
            let abandoned = self.0.lock(id).abandon();
            for waiter in abandoned {
                let fault = Fault::new(Code::Unknown, "the node's disk failed");
                waiter.handle.refuse(waiter.index, fault);
            }
        }
        self.0.fail(&error.to_string());
    }
}

fn stored_checkpoint(shard: ShardId, checkpoint: Checkpoint) -> ShardCheckpoint {
    let key = |partition: PartitionId, producer: ProducerId| {
        let mut key = BytesMut::with_capacity(STATE_PRODUCER_KEY_LEN);
        key.put_u64(partition.topic.0);
        key.put_u32(partition.index);
        key.put_u128(producer.0);
        key.freeze()
    };
    ShardCheckpoint {
        shard,
        applied: checkpoint.applied,
        put: checkpoint
            .put
            .into_iter()
            .map(|(partition, producer, value)| (STATE_PRODUCER, key(partition, producer), value))
            .collect(),
        delete: checkpoint
            .delete
            .into_iter()
            .map(|(partition, producer)| (STATE_PRODUCER, key(partition, producer)))
            .collect(),
    }
}

fn producer_of_key(mut key: Bytes) -> Option<(PartitionId, ProducerId)> {
    use bytes::Buf;
    if key.len() != STATE_PRODUCER_KEY_LEN {
        return None;
    }
    let partition = PartitionId { topic: key.get_u64().into(), index: key.get_u32() };
    Some((partition, ProducerId(key.get_u128())))
}

fn recovery(
    found: RecoveredShard,
    partitions: Vec<(PartitionId, Offset, Offset, Timestamp)>,
) -> Result<Recovery, EngineError> {
    let bad = |reason: &str| EngineError::Shard { shard: found.shard, reason: reason.to_owned() };
    let mut recovery = Recovery { partitions, ..Recovery::default() };
    for (kind, key, value) in found.state {
        if kind != STATE_PRODUCER {
            return Err(bad("its state has a kind that this program does not know"));
        }
        let Some((partition, producer)) = producer_of_key(key) else {
            return Err(bad("its state has a malformed key"));
        };
        let added = recovery.add_producer(partition, producer, &value);
        added.map_err(|error| bad(&error.to_string()))?;
    }
    recovery.tail = found.tail;
    Ok(recovery)
}

fn stored(found: &RecoveredShard) -> Stored {
    let history = EpochHistory::new(found.epochs.iter().copied());
    let end = LogEnd { lsn: found.end, epoch: history.last_epoch(), chain: found.chain };
    Stored { history, end, high_watermark: found.applied, ..Stored::default() }
}
