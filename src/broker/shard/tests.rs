use super::{
    super::applied::{Applied, Checkpoint},
    *,
};
use crate::{
    limits::FENCE_AFTER,
    replication::{Boots, EpochHistory, LocalLog, LogEntry, ShardConfig, Stored},
    types::{Boot, Epoch, Incarnation, NodeId, Sequence, TopicId},
    wire::{BatchBuilder, Compression, Record, batch},
};

const ME: NodeId = NodeId(1);
const P: PartitionId = PartitionId { topic: TopicId(5), index: 0 };
const Q: PartitionId = PartitionId { topic: TopicId(5), index: 1 };

/// A shard with its driver: effects are sorted as they come, the disk is a position.
struct World {
    shard: Shard<&'static str>,
    /// What every replica keeps of the log: it makes the checkpoints.
    applied: Applied,
    log: Vec<Entry>,
    acks: Vec<(&'static str, Ack)>,
    refused: Vec<(&'static str, Reject)>,
    views: BTreeMap<PartitionId, PartitionView>,
    out: Vec<Effect<&'static str>>,
}

/// What a restart finds.
#[derive(Default)]
struct Found {
    stored: Stored,
    recovery: Recovery,
}

fn primary(epoch: u64, stored: Stored) -> Primary<Entry> {
    let me = Boot { node: ME, incarnation: Incarnation(epoch) };
    let config = ShardConfig {
        epoch: Epoch(epoch),
        primary: Some(me),
        set: vec![ME],
        copies_min: 1,
        ..ShardConfig::default()
    };
    Primary::begin(me, config, &Boots::new(), LocalLog::new(stored), FENCE_AFTER, Duration::ZERO)
}

impl World {
    fn new() -> Self {
        Self::begin(1, Found::default())
    }

    fn begin(epoch: u64, found: Found) -> Self {
        let mut out = Vec::new();
        let applied = Applied::new(found.recovery, found.stored.high_watermark).expect("own work");
        let primary = primary(epoch, found.stored);
        let recovery = applied.recovery().expect("own work");
        let shard = Shard::begin(ShardId(0), primary, recovery, Timestamp(1), &mut out);
        let mut world = Self {
            shard: shard.expect("own work"),
            applied,
            log: vec![],
            acks: vec![],
            refused: vec![],
            views: BTreeMap::new(),
            out,
        };
        world.perform();
        world
    }

    fn with_partition() -> Self {
        let mut world = Self::new();
        world.shard.create(P, b"topic", &mut world.out);
        world.shard.create(Q, b"topic", &mut world.out);
        world.sync();
        world
    }

    fn perform(&mut self) {
        for effect in self.out.drain(..) {
            match effect {
                Effect::Append(entry) => {
                    self.applied.append(&entry);
                    self.log.push(entry);
                }
                Effect::Ack(who, ack) => self.acks.push((who, ack)),
                Effect::Refuse(waiter, reject) => self.refused.push((waiter.handle, reject)),
                Effect::Committed(c) => drop(self.views.insert(c.partition, c.view)),
                Effect::Dropped(partition) => drop(self.views.remove(&partition)),
                Effect::Replication(replication::Effect::Committed(end)) => {
                    self.applied.commit_to(end, &mut Vec::new()).expect("own work");
                }
                Effect::Unknown(_) | Effect::Replication(_) => {
                    unreachable!("a set of one sends nothing and forgets nobody")
                }
            }
        }
    }

    /// The disk takes all that was appended.
    fn sync(&mut self) {
        self.perform();
        self.written(self.log.len());
    }

    /// The disk has done so many of the entries of this epoch.
    fn written(&mut self, entries: usize) {
        self.shard.lead(&mut self.out, |primary, asked| primary.written(entries as u64, asked));
        self.perform();
    }

    fn expire(&mut self, wall: Timestamp, now: Duration) {
        self.shard.expire_producers(wall, now, 10, &mut self.out);
    }

    fn publish(&mut self, who: &'static str, producer: u128, sequence: u64, records: u32) {
        self.publish_to(P, who, producer, sequence, records, Acks::Replicated);
    }

    fn publish_to(
        &mut self,
        partition: PartitionId,
        who: &'static str,
        producer: u128,
        sequence: u64,
        records: u32,
        acks: Acks,
    ) {
        let mut builder = BatchBuilder::new(10_000);
        (0..records).for_each(|_| drop(builder.push(&Record::new("x"))));
        let bytes = builder.finish(Compression::None, ProducerId(producer), Sequence(sequence));
        let input = PublishInput {
            waiter: Waiter { handle: who, index: sequence },
            partition,
            acks,
            require_copies: 0,
            header: batch::check(&bytes).expect("own work"),
            batch: BytesMut::from(&bytes[..]),
        };
        self.shard.publish(input, Timestamp(50), &mut self.out);
        self.perform();
    }

    fn acked(&mut self) -> Vec<(&'static str, u64)> {
        self.acks.drain(..).map(|(who, ack)| (who, ack.base_offset.0)).collect()
    }

    /// Restarts on what was appended and a checkpoint of it.
    fn reopen(self, checkpoint: Checkpoint) -> Self {
        let mut found = self.crash();
        found.recovery.tail.retain(|e| e.header.lsn >= checkpoint.applied);
        found.stored.high_watermark = checkpoint.applied;
        for (partition, producer, state) in checkpoint.put {
            found.recovery.add_producer(partition, producer, &state).expect("own work");
        }
        Self::begin(2, found)
    }

    /// What a restart finds when storage had checkpointed nothing.
    fn crash(self) -> Found {
        let mut bounds = BTreeMap::new();
        for entry in &self.log {
            match entry.header.kind {
                EntryKind::PartitionCreate => {
                    bounds.insert(entry.header.partition, (Offset(0), Offset(0), Timestamp(0)));
                }
                EntryKind::Records => {
                    let header = entry.batch_header().expect("own work");
                    let known = bounds.get_mut(&entry.header.partition).expect("created");
                    (known.1, known.2) = (header.end_offset(), header.append_time);
                }
                EntryKind::Trim => {
                    bounds.get_mut(&entry.header.partition).expect("created").0 =
                        entry.trim_start().expect("own work");
                }
                EntryKind::PartitionDrop => drop(bounds.remove(&entry.header.partition)),
                EntryKind::EpochStart | EntryKind::ProducerExpire => {}
            }
        }
        let end = self.log.last().expect("an epoch start at least").end();
        let history = EpochHistory::new(self.log.iter().map(|e| (e.header.epoch, e.header.lsn)));
        let recovery = Recovery {
            partitions: bounds.into_iter().map(|(id, (s, e, t))| (id, s, e, t)).collect(),
            producers: vec![],
            tail: self.log,
        };
        Found { stored: Stored { end, history, ..Stored::default() }, recovery }
    }
}

#[test]
fn an_ack_waits_for_the_disk() {
    let mut world = World::with_partition();
    world.publish("a", 0, 0, 3);
    world.publish("b", 0, 0, 2);
    assert_eq!(world.acked(), []);
    assert_eq!(world.views[&P].end, Offset(0), "nobody reads what is not committed");
    world.sync();
    assert_eq!(world.acked(), [("a", 0), ("b", 3)]);
    assert_eq!(world.views[&P], PartitionView { start: Offset(0), end: Offset(5) });
}

#[test]
fn an_ack_of_level_none_waits_for_nothing_and_says_so() {
    let mut world = World::with_partition();
    world.publish_to(P, "a", 0, 0, 1, Acks::None);
    assert_eq!((world.acks[0].1.level, world.acks[0].1.copies), (Acks::None, 0));
}

#[test]
fn an_ack_says_the_level_that_was_reached() {
    let mut world = World::with_partition();
    world.publish_to(P, "a", 0, 0, 1, Acks::Local);
    world.sync();
    assert_eq!(world.acks[0].1.copies, 1);
}

#[test]
fn a_batch_that_is_sent_again_is_stored_once() {
    let mut world = World::with_partition();
    world.publish("first", 7, 0, 2);
    world.publish("again, before the commit", 7, 0, 2);
    assert_eq!(world.acked(), [], "the duplicate waits for the original's commit");
    world.sync();
    assert_eq!(world.acked(), [("first", 0), ("again, before the commit", 0)]);
    world.publish("again, after it", 7, 0, 2);
    assert_eq!(world.acked(), [("again, after it", 0)]);
    assert_eq!(world.views[&P].end, Offset(2));
}

#[test]
fn producers_are_known_by_partition() {
    let mut world = World::with_partition();
    world.publish_to(Q, "other partition", 7, 0, 1, Acks::Replicated);
    world.publish("gap in this one", 7, 1, 1);
    let reject = Reject::UnknownProducer { sequence: Sequence(1) };
    assert_eq!(world.refused, [("gap in this one", reject)]);
}

#[test]
fn a_gap_is_refused_and_leaves_no_trace() {
    let mut world = World::with_partition();
    world.publish("a", 7, 0, 1);
    let entries = world.log.len();
    world.publish("c", 7, 2, 1);
    let reject = Reject::SequenceGap { sequence: Sequence(2), expected: Sequence(1) };
    assert_eq!(world.refused, [("c", reject)]);
    assert_eq!(world.log.len(), entries);
    world.publish("b", 7, 1, 1);
    world.publish("c", 7, 2, 1);
    world.sync();
    assert_eq!(world.acked(), [("a", 0), ("b", 1), ("c", 2)]);
}

#[test]
fn a_restart_remembers_producers_from_the_log_and_starts_a_new_epoch() {
    let mut world = World::with_partition();
    world.publish("a", 7, 0, 2);
    world.sync();
    world.publish("b, never acked", 7, 1, 2);
    let mut world = World::begin(2, world.crash());
    assert_eq!(world.log[0].header.epoch, Epoch(2));
    assert_eq!(world.log[0].header.kind, EntryKind::EpochStart);
    world.publish("b, sent again", 7, 1, 2);
    assert_eq!(world.acked(), [], "the end of the log is not known to be committed yet");
    world.sync();
    assert_eq!(world.acked(), [("b, sent again", 2)]);
    assert_eq!(world.views[&P].end, Offset(4));
}

#[test]
fn a_checkpoint_and_the_tail_make_the_same_state() {
    let mut world = World::with_partition();
    world.publish("a", 7, 0, 1);
    world.sync();
    world.publish("b", 7, 1, 1);
    let checkpoint = world.applied.checkpoint();
    let mut world = world.reopen(checkpoint);
    world.sync();
    world.publish("a again", 7, 0, 1);
    world.publish("b again", 7, 1, 1);
    world.publish("c", 7, 2, 1);
    world.sync();
    assert_eq!(world.acked(), [("a again", 0), ("b again", 1), ("c", 2)]);
    assert_eq!(world.refused, []);
}

#[test]
fn a_checkpoint_says_what_changed_since_the_last_one() {
    let mut world = World::with_partition();
    world.publish("a", 7, 0, 1);
    world.sync();
    assert_eq!(world.applied.checkpoint().put.len(), 1);
    assert_eq!(world.applied.checkpoint().put.len(), 0);
    world.publish("b", 7, 1, 1);
    assert_eq!(world.applied.checkpoint().put.len(), 0, "not committed yet: as it was");
    world.sync();
    assert_eq!(world.applied.checkpoint().put.len(), 1, "and now as it is");
    world.shard.drop_partition(P, &mut world.out);
    let checkpoint = world.applied.checkpoint();
    assert_eq!(checkpoint.delete, [], "the drop is not committed yet");
    assert_eq!(checkpoint.put, [], "what a restart before the drop needs stays as it was stored");
    world.sync();
    assert_eq!(world.applied.checkpoint().delete, [(P, ProducerId(7))]);
}

#[test]
fn a_checkpoint_before_an_expiry_is_committed_holds_the_producer_as_it_was() {
    let mut world = World::with_partition();
    world.publish("a", 7, 0, 1);
    world.sync();
    let _ = world.applied.checkpoint();
    world.publish("b", 7, 1, 1);
    world.sync();
    let later = Timestamp(51 + u64::try_from(PRODUCER_IDLE_MAX.as_millis()).expect("fits"));
    world.expire(later, Duration::ZERO);
    world.expire(later, PRODUCER_SILENCE_MIN);
    let checkpoint = world.applied.checkpoint();
    // The power goes before the expiry is on the disk.
    world.out.clear();
    let mut world = world.reopen(checkpoint);
    world.sync();
    world.publish("b again", 7, 1, 1);
    assert_eq!(world.acked(), [("b again", 1)]);
}

#[test]
fn state_of_a_partition_that_is_gone_is_deleted_by_the_next_checkpoint() {
    let mut found = World::with_partition().crash();
    let nowhere = PartitionId { topic: TopicId(99), index: 0 };
    found.recovery.add_producer(nowhere, ProducerId(7), &[]).expect("empty state");
    let mut world = World::begin(2, found);
    world.sync();
    assert_eq!(world.applied.checkpoint().delete, [(nowhere, ProducerId(7))]);
}

#[test]
fn what_is_appended_behind_the_epoch_start_is_not_committed_with_it() {
    let mut world = World::with_partition();
    world.publish("a", 0, 0, 2);
    let mut world = World::begin(2, world.crash());
    world.publish("b", 0, 0, 3);
    // The start of the epoch alone.
    world.written(1);
    assert_eq!(world.views[&P].end, Offset(2));
}

#[test]
fn the_stalest_producer_makes_room() {
    let mut world = World::with_partition();
    for id in 1..=PRODUCERS_PER_PARTITION_MAX as u128 + 1 {
        world.publish("p", id, 0, 1);
    }
    world.sync();
    let expired: Vec<_> = world
        .log
        .iter()
        .filter(|e| e.header.kind == EntryKind::ProducerExpire)
        .map(|e| e.expired_producer())
        .collect();
    assert_eq!(expired, [Ok(ProducerId(1))]);
    world.publish("forgotten", 1, 1, 1);
    assert_eq!(world.refused.len(), 1);
}

#[test]
fn silent_producers_are_forgotten() {
    let mut world = World::with_partition();
    world.publish("a", 7, 0, 1);
    world.sync();
    world.expire(Timestamp(51), PRODUCER_SILENCE_MIN);
    assert!(world.out.is_empty());
    let later = Timestamp(51 + u64::try_from(PRODUCER_IDLE_MAX.as_millis()).expect("fits"));
    world.expire(later, PRODUCER_SILENCE_MIN);
    world.expire(later, PRODUCER_SILENCE_MIN * 2);
    world.sync();
    world.publish("b", 7, 1, 1);
    assert!(matches!(world.refused[0].1, Reject::UnknownProducer { .. }));
}

#[test]
fn a_wall_clock_alone_forgets_no_producer() {
    let mut world = World::with_partition();
    world.publish("a", 7, 0, 1);
    world.sync();
    let years = Timestamp(51 + 10 * 365 * 24 * 3_600_000);
    let minute = Duration::from_secs(60);
    world.expire(years, Duration::ZERO);
    world.expire(years, PRODUCER_SILENCE_MIN - minute);
    assert!(world.out.is_empty(), "a jump of the clock is no silence");
    world.publish("b", 7, 1, 1);
    world.sync();
    world.expire(Timestamp(60), PRODUCER_SILENCE_MIN);
    world.expire(years, PRODUCER_SILENCE_MIN);
    world.expire(years, PRODUCER_SILENCE_MIN * 2 - minute);
    assert!(world.out.is_empty(), "what it wrote begins the silence anew");
    world.expire(years, PRODUCER_SILENCE_MIN * 2);
    assert!(!world.out.is_empty());
}

#[test]
fn a_trim_moves_the_start_once_it_is_committed_and_never_past_the_end() {
    let mut world = World::with_partition();
    world.publish("a", 0, 0, 5);
    world.sync();
    world.publish("b, not committed", 0, 0, 5);
    world.shard.trim(P, Offset(9), &mut world.out);
    world.perform();
    assert_eq!(world.views[&P].start, Offset(0));
    let entries = world.log.len();
    world.shard.trim(P, Offset(5), &mut world.out);
    world.perform();
    assert_eq!(world.log.len(), entries, "the same trim is not logged twice");
    world.sync();
    assert_eq!(world.views[&P], PartitionView { start: Offset(5), end: Offset(10) });
}

#[test]
fn a_dropped_partition_takes_nothing_and_acks_what_it_had() {
    let mut world = World::with_partition();
    world.publish("a", 0, 0, 1);
    world.shard.drop_partition(P, &mut world.out);
    world.publish("b", 0, 0, 1);
    assert_eq!(world.refused, [("b", Reject::UnknownPartition(P))]);
    world.sync();
    assert_eq!(world.acked(), [("a", 0)]);
    assert!(!world.views.contains_key(&P));
}

#[test]
fn append_times_never_go_back() {
    let mut world = World::with_partition();
    world.publish("a", 0, 0, 1);
    let time = |world: &World| {
        world.log.last().and_then(|e| e.batch_header().ok()).expect("records").append_time
    };
    assert_eq!(time(&world), Timestamp(50));
    world.shard.partitions.get_mut(&P).expect("there").newest = Timestamp(90);
    world.publish("b", 0, 0, 1);
    assert_eq!(time(&world), Timestamp(90));
}

#[test]
fn entries_are_chained() {
    let mut world = World::with_partition();
    world.publish("a", 0, 0, 1);
    let mut chain = 0;
    for (n, entry) in world.log.iter().enumerate() {
        assert_eq!(entry.header.lsn, Lsn(n as u64));
        assert_eq!(entry.header.chain, entry.header.chain_after(chain));
        chain = entry.header.chain;
    }
}
