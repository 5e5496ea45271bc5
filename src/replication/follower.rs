//! A replica as its primary sees it.

use std::time::Duration;

use super::{entry::LogEnd, rhythm::Rhythm};
use crate::types::{Incarnation, Lsn};

/// What a primary knows of one replica, in this epoch.
#[derive(Clone, Debug)]
pub(super) struct Follower {
    /// The boot that is registered; none while the node is not.
    pub(super) incarnation: Option<Incarnation>,
    pub(super) progress: Progress,
    /// All below this is durable there, by the word of this boot in this epoch.
    pub(super) acked: Lsn,
    /// The same by any boot: a later one that has less has lost data.
    pub(super) acked_before: Lsn,
    /// When it was asked or told something last, in this step of its progress.
    pub(super) asked_at: Option<Duration>,
    /// When entries were sent again last because some were missing there.
    pub(super) went_back_at: Option<Duration>,
    /// When it was heard.
    pub(super) rhythm: Rhythm,
    /// The high watermark that it was told last.
    pub(super) told: Lsn,
    /// Where the log ended at a time when the replica had all that there was at the mark before.
    pub(super) mark: (Lsn, Duration),
    /// Since when it has kept pace.
    pub(super) in_sync_since: Option<Duration>,
    /// How many times this primary has removed it for being slow or dead.
    pub(super) removals: u32,
    /// It has less than it had said.
    pub(super) regressed: bool,
    /// This primary has asked for it to leave the set, and has not seen it out.
    pub(super) put_out: bool,
    /// When it has left the set by itself: this boot is about to stop, and is not asked back for a while.
    pub(super) left_at: Option<Duration>,
    /// The last question of [`super::Primary::ask_barrier`] that this boot has answered.
    pub(super) barrier: u64,
}

/// What happens between the primary and a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It is asked for its state.
    Probing,
    /// It is told how far the logs agree.
    Aligning(LogEnd),
    /// It gets entries; those below were sent.
    Streaming(Lsn),
    /// The driver is asked for a snapshot, no older than what the replica knows to be committed.
    Snapshotting(Lsn),
    Installing(Sending),
    /// Nothing is sent: it has contradicted this log, or lost data while in the set.
    Stopped,
}

/// A snapshot that a replica gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sending {
    pub(super) base: LogEnd,
    pub(super) number: u32,
    pub(super) chunks: u32,
    /// The next chunk.
    pub(super) next: u32,
}

impl Follower {
    pub(super) fn new(
        incarnation: Option<Incarnation>,
        end: Lsn,
        fence: Duration,
        now: Duration,
    ) -> Self {
        Self {
            incarnation,
            progress: Progress::Probing,
            acked: Lsn(0),
            acked_before: Lsn(0),
            asked_at: None,
            went_back_at: None,
            rhythm: Rhythm::new(fence, now),
            told: Lsn(0),
            mark: (end, now),
            in_sync_since: None,
            removals: 0,
            regressed: false,
            put_out: false,
            left_at: None,
            barrier: 0,
        }
    }

    /// Another boot: nothing that the former one said is counted, but it is not forgotten.
    pub(super) fn rebooted(&mut self, incarnation: Option<Incarnation>) {
        self.incarnation = incarnation;
        self.restart();
        self.acked = Lsn(0);
        self.barrier = 0;
        self.left_at = None;
    }

    /// Asks for its state anew.
    pub(super) fn restart(&mut self) {
        self.progress = Progress::Probing;
        self.asked_at = None;
        self.in_sync_since = None;
        self.told = Lsn(0);
    }

    /// So much time was none in which the primary could have heard of it.
    pub(super) fn excuse(&mut self, time: Duration, now: Duration) {
        self.rhythm.excuse(time, now);
        self.mark.1 = (self.mark.1 + time).min(now).max(self.mark.1);
    }

    pub(super) fn acks(&mut self, end: Lsn) {
        self.acked = self.acked.max(end);
        self.acked_before = self.acked_before.max(end);
    }

    /// Sets the mark anew if the replica has reached it.
    pub(super) fn pass_mark(&mut self, end: Lsn, now: Duration) {
        let streams = matches!(self.progress, Progress::Streaming(_));
        if streams && self.acked >= self.mark.0 {
            self.mark = (end, now);
            self.in_sync_since.get_or_insert(now);
        }
    }
}
