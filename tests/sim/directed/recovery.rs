//! An operator accepts that data is lost.

use super::{
    super::{
        invariants::rule::{ELECTED_FROM_SET, JOINS_IN_TWO_STEPS, WAIVED_BEYOND},
        plan::{Fault, Shape},
        view::Violation,
        world::World,
    },
    NOT_REACHED,
    stage::{Played, Stage, THREE},
};
use crate::{
    replication::ShardChange,
    types::{Boot, Incarnation},
};

/// Both members are gone for good, as it seems, and the shard goes on with what a former member has. Then they come back with
/// more: it is of another lineage, and must be given up, though they know it to be committed.
pub(super) fn members_that_come_back_after_a_recovery() -> Played {
    let waived = [&WAIVED_BEYOND[..], &[ELECTED_FROM_SET, JOINS_IN_TWO_STEPS]].concat();
    // The metadata has its majority without two of them.
    let mut stage = Stage::waiving(Shape { witnesses: 2, ..THREE }, &waived)?;
    let (primary, followers) = stage.roles()?;
    let (member, former) = (followers[0], followers[1]);
    stage.drive_out(former)?;
    let acks = stage.world.counters.acks;
    stage.until("acks without it", |world| world.counters.acks > acks + 5)?;
    for node in [primary, member] {
        stage.stop(node)?;
    }
    stage.join(former);
    let known = stage.world.nodes[member].disk.durable.end();
    recover(&mut stage, former)?;
    stage.until("it goes on", |world| goes_on(world, former))?;
    if stage.world.nodes[former].disk.durable.end() > known {
        let text = format!("the new history is longer than {known} already");
        return Err(Violation { rule: NOT_REACHED, text });
    }
    for node in [primary, member] {
        stage.start(node)?;
    }
    stage.until_whole()?;
    same_logs(&mut stage)?;
    // Once more, and nothing comes back: a disk that is empty is a beginning, too.
    for node in [primary, member, former] {
        stage.fault(Fault::Wipe { node, down: 1_000 })?;
    }
    stage.pass(5_000)?;
    recover(&mut stage, member)?;
    stage.until("it begins anew", |world| goes_on(world, member))
}

fn recover(stage: &mut Stage, node: usize) -> Played {
    let incarnation = Incarnation(stage.boot(node).unwrap_or_default());
    let replica = Boot { node: stage.id(node), incarnation };
    let (expect_version, lineage) = (stage.config().version, stage.config().lineage);
    let done = stage.propose(ShardChange::Recover { expect_version, replica })?;
    if !done || stage.config().lineage != lineage + 1 {
        let text = format!("refused: {:?}", stage.config());
        return Err(Violation { rule: NOT_REACHED, text });
    }
    Ok(())
}

fn goes_on(world: &World, node: usize) -> bool {
    super::stage::leader(world) == Some(node)
}

/// The replicas come to have one log, whatever they knew before.
fn same_logs(stage: &mut Stage) -> Played {
    stage.settle()?;
    let data = stage.world.plan.shape.data;
    let chains = stage.world.nodes[..data].iter().map(|node| {
        let log = &node.disk.durable.log;
        log.iter().map(|record| (record.lsn, record.chain)).collect::<Vec<_>>()
    });
    let chains: Vec<_> = chains.collect();
    match chains.iter().all(|chain| *chain == chains[0]) {
        true => Ok(()),
        false => Err(Violation {
            rule: "logs_end_equal",
            text: format!("{:?}", chains.iter().map(Vec::len).collect::<Vec<_>>()),
        }),
    }
}
