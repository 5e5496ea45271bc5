//! The power goes at every I/O.

use std::{env, ops::Range, process::Command};

use dunlin::storage::StoreError;

use super::{
    disk::{Disk, Honesty, Image, Io, Platter, Survival},
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
fn formatted() -> Image {
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
        sweep(&base, &disk.trace(), &run, seed, &mut tally);
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

/// The control: a disk that does not flush must be noticed. On what such a disk leaves, redb may panic while it unwinds
/// from a panic, which ends the process: so each disk has a process of its own, and its end counts as noticed.
#[test]
fn a_disk_that_lies_is_found_out() {
    if let Ok(control) = env::var(CONTROL) {
        return one_lying_disk(&control);
    }
    for (name, caught_min) in [("lies", 0.5), ("skips", 0.02)] {
        let (mut from, mut crashes, mut caught, mut aborts) = (0, 0, 0, 0);
        loop {
            let child = Command::new(env::current_exe().expect("this program"))
                .args(["--exact", "crash::sweep::a_disk_that_lies_is_found_out", "--nocapture"])
                .env(CONTROL, format!("{name} {from}"))
                .env("RUST_BACKTRACE", "0")
                .output()
                .expect("this program again");
            let said = String::from_utf8_lossy(&child.stdout);
            let cuts = said.lines().filter_map(|line| line.strip_prefix(CUT));
            let cuts: Vec<usize> = cuts.map(|cut| cut.parse().expect("a number")).collect();
            crashes += cuts.len() * PATTERNS;
            caught += cuts.iter().sum::<usize>();
            if child.status.success() {
                break;
            }
            assert!(child.status.code().is_none(), "{}", String::from_utf8_lossy(&child.stderr));
            aborts += 1;
            crashes += PATTERNS;
            caught += 1;
            from += cuts.len() + 1;
        }
        println!(
            "control, a disk that {name}: {crashes} crashes, {caught} violations, {aborts} aborts"
        );
        assert!(crashes > 500);
        assert!(
            caught as f64 / crashes as f64 > caught_min,
            "a disk that {name} is hardly noticed"
        );
    }
}

/// Which disk, and the first I/O to cut at.
const CONTROL: &str = "DUNLIN_CRASH_CONTROL";
/// What one cut says: the number of its patterns that were noticed.
const CUT: &str = "noticed ";

/// The part of the control that is played by a process for each disk.
fn one_lying_disk(control: &str) {
    let (name, from) = control.split_once(' ').expect("two words");
    let honesty = if name == "lies" { Honesty::Lies } else { Honesty::Skips(3) };
    let base = formatted();
    let disk = Disk::holding(base.clone());
    let run = run(&disk, &Truth::new(SHARDS), 1, STEPS, true);
    let trace = disk.trace();
    let mut platter = Platter::new(base, honesty);
    let mut candidates = Candidates::new(&run);
    for at in 0..=trace.len() {
        candidates.advance(at);
        if at >= from.parse().expect("a number") {
            let survivors = patterns(1 << 32 | at as u64).into_iter().map(|survival| {
                survivor(&platter.cut(trace.get(at), survival), &candidates.now, at as u64)
            });
            println!("{CUT}{}", survivors.filter(Result::is_err).count());
        }
        if let Some(io) = trace.get(at) {
            platter.step(io);
        }
    }
}

#[test]
fn a_power_cut_while_a_store_is_made_leaves_no_store_or_an_empty_one() {
    let disk = Disk::default();
    run(&disk, &Truth::new(SHARDS), 0, 0, false);
    let trace = disk.trace();
    let mut platter = Platter::new(Image::default(), Honesty::Honest);
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

const PATTERNS: usize = 6;

fn patterns(seed: u64) -> [Survival; PATTERNS] {
    [
        Survival::None,
        Survival::All,
        Survival::Sectors(seed),
        Survival::Sectors(seed ^ 0xffff),
        Survival::Prefix(seed),
        Survival::Torn(seed),
    ]
}

/// Cuts the power at every I/O of `run`; after every twelfth cut works on, and cuts once more.
fn sweep(base: &Image, trace: &[Io], run: &Run, seed: u64, tally: &mut Tally) {
    let mut platter = Platter::new(base.clone(), Honesty::Honest);
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
            if tally.crashes.is_multiple_of(12) {
                cut_again(image, &survived, seed, tally);
            }
        }
        if let Some(io) = trace.get(at) {
            platter.step(io);
        }
    }
}

/// Works on after a power cut, and cuts again at a few I/Os, among them those of the recovery.
fn cut_again(image: Image, survived: &Truth, seed: u64, tally: &mut Tally) {
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
pub(crate) fn survivor(image: &Image, candidates: &[Expected], seed: u64) -> Result<Truth, String> {
    let (store, _writer, recovered) = open(image.clone()).map_err(|e| e.to_string())?;
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
        if let Some((_, step)) = self.under_way {
            let mut with = self.acknowledged.clone();
            with.apply(step);
            self.now.push(with.expect());
        }
    }
}
