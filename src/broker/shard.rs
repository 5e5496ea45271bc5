//! A shard: one totally ordered log that carries the batches of many partitions.
//!
//! Each method takes an input and appends the effects that the driver must perform, in order. The one rule that the
//! driver must keep: entries reach the commit thread in the order in which they were emitted.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};

use super::{
    partition::{Partition, PartitionView},
    producer::{BadState, ProducerState, Remembered, Seen},
    reject::Reject,
};
use crate::{
    limits::{PRODUCER_IDLE_MAX, PRODUCER_SILENCE_MIN, PRODUCERS_PER_PARTITION_MAX},
    replication::{self, LogEnd, Primary, mutant},
    types::{Acks, Lsn, Offset, PartitionId, ProducerId, ShardId, Timestamp},
    wire::{
        Ack, BatchHeader, Entry, EntryKind,
        entry::{BadEntry, EpochStart, Place, expire_body, trim_body},
        stamp,
    },
};

/// Whoever waits for an ack: the core carries it through, and gives it back with the outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter<W> {
    /// The driver's own handle.
    pub handle: W,
    /// Number of the batch on its stream.
    pub index: u64,
}

/// A batch that a producer wants to be stored.
#[derive(Debug)]
pub struct PublishInput<W> {
    /// Who waits for the answer.
    pub waiter: Waiter<W>,
    /// Where it goes.
    pub partition: PartitionId,
    /// What the ack waits for.
    pub acks: Acks,
    /// Refuse unless this many copies can be written.
    pub require_copies: u32,
    /// The batch's header, checked.
    pub header: BatchHeader,
    /// The whole batch.
    pub batch: BytesMut,
}

/// What the driver must do.
#[derive(Debug)]
pub enum Effect<W> {
    /// Hand this to the commit thread, in this order.
    Append(Entry),
    /// Tell the producer that its batch is stored.
    Ack(W, Ack),
    /// Tell the producer that its batch was refused.
    Refuse(Waiter<W>, Reject),
    /// Tell the producer that nobody here knows whether its batch will be stored.
    Unknown(Waiter<W>),
    /// More of a partition can be read, or less is kept.
    Committed(Committed),
    /// The partition is gone.
    Dropped(PartitionId),
    /// What replication asks for, other than to append. A site of one node never does.
    Replication(replication::Effect<Entry>),
}

impl<W> From<replication::Effect<Entry>> for Effect<W> {
    fn from(effect: replication::Effect<Entry>) -> Self {
        match effect {
            replication::Effect::Append(entry) => Self::Append(entry),
            other => Self::Replication(other),
        }
    }
}

/// A partition's new bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The partition.
    pub partition: PartitionId,
    /// Its bounds.
    pub view: PartitionView,
}

/// What storage found of a shard's partitions when this node begins to lead.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Partitions: oldest kept offset, offset behind the newest record, newest append time.
    pub partitions: Vec<(PartitionId, Offset, Offset, Timestamp)>,
    /// Producer state of the last checkpoint.
    pub producers: Vec<(PartitionId, ProducerId, ProducerState)>,
    /// Entries since then, at least their headers.
    pub tail: Vec<Entry>,
}

#[derive(Debug)]
struct Waiting<W> {
    waiter: Waiter<W>,
    partition: u32,
    base_offset: Offset,
}

/// What an appended entry does once it is committed.
#[derive(Clone, Copy, Debug)]
enum Pending {
    Records { end: Offset },
    Trim { start: Offset },
    Create,
    Drop,
    Recovered,
}

/// The primary's side of one shard.
#[derive(Debug)]
pub struct Shard<W> {
    id: ShardId,
    primary: Primary<Entry>,
    /// What replication asked for during this input.
    asked: Vec<replication::Effect<Entry>>,
    partitions: BTreeMap<PartitionId, Partition>,
    pending: VecDeque<(Lsn, PartitionId, Pending)>,
    /// Waiting for this node's disk, by position; the second number keeps two of one position apart.
    waiting_local: BTreeMap<(Lsn, u64), Waiting<W>>,
    /// Waiting for the commit set.
    waiting_replicated: BTreeMap<(Lsn, u64), Waiting<W>>,
    waits: u64,
    /// Producers that are idle by the wall clock: their newest entry, and since when this primary knows of no newer one.
    silent: BTreeMap<(PartitionId, ProducerId), (Lsn, Duration)>,
}

impl<W> Shard<W> {
    /// Begins the epoch of `primary` on what storage found. Emits the epoch's first entry; nothing can be read before it
    /// is committed.
    ///
    /// # Errors
    /// [`BadEntry`] when the log's tail cannot be understood.
    pub fn begin(
        id: ShardId,
        primary: Primary<Entry>,
        found: Recovery,
        now: Timestamp,
        out: &mut Vec<Effect<W>>,
    ) -> Result<Self, BadEntry> {
        let mut shard = Self {
            id,
            primary,
            asked: Vec::new(),
            partitions: BTreeMap::new(),
            pending: VecDeque::new(),
            waiting_local: BTreeMap::new(),
            waiting_replicated: BTreeMap::new(),
            waits: 0,
            silent: BTreeMap::new(),
        };
        for (partition, start, end, newest) in found.partitions {
            let state = Partition {
                start,
                committed: start,
                end,
                found_end: end,
                newest,
                trimming: start,
                producers: BTreeMap::new(),
            };
            shard.partitions.insert(partition, state);
        }
        for (partition, producer, state) in found.producers {
            if let Some(partition) = shard.partitions.get_mut(&partition) {
                partition.producers.insert(producer, state);
            }
        }
        for entry in &found.tail {
            shard.replay(entry)?;
        }
        if mutant!(WallClockExpiry) {
            let idle = |b: &Remembered| now.since(b.append_time) > PRODUCER_IDLE_MAX;
            for partition in shard.partitions.values_mut() {
                partition.producers.retain(|_, state| state.last().is_some_and(|b| !idle(b)));
            }
        }
        shard.start_epoch(now, out);
        Ok(shard)
    }

    /// Orders a batch, or refuses it. A refusal means that nothing was appended.
    pub fn publish(&mut self, input: PublishInput<W>, now: Timestamp, out: &mut Vec<Effect<W>>) {
        match self.admit(&input) {
            Err(reject) => out.push(Effect::Refuse(input.waiter, reject)),
            Ok(Some(stored)) => {
                let early = mutant!(DedupeAcksEarly);
                let waiting = Waiting {
                    waiter: input.waiter,
                    partition: input.partition.index,
                    base_offset: stored.base_offset,
                };
                if early {
                    out.push(self.ack(waiting, stored.lsn, input.acks));
                } else {
                    self.wait(stored.lsn, input.acks, waiting, out);
                }
            }
            Ok(None) => self.append_batch(input, now, out),
        }
    }

    pub(super) fn stood_still(&mut self, time: Duration, now: Duration) {
        self.primary.stood_still(time, now);
    }

    /// Lets the primary take an input that says whether the high watermark moved, and does what follows from it.
    pub(super) fn lead(
        &mut self,
        out: &mut Vec<Effect<W>>,
        act: impl FnOnce(&mut Primary<Entry>, &mut Vec<replication::Effect<Entry>>) -> bool,
    ) {
        let advanced = act(&mut self.primary, &mut self.asked);
        out.extend(self.asked.drain(..).map(Effect::from));
        let durable = self.primary.durable_here();
        while let Some(entry) = self.waiting_local.first_entry() {
            if entry.key().0 >= durable {
                break;
            }
            let ((lsn, _), waiting) = entry.remove_entry();
            out.push(self.ack(waiting, lsn, Acks::Local));
        }
        if advanced {
            self.apply_committed(out);
        }
    }

    /// The primary.
    #[must_use]
    pub fn primary(&self) -> &Primary<Entry> {
        &self.primary
    }

    pub(super) fn primary_mut(&mut self) -> &mut Primary<Entry> {
        &mut self.primary
    }

    /// Sends replicas what was appended.
    pub(super) fn pump(&mut self, out: &mut Vec<Effect<W>>) {
        self.primary.pump(&mut self.asked);
        out.extend(self.asked.drain(..).map(Effect::from));
    }

    /// Leads no more: gives back the primary, whose log goes on in another role.
    #[must_use]
    pub fn into_primary(self) -> Primary<Entry> {
        self.primary
    }

    /// Begins a partition, unless it is there.
    pub fn create(&mut self, partition: PartitionId, name: &[u8], out: &mut Vec<Effect<W>>) {
        if self.partitions.contains_key(&partition) {
            return;
        }
        self.partitions.insert(partition, Partition::default());
        let body = Bytes::copy_from_slice(name);
        let lsn = self.append(EntryKind::PartitionCreate, partition, body, out);
        self.pending.push_back((lsn, partition, Pending::Create));
    }

    /// Ends a partition with all that is in it. Batches in flight are acked: they were stored.
    pub fn drop_partition(&mut self, partition: PartitionId, out: &mut Vec<Effect<W>>) {
        if self.partitions.remove(&partition).is_none() {
            return;
        }
        let lsn = self.append(EntryKind::PartitionDrop, partition, Bytes::new(), out);
        self.pending.push_back((lsn, partition, Pending::Drop));
    }

    /// Drops the records of a partition before `start`, as far as they are committed.
    pub fn trim(&mut self, partition: PartitionId, start: Offset, out: &mut Vec<Effect<W>>) {
        let Some(state) = self.partitions.get_mut(&partition) else { return };
        let start = start.min(state.committed);
        if start <= state.trimming {
            return;
        }
        state.trimming = start;
        let lsn = self.append(EntryKind::Trim, partition, trim_body(start), out);
        self.pending.push_back((lsn, partition, Pending::Trim { start }));
    }

    /// Forgets producers that have been silent for [`PRODUCER_IDLE_MAX`] by the wall clock, and for
    /// [`PRODUCER_SILENCE_MIN`] by this node's own count of time: at most `most` of them. A clock may be wrong by years on
    /// whoever led before, or here.
    pub fn expire_producers(
        &mut self,
        wall: Timestamp,
        now: Duration,
        most: usize,
        out: &mut Vec<Effect<W>>,
    ) {
        let mut silent = BTreeMap::new();
        for (id, partition) in &self.partitions {
            for (producer, state) in &partition.producers {
                let newest = state.last();
                if newest.is_some_and(|b| wall.since(b.append_time) <= PRODUCER_IDLE_MAX) {
                    continue;
                }
                let (key, newest) = ((*id, *producer), newest.map_or(Lsn(0), |batch| batch.lsn));
                let known = self.silent.get(&key).filter(|(lsn, _)| *lsn == newest);
                silent.insert(key, (newest, known.map_or(now, |(_, since)| *since)));
            }
        }
        let long = |since: &Duration| {
            now.saturating_sub(*since) >= PRODUCER_SILENCE_MIN || mutant!(ImpatientExpiry)
        };
        let over: Vec<_> = silent
            .iter()
            .filter(|(_, (_, since))| long(since))
            .map(|(key, _)| *key)
            .take(most)
            .collect();
        self.silent = silent;
        for (partition, producer) in over {
            self.silent.remove(&(partition, producer));
            self.expire(partition, producer, out);
        }
    }

    /// A partition's bounds, none if it is not in this shard.
    #[must_use]
    pub fn view(&self, partition: PartitionId) -> Option<PartitionView> {
        self.partitions.get(&partition).map(Partition::view)
    }

    /// The partitions of this shard.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionId> + '_ {
        self.partitions.keys().copied()
    }

    /// Where the log ends, and how far it is committed.
    #[must_use]
    pub fn log(&self) -> (LogEnd, Lsn) {
        (self.primary.end(), self.primary.high_watermark())
    }

    /// Whether the end of the log is known to be committed.
    #[must_use]
    pub fn is_recovered(&self) -> bool {
        self.primary.is_recovered()
    }

    /// Batches that wait for their ack.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting_local.len() + self.waiting_replicated.len()
    }

    /// Takes all that wait for an ack: the node can no longer tell what becomes of their batches.
    pub fn abandon(&mut self) -> Vec<Waiter<W>> {
        let local = std::mem::take(&mut self.waiting_local);
        let replicated = std::mem::take(&mut self.waiting_replicated);
        local.into_values().chain(replicated.into_values()).map(|w| w.waiter).collect()
    }

    fn admit(&self, input: &PublishInput<W>) -> Result<Option<Remembered>, Reject> {
        let id = input.partition;
        let partition = self.partitions.get(&id).ok_or(Reject::UnknownPartition(id))?;
        self.primary.check_copies(input.require_copies)?;
        let header = &input.header;
        if partition.end.checked_add(u64::from(header.records)).is_none() {
            return Err(Reject::OffsetsExhausted(id));
        }
        if !header.producer.is_some() {
            return Ok(None);
        }
        let sequence = header.sequence;
        let Some(producer) = partition.producers.get(&header.producer) else {
            return match sequence.0 {
                0 => Ok(None),
                _ => Err(Reject::UnknownProducer { sequence }),
            };
        };
        match producer.look_up(sequence) {
            Seen::Next => Ok(None),
            Seen::Again(stored) => Ok(Some(stored)),
            Seen::Gap { expected } => Err(Reject::SequenceGap { sequence, expected }),
            Seen::TooOld { expected } => Err(Reject::SequenceTooOld { sequence, expected }),
        }
    }

    fn append_batch(&mut self, input: PublishInput<W>, now: Timestamp, out: &mut Vec<Effect<W>>) {
        let PublishInput { waiter, partition: id, acks, header, mut batch, .. } = input;
        if header.producer.is_some() {
            self.make_room_for(id, header.producer, out);
        }
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        let base_offset = partition.end;
        let append_time = now.max(partition.newest);
        stamp(&mut batch, base_offset, append_time);
        partition.end = Offset(base_offset.0 + u64::from(header.records));
        partition.newest = append_time;
        let end = partition.end;
        let lsn = self.append(EntryKind::Records, id, batch.freeze(), out);
        let sequence = header.sequence;
        self.note(id, header.producer, Remembered { sequence, base_offset, lsn, append_time });
        self.pending.push_back((lsn, id, Pending::Records { end }));
        self.wait(lsn, acks, Waiting { waiter, partition: id.index, base_offset }, out);
    }

    fn note(&mut self, partition: PartitionId, producer: ProducerId, batch: Remembered) {
        if !producer.is_some() {
            return;
        }
        if let Some(state) = self.partitions.get_mut(&partition) {
            state.producers.entry(producer).or_default().note(batch);
        }
    }

    fn make_room_for(&mut self, id: PartitionId, new: ProducerId, out: &mut Vec<Effect<W>>) {
        let full = |p: &&Partition| {
            !p.producers.contains_key(&new) && p.producers.len() >= PRODUCERS_PER_PARTITION_MAX
        };
        let stalest = self.partitions.get(&id).filter(full).and_then(Partition::stalest_producer);
        if let Some(stalest) = stalest {
            self.expire(id, stalest, out);
        }
    }

    fn expire(&mut self, id: PartitionId, producer: ProducerId, out: &mut Vec<Effect<W>>) {
        self.append(EntryKind::ProducerExpire, id, expire_body(producer), out);
        self.forget(id, producer);
    }

    fn forget(&mut self, id: PartitionId, producer: ProducerId) {
        if let Some(partition) = self.partitions.get_mut(&id) {
            partition.producers.remove(&producer);
        }
    }

    fn append(
        &mut self,
        kind: EntryKind,
        partition: PartitionId,
        body: Bytes,
        out: &mut Vec<Effect<W>>,
    ) -> Lsn {
        let end = self.primary.end();
        let place = Place {
            shard: self.id,
            lsn: end.lsn,
            epoch: self.primary.epoch(),
            prev_chain: end.chain,
        };
        let entry = Entry::seal(place, kind, partition, body);
        self.primary.append(entry, &mut self.asked);
        out.extend(self.asked.drain(..).map(Effect::from));
        end.lsn
    }

    fn wait(&mut self, lsn: Lsn, acks: Acks, waiting: Waiting<W>, out: &mut Vec<Effect<W>>) {
        let (map, reached) = match acks {
            Acks::None => {
                out.push(self.ack(waiting, lsn, Acks::None));
                return;
            }
            Acks::Local => (&mut self.waiting_local, self.primary.durable_here()),
            Acks::Replicated => (&mut self.waiting_replicated, self.primary.high_watermark()),
        };
        if lsn < reached {
            out.push(self.ack(waiting, lsn, acks));
            return;
        }
        map.insert((lsn, self.waits), waiting);
        self.waits += 1;
    }

    fn ack(&self, waiting: Waiting<W>, lsn: Lsn, level: Acks) -> Effect<W> {
        let Waiting { waiter, partition, base_offset } = waiting;
        let copies = self.primary.copies_of(lsn);
        // The level that was reached, not the one that was asked for: a batch that was sent again may be further.
        let level = if lsn < self.primary.high_watermark() { Acks::Replicated } else { level };
        Effect::Ack(
            waiter.handle,
            Ack { index: waiter.index, partition, base_offset, level, copies },
        )
    }

    fn apply_committed(&mut self, out: &mut Vec<Effect<W>>) {
        let committed = self.primary.high_watermark();
        let mut changed = BTreeSet::new();
        while let Some(&(lsn, partition, pending)) = self.pending.front() {
            if lsn >= committed {
                break;
            }
            self.pending.pop_front();
            self.apply(partition, pending, &mut changed, out);
        }
        for partition in changed {
            if let Some(view) = self.view(partition) {
                out.push(Effect::Committed(Committed { partition, view }));
            }
        }
        while let Some(entry) = self.waiting_replicated.first_entry() {
            if entry.key().0 >= committed {
                break;
            }
            let ((lsn, _), waiting) = entry.remove_entry();
            out.push(self.ack(waiting, lsn, Acks::Replicated));
        }
    }

    fn apply(
        &mut self,
        id: PartitionId,
        pending: Pending,
        changed: &mut BTreeSet<PartitionId>,
        out: &mut Vec<Effect<W>>,
    ) {
        if let Pending::Recovered = pending {
            for (id, partition) in &mut self.partitions {
                partition.committed = partition.committed.max(partition.found_end);
                changed.insert(*id);
            }
            return;
        }
        if let Pending::Drop = pending {
            changed.remove(&id);
            out.push(Effect::Dropped(id));
            return;
        }
        // A partition that was dropped after this entry has no bounds any more.
        let Some(partition) = self.partitions.get_mut(&id) else { return };
        match pending {
            Pending::Records { end } => partition.committed = end,
            Pending::Trim { start } => partition.start = start,
            Pending::Create | Pending::Drop | Pending::Recovered => {}
        }
        changed.insert(id);
    }

    fn replay(&mut self, entry: &Entry) -> Result<(), BadEntry> {
        let id = entry.header.partition;
        match entry.header.kind {
            EntryKind::Records => {
                let batch = entry.batch_header()?;
                let remembered = Remembered {
                    sequence: batch.sequence,
                    base_offset: batch.base_offset,
                    lsn: entry.header.lsn,
                    append_time: batch.append_time,
                };
                self.note(id, batch.producer, remembered);
            }
            EntryKind::ProducerExpire => {
                self.forget(id, entry.expired_producer()?);
            }
            // Storage has followed these itself: they are in the bounds that it found.
            EntryKind::Trim
            | EntryKind::PartitionCreate
            | EntryKind::PartitionDrop
            | EntryKind::EpochStart => {}
        }
        Ok(())
    }

    fn start_epoch(&mut self, now: Timestamp, out: &mut Vec<Effect<W>>) {
        let me = self.primary.me();
        let start = EpochStart {
            primary: me.node,
            incarnation: me.incarnation,
            set: self.primary.config().set.clone(),
            time: now,
        };
        let nowhere = PartitionId::default();
        let lsn = self.append(EntryKind::EpochStart, nowhere, start.body(), out);
        self.pending.push_back((lsn, nowhere, Pending::Recovered));
    }
}

impl Recovery {
    /// Adds producer state that a checkpoint wrote.
    ///
    /// # Errors
    /// [`BadState`] when it is something else.
    pub fn add_producer(
        &mut self,
        partition: PartitionId,
        producer: ProducerId,
        state: &[u8],
    ) -> Result<(), BadState> {
        self.producers.push((partition, producer, ProducerState::decode(state)?));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
