//! The schedules. Each says what would have to be wrong for it to end badly.

use super::{
    super::{
        invariants::rule::{
            COMMITTED_NEVER_CHANGES, FLOOR_IS_COMMITTED, LOST_DISK_NEVER_COUNTS,
            MEMBERS_HOLD_COMMITTED, NO_ALARM_WITHOUT_LOSS, PRIMARY_HOLDS_COMMITTED,
            WATERMARK_IS_COMMITTED,
        },
        plan::Fault,
        view::{Observed, Violation},
        world::Fate,
    },
    NOT_REACHED, Schedule,
    failures::{
        acks_of_a_former_epoch, barrier_beside_a_joining_replica, barrier_of_a_deposed_primary,
        clock_jump_with_a_batch_in_doubt, clocks_years_apart, copy_on_a_disk_that_is_gone,
        hand_over_without_a_fault, power_cut, preferred_primary_is_back, primary_cut_off,
        primary_that_hears_nobody, retry_before_commit, two_crashes,
    },
    recovery::members_that_come_back_after_a_recovery,
    stage::{PAIR, Played, STRICT_PAIR, Stage, THREE, carries, is_member, is_pending, leader},
};
use crate::{
    replication::{Body, ShardChange},
    types::{Boot, Incarnation},
    wire::EntryHeader,
};

macro_rules! schedules {
    ($($name:ident),* $(,)?) => {
        /// All of them.
        pub(in super::super) const SCHEDULES: &[Schedule] =
            &[$(Schedule { name: stringify!($name), run: $name }),*];
    };
}

schedules! {
    forgotten_promise,
    no_epoch_start_rule,
    stale_incarnation_in_confirm_add,
    same_epoch_resume,
    last_replica_standing,
    restored_image,
    double_failover,
    half_done_install,
    late_confirm_of_an_earlier_add,
    ack_of_a_boot_that_is_over,
    election_outside_the_set,
    loss_beyond_the_promise,
    damaged_end_of_a_log,
    loss_below_the_minimum,
    retry_before_commit,
    clock_jump_with_a_batch_in_doubt,
    clocks_years_apart,
    copy_on_a_disk_that_is_gone,
    disk_slower_than_the_network,
    member_cut_off,
    epoch_start_that_nobody_has,
    primary_cut_off,
    two_crashes,
    acks_of_a_former_epoch,
    power_cut,
    hand_over_without_a_fault,
    barrier_of_a_deposed_primary,
    barrier_beside_a_joining_replica,
    primary_that_hears_nobody,
    preferred_primary_is_back,
    members_that_come_back_after_a_recovery,
}

/// A replica promises a new epoch and restarts; then the old primary's appends arrive.
fn forgotten_promise() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let (old, followers) = stage.roles()?;
    let (next, third) = (followers[0], followers[1]);
    let epoch = stage.config().epoch;
    // The third hears the next primary's question, and none of its entries; the old one's wait.
    stage.filter(move |from, to, body| match body {
        Body::Append(_) if from == old && to == third => Fate::Hold,
        Body::Align(_) | Body::Append(_) if to == third => Fate::Drop,
        _ => Fate::Pass,
    });
    stage.until("appends of the old epoch", |world| world.held.len() > 3)?;
    let boot =
        Boot { node: stage.id(next), incarnation: Incarnation(stage.boot(next).unwrap_or(0)) };
    let expect_version = stage.config().version;
    stage.isolate(old);
    stage.propose(ShardChange::Elect { expect_version, primary: boot, drop: Vec::new() })?;
    stage.until("a promise", |world| {
        let replica = world.nodes[third].process.as_ref().and_then(|p| p.replica.as_ref());
        let log = replica.and_then(|replica| replica.log());
        log.is_some_and(|log| log.promised() > epoch && log.is_settled())
    })?;
    let before = stage.boot(third);
    stage.fault(Fault::Crash { node: third, down: 1_000, survives: true })?;
    stage.until_registered(third, before)?;
    stage.release();
    stage.pass(300)?;
    stage.join(old);
    stage.pass(3_000)?;
    stage.finish()
}

/// A new primary knows less of what is committed than its log has. A replica that holds all it knows of, and not all
/// that is committed, asks to join.
fn no_epoch_start_rule() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let (old, followers) = stage.roles()?;
    let (next, candidate) = (followers[0], followers[1]);
    stage.isolate(candidate);
    // What the old primary commits from here on, the next one has, and does not know to be committed.
    let known = stage.world.nodes[candidate].disk.durable.end();
    stage.filter(move |from, to, body| match body {
        Body::Append(a) if from == old && to == next && a.high_watermark > known => Fate::Drop,
        _ => Fate::Pass,
    });
    stage.until("a removal", |world| !is_member(world, candidate))?;
    stage.until("a commit behind it", |world| {
        world.observed.iter().any(
            |o| matches!(o, Observed::Committed { node, to, by: Some(_), .. } if *node == old && *to > known),
        )
    })?;
    stage.stop(old)?;
    stage.join(candidate);
    // The candidate is aligned, and gets nothing more.
    stage.filter(
        move |_, to, body| {
            if to == candidate && carries(body) { Fate::Drop } else { Fate::Pass }
        },
    );
    stage.pass(8_000)?;
    stage.pass_all();
    stage.until("the candidate in the set", |world| is_member(world, candidate))?;
    stage.start(old)?;
    stage.finish()
}

/// A pending replica is confirmed when it has been restored to an older image in between.
fn stale_incarnation_in_confirm_add() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let followers = stage.roles()?.1;
    let candidate = followers[1];
    stage.restart(candidate)?;
    let primary = stage.roles()?.0;
    stage.drive_out(candidate)?;
    stage.join(candidate);
    stage.until("a pending replica", |world| is_pending(world, candidate))?;
    let config = stage.config().clone();
    let confirm = ShardChange::ConfirmAdd {
        expect_version: config.version,
        from: config.primary.expect("it leads"),
        replica: config.pending[0],
    };
    let before = stage.boot(candidate);
    // It has said so, and says nothing else for a while.
    stage.fault(Fault::Pause { node: primary, time: 600_000 })?;
    stage.restore(candidate)?;
    stage.until_registered(candidate, before)?;
    stage.propose(confirm)?;
    stage.pass(2_000)?;
    stage.finish()
}

/// The primary's process ends and is there again before anybody has noticed.
fn same_epoch_resume() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let primary = stage.roles()?.0;
    stage.fault(Fault::Crash { node: primary, down: 100, survives: false })?;
    stage.pass(2_000)?;
    stage.finish()
}

/// The last member of the set loses what only it had, and comes back.
fn last_replica_standing() -> Played {
    let mut stage = Stage::whole(PAIR)?;
    let (last, followers) = stage.roles()?;
    let image = stage.world.nodes[last].disk.durable.clone();
    stage.stop(followers[0])?;
    stage.until("a set of one", |world| !is_member(world, followers[0]))?;
    let end = image.end();
    stage.until("a floor behind the image", |world| {
        world.metadata.newest().config.floor.is_some_and(|floor| floor.lsn > end)
    })?;
    roll_back(&mut stage, last, image)?;
    stage.until("a decision", |world| {
        world.metadata.newest().config.stalled || leader(world) == Some(last)
    })?;
    // Somebody who does not know of the loss proposes it.
    let incarnation = Incarnation(stage.boot(last).unwrap_or(0));
    let primary = Boot { node: stage.id(last), incarnation };
    let expect_version = stage.config().version;
    stage.propose(ShardChange::Elect { expect_version, primary, drop: Vec::new() })?;
    stage.start(followers[0])?;
    stage.pass(15_000)?;
    if !stage.config().stalled {
        let text = "a last member with loss was taken for a good one".to_owned();
        return Err(Violation { rule: "stalled_is_not_led", text });
    }
    Ok(())
}

/// A member's disk is put back to an earlier boot, and comes back as if nothing had happened.
fn restored_image() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let followers = stage.roles()?.1;
    stage.restart(followers[0])?;
    stage.pass(500)?;
    // A replica that is not asked in between could vote with what it has lost.
    let (primary, _) = stage.roles()?;
    let member = followers[0];
    let before = stage.boot(member);
    stage.restore(member)?;
    stage.until_registered(member, before)?;
    stage.stop(primary)?;
    stage.pass(3_000)?;
    stage.start(primary)?;
    stage.finish()
}

/// Three primaries within 50 ms, while the second knows nothing of what the first has committed last.
fn double_failover() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let (old, followers) = stage.roles()?;
    for first in followers {
        let commits = stage.world.counters.acks;
        stage.until("more", |world| world.counters.acks > commits)?;
        for node in [first, old] {
            let incarnation = Incarnation(stage.boot(node).unwrap_or(0));
            let primary = Boot { node: stage.id(node), incarnation };
            let expect_version = stage.config().version;
            stage.propose(ShardChange::Elect { expect_version, primary, drop: Vec::new() })?;
            stage.pass(20)?;
        }
        stage.pass(3_000)?;
    }
    stage.finish()
}

/// A node restarts in the middle of an install, and meets a primary that still has the whole log.
fn half_done_install() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let (primary, followers) = stage.roles()?;
    let (whole, fresh) = (followers[0], followers[1]);
    stage.world.plan.compaction = 0;
    while stage.world.nodes[primary].disk.durable.start.0 == 0 {
        stage.act(|world| world.compact(primary))?;
    }
    stage.fault(Fault::Wipe { node: fresh, down: 1_000 })?;
    stage.filter(|_, _, body| match body {
        Body::InstallChunk { .. } => Fate::Drop,
        _ => Fate::Pass,
    });
    stage.until("half an install", |world| world.nodes[fresh].disk.durable.installing)?;
    stage.stop(fresh)?;
    stage.until("a set without it", |world| world.metadata.newest().config.set.len() == 2)?;
    // It votes, and hears nothing of the first primary any more.
    stage.filter(
        move |from, to, _| {
            if from == primary && to == fresh { Fate::Drop } else { Fate::Pass }
        },
    );
    stage.start(fresh)?;
    stage.pass(500)?;
    stage.stop(primary)?;
    stage.until("another primary", |world| {
        let epoch = world.metadata.newest().config.epoch;
        let process = world.nodes[whole].process.as_ref();
        process.and_then(|p| p.leads()) == Some(epoch)
    })?;
    stage.pass(5_000)?;
    stage.start(primary)?;
    stage.finish()
}

/// A replica is added, given up, and added again; the confirmation of the first time comes the second time.
fn late_confirm_of_an_earlier_add() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let (primary, followers) = stage.roles()?;
    let candidate = followers[1];
    stage.drive_out(candidate)?;
    stage.join(candidate);
    stage.until("a pending replica", |world| is_pending(world, candidate))?;
    let config = stage.config().clone();
    let late = ShardChange::ConfirmAdd {
        expect_version: config.version,
        from: config.primary.expect("it leads"),
        replica: config.pending[0],
    };
    stage.isolate(candidate);
    stage.until("a replica given up", |world| !is_pending(world, candidate))?;
    // The first time it may have been confirmed before it was cut off.
    stage.until("a replica removed", |world| !is_member(world, candidate))?;
    stage.join(candidate);
    stage.until("a pending replica again", |world| is_pending(world, candidate))?;
    stage.filter(
        move |_, to, body| {
            if to == candidate && carries(body) { Fate::Drop } else { Fate::Pass }
        },
    );
    let version = stage.config().version;
    stage.until("a commit without it", |world| {
        world.observed.iter().any(|o| {
            matches!(o, Observed::Committed { node, to, by: Some(by), .. }
                if *node == primary && by.version < version
                    && *to > world.nodes[candidate].disk.durable.end())
        }) || !is_pending(world, candidate)
    })?;
    stage.propose(late)?;
    stage.pass(500)?;
    stage.finish()
}

/// What a boot said before its disk was restored arrives when the next one is being added.
fn ack_of_a_boot_that_is_over() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let candidate = stage.roles()?.1[1];
    stage.restart(candidate)?;
    let primary = stage.roles()?.0;
    stage.filter(move |from, _, body| match body {
        Body::Durable(_) if from == candidate => Fate::Hold,
        _ => Fate::Pass,
    });
    stage.until("a removal", |world| !is_member(world, candidate))?;
    stage.settle()?;
    stage.until("a candidate that has all", |world| {
        world.nodes[candidate].disk.durable.end() == world.nodes[primary].disk.durable.end()
    })?;
    stage.pass(1_000)?;
    let before = stage.boot(candidate);
    stage.restore(candidate)?;
    stage.until_registered(candidate, before)?;
    stage.pass(400)?;
    stage.release();
    stage.filter(
        move |_, to, body| {
            if to == candidate && carries(body) { Fate::Drop } else { Fate::Pass }
        },
    );
    stage.pass(8_000)?;
    stage.finish()
}

/// Somebody proposes a primary that is not in the set, at the right version.
fn election_outside_the_set() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let out = stage.roles()?.1[1];
    stage.drive_out(out)?;
    let commits = stage.world.counters.acks;
    stage.until("commits without it", |world| world.counters.acks > commits + 3)?;
    let incarnation = Incarnation(stage.boot(out).unwrap_or(0));
    let primary = Boot { node: stage.id(out), incarnation };
    let expect_version = stage.config().version;
    stage.propose(ShardChange::Elect { expect_version, primary, drop: Vec::new() })?;
    stage.join(out);
    stage.pass(2_000)?;
    stage.finish()
}

/// A sole member loses its newest entries before the site was told of them, and nobody can know. A former member that
/// knows more to be committed must not be cut: that is for a human.
fn loss_beyond_the_promise() -> Played {
    let waived = [
        MEMBERS_HOLD_COMMITTED,
        LOST_DISK_NEVER_COUNTS,
        PRIMARY_HOLDS_COMMITTED,
        NO_ALARM_WITHOUT_LOSS,
        FLOOR_IS_COMMITTED,
        COMMITTED_NEVER_CHANGES,
        WATERMARK_IS_COMMITTED,
    ];
    let mut stage = Stage::waiving(PAIR, &waived)?;
    let (last, followers) = stage.roles()?;
    let other = followers[0];
    let image = stage.world.nodes[last].disk.durable.clone();
    let acks = stage.world.counters.acks;
    stage.until("more", |world| world.counters.acks > acks + 5)?;
    stage.settle()?;
    let floor = stage.config().floor.map_or(0, |floor| floor.lsn.0);
    let known = stage.world.nodes[other].disk.durable.high_watermark;
    if image.end().0 < floor || known <= image.end() {
        let text = format!("image to {}, floor {floor}, the other knows {known}", image.end());
        return Err(Violation { rule: NOT_REACHED, text });
    }
    stage.stop(other)?;
    roll_back(&mut stage, last, image)?;
    // The rest of the set may not be waited for: an operator puts the rolled back disk in front.
    stage.until("the rolled back disk leads", |world| {
        world.nodes[last].process.as_ref().and_then(|p| p.leads()).is_some()
    })?;
    stage.world.quiet = true;
    stage.start(other)?;
    stage.pass(3_000)
}

/// The last entry of a member's log is not what was written: its chain value is another.
fn damaged_end_of_a_log() -> Played {
    let waived = [MEMBERS_HOLD_COMMITTED, LOST_DISK_NEVER_COUNTS, NO_ALARM_WITHOUT_LOSS];
    let mut stage = Stage::waiving(THREE, &waived)?;
    stage.settle()?;
    let member = stage.roles()?.1[1];
    stage.stop(member)?;
    stage.act(|world| {
        let log = &mut world.nodes[member].disk.durable.log;
        let mut record = (**log.last().expect("it holds something")).clone();
        let header: &mut EntryHeader = &mut record.entry.header;
        header.chain ^= 1;
        record.chain = header.chain;
        *log.last_mut().expect("just seen") = record.into();
        world.observed.push(Observed::Replaced { node: member });
    })?;
    stage.start(member)?;
    stage.world.quiet = false;
    stage.pass(5_000)
}

/// A set of two loses a member for good: nothing may be committed by the one that stays.
fn loss_below_the_minimum() -> Played {
    let mut stage = Stage::whole(STRICT_PAIR)?;
    let (_, followers) = stage.roles()?;
    stage.fault(Fault::Wipe { node: followers[0], down: 1_000 })?;
    let lost = followers[0];
    stage.until("a registration", |world| world.nodes[lost].disk.durable.ident.node.is_some())?;
    stage.pass(5_000)?;
    stage.finish()
}

/// A member's disk takes longer than everything else. Its power goes.
fn disk_slower_than_the_network() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let member = stage.roles()?.1[0];
    stage.fault(Fault::Slow { node: member, times: 100, time: 2_000_000 })?;
    stage.pass(600)?;
    stage.stop(member)?;
    stage.start(member)?;
    stage.pass(2_000)?;
    stage.finish()
}

/// A member is cut off, removed while the primary is told nothing of it, and the primary dies.
fn member_cut_off() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let (primary, followers) = stage.roles()?;
    stage.isolate(followers[1]);
    stage.pass(800)?;
    stage.isolate(primary);
    stage.join(followers[1]);
    stage.pass(3_000)?;
    stage.join(primary);
    stage.finish()
}

/// A primary begins an epoch that no other node hears of, and the site elects another.
fn epoch_start_that_nobody_has() -> Played {
    let mut stage = Stage::whole(THREE)?;
    let (old, followers) = stage.roles()?;
    let unheard = followers[0];
    stage.filter(move |from, _, _| if from == unheard { Fate::Drop } else { Fate::Pass });
    for node in [unheard, old] {
        let incarnation = Incarnation(stage.boot(node).unwrap_or(0));
        let primary = Boot { node: stage.id(node), incarnation };
        let expect_version = stage.config().version;
        stage.propose(ShardChange::Elect { expect_version, primary, drop: Vec::new() })?;
        stage.until("its epoch", |world| {
            let epoch = world.metadata.newest().config.epoch;
            world.nodes[node].process.as_ref().and_then(|p| p.leads()) == Some(epoch)
        })?;
        stage.pass(50)?;
    }
    stage.pass_all();
    stage.pass(2_000)?;
    stage.finish()
}

/// Puts a disk back to an image of the present boot: nothing but its content tells.
fn roll_back(stage: &mut Stage, node: usize, image: super::super::disk::Image) -> Played {
    stage.act(|world| {
        world.stop(node, false);
        let disk = &mut world.nodes[node].disk;
        let ident = disk.durable.ident.clone();
        disk.durable = image;
        disk.durable.ident = ident;
        world.nodes[node].lossy = true;
        world.observed.push(Observed::Replaced { node });
    })?;
    stage.start(node)
}
