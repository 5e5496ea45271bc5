use super::*;
use crate::{replication::fixture::boot, types::Lsn};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);

fn shard(set: &[NodeId], copies_min: u32) -> ShardConfig {
    ShardConfig {
        version: 10,
        epoch: Epoch(3),
        primary: Some(boot(1, 1)),
        set: set.to_vec(),
        replicas: vec![A, B, C],
        copies_min,
        ..ShardConfig::default()
    }
}

fn boots() -> Boots {
    [A, B, C].map(|node| (node, Incarnation(node.0))).into()
}

fn elect(node: u64, drop: &[NodeId]) -> ShardChange {
    ShardChange::Elect { expect_version: 10, primary: boot(node, node), drop: drop.to_vec() }
}

fn remove(node: NodeId, lost: bool) -> ShardChange {
    ShardChange::Remove { expect_version: 10, from: boot(1, 1), node, lost }
}

#[test]
fn a_replica_comes_in_two_steps() {
    let mut shard = shard(&[A, B], 1);
    let (from, replica) = (boot(1, 1), boot(3, 3));
    let add = ShardChange::AddPending { expect_version: 10, from, replica };
    shard.apply(add.clone(), &boots()).expect("outside");
    assert_eq!((shard.set.len(), shard.pending.as_slice()), (2, [replica].as_slice()));
    let late = shard.apply(add, &boots());
    assert_eq!(late, Err(ConfigReject::StaleVersion { have: 11, expected: 10 }));
    let confirm = ShardChange::ConfirmAdd { expect_version: 11, from, replica };
    shard.apply(confirm, &boots()).expect("pending");
    assert_eq!((shard.set.as_slice(), shard.pending.len()), ([A, B, C].as_slice(), 0));
}

#[test]
fn a_pending_replica_that_restarts_must_begin_again() {
    let mut shard = shard(&[A, B], 1);
    let (from, replica) = (boot(1, 1), boot(3, 3));
    let add = ShardChange::AddPending { expect_version: 10, from, replica };
    shard.apply(add, &boots()).expect("outside");
    let mut boots = boots();
    boots.insert(C, Incarnation(9));
    shard.registered(C, false, None);
    let confirm = ShardChange::ConfirmAdd { expect_version: shard.version, from, replica };
    assert_eq!(shard.apply(confirm, &boots), Err(ConfigReject::StaleBoot(replica)));
}

#[test]
fn only_members_in_their_newest_boot_are_elected_and_few_are_not_made_fewer() {
    let mut three = shard(&[A, B, C], 2);
    three.apply(elect(2, &[A, C]), &boots()).expect("member");
    assert_eq!(three.set, [A, B, C], "one alone is too few");
    assert_eq!((three.epoch, three.primary, three.version), (Epoch(4), Some(boot(2, 2)), 11));
    let mut two = shard(&[A, B], 1);
    assert_eq!(two.apply(elect(3, &[]), &boots()), Err(ConfigReject::WrongPlace(C)));
    let old = ShardChange::Elect { expect_version: 10, primary: boot(2, 1), drop: vec![] };
    assert_eq!(two.apply(old, &boots()), Err(ConfigReject::StaleBoot(boot(2, 1))));
    two.apply(elect(2, &[A]), &boots()).expect("member");
    assert_eq!(two.set, [B]);
}

#[test]
fn the_set_never_shrinks_below_its_minimum_but_for_lost_data() {
    let mut shard = shard(&[A, B], 2);
    let few = ConfigReject::TooFewMembers { would_stay: 1, need: 2 };
    assert_eq!(shard.apply(remove(B, false), &boots()), Err(few));
    assert_eq!(shard.apply(remove(A, true), &boots()), Err(ConfigReject::WrongPlace(A)));
    shard.apply(remove(B, true), &boots()).expect("lost");
    assert_eq!(shard.set, [A]);
}

#[test]
fn only_the_primary_in_its_newest_boot_changes_the_set() {
    let mut shard = shard(&[A, B], 1);
    let from = boot(2, 2);
    let other = ShardChange::Remove { expect_version: 10, from, node: A, lost: false };
    assert_eq!(shard.apply(other, &boots()), Err(ConfigReject::NotPrimary(from)));
    let mut boots = boots();
    boots.insert(A, Incarnation(7));
    let rebooted = shard.apply(remove(B, false), &boots);
    assert_eq!(rebooted, Err(ConfigReject::StaleBoot(boot(1, 1))));
}

#[test]
fn a_member_with_less_than_the_floor_leaves_and_the_last_one_stalls_the_shard() {
    let mut shard = shard(&[A, B], 1);
    let end = |lsn| LogEnd { lsn: Lsn(lsn), ..LogEnd::default() };
    let floor = |lsn| ShardChange::Floor { from: boot(1, 1), epoch: Epoch(3), committed: end(lsn) };
    shard.apply(floor(8), &boots()).expect("primary");
    shard.apply(floor(5), &boots()).expect("late, and without effect");
    assert_eq!(shard.floor, Some(end(8)));
    let report = |lsn, installing| ShardReport { end: end(lsn), installing };
    shard.registered(B, false, Some(&report(8, false)));
    assert_eq!(shard.set, [A, B]);
    shard.registered(B, false, Some(&report(9, true)));
    assert_eq!(shard.set, [A], "half an install is nothing");
    shard.registered(A, false, Some(&report(7, false)));
    assert_eq!((shard.set.as_slice(), shard.stalled), ([A].as_slice(), true));
    let version = shard.version;
    let again = ShardChange::Elect { expect_version: version, primary: boot(1, 1), drop: vec![] };
    assert_eq!(shard.apply(again, &boots()), Err(ConfigReject::Stalled));
}

#[test]
fn a_member_leaves_by_itself_only_where_it_may_be_spared() {
    let leave = |node: u64, incarnation| ShardChange::Leave {
        expect_version: 10,
        replica: Boot { node: NodeId(node), incarnation: Incarnation(incarnation) },
    };
    let mut three = shard(&[A, B, C], 2);
    let stale = three.apply(leave(2, 1), &boots());
    assert!(matches!(stale, Err(ConfigReject::StaleBoot(_))), "an earlier boot: {stale:?}");
    assert_eq!(three.apply(leave(1, 1), &boots()), Err(ConfigReject::WrongPlace(A)), "it leads");
    three.apply(leave(2, 2), &boots()).expect("two are enough");
    assert_eq!((three.set.as_slice(), three.version), ([A, C].as_slice(), 11));
    let late = three.apply(leave(3, 3), &boots());
    assert_eq!(late, Err(ConfigReject::StaleVersion { have: 11, expected: 10 }));
    let few = shard(&[A, B], 2).apply(leave(2, 2), &boots());
    assert_eq!(few, Err(ConfigReject::TooFewMembers { would_stay: 1, need: 2 }));
}

#[test]
fn an_operator_lets_a_shard_go_on_with_what_one_replica_has() {
    let mut shard = shard(&[A], 2);
    (shard.stalled, shard.floor) = (true, Some(LogEnd { lsn: Lsn(50), ..LogEnd::default() }));
    assert_eq!(shard.apply(elect(1, &[]), &boots()), Err(ConfigReject::Stalled));
    let replica = boot(2, 2);
    let late = ShardChange::Recover { expect_version: 9, replica };
    assert_eq!(
        shard.apply(late, &boots()),
        Err(ConfigReject::StaleVersion { have: 10, expected: 9 })
    );
    let gone = ShardChange::Recover { expect_version: 10, replica: boot(2, 1) };
    assert_eq!(shard.apply(gone, &boots()), Err(ConfigReject::StaleBoot(boot(2, 1))));
    let recover = ShardChange::Recover { expect_version: 10, replica };
    shard.apply(recover, &boots()).expect("it is up");
    assert_eq!((shard.primary, &shard.set[..]), (Some(replica), &[B][..]));
    assert_eq!((shard.lineage, shard.lineage_start, shard.epoch), (1, Epoch(4), Epoch(4)));
    assert_eq!((shard.stalled, shard.floor, shard.copies_min), (false, None, 1));
    // A member of the old lineage that comes back with more has no place in the set.
    shard.registered(A, false, Some(&ShardReport { end: LogEnd::default(), installing: false }));
    assert_eq!(shard.set, [B]);
}
