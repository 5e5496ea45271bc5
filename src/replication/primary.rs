//! The primary of one shard: gives entries their place, brings replicas to the same log, and knows how far it is
//! committed.

use std::{collections::BTreeMap, time::Duration};

use super::{
    config::{Boots, ShardConfig},
    effect::{Alarm, Effect},
    entry::{LogEnd, LogEntry, LogView},
    follower::{Follower, Progress, Sending},
    hand_over::HandOver,
    history::EpochHistory,
    local_log::LocalLog,
    message::{Body, Envelope, FollowerState, Refusal},
    mutant,
    set_change::Proposed,
};
use crate::{
    limits::{APPEND_WINDOW_ENTRIES, GAP_RETRY, HEARTBEAT, REPLICA_RETRY},
    types::{Boot, Epoch, Lsn, NodeId},
};

/// The primary of one shard in one epoch.
#[derive(Clone, Debug)]
pub struct Primary<E> {
    pub(super) me: Boot,
    pub(super) config: ShardConfig,
    pub(super) log: LocalLog<E>,
    pub(super) epoch_start: Lsn,
    /// Installs that were begun.
    installs: u32,
    /// Every other node that holds the shard, or should.
    pub(super) followers: BTreeMap<NodeId, Follower>,
    pub(super) hand_over: Option<HandOver>,
    pub(super) proposed: Option<Proposed>,
    pub(super) floor_at: Duration,
    /// Number of the last question whether this epoch still holds.
    pub(super) barrier: u64,
    /// When a hand-over was begun last, or the epoch.
    pub(super) handed_at: Duration,
    /// A member that may not be removed is down.
    stuck: bool,
    /// The time of the last input that had one.
    pub(super) now: Duration,
    /// No silence shorter than this means that a replica is down.
    fence: Duration,
}

/// The commit set is smaller than the site asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{have} copies can be written, {need} are required")]
pub struct NotEnoughCopies {
    /// Copies that can be written.
    pub have: u32,
    /// Copies that are required.
    pub need: u32,
}

impl<E: LogEntry> Primary<E> {
    /// Begins the epoch for which this boot was elected. The first entry that it appends must be the epoch's start.
    #[must_use]
    pub fn begin(
        me: Boot,
        config: ShardConfig,
        boots: &Boots,
        log: LocalLog<E>,
        fence: Duration,
        now: Duration,
    ) -> Self {
        let elected = config.primary == Some(me) || mutant!(ResumeEpoch);
        assert!(elected, "only the elected boot begins an epoch");
        let resumed = config.epoch == log.history().last_epoch() && mutant!(ResumeEpoch);
        assert!(
            config.epoch > log.history().last_epoch() || resumed,
            "an epoch of the log is never resumed"
        );
        assert!(config.epoch >= log.promised(), "a promise is kept");
        let epoch_start = log.end().lsn;
        let mut primary = Self {
            me,
            config,
            log,
            fence,
            epoch_start,
            installs: 0,
            followers: BTreeMap::new(),
            hand_over: None,
            proposed: None,
            floor_at: now,
            barrier: 0,
            handed_at: now,
            stuck: false,
            now,
        };
        primary.know(boots, now);
        primary
    }

    /// The boot that leads.
    #[must_use]
    pub fn me(&self) -> Boot {
        self.me
    }

    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.config.epoch
    }

    /// The shard as the newest metadata that was applied here says.
    #[must_use]
    pub fn config(&self) -> &ShardConfig {
        &self.config
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> &LocalLog<E> {
        &self.log
    }

    /// Gives the log to another role.
    #[must_use]
    pub fn into_log(self) -> LocalLog<E> {
        self.log
    }

    /// The place of the next entry.
    #[must_use]
    pub fn end(&self) -> LogEnd {
        self.log.end()
    }

    /// Positions below this are committed.
    #[must_use]
    pub fn high_watermark(&self) -> Lsn {
        self.log.high_watermark()
    }

    /// The position below which this node itself has everything on its disk.
    #[must_use]
    pub fn durable_here(&self) -> Lsn {
        self.log.durable_end()
    }

    /// Whether the epoch's own start is committed: until then the end of the log is not known to be.
    #[must_use]
    pub fn is_recovered(&self) -> bool {
        self.log.high_watermark() > self.epoch_start
    }

    /// Whether a publish may be taken; said before anything is appended, so that a refusal is definite.
    ///
    /// # Errors
    /// [`NotEnoughCopies`] when the set is smaller than the site or the producer asks for, or a member is down that may
    /// not be removed.
    pub fn check_copies(&self, require: u32) -> Result<(), NotEnoughCopies> {
        let members = u32::try_from(self.config.set.len()).unwrap_or(u32::MAX);
        let have = members - u32::from(self.stuck && members > 0);
        let least = if mutant!(IgnoreCopiesMin) { 1 } else { self.config.copies_min };
        let need = require.max(least);
        if have < need { Err(NotEnoughCopies { have, need }) } else { Ok(()) }
    }

    /// How many members of the set have the entry at `lsn` on their disk.
    #[must_use]
    pub fn copies_of(&self, lsn: Lsn) -> u8 {
        let has = |node: &&NodeId| self.durable_at(**node) > lsn;
        u8::try_from(self.config.set.iter().filter(has).count()).unwrap_or(u8::MAX)
    }

    /// Puts an entry behind the log. Replicas get it by [`Self::pump`].
    pub fn append(&mut self, entry: E, out: &mut Vec<Effect<E>>) {
        let end = entry.end();
        assert!(
            entry.follows(self.log.end()) && end.epoch == self.epoch(),
            "the entry was made for another place"
        );
        self.log.append(entry, out);
    }

    /// The disk has done the first `count` appends and changes of this boot. True if the high watermark moved.
    pub fn written(&mut self, count: u64, out: &mut Vec<Effect<E>>) -> bool {
        let started = self.has_started();
        self.log.written(count, out);
        if !started && self.has_started() {
            self.ask_all(out);
        }
        self.advance(out)
    }

    /// Applies newer metadata of the same epoch. True if the high watermark moved.
    pub fn configure(
        &mut self,
        config: &ShardConfig,
        boots: &Boots,
        now: Duration,
        out: &mut Vec<Effect<E>>,
    ) -> bool {
        assert_eq!(config.epoch, self.config.epoch, "another epoch is another primary");
        self.now = now;
        self.note_leavers(config);
        self.config.clone_from(config);
        self.know(boots, now);
        if self.has_started() {
            self.ask_all(out);
        }
        self.advance(out)
    }

    /// Takes what a replica says in this epoch. True if the high watermark moved.
    pub fn message(
        &mut self,
        envelope: Envelope<E>,
        now: Duration,
        view: &impl LogView,
        out: &mut Vec<Effect<E>>,
    ) -> bool {
        self.now = now;
        let Envelope { from, body, .. } = envelope;
        let Some(follower) = self.followers.get_mut(&from.node) else { return false };
        if follower.incarnation != Some(from.incarnation) && !mutant!(CountOldIncarnation) {
            return false;
        }
        follower.rhythm.heard(now);
        match body {
            Body::State(state) => self.reconcile(from, state, view, out),
            Body::Durable(end) => {
                if end > self.log.end().lsn {
                    return false;
                }
                self.durable_there(from.node, end);
                return self.advance(out);
            }
            Body::ChunkDurable { number, next } => self.next_chunk(from, number, next, out),
            Body::Refused(refusal) => self.refused(from, refusal, out),
            Body::BarrierHeld(number) => self.barrier_held(from, number),
            // What a primary says, from one that is none.
            Body::StartEpoch
            | Body::Align(_)
            | Body::Append(_)
            | Body::InstallBegin { .. }
            | Body::InstallChunk { .. }
            | Body::Barrier(_) => {}
        }
        false
    }

    /// Tells a primary of an older epoch that there is a newer one.
    pub fn refuse_old(&mut self, from: Boot, body: &Body<E>, out: &mut Vec<Effect<E>>) {
        if body.is_of_primary() {
            let refusal = Refusal::StaleEpoch(self.epoch());
            self.log.when_durable(from, Body::Refused(refusal), out);
        }
    }

    /// The driver has made the snapshot that [`Effect::Snapshot`] asked for.
    pub fn snapshot(&mut self, to: Boot, base: LogEnd, chunks: u32, out: &mut Vec<Effect<E>>) {
        assert!(base.lsn <= self.log.high_watermark(), "only what is committed is installed");
        let epoch = self.epoch();
        let now = self.now;
        let history = self.history_before(base.lsn);
        let Some(follower) = self.followers.get_mut(&to.node) else { return };
        if follower.incarnation == Some(to.incarnation)
            && matches!(follower.progress, Progress::Snapshotting(least) if base.lsn >= least)
        {
            self.installs += 1;
            let number = self.installs;
            follower.progress = Progress::Installing(Sending { base, number, chunks, next: 0 });
            follower.asked_at = Some(now);
            let body = Body::InstallBegin { number, base, history, chunks };
            out.push(Effect::Send { to, epoch, body });
        }
    }

    /// Sends replicas what they have not, as far as their window goes. To be called after each input.
    pub fn pump(&mut self, out: &mut Vec<Effect<E>>) {
        let (epoch, end, high_watermark) =
            (self.epoch(), self.log.end().lsn, self.log.high_watermark());
        let (now, start) = (self.now, self.log.start());
        for (node, follower) in &mut self.followers {
            if matches!(follower.progress, Progress::Streaming(_)) && follower.acked < start {
                // Retention was faster: what it lacks is gone, it needs the whole.
                (follower.progress, follower.asked_at) = (Progress::Probing, None);
            }
            let (Progress::Streaming(sent), Some(incarnation)) =
                (follower.progress, follower.incarnation)
            else {
                continue;
            };
            let until = end.min(Lsn(follower.acked.0 + APPEND_WINDOW_ENTRIES));
            if until <= sent {
                continue;
            }
            let to = Boot { node: *node, incarnation };
            out.push(Effect::Replicate { to, epoch, from: sent, until, high_watermark });
            follower.progress = Progress::Streaming(until);
            follower.told = high_watermark;
            follower.asked_at = Some(now);
        }
    }

    /// Asks again what was not answered, tells of the high watermark, and looks after the commit set. To be called every
    /// [`HEARTBEAT`] or oftener.
    pub fn tick(&mut self, now: Duration, view: &impl LogView, out: &mut Vec<Effect<E>>) {
        self.now = now;
        let end = self.log.end().lsn;
        for follower in self.followers.values_mut() {
            follower.pass_mark(end, now);
        }
        self.stuck = self.is_stuck(now);
        if !self.has_started() {
            return;
        }
        self.ask_all(out);
        self.ask_barriers(out);
        if let Some(change) = self.review(now) {
            out.push(Effect::Propose(change));
        }
        if let Some(change) = self.floor(now, view) {
            out.push(Effect::Propose(change));
        }
    }

    /// This node itself has stood still for so long. Were that taken for silence of the others, it would put them all out of
    /// the set as soon as it wakes, and be the only one that has what it acks then.
    pub fn stood_still(&mut self, time: Duration, now: Duration) {
        for follower in self.followers.values_mut() {
            follower.excuse(time, now);
        }
    }

    /// The disk keeps nothing before this any more.
    pub fn log_starts_at(&mut self, start: Lsn) {
        self.log.starts_at(start);
    }

    /// Whether the start of the epoch is durable here: no message of the epoch leaves before that.
    pub(super) fn has_started(&self) -> bool {
        self.log.durable_end() > self.epoch_start
    }

    /// Takes up which nodes hold the shard, and in which boot.
    fn know(&mut self, boots: &Boots, now: Duration) {
        let end = self.log.end().lsn;
        let fence = self.fence;
        let wanted: Vec<NodeId> = self
            .config
            .required()
            .chain(self.config.replicas.iter().copied())
            .filter(|node| *node != self.me.node)
            .collect();
        self.followers.retain(|node, _| wanted.contains(node));
        for node in wanted {
            let incarnation = boots.get(&node).copied();
            let follower = self
                .followers
                .entry(node)
                .or_insert_with(|| Follower::new(incarnation, end, fence, now));
            if follower.incarnation != incarnation {
                follower.rebooted(incarnation);
            }
            if follower.regressed && !self.config.set.contains(&node) {
                // Out of the set it may come back as any other replica does.
                follower.regressed = false;
                follower.acked_before = Lsn(0);
                follower.restart();
            }
        }
    }

    fn ask_all(&mut self, out: &mut Vec<Effect<E>>) {
        let nodes: Vec<NodeId> = self.followers.keys().copied().collect();
        for node in nodes {
            self.ask(node, out);
        }
    }

    /// Asks or tells a replica what is due.
    fn ask(&mut self, node: NodeId, out: &mut Vec<Effect<E>>) {
        let (epoch, now, high_watermark) = (self.epoch(), self.now, self.log.high_watermark());
        let Some(follower) = self.followers.get_mut(&node) else { return };
        let Some(incarnation) = follower.incarnation else { return };
        let to = Boot { node, incarnation };
        let overdue = follower.asked_at.is_none_or(|at| now >= at + REPLICA_RETRY);
        let silent = follower.asked_at.is_none_or(|at| now >= at + HEARTBEAT);
        let effect = match follower.progress {
            Progress::Probing if overdue => Effect::Send { to, epoch, body: Body::StartEpoch },
            Progress::Aligning(common) if overdue => {
                Effect::Send { to, epoch, body: Body::Align(common) }
            }
            Progress::Streaming(sent) => {
                let behind = follower.acked < sent && overdue;
                if !behind && !silent && follower.told == high_watermark {
                    return;
                }
                let from = if behind { follower.acked } else { sent };
                follower.told = high_watermark;
                Effect::Replicate { to, epoch, from, until: sent, high_watermark }
            }
            // A new primary may know less to be committed than a replica does, until its own start is.
            Progress::Snapshotting(least) if overdue && least <= high_watermark => {
                Effect::Snapshot { to, least }
            }
            Progress::Installing(Sending { base, number, next, .. }) if overdue => {
                Effect::SendChunk { to, epoch, base, number, index: next }
            }
            _ => return,
        };
        follower.asked_at = Some(now);
        out.push(effect);
    }

    /// Finds how far a replica's log agrees with this one, and how to go on from there.
    fn reconcile(
        &mut self,
        from: Boot,
        state: FollowerState,
        view: &impl LogView,
        out: &mut Vec<Effect<E>>,
    ) {
        let (epoch, now) = (self.epoch(), self.now);
        let own = self.log.history();
        let common = own.common_end(self.log.end().lsn, &state.history, state.end.lsn);
        let common = common.filter(|_| !state.installing);
        let (start, high_watermark) = (self.log.start(), self.log.high_watermark());
        let member = self.config.set.contains(&from.node);
        let Some(follower) = self.followers.get_mut(&from.node) else { return };
        if !matches!(follower.progress, Progress::Probing | Progress::Aligning(_)) {
            return;
        }
        let older = state.history.last_epoch() < self.config.lineage_start;
        if older && !state.installing && !member {
            // It drops what it has as soon as it knows; then it is asked again.
            (follower.progress, follower.asked_at) = (Progress::Probing, Some(now));
            return;
        }
        let least = high_watermark.max(follower.acked_before);
        if member && common.is_none_or(|common| common < least) {
            follower.regressed = true;
            follower.progress = Progress::Stopped;
            out.push(Effect::Alarm(Alarm::Regressed { replica: from }));
            return;
        }
        let Some(common) = common.filter(|common| *common >= start) else {
            follower.progress = Progress::Snapshotting(state.high_watermark.max(start));
            follower.asked_at = None;
            self.ask(from.node, out);
            return;
        };
        follower.asked_at = Some(now);
        // All before the epoch's start is durable here. If the disk cannot tell, it is asked again.
        let Some(common) = view.end_at(common) else { return };
        follower.progress = Progress::Aligning(common);
        out.push(Effect::Send { to: from, epoch, body: Body::Align(common) });
    }

    fn durable_there(&mut self, node: NodeId, end: Lsn) {
        let Some(follower) = self.followers.get_mut(&node) else { return };
        follower.acks(end);
        match follower.progress {
            Progress::Aligning(_) | Progress::Installing(..) => {
                follower.progress = Progress::Streaming(end);
            }
            Progress::Streaming(sent) => follower.progress = Progress::Streaming(sent.max(end)),
            Progress::Probing | Progress::Snapshotting(_) | Progress::Stopped => {}
        }
    }

    fn next_chunk(&mut self, to: Boot, number: u32, next: u32, out: &mut Vec<Effect<E>>) {
        let (epoch, now) = (self.epoch(), self.now);
        let Some(follower) = self.followers.get_mut(&to.node) else { return };
        let Progress::Installing(sending) = &mut follower.progress else { return };
        if sending.number != number || next < sending.next || next >= sending.chunks {
            return;
        }
        sending.next = next;
        let base = sending.base;
        follower.asked_at = Some(now);
        out.push(Effect::SendChunk { to, epoch, base, number, index: next });
    }

    fn refused(&mut self, from: Boot, refusal: Refusal, out: &mut Vec<Effect<E>>) {
        let Some(follower) = self.followers.get_mut(&from.node) else { return };
        match refusal {
            Refusal::NotAligned => {
                if !matches!(follower.progress, Progress::Probing | Progress::Stopped) {
                    follower.restart();
                    self.ask(from.node, out);
                }
            }
            Refusal::Gap(end) => {
                // Once in a while: each message that overtook another is answered so, and to send the rest of the window for
                // each of them would make more of the same.
                let due = follower.went_back_at.is_none_or(|at| self.now >= at + GAP_RETRY);
                if let Progress::Streaming(sent) = follower.progress
                    && end >= follower.acked
                    && end < sent
                    && due
                {
                    follower.went_back_at = Some(self.now);
                    follower.progress = Progress::Streaming(end);
                }
            }
            Refusal::Diverged => follower.progress = Progress::Stopped,
            // A newer epoch: the caller has seen it in the envelope. A full disk: it is asked again.
            Refusal::StaleEpoch(_) | Refusal::DiskFull => {}
        }
    }

    /// What is durable on a node, as far as this epoch tells.
    fn durable_at(&self, node: NodeId) -> Lsn {
        if node == self.me.node {
            return self.log.durable_end();
        }
        self.followers.get(&node).map(|follower| follower.acked).unwrap_or_default()
    }

    /// Moves the high watermark to what every required replica has.
    fn advance(&mut self, out: &mut Vec<Effect<E>>) -> bool {
        let members = self.config.set.iter().copied();
        let all = if mutant!(IgnorePending) {
            members.map(|node| self.durable_at(node)).min()
        } else {
            self.config.required().map(|node| self.durable_at(node)).min()
        };
        let all = all.unwrap_or_default();
        let enough = self.config.set.len() >= self.config.copies_min as usize;
        // An end inside older epochs says nothing: another log may have had the same length.
        if all <= self.log.high_watermark() || all <= self.epoch_start {
            return false;
        }
        if !enough && !mutant!(IgnoreCopiesMin) {
            return false;
        }
        self.log.commit_to(all, out);
        true
    }

    fn history_before(&self, end: Lsn) -> EpochHistory {
        let mut history = self.log.history().clone();
        history.truncate(end);
        history
    }
}

#[cfg(test)]
mod tests;
