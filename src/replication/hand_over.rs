//! A primary that gives its place to a member of the set, without a failover.
//!
//! It takes no publishes until the other has all, and then proposes the election itself. It is only a shortening: a crash
//! anywhere inside is a failover like any other, and a deadline that passes leaves all as it was.

use std::time::Duration;

use super::{
    config::ShardChange, entry::LogEntry, follower::Progress, primary::Primary, set_change::is_dead,
};
use crate::{
    limits::HAND_OVER_MAX,
    types::{Boot, NodeId},
};

/// A hand-over that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandOver {
    pub(super) to: NodeId,
    pub(super) until: Duration,
}

/// Why a primary does not hand over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotHandOver {
    /// Only a member of the set may lead.
    #[error("node {0} is not in the commit set")]
    NotMember(NodeId),
    /// It is too far behind, or was not heard of.
    #[error("node {0} does not keep pace")]
    Behind(NodeId),
    /// One at a time.
    #[error("another hand-over is under way")]
    Busy,
}

impl<E: LogEntry> Primary<E> {
    /// Begins to hand over to a member of the set. Publishes are refused until it leads, or until
    /// [`HAND_OVER_MAX`] has passed.
    ///
    /// # Errors
    /// [`CannotHandOver`]; nothing changes then.
    pub fn hand_over(&mut self, to: NodeId, now: Duration) -> Result<(), CannotHandOver> {
        if self.hand_over.is_some() {
            return Err(CannotHandOver::Busy);
        }
        if to == self.me.node || !self.config.set.contains(&to) {
            return Err(CannotHandOver::NotMember(to));
        }
        let streams = |p: Progress| matches!(p, Progress::Streaming(_));
        if !self.followers.get(&to).is_some_and(|f| streams(f.progress)) {
            return Err(CannotHandOver::Behind(to));
        }
        self.hand_over = Some(HandOver { to, until: now + HAND_OVER_MAX });
        self.handed_at = now;
        Ok(())
    }

    /// The preferred primary, if it should lead in place of this one: it is in the set and has kept pace for this long, and
    /// nothing was handed over for as long, so that a hand-over that fails does not hold up publishes again and again.
    #[must_use]
    pub fn preferred(&self, after: Duration, now: Duration) -> Option<NodeId> {
        let node = *self.config.replicas.first()?;
        let follower = self.followers.get(&node)?;
        let long = |since: Duration| now >= since + after;
        let fit = self.config.set.contains(&node)
            && self.is_recovered()
            && !is_dead(follower, now)
            && follower.in_sync_since.is_some_and(long);
        (fit && long(self.handed_at) && self.hand_over.is_none()).then_some(node)
    }

    /// Whether publishes are held back for a hand-over, and to whom.
    #[must_use]
    pub fn handing_over(&self) -> Option<NodeId> {
        self.hand_over.map(|hand_over| hand_over.to)
    }

    /// Gives up a hand-over whose time is over; proposes the election of one that has all.
    pub(super) fn hand_over_change(&mut self, now: Duration) -> Option<ShardChange> {
        let HandOver { to, until } = self.hand_over?;
        if now >= until {
            self.hand_over = None;
            return None;
        }
        let end = self.log.end().lsn;
        let follower = self.followers.get(&to)?;
        let has_all = follower.acked == end && self.log.durable_end() == end;
        if !has_all || !self.config.set.contains(&to) {
            return None;
        }
        Some(ShardChange::Elect {
            expect_version: self.config.version,
            primary: Boot { node: to, incarnation: follower.incarnation? },
            drop: Vec::new(),
        })
    }
}
