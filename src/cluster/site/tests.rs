use super::*;
use crate::{
    cluster::{BootClaim, NodeInfo, NodeRole},
    limits::INVITES_MAX,
    replication::{ConfigReject, ShardChange},
    types::{Boot, Epoch, Incarnation},
    wire::{Change, RetentionChange},
};

fn name(s: &str) -> TopicName {
    s.parse().expect("allowed")
}

fn do_it(state: &mut SiteState, command: MetaCommand) -> Result<MetaOutcome, MetaReject> {
    state.apply(state.applied + 1, command)
}

fn found(site: &str, shards: u16) -> MetaCommand {
    MetaCommand::Found { site: site.parse().expect("allowed"), shards }
}

fn register(disk_id: u128, boot: u64) -> MetaCommand {
    let before = (1..boot).map(|boot| boot * 7).collect();
    let claim = BootClaim { boot, nonce: boot * 7, before, ..BootClaim::default() };
    registering("n1", disk_id, claim)
}

fn registering(name: &str, disk_id: u128, claim: BootClaim) -> MetaCommand {
    let name = name.parse().expect("allowed");
    MetaCommand::Register { name, disk_id, claim, info: NodeInfo::default() }
}

fn create(topic: &str, partitions: u32) -> MetaCommand {
    let settings = TopicSettings { partitions, retention: Retention::default() };
    MetaCommand::CreateTopic { name: name(topic), settings, now: Timestamp(5) }
}

fn site() -> SiteState {
    let mut state = SiteState::default();
    do_it(&mut state, found("home", 4)).expect("new");
    do_it(&mut state, register(1, 1)).expect("new");
    state
}

#[test]
fn a_node_keeps_its_number_and_gets_an_incarnation_per_boot() {
    let mut state = site();
    let first = state.nodes.values().next().expect("registered").incarnation;
    let again = do_it(&mut state, register(1, 2));
    assert_eq!(again, Ok(MetaOutcome::Registered(NodeId(1), Incarnation(3))));
    assert!(Incarnation(3) > first);
    assert!(matches!(do_it(&mut state, register(2, 3)), Err(MetaReject::OtherDisk(_))));
    let doubled = do_it(&mut state, register(1, 2));
    assert_eq!(doubled, again, "the same boot asks twice");
}

#[test]
fn a_boot_that_is_not_later_than_the_last_has_an_old_disk() {
    let mut state = site();
    do_it(&mut state, register(1, 5)).expect("later");
    let old = do_it(&mut state, register(1, 4));
    assert_eq!(old, Err(MetaReject::StaleBoot { have: 5, claimed: 4 }));
    // A copy of boot 3 that has started four times without reaching the site.
    let claim = BootClaim { boot: 7, nonce: 1, before: vec![21, 5, 6, 8], ..BootClaim::default() };
    let old = do_it(&mut state, registering("n1", 1, claim));
    assert_eq!(old, Err(MetaReject::StaleBoot { have: 5, claimed: 7 }));
    let claim = BootClaim { boot: 6, nonce: 1, suspect: true, ..BootClaim::default() };
    do_it(&mut state, registering("n1", 1, claim)).expect("suspect");
    assert!(state.shards.iter().all(|shard| shard.stalled), "the last member has lost data");
}

#[test]
fn a_site_is_founded_once() {
    let mut state = site();
    assert_eq!(do_it(&mut state, found("home", 4)), Ok(MetaOutcome::Done));
    assert!(matches!(do_it(&mut state, found("away", 4)), Err(MetaReject::OtherSite(_))));
    let shards = do_it(&mut state, found("home", 5));
    assert_eq!(shards, Err(MetaReject::OtherShards { have: 4, want: 5 }));
}

#[test]
fn each_election_makes_a_new_epoch_and_a_late_one_fails() {
    let mut state = site();
    let elect = |expect_version, incarnation| {
        let primary = Boot { node: NodeId(1), incarnation: Incarnation(incarnation) };
        let change = ShardChange::Elect { expect_version, primary, drop: vec![] };
        MetaCommand::Shard(ShardCommand { shard: ShardId(1), change })
    };
    do_it(&mut state, elect(1, 2)).expect("right version");
    assert_eq!(state.shards[1].epoch, Epoch(1));
    let late = do_it(&mut state, elect(1, 2));
    let stale = ConfigReject::StaleVersion { have: 2, expected: 1 };
    assert_eq!(late, Err(MetaReject::Shard { shard: ShardId(1), reason: stale }));
    do_it(&mut state, register(1, 2)).expect("same disk");
    let stale = do_it(&mut state, elect(2, 2));
    assert!(matches!(stale, Err(MetaReject::Shard { .. })), "the boot before");
    assert_eq!(state.shards[1].set, [NodeId(1)]);
}

#[test]
fn partitions_go_to_the_shards_with_the_fewest() {
    let mut state = site();
    do_it(&mut state, create("a", 3)).expect("new");
    do_it(&mut state, create("b", 6)).expect("new");
    assert_eq!(state.topics[&name("a")].shards, [0, 1, 2].map(ShardId));
    assert_eq!(state.topics[&name("b")].shards, [3, 0, 1, 2, 3, 0].map(ShardId));
    assert_eq!(state.partitions_of(ShardId(3)).count(), 2);
}

#[test]
fn making_a_topic_twice_is_the_same_topic_or_an_error() {
    let mut state = site();
    let first = do_it(&mut state, create("a", 3));
    assert_eq!(do_it(&mut state, create("a", 3)), first);
    assert_eq!(do_it(&mut state, create("a", 4)), Err(MetaReject::TopicExists(name("a"))));
    assert_eq!(do_it(&mut state, create("b", 0)), Err(MetaReject::Partitions(0)));
}

#[test]
fn a_deleted_topic_leaves_a_tombstone_until_its_partitions_are_gone() {
    let mut state = site();
    do_it(&mut state, create("a", 1)).expect("new");
    let id = state.topics[&name("a")].id;
    do_it(&mut state, MetaCommand::DeleteTopic { name: name("a") }).expect("there");
    do_it(&mut state, create("a", 1)).expect("the name is free");
    assert_ne!(state.topics[&name("a")].id, id);
    let dropped: Vec<_> = state.dropped_from(ShardId(0)).collect();
    assert_eq!(dropped, [PartitionId { topic: id, index: 0 }]);
    do_it(&mut state, MetaCommand::ForgetTopic { id }).expect("always");
    assert_eq!(state.dropped_from(ShardId(0)).count(), 0);
}

#[test]
fn settings_change_one_by_one() {
    let mut state = site();
    do_it(&mut state, create("a", 1)).expect("new");
    let mut set = |change| do_it(&mut state, MetaCommand::SetTopic { name: name("a"), change });
    set(RetentionChange { bytes: Change::Set(10), ..Default::default() }).expect("right");
    set(RetentionChange { age_ms: Change::Set(20), ..Default::default() }).expect("right");
    set(RetentionChange { bytes: Change::Clear, ..Default::default() }).expect("right");
    let zero = set(RetentionChange { records: Change::Set(0), ..Default::default() });
    assert_eq!(zero, Err(MetaReject::Retention("records".into())));
    let want = Retention { age_ms: Some(20), ..Retention::default() };
    assert_eq!(state.topics[&name("a")].settings.retention, want);
}

#[test]
fn a_snapshot_is_the_state() {
    let mut state = site();
    do_it(&mut state, create("a", 2)).expect("new");
    let mut bytes = bytes::BytesMut::new();
    crate::wire::cbor::put(&state, &mut bytes);
    assert_eq!(crate::wire::cbor::get(&bytes), Ok(state));
}

fn join(name: &str, disk_id: u128, invite: Option<InviteId>) -> MetaCommand {
    let (name, role, now) = (name.parse().expect("allowed"), NodeRole::Data, Timestamp(100));
    MetaCommand::AddNode { name, disk_id, role, invite, now }
}

fn invite(id: u64, expires: u64, now: u64) -> MetaCommand {
    let (id, role, secret_hash) = (InviteId(id), NodeRole::Data, [7; 32]);
    let (expires, now) = (Timestamp(expires), Timestamp(now));
    MetaCommand::Invite { id, secret_hash, role, expires, now }
}

#[test]
fn a_node_joins_before_it_registers_and_has_the_index_for_a_number() {
    let mut state = site();
    let claim = BootClaim { boot: 1, nonce: 9, ..BootClaim::default() };
    let unknown = do_it(&mut state, registering("n2", 2, claim.clone()));
    assert!(matches!(unknown, Err(MetaReject::UnknownNode(_))));
    let added = do_it(&mut state, join("n2", 2, None));
    let id = NodeId(state.applied);
    assert_eq!(added, Ok(MetaOutcome::NodeAdded(id)));
    assert_eq!(do_it(&mut state, join("n2", 2, None)), added, "its answer was lost");
    assert!(matches!(do_it(&mut state, join("n2", 3, None)), Err(MetaReject::OtherDisk(_))));
    assert!(matches!(do_it(&mut state, join("n3", 2, None)), Err(MetaReject::DiskInUse(_))));
    assert!(!state.boots().contains_key(&id), "it has not started yet");
    let index = state.applied + 5;
    let registered = state.apply(index, registering("n2", 2, claim));
    assert_eq!(registered, Ok(MetaOutcome::Registered(id, Incarnation(index))));
    assert_eq!(state.shards[0].set, [FOUNDER]);
}

#[test]
fn what_a_node_says_of_itself_is_checked() {
    let mut state = site();
    let mut say = |info: NodeInfo| {
        let claim = BootClaim { boot: 1, nonce: 7, ..BootClaim::default() };
        let name = "n1".parse().expect("allowed");
        do_it(&mut state, MetaCommand::Register { name, disk_id: 1, claim, info })
    };
    let addresses = |list: &[&str]| NodeInfo {
        addresses: list.iter().map(ToString::to_string).collect(),
        ..NodeInfo::default()
    };
    say(addresses(&["a.example:7440", "[::1]:1"])).expect("right");
    for bad in ["a", "a:", ":1", "a:0", "a:70000", "a b:1"] {
        assert!(matches!(say(addresses(&[bad])), Err(MetaReject::NodeInfo(_))), "{bad}");
    }
    assert!(matches!(say(addresses(&["a:1"; 17])), Err(MetaReject::NodeInfo(_))));
    let protocol = NodeInfo { protocol: (2, 1), ..NodeInfo::default() };
    assert!(matches!(say(protocol), Err(MetaReject::NodeInfo(_))));
}

#[test]
fn a_removed_node_never_comes_back() {
    let mut state = site();
    do_it(&mut state, join("n2", 2, None)).expect("new");
    let node = NodeId(state.applied);
    state.voters = [FOUNDER, node].into();
    let holds = do_it(&mut state, MetaCommand::RemoveNode { node: FOUNDER });
    assert_eq!(holds, Err(MetaReject::NodeInUse { node: FOUNDER, shard: ShardId(0) }));
    let unknown = do_it(&mut state, MetaCommand::RemoveNode { node: NodeId(99) });
    assert_eq!(unknown, Err(MetaReject::NoNode(NodeId(99))));
    state.voters = [node].into();
    let last = do_it(&mut state, MetaCommand::RemoveNode { node });
    assert_eq!(last, Err(MetaReject::LastVoter(node)));
    state.voters = [FOUNDER].into();
    for _ in 0..2 {
        do_it(&mut state, MetaCommand::RemoveNode { node }).expect("twice is once");
    }
    let claim = BootClaim { boot: 1, nonce: 9, ..BootClaim::default() };
    let back = do_it(&mut state, registering("n2", 2, claim));
    assert!(matches!(back, Err(MetaReject::Removed(_))));
    assert!(matches!(do_it(&mut state, join("n3", 2, None)), Err(MetaReject::Removed(_))));
    do_it(&mut state, join("n2", 3, None)).expect("the name is free, for another disk");
    assert!(!state.nodes.contains_key(&node));
}

#[test]
fn an_invite_is_used_once_and_ends() {
    let mut state = site();
    do_it(&mut state, invite(1, 200, 100)).expect("new");
    do_it(&mut state, invite(1, 200, 100)).expect("the same");
    assert!(matches!(do_it(&mut state, invite(1, 300, 100)), Err(MetaReject::InviteExists(_))));
    do_it(&mut state, join("n2", 2, Some(InviteId(1)))).expect("open");
    let used = do_it(&mut state, join("n3", 3, Some(InviteId(1))));
    assert_eq!(used, Err(MetaReject::NoInvite(InviteId(1))));
    do_it(&mut state, invite(2, 100, 50)).expect("new");
    let ended = do_it(&mut state, join("n3", 3, Some(InviteId(2))));
    assert_eq!(ended, Err(MetaReject::NoInvite(InviteId(2))));
    for id in 3..3 + INVITES_MAX as u64 {
        do_it(&mut state, invite(id, 300, 150)).expect("the one that ended is forgotten");
    }
    assert_eq!(do_it(&mut state, invite(99, 300, 150)), Err(MetaReject::TooManyInvites));
}

#[test]
fn weights_have_a_range() {
    let mut state = site();
    let mut set =
        |node, weight, draining| do_it(&mut state, MetaCommand::SetNode { node, weight, draining });
    set(FOUNDER, Some(0), None).expect("in range");
    set(FOUNDER, None, Some(true)).expect("there");
    assert_eq!(set(FOUNDER, Some(1_001), None), Err(MetaReject::Weight(1_001)));
    assert_eq!(set(NodeId(9), None, None), Err(MetaReject::NoNode(NodeId(9))));
    let node = &state.nodes[&FOUNDER];
    assert_eq!((node.weight, node.draining), (0, true));
}

#[test]
fn the_level_is_what_all_nodes_speak_and_never_falls() {
    let mut state = site();
    do_it(&mut state, join("n2", 2, None)).expect("new");
    let n2 = NodeId(state.applied);
    let mut boots = 10;
    let mut speak = |state: &mut SiteState, node: &str, disk_id: u128, protocol: (u16, u16)| {
        boots += 1;
        let before = (1..boots).map(|boot| boot * 7).collect();
        let claim = BootClaim { boot: boots, nonce: boots * 7, before, ..BootClaim::default() };
        let info = NodeInfo { protocol, ..NodeInfo::default() };
        let name = node.parse().expect("allowed");
        let said = do_it(state, MetaCommand::Register { name, disk_id, claim, info });
        said.map(|_| state.level)
    };
    assert_eq!(speak(&mut state, "n1", 1, (1, 2)), Ok(0), "n2 has said nothing");
    assert_eq!(speak(&mut state, "n2", 2, (1, 1)), Ok(1));
    assert_eq!(speak(&mut state, "n1", 1, (1, 2)), Ok(1));
    assert_eq!(speak(&mut state, "n2", 2, (1, 3)), Ok(2));
    for (old_or_new, speaks) in [((1, 1), "1 to 1"), ((3, 4), "3 to 4")] {
        let refused = speak(&mut state, "n2", 2, old_or_new).expect_err("it understands no 2");
        assert_eq!(refused, MetaReject::Protocol { speaks: speaks.into(), level: 2 });
    }
    assert_eq!(state.level, 2);

    do_it(&mut state, join("n3", 3, None)).expect("new");
    let n3 = NodeId(state.applied);
    assert_eq!(speak(&mut state, "n1", 1, (2, 3)), Ok(2), "n3 has said nothing");
    state.voters = [FOUNDER].into();
    for shard in &mut state.shards {
        shard.replicas.retain(|node| *node == FOUNDER);
        shard.set.retain(|node| *node == FOUNDER);
    }
    do_it(&mut state, MetaCommand::RemoveNode { node: n3 }).expect("it holds nothing");
    assert_eq!(state.level, 3, "nobody waits for it any more");
    do_it(&mut state, MetaCommand::RemoveNode { node: n2 }).expect("it holds nothing");
    assert_eq!(state.level, 3);
}
