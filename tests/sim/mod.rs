//! A cluster in one thread that is driven by the product's own core, and tried hard.
//!
//! The same `Replica`, `Shard`, `Controller` and `SiteState` that nodes run; around them a network, disks, clocks, a
//! metadata log and clients that do everything that such things do. One seed is one run, step for step.
//!
//! | file | what it holds |
//! |---|---|
//! | `view` | how checkers see a world; the traits `Look` and `Checker` |
//! | `plan` | what a seed draws: site shape, weights, faults |
//! | `network` | links: cut, lossy, slow, doubling |
//! | `disk` | what is durable on a node, and what a power cut leaves of it |
//! | `metadata` | the metadata group as a log with delays |
//! | `node` | a process: drives the core, performs its effects |
//! | `clients` | producers and readers, and their history |
//! | `world` | time, and what follows from what happens |
//! | `event` | what happens at a time |
//! | `look` | a world as checkers see it |
//! | `run` | a seed from its start to its verdict; replay, shrinking, floors against empty runs |
//! | `faults` | what goes wrong, and how it is mended |
//! | `rest` | when a site that is whole again has nothing left to do |
//! | `trace` | the hash that two runs of one seed share |
//! | `invariants` | what must hold after each step |
//! | `history` | what must hold of what clients saw |
//! | `directed` | schedules that chance misses, each for a hole of its own |
//! | `mutations` | seeded bugs, and which check finds them |

#![allow(clippy::print_stdout, reason = "what a run prints is its result")]

mod clients;
mod directed;
mod disk;
mod event;
mod faults;
mod history;
mod invariants;
mod look;
mod metadata;
mod mutations;
mod network;
mod node;
mod plan;
mod rest;
mod rng;
mod run;
mod trace;
mod view;
mod world;

use std::{panic::catch_unwind, time::Instant};

use plan::Plan;

/// Steps with faults of one run.
const STEPS: u64 = 3_000;
const SEEDS: u64 = 300;

/// `DUNLIN_SIM_SEED` replays one, `DUNLIN_SIM_SEEDS` sets how many there are.
#[test]
fn nothing_that_was_promised_is_broken() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    if let Some(seed) = number("DUNLIN_SIM_SEED") {
        replay(seed);
        return;
    }
    let begun = Instant::now();
    let seeds = number("DUNLIN_SIM_SEEDS").unwrap_or(SEEDS);
    let first = number("DUNLIN_SIM_FIRST").unwrap_or(1);
    let mut total = view::Counters::default();
    let (mut counted, mut stalled, mut beyond, mut failed) = (0, 0, 0, Vec::new());
    for seed in first..first + seeds {
        let plan = Plan::draw(seed, STEPS);
        beyond += u64::from(plan.beyond);
        let Ok(outcome) = catch_unwind(|| run::run(plan, false)) else {
            println!("seed {seed}: panicked, as said above");
            failed.push(seed);
            continue;
        };
        total.steps += outcome.counters.steps;
        total.failovers += outcome.counters.failovers;
        total.truncations += outcome.counters.truncations;
        total.set_changes += outcome.counters.set_changes;
        total.installs += outcome.counters.installs;
        total.acks += outcome.counters.acks;
        total.reads += outcome.counters.reads;
        total.alarms += outcome.counters.alarms;
        total.barriers += outcome.counters.barriers;
        counted += u64::from(!outcome.is_vacuous());
        stalled += u64::from(outcome.stalled);
        if let Some(violation) = outcome.violation {
            println!("seed {seed}: {}: {}", violation.rule, violation.text);
            failed.push(seed);
        }
    }
    let time = begun.elapsed();
    #[expect(clippy::cast_precision_loss, reason = "a figure to look at")]
    let pace = total.steps as f64 / time.as_secs_f64();
    println!("{seeds} seeds in {time:?}, {pace:.0} steps a second: {total:?}");
    println!("{counted} counted: in the others too little happened");
    println!("{stalled} stalled, {beyond} beyond what the site promises to survive");
    assert!(failed.is_empty(), "failed: {failed:?}; replay one: just sim {}", failed[0]);
    if seeds >= SEEDS {
        let of = |count: u64| count * SEEDS / seeds;
        for (what, count, least) in [
            ("runs in which enough happened", counted, 225),
            ("failovers", total.failovers, 900),
            ("truncations", total.truncations, 60),
            ("changes of the set", total.set_changes, 1_800),
            ("installs", total.installs, 60),
            ("acks", total.acks, 10_000),
            ("barriers", total.barriers, 200),
        ] {
            let count = of(count);
            assert!(count >= least, "{what}: {count} in {SEEDS} seeds, {least} are wanted");
        }
    }
}

fn replay(seed: u64) {
    let plan = Plan::draw(seed, STEPS);
    println!("{:?} {:?}", plan.shape, plan.links);
    let outcome = run::run(plan.clone(), true);
    for line in &outcome.trace {
        println!("{line}");
    }
    println!("{:?}", outcome.counters);
    println!("hash {:016x}", outcome.hash);
    let again = run::run(plan.clone(), false);
    assert_eq!(outcome.hash, again.hash, "a seed is one run");
    let Some(violation) = outcome.violation else { return };
    let small = run::shrink(&plan, violation.rule);
    println!("faults that are enough:");
    for ambush in &small.ambushes {
        println!("{ambush:?}");
    }
    for (at, fault) in &small.faults {
        println!("{at:>10} {fault:?}");
    }
    panic!("{}: {}", violation.rule, violation.text);
}
