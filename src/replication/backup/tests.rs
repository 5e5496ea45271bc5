use super::*;
use crate::{
    replication::{
        Stored,
        fixture::{Bare, BareLog, after, boot},
        history::EpochHistory,
        message::Chunk,
    },
    types::ShardId,
};

/// A backup with its disk: what is asked is durable at once, unless a test holds it back.
struct World {
    backup: Backup<Bare>,
    log: BareLog,
    sent: Vec<Body<Bare>>,
    alarms: Vec<Alarm>,
    asked: u64,
}

impl World {
    fn holding(epochs: &[u64], high_watermark: u64) -> Self {
        let log = BareLog::of(epochs);
        let history =
            EpochHistory::new(log.0.iter().map(|e| (e.end().epoch, Lsn(e.end().lsn.0 - 1))));
        let high_watermark = Lsn(high_watermark);
        let stored = Stored { history, end: log.end(), high_watermark, ..Stored::default() };
        let backup = Backup::new(LocalLog::new(stored));
        Self { backup, log, sent: vec![], alarms: vec![], asked: 0 }
    }

    fn tell(&mut self, epoch: u64, body: Body<Bare>) -> &mut Self {
        self.tell_from(boot(1, 1), epoch, body)
    }

    fn tell_from(&mut self, from: Boot, epoch: u64, body: Body<Bare>) -> &mut Self {
        let envelope =
            Envelope { shard: ShardId(0), epoch: Epoch(epoch), from, to: boot(2, 2), body };
        let mut out = Vec::new();
        self.backup.message(envelope, &self.log, &mut out);
        self.perform(out);
        self
    }

    fn sync(&mut self) {
        let mut out = Vec::new();
        self.backup.log_mut().written(self.asked, &mut out);
        self.perform(out);
    }

    fn perform(&mut self, out: Vec<Effect<Bare>>) {
        for effect in out {
            match effect {
                Effect::Append(entry) => {
                    self.log.0.push(entry);
                    self.asked += 1;
                }
                Effect::Change(change) => {
                    if let super::super::LogChange::Truncate(end) = change {
                        self.log.0.truncate(usize::try_from(end.0).expect("small"));
                    }
                    self.asked += 1;
                }
                Effect::Send { body, .. } => self.sent.push(body),
                Effect::Alarm(alarm) => self.alarms.push(alarm),
                _ => {}
            }
        }
    }

    fn last(&self) -> Option<&Body<Bare>> {
        self.sent.last()
    }
}

fn append(prev: LogEnd, epoch: u64, high_watermark: u64) -> (Bare, Body<Bare>) {
    let entry = after(prev, epoch, 0);
    let high_watermark = Lsn(high_watermark);
    (entry, Body::Append(Append { prev, entries: vec![entry], high_watermark }))
}

#[test]
fn nothing_is_said_before_the_promise_is_durable() {
    let mut world = World::holding(&[1, 1], 1);
    world.tell(2, Body::StartEpoch);
    assert_eq!(world.last(), None);
    world.sync();
    assert!(matches!(world.last(), Some(Body::State(state)) if state.end.lsn == Lsn(2)));
}

#[test]
fn an_older_epoch_is_refused_once_a_newer_is_promised() {
    let mut world = World::holding(&[1], 0);
    world.tell(3, Body::StartEpoch).tell_from(boot(4, 4), 2, Body::StartEpoch).sync();
    assert_eq!(world.last(), Some(&Body::Refused(Refusal::StaleEpoch(Epoch(3)))));
}

#[test]
fn a_log_is_continued_only_when_it_was_aligned_in_this_epoch() {
    let mut world = World::holding(&[1, 1, 2], 2);
    let (_, entries) = append(world.log.end(), 3, 0);
    world.tell(3, entries).sync();
    assert_eq!(world.last(), Some(&Body::Refused(Refusal::NotAligned)));
    let common = world.log.end_at(Lsn(2)).expect("there");
    world.tell(3, Body::Align(common)).sync();
    assert_eq!(world.last(), Some(&Body::Durable(Lsn(2))));
    assert_eq!(world.backup.log().history().last_epoch(), Epoch(1));
    let (_, entries) = append(common, 3, 3);
    world.tell(3, entries.clone()).sync();
    assert_eq!(world.last(), Some(&Body::Durable(Lsn(3))));
    assert_eq!(world.backup.log().high_watermark(), Lsn(3));
    world.tell(3, Body::Align(common)).tell(3, entries).sync();
    assert_eq!(world.backup.log().end().lsn, Lsn(3), "late and doubled messages change nothing");
}

#[test]
fn what_is_committed_is_not_cut_off() {
    let mut world = World::holding(&[1, 1, 2], 3);
    let common = world.log.end_at(Lsn(2)).expect("there");
    world.tell(3, Body::Align(common)).sync();
    assert_eq!(world.last(), Some(&Body::Refused(Refusal::Diverged)));
    let (common, high_watermark) = (Lsn(2), Lsn(3));
    assert_eq!(world.alarms, [Alarm::DivergedBelowHighWatermark { common, high_watermark }]);
    world.tell(3, Body::StartEpoch).sync();
    assert_eq!(world.last(), Some(&Body::Refused(Refusal::Diverged)), "for the rest of this boot");
}

#[test]
fn equal_places_with_unequal_content_are_an_alarm() {
    let mut world = World::holding(&[1, 1], 0);
    let other = LogEnd { chain: 999, ..world.log.end() };
    world.tell(2, Body::Align(other)).sync();
    assert_eq!(world.alarms, [Alarm::ChainMismatch { at: Lsn(2) }]);
}

#[test]
fn a_gap_is_refused_and_a_full_disk_takes_nothing() {
    let mut world = World::holding(&[1], 0);
    let end = world.log.end();
    world.tell(2, Body::Align(end));
    let (first, entries) = append(end, 2, 0);
    let (_, behind) = append(first.end(), 2, 0);
    world.tell(2, behind).sync();
    assert_eq!(world.last(), Some(&Body::Refused(Refusal::Gap(Lsn(1)))));
    world.backup.set_disk_full(true);
    world.tell(2, entries).sync();
    assert_eq!(world.last(), Some(&Body::Refused(Refusal::DiskFull)));
}

#[test]
fn an_install_counts_only_when_its_last_chunk_is_durable() {
    let mut world = World::holding(&[1], 0);
    let source = BareLog::of(&[2, 2, 3]);
    let (base, history) =
        (source.end(), EpochHistory::new([(Epoch(2), Lsn(0)), (Epoch(3), Lsn(2))]));
    let begin = |number| Body::InstallBegin { number, base, history: history.clone(), chunks: 2 };
    let chunk_of = |number, index| Body::InstallChunk {
        number,
        index,
        chunk: Chunk { entries: vec![], state: vec![] },
    };
    let chunk = |index| chunk_of(2, index);
    world.tell(3, begin(2)).sync();
    assert_eq!(world.last(), Some(&Body::ChunkDurable { number: 2, next: 0 }));
    // Of another snapshot with the same base: it is cut otherwise.
    world.tell(3, chunk_of(1, 0)).tell(3, begin(1)).sync();
    assert_eq!(world.last(), Some(&Body::ChunkDurable { number: 2, next: 0 }));
    world.tell(3, chunk(0)).tell(3, chunk(0)).tell(3, begin(2)).sync();
    assert_eq!(world.last(), Some(&Body::ChunkDurable { number: 2, next: 1 }));
    assert!(world.backup.log().is_installing());
    world.tell(3, chunk(1));
    assert_eq!(world.last(), Some(&Body::ChunkDurable { number: 2, next: 1 }), "not durable yet");
    world.sync();
    assert_eq!(world.last(), Some(&Body::Durable(Lsn(3))));
    let log = world.backup.log();
    assert_eq!((log.is_installing(), log.end(), log.high_watermark()), (false, base, Lsn(3)));
}

#[test]
fn a_backup_that_follows_lets_itself_be_installed_when_the_primary_has_no_more_what_comes_next() {
    let mut world = World::holding(&[1], 0);
    world.tell(3, Body::StartEpoch).sync();
    let common = world.backup.log().end();
    world.tell(3, Body::Align(common)).sync();
    assert_eq!(world.last(), Some(&Body::Durable(Lsn(1))));
    let source = BareLog::of(&[2, 2, 3]);
    let history = EpochHistory::new([(Epoch(2), Lsn(0)), (Epoch(3), Lsn(2))]);
    let begin = |base| Body::InstallBegin { number: 1, base, history: history.clone(), chunks: 1 };
    // Late: of before the logs were aligned.
    world.tell(3, begin(common)).sync();
    assert_eq!(world.last(), Some(&Body::Durable(Lsn(1))));
    world.tell(3, begin(source.end())).sync();
    assert_eq!(world.last(), Some(&Body::ChunkDurable { number: 1, next: 0 }));
    assert!(world.backup.log().is_installing());
}

#[test]
fn what_other_replicas_say_to_a_former_primary_makes_nobody_a_leader() {
    let mut world = World::holding(&[1], 0);
    world.tell_from(boot(7, 7), 2, Body::Durable(Lsn(1)));
    world.tell(2, Body::StartEpoch).sync();
    assert!(matches!(world.last(), Some(Body::State(_))));
}
