//! What the log costs by number of shards and size of a commit: records per second and bytes written per byte.
//!
//! `cargo bench --bench storage`; `DUNLIN_BENCH_DIR` names the directory of the disk to measure, else a temporary one.

#![allow(clippy::print_stdout, reason = "a table is what it makes")]
#![allow(clippy::disallowed_methods, reason = "a clock is what it needs")]

use std::{
    env,
    path::PathBuf,
    time::{Duration, Instant},
};

use dunlin::{
    storage::{Options, ShardCheckpoint, Store, Writer},
    types::{Epoch, Lsn, Offset, PartitionId, ProducerId, Sequence, ShardId, Timestamp, TopicId},
    wire::{BatchBuilder, Compression, Entry, EntryKind, Record, entry::Place, stamp},
};

const PARTITIONS: u64 = 100;
const RECORD: usize = 1024;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(700);

fn main() {
    println!("shards  group  records/s (min median max)   MiB/s  written/byte  commit ms");
    for group in [1, 64, 1024] {
        for shards in [1, 4, 12] {
            let mut rounds: Vec<Round> = (0..ROUNDS).map(|_| round(shards, group)).collect();
            rounds.sort_by(|a, b| a.rate.total_cmp(&b.rate));
            let median = &rounds[ROUNDS / 2];
            println!(
                "{shards:6} {group:6} {:10.0} {:9.0} {:9.0} {:7.0} {:13.2} {:10.2}",
                rounds[0].rate,
                median.rate,
                rounds[ROUNDS - 1].rate,
                median.rate * RECORD as f64 / 1024.0 / 1024.0,
                median.amplification,
                median.commit_ms,
            );
        }
    }
}

struct Round {
    rate: f64,
    amplification: f64,
    commit_ms: f64,
}

fn round(shards: u16, group: usize) -> Round {
    let dir = env::var_os("DUNLIN_BENCH_DIR").map_or_else(env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(dir).expect("a directory");
    let options = Options::new(shards, 1);
    let (store, mut writer, _) =
        Store::open(&dir.path().join("data.redb"), options).expect("a disk");
    let mut author = Author::new(shards);
    let (mut busy, mut records) = (Duration::ZERO, 0);
    let before = store.stats();
    while busy < ROUND {
        let entries = author.group(group);
        let begun = Instant::now();
        writer.commit(&entries).expect("a disk");
        if writer.checkpoint_due() {
            checkpoint(&mut writer, shards);
        }
        busy += begun.elapsed();
        records += group;
    }
    let after = store.stats();
    let bytes = (records * RECORD) as f64;
    Round {
        rate: records as f64 / busy.as_secs_f64(),
        amplification: (after.written_bytes - before.written_bytes) as f64 / bytes,
        commit_ms: busy.as_secs_f64() * 1e3 / (after.commits - before.commits) as f64,
    }
}

fn checkpoint(writer: &mut Writer, shards: u16) {
    let handed = (0..shards).map(ShardId).map(|shard| ShardCheckpoint {
        shard,
        applied: writer.end_of(shard).expect("a shard"),
        ..Default::default()
    });
    let handed = handed.collect();
    writer.checkpoint(handed).expect("a disk");
}

struct Author {
    batch: Vec<u8>,
    shards: Vec<(Lsn, u64)>,
    ends: Vec<u64>,
    turn: u64,
}

impl Author {
    fn new(shards: u16) -> Self {
        let mut builder = BatchBuilder::new(2 * RECORD);
        builder.push(&Record::new(vec![7; RECORD])).expect("within limits");
        let batch = builder.finish(Compression::None, ProducerId::NONE, Sequence(0)).to_vec();
        Self {
            batch,
            shards: vec![(Lsn(0), 0); usize::from(shards)],
            ends: vec![0; usize::try_from(PARTITIONS).expect("small")],
            turn: 0,
        }
    }

    fn group(&mut self, count: usize) -> Vec<Entry> {
        (0..count).map(|_| self.entry()).collect()
    }

    fn entry(&mut self) -> Entry {
        self.turn += 1;
        let topic = self.turn % PARTITIONS;
        let end = &mut self.ends[usize::try_from(topic).expect("small")];
        stamp(&mut self.batch, Offset(*end), Timestamp(self.turn));
        *end += 1;
        let number = usize::try_from(topic).expect("small") % self.shards.len();
        let (lsn, chain) = &mut self.shards[number];
        let place = Place {
            shard: ShardId(u16::try_from(number).expect("small")),
            lsn: *lsn,
            epoch: Epoch(1),
            prev_chain: *chain,
        };
        let partition = PartitionId { topic: TopicId(topic), index: 0 };
        let entry = Entry::seal(place, EntryKind::Records, partition, self.batch.clone().into());
        (*lsn, *chain) = (lsn.next(), entry.header.chain);
        entry
    }
}
