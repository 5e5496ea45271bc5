//! Three nodes on real stores, in one thread, and the power goes again and again.
//!
//! The cluster simulator has a model of a disk. Here the same core stands on the real store, so that what the one promises
//! and what the other keeps are tried together. `DUNLIN_CRASH_CLUSTER` sets how many seeds are run,
//! `DUNLIN_CRASH_CLUSTER_SEED` replays one.

mod check;
mod node;
mod world;

use std::{env, panic};

use world::{Counters, World};

/// Seeds of one run in the tests.
const SEEDS: u64 = 8;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

fn run(seed: u64, hasty: bool) -> Counters {
    let mut world = World::new(seed, hasty);
    world.run();
    world.settle();
    world.check_end();
    world.counters
}

#[test]
fn nothing_acked_is_lost_on_real_stores() {
    let one = number("DUNLIN_CRASH_CLUSTER_SEED");
    let seeds = match one {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("DUNLIN_CRASH_CLUSTER").unwrap_or(SEEDS),
    };
    let mut sum = Counters::default();
    for seed in seeds {
        // Captured, and shown with the failure.
        println!("seed {seed}, DUNLIN_CRASH_CLUSTER_SEED={seed} replays it");
        let counters = run(seed, false);
        println!("  {counters:?}");
        sum.add(&counters);
    }
    println!("in all: {sum:?}");
    if one.is_none() {
        let Counters { cuts_of_all, cuts_of_one, wiped, truncations, installs, .. } = sum;
        assert!(cuts_of_all >= 100 && cuts_of_one >= 50, "{sum:?}");
        assert!(wiped >= 10 && truncations >= 10 && installs >= 3, "{sum:?}");
        assert!(sum.acks >= 200 && sum.elections >= 100, "{sum:?}");
    }
}

/// The control: a driver that tells the core that the disk is done as soon as it is asked must be found out.
#[test]
fn a_driver_that_does_not_wait_for_the_disk_is_found_out() {
    let found = (1..=3).filter(|seed| panic::catch_unwind(|| run(*seed, true)).is_err()).count();
    println!("control: {found} of 3 seeds");
    assert_eq!(found, 3);
}
