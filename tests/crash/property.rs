//! Any list of operations leaves the store as the naive model says.

use dunlin::{
    storage::{Change, Options, Store, Writer},
    types::{PartitionId, ShardId, TopicId},
    wire::EntryKind,
};
use proptest::prelude::*;

use super::{
    disk::Disk,
    model::{Step, Truth},
    rng::Rng,
    workload::{Author, OPTIONS, SHARDS, change, checkpoint, shard_of},
};

#[derive(Clone, Debug)]
enum Op {
    Records { partition: u8, size: u16, batches: u8 },
    Trim { partition: u8, seed: u64 },
    Drop { partition: u8 },
    Epoch,
    Change(u64),
    Install(u8),
    Checkpoint(u64),
    Collect { pass: bool, budget: u32 },
    Reopen { clean: bool },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..4u8, 1..3000u16, 1..60u8).prop_map(|(partition, size, batches)| Op::Records {
            partition,
            size,
            batches
        }),
        3 => (0..4u8, any::<u64>()).prop_map(|(partition, seed)| Op::Trim { partition, seed }),
        1 => (0..4u8).prop_map(|partition| Op::Drop { partition }),
        1 => Just(Op::Epoch),
        3 => any::<u64>().prop_map(Op::Change),
        1 => (0..3u8).prop_map(Op::Install),
        3 => any::<u64>().prop_map(Op::Checkpoint),
        2 => (any::<bool>(), 1..300_000u32).prop_map(|(pass, budget)| Op::Collect { pass, budget }),
        2 => any::<bool>().prop_map(|clean| Op::Reopen { clean }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_store_holds_what_a_naive_model_holds(ops in prop::collection::vec(op(), 1..40)) {
        check(&ops).map_err(TestCaseError::fail)?;
    }
}

fn check(ops: &[Op]) -> Result<(), String> {
    let disk = Disk::default();
    let mut truth = Truth::new(SHARDS);
    let mut rng = Rng(3);
    let (mut store, mut writer, _) =
        Store::open_backend(disk.clone(), disk.journal(), OPTIONS).map_err(|e| e.to_string())?;
    for op in ops {
        let step = match op {
            Op::Reopen { clean } => {
                let (again, next) = reopen(&disk, (store, writer), &truth, *clean)?;
                (store, writer) = (again, next);
                continue;
            }
            Op::Collect { pass, budget } => {
                if *pass {
                    writer.begin_pass();
                }
                while writer.collect_garbage(*budget as usize).map_err(|e| e.to_string())? {}
                truth.expect().check_reads(&store, &mut rng)?;
                continue;
            }
            Op::Checkpoint(seed) => Step::Checkpoint(checkpoint(&truth, &mut Rng(*seed))),
            Op::Records { partition, size, batches } => {
                let mut author = Author::new(&truth);
                let id = author.living(id(*partition));
                let many =
                    (0..*batches).map(|_| author.records(id, usize::from(*size), 2, &mut rng));
                Step::Commit(many.collect())
            }
            Op::Trim { partition, seed } => {
                let mut author = Author::new(&truth);
                let id = author.living(id(*partition));
                Step::Commit(vec![author.trim(id, &mut Rng(*seed))])
            }
            Op::Drop { partition } => control(&truth, EntryKind::PartitionDrop, id(*partition)),
            Op::Change(seed) => match change(&truth, &mut Rng(*seed)) {
                Step::Change(_, Change::InstallBegin { .. }) => continue,
                step => step,
            },
            Op::Install(shard) => {
                install(&store, &mut writer, &mut truth, ShardId(u16::from(*shard)))?;
                truth.expect().check_reads(&store, &mut rng)?;
                continue;
            }
            Op::Epoch => control(&truth, EntryKind::EpochStart, id(0)),
        };
        match &step {
            Step::Commit(entries) => drop(writer.commit(entries).map_err(|e| e.to_string())?),
            Step::Checkpoint(handed) => {
                writer.checkpoint(handed.clone()).map_err(|e| e.to_string())?;
            }
            Step::Change(shard, change) => {
                writer
                    .perform(&[], vec![(0, *shard, change.clone())])
                    .map_err(|e| e.to_string())?;
                truth.apply(&step);
                truth.expect().check_reads(&store, &mut rng)?;
                continue;
            }
            Step::Note(shard, lsn) => writer.note_committed(*shard, *lsn),
            Step::Silent => {}
        }
        truth.apply(&step);
    }
    truth.expect().check_reads(&store, &mut rng)
}

/// Closes the store, or drops it as a kill does, and opens it again.
fn reopen(
    disk: &Disk,
    (store, writer): (Store, Writer),
    truth: &Truth,
    clean: bool,
) -> Result<(Store, Writer), String> {
    if clean {
        writer.close().map_err(|e| e.to_string())?;
    } else {
        drop(writer);
    }
    drop(store);
    let options = Options { disk_id: 99, ..OPTIONS };
    let opened = Store::open_backend(disk.clone(), disk.journal(), options);
    let (store, writer, recovered) = opened.map_err(|e| e.to_string())?;
    if recovered.disk_id != OPTIONS.disk_id || recovered.clean_shutdown != clean {
        return Err(format!("opened with {recovered:?}"));
    }
    truth.expect().check(&store, &recovered, &mut Rng(3))?;
    Ok((store, writer))
}

/// Installs a shard of what the store itself says about it.
fn install(
    store: &Store,
    writer: &mut Writer,
    truth: &mut Truth,
    shard: ShardId,
) -> Result<(), String> {
    let before = &truth.shards[usize::from(shard.0)];
    if before.noted > before.applied {
        return Ok(());
    }
    let snapshot = store.snapshot(shard).map_err(|e| e.to_string())?.ok_or("no snapshot")?;
    let base = snapshot.base();
    if base.lsn.0 != before.applied as u64 {
        return Err(format!("a snapshot at {base:?}, applied {}", before.applied));
    }
    let mut changes = vec![Change::InstallBegin { base }];
    // What the collector does in between must not matter.
    writer.begin_pass();
    while writer.collect_garbage(usize::MAX).map_err(|e| e.to_string())? {}
    for index in 0..snapshot.chunks() {
        changes.push(snapshot.chunk(index).map_err(|e| e.to_string())?);
    }
    changes.push(Change::InstallEnd { base, epochs: snapshot.epochs().to_vec() });
    for change in changes {
        writer.perform(&[], vec![(0, shard, change.clone())]).map_err(|e| e.to_string())?;
        truth.apply(&Step::Change(shard, change));
    }
    Ok(())
}

fn control(truth: &Truth, kind: EntryKind, id: PartitionId) -> Step {
    let mut author = Author::new(truth);
    let id = author.living(id);
    Step::Commit(vec![author.control(shard_of(id), kind, id, bytes::Bytes::new())])
}

fn id(number: u8) -> PartitionId {
    PartitionId { topic: TopicId(u64::from(number / 2)), index: u32::from(number % 2) }
}
