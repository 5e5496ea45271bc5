//! The commit thread.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use dunlin::{
    limits::COMMIT_QUEUE_BYTES_MAX,
    storage::{
        CommitHandle, CommitQueue, CommitSink, CommitThread, Reservation, ShardCheckpoint, Store,
        StoreError,
    },
    types::{Lsn, Offset, PartitionId, ShardId, TopicId},
    wire::Entry,
};

use super::{
    disk::{Disk, Fault},
    model::{Step, Truth},
    rng::Rng,
    workload::{Author, OPTIONS, SHARDS, open, shard_of},
};

const ID: PartitionId = PartitionId { topic: TopicId(0), index: 0 };
const LONG: Duration = Duration::from_secs(60);

#[derive(Debug)]
enum Said {
    Committed(Vec<(ShardId, u64)>),
    Failed,
}

struct Sink {
    say: Sender<Said>,
    applied: Lsn,
}

impl CommitSink for Sink {
    fn committed(&mut self, done: &[(ShardId, u64)]) {
        // Nothing but appends: as many as the log is long.
        self.applied = Lsn(done[0].1);
        let _ = self.say.send(Said::Committed(done.to_vec()));
    }

    fn log_started(&mut self, _: &[(ShardId, Lsn)]) {}

    fn checkpoint(&mut self) -> Vec<ShardCheckpoint> {
        let shard = shard_of(ID);
        vec![ShardCheckpoint { shard, applied: self.applied, ..Default::default() }]
    }

    fn failed(&mut self, _: &StoreError) {
        let _ = self.say.send(Said::Failed);
    }
}

fn start(disk: &Disk) -> (CommitQueue, CommitHandle, Receiver<Said>) {
    let (_, writer, _) =
        Store::open_backend(disk.clone(), disk.journal(), OPTIONS).expect("a good disk");
    let queue = CommitQueue::new();
    let (say, hear) = channel();
    let sink = Sink { say, applied: Lsn(0) };
    let handle = CommitThread::spawn(writer, queue.clone(), sink).expect("a thread");
    (queue, handle, hear)
}

fn entries(count: usize) -> (Vec<Entry>, Truth) {
    let mut truth = Truth::new(SHARDS);
    let mut author = Author::new(&truth);
    let entries: Vec<_> = (0..count).map(|_| author.records(ID, 500, 1, &mut Rng(1))).collect();
    truth.apply(&Step::Commit(entries.clone()));
    (entries, truth)
}

#[test]
fn what_was_said_to_be_committed_is_there_after_a_stop() {
    let disk = Disk::default();
    let (queue, handle, hear) = start(&disk);
    let (entries, mut truth) = entries(300);
    for entry in entries {
        let room = queue.try_reserve(entry.header.entry_len()).expect("open").expect("room");
        queue.push(entry, room).expect("open");
    }
    handle.stop(LONG).expect("a good disk");
    assert!(queue.push(truth.shards[0].entries[0].clone(), Reservation::FREE).is_err());
    let mut last = 0;
    for said in hear {
        let Said::Committed(done) = said else { panic!("{said:?}") };
        assert_eq!(done.len(), 1);
        assert!(done[0].1 > last, "commits are told in order");
        last = done[0].1;
    }
    assert_eq!(last, 300);
    truth.shards[usize::from(shard_of(ID).0)].applied = 300;
    let (store, _, recovered) = open(disk.image()).expect("closed");
    assert!(recovered.clean_shutdown);
    truth.expect().check(&store, &recovered, &mut Rng(2)).expect("all of it");
}

#[test]
fn a_failed_write_is_told_once_and_closes_the_queue() {
    let disk = Disk::default();
    drop(Store::open_backend(disk.clone(), disk.journal(), OPTIONS).expect("a good disk"));
    let image = disk.image();
    // Opening flushes too, and that is not to fail: count it first.
    let disk = Disk::holding(image.clone());
    let opened = Store::open_backend(disk.clone(), disk.journal(), OPTIONS).expect("a good disk");
    let (syncs, _) = disk.counts();
    drop(opened);
    // The first flush of the first commit: through the journal there is no other.
    let disk = Disk::failing(image, Fault::Sync(syncs));
    let (queue, handle, hear) = start(&disk);
    for entry in entries(50).0 {
        if queue.push(entry, Reservation::FREE).is_err() {
            break;
        }
    }
    // The thread ends and drops its sink, so this ends too.
    let said: Vec<Said> = hear.iter().collect();
    assert!(matches!(said[..], [Said::Failed]), "the first commit failed: {said:?}");
    assert!(queue.try_reserve(1).is_err());
    assert!(!queue.is_open());
    assert!(handle.stop(LONG).is_err());
}

#[test]
fn a_log_that_is_trimmed_as_it_grows_keeps_its_size() {
    let disk = Disk::default();
    let (store, mut writer, _) =
        Store::open_backend(disk.clone(), disk.journal(), OPTIONS).expect("a good disk");
    let mut author = Author::new(&Truth::new(SHARDS));
    let mut rng = Rng(4);
    // A partition that is never trimmed has a record in every tenth row: the pass must squeeze those.
    let slow = PartitionId { topic: TopicId(3), index: 0 };
    let (mut sizes, mut applied) = (Vec::new(), 0);
    for round in 0..12 {
        for _ in 0..10 {
            let mut entries = vec![author.records(slow, 40, 1, &mut rng)];
            entries.extend((0..30).map(|_| author.records(ID, 6_000, 1, &mut rng)));
            entries.push(author.trim_to(ID, (round + 1) * 300 - 300));
            applied += entries.len() as u64;
            writer.commit(&entries).expect("a good disk");
        }
        let shard = shard_of(ID);
        let handed = ShardCheckpoint { shard, applied: Lsn(applied), ..Default::default() };
        writer.checkpoint(vec![handed]).expect("a good disk");
        while writer.collect_garbage(1 << 20).expect("a good disk") {}
        sizes.push(store.stats().file_bytes);
    }
    let stats = store.stats();
    assert!(stats.collected_bytes > 12_000_000, "{stats:?}");
    assert!(stats.dead_bytes < 20_000_000, "{stats:?}");
    assert_eq!(sizes[11], sizes[8], "the file grows: {sizes:?}");
    let end = store.bounds(slow).expect("there").end;
    let mut next = Offset(0);
    while next < end {
        next = store.read(slow, next, end, 1 << 16).expect("kept").next;
    }
}

#[test]
fn room_is_bounded_and_comes_back_with_the_commit() {
    let disk = Disk::default();
    let (queue, handle, hear) = start(&disk);
    let all = queue.try_reserve(COMMIT_QUEUE_BYTES_MAX).expect("open").expect("room");
    assert!(queue.try_reserve(1).expect("open").is_none(), "the queue is full");
    queue.push(entries(1).0.remove(0), all).expect("open");
    assert!(matches!(hear.recv_timeout(LONG), Ok(Said::Committed(_))));
    assert!(queue.try_reserve(COMMIT_QUEUE_BYTES_MAX).expect("open").is_some(), "all came back");
    assert!(handle.heartbeat() > 0);
    handle.stop(LONG).expect("a good disk");
}
