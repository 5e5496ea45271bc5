//! Where each epoch of a log starts: enough to find how far two logs agree.

use std::collections::VecDeque;

use crate::{
    limits::EPOCHS_REMEMBERED,
    types::{Epoch, Lsn},
};

/// The starts of a log's epochs, oldest first: a function of the log, cut with it.
///
/// The oldest are forgotten beyond [`EPOCHS_REMEMBERED`]: a log that shares none of the others is installed anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochHistory {
    starts: VecDeque<(Epoch, Lsn)>,
}

impl EpochHistory {
    /// Takes up the starts that a disk or a peer holds.
    #[must_use]
    pub fn new(starts: impl IntoIterator<Item = (Epoch, Lsn)>) -> Self {
        let mut history = Self::default();
        starts.into_iter().for_each(|(epoch, start)| history.note(epoch, start));
        history
    }

    /// Notes that an entry of `epoch` lies at `lsn`, behind all others.
    pub fn note(&mut self, epoch: Epoch, lsn: Lsn) {
        if self.last_epoch() == epoch {
            return;
        }
        if self.starts.len() == EPOCHS_REMEMBERED {
            self.starts.pop_front();
        }
        self.starts.push_back((epoch, lsn));
    }

    /// Forgets the epochs that begin at `end` or behind it.
    pub fn truncate(&mut self, end: Lsn) {
        while self.starts.back().is_some_and(|(_, start)| *start >= end) {
            self.starts.pop_back();
        }
    }

    /// The newest epoch, 0 when there is none.
    #[must_use]
    pub fn last_epoch(&self) -> Epoch {
        self.starts.back().map(|(epoch, _)| *epoch).unwrap_or_default()
    }

    /// The starts, oldest first.
    pub fn starts(&self) -> impl DoubleEndedIterator<Item = (Epoch, Lsn)> + '_ {
        self.starts.iter().copied()
    }

    /// How far this log, which ends at `end`, agrees with another: the end of the newest epoch that both have, on the
    /// one where it ends first. None when neither remembers an epoch that both have.
    #[must_use]
    pub fn common_end(&self, end: Lsn, other: &Self, other_end: Lsn) -> Option<Lsn> {
        if end == Lsn(0) || other_end == Lsn(0) {
            return Some(Lsn(0));
        }
        let shared = other.starts.iter().rev().find(|start| self.starts.contains(start));
        if let Some((epoch, _)) = shared {
            return Some(self.end_of(*epoch, end).min(other.end_of(*epoch, other_end)));
        }
        let whole = |history: &Self| history.starts.front().is_some_and(|(_, lsn)| *lsn == Lsn(0));
        (whole(self) && whole(other)).then_some(Lsn(0))
    }

    fn end_of(&self, epoch: Epoch, log_end: Lsn) -> Lsn {
        let next = self.starts.iter().find(|(other, _)| *other > epoch);
        next.map_or(log_end, |(_, start)| *start)
    }
}

#[cfg(test)]
mod tests;
