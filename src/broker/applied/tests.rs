use bytes::BytesMut;

use super::*;
use crate::{
    types::{Epoch, Sequence, ShardId, TopicId},
    wire::{
        BatchBuilder, Compression, Record,
        entry::{Place, expire_body, trim_body},
        stamp,
    },
};

const P: PartitionId = PartitionId { topic: TopicId(5), index: 0 };
const Q: PartitionId = PartitionId { topic: TopicId(5), index: 1 };
const PRODUCER: ProducerId = ProducerId(7);

/// Makes entries as a primary would.
#[derive(Default)]
struct Log {
    entries: Vec<Entry>,
}

impl Log {
    fn put(&mut self, kind: EntryKind, partition: PartitionId, body: Bytes) {
        let lsn = Lsn(self.entries.len() as u64);
        let prev_chain = self.entries.last().map_or(0, |entry| entry.header.chain);
        let place = Place { shard: ShardId(0), lsn, epoch: Epoch(1), prev_chain };
        self.entries.push(Entry::seal(place, kind, partition, body));
    }

    fn records(&mut self, partition: PartitionId, base: u64, count: usize, sequence: u64) {
        let mut builder = BatchBuilder::new(10_000);
        (0..count).for_each(|_| drop(builder.push(&Record::new("x"))));
        let bytes = builder.finish(Compression::None, PRODUCER, Sequence(sequence));
        let mut bytes = BytesMut::from(&bytes[..]);
        stamp(&mut bytes, Offset(base), Timestamp(base + 1));
        self.put(EntryKind::Records, partition, bytes.freeze());
    }

    /// Two partitions, batches in both, a trim, a silent producer, one partition dropped at the end.
    fn story() -> Self {
        let mut log = Self::default();
        log.put(EntryKind::PartitionCreate, P, Bytes::new());
        log.put(EntryKind::PartitionCreate, Q, Bytes::new());
        log.records(P, 0, 3, 0);
        log.records(Q, 0, 1, 0);
        log.records(P, 3, 2, 1);
        log.put(EntryKind::Trim, P, trim_body(Offset(3)));
        log.put(EntryKind::ProducerExpire, P, expire_body(PRODUCER));
        log.records(P, 5, 1, 0);
        log.put(EntryKind::PartitionDrop, Q, Bytes::new());
        log
    }
}

fn applied(log: &Log, appended: usize, committed: u64) -> (Applied, Vec<Seen>) {
    let mut state = Applied::default();
    let mut seen = Vec::new();
    log.entries[..appended].iter().for_each(|entry| state.append(entry));
    state.commit_to(Lsn(committed), &mut seen).expect("own work");
    (state, seen)
}

fn view(start: u64, end: u64) -> Option<PartitionView> {
    Some(PartitionView { start: Offset(start), end: Offset(end) })
}

#[test]
fn what_is_not_committed_does_not_show() {
    let log = Log::story();
    let (state, seen) = applied(&log, log.entries.len(), 3);
    assert_eq!((state.view(P), state.view(Q)), (view(0, 3), view(0, 0)));
    assert_eq!(seen.len(), 2, "{seen:?}");
    let (state, seen) = applied(&log, log.entries.len(), 9);
    assert_eq!((state.view(P), state.view(Q)), (view(3, 6), None));
    assert!(seen.contains(&Seen::Dropped(Q)), "{seen:?}");
}

#[test]
fn in_steps_or_at_once_is_the_same() {
    let log = Log::story();
    let (mut at_once, _) = applied(&log, log.entries.len(), 9);
    let mut steps = Applied::default();
    for (lsn, entry) in (1..).zip(&log.entries) {
        steps.append(entry);
        steps.commit_to(Lsn(lsn), &mut Vec::new()).expect("own work");
    }
    assert_eq!(steps.partitions, at_once.partitions);
    assert_eq!(steps.checkpoint(), at_once.checkpoint());
}

#[test]
fn what_was_cut_off_has_left_nothing() {
    let log = Log::story();
    let (mut cut, _) = applied(&log, log.entries.len(), 3);
    assert_eq!(cut.truncate(Lsn(5)), [(P, Offset(5))]);
    let (whole, _) = applied(&log, 5, 3);
    assert_eq!((&cut.partitions, &cut.pending), (&whole.partitions, &whole.pending));
    assert_eq!(cut.checkpoint(), whole.clone().checkpoint());
}

/// A checkpoint at any position, then a restart with any committed end behind it, gives the state of an unbroken run.
#[test]
fn a_restart_finds_the_same_state() {
    let log = Log::story();
    let len = log.entries.len() as u64;
    for checkpoint in 0..=len {
        for committed in checkpoint..=len {
            let (before, _) = applied(&log, log.entries.len(), checkpoint);
            let (ahead, _) = applied(&log, log.entries.len(), len);
            let bounds = |(id, p): (&PartitionId, &Partition)| (*id, p.start, p.end, p.newest);
            let mut found = Recovery {
                partitions: ahead.partitions.iter().map(bounds).collect(),
                tail: before.pending.into_iter().collect(),
                ..Recovery::default()
            };
            for (id, partition) in &before.partitions {
                for (producer, state) in &partition.producers {
                    found.producers.push((*id, *producer, state.clone()));
                }
            }
            let found = Applied::new(found, Lsn(committed)).expect("own work");
            let (want, _) = applied(&log, log.entries.len(), committed);
            let at = format!("checkpoint at {checkpoint}, committed to {committed}");
            assert_eq!(found.pending, want.pending, "{at}");
            let (found, want) = (&found.partitions[&P], want.partitions.get(&P));
            let want = want.cloned().unwrap_or_default();
            assert_eq!((found.end, &found.producers), (want.end, &want.producers), "{at}");
        }
    }
}

#[test]
fn a_primary_begins_with_all_that_the_log_holds() {
    let log = Log::story();
    let (state, _) = applied(&log, 8, 3);
    let recovery = state.recovery().expect("own work");
    let bounds: Vec<_> = recovery.partitions.iter().map(|(id, s, e, _)| (*id, s.0, e.0)).collect();
    assert_eq!(bounds, [(P, 3, 6), (Q, 0, 1)]);
    assert_eq!(recovery.tail.len(), 5);
    assert_eq!(recovery.producers.len(), 1);
}
