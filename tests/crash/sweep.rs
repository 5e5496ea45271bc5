//! The power goes at every I/O.

use dunlin::storage::StoreError;

use super::{
    disk::{Disk, Honesty, Io, Platter, Survival},
    model::{Step, Truth},
    rng::Rng,
    seeds,
    workload::{OPTIONS, Run, SHARDS, open, run},
};

const STEPS: usize = 40;

/// What a sweep saw.
#[derive(Debug, Default)]
struct Tally {
    ios: usize,
    crashes: usize,
    second_crashes: usize,
    violations: Vec<String>,
}

/// A disk with an empty store, past its format: how a store is made is swept by itself.
fn formatted() -> Vec<u8> {
    let disk = Disk::default();
    let made = run(&disk, &Truth::new(SHARDS), 0, 0, false);
    assert!(made.failed.is_none());
    disk.image()
}

#[test]
#[expect(clippy::print_stdout, reason = "the count is part of the result")]
fn no_power_cut_loses_or_tears_what_was_acknowledged() {
    let base = formatted();
    let mut tally = Tally::default();
    for seed in 0..seeds() {
        let disk = Disk::holding(base.clone());
        let run = run(&disk, &Truth::new(SHARDS), seed, STEPS, true);
        assert!(run.failed.is_none(), "{:?}", run.failed);
        sweep(&base, &disk.trace(), &run, Honesty::Honest, seed, 8, &mut tally);
    }
    println!(
        "power cuts at each of {} I/Os: {} crashes, {} second crashes, {} violations",
        tally.ios,
        tally.crashes,
        tally.second_crashes,
        tally.violations.len()
    );
    assert!(tally.violations.is_empty(), "first: {}", tally.violations[0]);
    assert!(tally.crashes > 1000);
}

#[test]
#[expect(clippy::print_stdout, reason = "the count is part of the result")]
fn a_disk_that_lies_is_found_out() {
    let base = formatted();
    for honesty in [Honesty::Lies, Honesty::Skips(3)] {
        let disk = Disk::holding(base.clone());
        let run = run(&disk, &Truth::new(SHARDS), 1, STEPS, true);
        let mut tally = Tally::default();
        sweep(&base, &disk.trace(), &run, honesty, 1, usize::MAX, &mut tally);
        println!(
            "control, {honesty:?}: {} crashes, {} violations",
            tally.crashes,
            tally.violations.len()
        );
        assert!(tally.violations.len() > tally.crashes / 10, "the sweep does not bite");
    }
}

#[test]
fn a_power_cut_while_a_store_is_made_leaves_no_store_or_an_empty_one() {
    let disk = Disk::default();
    run(&disk, &Truth::new(SHARDS), 0, 0, false);
    let trace = disk.trace();
    let mut platter = Platter::new(Vec::new(), Honesty::Honest);
    for (at, io) in trace.iter().enumerate() {
        for survival in patterns(at as u64) {
            match open(platter.cut(Some(io), survival)) {
                Ok((store, _, recovered)) => {
                    let truth = Truth::new(SHARDS);
                    truth.check(&store, &recovered, &mut Rng(0)).expect("an empty store");
                    assert_eq!(recovered.disk_id, OPTIONS.disk_id);
                }
                // The file has another name until the store in it is whole, so nobody sees this.
                Err(StoreError::Foreign(_) | StoreError::Corrupted(_)) => {}
                Err(error) => panic!("cut at {at}: {error}"),
            }
        }
        platter.step(io);
    }
}

fn patterns(seed: u64) -> [Survival; 6] {
    [
        Survival::None,
        Survival::All,
        Survival::Sectors(seed),
        Survival::Sectors(seed ^ 0xffff),
        Survival::Prefix(seed),
        Survival::Torn(seed),
    ]
}

/// Cuts the power at every I/O of `run`; after every `again`-th cut works on, and cuts once more.
fn sweep(
    base: &[u8],
    trace: &[Io],
    run: &Run,
    honesty: Honesty,
    seed: u64,
    again: usize,
    tally: &mut Tally,
) {
    let mut platter = Platter::new(base.to_vec(), honesty);
    for at in 0..=trace.len() {
        tally.ios += 1;
        for (number, survival) in patterns(seed << 32 | at as u64).into_iter().enumerate() {
            tally.crashes += 1;
            let image = platter.cut(trace.get(at), survival);
            let seed = seed << 40 | (at as u64) << 8 | number as u64;
            let survived = match survivor(&image, &run.candidates(at), seed) {
                Ok(survived) => survived,
                Err(why) => {
                    tally.violations.push(format!("cut at I/O {at}, {survival:?}: {why}"));
                    continue;
                }
            };
            if tally.crashes.is_multiple_of(again) {
                cut_again(image, &survived, seed, tally);
            }
        }
        if let Some(io) = trace.get(at) {
            platter.step(io);
        }
    }
}

/// Works on after a power cut, and cuts again at a few I/Os, among them those of the recovery.
fn cut_again(image: Vec<u8>, survived: &Truth, seed: u64, tally: &mut Tally) {
    let disk = Disk::holding(image.clone());
    let more = run(&disk, survived, seed, 6, false);
    if let Some((error, _)) = more.failed {
        tally.violations.push(format!("seed {seed}: cannot go on after a power cut: {error}"));
        return;
    }
    let trace = disk.trace();
    let mut rng = Rng(seed);
    let cuts: Vec<usize> = (0..4).map(|_| rng.below(trace.len() + 1)).collect();
    let mut platter = Platter::new(image, Honesty::Honest);
    for at in 0..=trace.len() {
        for _ in cuts.iter().filter(|cut| **cut == at) {
            tally.second_crashes += 1;
            let image = platter.cut(trace.get(at), Survival::Sectors(rng.next()));
            if let Err(why) = survivor(&image, &more.candidates(at), seed) {
                tally.violations.push(format!("seed {seed}, second cut at I/O {at}: {why}"));
            }
        }
        if let Some(io) = trace.get(at) {
            platter.step(io);
        }
    }
}

/// Opens an image and finds which of the truths it holds.
pub(crate) fn survivor(image: &[u8], candidates: &[Truth], seed: u64) -> Result<Truth, String> {
    let (store, _writer, recovered) = open(image.to_vec()).map_err(|e| e.to_string())?;
    if recovered.disk_id != OPTIONS.disk_id {
        return Err("the store forgot who it is".into());
    }
    let mut first = None;
    for truth in candidates {
        match truth.check(&store, &recovered, &mut Rng(seed)) {
            Ok(()) => return Ok(truth.clone()),
            Err(why) => drop(first.get_or_insert(why)),
        }
    }
    Err(first.unwrap_or_default())
}

impl Run {
    /// What may be true after a cut at I/O `at`: all that was acknowledged, and with or without the step under way.
    pub(crate) fn candidates(&self, at: usize) -> Vec<Truth> {
        let mut truth = self.before.clone();
        for (ios, step) in &self.steps {
            if ios.end <= at {
                truth.apply(step);
            } else {
                let mut with = truth.clone();
                with.apply(step);
                return match step {
                    Step::Silent => vec![truth],
                    _ => vec![truth, with],
                };
            }
        }
        vec![truth]
    }
}
