use super::*;
use crate::{
    limits::{FENCE_AFTER, HEARTBEAT},
    replication::fixture::boot,
    types::{Epoch, Incarnation, Lsn},
};

const SHARD: ShardId = ShardId(0);
const SECOND: Duration = Duration::from_secs(1);

fn config(set: &[u64]) -> ShardConfig {
    ShardConfig {
        version: 7,
        epoch: Epoch(3),
        primary: Some(boot(1, 1)),
        set: set.iter().copied().map(NodeId).collect(),
        replicas: [1, 2, 3].map(NodeId).to_vec(),
        copies_min: 1,
        ..ShardConfig::default()
    }
}

fn boots() -> Boots {
    [1, 2, 3].map(|n| (NodeId(n), Incarnation(n))).into()
}

fn hear(controller: &mut Controller, node: u64, epoch: u64, lsn: u64, now: Duration) {
    let end = LogEnd { lsn: Lsn(lsn), epoch: Epoch(epoch), chain: 0 };
    controller.heartbeat(boot(node, node), &[ShardDigest { shard: SHARD, end }], now);
}

fn elected(
    controller: &mut Controller,
    config: &ShardConfig,
    now: Duration,
) -> Option<(u64, Vec<NodeId>)> {
    let commands = controller.tick(now, std::iter::once((SHARD, config)), &boots());
    match commands.into_iter().next()?.change {
        ShardChange::Elect { primary, drop, .. } => Some((primary.node.0, drop)),
        other => unreachable!("a controller only elects, not {other:?}"),
    }
}

#[test]
fn a_silent_primary_is_replaced_by_the_live_member_with_the_best_log() {
    let mut controller = Controller::new(FENCE_AFTER, Duration::ZERO);
    let config = config(&[1, 2, 3]);
    (1..=3).for_each(|node| hear(&mut controller, node, 3, 9, SECOND * 20));
    assert_eq!(elected(&mut controller, &config, SECOND * 20), None, "it lives");
    hear(&mut controller, 2, 3, 10, SECOND * 21);
    hear(&mut controller, 3, 3, 12, SECOND * 21);
    assert_eq!(elected(&mut controller, &config, SECOND * 21), Some((3, vec![NodeId(1)])));
    assert_eq!(elected(&mut controller, &config, SECOND * 21), None, "asked once");
    let later = SECOND * 21 + REPLICA_RETRY;
    assert!(
        elected(&mut controller, &config, later).is_some(),
        "and again when nothing comes of it"
    );
}

#[test]
fn of_equal_logs_the_preferred_replica_leads() {
    let mut controller = Controller::new(FENCE_AFTER, Duration::ZERO);
    hear(&mut controller, 2, 3, 9, SECOND * 20);
    hear(&mut controller, 3, 3, 9, SECOND * 20);
    assert_eq!(elected(&mut controller, &config(&[1, 2, 3]), SECOND * 20).map(|e| e.0), Some(2));
}

#[test]
fn a_starting_site_waits_for_all_members_but_not_for_ever() {
    let mut controller = Controller::new(FENCE_AFTER, Duration::ZERO);
    let mut config = config(&[1, 2]);
    config.primary = Some(boot(1, 0));
    hear(&mut controller, 2, 3, 9, SECOND);
    assert_eq!(elected(&mut controller, &config, SECOND), None);
    hear(&mut controller, 2, 3, 9, BOOT_WAIT);
    assert_eq!(elected(&mut controller, &config, BOOT_WAIT), Some((2, vec![NodeId(1)])));
}

#[test]
fn a_stalled_shard_and_boots_that_are_over_are_left_alone() {
    let mut controller = Controller::new(FENCE_AFTER, Duration::ZERO);
    let mut config = config(&[2]);
    controller.heartbeat(boot(2, 1), &[], SECOND * 20);
    assert_eq!(elected(&mut controller, &config, SECOND * 20), None, "a former boot of 2");
    hear(&mut controller, 2, 3, 9, SECOND * 20);
    controller.heartbeat(boot(2, 1), &[], SECOND * 20);
    config.stalled = true;
    assert_eq!(elected(&mut controller, &config, SECOND * 20), None);
    config.stalled = false;
    assert_eq!(elected(&mut controller, &config, SECOND * 20).map(|e| e.0), Some(2));
}

/// Each of these says whom it hears.
fn report(controller: &mut Controller, reports: &[(u64, &[u64])], now: Duration) {
    for (node, hears) in reports {
        hear(controller, *node, 3, 9, now);
        let hears = hears.iter().copied().map(NodeId).collect();
        controller.reported(boot(*node, *node), hears, now);
    }
}

#[test]
fn a_primary_that_hears_none_of_those_who_hear_each_other_is_replaced() {
    let now = SECOND * 20;
    let cut_off: &[(u64, &[u64])] = &[(1, &[1, 4]), (2, &[2, 3, 4]), (3, &[2, 3, 4])];
    let mut controller = Controller::new(FENCE_AFTER, Duration::ZERO);
    report(&mut controller, cut_off, now);
    let elect = elected(&mut controller, &config(&[1, 2, 3]), now);
    assert_eq!(elect, Some((2, vec![NodeId(1)])));

    for whole in
        [[(1, &[1, 2][..]), (2, &[2, 3]), (3, &[2, 3])], [(1, &[1]), (2, &[2]), (3, &[2, 3])]]
    {
        let mut controller = Controller::new(FENCE_AFTER, Duration::ZERO);
        report(&mut controller, &whole, now);
        assert_eq!(elected(&mut controller, &config(&[1, 2, 3]), now), None, "{whole:?}");
    }
    let mut controller = Controller::new(FENCE_AFTER, Duration::ZERO);
    report(&mut controller, cut_off, now);
    assert_eq!(elected(&mut controller, &config(&[1, 2]), now), None, "one against one");
    (1..=3).for_each(|node| hear(&mut controller, node, 3, 9, now + FENCE_AFTER * 2));
    let later = now + FENCE_AFTER * 2;
    assert_eq!(elected(&mut controller, &config(&[1, 2, 3]), later), None, "reports grow old");
}

#[test]
fn time_in_which_this_node_stood_still_is_nobodys_silence() {
    let mut controller = Controller::new(FENCE_AFTER, Duration::ZERO);
    let heard = SECOND * 20;
    (1..=2).for_each(|node| hear(&mut controller, node, 3, 9, heard));
    let (still, now) = (FENCE_AFTER * 2, heard + FENCE_AFTER * 2 + HEARTBEAT);
    assert!(!controller.lives(NodeId(1), now));
    controller.stood_still(still, now);
    assert!(controller.lives(NodeId(1), now));
    assert!(!controller.lives(NodeId(1), now + FENCE_AFTER), "what comes after counts");
}

#[test]
fn a_node_that_only_others_hear_is_cut_off_and_one_that_nobody_hears_is_down() {
    let now = SECOND * 20;
    let cut = |reports: &[(u64, &[u64])], now| {
        let mut controller = Controller::new(FENCE_AFTER, Duration::ZERO);
        report(&mut controller, reports, SECOND * 20);
        controller.is_cut_from(NodeId(1), now)
    };
    assert!(cut(&[(2, &[1, 2, 3]), (3, &[2, 3])], now));
    assert!(!cut(&[(2, &[2, 3]), (3, &[2, 3])], now), "nobody hears it");
    assert!(!cut(&[(1, &[1, 2]), (2, &[1, 2])], now), "it is heard here");
    assert!(!cut(&[(2, &[1, 2])], now + FENCE_AFTER), "the report is old");
}

#[test]
fn a_primary_needs_its_members_and_others_need_the_primary() {
    let now = SECOND * 20;
    let mut controller = Controller::new(FENCE_AFTER, Duration::ZERO);
    // Heard by 2 alone: 4.
    report(&mut controller, &[(1, &[1, 2, 3]), (2, &[1, 2, 3, 4]), (3, &[1, 2, 3])], now);
    let cut = |me, config: &ShardConfig| controller.needed_and_cut(NodeId(me), config, now);
    let led_by = |node| ShardConfig { primary: Some(boot(node, node)), ..config(&[1, 2]) };
    assert_eq!(cut(1, &led_by(1)), None);
    assert_eq!(cut(2, &led_by(4)), Some(NodeId(4)), "it leads");
    assert_eq!(cut(4, &led_by(4)), None, "nobody is cut from itself");
    let member = ShardConfig { set: [1, 4].map(NodeId).to_vec(), ..led_by(1) };
    assert_eq!(cut(1, &member), Some(NodeId(4)), "it must have each entry");
    assert_eq!(cut(2, &member), None, "that is the primary's matter");
    let pending = ShardConfig { pending: vec![boot(4, 4)], ..led_by(1) };
    assert_eq!(cut(1, &pending), Some(NodeId(4)), "it must have each entry, too");
    let replica = ShardConfig { replicas: [1, 4].map(NodeId).to_vec(), ..led_by(1) };
    assert_eq!(cut(1, &replica), None, "entries are committed without it");
    assert_eq!(cut(1, &ShardConfig { primary: None, ..member }), None, "nobody leads");
}
