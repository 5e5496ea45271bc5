//! The store on a disk that fails, tears and forgets.
//!
//! `DUNLIN_CRASH_SEEDS` sets how many random workloads the sweeps take (default 2).

mod cluster;
mod commit;
mod disk;
mod eio;
mod group;
mod meta;
mod model;
mod property;
mod replica;
mod rng;
mod rot;
mod sweep;
mod workload;

/// How many workloads a sweep takes.
fn seeds() -> u64 {
    std::env::var("DUNLIN_CRASH_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2)
}
