use super::*;
use crate::{
    limits::{FENCE_AFTER, LEFT_WAIT},
    replication::{
        ShardChange, Stored,
        fixture::{Bare, BareLog, after, boot},
        message::Append,
    },
    types::{Incarnation, ShardId},
};

const SECOND: Duration = Duration::from_secs(1);

/// A primary of epoch 4 on a log of ten entries, eight of them committed, and its disk.
struct World {
    primary: Primary<Bare>,
    log: BareLog,
    /// What the disk was asked to do.
    asked: u64,
    out: Vec<Effect<Bare>>,
}

fn boots() -> Boots {
    [1, 2, 3].map(|n| (NodeId(n), Incarnation(n))).into()
}

impl World {
    fn new(set: &[u64], pending: &[u64], copies_min: u32) -> Self {
        let log = BareLog::of(&[1, 1, 1, 1, 1, 2, 2, 2, 3, 3]);
        let history =
            EpochHistory::new(log.0.iter().map(|e| (e.end().epoch, Lsn(e.end().lsn.0 - 1))));
        let stored =
            Stored { history, end: log.end(), high_watermark: Lsn(8), ..Stored::default() };
        let config = ShardConfig {
            version: 5,
            epoch: Epoch(4),
            primary: Some(boot(1, 1)),
            set: set.iter().copied().map(NodeId).collect(),
            pending: pending.iter().map(|n| boot(*n, *n)).collect(),
            replicas: [1, 2, 3].map(NodeId).to_vec(),
            copies_min,
            ..ShardConfig::default()
        };
        let mut local = LocalLog::new(stored);
        local.promise(Epoch(4), &mut Vec::new());
        let primary =
            Primary::begin(boot(1, 1), config, &boots(), local, FENCE_AFTER, Duration::ZERO);
        // The promise.
        let asked = 1;
        let mut world = Self { primary, log, asked, out: Vec::new() };
        world.append(2);
        world
    }

    fn append(&mut self, entries: u64) {
        for _ in 0..entries {
            let entry = after(self.log.end(), 4, 0);
            self.log.0.push(entry);
            self.asked += 1;
            self.primary.append(entry, &mut self.out);
        }
    }

    fn sync(&mut self) -> bool {
        self.primary.written(self.asked, &mut self.out)
    }

    fn hear(&mut self, node: u64, body: Body<Bare>) -> bool {
        self.hear_boot(boot(node, node), body, SECOND)
    }

    fn hear_boot(&mut self, from: Boot, body: Body<Bare>, now: Duration) -> bool {
        let (shard, epoch, to) = (ShardId(0), Epoch(4), boot(1, 1));
        let envelope = Envelope { shard, epoch, from, to, body };
        self.primary.message(envelope, now, &self.log, &mut self.out)
    }

    /// A replica comes with a log of these epochs, and acks as far as it is told to.
    fn follow(&mut self, node: u64, epochs: &[u64], acked: u64) -> bool {
        self.hear(node, state(epochs));
        self.hear(node, Body::Durable(Lsn(acked)))
    }

    fn proposed(&mut self, now: Duration) -> Vec<ShardChange> {
        self.out.clear();
        self.primary.tick(now, &self.log, &mut self.out);
        let changes = self.out.iter().filter_map(|effect| match effect {
            Effect::Propose(change) => Some(change.clone()),
            _ => None,
        });
        changes.collect()
    }
}

fn state(epochs: &[u64]) -> Body<Bare> {
    let log = BareLog::of(epochs);
    let history = EpochHistory::new(log.0.iter().map(|e| (e.end().epoch, Lsn(e.end().lsn.0 - 1))));
    let (end, high_watermark) = (log.end(), Lsn(0));
    Body::State(FollowerState { end, history, high_watermark, installing: false })
}

#[test]
fn a_set_of_one_commits_what_its_own_disk_has() {
    let mut world = World::new(&[1], &[], 1);
    assert!(!world.primary.is_recovered());
    assert!(!world.primary.written(1, &mut world.out), "the epoch has not begun on the disk");
    assert!(world.primary.written(2, &mut world.out));
    assert!(world.primary.is_recovered());
    assert!(!world.primary.written(2, &mut world.out), "it did not move");
    assert!(world.sync());
    assert_eq!((world.primary.high_watermark(), world.primary.copies_of(Lsn(11))), (Lsn(12), 1));
}

#[test]
fn every_member_and_every_pending_replica_must_have_it() {
    let mut world = World::new(&[1, 2], &[3], 1);
    assert!(!world.sync());
    assert!(!world.follow(2, &[1, 1, 1, 1, 1, 2, 2, 2, 3, 3], 12));
    assert!(world.follow(3, &[1, 1, 1, 1, 1, 2, 2, 2, 3, 3], 11));
    assert_eq!(world.primary.high_watermark(), Lsn(11));
    assert_eq!(world.primary.copies_of(Lsn(10)), 2, "a pending replica is no copy to count on");
}

#[test]
fn too_small_a_set_commits_nothing() {
    let mut world = World::new(&[1], &[], 2);
    let few = Err(NotEnoughCopies { have: 1, need: 2 });
    assert_eq!(world.primary.check_copies(0), few);
    assert!(!world.sync());
}

#[test]
fn an_end_past_the_log_and_the_word_of_another_boot_are_not_believed() {
    let mut world = World::new(&[1, 2], &[], 1);
    world.sync();
    world.hear(2, state(&[1, 1, 1, 1, 1, 2, 2, 2, 3, 3]));
    assert!(!world.hear(2, Body::Durable(Lsn(13))));
    assert!(!world.hear_boot(boot(2, 1), Body::Durable(Lsn(12)), SECOND));
    assert!(world.hear(2, Body::Durable(Lsn(12))));
}

#[test]
fn no_message_of_an_epoch_leaves_before_its_start_is_durable() {
    let mut world = World::new(&[1, 2], &[], 1);
    world.proposed(SECOND);
    assert!(!world.out.iter().any(|effect| matches!(effect, Effect::Send { .. })));
    world.sync();
    let asks =
        |effect: &Effect<Bare>| matches!(effect, Effect::Send { body: Body::StartEpoch, .. });
    assert_eq!(world.out.iter().filter(|effect| asks(effect)).count(), 2, "each replica once");
}

#[test]
fn a_replica_is_aligned_at_the_end_of_what_both_have_and_then_gets_the_rest() {
    let mut world = World::new(&[1], &[], 1);
    world.sync();
    world.out.clear();
    world.hear(3, state(&[1, 1, 1, 1, 1, 1, 1]));
    let common = world.log.end_at(Lsn(5)).expect("there");
    let (to, epoch) = (boot(3, 3), Epoch(4));
    assert_eq!(world.out, [Effect::Send { to, epoch, body: Body::Align(common) }]);
    world.out.clear();
    world.hear(3, Body::Durable(Lsn(5)));
    world.primary.pump(&mut world.out);
    let (from, until, high_watermark) = (Lsn(5), Lsn(12), Lsn(12));
    assert_eq!(world.out, [Effect::Replicate { to, epoch, from, until, high_watermark }]);
    world.out.clear();
    world.primary.pump(&mut world.out);
    assert_eq!(world.out, [], "sent once");
    world.hear(3, Body::Refused(Refusal::Gap(Lsn(7))));
    world.primary.pump(&mut world.out);
    assert!(matches!(world.out[..], [Effect::Replicate { from: Lsn(7), .. }]));
}

#[test]
fn a_member_that_has_less_than_it_acked_leaves_as_lost() {
    let mut world = World::new(&[1, 2], &[], 2);
    world.sync();
    world.follow(2, &[1, 1, 1, 1, 1, 2, 2, 2, 3, 3], 12);
    let mut boots = boots();
    boots.insert(NodeId(2), Incarnation(9));
    let config = world.primary.config().clone();
    world.primary.configure(&config, &boots, SECOND, &mut world.out);
    world.hear_boot(boot(2, 9), state(&[1, 1, 1, 1, 1, 2, 2, 2, 3, 3]), SECOND);
    let change = world.proposed(SECOND);
    let (expect_version, from, node) = (5, boot(1, 1), NodeId(2));
    assert_eq!(change, [ShardChange::Remove { expect_version, from, node, lost: true }]);
}

#[test]
fn a_silent_member_leaves_if_enough_stay_and_else_publishes_are_refused() {
    let mut world = World::new(&[1, 2], &[], 1);
    world.sync();
    let change = world.proposed(SECOND * 5);
    assert!(matches!(change[..], [ShardChange::Remove { node: NodeId(2), lost: false, .. }]));
    let mut world = World::new(&[1, 2], &[], 2);
    world.sync();
    assert_eq!(world.proposed(SECOND * 5), []);
    assert_eq!(world.primary.check_copies(0), Err(NotEnoughCopies { have: 1, need: 2 }));
}

#[test]
fn who_has_stood_still_puts_nobody_out_for_it() {
    let mut world = World::new(&[1, 2, 3], &[], 1);
    world.sync();
    let removed = |changes: Vec<ShardChange>| {
        changes.iter().any(|change| matches!(change, ShardChange::Remove { .. }))
    };
    assert!(!removed(world.proposed(SECOND / 2)));
    let woke = SECOND * 60;
    world.primary.stood_still(woke - SECOND / 2, woke);
    assert!(!removed(world.proposed(woke)), "what others have said meanwhile is still to be heard");
    assert!(removed(world.proposed(woke + SECOND * 5)), "silence behind that is theirs");
}

#[test]
fn a_replica_that_keeps_pace_comes_in_and_is_confirmed_with_the_epochs_start() {
    let mut world = World::new(&[1], &[], 1);
    world.sync();
    world.follow(3, &[1, 1, 1, 1, 1, 2, 2, 2, 3, 3], 10);
    assert!(
        world.proposed(SECOND).iter().all(|c| matches!(c, ShardChange::Floor { .. })),
        "too little"
    );
    world.hear(3, Body::Durable(Lsn(12)));
    let changes = world.proposed(SECOND + REPLICA_RETRY);
    let replica = boot(3, 3);
    assert!(
        changes
            .iter()
            .any(|c| matches!(c, ShardChange::AddPending { replica: r, .. } if *r == replica))
    );
    let config =
        ShardConfig { pending: vec![replica], version: 6, ..world.primary.config().clone() };
    world.primary.configure(&config, &boots(), SECOND, &mut world.out);
    world.append(1);
    assert!(!world.sync(), "from now on it waits for the pending replica");
    let changes = world.proposed(SECOND * 2);
    assert!(
        changes
            .iter()
            .any(|c| matches!(c, ShardChange::ConfirmAdd { replica: r, .. } if *r == replica))
    );
}

#[test]
fn who_leaves_by_itself_is_asked_back_in_its_next_boot() {
    let added = |changes: &[ShardChange]| {
        let added = |change: &ShardChange| match change {
            ShardChange::AddPending { replica, .. } => Some(*replica),
            _ => None,
        };
        changes.iter().find_map(added)
    };
    for set in [vec![1, 3], vec![1]] {
        // As a member, or while it is pending.
        let pending = if set.contains(&3) { vec![] } else { vec![3] };
        let mut world = World::new(&set, &pending, 1);
        world.sync();
        world.follow(3, &[1, 1, 1, 1, 1, 2, 2, 2, 3, 3], 12);
        let mut config = world.primary.config().clone();
        let replica = boot(3, 3);
        let leave = ShardChange::Leave { expect_version: config.version, replica };
        config.apply(leave, &boots()).unwrap();
        world.primary.configure(&config, &boots(), SECOND, &mut world.out);
        for late in 0..20 {
            let now = SECOND + REPLICA_RETRY * late;
            world.hear_boot(replica, Body::Durable(Lsn(12)), now);
            assert_eq!(added(&world.proposed(now)), None, "it is about to stop");
        }
        let mut stays = world.primary.clone();
        let (mut out, late) = (Vec::new(), SECOND + LEFT_WAIT);
        let body = Body::Durable(Lsn(12));
        let (shard, epoch, to) = (ShardId(0), Epoch(4), boot(1, 1));
        stays.message(
            Envelope { shard, epoch, from: replica, to, body },
            late,
            &world.log,
            &mut out,
        );
        stays.tick(late, &world.log, &mut out);
        let back = |effect: &Effect<Bare>| {
            matches!(effect, Effect::Propose(ShardChange::AddPending { .. }))
        };
        assert!(out.iter().any(back), "it did not stop");
        let boots = [(1, 1), (2, 2), (3, 8)].map(|(n, i)| (NodeId(n), Incarnation(i))).into();
        world.primary.configure(&config, &boots, SECOND * 8, &mut world.out);
        for body in [state(&[1, 1, 1, 1, 1, 2, 2, 2, 3, 3]), Body::Durable(Lsn(12))] {
            world.hear_boot(boot(3, 8), body, SECOND * 8);
        }
        assert_eq!(added(&world.proposed(SECOND * 8 + REPLICA_RETRY)), Some(boot(3, 8)));
    }
}

#[test]
fn a_hand_over_waits_for_the_other_and_gives_up_in_time() {
    let mut world = World::new(&[1, 2], &[], 1);
    world.sync();
    assert!(world.primary.hand_over(NodeId(2), SECOND).is_err(), "nobody knows how far it is");
    world.follow(2, &[1, 1, 1, 1, 1, 2, 2, 2, 3, 3], 11);
    world.primary.hand_over(NodeId(2), SECOND).expect("it follows");
    assert_eq!(world.proposed(SECOND), [], "it has not all yet");
    world.hear(2, Body::Durable(Lsn(12)));
    let changes = world.proposed(SECOND);
    assert!(matches!(&changes[..], [ShardChange::Elect { primary, .. }] if *primary == boot(2, 2)));
    world.proposed(SECOND * 9);
    assert_eq!(world.primary.handing_over(), None);
}

#[test]
fn a_replica_that_shares_no_epoch_gets_a_snapshot_chunk_by_chunk() {
    let mut world = World::new(&[1], &[], 1);
    world.sync();
    world.primary.log_starts_at(Lsn(9));
    world.out.clear();
    world.hear(3, state(&[1, 1]));
    let (to, epoch) = (boot(3, 3), Epoch(4));
    assert_eq!(world.out, [Effect::Snapshot { to, least: Lsn(9) }]);
    world.out.clear();
    let base = world.log.end_at(Lsn(9)).expect("there");
    world.primary.snapshot(to, base, 2, &mut world.out);
    assert!(matches!(
        world.out[..],
        [Effect::Send { body: Body::InstallBegin { chunks: 2, .. }, .. }]
    ));
    for index in 0..2 {
        world.out.clear();
        world.hear(3, Body::ChunkDurable { number: 1, next: index });
        assert_eq!(world.out, [Effect::SendChunk { to, epoch, base, number: 1, index }]);
    }
    world.out.clear();
    world.hear(3, Body::Durable(Lsn(9)));
    world.primary.pump(&mut world.out);
    assert!(matches!(world.out[..], [Effect::Replicate { from: Lsn(9), until: Lsn(12), .. }]));
}

#[test]
fn a_replica_that_retention_has_overtaken_is_asked_again_and_gets_a_snapshot() {
    let mut world = World::new(&[1], &[], 1);
    world.sync();
    world.hear(3, state(&[1, 1, 1]));
    world.hear(3, Body::Durable(Lsn(3)));
    world.primary.pump(&mut world.out);
    assert!(matches!(world.out.last(), Some(Effect::Replicate { from: Lsn(3), .. })));
    world.primary.log_starts_at(Lsn(9));
    world.out.clear();
    world.primary.pump(&mut world.out);
    assert_eq!(world.out, [], "there is nothing to send");
    world.hear(3, state(&[1, 1, 1]));
    assert!(matches!(world.out[..], [Effect::Snapshot { least: Lsn(9), .. }]));
}

#[test]
fn what_only_a_primary_says_is_not_heard_and_an_old_one_is_told() {
    let mut world = World::new(&[1, 2], &[], 1);
    world.sync();
    world.out.clear();
    let append = Append { prev: LogEnd::default(), entries: vec![], high_watermark: Lsn(0) };
    assert!(!world.hear(2, Body::Append(append)));
    assert_eq!(world.out, []);
    world.primary.refuse_old(boot(2, 2), &Body::StartEpoch, &mut world.out);
    let (to, epoch) = (boot(2, 2), Epoch(4));
    let body = Body::Refused(Refusal::StaleEpoch(epoch));
    assert_eq!(world.out, [Effect::Send { to, epoch, body }]);
}

#[test]
fn a_barrier_holds_when_every_member_has_answered_in_its_present_boot() {
    let mut world = World::new(&[1, 2, 3], &[], 2);
    world.sync();
    world.follow(2, &[1, 1, 1, 1, 1, 2, 2, 2, 3, 3], 12);
    assert_eq!(world.primary.ask_barrier(&mut world.out), 1);
    world.hear(2, Body::BarrierHeld(1));
    world.hear(3, Body::BarrierHeld(1));
    assert_eq!(world.primary.barrier(), 0, "the epoch's start is not committed");
    world.follow(3, &[1, 1, 1, 1, 1, 2, 2, 2, 3, 3], 12);
    assert_eq!(world.primary.barrier(), 1);
    world.out.clear();
    assert_eq!(world.primary.ask_barrier(&mut world.out), 2);
    assert_eq!(world.out.len(), 2, "each member is asked");
    world.hear(2, Body::BarrierHeld(2));
    world.hear_boot(boot(3, 2), Body::BarrierHeld(2), SECOND);
    world.hear(3, Body::BarrierHeld(3));
    assert_eq!(world.primary.barrier(), 1, "a former boot, and a question that was not asked");
    world.hear(3, Body::BarrierHeld(2));
    assert_eq!(world.primary.barrier(), 2);
}

#[test]
fn the_preferred_replica_is_named_once_it_has_kept_pace_for_long() {
    let mut world = World::new(&[1, 2, 3], &[], 1);
    world.sync();
    for node in [2, 3] {
        world.follow(node, &[1, 1, 1, 1, 1, 2, 2, 2, 3, 3], 12);
    }
    let mut config = world.primary.config().clone();
    config.replicas = [2, 1, 3].map(NodeId).to_vec();
    world.primary.configure(&config, &boots(), SECOND, &mut world.out);
    assert_eq!(world.primary.preferred(SECOND, SECOND), None, "it must keep pace first");
    world.proposed(SECOND);
    world.hear_boot(boot(2, 2), Body::Durable(Lsn(12)), SECOND * 2);
    assert_eq!(world.primary.preferred(SECOND, SECOND * 2), Some(NodeId(2)));
    assert_eq!(world.primary.preferred(SECOND, SECOND * 4), None, "it is not heard any more");
    world.primary.hand_over(NodeId(2), SECOND * 2).expect("it keeps pace");
    assert_eq!(world.primary.preferred(SECOND, SECOND * 2), None);
}

#[test]
fn gaps_are_filled_once_in_a_while_and_not_for_each_message_that_overtook_another() {
    let mut world = World::new(&[1, 2], &[], 1);
    world.sync();
    world.follow(2, &[1, 1, 1, 1, 1, 2, 2, 2, 3, 3], 10);
    let sent = |world: &mut World, now: Duration| {
        world.out.clear();
        world.hear_boot(boot(2, 2), Body::Refused(Refusal::Gap(Lsn(10))), now);
        world.primary.pump(&mut world.out);
        world.out.iter().filter(|effect| matches!(effect, Effect::Replicate { .. })).count()
    };
    world.primary.pump(&mut world.out);
    assert_eq!(sent(&mut world, SECOND), 1);
    assert_eq!(sent(&mut world, SECOND), 0, "the same is on its way");
    assert_eq!(sent(&mut world, SECOND + GAP_RETRY), 1);
}
