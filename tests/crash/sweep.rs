//! The power goes at every I/O.

use std::ops::Range;

use dunlin::storage::StoreError;

use super::{
    disk::{Disk, Honesty, Io, Platter, Survival},
    model::{Expected, Step, Truth},
    rng::Rng,
    seeds,
    workload::{OPTIONS, Run, SHARDS, open, run},
};

const STEPS: usize = 26;

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
fn no_power_cut_loses_or_tears_what_was_acknowledged() {
    let base = formatted();
    let mut tally = Tally::default();
    for seed in 0..seeds() {
        let disk = Disk::holding(base.clone());
        let run = run(&disk, &Truth::new(SHARDS), seed, STEPS, true);
        assert!(run.failed.is_none(), "{:?}", run.failed);
        sweep(&base, &disk.trace(), &run, Honesty::Honest, seed, 12, &mut tally);
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
fn a_disk_that_lies_is_found_out() {
    let base = formatted();
    for (honesty, caught_min) in [(Honesty::Lies, 0.5), (Honesty::Skips(3), 0.02)] {
        let disk = Disk::holding(base.clone());
        let run = run(&disk, &Truth::new(SHARDS), 1, STEPS, true);
        let mut tally = Tally::default();
        sweep(&base, &disk.trace(), &run, honesty, 1, usize::MAX, &mut tally);
        println!(
            "control, {honesty:?}: {} crashes, {} violations",
            tally.crashes,
            tally.violations.len()
        );
        let caught = tally.violations.len() as f64 / tally.crashes as f64;
        assert!(caught > caught_min, "{honesty:?} is hardly noticed");
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
                    truth.expect().check(&store, &recovered, &mut Rng(0)).expect("an empty store");
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
    let mut candidates = Candidates::new(run);
    for at in 0..=trace.len() {
        tally.ios += 1;
        candidates.advance(at);
        for (number, survival) in patterns(seed << 32 | at as u64).into_iter().enumerate() {
            tally.crashes += 1;
            let image = platter.cut(trace.get(at), survival);
            let seed = seed << 40 | (at as u64) << 8 | number as u64;
            let survived = match survivor(&image, &candidates.now, seed) {
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
    let mut candidates = Candidates::new(&more);
    for at in 0..=trace.len() {
        for _ in cuts.iter().filter(|cut| **cut == at) {
            tally.second_crashes += 1;
            let image = platter.cut(trace.get(at), Survival::Sectors(rng.next()));
            candidates.advance(at);
            if let Err(why) = survivor(&image, &candidates.now, seed) {
                tally.violations.push(format!("seed {seed}, second cut at I/O {at}: {why}"));
            }
        }
        if let Some(io) = trace.get(at) {
            platter.step(io);
        }
    }
}

/// Opens an image and finds which of the truths it holds.
pub(crate) fn survivor(image: &[u8], candidates: &[Expected], seed: u64) -> Result<Truth, String> {
    let (store, _writer, recovered) = open(image.to_vec()).map_err(|e| e.to_string())?;
    if recovered.disk_id != OPTIONS.disk_id {
        return Err("the store forgot who it is".into());
    }
    let mut first = None;
    for expected in candidates {
        match expected.check(&store, &recovered, &mut Rng(seed)) {
            Ok(()) => return Ok(expected.truth.clone()),
            Err(why) => drop(first.get_or_insert(why)),
        }
    }
    Err(first.unwrap_or_default())
}

/// What may be true after a cut: all that was acknowledged, with or without the step under way.
struct Candidates<'a> {
    steps: std::slice::Iter<'a, (Range<usize>, Step)>,
    acknowledged: Truth,
    under_way: Option<&'a (Range<usize>, Step)>,
    now: Vec<Expected>,
}

impl<'a> Candidates<'a> {
    fn new(run: &'a Run) -> Self {
        let mut steps = run.steps.iter();
        let under_way = steps.next();
        let acknowledged = run.before.clone();
        let mut new = Self { steps, acknowledged, under_way, now: Vec::new() };
        new.work_out();
        new
    }

    /// Goes on to a cut at I/O `at`.
    fn advance(&mut self, at: usize) {
        let mut moved = false;
        while let Some((ios, step)) = self.under_way
            && ios.end <= at
        {
            self.acknowledged.apply(step);
            self.under_way = self.steps.next();
            moved = true;
        }
        if moved {
            self.work_out();
        }
    }

    fn work_out(&mut self) {
        self.now = vec![self.acknowledged.expect()];
        if let Some((_, step @ (Step::Commit(_) | Step::Checkpoint(_)))) = self.under_way {
            let mut with = self.acknowledged.clone();
            with.apply(step);
            self.now.push(with.expect());
        }
    }
}
