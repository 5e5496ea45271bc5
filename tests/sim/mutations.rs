//! Whether the simulator would notice: each seeded bug is switched on, and must be found.
//!
//! `just mutations` tries random seeds and every directed schedule on each, and prints the table of docs/replication.md. The
//! tests of every day run for each bug the schedule that finds it, and some seeds for those that any seed finds.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use super::{
    STEPS,
    directed::{NOT_REACHED, SCHEDULES, Schedule},
    invariants::rule::RULES,
    plan::Plan,
    run,
    view::Violation,
};
use crate::replication::mutation::{Mutation, switch};

/// The most that random seeds are tried on one bug.
const TIME_MAX: Duration = Duration::from_secs(120);
/// A panic of the code under test: its own assertions are judges, too.
const ASSERTION: &str = "assertion";

/// What finds a bug.
struct Finding {
    rule: &'static str,
    text: String,
}

/// Runs something with a bug switched on, or with none.
fn with(mutation: Option<Mutation>, act: impl FnOnce() -> Option<Violation>) -> Option<Finding> {
    switch(mutation);
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

/// What a schedule finds with a bug, and does not find without it.
fn by_schedule(mutation: Mutation, schedule: &Schedule) -> Option<Finding> {
    let found = with(Some(mutation), || (schedule.run)().err())?;
    with(None, || (schedule.run)().err()).is_none().then_some(found)
}

/// The number of seeds that were tried, and what the last one found. A seed that fails without the bug says nothing.
fn by_seeds(mutation: Mutation, seeds: u64, time: Duration) -> (u64, Option<Finding>) {
    let begun = Instant::now();
    for seed in 1..=seeds {
        let violation = || run::run(Plan::draw(seed, STEPS), false).violation;
        let found = with(Some(mutation), violation);
        if found.is_some() && with(None, violation).is_none() {
            return (seed, found);
        }
        if begun.elapsed() > time {
            return (seed, None);
        }
    }
    (seeds, None)
}

/// The schedule for each bug that has one, and the rule by which it is found.
const BY_SCHEDULE: [(Mutation, &str, &str); 23] = [
    (Mutation::ForgetPromise, "forgotten_promise", "promise_is_durable"),
    (
        Mutation::AckBeforeCommit,
        "disk_slower_than_the_network",
        "members_hold_committed or copies_are_there",
    ),
    (Mutation::CountOldIncarnation, "ack_of_a_boot_that_is_over", "lost_disk_never_counts"),
    (Mutation::ShrinkLocally, "no_epoch_start_rule", "primary_goes_by_agreed"),
    (Mutation::TruncateBelowHighWatermark, "loss_beyond_the_promise", "no_cut_below_watermark"),
    (Mutation::IgnorePending, "late_confirm_of_an_earlier_add", "quorum_contains_pending"),
    (Mutation::IgnoreCopiesMin, "loss_below_the_minimum", "enough_copies"),
    (Mutation::DedupeAcksEarly, "retry_before_commit", "acked_is_committed"),
    (Mutation::ResumeEpoch, "same_epoch_resume", "no_epoch_is_resumed"),
    (Mutation::HistoryNotTruncated, "epoch_start_that_nobody_has", "epochs_follow_from_log"),
    (Mutation::WallClockExpiry, "clock_jump_with_a_batch_in_doubt", "stored_once"),
    (Mutation::ImpatientExpiry, "clocks_years_apart", "stored_once"),
    (Mutation::InstallingElectable, "half_done_install", "half_installed_never_counts"),
    (Mutation::NoEpochStartRule, "no_epoch_start_rule", "members_hold_committed"),
    (
        Mutation::StaleIncarnationConfirmed,
        "stale_incarnation_in_confirm_add",
        "joins_in_current_boot",
    ),
    (Mutation::OneStepAdd, "double_failover", "joins_in_two_steps"),
    (Mutation::NoVersionCheck, "late_confirm_of_an_earlier_add", "members_hold_committed"),
    (Mutation::ElectOutsideSet, "election_outside_the_set", "elected_from_set"),
    (Mutation::LostStaysInSet, "restored_image", "lost_disk_never_counts"),
    (Mutation::NoPrefixCheck, "damaged_end_of_a_log", "damage_is_not_built_on"),
    (Mutation::StalledElectable, "last_replica_standing", "stalled_is_not_led"),
    (Mutation::BarrierUnasked, "barrier_of_a_deposed_primary", "barrier_sees_acks"),
    (Mutation::BarrierSkipsPending, "barrier_beside_a_joining_replica", "barrier_sees_acks"),
];

/// Bugs that a few seeds find.
const BY_FEW_SEEDS: [Mutation; 3] =
    [Mutation::ForgetPromise, Mutation::OneStepAdd, Mutation::ElectOutsideSet];

#[test]
fn seeded_bugs_are_found_by_their_schedules() {
    let mut failed = Vec::new();
    for (mutation, name, rule) in BY_SCHEDULE {
        let schedule = SCHEDULES.iter().find(|schedule| schedule.name == name);
        let found = by_schedule(mutation, schedule.expect("it is in the list"));
        if found.as_ref().is_none_or(|found| rule.split(" or ").all(|rule| found.rule != rule)) {
            let found = found.map(|found| (found.rule, found.text));
            failed.push(format!("{mutation:?} by {name}: {found:?}"));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn seeded_bugs_that_any_seed_shows_are_found_by_a_few() {
    for mutation in BY_FEW_SEEDS {
        let (seeds, found) = by_seeds(mutation, 40, TIME_MAX);
        assert!(found.is_some(), "{mutation:?} was not found by {seeds} seeds");
    }
}

#[test]
fn the_document_names_every_check() {
    let text = include_str!("../../docs/replication.md");
    let rules = RULES.iter().map(|rule| rule.name);
    let schedules = SCHEDULES.iter().map(|schedule| schedule.name);
    let missing: Vec<&str> =
        rules.chain(schedules).filter(|name| !text.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "not in docs/replication.md: {missing:?}");
}

/// Runs when it is asked for, because it takes minutes: `DUNLIN_MUTATIONS` is the most of seconds for each bug, and
/// `DUNLIN_MUTATION` the name of the only one to try.
#[test]
fn every_seeded_bug_is_found() {
    let Ok(limit) = std::env::var("DUNLIN_MUTATIONS") else { return };
    let limit = limit.parse().map_or(TIME_MAX, Duration::from_secs);
    let mut missed = Vec::new();
    println!("| bug | seeds | by | schedules |\n|---|---|---|---|");
    let only = std::env::var("DUNLIN_MUTATION").ok().filter(|only| !only.is_empty());
    for mutation in Mutation::ALL {
        if only.as_ref().is_some_and(|only| *only != format!("{mutation:?}")) {
            continue;
        }
        let finds = |schedule: &Schedule| Some((schedule.name, by_schedule(mutation, schedule)?));
        let finds: Vec<_> = SCHEDULES.iter().filter_map(finds).collect();
        // Of many the one that was written for it.
        let own = BY_SCHEDULE.iter().find(|(m, ..)| *m == mutation).map(|(_, name, _)| *name);
        let best = finds.iter().find(|(name, _)| Some(*name) == own).or(finds.first());
        let schedule = best.map_or("-".to_owned(), |(name, found)| {
            format!("`{name}` by `{}`, of {}", found.rule, finds.len())
        });
        let begun = Instant::now();
        let (seeds, found) = by_seeds(mutation, u64::MAX, limit);
        if found.is_none() && finds.is_empty() {
            missed.push(mutation);
        }
        let by = found.as_ref().map_or("-".to_owned(), |found| format!("`{}`", found.rule));
        let seeds = if found.is_some() { seeds.to_string() } else { format!("none of {seeds}") };
        let time = begun.elapsed().as_secs_f32();
        println!("| `{mutation:?}` | {seeds} in {time:.1} s | {by} | {schedule} |");
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
