//! What a replica asks of the store besides entries.

use std::sync::mpsc::{Sender, channel};

use dunlin::{
    storage::{
        Change, CommitQueue, CommitSink, CommitThread, LogPoint, Reservation, ShardCheckpoint,
        Store, StoreError,
    },
    types::{Epoch, Lsn, Offset, PartitionId, ShardId, TopicId},
    wire::EntryKind,
};

use super::{
    disk::Disk,
    model::{Step, Truth},
    rng::Rng,
    sweep::survivor,
    workload::{Author, OPTIONS, SHARDS, open, shard_of},
};

const ID: PartitionId = PartitionId { topic: TopicId(0), index: 0 };
const LONG: std::time::Duration = std::time::Duration::from_secs(60);

/// The control: a store that forgot a cut, or an entry behind it, would be noticed.
#[test]
fn a_cut_that_were_forgotten_would_be_found() {
    let shard = shard_of(ID);
    for checkpointed in [false, true] {
        let disk = Disk::default();
        let (_, mut writer, _) =
            Store::open_backend(disk.clone(), disk.journal(), OPTIONS).expect("a good disk");
        let (mut truth, mut forgetful) = (Truth::new(SHARDS), Truth::new(SHARDS));
        let mut author = Author::new(&truth);
        let entries: Vec<_> = (0..9).map(|_| author.records(ID, 300, 2, &mut Rng(5))).collect();
        writer.commit(&entries).expect("a good disk");
        if checkpointed {
            writer.checkpoint(Vec::new()).expect("a good disk");
        }
        for truth in [&mut truth, &mut forgetful] {
            truth.apply(&Step::Commit(entries.clone()));
        }
        let cut = Change::Truncate(Lsn(4));
        writer.perform(&[], vec![(0, shard, cut.clone())]).expect("a good disk");
        truth.apply(&Step::Change(shard, cut));
        let image = disk.image();
        survivor(&image, &[truth.expect()], 1).expect("what was cut is gone");
        assert!(survivor(&image, &[forgetful.expect()], 1).is_err(), "a forgotten cut is noticed");

        let before = truth.clone();
        let again = vec![Author::new(&truth).records(ID, 100, 1, &mut Rng(6))];
        writer.commit(&again).expect("a good disk");
        truth.apply(&Step::Commit(again));
        drop(writer);
        survivor(&disk.image(), &[truth.expect()], 1).expect("what was written in its place");
        assert!(survivor(&disk.image(), &[before.expect()], 1).is_err());
    }
}

#[test]
fn a_high_watermark_is_durable_with_the_next_commit_and_costs_none() {
    let shard = shard_of(ID);
    let disk = Disk::default();
    let (_, mut writer, _) =
        Store::open_backend(disk.clone(), disk.journal(), OPTIONS).expect("a good disk");
    let mut author = Author::new(&Truth::new(SHARDS));
    let mut entry = || vec![author.records(ID, 50, 1, &mut Rng(1))];
    writer.commit(&entry()).expect("a good disk");
    let ios = disk.ios();
    writer.note_committed(shard, Lsn(1));
    assert!(writer.perform(&[], Vec::new()).expect("nothing to do").is_empty());
    assert_eq!(disk.ios(), ios, "no commit for its sake");
    let found = || open(disk.image()).expect("good").2.shards[usize::from(shard.0)].clone();
    assert_eq!(found().high_watermark, Lsn(0));
    writer.commit(&entry()).expect("a good disk");
    assert_eq!(found().high_watermark, Lsn(1));
    writer.checkpoint(Vec::new()).expect("a good disk");
    assert_eq!(found().high_watermark, Lsn(1), "a checkpoint holds it, too");
    let promise = Change::Promise(Epoch(7));
    let done = writer.perform(&[], vec![(0, shard, promise)]).expect("a good disk");
    assert_eq!(done, [(shard, 3)], "two appends and a promise");
    assert_eq!(found().promised, Epoch(7));
    let older = Change::Promise(Epoch(6));
    writer.perform(&[], vec![(0, shard, older)]).expect("a good disk");
    assert_eq!(found().promised, Epoch(7), "a promise only grows");
}

/// A trim that is not applied may be cut off: what a replica begins with must not have it (seed 23 of three nodes on real
/// stores hid records that the other two still showed).
#[test]
fn a_trim_that_may_be_cut_off_is_not_taken_for_applied() {
    for checkpointed in [false, true] {
        let disk = Disk::default();
        let (_, mut writer, _) =
            Store::open_backend(disk.clone(), disk.journal(), OPTIONS).expect("a good disk");
        let mut author = Author::new(&Truth::new(SHARDS));
        let mut entries: Vec<_> = (0..4).map(|_| author.records(ID, 100, 2, &mut Rng(5))).collect();
        entries.push(author.trim_to(ID, 6));
        writer.commit(&entries).expect("a good disk");
        if checkpointed {
            writer.checkpoint(Vec::new()).expect("a good disk");
        }
        drop(writer);
        let (store, mut writer, recovered) =
            Store::open_backend(disk.clone(), disk.journal(), OPTIONS).expect("a good disk");
        let found = recovered.partitions[0];
        assert_eq!((found.bounds.start, found.applied_start), (Offset(6), Offset(0)));
        let trim = entries[4].header.lsn;
        let cut = Change::Truncate(trim);
        writer.perform(&[], vec![(0, shard_of(ID), cut)]).expect("a good disk");
        assert_eq!(store.bounds(ID).expect("there").start, Offset(0));
    }
}

#[test]
fn what_the_collector_takes_from_a_log_is_told_and_stays_known() {
    let shard = shard_of(ID);
    let disk = Disk::default();
    let (store, mut writer, _) =
        Store::open_backend(disk.clone(), disk.journal(), OPTIONS).expect("a good disk");
    let mut author = Author::new(&Truth::new(SHARDS));
    let mut entries: Vec<_> = (0..40).map(|_| author.records(ID, 5_000, 1, &mut Rng(2))).collect();
    entries.push(author.trim_to(ID, 38));
    entries.push(author.control(
        shard,
        EntryKind::EpochStart,
        PartitionId::default(),
        Default::default(),
    ));
    writer.commit(&entries).expect("a good disk");
    let applied = Lsn(42);
    let handed = ShardCheckpoint { shard, applied, ..Default::default() };
    writer.checkpoint(vec![handed]).expect("a good disk");
    assert_eq!(store.log_start(shard), Lsn(0));
    while writer.collect_garbage(usize::MAX).expect("a good disk") {}
    let start = store.log_start(shard);
    assert!(start > Lsn(10) && start <= applied, "the log starts at {start}");
    assert_eq!(writer.take_starts(), [(shard, start)]);
    assert!(store.log_point(shard, start).expect("good").is_some());
    assert_eq!(store.log_point(shard, Lsn(start.0 - 1)).expect("good"), None);
    assert!(store.read_log(shard, Lsn(start.0 - 1), applied, 1).is_err());
    drop(writer);
    let (again, _, recovered) = open(disk.image()).expect("good");
    assert_eq!(recovered.shards[usize::from(shard.0)].start, start);
    assert_eq!(
        again.log_point(shard, start).expect("good"),
        store.log_point(shard, start).unwrap()
    );
}

struct Sink(Sender<Vec<(ShardId, u64)>>);

impl CommitSink for Sink {
    fn committed(&mut self, done: &[(ShardId, u64)]) {
        let _ = self.0.send(done.to_vec());
    }

    fn log_started(&mut self, _: &[(ShardId, Lsn)]) {}

    fn checkpoint(&mut self) -> Vec<ShardCheckpoint> {
        Vec::new()
    }

    fn failed(&mut self, error: &StoreError) {
        panic!("{error}");
    }
}

#[test]
fn the_queue_keeps_appends_and_changes_in_their_order() {
    let shard = shard_of(ID);
    let disk = Disk::default();
    let (store, writer, _) =
        Store::open_backend(disk.clone(), disk.journal(), OPTIONS).expect("a good disk");
    let queue = CommitQueue::new();
    let mut truth = Truth::new(SHARDS);
    let mut author = Author::new(&truth);
    let first: Vec<_> = (0..5).map(|_| author.records(ID, 100, 1, &mut Rng(1))).collect();
    truth.apply(&Step::Commit(first[..3].to_vec()));
    let instead = Author::new(&truth).records(ID, 200, 1, &mut Rng(2));
    for entry in first {
        queue.push(entry, Reservation::FREE).expect("open");
    }
    queue.push_change(shard, Change::Promise(Epoch(3))).expect("open");
    queue.push_change(shard, Change::Truncate(Lsn(3))).expect("open");
    queue.push(instead.clone(), Reservation::FREE).expect("open");
    queue.note_committed(shard, Lsn(3));
    let base = LogPoint { lsn: Lsn(9), epoch: Epoch(3), chain: 5 };
    let other = ShardId((shard.0 + 1) % SHARDS);
    queue.push_change(other, Change::InstallBegin { base }).expect("open");
    let end = Change::InstallEnd { base, epochs: vec![(Epoch(3), Lsn(0))] };
    queue.push_change(other, end).expect("open");
    let (say, hear) = channel();
    let handle = CommitThread::spawn(writer, queue.clone(), Sink(say)).expect("a thread");
    handle.stop(LONG).expect("a good disk");
    let last = |shard| hear_last(&hear.try_iter().collect::<Vec<_>>(), shard);
    let counts: [Option<u64>; 2] = last([shard, other]);
    assert_eq!(counts, [Some(8), Some(2)]);
    assert_eq!(store.log_point(other, Lsn(9)).expect("good"), Some(base));
    assert_eq!(store.log_start(other), Lsn(9));
    let entries = store.read_log(shard, Lsn(3), Lsn(9), 1 << 20).expect("good");
    assert_eq!(entries, [instead]);
    assert_eq!(store.bounds(ID).expect("there").end, Offset(4));
}

fn hear_last(said: &[Vec<(ShardId, u64)>], shards: [ShardId; 2]) -> [Option<u64>; 2] {
    let all = || said.iter().flatten();
    shards.map(|shard| all().filter(|(id, _)| *id == shard).map(|(_, count)| *count).max())
}
