//! Random work on a store, noted step by step with the I/Os that each took.

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;
use dunlin::{
    storage::{Change, LogPoint, Options, Recovered, ShardCheckpoint, Store, StoreError, Writer},
    types::{Epoch, Lsn, Offset, PartitionId, ProducerId, Sequence, ShardId, Timestamp, TopicId},
    wire::{
        BatchBuilder, Compression, Entry, EntryKind, Record,
        entry::{Place, trim_body},
        stamp,
    },
};

use super::{
    disk::{Disk, Image},
    model::{Naive, Step, Truth, fold},
    rng::Rng,
};

pub(crate) const SHARDS: u16 = 3;
pub(crate) const OPTIONS: Options =
    Options { cache_bytes: 1 << 20, shards: SHARDS, disk_id: 0x1234_5678, journal_len: 96 << 10 };

/// Work that was done on one disk since one open.
pub(crate) struct Run {
    /// What was true before.
    pub(crate) before: Truth,
    /// Steps and the I/Os that each took.
    pub(crate) steps: Vec<(Range<usize>, Step)>,
    /// What is true now.
    pub(crate) truth: Truth,
    /// What failed, and the step that was not acknowledged.
    pub(crate) failed: Option<(StoreError, Step)>,
}

/// Opens the store on `disk`, works `count` steps on it, and closes it if `close`.
pub(crate) fn run(disk: &Disk, before: &Truth, seed: u64, count: usize, close: bool) -> Run {
    let mut rng = Rng(seed);
    let mut run =
        Run { before: before.clone(), steps: Vec::new(), truth: before.clone(), failed: None };
    let opened = Store::open_backend(disk.clone(), disk.journal(), OPTIONS);
    let (_store, mut writer, _) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            run.failed = Some((error, Step::Silent));
            return run;
        }
    };
    run.steps.push((0..disk.ios(), Step::Silent));
    for _ in 0..count {
        let begin = disk.ios();
        let step = next_step(&run.truth, seed, &mut rng);
        if let Err(error) = perform(&mut writer, &step, &mut rng) {
            assert_poisoned(&mut writer);
            run.failed = Some((error, step));
            return run;
        }
        run.truth.apply(&step);
        run.steps.push((begin..disk.ios(), step));
    }
    if close {
        let begin = disk.ios();
        match writer.close() {
            Ok(()) => run.steps.push((begin..disk.ios(), Step::Silent)),
            Err(error) => run.failed = Some((error, Step::Silent)),
        }
    }
    run
}

pub(crate) fn open(image: Image) -> Result<(Store, Writer, Recovered), StoreError> {
    let disk = Disk::holding(image);
    Store::open_backend(disk.clone(), disk.journal(), OPTIONS)
}

/// After a failed write nothing is acknowledged any more.
fn assert_poisoned(writer: &mut Writer) {
    assert!(matches!(writer.checkpoint(Vec::new()), Err(StoreError::Poisoned)));
    assert!(matches!(writer.collect_garbage(1), Err(StoreError::Poisoned)));
}

fn perform(writer: &mut Writer, step: &Step, rng: &mut Rng) -> Result<(), StoreError> {
    match step {
        Step::Commit(entries) => writer.commit(entries).map(drop),
        Step::Checkpoint(handed) => writer.checkpoint(handed.clone()),
        Step::Change(shard, change) => {
            writer.perform(&[], vec![(0, *shard, change.clone())]).map(drop)
        }
        Step::Note(shard, lsn) => {
            writer.note_committed(*shard, *lsn);
            Ok(())
        }
        Step::Silent => {
            if rng.flip() {
                writer.begin_pass();
            }
            let budget = [1, 100_000, 10_000_000][rng.below(3)];
            for _ in 0..3 {
                if !writer.collect_garbage(budget)? {
                    break;
                }
            }
            Ok(())
        }
    }
}

/// Draws a step that may follow `truth`. Every third run is of small commits, which fill the journal again and again.
pub(crate) fn next_step(truth: &Truth, seed: u64, rng: &mut Rng) -> Step {
    let installs = (0..).map(ShardId).zip(&truth.shards);
    let mut installs = installs.filter_map(|(id, shard)| Some((id, shard.install.as_ref()?)));
    if let Some((shard, install)) = installs.next() {
        return match rng.below(6) {
            0 => Step::Silent,
            1 => Step::Checkpoint(checkpoint(truth, rng)),
            2 if rng.one_in(3) => begin_install(shard),
            _ => Step::Change(shard, install.left[0].clone()),
        };
    }
    if rng.one_in(6) {
        return change(truth, rng);
    }
    if seed % 3 == 1 && !rng.one_in(12) {
        return Step::Commit(Author::new(truth).small_commit(rng));
    }
    match rng.below(10) {
        0 => Step::Silent,
        1 | 2 => Step::Checkpoint(checkpoint(truth, rng)),
        _ => Step::Commit(Author::new(truth).commit(rng)),
    }
}

/// Draws what a replica is told besides entries.
pub(crate) fn change(truth: &Truth, rng: &mut Rng) -> Step {
    let number = rng.below(truth.shards.len());
    let shard = &truth.shards[number];
    let id = ShardId(u16::try_from(number).expect("small"));
    let committed = shard.applied.max(shard.noted);
    let some = committed + rng.below(shard.entries.len().saturating_sub(committed) + 1);
    let some = Lsn(some as u64);
    match rng.below(8) {
        0 => Step::Change(id, Change::Promise(Epoch(rng.next() % 50))),
        1 if (committed as u64) < some.0 => Step::Note(id, some),
        2 | 3 if shard.noted <= shard.applied => begin_install(id),
        _ if some.0 <= shard.entries.len() as u64 => Step::Change(id, Change::Truncate(some)),
        _ => Step::Silent,
    }
}

fn begin_install(shard: ShardId) -> Step {
    Step::Change(shard, Change::InstallBegin { base: LogPoint::default() })
}

pub(crate) fn checkpoint(truth: &Truth, rng: &mut Rng) -> Vec<ShardCheckpoint> {
    let mut handed = Vec::new();
    for (number, shard) in (0..).zip(&truth.shards) {
        if shard.install.is_some() || rng.one_in(4) {
            continue;
        }
        let behind = shard.entries.len() - shard.applied;
        let step = if rng.flip() { behind } else { rng.below(behind + 1) };
        let key = |rng: &mut Rng| Bytes::from(vec![7; rng.below(4)]);
        let kind = |rng: &mut Rng| [0, 1, 255][rng.below(3)];
        handed.push(ShardCheckpoint {
            shard: ShardId(number),
            applied: Lsn((shard.applied + step) as u64),
            put: vec![(kind(rng), key(rng), Bytes::from(rng.next().to_be_bytes().to_vec()))],
            delete: vec![(kind(rng), key(rng))],
        });
    }
    handed
}

/// Makes entries that follow what is there.
pub(crate) struct Author {
    /// End, last chain and epoch of each shard.
    shards: Vec<(Lsn, u64, Epoch)>,
    partitions: BTreeMap<PartitionId, Naive>,
    dropped: Vec<PartitionId>,
}

impl Author {
    pub(crate) fn new(truth: &Truth) -> Self {
        let shards = truth.shards.iter().map(|shard| {
            let last = shard.entries.last();
            let (chain, epoch) = last.map_or((0, Epoch(1)), |e| (e.header.chain, e.header.epoch));
            (shard.end(), chain, epoch)
        });
        let entries = truth.shards.iter().flat_map(|shard| &shard.entries);
        let dropped = entries
            .filter(|entry| entry.header.kind == EntryKind::PartitionDrop)
            .map(|entry| entry.header.partition);
        Self {
            shards: shards.collect(),
            partitions: truth.partitions(),
            dropped: dropped.collect(),
        }
    }

    /// Entries of any shards and partitions, of a few bytes to a few rows.
    pub(crate) fn commit(&mut self, rng: &mut Rng) -> Vec<Entry> {
        let count = [1, 3, 12, 40][rng.below(4)];
        let size = [40, 400, 4000][rng.below(3)];
        (0..count)
            .map(|_| {
                let index = u32::try_from(rng.below(2)).expect("small");
                let id = self.living(PartitionId { topic: TopicId(rng.next() % 3), index });
                match rng.below(24) {
                    0 => self.control(shard_of(id), EntryKind::EpochStart, id, Bytes::new()),
                    1 | 2 => self.trim(id, rng),
                    3 if rng.one_in(8) => {
                        self.control(shard_of(id), EntryKind::PartitionDrop, id, Bytes::new())
                    }
                    4 if rng.one_in(4) => self.records(id, 90_000, 1, rng),
                    _ => {
                        let size = 1 + rng.below(size);
                        let records = 1 + rng.below(4);
                        self.records(id, size, records, rng)
                    }
                }
            })
            .collect()
    }

    /// Few entries of few bytes: they go into the journal.
    pub(crate) fn small_commit(&mut self, rng: &mut Rng) -> Vec<Entry> {
        (0..1 + rng.below(3))
            .map(|_| {
                let id = self.living(PartitionId { topic: TopicId(rng.next() % 3), index: 0 });
                if rng.one_in(10) {
                    self.trim(id, rng)
                } else {
                    let size = 1 + rng.below(700);
                    self.records(id, size, 1, rng)
                }
            })
            .collect()
    }

    /// The id, or one of a later topic in its place: a dropped one never comes back.
    pub(crate) fn living(&self, mut id: PartitionId) -> PartitionId {
        while self.dropped.contains(&id) {
            id.topic.0 += 3;
        }
        id
    }

    pub(crate) fn trim(&mut self, id: PartitionId, rng: &mut Rng) -> Entry {
        let naive = self.partitions.get(&id);
        let (start, end) = naive.map_or((0, 0), |naive| (naive.start, naive.end()));
        let to = start + rng.next() % (end - start + 1);
        self.control(shard_of(id), EntryKind::Trim, id, trim_body(Offset(to)))
    }

    pub(crate) fn trim_to(&mut self, id: PartitionId, start: u64) -> Entry {
        self.control(shard_of(id), EntryKind::Trim, id, trim_body(Offset(start)))
    }

    pub(crate) fn records(
        &mut self,
        id: PartitionId,
        size: usize,
        records: usize,
        rng: &mut Rng,
    ) -> Entry {
        let mut builder = BatchBuilder::new(1 << 20);
        for _ in 0..records {
            let value: Vec<u8> =
                (0..size.div_ceil(8)).flat_map(|_| rng.next().to_be_bytes()).collect();
            builder.push(&Record::new(value)).expect("within limits");
        }
        let mut batch = builder.finish(Compression::None, ProducerId::NONE, Sequence(0)).to_vec();
        // The clock stands still at times, and once in a while it is set back.
        let last = self.partitions.get(&id).and_then(|naive| naive.places.last());
        let (end, last) = last.map_or((0, 1_000_000), |place| (place.1, place.2));
        let time = if rng.one_in(30) { last - 50 } else { last + rng.next() % 5 };
        stamp(&mut batch, Offset(end), Timestamp(time));
        self.control(shard_of(id), EntryKind::Records, id, batch.into())
    }

    pub(crate) fn control(
        &mut self,
        shard: ShardId,
        kind: EntryKind,
        partition: PartitionId,
        body: Bytes,
    ) -> Entry {
        let (lsn, prev_chain, epoch) = self.shards[usize::from(shard.0)];
        let epoch = if kind == EntryKind::EpochStart { epoch.next() } else { epoch };
        let place = Place { shard, lsn, epoch, prev_chain };
        let entry = Entry::seal(place, kind, partition, body);
        self.shards[usize::from(shard.0)] = (lsn.next(), entry.header.chain, epoch);
        if kind == EntryKind::PartitionDrop {
            self.dropped.push(partition);
        }
        fold(&mut self.partitions, &entry);
        entry
    }
}

pub(crate) fn shard_of(id: PartitionId) -> ShardId {
    ShardId(u16::try_from((id.topic.0 + u64::from(id.index)) % u64::from(SHARDS)).expect("small"))
}
