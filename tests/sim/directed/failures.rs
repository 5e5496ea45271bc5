//! Plain failures, one at a time.

use super::{
    super::{
        event::Event,
        plan::{Fault, Shape},
        view::{Observed, Violation},
        world::{Fate, World},
    },
    stage::{PAIR, Played, STRICT_PAIR, Stage, THREE, ends, leader},
};
use crate::{
    replication::{Body, ShardChange},
    types::{Boot, Epoch, Incarnation},
    wire::EntryKind,
};

/// A primary that is cut off commits nothing by itself, and loses what it alone has.
pub(super) fn primary_cut_off() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let old = stage.roles()?.0;
    let before = stage.config().epoch;
    stage.isolate(old);
    let committed = ends(&stage.world, old).1;
    stage.until("another primary", |world| led(world, before) && leader(world) != Some(old))?;
    let now = ends(&stage.world, old).1;
    if now.0 > committed.0 + 2 {
        let text = format!("{committed} when it was cut off, {now} without the others");
        return Err(Violation { rule: "enough_copies", text });
    }
    stage.join(old);
    stage.finish()
}

/// Two primaries crash, one after the other.
pub(super) fn two_crashes() -> Played {
    let mut stage = Stage::whole(THREE)?;
    for _ in 0..2 {
        let node = stage.roles()?.0;
        let before = stage.config().epoch;
        stage.fault(Fault::Crash { node, down: 20_000, survives: true })?;
        stage.until("the next primary", |world| led(world, before))?;
    }
    stage.finish()
}

/// What replicas said in a former epoch comes in the next one.
pub(super) fn acks_of_a_former_epoch() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let old = stage.roles()?.0;
    let before = stage.config().epoch;
    stage.filter(move |_, to, body| match body {
        Body::Durable(_) if to == old => Fate::Hold,
        _ => Fate::Pass,
    });
    stage.until("acks", |world| world.held.len() > 3)?;
    stage.fault(Fault::Crash { node: old, down: 10_000, survives: true })?;
    stage.pass_all();
    stage.until("the next primary", |world| led(world, before))?;
    stage.release();
    stage.pass(1_000)?;
    stage.finish()
}

/// All power goes at once, whatever each disk makes of the commit that is under way.
pub(super) fn power_cut() -> Played {
    for survives in 0..8 {
        let mut stage = Stage::whole(THREE)?;
        stage.fault(Fault::PowerCut { down: 1_000, spread: 100_000, survives })?;
        stage.finish()?;
    }
    Ok(())
}

/// An operator moves the primary, and nothing else happens.
pub(super) fn hand_over_without_a_fault() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let to = stage.roles()?.1[0];
    let before = stage.config().epoch;
    for _ in 0..20 {
        if stage.config().epoch > before {
            break;
        }
        stage.fault(Fault::HandOver { to })?;
        stage.pass(1_000)?;
    }
    stage.until("the other leads", |world| leader(world) == Some(to))?;
    if stage.config().epoch != before.next() {
        let text = format!("epoch {before} became {}", stage.config().epoch);
        return Err(Violation { rule: "config_is_one_sequence", text });
    }
    stage.finish()
}

/// A member's disk is replaced, and the node that replaces it joins. Before the former one is removed, a batch is acked that
/// it had: the site has not heard that this copy is gone.
pub(super) fn copy_on_a_disk_that_is_gone() -> Played {
    let mut stage = Stage::whole(STRICT_PAIR)?;
    let (primary, followers) = stage.roles()?;
    stage.settle()?;
    let client = 0;
    stage.world.deaf = true;
    stage.world.quiet = false;
    let end = stage.world.nodes[primary].disk.durable.end();
    stage.until("a batch whose answer is lost", |world| ends(world, primary).1 > end)?;
    hold(&mut stage.world, client);
    stage.fault(Fault::Wipe { node: followers[0], down: 1_000 })?;
    stage.until("three members", |world| world.metadata.newest().config.set.len() == 3)?;
    stage.until("that the primary knows", |world| {
        let process = world.nodes[primary].process.as_ref();
        let replica = process.and_then(|process| process.replica.as_ref());
        replica.is_some_and(|replica| replica.config().set.len() == 3)
    })?;
    stage.world.deaf = false;
    resend(&mut stage.world, client, primary);
    stage.until("an answer", |world| world.producers[client].open.is_none())?;
    stage.finish()
}

/// A producer sends again what is stored and not committed, to the primary that stored it.
pub(super) fn retry_before_commit() -> Played {
    let mut stage = Stage::whole(STRICT_PAIR)?;
    let (primary, followers) = stage.roles()?;
    stage.settle()?;
    let member = followers[0];
    stage.filter(move |from, _, body| match body {
        Body::Durable(_) if from == member => Fate::Drop,
        _ => Fate::Pass,
    });
    let (client, end) = (0, stage.world.nodes[primary].disk.durable.end());
    stage.world.producers[client].target = primary;
    stage.world.quiet = false;
    stage.until("a batch on one disk", |world| world.nodes[primary].disk.durable.end() > end)?;
    resend(&mut stage.world, client, primary);
    stage.pass(300)?;
    stage.finish()
}

/// A batch with a producer's first sequence is stored and not acked when the primary dies. The next one's clock is years
/// ahead, and the batch is sent again.
pub(super) fn clock_jump_with_a_batch_in_doubt() -> Played {
    let (mut stage, client, next) = batch_in_doubt(1)?;
    // Sent again at once: what is forgotten by an entry of the log comes later.
    resend(&mut stage.world, client, next);
    stage.until("an answer", |world| world.producers[client].open.is_none())?;
    stage.world.quiet = true;
    stage.pass(500)
}

/// The same, but the next primary looks for silent producers before the batch comes again. The producer is forgotten when
/// it has been silent for long.
pub(super) fn clocks_years_apart() -> Played {
    let (mut stage, client, next) = batch_in_doubt(-1)?;
    stage.world.plan.expires = true;
    stage.pass(5_000)?;
    resend(&mut stage.world, client, next);
    stage.until("an answer", |world| world.producers[client].open.is_none())?;
    stage.world.quiet = true;
    stage.until("silent producers are forgotten", |world| {
        let log = &world.nodes[next].disk.durable.log;
        log.iter().any(|record| record.entry.header.kind == EntryKind::ProducerExpire)
    })?;
    stage.pass(500)
}

/// A first batch on the disks of both, not acked; the primary gone, the other leading with a clock that is ten years ahead
/// of that of the first, or, with -1, right where that of the first was ten years behind.
fn batch_in_doubt(sign: i64) -> Result<(Stage, usize, usize), Violation> {
    let mut stage = Stage::whole(PAIR)?;
    let (primary, followers) = stage.roles()?;
    let next = followers[0];
    stage.settle()?;
    let years = 10 * 365 * 24 * 3_600_000;
    let shifted = if sign > 0 { next } else { primary };
    stage.fault(Fault::Clock { node: shifted, by: years * sign })?;
    let client = 0;
    // Another partition: append times never fall in one.
    stage.act(|world| {
        let producer = &mut world.producers[client];
        producer.renew();
        producer.partition = 1;
        world.readers[0].target = next;
    })?;
    stage.filter(move |from, _, body| match body {
        Body::Durable(_) if from == next => Fate::Drop,
        _ => Fate::Pass,
    });
    let end = stage.world.nodes[next].disk.durable.end();
    stage.world.producers[client].target = primary;
    stage.world.quiet = false;
    stage.until("a batch in doubt", |world| world.nodes[next].disk.durable.end() > end)?;
    hold(&mut stage.world, client);
    stage.stop(primary)?;
    stage.pass_all();
    stage.until("the next primary", |world| leader(world) == Some(next))?;
    Ok((stage, client, next))
}

/// A producer waits for its answer for ever.
fn hold(world: &mut World, client: usize) {
    if let Some(open) = &mut world.producers[client].open {
        open.until = u64::MAX;
    }
}

/// A producer sends its batch again, to this node.
fn resend(world: &mut World, client: usize, node: usize) {
    let producer = &mut world.producers[client];
    producer.timed_out();
    producer.target = node;
    if let Some(open) = &mut producer.open {
        open.until = 0;
    }
    world.schedule(0, Event::Producer(client));
}

/// Whether somebody leads a later epoch.
fn led(world: &World, before: Epoch) -> bool {
    world.metadata.newest().config.epoch > before && leader(world).is_some()
}

/// A primary that the others have replaced, and that does not know, is asked whether it still leads. Once it hears of it
/// there is nobody left to answer.
pub(super) fn barrier_of_a_deposed_primary() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let old = stage.roles()?.0;
    stage.act(|world| world.ask_barrier(old))?;
    stage.until("an answer", |world| {
        world.observed.iter().any(|o| matches!(o, Observed::BarrierHeld { number: 1, .. }))
    })?;
    let before = stage.config().epoch;
    stage.isolate(old);
    stage.until("another primary", |world| led(world, before) && leader(world) != Some(old))?;
    let acks = stage.world.counters.acks;
    stage.until("acks by it", |world| world.counters.acks > acks + 3)?;
    stage.act(|world| world.ask_barrier(old))?;
    stage.pass(500)?;
    stage.join(old);
    stage.pass(2_000)?;
    stage.finish()
}

/// A replica that a primary still takes for pending is a member, is elected, and acks by itself. The primary reaches the
/// third of them, which has heard nothing of it.
pub(super) fn barrier_beside_a_joining_replica() -> Played {
    let mut stage = Stage::whole(Shape { data: 3, witnesses: 2, replicas: 3, copies_min: 1 })?;
    let (old, followers) = stage.roles()?;
    let (third, joining) = (followers[0], followers[1]);
    stage.drive_out(joining)?;
    stage.settle()?;
    stage.join(joining);
    stage.until("a replica that the primary takes for pending", |world| {
        let process = world.nodes[old].process.as_ref();
        let replica = process.and_then(|process| process.replica.as_ref());
        replica.is_some_and(|replica| !replica.config().pending.is_empty())
    })?;
    for node in (0..stage.world.nodes.len()).filter(|node| *node != third && *node != old) {
        stage.world.network.cut(old, node);
        stage.world.network.cut(node, old);
    }
    stage.pass(20)?;
    let boot = |stage: &Stage, node: usize| Boot {
        node: stage.id(node),
        incarnation: Incarnation(stage.boot(node).unwrap_or(0)),
    };
    let (from, replica) = (boot(&stage, old), boot(&stage, joining));
    let expect_version = stage.config().version;
    stage.propose(ShardChange::ConfirmAdd { expect_version, from, replica })?;
    let expect_version = stage.config().version;
    let drop = vec![stage.id(old), stage.id(third)];
    stage.filter(move |from, _, _| if from == joining { Fate::Drop } else { Fate::Pass });
    stage.propose(ShardChange::Elect { expect_version, primary: replica, drop })?;
    stage.until("it leads", |world| leader(world) == Some(joining))?;
    let acks = stage.world.counters.acks;
    stage.world.producers[0].target = joining;
    stage.world.quiet = false;
    stage.until("acks by it", |world| world.counters.acks > acks)?;
    stage.act(|world| world.ask_barrier(old))?;
    stage.pass(300)?;
    stage.finish()
}

/// A primary is cut off from both other members, and still reaches the metadata group: it would remove them and go on
/// alone.
pub(super) fn primary_that_hears_nobody() -> Played {
    let mut stage = Stage::whole(Shape { data: 3, witnesses: 2, replicas: 3, copies_min: 1 })?;
    let (old, followers) = stage.roles()?;
    let before = stage.config().epoch;
    for node in followers {
        stage.world.network.cut(old, node);
        stage.world.network.cut(node, old);
    }
    stage.until("another primary", |world| led(world, before) && leader(world) != Some(old))?;
    if stage.config().set.len() < 2 {
        let text = format!("the one that was cut off removed others: {:?}", stage.config());
        return Err(Violation { rule: "comes_to_rest", text });
    }
    stage.finish()
}

/// The preferred primary is back, and leads again without anybody's doing.
pub(super) fn preferred_primary_is_back() -> Played {
    let mut stage = Stage::whole(THREE)?;
    stage.world.plan.preferred_after = 5_000_000;
    let preferred = stage.config().replicas[0];
    let at = |world: &World| leader(world).map(|at| world.nodes[at].disk.durable.ident.node);
    stage.until("the preferred primary", |world| at(world) == Some(Some(preferred)))?;
    let first = stage.roles()?.0;
    stage.fault(Fault::Crash { node: first, down: 3_000_000, survives: true })?;
    stage.until("another primary", |world| at(world).is_some_and(|id| id != Some(preferred)))?;
    stage.until("the preferred primary again", |world| at(world) == Some(Some(preferred)))?;
    stage.finish()
}
