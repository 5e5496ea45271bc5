//! Topics as streams see them: names to partitions, with their bounds to be read without a lock.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    broker::PartitionView,
    cluster::TopicRecord,
    types::{Offset, PartitionId, ShardId, TopicId, TopicName, TopicSettings},
};

/// The topics of the site.
#[derive(Debug, Default)]
pub(super) struct TopicTable {
    by_name: RwLock<BTreeMap<TopicName, Arc<Topic>>>,
}

/// A topic. A change of its settings makes a new value with the same partitions.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: TopicName,
    pub(super) id: TopicId,
    pub(super) settings: TopicSettings,
    pub(super) created: crate::types::Timestamp,
    pub(super) partitions: Vec<Arc<Partition>>,
}

/// A partition.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) id: PartitionId,
    pub(super) shard: ShardId,
    start: AtomicU64,
    end: AtomicU64,
    dropped: AtomicBool,
    /// Shared by the partitions of a topic: a reader of several waits for one thing.
    changed: Arc<watch::Sender<()>>,
    recent: Mutex<VecDeque<Recent>>,
}

/// A batch that was appended a moment ago.
#[derive(Debug)]
struct Recent {
    base: Offset,
    end: Offset,
    batch: Bytes,
}

impl TopicTable {
    pub(super) fn get(&self, name: &TopicName) -> Option<Arc<Topic>> {
        self.read().get(name).cloned()
    }

    /// Whether this is in the table as it is.
    pub(super) fn has(&self, name: &TopicName, record: &TopicRecord) -> bool {
        let same = |topic: &Arc<Topic>| {
            topic.id == record.id
                && topic.settings == record.settings
                && topic.created == record.created
        };
        self.read().get(name).is_some_and(same)
    }

    pub(super) fn len(&self) -> usize {
        self.read().len()
    }

    pub(super) fn all(&self) -> Vec<Arc<Topic>> {
        self.read().values().cloned().collect()
    }

    /// A page of topics behind `after`, and whether there are more.
    pub(super) fn page(&self, after: Option<&TopicName>, most: usize) -> (Vec<Arc<Topic>>, bool) {
        use std::ops::Bound::{Excluded, Unbounded};
        let topics = self.read();
        let range = match after {
            Some(name) => topics.range((Excluded(name.clone()), Unbounded)),
            None => topics.range::<TopicName, _>(..),
        };
        let mut page: Vec<_> = range.take(most + 1).map(|(_, topic)| Arc::clone(topic)).collect();
        let more = page.len() > most;
        page.truncate(most);
        (page, more)
    }

    /// Puts a topic in, or its new settings. Partitions that are known stay the same values.
    pub(super) fn put(&self, name: &TopicName, record: &TopicRecord) -> Arc<Topic> {
        let mut topics = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        let partitions = match topics.get(name) {
            Some(known) if known.id == record.id => known.partitions.clone(),
            _ => partitions(record),
        };
        let topic = Arc::new(Topic {
            name: name.clone(),
            id: record.id,
            settings: record.settings.clone(),
            created: record.created,
            partitions,
        });
        topics.insert(name.clone(), Arc::clone(&topic));
        topic
    }

    pub(super) fn remove(&self, name: &TopicName) -> Option<Arc<Topic>> {
        self.by_name.write().unwrap_or_else(PoisonError::into_inner).remove(name)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<TopicName, Arc<Topic>>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Partition {
    pub(super) fn start(&self) -> Offset {
        Offset(self.start.load(Ordering::Acquire))
    }

    /// Offset behind the newest record that may be read.
    pub(super) fn end(&self) -> Offset {
        Offset(self.end.load(Ordering::Acquire))
    }

    pub(super) fn is_dropped(&self) -> bool {
        self.dropped.load(Ordering::Acquire)
    }

    pub(super) fn is_watched(&self) -> bool {
        self.changed.receiver_count() > 0
    }

    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Takes new bounds. They are published before readers are woken.
    pub(super) fn set_view(&self, view: PartitionView) {
        self.start.store(view.start.0, Ordering::Release);
        self.end.store(view.end.0, Ordering::Release);
        self.changed.send_replace(());
    }

    pub(super) fn set_dropped(&self) {
        self.dropped.store(true, Ordering::Release);
        self.changed.send_replace(());
    }

    /// Remembers a batch for the readers that are at the end.
    pub(super) fn remember(&self, base: Offset, end: Offset, batch: Bytes) {
        self.recent().push_back(Recent { base, end, batch });
    }

    /// Batches from this offset on were cut off the log.
    pub(super) fn forget_from(&self, base: Offset) {
        self.recent().retain(|recent| recent.end <= base);
    }

    pub(super) fn forget_oldest(&self) {
        self.recent().pop_front();
    }

    /// Batches from the one that holds `from` on, up to `end`, about `bytes_max`; none when they are not in memory.
    pub(super) fn recent_from(
        &self,
        from: Offset,
        end: Offset,
        bytes_max: usize,
    ) -> Option<(Vec<Bytes>, Offset)> {
        let recent = self.recent();
        let first = recent.partition_point(|r| r.end <= from);
        if recent.get(first)?.base > from {
            return None;
        }
        let (mut batches, mut next, mut bytes) = (Vec::new(), from, 0);
        for r in recent.range(first..) {
            let gap = !batches.is_empty() && r.base != next;
            bytes += r.batch.len();
            if gap || r.end > end || (bytes > bytes_max && !batches.is_empty()) {
                break;
            }
            batches.push(r.batch.clone());
            next = r.end;
        }
        (!batches.is_empty()).then_some((batches, next))
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<Recent>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn partitions(record: &TopicRecord) -> Vec<Arc<Partition>> {
    let changed = Arc::new(watch::Sender::new(()));
    (0..)
        .zip(&record.shards)
        .map(|(index, shard)| {
            Arc::new(Partition {
                id: PartitionId { topic: record.id, index },
                shard: *shard,
                start: AtomicU64::new(0),
                end: AtomicU64::new(0),
                dropped: AtomicBool::new(false),
                changed: Arc::clone(&changed),
                recent: Mutex::default(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Timestamp;

    fn partition() -> Arc<Partition> {
        let record = TopicRecord {
            id: TopicId(1),
            settings: TopicSettings::default(),
            shards: vec![ShardId(0)],
            created: Timestamp(0),
        };
        partitions(&record).remove(0)
    }

    fn remember(partition: &Partition, base: u64, end: u64) {
        partition.remember(Offset(base), Offset(end), Bytes::from(vec![0; 10]));
    }

    #[track_caller]
    fn check(p: &Partition, from: u64, end: u64, bytes: usize, want: Option<(usize, u64)>) {
        let found = p.recent_from(Offset(from), Offset(end), bytes);
        assert_eq!(found.map(|(batches, next)| (batches.len(), next.0)), want);
    }

    #[test]
    fn recent_batches_are_found_by_any_offset_in_them_and_never_past_the_end() {
        let p = partition();
        remember(&p, 10, 15);
        remember(&p, 15, 20);
        check(&p, 9, 20, 100, None);
        check(&p, 10, 20, 100, Some((2, 20)));
        check(&p, 12, 20, 100, Some((2, 20)));
        check(&p, 15, 20, 100, Some((1, 20)));
        check(&p, 10, 15, 100, Some((1, 15)));
        check(&p, 10, 20, 1, Some((1, 15)));
        check(&p, 20, 20, 100, None);
        p.forget_oldest();
        check(&p, 10, 20, 100, None);
    }

    #[test]
    fn a_gap_in_memory_ends_the_run() {
        let p = partition();
        remember(&p, 10, 15);
        remember(&p, 17, 20);
        check(&p, 10, 20, 100, Some((1, 15)));
        check(&p, 15, 20, 100, None);
    }

    #[test]
    fn what_was_cut_off_the_log_is_forgotten_and_what_comes_in_its_place_is_found() {
        let p = partition();
        remember(&p, 10, 15);
        remember(&p, 15, 20);
        p.forget_from(Offset(15));
        check(&p, 15, 20, 100, None);
        check(&p, 10, 20, 100, Some((1, 15)));
        remember(&p, 15, 17);
        check(&p, 10, 20, 100, Some((2, 17)));
    }
}
