//! Schedules that chance seldom meets, laid out by hand on a site where nothing else goes wrong.

use std::time::Duration;

use super::{
    plan::{Fault, Plan, Shape},
    run,
    view::Look,
    world::{Fate, World},
};
use crate::{
    replication::Body,
    types::{Epoch, Lsn},
};

const SECOND: u64 = 1_000_000;
const THREE: Shape = Shape { data: 3, witnesses: 0, replicas: 3, copies_min: 2 };
const TWO: Shape = Shape { data: 2, witnesses: 1, replicas: 2, copies_min: 1 };

fn whole(shape: Shape) -> World {
    let mut world = World::new(Plan::quiet(shape));
    let replicas = shape.replicas;
    let ready = world.run_until(Duration::from_secs(15), |w| {
        w.counters().acks > 3 && w.agreed().last().is_some_and(|a| a.config.set.len() == replicas)
    });
    assert!(ready, "{}", world.describe());
    world
}

fn leader(world: &World) -> Option<usize> {
    (0..world.nodes()).rfind(|at| world.node(*at).process.is_some_and(|p| p.leads.is_some()))
}

fn epoch(world: &World) -> Epoch {
    world.agreed().last().map(|agreed| agreed.config.epoch).unwrap_or_default()
}

#[track_caller]
fn ends_well(mut world: World) {
    let verdict = run::finish(&mut world);
    assert_eq!(verdict, None, "{}", world.describe());
}

#[test]
fn an_isolated_primary_commits_nothing_and_its_tail_is_cut() {
    let mut world = whole(THREE);
    let old = leader(&world).expect("somebody leads");
    let before = epoch(&world);
    world.fault(Fault::Isolate { node: old, time: 5 * SECOND });
    let committed = world.node(old).process.expect("runs").high_watermark;
    let elected = world.run_until(Duration::from_secs(4), |w| {
        epoch(w) > before && leader(w).is_some_and(|at| at != old)
    });
    assert!(elected, "{}", world.describe());
    let process = world.node(old).process.expect("runs");
    assert!(process.high_watermark.0 <= committed.0 + 2, "what was on its way, and no more");
    ends_well(world);
}

#[test]
fn two_failovers_at_once_lose_nothing() {
    let mut world = whole(THREE);
    for _ in 0..2 {
        let before = epoch(&world);
        let old = leader(&world).expect("somebody leads");
        world.fault(Fault::Crash { node: old, down: 20_000, survives: true });
        let elected = world.run_until(Duration::from_secs(14), |w| epoch(w) > before);
        assert!(elected, "{}", world.describe());
        world.run_until(Duration::from_millis(200), |w| leader(w).is_some());
    }
    ends_well(world);
}

#[test]
fn acks_of_a_former_epoch_do_not_count_when_they_come_late() {
    let mut world = whole(THREE);
    let old = leader(&world).expect("somebody leads");
    let before = epoch(&world);
    world.filter = Some(Box::new(move |_, to, envelope| match envelope.body {
        Body::Durable(_) if to == old && envelope.epoch == before => Fate::Hold,
        _ => Fate::Pass,
    }));
    let held = world.run_until(Duration::from_secs(2), |w| w.held.len() > 3);
    assert!(held);
    world.fault(Fault::Crash { node: old, down: 10_000, survives: true });
    world.run_until(Duration::from_secs(14), |w| epoch(w) > before && leader(w).is_some());
    world.filter = None;
    world.release();
    ends_well(world);
}

#[test]
fn a_power_cut_of_all_nodes_loses_nothing() {
    for survives in 0..8 {
        let mut world = whole(THREE);
        world.fault(Fault::PowerCut { down: 1_000, spread: 100_000, survives });
        ends_well(world);
    }
}

#[test]
fn the_last_replica_standing_is_not_elected_without_its_data() {
    let mut world = whole(TWO);
    let lone = leader(&world).expect("somebody leads");
    let other = 1 - lone;
    world.stop(other, true);
    let alone = world.run_until(Duration::from_secs(5), |w| {
        w.agreed().last().is_some_and(|a| a.config.set.len() == 1)
            && w.agreed().last().is_some_and(|a| a.config.floor.is_some_and(|f| f.lsn > Lsn(8)))
    });
    assert!(alone, "{}", world.describe());
    // Its disk is put back to how it was at the start, and everybody comes back.
    world.stop(lone, true);
    world.nodes[lone].disk.durable.log.truncate(2);
    world.nodes[lone].disk.durable.high_watermark = Lsn(1);
    world.start(other);
    world.start(lone);
    let stalled = world.run_until(Duration::from_secs(20), |w| {
        w.agreed().last().is_some_and(|a| a.config.stalled)
    });
    assert!(stalled, "{}", world.describe());
    let led = world.run_until(Duration::from_secs(15), |w| leader(w).is_some());
    assert!(!led, "an operator must decide");
}

#[test]
fn a_hand_over_moves_the_primary_without_a_fault() {
    let mut world = whole(THREE);
    let old = leader(&world).expect("somebody leads");
    let to = (old + 1) % 3;
    let before = epoch(&world);
    for _ in 0..20 {
        world.fault(Fault::HandOver { to });
        if world.run_until(Duration::from_secs(1), |w| epoch(w) > before) {
            break;
        }
    }
    world.run_until(Duration::from_secs(2), |w| leader(w) == Some(to));
    assert_eq!((leader(&world), epoch(&world)), (Some(to), before.next()));
    ends_well(world);
}
