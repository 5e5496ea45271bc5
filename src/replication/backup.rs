//! A replica that follows: it promises, aligns its log with the primary's, and acks what is durable.

use super::{
    effect::{Alarm, Effect},
    entry::{LogEnd, LogEntry, LogView},
    history::EpochHistory,
    install::Install,
    local_log::LocalLog,
    message::{Append, Body, Envelope, FollowerState, Refusal},
    mutant,
};
use crate::types::{Boot, Epoch, Lsn};

/// The replica of one shard while another node leads, or nobody.
#[derive(Clone, Debug)]
pub struct Backup<E> {
    pub(super) log: LocalLog<E>,
    /// Who leads the promised epoch, once it was heard.
    leader: Option<Boot>,
    /// In which epoch this log was made to agree with the primary's: only then is it continued and acked.
    pub(super) aligned: Option<Epoch>,
    pub(super) install: Option<Install>,
    /// The log and the primary's contradict each other: nothing is acked any more in this boot.
    diverged: bool,
    disk_full: bool,
}

impl<E: LogEntry> Backup<E> {
    /// Begins to follow with this log.
    #[must_use]
    pub fn new(log: LocalLog<E>) -> Self {
        Self { log, leader: None, aligned: None, install: None, diverged: false, disk_full: false }
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> &LocalLog<E> {
        &self.log
    }

    /// The log, to be changed by what is no message: its disk, or an election.
    pub fn log_mut(&mut self) -> &mut LocalLog<E> {
        &mut self.log
    }

    /// Gives the log to another role.
    #[must_use]
    pub fn into_log(self) -> LocalLog<E> {
        self.log
    }

    /// Whether the log contradicts a primary's, so that a human must look.
    #[must_use]
    pub fn is_diverged(&self) -> bool {
        self.diverged
    }

    /// Drops the log, durably marked as half installed: a primary that asks is told that nothing is here.
    pub fn drop_log(&mut self, out: &mut Vec<Effect<E>>) {
        (self.aligned, self.install, self.diverged) = (None, None, false);
        self.log.install_begin(LogEnd::default(), out);
    }

    /// Whether the log is of an older lineage than the one that began in epoch `start`. One that is continued in `epoch` is not,
    /// though the start may not have come yet.
    #[must_use]
    pub fn is_of_older_lineage(&self, start: Epoch, epoch: Epoch) -> bool {
        let older = self.log.history().last_epoch() < start && !self.log.is_installing();
        older && self.aligned != Some(epoch)
    }

    /// Drops a log of an older lineage, with all that it knew to be committed.
    pub fn forget_log(&mut self, out: &mut Vec<Effect<E>>) {
        (self.aligned, self.install, self.diverged) = (None, None, false);
        self.log.forget(out);
    }

    /// Begins a lineage with what is here: nothing, if that is a half-done install.
    pub fn begin_lineage(&mut self, out: &mut Vec<Effect<E>>) {
        self.diverged = false;
        if self.log.is_installing() {
            self.forget_log(out);
            self.log.install_end(LogEnd::default(), EpochHistory::default(), out);
        }
    }

    /// Records are refused while the disk is full.
    pub fn set_disk_full(&mut self, full: bool) {
        self.disk_full = full;
    }

    /// Takes a message of a primary. The caller has checked that it is meant for this boot.
    pub fn message(
        &mut self,
        envelope: Envelope<E>,
        view: &impl LogView,
        out: &mut Vec<Effect<E>>,
    ) {
        let Envelope { epoch, from, body, .. } = envelope;
        if !body.is_of_primary() {
            // To a primary that leads no more. Whoever sent it follows an epoch, and does not lead it.
            return;
        }
        if epoch < self.log.promised() {
            let refusal = Refusal::StaleEpoch(self.log.promised());
            self.log.when_durable(from, Body::Refused(refusal), out);
            return;
        }
        if epoch > self.log.promised() {
            self.log.promise(epoch, out);
            self.follow(from);
        }
        let leader = *self.leader.get_or_insert(from);
        if leader != from {
            if !mutant!(ResumeEpoch) {
                return;
            }
            self.follow(from);
        }
        let answer = self.answer(epoch, body, view, out);
        if let Some(answer) = answer {
            self.log.when_durable(from, answer, out);
        }
    }

    fn follow(&mut self, leader: Boot) {
        self.leader = Some(leader);
        self.aligned = None;
        self.install = None;
    }

    fn answer(
        &mut self,
        epoch: Epoch,
        body: Body<E>,
        view: &impl LogView,
        out: &mut Vec<Effect<E>>,
    ) -> Option<Body<E>> {
        if self.diverged {
            return Some(Body::Refused(Refusal::Diverged));
        }
        let aligned = self.aligned == Some(epoch);
        match body {
            Body::StartEpoch => Some(self.state()),
            // The primary keeps no more what comes behind this log's end.
            Body::InstallBegin { number, base, history, chunks }
                if !aligned || base.lsn > self.log.end().lsn =>
            {
                let refused = self.check_not_below(base.lsn, out);
                let install = Install::new(number, base, history, chunks);
                Some(refused.unwrap_or_else(|| self.install_begin(install, out)))
            }
            // Late, or doubled: the log has gone on since.
            Body::InstallBegin { .. } => Some(Body::Durable(self.log.end().lsn)),
            Body::Align(_) | Body::InstallChunk { .. } if aligned => {
                Some(Body::Durable(self.log.end().lsn))
            }
            Body::Align(common) => Some(self.align(epoch, common, view, out)),
            Body::Append(_) if !aligned => Some(Body::Refused(Refusal::NotAligned)),
            Body::Append(append) => Some(self.append(epoch, append, out)),
            Body::InstallChunk { number, index, chunk } => {
                let answer = self.install_chunk(number, index, chunk, out);
                if matches!(answer, Body::Durable(_)) {
                    self.aligned = Some(epoch);
                }
                Some(answer)
            }
            Body::Barrier(number) => Some(Body::BarrierHeld(number)),
            // Returned at once, above.
            Body::State(_)
            | Body::Durable(_)
            | Body::ChunkDurable { .. }
            | Body::Refused(_)
            | Body::BarrierHeld(_) => None,
        }
    }

    fn state(&self) -> Body<E> {
        Body::State(FollowerState {
            end: self.log.end(),
            history: self.log.history().clone(),
            high_watermark: self.log.high_watermark(),
            installing: self.log.is_installing() && !mutant!(InstallingElectable),
        })
    }

    fn align(
        &mut self,
        epoch: Epoch,
        common: LogEnd,
        view: &impl LogView,
        out: &mut Vec<Effect<E>>,
    ) -> Body<E> {
        if self.log.is_installing() && !mutant!(InstallingElectable) {
            return self.state();
        }
        if let Some(refused) = self.check_not_below(common.lsn, out) {
            return refused;
        }
        // All of the log is durable: the state that this answers was sent when it was, and nothing was appended since.
        if view.end_at(common.lsn) != Some(common) && !mutant!(NoPrefixCheck) {
            return self.diverge(Alarm::ChainMismatch { at: common.lsn }, out);
        }
        self.log.truncate(common, out);
        self.aligned = Some(epoch);
        Body::Durable(self.log.end().lsn)
    }

    fn append(&mut self, epoch: Epoch, append: Append<E>, out: &mut Vec<Effect<E>>) -> Body<E> {
        let end = self.log.end();
        if append.prev.lsn > end.lsn {
            return Body::Refused(Refusal::Gap(end.lsn));
        }
        if append.prev.lsn == end.lsn && append.prev != end && !mutant!(NoPrefixCheck) {
            return self.diverge(Alarm::ChainMismatch { at: end.lsn }, out);
        }
        for entry in append.entries {
            let (end, next) = (self.log.end(), entry.end());
            if next.lsn <= end.lsn {
                continue;
            }
            if self.disk_full {
                return Body::Refused(Refusal::DiskFull);
            }
            if next.lsn > end.lsn.next() {
                return Body::Refused(Refusal::Gap(end.lsn));
            }
            let fits = entry.follows(end) && next.epoch <= epoch;
            if !fits && !mutant!(NoPrefixCheck) {
                return self.diverge(Alarm::ChainMismatch { at: end.lsn }, out);
            }
            self.log.append(entry, out);
        }
        self.log.commit_to(append.high_watermark, out);
        Body::Durable(self.log.end().lsn)
    }

    /// Nothing that is committed may be cut off or replaced by less.
    fn check_not_below(&mut self, end: Lsn, out: &mut Vec<Effect<E>>) -> Option<Body<E>> {
        let high_watermark = self.log.high_watermark();
        if end >= high_watermark || mutant!(TruncateBelowHighWatermark) {
            return None;
        }
        Some(self.diverge(Alarm::DivergedBelowHighWatermark { common: end, high_watermark }, out))
    }

    fn diverge(&mut self, alarm: Alarm, out: &mut Vec<Effect<E>>) -> Body<E> {
        self.diverged = true;
        out.push(Effect::Alarm(alarm));
        Body::Refused(Refusal::Diverged)
    }
}

#[cfg(test)]
mod tests;
