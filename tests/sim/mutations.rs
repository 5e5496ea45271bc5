//! Seeded bugs: what finds each, and after how many seeds. A bug that nothing finds is a hole in the generator.

use std::time::{Duration, Instant};

use super::{STEPS, plan::Plan, run};
use crate::replication::mutation::{Mutation, switch};

/// The first seed that fails with this bug, and by which rule.
pub(crate) fn find(mutation: Mutation, time: Duration) -> Option<(u64, String)> {
    let begun = Instant::now();
    switch(Some(mutation));
    let found = (1..).take_while(|_| begun.elapsed() < time).find_map(|seed| {
        // A bug may also break an assertion of the product: that is found, too.
        let run = || run::run(Plan::draw(seed, STEPS), false).violation;
        match std::panic::catch_unwind(run) {
            Ok(violation) => violation.map(|v| (seed, v.rule.to_owned())),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                Some((seed, format!("assertion: {}", text.unwrap_or_default())))
            }
        }
    });
    switch(None);
    found
}

/// `DUNLIN_MUTATIONS` is the seconds that each may take; without it only one is tried, so that the switch itself is.
#[test]
fn seeded_bugs_are_found() {
    let seconds = std::env::var("DUNLIN_MUTATIONS").ok().and_then(|n| n.parse::<u64>().ok());
    let all = match seconds {
        Some(_) => Mutation::ALL.to_vec(),
        None => vec![Mutation::IgnorePending],
    };
    let time = Duration::from_secs(seconds.unwrap_or(60));
    let mut missed = Vec::new();
    for mutation in all {
        let begun = Instant::now();
        match find(mutation, time) {
            Some((seed, rule)) => {
                println!("{mutation:?}: seed {seed}, {:.1?}, {rule}", begun.elapsed());
            }
            None => {
                println!("{mutation:?}: not found");
                missed.push(mutation);
            }
        }
    }
    println!("missed: {missed:?}");
    assert!(seconds.is_some() || missed.is_empty(), "not found: {missed:?}");
}
