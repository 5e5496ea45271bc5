//! This node's log of one shard, as it will be once its disk has done all that it was asked.

use std::collections::VecDeque;

use super::{
    effect::{Effect, LogChange},
    entry::{LogEnd, LogEntry},
    history::EpochHistory,
    message::{Body, Chunk},
    mutant,
};
use crate::types::{Boot, Epoch, Lsn};

/// What a disk held of a shard when its node started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Messages of older epochs are refused.
    pub promised: Epoch,
    /// Where each epoch starts.
    pub history: EpochHistory,
    /// The first entry that is kept.
    pub start: Lsn,
    /// Where the log ends.
    pub end: LogEnd,
    /// Positions below this are committed.
    pub high_watermark: Lsn,
    /// An install is half done: the rest means nothing.
    pub installing: bool,
}

/// The log of one shard on this node. It carries what both roles share: the promise, the end, the epochs, the high
/// watermark, and the messages that may not leave before the disk is done.
#[derive(Clone, Debug)]
pub struct LocalLog<E> {
    promised: Epoch,
    history: EpochHistory,
    start: Lsn,
    end: LogEnd,
    high_watermark: Lsn,
    installing: bool,
    /// Appends and changes that were emitted in this boot.
    emitted: u64,
    /// As many of them are durable.
    durable: u64,
    /// Ends of the log that are not durable yet, and with which of them each will be.
    ends: VecDeque<(u64, Lsn)>,
    /// All below this is durable, as far as it was not cut off since.
    durable_end: Lsn,
    /// Messages that wait for the disk; each answers one of a peer, whose own window bounds them.
    held: VecDeque<(u64, Held<E>)>,
}

#[derive(Clone, Debug)]
struct Held<E> {
    to: Boot,
    epoch: Epoch,
    body: Body<E>,
}

impl<E: LogEntry> LocalLog<E> {
    /// Takes up what the disk held.
    #[must_use]
    pub fn new(stored: Stored) -> Self {
        Self {
            promised: stored.promised.max(stored.history.last_epoch()),
            history: stored.history,
            start: stored.start,
            end: stored.end,
            high_watermark: stored.high_watermark,
            installing: stored.installing,
            emitted: 0,
            durable: 0,
            ends: VecDeque::new(),
            durable_end: stored.end.lsn,
            held: VecDeque::new(),
        }
    }

    /// Messages of older epochs are refused.
    #[must_use]
    pub fn promised(&self) -> Epoch {
        self.promised
    }

    /// Where each epoch starts.
    #[must_use]
    pub fn history(&self) -> &EpochHistory {
        &self.history
    }

    /// The first entry that is kept.
    #[must_use]
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// Where the log ends, durable or not.
    #[must_use]
    pub fn end(&self) -> LogEnd {
        self.end
    }

    /// All below this is durable.
    #[must_use]
    pub fn durable_end(&self) -> Lsn {
        self.durable_end
    }

    /// Positions below this are committed.
    #[must_use]
    pub fn high_watermark(&self) -> Lsn {
        self.high_watermark
    }

    /// Whether an install is half done.
    #[must_use]
    pub fn is_installing(&self) -> bool {
        self.installing
    }

    /// Whether the disk has done all that it was asked.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.durable == self.emitted
    }

    /// Refuses messages of epochs before this one from now on, and over restarts.
    pub fn promise(&mut self, epoch: Epoch, out: &mut Vec<Effect<E>>) {
        assert!(epoch > self.promised, "promises only grow");
        self.promised = epoch;
        if !mutant!(ForgetPromise) {
            self.change(LogChange::Promise(epoch), out);
        }
    }

    /// Puts an entry behind the log.
    pub fn append(&mut self, entry: E, out: &mut Vec<Effect<E>>) {
        self.appended(entry.end());
        out.push(Effect::Append(entry));
    }

    /// Notes that an entry was put behind the log, by the role that made it.
    pub fn appended(&mut self, end: LogEnd) {
        assert_eq!(end.lsn, self.end.lsn.next(), "a log has no gaps");
        self.history.note(end.epoch, self.end.lsn);
        self.end = end;
        self.emitted += 1;
        self.ends.push_back((self.emitted, end.lsn));
    }

    /// Cuts the log, and its history with it.
    pub fn truncate(&mut self, end: LogEnd, out: &mut Vec<Effect<E>>) {
        if end.lsn >= self.end.lsn {
            return;
        }
        self.end = end;
        if !mutant!(HistoryNotTruncated) {
            self.history.truncate(end.lsn);
        }
        self.durable_end = self.durable_end.min(end.lsn);
        self.ends.retain(|(_, lsn)| *lsn <= end.lsn);
        self.change(LogChange::Truncate(end.lsn), out);
    }

    /// Everything below `committed` is committed.
    pub fn commit_to(&mut self, committed: Lsn, out: &mut Vec<Effect<E>>) {
        let committed = committed.min(self.end.lsn);
        if committed > self.high_watermark {
            self.high_watermark = committed;
            out.push(Effect::Committed(committed));
        }
    }

    /// Drops the log for an install.
    pub(super) fn install_begin(&mut self, base: LogEnd, out: &mut Vec<Effect<E>>) {
        self.installing = true;
        // The high watermark stays: an install from before it would lose what is committed.
        (self.start, self.end, self.durable_end) = (Lsn(0), LogEnd::default(), Lsn(0));
        self.history = EpochHistory::default();
        self.ends.clear();
        self.change(LogChange::InstallBegin(base), out);
    }

    /// Drops the log, and what it knew to be committed: another lineage takes its place.
    pub(super) fn forget(&mut self, out: &mut Vec<Effect<E>>) {
        (self.installing, self.high_watermark) = (true, Lsn(0));
        (self.start, self.end, self.durable_end) = (Lsn(0), LogEnd::default(), Lsn(0));
        self.history = EpochHistory::default();
        self.ends.clear();
        self.change(LogChange::Forget, out);
    }

    /// Takes a part of an install.
    pub(super) fn install_chunk(&mut self, chunk: Chunk<E>, out: &mut Vec<Effect<E>>) {
        self.change(LogChange::InstallChunk(chunk), out);
    }

    /// The install is whole.
    pub(super) fn install_end(
        &mut self,
        base: LogEnd,
        history: EpochHistory,
        out: &mut Vec<Effect<E>>,
    ) {
        self.installing = false;
        self.start = base.lsn;
        self.end = base;
        self.high_watermark = base.lsn;
        self.history = history.clone();
        self.change(LogChange::InstallEnd { base, history }, out);
        self.ends.push_back((self.emitted, base.lsn));
    }

    /// The disk keeps nothing before this any more.
    pub fn starts_at(&mut self, start: Lsn) {
        assert!(start <= self.high_watermark, "only what is committed may be dropped");
        self.start = self.start.max(start);
    }

    /// Sends a message of the promised epoch once all that was asked of the disk before it is durable.
    pub fn when_durable(&mut self, to: Boot, body: Body<E>, out: &mut Vec<Effect<E>>) {
        let epoch = self.promised;
        if self.is_settled() || mutant!(AckBeforeCommit) {
            out.push(Effect::Send { to, epoch, body });
        } else {
            self.held.push_back((self.emitted, Held { to, epoch, body }));
        }
    }

    /// The disk has done the first `count` appends and changes of this boot. Messages that waited for it go.
    pub fn written(&mut self, count: u64, out: &mut Vec<Effect<E>>) {
        assert!(count <= self.emitted, "the disk has done what it was not asked");
        self.durable = self.durable.max(count);
        while let Some((at, lsn)) = self.ends.front().copied() {
            if at > self.durable {
                break;
            }
            self.ends.pop_front();
            self.durable_end = lsn;
        }
        while self.held.front().is_some_and(|(at, _)| *at <= self.durable) {
            let Some((_, held)) = self.held.pop_front() else { break };
            out.push(Effect::Send { to: held.to, epoch: held.epoch, body: held.body });
        }
    }

    fn change(&mut self, change: LogChange<E>, out: &mut Vec<Effect<E>>) {
        self.emitted += 1;
        out.push(Effect::Change(change));
    }
}

#[cfg(test)]
mod tests;
