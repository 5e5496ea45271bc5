//! Whether the simulator would notice: each seeded bug is switched on, and must be found.
//!
//! `just mutations` tries random seeds and every directed schedule on each, and prints the table of docs/replication.md. The
//! tests of every day run for each bug the schedule that finds it, and some seeds for those that any seed finds.

use std::{
    fmt::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use super::{
    directed::{NOT_REACHED, SCHEDULES, Schedule},
    plan::Plan,
    run,
    view::Violation,
};
use crate::replication::mutation::{Mutation, switch};

const STEPS: u64 = 3_000;
/// The most that random seeds are tried on one bug.
const TIME_MAX: Duration = Duration::from_secs(120);
/// A panic of the code under test: its own assertions are judges, too.
const ASSERTION: &str = "assertion";

/// What finds a bug.
struct Finding {
    rule: &'static str,
    text: String,
}

/// Runs something with a bug switched on.
fn with(mutation: Mutation, act: impl FnOnce() -> Option<Violation>) -> Option<Finding> {
    switch(Some(mutation));
    let outcome = catch_unwind(AssertUnwindSafe(act));
    switch(None);
    match outcome {
        Ok(violation) => violation
            .filter(|v| v.rule != NOT_REACHED)
            .map(|Violation { rule, text }| Finding { rule, text }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some(Finding { rule: ASSERTION, text: text.unwrap_or_default() })
        }
    }
}

fn by_schedule(mutation: Mutation, schedule: &Schedule) -> Option<Finding> {
    with(mutation, || (schedule.run)().err())
}

/// The number of seeds that were tried, and what the last one found.
fn by_seeds(mutation: Mutation, seeds: u64, time: Duration) -> (u64, Option<Finding>) {
    let begun = Instant::now();
    for seed in 1..=seeds {
        let found = with(mutation, || run::run(Plan::draw(seed, STEPS), false).violation);
        if found.is_some() || begun.elapsed() > time {
            return (seed, found);
        }
    }
    (seeds, None)
}

/// The schedule for each bug that has one, and the rule by which it is found.
const BY_SCHEDULE: [(Mutation, &str, &str); 0] = [];

/// Bugs that a few seeds find.
const BY_FEW_SEEDS: [Mutation; 3] =
    [Mutation::ForgetPromise, Mutation::HistoryNotTruncated, Mutation::OneStepAdd];

#[test]
fn seeded_bugs_are_found_by_their_schedules() {
    for (mutation, name, rule) in BY_SCHEDULE {
        let schedule = SCHEDULES.iter().find(|schedule| schedule.name == name);
        let found = by_schedule(mutation, schedule.expect("it is in the list"));
        let Some(found) = found else { panic!("{name} does not find {mutation:?}") };
        assert_eq!(found.rule, rule, "{mutation:?} by {name}: {}", found.text);
    }
}

#[test]
fn seeded_bugs_that_any_seed_shows_are_found_by_a_few() {
    for mutation in BY_FEW_SEEDS {
        let (seeds, found) = by_seeds(mutation, 40, TIME_MAX);
        assert!(found.is_some(), "{mutation:?} was not found by {seeds} seeds");
    }
}

/// Runs when it is asked for, because it takes minutes: `DUNLIN_MUTATIONS` is the most of seconds for each bug.
#[test]
fn every_seeded_bug_is_found() {
    let Ok(limit) = std::env::var("DUNLIN_MUTATIONS") else { return };
    let limit = limit.parse().map_or(TIME_MAX, Duration::from_secs);
    let mut missed = Vec::new();
    println!("| bug | seeds | by | schedules |\n|---|---|---|---|");
    for mutation in Mutation::ALL {
        let mut schedules = String::new();
        for schedule in SCHEDULES {
            if let Some(found) = by_schedule(mutation, schedule) {
                let _ = write!(schedules, "`{}` by `{}` ", schedule.name, found.rule);
            }
        }
        let (seeds, found) = by_seeds(mutation, u64::MAX, limit);
        if found.is_none() && schedules.is_empty() {
            missed.push(mutation);
        }
        let by = found.as_ref().map_or("-".to_owned(), |found| format!("`{}`", found.rule));
        let seeds = if found.is_some() { seeds.to_string() } else { format!("none of {seeds}") };
        println!("| `{mutation:?}` | {seeds} | {by} | {schedules}|");
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
