//! The small store of the metadata group, on the same disks.

use std::{collections::BTreeMap, fs};

use bytes::Bytes;
use dunlin::storage::{Ballast, MetaSnapshot, MetaStore, Store, StoreError, free_bytes};

use super::{
    disk::{Disk, Honesty, Platter, Survival},
    rng::Rng,
    workload::OPTIONS,
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Truth {
    log: BTreeMap<u64, Bytes>,
    snapshot: Option<MetaSnapshot>,
    values: BTreeMap<String, Bytes>,
}

fn read(store: &MetaStore) -> Result<Truth, StoreError> {
    let mut truth = Truth {
        log: store.entries(0..)?.into_iter().collect(),
        snapshot: store.snapshot()?,
        values: BTreeMap::new(),
    };
    for key in ["vote", "purged", "node"] {
        truth.values.extend(store.get(key)?.map(|value| (key.to_owned(), value)));
    }
    Ok(truth)
}

fn change(store: &MetaStore, truth: &mut Truth, rng: &mut Rng) -> Result<(), StoreError> {
    let last = truth.log.last_key_value().map_or(0, |(index, _)| *index);
    let bytes = Bytes::from(rng.next().to_be_bytes().repeat(1 + rng.below(300)));
    match rng.below(6) {
        0 => {
            store.truncate_from(last)?;
            truth.log.remove(&last);
        }
        1 => {
            let to = last.saturating_sub(2);
            store.purge_to(to, &bytes)?;
            truth.log.retain(|index, _| *index > to);
            truth.values.insert("purged".into(), bytes);
        }
        2 => {
            let about = Bytes::copy_from_slice(&last.to_be_bytes());
            store.save_snapshot(&about, &bytes)?;
            truth.snapshot = Some(MetaSnapshot { about, bytes });
        }
        3 => {
            let key = ["vote", "node"][rng.below(2)];
            store.put(key, &bytes)?;
            truth.values.insert(key.into(), bytes);
        }
        _ => {
            store.append(last + 1, &[bytes.clone(), bytes.clone()])?;
            truth.log.insert(last + 1, bytes.clone());
            truth.log.insert(last + 2, bytes);
        }
    }
    Ok(())
}

#[test]
fn no_power_cut_takes_back_what_the_metadata_store_said() {
    let disk = Disk::default();
    drop(MetaStore::open_backend(disk.clone()).expect("a good disk"));
    let base = disk.image();
    let disk = Disk::holding(base.clone());
    let store = MetaStore::open_backend(disk.clone()).expect("a good disk");
    let mut truths = vec![(disk.ios(), Truth::default())];
    let mut rng = Rng(11);
    for _ in 0..30 {
        let mut truth = truths[truths.len() - 1].1.clone();
        change(&store, &mut truth, &mut rng).expect("a good disk");
        truths.push((disk.ios(), truth));
    }
    let trace = disk.trace();
    let mut platter = Platter::new(base, Honesty::Honest);
    let mut crashes = 0;
    for at in 0..=trace.len() {
        let done = truths.partition_point(|(ios, _)| *ios <= at).max(1);
        for survival in [Survival::None, Survival::All, Survival::Sectors(at as u64)] {
            crashes += 1;
            let image = platter.cut(trace.get(at), survival);
            let store = MetaStore::open_backend(Disk::holding(image)).expect("survives");
            let found = read(&store).expect("readable");
            let under_way = truths.get(done).map(|(_, truth)| truth);
            assert!(
                found == truths[done - 1].1 || Some(&found) == under_way,
                "cut at I/O {at}, {survival:?}"
            );
        }
        trace.get(at).into_iter().for_each(|io| platter.step(io));
    }
    println!("metadata store: {crashes} crashes, 0 violations");
}

#[test]
fn files_are_made_whole_or_not_at_all_and_never_taken_for_fresh() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, meta) = (dir.path().join("data.redb"), dir.path().join("meta.redb"));
    let (store, writer, recovered) = Store::open(&data, OPTIONS).expect("a new store");
    assert!(recovered.clean_shutdown);
    let used = Store::open(&data, OPTIONS).expect_err("it is open");
    assert!(matches!(used, StoreError::InUse), "{used}");
    drop((store, writer));
    let (.., recovered) = Store::open(&data, OPTIONS).expect("it is there");
    assert!(!recovered.clean_shutdown);
    MetaStore::open(&meta).expect("a new store").put("vote", b"1").expect("a good disk");
    assert_eq!(
        MetaStore::open(&meta).expect("there").get("vote").expect("there").as_deref(),
        Some(&b"1"[..])
    );

    for content in [&b""[..], b"not a database", &[0; 100_000]] {
        fs::write(&data, content).expect("a good disk");
        fs::write(&meta, content).expect("a good disk");
        assert!(matches!(Store::open(&data, OPTIONS), Err(StoreError::Foreign(_))));
        assert!(matches!(MetaStore::open(&meta), Err(StoreError::Foreign(_))));
    }
    // A database that is ours, but of the other kind.
    fs::remove_file(&meta).expect("a good disk");
    drop(MetaStore::open(&meta).expect("a new store"));
    assert!(matches!(Store::open(&meta, OPTIONS), Err(StoreError::Foreign(_))));
    let names: Vec<_> = fs::read_dir(dir.path()).expect("there").flatten().collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn a_ballast_holds_real_blocks_until_it_is_released() {
    let dir = tempfile::tempdir().expect("a directory");
    let ballast = Ballast::new(dir.path().join("ballast"), 8 << 20);
    assert!(free_bytes(dir.path()).expect("known") > 0);
    assert!(!ballast.is_held());
    ballast.hold().expect("room");
    ballast.hold().expect("held already");
    assert!(ballast.is_held());
    assert!(ballast.release().expect("ours"));
    assert!(!ballast.release().expect("gone"));
    let huge = Ballast::new(dir.path().join("huge"), 1 << 60);
    let error = huge.hold().expect_err("no disk is so large").to_string();
    assert!(error.starts_with("cannot reserve space in "), "{error}");
    assert!(!dir.path().join("huge").exists());
}
