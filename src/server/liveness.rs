//! What this node has heard of the site's nodes, for people who ask how they are. Elections are the controller's, which has
//! a table of its own.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    peer::Heartbeat,
    replication::{LogEnd, Rhythm, ShardConfig},
    types::{Boot, NodeId, ShardId},
    wire::{Lag, Liveness},
};

/// The newest heartbeat of each node, this one's own with them.
#[derive(Debug)]
pub(super) struct LivenessTable {
    /// No silence shorter than this means that a node is down.
    fence: Duration,
    heard: Mutex<BTreeMap<NodeId, Heard>>,
}

#[derive(Debug)]
struct Heard {
    boot: Boot,
    /// Since when it is heard without a pause.
    since: Duration,
    rhythm: Rhythm,
    clients: u32,
    damaged: bool,
    load: u8,
    draining: bool,
    ends: BTreeMap<ShardId, LogEnd>,
}

/// What a node that is up has said of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Work {
    /// For how long it has been heard without a pause.
    pub(super) up_for: Duration,
    pub(super) clients: u32,
    /// In percent.
    pub(super) load: u8,
    /// It gives its work away.
    pub(super) draining: bool,
}

impl Heard {
    fn is_up(&self, now: Duration) -> bool {
        !self.rhythm.is_silent(now)
    }
}

impl LivenessTable {
    pub(super) fn new(fence: Duration) -> Self {
        Self { fence, heard: Mutex::default() }
    }

    /// Takes a heartbeat.
    pub(super) fn take(&self, beat: &Heartbeat, now: Duration) {
        let mut heard = self.heard();
        let before = heard.get(&beat.from.node);
        if before.is_some_and(|before| before.boot.incarnation > beat.from.incarnation) {
            return;
        }
        let same = before.filter(|before| before.boot == beat.from && before.is_up(now));
        let ends = beat.digests.iter().map(|digest| (digest.shard, digest.end)).collect();
        let since = same.map_or(now, |same| same.since);
        let mut rhythm = same.map_or(Rhythm::new(self.fence, now), |same| same.rhythm);
        rhythm.heard(now);
        let (boot, clients, damaged) = (beat.from, beat.connections, beat.damaged);
        let (load, draining) = (beat.load, beat.draining);
        let news = Heard { boot, since, rhythm, clients, damaged, load, draining, ends };
        heard.insert(boot.node, news);
    }

    /// This machine stood still for so long: whoever was silent meanwhile may have spoken.
    pub(super) fn stood_still(&self, time: Duration, now: Duration) {
        self.heard().values_mut().for_each(|heard| heard.rhythm.excuse(time, now));
    }

    /// Forgets nodes that the site has no more.
    pub(super) fn retain(&self, has: impl Fn(NodeId) -> bool) {
        self.heard().retain(|node, _| has(*node));
    }

    /// Whether a node has said that a copy of a shard is damaged there.
    pub(super) fn is_damaged(&self, node: NodeId) -> bool {
        self.heard().get(&node).is_some_and(|heard| heard.damaged)
    }

    /// Whether a node lives. One that was never heard is down for as long as this one listens, once it had its time.
    pub(super) fn of(&self, node: NodeId, now: Duration) -> Option<Liveness> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        match self.heard().get(&node) {
            Some(heard) if heard.is_up(now) => Some(Liveness {
                up: true,
                since_ms: ms(now.saturating_sub(heard.since)),
                clients: Some(heard.clients),
            }),
            Some(heard) => {
                let since_ms = ms(now.saturating_sub(heard.rhythm.last()));
                Some(Liveness { up: false, since_ms, clients: None })
            }
            None if now > self.fence => {
                Some(Liveness { up: false, since_ms: ms(now), clients: None })
            }
            None => None,
        }
    }

    /// What a node said of its work, if it is up.
    pub(super) fn work(&self, node: NodeId, now: Duration) -> Option<Work> {
        let heard = self.heard();
        let heard = heard.get(&node).filter(|heard| heard.is_up(now))?;
        Some(Work {
            up_for: now.saturating_sub(heard.since),
            clients: heard.clients,
            load: heard.load,
            draining: heard.draining,
        })
    }

    /// The end of a node's log of a shard, as it said last.
    pub(super) fn end(&self, node: NodeId, shard: ShardId) -> Option<LogEnd> {
        self.heard().get(&node)?.ends.get(&shard).copied()
    }

    /// Replicas that have not all of a shard, and why. What they lack is measured by the longest log of the commit set.
    pub(super) fn behind(&self, shard: ShardId, config: &ShardConfig, now: Duration) -> Vec<Lag> {
        let heard = self.heard();
        let end = |node: &NodeId| {
            heard.get(node).and_then(|heard| heard.ends.get(&shard)).map(|end| end.lsn)
        };
        let longest = config.set.iter().filter_map(end).max();
        let listed = |node: &&NodeId| !config.set.contains(node);
        let holders = config.set.iter().chain(config.replicas.iter().filter(listed));
        let lag = |node: &NodeId| {
            let is_up = heard.get(node).is_some_and(|heard| heard.is_up(now));
            let entries = longest.zip(end(node)).map(|(have, has)| have.0.saturating_sub(has.0));
            let why = match (is_up, config.set.contains(node), entries) {
                (false, _, _) => "it is down",
                (true, true, _) => return None,
                (true, false, _) if config.pending.iter().any(|boot| boot.node == *node) => {
                    "it enters the commit set"
                }
                (true, false, Some(_)) => "it catches up",
                (true, false, None) => "it has no copy yet",
            };
            Some(Lag { node: *node, entries, why: why.to_owned() })
        };
        holders.filter_map(lag).collect()
    }

    fn heard(&self) -> MutexGuard<'_, BTreeMap<NodeId, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        limits::{FENCE_AFTER, HEARTBEAT},
        replication::ShardDigest,
        types::{Epoch, Incarnation, Lsn},
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn beat(node: u64, incarnation: u64, lsn: u64) -> Heartbeat {
        let end = LogEnd { lsn: Lsn(lsn), epoch: Epoch(1), chain: 0 };
        Heartbeat {
            from: Boot { node: NodeId(node), incarnation: Incarnation(incarnation) },
            digests: vec![ShardDigest { shard: ShardId(0), end }],
            connections: 3,
            ..Heartbeat::default()
        }
    }

    #[test]
    fn a_node_is_up_since_it_was_heard_and_down_since_it_was_not() {
        let table = LivenessTable::new(FENCE_AFTER);
        assert_eq!(table.of(NodeId(2), FENCE_AFTER), None, "it had no time to be heard");
        assert_eq!(
            table.of(NodeId(2), 5 * SECOND).map(|l| (l.up, l.since_ms)),
            Some((false, 5_000))
        );
        table.take(&beat(2, 7, 1), 5 * SECOND);
        let last = 5 * SECOND + HEARTBEAT;
        table.take(&beat(2, 7, 1), last);
        let up = table.of(NodeId(2), 5 * SECOND + FENCE_AFTER);
        let since_ms = u64::try_from(FENCE_AFTER.as_millis()).expect("small");
        assert_eq!(up, Some(Liveness { up: true, since_ms, clients: Some(3) }));
        table.take(&beat(2, 6, 1), 6 * SECOND);
        let down = table.of(NodeId(2), last + FENCE_AFTER + SECOND);
        let since_ms = u64::try_from((FENCE_AFTER + SECOND).as_millis()).expect("small");
        assert_eq!(down, Some(Liveness { up: false, since_ms, clients: None }), "6 came late");
        table.take(&beat(2, 9, 1), 20 * SECOND);
        assert_eq!(table.of(NodeId(2), 20 * SECOND).map(|l| (l.up, l.since_ms)), Some((true, 0)));
    }

    #[test]
    fn whoever_was_silent_while_this_machine_stood_still_is_up_until_it_had_time_to_speak() {
        let table = LivenessTable::new(FENCE_AFTER);
        table.take(&beat(2, 7, 1), SECOND);
        let woke = SECOND + 9 * SECOND;
        table.stood_still(9 * SECOND, woke);
        let up = table.of(NodeId(2), woke).map(|l| (l.up, l.since_ms));
        assert_eq!(up, Some((true, 9_000)));
        let later = woke + FENCE_AFTER + HEARTBEAT;
        assert_eq!(table.of(NodeId(2), later).map(|l| l.up), Some(false));
        table.take(&beat(2, 7, 2), later);
        table.stood_still(9 * SECOND, later + HEARTBEAT);
        let heard_then = table.of(NodeId(2), later + HEARTBEAT + FENCE_AFTER + HEARTBEAT);
        assert_eq!(heard_then.map(|l| l.up), Some(false), "nobody is heard in the future");
    }

    #[test]
    fn who_is_behind_is_measured_by_the_commit_set() {
        let table = LivenessTable::new(FENCE_AFTER);
        table.take(&beat(1, 1, 50), SECOND);
        table.take(&beat(2, 2, 48), SECOND);
        table.take(&beat(3, 3, 20), SECOND);
        let config = ShardConfig {
            set: vec![NodeId(1), NodeId(2)],
            replicas: vec![NodeId(1), NodeId(2), NodeId(3), NodeId(4)],
            ..ShardConfig::new(1)
        };
        let lag = |node, entries, why: &str| Lag { node: NodeId(node), entries, why: why.into() };
        let found = table.behind(ShardId(0), &config, SECOND);
        assert_eq!(found, [lag(3, Some(30), "it catches up"), lag(4, None, "it is down")]);
        table.take(&beat(1, 1, 60), 9 * SECOND);
        let found = table.behind(ShardId(0), &config, 9 * SECOND);
        assert_eq!(found[0], lag(2, Some(12), "it is down"));
    }
}
