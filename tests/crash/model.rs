//! What the store should hold, computed the naive way from all entries ever committed.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use dunlin::{
    storage::{
        Bounds, Change, LogPoint, ReadError, Recovered, RecoveredShard, STATE_PARTITION,
        ShardCheckpoint, Store,
    },
    types::{Epoch, Lsn, Offset, PartitionId, Retention, ShardId, Timestamp},
    wire::{Entry, EntryKind, batch::BATCH_HEADER_LEN},
};

use super::rng::Rng;

/// Everything that was acknowledged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truth {
    pub(crate) shards: Vec<ShardTruth>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct ShardTruth {
    pub(crate) entries: Vec<Entry>,
    pub(crate) applied: usize,
    pub(crate) state: BTreeMap<(u8, Bytes), Bytes>,
    pub(crate) promised: Epoch,
    /// As many were noted to be committed: that may be durable, or not.
    pub(crate) noted: usize,
    pub(crate) install: Option<Install>,
}

/// An install that is half done: of itself, as it was when the state was last handed over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Install {
    entries: Vec<Entry>,
    state: BTreeMap<(u8, Bytes), Bytes>,
    pub(crate) left: VecDeque<Change>,
}

/// A truth with what follows from it, worked out once for many comparisons.
pub(crate) struct Expected {
    pub(crate) truth: Truth,
    partitions: BTreeMap<PartitionId, Naive>,
    dropped: Vec<PartitionId>,
    shards: Vec<RecoveredShard>,
}

/// A change that was asked for.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Commit(Vec<Entry>),
    Checkpoint(Vec<ShardCheckpoint>),
    Change(ShardId, Change),
    Note(ShardId, Lsn),
    /// Garbage collection, open, close: nothing that a reader may notice.
    Silent,
}

/// A partition as its entries say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Naive {
    pub(crate) shard: ShardId,
    pub(crate) start: u64,
    pub(crate) batches: Vec<Bytes>,
    /// Base, end, time of each batch.
    pub(crate) places: Vec<(u64, u64, u64)>,
}

impl Truth {
    pub(crate) fn new(shards: u16) -> Self {
        Self { shards: vec![ShardTruth::default(); usize::from(shards)] }
    }

    pub(crate) fn apply(&mut self, step: &Step) {
        match step {
            Step::Commit(entries) => {
                for entry in entries {
                    let shard = &mut self.shards[usize::from(entry.header.shard.0)];
                    shard.entries.push(entry.clone());
                }
            }
            Step::Checkpoint(handed) => {
                for handed in handed {
                    let shard = &mut self.shards[usize::from(handed.shard.0)];
                    shard.applied = usize::try_from(handed.applied.0).expect("small");
                    for key in &handed.delete {
                        shard.state.remove(key);
                    }
                    for (kind, key, value) in &handed.put {
                        shard.state.insert((*kind, key.clone()), value.clone());
                    }
                }
            }
            Step::Change(shard, change) => {
                self.shards[usize::from(shard.0)].change(*shard, change);
            }
            Step::Note(shard, lsn) => {
                let noted = &mut self.shards[usize::from(shard.0)].noted;
                *noted = (*noted).max(usize::try_from(lsn.0).expect("small"));
            }
            Step::Silent => {}
        }
    }

    /// All partitions that were not dropped.
    pub(crate) fn partitions(&self) -> BTreeMap<PartitionId, Naive> {
        let mut all = BTreeMap::new();
        for entry in self.shards.iter().flat_map(|shard| &shard.entries) {
            fold(&mut all, entry);
        }
        all
    }

    /// Works out what a store should hold.
    pub(crate) fn expect(&self) -> Expected {
        let partitions = self.partitions();
        let entries = self.shards.iter().flat_map(|shard| &shard.entries);
        let dropped = entries
            .filter(|entry| entry.header.kind == EntryKind::PartitionDrop)
            .map(|entry| entry.header.partition)
            .filter(|id| !partitions.contains_key(id))
            .collect();
        let shards = (0..).zip(&self.shards).map(|(n, shard)| shard.expect(ShardId(n))).collect();
        Expected { truth: self.clone(), partitions, dropped, shards }
    }
}

/// Changes the partitions as the next entry says.
pub(crate) fn fold(all: &mut BTreeMap<PartitionId, Naive>, entry: &Entry) {
    let (id, shard) = (entry.header.partition, entry.header.shard);
    match entry.header.kind {
        EntryKind::Records => {
            let batch = entry.batch_header().expect("own batch");
            let naive = all.entry(id).or_default();
            naive.shard = shard;
            let (base, end) = (batch.base_offset.0, batch.end_offset().0);
            naive.places.push((base, end, batch.append_time.0));
            naive.batches.push(entry.body.clone());
        }
        EntryKind::PartitionCreate => {
            all.entry(id).or_default().shard = shard;
        }
        EntryKind::PartitionDrop => {
            all.remove(&id);
        }
        EntryKind::Trim => {
            let start = entry.trim_start().expect("own trim").0;
            if let Some(naive) = all.get_mut(&id) {
                naive.start = naive.start.max(start.min(naive.end()));
            }
        }
        EntryKind::EpochStart | EntryKind::ProducerExpire => {}
    }
}

impl Expected {
    /// Compares what an open found, and all that can be read, with the truth.
    pub(crate) fn check(
        &self,
        store: &Store,
        recovered: &Recovered,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let mut shards = recovered.shards.clone();
        for shard in &mut shards {
            // How much of what is applied the collector left is not in the model.
            if shard.start > shard.applied {
                return Err(format!("the log starts at {}, behind what is applied", shard.start));
            }
            shard.start = Lsn(0);
            let truth = &self.truth.shards[usize::from(shard.shard.0)];
            let installed = truth.install.as_ref().map_or(0, |install| install.entries.len());
            if shard.high_watermark.0 > truth.noted.max(truth.applied).max(installed) as u64 {
                return Err(format!("{} is known to be committed", shard.high_watermark));
            }
            if shard.high_watermark >= shard.applied {
                shard.high_watermark = shard.applied;
            }
        }
        for (found, want) in shards.iter().zip(&self.shards) {
            let lsns = |shard: &RecoveredShard| -> Vec<Lsn> {
                shard.tail.iter().map(|entry| entry.header.lsn).collect()
            };
            same("tail", &lsns(found), &lsns(want))?;
            let bare =
                |shard: &RecoveredShard| RecoveredShard { tail: Vec::new(), ..shard.clone() };
            same("shard", &bare(found), &bare(want))?;
        }
        same("shards", &shards, &self.shards)?;
        let partitions = self.partitions.iter();
        let want: Vec<_> = partitions.map(|(id, naive)| (naive.shard, *id)).collect();
        let found: Vec<_> =
            recovered.partitions.iter().map(|found| (found.shard, found.id)).collect();
        same("partitions", &found, &want)?;
        for found in &recovered.partitions {
            self.partitions[&found.id].check_bounds(Some(found.bounds))?;
        }
        self.check_reads(store, rng)
    }

    /// Compares all that can be read with the truth.
    pub(crate) fn check_reads(&self, store: &Store, rng: &mut Rng) -> Result<(), String> {
        for (id, naive) in &self.partitions {
            naive.check(store, *id, rng).map_err(|why| format!("partition {id}: {why}"))?;
        }
        for (shard, truth) in (0..).map(ShardId).zip(&self.truth.shards) {
            truth.check_log(store, shard, rng).map_err(|why| format!("log {shard}: {why}"))?;
        }
        for id in &self.dropped {
            let read = store.read(*id, Offset(0), Offset(u64::MAX), 1);
            if !matches!(read, Err(ReadError::NotFound(_))) {
                return Err(format!("dropped partition {id} is back: {read:?}"));
            }
        }
        Ok(())
    }
}

impl ShardTruth {
    fn change(&mut self, shard: ShardId, change: &Change) {
        match change {
            Change::Promise(epoch) => self.promised = self.promised.max(*epoch),
            Change::Truncate(lsn) => self.entries.truncate(usize::try_from(lsn.0).expect("small")),
            Change::Forget => unreachable!("no workload makes it"),
            Change::InstallBegin { .. } => {
                // Begun anew: what is to come is the same.
                if let Some(install) = &mut self.install {
                    install.left = pack(shard, &install.entries, &install.state);
                    return;
                }
                self.entries.truncate(self.applied);
                let entries = std::mem::take(&mut self.entries);
                let state = std::mem::take(&mut self.state);
                let left = pack(shard, &entries, &state);
                self.applied = 0;
                self.install = Some(Install { entries, state, left });
            }
            Change::InstallChunk { .. } => {
                let install = self.install.as_mut().expect("it began");
                install.left.pop_front();
            }
            Change::InstallEnd { .. } => {
                let install = self.install.take().expect("it began");
                (self.entries, self.state) = (install.entries, install.state);
                self.applied = self.entries.len();
            }
        }
    }

    fn point(&self, lsn: usize) -> LogPoint {
        let last = lsn.checked_sub(1).map(|at| self.entries[at].header);
        last.map_or(LogPoint::default(), |header| LogPoint {
            lsn: header.lsn.next(),
            epoch: header.epoch,
            chain: header.chain,
        })
    }

    /// Compares what can be read of the log, entry by entry, with the truth.
    fn check_log(&self, store: &Store, shard: ShardId, rng: &mut Rng) -> Result<(), String> {
        let (start, end) = (store.log_start(shard), self.end());
        same("log end", &store.log_end(shard), &end)?;
        for _ in 0..4 {
            let lsn = rng.below(self.entries.len() + 2);
            let found = store.log_point(shard, Lsn(lsn as u64)).map_err(|e| e.to_string())?;
            let there =
                self.install.is_none() && lsn <= self.entries.len() && lsn as u64 >= start.0;
            same(&format!("log point {lsn}"), &found, &there.then(|| self.point(lsn)))?;
        }
        let max_bytes = [1, 3000, 1 << 20][rng.below(3)];
        let mut next = start;
        while next < end {
            let entries = store.read_log(shard, next, end, max_bytes).map_err(|e| e.to_string())?;
            let at = usize::try_from(next.0).expect("small");
            if entries.is_empty() || self.entries.get(at..at + entries.len()) != Some(&entries[..])
            {
                return Err(format!("entries at {next} are not those that were written"));
            }
            let bytes: usize = entries.iter().map(|entry| entry.header.entry_len()).sum();
            if bytes > max_bytes && entries.len() > 1 {
                return Err(format!("{bytes} bytes read, asked for {max_bytes}"));
            }
            next = Lsn(next.0 + entries.len() as u64);
        }
        let behind = store.read_log(shard, end, Lsn(u64::MAX), 1).map_err(|e| e.to_string())?;
        same("behind the end", &behind, &Vec::new())?;
        if start > Lsn(0) {
            let read = store.read_log(shard, Lsn(start.0 - 1), end, 1);
            if !matches!(read, Err(ReadError::LogOutOfRange { .. })) {
                return Err(format!("before the start: {read:?}"));
            }
        }
        Ok(())
    }

    fn expect(&self, shard: ShardId) -> RecoveredShard {
        if self.install.is_some() {
            let (promised, installing) = (self.promised, true);
            return RecoveredShard { shard, promised, installing, ..Default::default() };
        }
        let mut epochs = Vec::new();
        for entry in &self.entries {
            if epochs.last().is_none_or(|(epoch, _)| *epoch != entry.header.epoch) {
                epochs.push((entry.header.epoch, entry.header.lsn));
            }
        }
        let mut tail = self.entries[self.applied..].to_vec();
        for entry in &mut tail {
            if entry.header.kind == EntryKind::Records {
                entry.body.truncate(BATCH_HEADER_LEN);
            }
        }
        let state = self.state.iter().map(|((kind, key), v)| (*kind, key.clone(), v.clone()));
        RecoveredShard {
            shard,
            end: self.end(),
            chain: self.entries.last().map_or(0, |entry| entry.header.chain),
            last_epoch: epochs.last().map(|(epoch, _)| *epoch).unwrap_or_default(),
            start: Lsn(0),
            promised: self.promised,
            high_watermark: Lsn(self.applied as u64),
            installing: false,
            epochs,
            applied: Lsn(self.applied as u64),
            state: state.collect(),
            tail,
        }
    }

    pub(crate) fn end(&self) -> Lsn {
        Lsn(self.entries.len() as u64)
    }
}

impl Naive {
    pub(crate) fn end(&self) -> u64 {
        self.places.last().map_or(0, |place| place.1)
    }

    /// Batches that are kept: those with a record at or behind the start.
    fn kept(&self) -> usize {
        self.places.iter().position(|place| place.1 > self.start).unwrap_or(self.places.len())
    }

    fn stored(&self, at: usize) -> u64 {
        52 + self.batches[at].len() as u64
    }

    fn bounds(&self) -> Bounds {
        let kept = self.kept();
        Bounds {
            shard: self.shard,
            start: Offset(self.start),
            end: Offset(self.end()),
            bytes: (kept..self.batches.len()).map(|at| self.stored(at)).sum(),
            first_time: self.places.get(kept).map(|place| Timestamp(place.2)),
            last_time: Timestamp(self.places.iter().map(|place| place.2).max().unwrap_or(0)),
        }
    }

    /// The newest time may be that of a batch which is gone: trimmed before an install, or cut off.
    fn check_bounds(&self, found: Option<Bounds>) -> Result<(), String> {
        let mut want = self.bounds();
        let kept = self.places[self.kept()..].iter().map(|place| place.2).max();
        if let Some(found) = found
            && found.last_time.0 >= kept.unwrap_or(0)
        {
            want.last_time = found.last_time;
        }
        same("bounds", &found, &Some(want))
    }

    fn check(&self, store: &Store, id: PartitionId, rng: &mut Rng) -> Result<(), String> {
        self.check_bounds(store.bounds(id))?;
        let (kept, end) = (self.kept(), Offset(self.end()));
        let max_bytes = if rng.one_in(16) { 1 } else { [3000, 100_000, 1 << 20][rng.below(3)] };
        let mut next = Offset(self.start);
        let mut at = kept;
        while next < end {
            let chunk = store.read(id, next, end, max_bytes).map_err(|e| e.to_string())?;
            let upto = at + chunk.batches.len();
            if chunk.batches.is_empty() || self.batches.get(at..upto) != Some(&chunk.batches[..]) {
                return Err(format!("reading at {next} gave other batches than were written"));
            }
            let bytes: usize = chunk.batches.iter().map(Bytes::len).sum();
            if bytes > max_bytes && chunk.batches.len() > 1 {
                return Err(format!("{bytes} bytes read, asked for {max_bytes}"));
            }
            at = upto;
            next = chunk.next;
            same("next offset", &next, &Offset(self.places[at - 1].1))?;
        }
        same("batches read", &at, &self.batches.len())?;
        if self.start > 0 {
            let read = store.read(id, Offset(self.start - 1), end, 1);
            if !matches!(read, Err(ReadError::OutOfRange { .. })) {
                return Err(format!("trimmed records are back: {read:?}"));
            }
        }
        for _ in 0..4 {
            self.check_lookups(store, id, rng)?;
        }
        Ok(())
    }

    fn check_lookups(&self, store: &Store, id: PartitionId, rng: &mut Rng) -> Result<(), String> {
        let (kept, end) = (self.kept(), self.end());
        if kept == self.batches.len() {
            return Ok(());
        }
        let some = kept + rng.below(self.batches.len() - kept);
        let (base, behind, time) = self.places[some];
        // A batch is found by any of its offsets, and a limit in the middle of the log is kept.
        let offset = base.max(self.start) + rng.next() % (behind - base.max(self.start));
        let chunk = store.read(id, Offset(offset), Offset(behind), usize::MAX);
        let chunk = chunk.map_err(|e| e.to_string())?;
        same("the batch of an offset", &chunk.batches, &vec![self.batches[some].clone()])?;
        let inside = store.read(id, Offset(offset), Offset(behind - 1), usize::MAX);
        same("half a batch", &inside.map_err(|e| e.to_string())?.batches.len(), &0)?;

        let limit = self.places[some..].iter().map(|p| p.1).nth(rng.below(3)).unwrap_or(end);
        let time = time + rng.next() % 3;
        let first = |time: u64| {
            let found = self.places[kept..].iter().find(|place| place.2 >= time);
            found.map_or(limit, |place| place.0.max(self.start).min(limit))
        };
        let found = store.offset_at_time(id, Timestamp(time), Offset(limit));
        same("offset at time", &found.map_err(|e| e.to_string())?, &Offset(first(time)))?;

        let now = Timestamp(time + 1000);
        let total = self.bounds().bytes;
        let retention = Retention {
            age_ms: rng.flip().then_some(1000),
            bytes: rng.flip().then(|| rng.next() % (total + 100)),
            records: rng.flip().then(|| rng.next() % (limit + 2)),
        };
        let mut want = self.start;
        if retention.age_ms.is_some() {
            want = want.max(first(time));
        }
        if let Some(records) = retention.records {
            let gone = |place: &&(u64, u64, u64)| place.1 + records <= limit;
            want = want.max(self.places.iter().filter(gone).map(|p| p.1).max().unwrap_or(0));
        }
        if let Some(bytes) = retention.bytes {
            let mut left = total;
            for at in kept..self.batches.len() {
                if left - self.stored(at) < bytes || self.places[at].1 > limit {
                    break;
                }
                left -= self.stored(at);
                want = want.max(self.places[at].1);
            }
        }
        let found = store.retention_start(id, &retention, now, Offset(limit));
        let found = found.map_err(|e| e.to_string())?;
        same(&format!("retention {retention:?} to {limit}"), &found, &Offset(want.min(limit)))
    }
}

/// What an install brings of these entries and this state.
fn pack(
    shard: ShardId,
    entries: &[Entry],
    state: &BTreeMap<(u8, Bytes), Bytes>,
) -> VecDeque<Change> {
    let mut all = BTreeMap::new();
    entries.iter().for_each(|entry| fold(&mut all, entry));
    let partitions = all.iter().map(|(id, naive)| {
        let key = [&id.topic.0.to_be_bytes()[..], &id.index.to_be_bytes()].concat();
        let time = naive.places.iter().map(|place| place.2).max().unwrap_or(0);
        let value = [naive.start.to_be_bytes(), time.to_be_bytes()].concat();
        (STATE_PARTITION, Bytes::from(key), Bytes::from(value))
    });
    let lives = |entry: &&Entry| {
        let (Some(naive), Ok(batch)) = (all.get(&entry.header.partition), entry.batch_header())
        else {
            return false;
        };
        batch.end_offset().0 > naive.start
    };
    let rest = state.iter().map(|((kind, key), value)| (*kind, key.clone(), value.clone()));
    let live: Vec<Entry> = entries.iter().filter(lives).cloned().collect();
    let (one, two) = live.split_at(live.len() / 2);
    let truth = ShardTruth { entries: entries.to_vec(), ..Default::default() };
    let epochs = truth.expect(shard).epochs;
    VecDeque::from([
        Change::InstallChunk { entries: Vec::new(), state: partitions.collect() },
        Change::InstallChunk { entries: one.to_vec(), state: rest.collect() },
        Change::InstallChunk { entries: two.to_vec(), state: Vec::new() },
        Change::InstallEnd { base: truth.point(entries.len()), epochs },
    ])
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, want: &T) -> Result<(), String> {
    if found == want {
        return Ok(());
    }
    let (mut found, mut want) = (format!("{found:?}"), format!("{want:?}"));
    found.truncate(600);
    want.truncate(600);
    Err(format!("{what}: found {found}, expected {want}"))
}
