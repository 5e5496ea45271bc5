//! What the committed part of a shard's log says, on every replica, whatever its role.
//!
//! A function of the log: entries are noted when they are appended, and take effect when they are committed. A log that
//! is cut loses only what had no effect yet, so that nothing ever has to be undone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::{
    partition::PartitionView,
    producer::{ProducerState, Remembered},
    shard::{Committed, Recovery},
};
use crate::{
    types::{Lsn, Offset, PartitionId, ProducerId, Timestamp},
    wire::{
        Entry, EntryKind,
        batch::BATCH_HEADER_LEN,
        entry::{BadEntry, EntryHeader},
    },
};

/// The applied state of one shard on one node, and the entries that wait to be applied.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    partitions: BTreeMap<PartitionId, Partition>,
    /// Entries below this are in the state.
    committed: Lsn,
    /// Entries from there on, batches without their records.
    pending: VecDeque<Entry>,
    /// Producer state that changed since the last checkpoint.
    dirty: BTreeSet<(PartitionId, ProducerId)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Partition {
    start: Offset,
    end: Offset,
    /// Append time of the newest batch.
    newest: Timestamp,
    producers: BTreeMap<ProducerId, ProducerState>,
}

/// Producer state that changed, as of a position of the log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The state is that of all entries below this.
    pub applied: Lsn,
    /// New or changed.
    pub put: Vec<(PartitionId, ProducerId, Bytes)>,
    /// Gone.
    pub delete: Vec<(PartitionId, ProducerId)>,
}

/// What readers of this node must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A partition has new bounds.
    Bounds(Committed),
    /// A partition is gone.
    Dropped(PartitionId),
}

impl Applied {
    /// Takes up what the disk holds: ends of partitions as of the log's end, their starts and the producers as of the
    /// checkpoint, the entries since.
    ///
    /// # Errors
    /// [`BadEntry`] when the log's tail cannot be understood.
    pub fn new(found: Recovery, committed: Lsn) -> Result<Self, BadEntry> {
        let mut state = Self { committed, ..Self::default() };
        for (id, start, end, newest) in found.partitions {
            let producers = BTreeMap::new();
            state.partitions.insert(id, Partition { start, end, newest, producers });
        }
        for (id, producer, kept) in found.producers {
            match state.partitions.get_mut(&id) {
                Some(partition) => drop(partition.producers.insert(producer, kept)),
                // Dropped, and the checkpoint does not say so yet: the next one does. If the drop itself is cut off, the
                // partition is of a deleted topic all the same.
                None => drop(state.dirty.insert((id, producer))),
            }
        }
        let mut shown = BTreeSet::new();
        for entry in found.tail {
            let id = entry.header.partition;
            if entry.header.lsn >= committed {
                if entry.header.kind == EntryKind::Records && shown.insert(id) {
                    let base = entry.batch_header()?.base_offset;
                    if let Some(partition) = state.partitions.get_mut(&id) {
                        partition.end = partition.end.min(base);
                    }
                }
                state.pending.push_back(entry);
            } else {
                if entry.header.kind == EntryKind::Trim {
                    apply_bounds(&mut state.partitions, &entry)?;
                }
                state.replay(&entry)?;
            }
        }
        Ok(state)
    }

    /// Notes an entry that was put behind the log.
    pub fn append(&mut self, entry: &Entry) {
        let body = match entry.header.kind {
            // A copy: the batch itself must not stay in memory until it is committed.
            EntryKind::Records => {
                Bytes::copy_from_slice(&entry.body[..entry.body.len().min(BATCH_HEADER_LEN)])
            }
            _ => entry.body.clone(),
        };
        self.pending.push_back(Entry { header: entry.header, body });
    }

    /// The log was cut: entries from `end` on are no more. Returns where the batches among them began.
    pub fn truncate(&mut self, end: Lsn) -> Vec<(PartitionId, Offset)> {
        debug_assert!(end >= self.committed, "what is committed is never cut");
        let mut cut = Vec::new();
        while let Some(entry) = self.pending.pop_back_if(|entry| entry.header.lsn >= end) {
            cut.extend(entry.batch_header().map(|b| (entry.header.partition, b.base_offset)));
        }
        cut
    }

    /// The entries below `committed` are committed, and durable here: they take effect.
    ///
    /// # Errors
    /// [`BadEntry`] when one of them cannot be understood: the primary wrote it, so this is a newer program's log.
    pub fn commit_to(&mut self, committed: Lsn, out: &mut Vec<Seen>) -> Result<(), BadEntry> {
        let mut changed = BTreeSet::new();
        while let Some(entry) = self.pending.pop_front_if(|entry| entry.header.lsn < committed) {
            let id = entry.header.partition;
            match entry.header.kind {
                EntryKind::PartitionDrop => {
                    changed.remove(&id);
                    out.push(Seen::Dropped(id));
                }
                EntryKind::Records | EntryKind::Trim | EntryKind::PartitionCreate => {
                    changed.insert(id);
                }
                EntryKind::EpochStart | EntryKind::ProducerExpire => {}
            }
            self.apply(&entry)?;
        }
        self.committed = self.committed.max(committed);
        let bounds = changed.into_iter().filter_map(|id| Some((id, self.view(id)?)));
        out.extend(bounds.map(|(partition, view)| Seen::Bounds(Committed { partition, view })));
        Ok(())
    }

    /// Entries below this are in the state.
    #[must_use]
    pub fn committed(&self) -> Lsn {
        self.committed
    }

    /// A partition's committed bounds, none if it is not in this shard.
    #[must_use]
    pub fn view(&self, id: PartitionId) -> Option<PartitionView> {
        self.partitions.get(&id).map(|p| PartitionView { start: p.start, end: p.end })
    }

    /// The committed bounds of all partitions.
    pub fn views(&self) -> impl Iterator<Item = Committed> + '_ {
        self.partitions.iter().map(|(partition, p)| Committed {
            partition: *partition,
            view: PartitionView { start: p.start, end: p.end },
        })
    }

    /// The producer state that changed since the last call, as of the committed end.
    pub fn checkpoint(&mut self) -> Checkpoint {
        let mut checkpoint = Checkpoint { applied: self.committed, ..Checkpoint::default() };
        for (partition, producer) in std::mem::take(&mut self.dirty) {
            let state = self.partitions.get(&partition).and_then(|p| p.producers.get(&producer));
            match state {
                Some(state) => {
                    let bytes = state.encode_before(self.committed);
                    checkpoint.put.push((partition, producer, bytes));
                }
                None => checkpoint.delete.push((partition, producer)),
            }
        }
        checkpoint
    }

    /// What a primary begins with: the state, and the entries that it must take up with the log.
    ///
    /// # Errors
    /// [`BadEntry`] when one of them cannot be understood.
    pub fn recovery(&self) -> Result<Recovery, BadEntry> {
        // Bounds include what is not committed: the next epoch confirms it.
        let mut ahead: BTreeMap<PartitionId, Partition> = self
            .partitions
            .iter()
            .map(|(id, p)| (*id, Partition { producers: BTreeMap::new(), ..p.clone() }))
            .collect();
        for entry in &self.pending {
            apply_bounds(&mut ahead, entry)?;
        }
        let producers =
            self.partitions.iter().filter(|(id, _)| ahead.contains_key(id)).flat_map(|(id, p)| {
                p.producers.iter().map(|(producer, state)| (*id, *producer, state.clone()))
            });
        Ok(Recovery {
            producers: producers.collect(),
            tail: self.pending.iter().cloned().collect(),
            partitions: ahead.into_iter().map(|(id, p)| (id, p.start, p.end, p.newest)).collect(),
        })
    }

    fn apply(&mut self, entry: &Entry) -> Result<(), BadEntry> {
        let id = entry.header.partition;
        if entry.header.kind == EntryKind::PartitionDrop
            && let Some(partition) = self.partitions.get(&id)
        {
            self.dirty.extend(partition.producers.keys().map(|producer| (id, *producer)));
        }
        apply_bounds(&mut self.partitions, entry)?;
        self.replay(entry)
    }

    /// Takes over what an entry says of a producer.
    fn replay(&mut self, entry: &Entry) -> Result<(), BadEntry> {
        let EntryHeader { partition: id, lsn, kind, .. } = entry.header;
        let Some(partition) = self.partitions.get_mut(&id) else { return Ok(()) };
        match kind {
            EntryKind::Records => {
                let batch = entry.batch_header()?;
                if !batch.producer.is_some() {
                    return Ok(());
                }
                let (sequence, base_offset) = (batch.sequence, batch.base_offset);
                let append_time = batch.append_time;
                let remembered = Remembered { sequence, base_offset, lsn, append_time };
                partition.producers.entry(batch.producer).or_default().note(remembered);
                self.dirty.insert((id, batch.producer));
            }
            EntryKind::ProducerExpire => {
                let producer = entry.expired_producer()?;
                partition.producers.remove(&producer);
                self.dirty.insert((id, producer));
            }
            EntryKind::Trim
            | EntryKind::PartitionCreate
            | EntryKind::PartitionDrop
            | EntryKind::EpochStart => {}
        }
        Ok(())
    }
}

/// Takes over what an entry says of the bounds of its partition.
fn apply_bounds(
    partitions: &mut BTreeMap<PartitionId, Partition>,
    entry: &Entry,
) -> Result<(), BadEntry> {
    let id = entry.header.partition;
    match entry.header.kind {
        EntryKind::Records => {
            let batch = entry.batch_header()?;
            let partition = partitions.entry(id).or_default();
            partition.end = batch.end_offset();
            partition.newest = partition.newest.max(batch.append_time);
        }
        EntryKind::PartitionCreate => drop(partitions.entry(id).or_default()),
        EntryKind::PartitionDrop => drop(partitions.remove(&id)),
        EntryKind::Trim => {
            let start = entry.trim_start()?;
            if let Some(partition) = partitions.get_mut(&id) {
                partition.start = partition.start.max(start);
            }
        }
        EntryKind::EpochStart | EntryKind::ProducerExpire => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests;
