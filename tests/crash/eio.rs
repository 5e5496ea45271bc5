//! The disk refuses a write or a flush.

use std::io::ErrorKind;

use super::{
    disk::{Disk, Fault, Honesty, Image, Platter, Survival},
    model::Truth,
    rng::Rng,
    sweep::survivor,
    workload::{SHARDS, run},
};

const STEPS: usize = 14;
const SEED: u64 = 5;

#[test]
fn a_flush_that_fails_is_never_followed_by_an_acknowledgement() {
    let (syncs, _) = counts();
    refuse((0..syncs).map(Fault::Sync), "flushes");
}

#[test]
fn a_write_that_fails_is_never_followed_by_an_acknowledgement() {
    let (_, writes) = counts();
    refuse((0..writes).map(|at| Fault::Write(at, ErrorKind::Other)), "writes with EIO");
}

#[test]
fn a_full_disk_stops_the_writer_and_loses_nothing() {
    let (_, writes) = counts();
    refuse((0..writes).map(|at| Fault::Write(at, ErrorKind::StorageFull)), "writes with ENOSPC");
}

fn base() -> (Image, Truth) {
    let disk = Disk::default();
    let run = run(&disk, &Truth::new(SHARDS), SEED, 6, true);
    (disk.image(), run.truth)
}

fn counts() -> (usize, usize) {
    let (image, truth) = base();
    let disk = Disk::holding(image);
    run(&disk, &truth, SEED, STEPS, true);
    disk.counts()
}

fn refuse(faults: impl Iterator<Item = Fault>, what: &str) {
    let (image, before) = base();
    let (mut count, mut reopened) = (0, 0);
    for fault in faults {
        let disk = Disk::failing(image.clone(), fault);
        let run = run(&disk, &before, SEED, STEPS, true);
        // redb may flush once more when it is dropped: a fault there hurts nobody.
        assert!(disk.fired(), "{fault:?} did not happen");
        count += 1;
        let mut candidates = vec![run.truth.expect()];
        if let Some((_, step)) = &run.failed {
            let mut with = run.truth.clone();
            with.apply(step);
            candidates.push(with.expect());
        }
        // A new start on the same machine, or after a power cut.
        let mut images = vec![disk.image()];
        let mut platter = Platter::new(image.clone(), Honesty::Honest);
        disk.trace().iter().for_each(|io| platter.step(io));
        let mut rng = Rng(count);
        images.push(platter.cut(None, Survival::None));
        images.push(platter.cut(None, Survival::Sectors(rng.next())));
        for image in images {
            reopened += 1;
            if let Err(why) = survivor(&image, &candidates, count) {
                panic!("{fault:?}, failed {:?}: {why}", run.failed.map(|failed| failed.0));
            }
        }
    }
    println!("{what}: {count} refused, {reopened} opens after it, 0 violations");
    assert!(count > 20);
}
