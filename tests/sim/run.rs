//! A seed from its start to its verdict.

use std::time::Duration;

use super::{
    history::History,
    invariants::{Invariants, rule::WAIVED_BEYOND},
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
    /// Changes of the set without which no site of this shape comes up.
    ordinary: u64,
    pub(crate) trace: Vec<String>,
}

impl Outcome {
    /// Whether too little happened for the run to prove anything: nothing published or read, or no failover, truncation,
    /// install or change of the set but those by which any site comes up.
    pub(crate) fn is_vacuous(&self) -> bool {
        let Counters { failovers, truncations, set_changes, installs, acks, reads, .. } =
            self.counters;
        let changes = set_changes.saturating_sub(self.ordinary) + failovers.saturating_sub(1);
        changes + truncations + installs < 2 || acks < 10 || reads < 10
    }
}

/// The judges of every run. What clients were told is not judged where more was lost than the site promises to survive.
fn checkers(beyond: bool) -> Vec<Box<dyn Checker>> {
    if beyond {
        return vec![Box::new(Invariants::waiving(&WAIVED_BEYOND))];
    }
    vec![Box::new(Invariants::default()), Box::new(History)]
}

/// Runs a plan to its end.
pub(crate) fn run(plan: Plan, verbose: bool) -> Outcome {
    let (steps, beyond) = (plan.steps, plan.beyond);
    let ordinary = 2 * (plan.shape.replicas as u64 - 1);
    let mut world = World::new(plan);
    world.trace.verbose = verbose;
    let mut checkers = checkers(beyond);
    let mut violation = None;
    while world.step() < steps && violation.is_none() && World::step(&mut world) {
        violation = judge(&world, &mut checkers);
    }
    let mut stalled = false;
    if violation.is_none() && !beyond {
        violation = rest(&mut world, &mut checkers, &mut stalled);
    }
    if violation.is_none() && !stalled && !beyond {
        violation = checkers.iter_mut().find_map(|checker| checker.finish(&world).err());
    }
    Outcome {
        hash: world.trace.hash(),
        counters: world.counters,
        violation,
        stalled,
        ordinary,
        trace: std::mem::take(&mut world.trace.lines).into(),
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
        if world.metadata.newest().config.stalled || world.is_orphaned() {
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

/// Drops ambushes, and faults one half, then one quarter, and so on, as long as the run still fails by the same rule.
pub(crate) fn shrink(plan: &Plan, rule: &str) -> Plan {
    let mut best = plan.clone();
    let fails = |plan: &Plan| run(plan.clone(), false).violation.is_some_and(|v| v.rule == rule);
    for at in (0..plan.ambushes.len()).rev() {
        let mut smaller = best.clone();
        smaller.ambushes.remove(at);
        if fails(&smaller) {
            best = smaller;
        }
    }
    let mut part = best.faults.len().div_ceil(2);
    while part > 0 {
        let mut at = 0;
        while at < best.faults.len() {
            let mut smaller = best.clone();
            let end = (at + part).min(smaller.faults.len());
            smaller.faults.drain(at..end);
            if fails(&smaller) {
                best = smaller;
            } else {
                at += part;
            }
        }
        part /= 2;
    }
    best
}
