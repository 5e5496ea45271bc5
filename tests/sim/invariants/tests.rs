//! A hand-made site in which one thing is wrong at a time: each check must see it.

use std::{rc::Rc, time::Duration};

use bytes::Bytes;

use super::{
    super::view::{Agreed, ClientEvent, Counters, ProcessView, Record},
    COMMITTED_NEVER_CHANGES, Checker, Commit, HALF_INSTALLED_NEVER_COUNTS, Invariants,
    LOGS_END_EQUAL, LOST_DISK_NEVER_COUNTS, Look, MEMBERS_HOLD_COMMITTED, NO_ALARM_WITHOUT_LOSS,
    NO_EPOCH_IS_RESUMED, NodeView, ONE_LEADER_PER_EPOCH, Observed, PRIMARY_HOLDS_COMMITTED,
    QUORUM_CONTAINS_PENDING, Rule, Violation, WATERMARK_IS_COMMITTED, WATERMARK_NEVER_FALLS,
    rule::{
        ACKED_IS_COMMITTED, CONFIG_IS_ONE_SEQUENCE, COPIES_ARE_THERE, DAMAGE_IS_NOT_BUILT_ON,
        ELECTED_FROM_SET, ENOUGH_COPIES, EPOCH_HAS_START, EPOCHS_FOLLOW_FROM_LOG,
        FAILED_IS_NEVER_STORED, FLOOR_IS_COMMITTED, JOINS_IN_CURRENT_BOOT, JOINS_IN_TWO_STEPS,
        NO_CUT_BELOW_WATERMARK, NOTHING_VANISHES, OFFSETS_HAVE_NO_GAPS, PRIMARY_GOES_BY_AGREED,
        PROMISE_IS_DURABLE, PROMISE_NEVER_FALLS, READ_END_NEVER_FALLS, READ_IS_COMMITTED,
        SAME_PLACE_SAME_ENTRY, STALLED_IS_NOT_LED, STORED_ONCE,
    },
};
use crate::{
    replication::{Boots, LogEnd, ShardConfig},
    types::{Boot, Epoch, Incarnation, Lsn, NodeId, Offset, PartitionId, ShardId, TopicId},
    wire::{Entry, EntryHeader, EntryKind},
};

#[derive(Default)]
struct Machine {
    id: u64,
    log: Vec<Rc<Record>>,
    promised: u64,
    watermark: u64,
    installing: bool,
    history: Vec<(Epoch, Lsn)>,
    believes: u64,
}

#[derive(Default)]
struct Site {
    step: u64,
    machines: Vec<Machine>,
    agreed: Vec<Rc<Agreed>>,
    observed: Vec<Observed>,
    events: Vec<ClientEvent>,
    judge: Invariants,
}

impl Look for Site {
    fn step(&self) -> u64 {
        self.step
    }
    fn now(&self) -> Duration {
        Duration::ZERO
    }
    fn nodes(&self) -> usize {
        self.machines.len()
    }
    fn node(&self, index: usize) -> NodeView<'_> {
        let machine = &self.machines[index];
        let leads = (index == 0).then(|| (&self.agreed.last().expect("one").config, true));
        let end = Lsn(machine.log.len() as u64);
        NodeView {
            id: Some(NodeId(machine.id)),
            boot: Some(boot(machine.id)),
            log: &machine.log,
            start: Lsn(0),
            promised: Epoch(machine.promised),
            high_watermark: Lsn(machine.watermark),
            installing: machine.installing,
            process: Some(ProcessView {
                promised: Epoch(machine.believes),
                end,
                high_watermark: Lsn(machine.watermark),
                durable_end: end,
                history: machine.history.clone(),
                settled: true,
                leads,
            }),
        }
    }
    fn agreed(&self) -> &[Rc<Agreed>] {
        &self.agreed
    }
    fn observed(&self) -> &[Observed] {
        &self.observed
    }
    fn history(&self) -> &[ClientEvent] {
        &self.events
    }
    fn counters(&self) -> Counters {
        Counters::default()
    }
}

impl Site {
    /// Node 1 leads epoch 1, node 2 is in the set, node 3 is not; one batch with the value 7 is committed.
    fn good() -> Self {
        let mut site = Self::default();
        let machine = |id| Machine { id, promised: 1, believes: 1, ..Machine::default() };
        site.machines = vec![machine(1), machine(2), machine(3)];
        site.agree(|_, _| {});
        site.agree(|config, boots| {
            config.version = 1;
            config.copies_min = 2;
            (config.set, config.replicas) = (vec![NodeId(1), NodeId(2)], vec![NodeId(1)]);
            boots.extend((1..=3).map(|id| (NodeId(id), Incarnation(id))));
        });
        site.agree(|config, _| {
            (config.version, config.epoch, config.primary) = (2, Epoch(1), Some(boot(1)));
        });
        site.see([Observed::Leads { node: 0, boot: boot(1), epoch: Epoch(1) }]).expect("good");
        for node in 0..2 {
            site.machines[node].history = vec![(Epoch(1), Lsn(0))];
            site.write(node, record(0, 1, EntryKind::EpochStart, 1)).expect("good");
            site.write(node, batch(1, 0, 7)).expect("good");
        }
        site.commit(0, 2, 2, &[1, 2]).expect("good");
        site.machines[..2].iter_mut().for_each(|machine| machine.watermark = 2);
        site.rounds().expect("good");
        site
    }

    fn agree(&mut self, change: impl FnOnce(&mut ShardConfig, &mut Boots)) {
        let index = self.agreed.len() as u64;
        let last = self.agreed.last();
        let mut config = last.map(|agreed| agreed.config.clone()).unwrap_or_default();
        let mut boots = last.map(|agreed| agreed.boots.clone()).unwrap_or_default();
        change(&mut config, &mut boots);
        self.agreed.push(Rc::new(Agreed { index, config, boots }));
    }

    fn see(&mut self, observed: impl IntoIterator<Item = Observed>) -> Result<(), Violation> {
        self.observed = observed.into_iter().collect();
        self.step += 1;
        let mut judge = std::mem::take(&mut self.judge);
        let verdict = judge.check(self);
        self.judge = judge;
        verdict
    }

    /// Every node is looked at.
    fn rounds(&mut self) -> Result<(), Violation> {
        (0..self.machines.len()).try_for_each(|_| self.see([]))
    }

    fn write(&mut self, node: usize, record: Record) -> Result<(), Violation> {
        let from = record.lsn;
        self.machines[node].log.push(Rc::new(record));
        self.see([Observed::Written { node, from }])
    }

    fn commit(&mut self, node: usize, to: u64, version: u64, set: &[u64]) -> Result<(), Violation> {
        let set = set.iter().map(|id| NodeId(*id)).collect();
        let pending: Vec<NodeId> =
            self.agreed.last().expect("one").config.pending.iter().map(|b| b.node).collect();
        let by = Commit { epoch: Epoch(1), version, set, pending, copies_min: 2 };
        let from = self.judge.truth.end();
        self.see([Observed::Committed { node, from, to: Lsn(to), by: Some(by) }])
    }
}

fn boot(id: u64) -> Boot {
    Boot { node: NodeId(id), incarnation: Incarnation(id) }
}

fn record(lsn: u64, epoch: u64, kind: EntryKind, content: u64) -> Record {
    let header = EntryHeader {
        shard: ShardId(0),
        lsn: Lsn(lsn),
        epoch: Epoch(epoch),
        kind,
        chain: content * 1_000 + lsn,
        partition: PartitionId { topic: TopicId(1), index: 0 },
        body_crc: 0,
        body_len: 0,
    };
    let entry = Entry { header, body: Bytes::new() };
    let (lsn, epoch, chain) = (header.lsn, header.epoch, header.chain);
    Record { entry, lsn, epoch, chain, content, values: None }
}

fn batch(lsn: u64, base: u64, value: u64) -> Record {
    let values = Some((0, Offset(base), vec![value]));
    Record { values, ..record(lsn, 1, EntryKind::Records, value) }
}

/// A change of the good site is found by exactly this check.
#[track_caller]
fn finds(rule: Rule, change: impl FnOnce(&mut Site) -> Result<(), Violation>) {
    let found = change(&mut Site::good());
    let name = found.as_ref().err().map(|violation| violation.rule);
    assert_eq!(name, Some(rule.name), "{found:?}");
}

#[test]
fn a_good_site_passes() {
    let mut site = Site::good();
    let mut judge = std::mem::take(&mut site.judge);
    assert_eq!(judge.finish(&site), Ok(()));
}

#[test]
fn what_vanishes_or_falls_on_a_disk_is_found() {
    finds(NOTHING_VANISHES, |site| {
        site.machines[2].log.push(Rc::new(batch(0, 0, 7)));
        site.rounds()
    });
    finds(WATERMARK_NEVER_FALLS, |site| {
        site.machines[1].watermark = 1;
        site.rounds()
    });
    finds(PROMISE_NEVER_FALLS, |site| {
        (site.machines[1].promised, site.machines[1].believes) = (0, 0);
        site.rounds()
    });
    finds(NO_CUT_BELOW_WATERMARK, |site| {
        site.machines[1].log.truncate(1);
        site.see([Observed::Cut { node: 1, end: Lsn(1), by: Epoch(1) }])
    });
}

#[test]
fn what_a_process_believes_and_its_disk_does_not_say_is_found() {
    finds(PROMISE_IS_DURABLE, |site| {
        site.machines[1].believes = 2;
        site.rounds()
    });
    finds(EPOCHS_FOLLOW_FROM_LOG, |site| {
        site.machines[1].history.push((Epoch(2), Lsn(2)));
        site.rounds()
    });
    finds(WATERMARK_IS_COMMITTED, |site| {
        site.see([Observed::Committed { node: 1, from: Lsn(2), to: Lsn(3), by: None }])
    });
}

#[test]
fn entries_that_contradict_each_other_are_found() {
    finds(SAME_PLACE_SAME_ENTRY, |site| {
        site.write(0, batch(2, 1, 8))?;
        site.write(1, batch(2, 1, 9))
    });
    finds(EPOCH_HAS_START, |site| site.write(0, record(2, 2, EntryKind::Records, 1)));
    finds(DAMAGE_IS_NOT_BUILT_ON, |site| {
        site.machines[1].log[1] = Rc::new(batch(1, 0, 9));
        site.see([Observed::Replaced { node: 1 }])?;
        site.write(1, batch(2, 1, 8))
    });
}

#[test]
fn commits_without_those_who_must_have_them_are_found() {
    finds(ENOUGH_COPIES, |site| site.commit(0, 2, 2, &[1]));
    finds(PRIMARY_GOES_BY_AGREED, |site| site.commit(0, 2, 2, &[1, 3]));
    finds(PRIMARY_HOLDS_COMMITTED, |site| site.commit(0, 3, 2, &[1, 2]));
    finds(MEMBERS_HOLD_COMMITTED, |site| {
        site.write(0, batch(2, 1, 8))?;
        site.commit(0, 3, 2, &[1, 2])
    });
    let pending = |site: &mut Site| {
        site.agree(|config, _| (config.version, config.pending) = (3, vec![boot(3)]));
        site.rounds()
    };
    finds(QUORUM_CONTAINS_PENDING, |site| {
        pending(site)?;
        site.commit(0, 2, 3, &[1, 2])
    });
    finds(MEMBERS_HOLD_COMMITTED, |site| {
        pending(site)?;
        site.agree(|config, _| {
            (config.version, config.pending) = (4, Vec::new());
            config.set.push(NodeId(3));
        });
        site.rounds()
    });
    finds(COMMITTED_NEVER_CHANGES, |site| site.commit(2, 2, 2, &[1, 2]));
}

#[test]
fn illegal_steps_of_the_metadata_are_found() {
    let agrees = |rule: Rule, change: fn(&mut ShardConfig, &mut Boots)| {
        finds(rule, |site| {
            site.agree(change);
            site.rounds()
        });
    };
    agrees(CONFIG_IS_ONE_SEQUENCE, |config, _| config.version += 2);
    agrees(CONFIG_IS_ONE_SEQUENCE, |config, _| config.primary = Some(boot(2)));
    agrees(ELECTED_FROM_SET, |config, _| {
        (config.version, config.epoch, config.primary) = (3, Epoch(2), Some(boot(3)));
    });
    agrees(JOINS_IN_TWO_STEPS, |config, _| {
        config.version = 3;
        config.set.push(NodeId(3));
    });
    agrees(ENOUGH_COPIES, |config, _| (config.version, config.set) = (3, vec![NodeId(1)]));
    agrees(FLOOR_IS_COMMITTED, |config, _| {
        config.floor = Some(LogEnd { lsn: Lsn(3), epoch: Epoch(1), chain: 1 });
    });
    finds(JOINS_IN_CURRENT_BOOT, |site| {
        site.agree(|config, _| (config.version, config.pending) = (3, vec![boot(3)]));
        site.agree(|config, boots| {
            (config.version, config.pending) = (4, Vec::new());
            config.set.push(NodeId(3));
            boots.insert(NodeId(3), Incarnation(9));
        });
        site.rounds()
    });
    finds(STALLED_IS_NOT_LED, |site| {
        site.agree(|config, _| (config.version, config.stalled) = (3, true));
        site.agree(|config, _| (config.version, config.epoch) = (4, Epoch(2)));
        site.rounds()
    });
}

#[test]
fn leaders_that_may_not_lead_are_found() {
    let leads = |node, id, epoch| Observed::Leads { node, boot: boot(id), epoch: Epoch(epoch) };
    finds(NO_EPOCH_IS_RESUMED, |site| site.see([leads(0, 1, 1)]));
    finds(ONE_LEADER_PER_EPOCH, |site| site.see([leads(1, 2, 1)]));
    finds(ONE_LEADER_PER_EPOCH, |site| site.see([leads(1, 2, 2)]));
}

#[test]
fn disks_that_lost_something_and_count_are_found() {
    finds(LOST_DISK_NEVER_COUNTS, |site| {
        site.machines[1].log.truncate(1);
        site.machines[1].watermark = 1;
        site.see([Observed::Replaced { node: 1 }])?;
        site.agree(|_, boots| boots.extend([(NodeId(2), Incarnation(9))]));
        site.rounds()
    });
    finds(HALF_INSTALLED_NEVER_COUNTS, |site| {
        site.machines[1].log.clear();
        site.machines[1].installing = true;
        site.see([Observed::InstallBegan { node: 1 }])
    });
    finds(NO_ALARM_WITHOUT_LOSS, |site| {
        site.see([Observed::Alarm { node: 1, text: "ChainMismatch".to_owned() }])
    });
}

/// A member is counted, loses its disk, and is removed; the primary hears of the removal in the step in which it commits
/// and acks (seed 2517).
#[test]
fn a_copy_that_was_counted_and_lost_since_was_there() {
    let with_copies = |copies| {
        let mut site = Site::good();
        for node in 0..2 {
            site.write(node, batch(2, 1, 8)).expect("good");
        }
        let lost = &mut site.machines[1];
        *lost = Machine { id: 4, ..Machine::default() };
        site.see([Observed::Replaced { node: 1 }]).expect("a disk may be lost");
        site.agree(|config, _| (config.version, config.set) = (3, vec![NodeId(1)]));
        let (set, pending) = (vec![NodeId(1), NodeId(2)], vec![]);
        let by = Commit { epoch: Epoch(1), version: 2, set, pending, copies_min: 2 };
        let (partition, base, epoch) = (0, Offset(1), Epoch(1));
        site.see([
            Observed::Committed { node: 0, from: Lsn(2), to: Lsn(3), by: Some(by) },
            Observed::Acked { node: 0, value: 8, partition, base, copies, epoch },
        ])
    };
    assert_eq!(with_copies(2), Ok(()));
    assert_eq!(with_copies(3).map_err(|found| found.rule), Err(COPIES_ARE_THERE.name));
}

#[test]
fn acks_and_reads_of_what_is_not_committed_are_found() {
    let acked = |value, copies| Observed::Acked {
        node: 0,
        value,
        partition: 0,
        base: Offset(0),
        copies,
        epoch: Epoch(1),
    };
    finds(ACKED_IS_COMMITTED, |site| site.see([acked(8, 2)]));
    finds(COPIES_ARE_THERE, |site| site.see([acked(7, 3)]));
    let poll = |got: &[(u64, u64)], end| ClientEvent::Poll {
        client: 0,
        node: 0,
        partition: 0,
        from: Offset(0),
        got: got.iter().map(|(offset, value)| (Offset(*offset), *value)).collect(),
        end: Offset(end),
    };
    for (got, end) in [(&[(0, 8)][..], 1), (&[(1, 7)], 1), (&[], 1), (&[(0, 7)], 2)] {
        finds(READ_IS_COMMITTED, |site| {
            site.events.push(poll(got, end));
            site.see([])
        });
    }
    finds(READ_END_NEVER_FALLS, |site| {
        site.events.extend([poll(&[(0, 7)], 1), poll(&[], 0)]);
        site.see([])
    });
    finds(FAILED_IS_NEVER_STORED, |site| {
        site.events.push(ClientEvent::Fail { client: 0, values: vec![7] });
        site.see([])
    });
    let commits = |rule: Rule, record: Record| {
        finds(rule, |site| {
            site.write(0, record.clone())?;
            site.write(1, record)?;
            site.commit(0, 3, 2, &[1, 2])
        });
    };
    commits(STORED_ONCE, batch(2, 1, 7));
    commits(OFFSETS_HAVE_NO_GAPS, batch(2, 5, 8));
}

#[test]
fn logs_that_end_unequal_are_found() {
    finds(LOGS_END_EQUAL, |site| {
        site.write(0, batch(2, 1, 8))?;
        let mut judge = std::mem::take(&mut site.judge);
        judge.finish(site)
    });
}
