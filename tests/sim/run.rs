//! A seed from its start to its verdict.

use std::time::Duration;

use super::{
    history::History,
    invariants::Invariants,
    plan::Plan,
    view::{Checker, Counters, Look, Violation},
    world::World,
};

/// Time in which a site must come to rest once nothing is broken any more: boot, election, a damped return to the set.
pub(crate) const REST_MAX: Duration = Duration::from_secs(60);

/// What came of a run.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) hash: u64,
    pub(crate) counters: Counters,
    pub(crate) violation: Option<Violation>,
    /// The shard stalled: an operator would have to decide, and the end was not judged.
    pub(crate) stalled: bool,
    pub(crate) trace: Vec<String>,
}

impl Outcome {
    /// Whether enough happened for the run to prove something.
    pub(crate) fn is_vacuous(&self) -> bool {
        let Counters { failovers, set_changes, acks, reads, .. } = self.counters;
        failovers < 2 || set_changes < 2 || acks < 10 || reads < 10
    }
}

/// The judges of every run.
pub(crate) fn checkers() -> Vec<Box<dyn Checker>> {
    vec![Box::new(Invariants::default()), Box::new(History)]
}

/// Runs a plan to its end.
pub(crate) fn run(plan: Plan, verbose: bool) -> Outcome {
    let steps = plan.steps;
    let mut world = World::new(plan);
    world.trace.verbose = verbose;
    let mut checkers = checkers();
    let mut violation = None;
    while world.step() < steps && violation.is_none() && World::step(&mut world) {
        violation = judge(&world, &mut checkers);
    }
    let mut stalled = false;
    if violation.is_none() {
        violation = rest(&mut world, &mut checkers, &mut stalled);
    }
    if violation.is_none() && !stalled {
        violation = checkers.iter_mut().find_map(|checker| checker.finish(&world).err());
    }
    Outcome {
        hash: world.trace.hash(),
        counters: world.counters,
        violation,
        stalled,
        trace: world.trace.lines.into(),
    }
}

fn judge(world: &World, checkers: &mut [Box<dyn Checker>]) -> Option<Violation> {
    checkers.iter_mut().find_map(|checker| checker.check(world).err())
}

/// Mends everything and waits until the site serves, and has nothing left to do.
fn rest(
    world: &mut World,
    checkers: &mut [Box<dyn Checker>],
    stalled: &mut bool,
) -> Option<Violation> {
    world.begin_rest();
    let until = world.now() + REST_MAX;
    while world.now() < until {
        World::step(world);
        if let Some(violation) = judge(world, checkers) {
            return Some(violation);
        }
        if world.metadata.newest().config.stalled {
            *stalled = true;
            return None;
        }
        if world.is_at_rest() {
            return None;
        }
    }
    let text = format!("not at rest after {REST_MAX:?}: {}", world.describe());
    Some(Violation { rule: "liveness", text })
}

/// Lets a world that was driven by hand come to rest, and judges it.
pub(crate) fn finish(world: &mut World) -> Option<Violation> {
    let mut checkers = checkers();
    let mut stalled = false;
    let violation = rest(world, &mut checkers, &mut stalled);
    violation.or_else(|| checkers.iter_mut().find_map(|checker| checker.finish(world).err()))
}

/// Drops faults one half, then one quarter, and so on, as long as the run still fails by the same rule.
pub(crate) fn shrink(plan: &Plan, rule: &str) -> Plan {
    let mut best = plan.clone();
    let mut part = best.faults.len().div_ceil(2);
    while part > 0 {
        let mut at = 0;
        while at < best.faults.len() {
            let mut smaller = best.clone();
            let end = (at + part).min(smaller.faults.len());
            smaller.faults.drain(at..end);
            let failed = run(smaller.clone(), false).violation.is_some_and(|v| v.rule == rule);
            if failed {
                best = smaller;
            } else {
                at += part;
            }
        }
        part /= 2;
    }
    best
}
