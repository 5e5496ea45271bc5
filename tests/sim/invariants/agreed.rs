//! The shard's metadata as a sequence: each step from one to the next must be a legal one.

use std::{collections::BTreeMap, rc::Rc};

use super::{
    super::view::{Agreed, Commit},
    rule::{
        CONFIG_IS_ONE_SEQUENCE, ELECTED_FROM_SET, ENOUGH_COPIES, FLOOR_IS_COMMITTED, Found,
        JOINS_IN_CURRENT_BOOT, JOINS_IN_TWO_STEPS, PRIMARY_GOES_BY_AGREED,
        QUORUM_CONTAINS_ELECTABLE, STALLED_IS_NOT_LED,
    },
    truth::Truth,
};
use crate::{
    replication::ShardConfig,
    types::{Boot, Epoch, Lsn, NodeId},
};

/// What was seen of it so far.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    seen: usize,
    /// The first entry of each version.
    versions: BTreeMap<u64, Rc<Agreed>>,
    /// The newest entry of each epoch: the next primary was elected by it.
    epochs: BTreeMap<Epoch, Rc<Agreed>>,
    /// How much was committed when each epoch was agreed on.
    committed: BTreeMap<Epoch, Lsn>,
}

/// What a node did that explains why a set may be small.
pub(super) trait Losses {
    fn lost(&self, node: NodeId) -> bool;
}

impl Sequence {
    /// Takes up what is new. Gives the nodes that registered a new boot.
    pub(super) fn follow(
        &mut self,
        agreed: &[Rc<Agreed>],
        truth: &Truth,
        losses: &impl Losses,
        found: &mut Found,
    ) -> Vec<NodeId> {
        let mut registered = Vec::new();
        while let Some(next) = agreed.get(self.seen) {
            if let Some(before) = self.seen.checked_sub(1).and_then(|at| agreed.get(at)) {
                let booted = |node: &NodeId| next.boots.get(node) != before.boots.get(node);
                let booted: Vec<NodeId> = next.boots.keys().copied().filter(booted).collect();
                check_step(before, next, &booted, losses, found);
                check_floor(next, truth, found);
                registered.extend(booted);
            }
            let config = &next.config;
            self.versions.entry(config.version).or_insert_with(|| Rc::clone(next));
            self.epochs.insert(config.epoch, Rc::clone(next));
            self.committed.entry(config.epoch).or_insert(truth.end());
            self.seen += 1;
        }
        registered
    }

    /// How much of it was seen.
    pub(super) fn seen(&self) -> usize {
        self.seen
    }

    /// Whether the site has elected this boot for this epoch.
    pub(super) fn elected(&self, boot: Boot, epoch: Epoch) -> bool {
        self.epochs.get(&epoch).is_some_and(|agreed| agreed.config.primary == Some(boot))
    }

    /// How much was committed when this epoch was agreed on.
    pub(super) fn committed_at(&self, epoch: Epoch) -> Lsn {
        self.committed.get(&epoch).copied().unwrap_or_default()
    }

    /// A primary moved its high watermark by this configuration.
    pub(super) fn check_commit(&self, node: usize, to: Lsn, by: &Commit, found: &mut Found) {
        if (by.set.len() as u64) < u64::from(by.copies_min) || by.set.is_empty() {
            found.fault(ENOUGH_COPIES, || format!("node {node} committed lsn {to} by {by:?}"));
        }
        let agreed = self.versions.get(&by.version).map(|agreed| &agreed.config);
        let same = |config: &ShardConfig| {
            let pending = config.pending.iter().map(|boot| boot.node);
            config.epoch == by.epoch && config.set == by.set && pending.eq(by.pending.clone())
        };
        if !agreed.is_some_and(same) {
            found.fault(PRIMARY_GOES_BY_AGREED, || {
                format!("node {node} committed lsn {to} by {by:?}, agreed is {agreed:?}")
            });
        }
        let electable = self.epochs.get(&by.epoch).map(|agreed| &agreed.config.set);
        let waits = |node: &NodeId| by.set.contains(node) || by.pending.contains(node);
        if !electable.is_some_and(|set| set.iter().all(waits)) {
            found.fault(QUORUM_CONTAINS_ELECTABLE, || {
                format!("node {node} committed lsn {to} by {by:?}, electable are {electable:?}")
            });
        }
    }
}

fn check_step(
    before: &Agreed,
    after: &Agreed,
    booted: &[NodeId],
    losses: &impl Losses,
    found: &mut Found,
) {
    let (old, new) = (&before.config, &after.config);
    let step = || format!("index {}: {old:?} became {new:?}", after.index);
    let rest_is_same = old.set == new.set
        && old.pending == new.pending
        && old.primary == new.primary
        && old.stalled == new.stalled
        && old.epoch == new.epoch;
    let version = new.version.wrapping_sub(old.version);
    if after.index != before.index + 1 || version > 1 || (version == 0 && !rest_is_same) {
        found.fault(CONFIG_IS_ONE_SEQUENCE, step);
    }
    match new.epoch.0.wrapping_sub(old.epoch.0) {
        0 if old.primary == new.primary => {}
        1 => check_election(before, after, found),
        _ => found.fault(CONFIG_IS_ONE_SEQUENCE, step),
    }
    for node in new.set.iter().filter(|node| !old.set.contains(node)) {
        // The first node of a site is its own set.
        if old.version == 0 {
            continue;
        }
        let Some(boot) = old.pending.iter().find(|boot| boot.node == *node) else {
            found.fault(JOINS_IN_TWO_STEPS, step);
            continue;
        };
        if after.boots.get(node) != Some(&boot.incarnation) {
            found.fault(JOINS_IN_CURRENT_BOOT, step);
        }
    }
    let left: Vec<NodeId> = old.set.iter().copied().filter(|n| !new.set.contains(n)).collect();
    let enough = new.set.len() as u64 >= u64::from(new.copies_min);
    let explained = |node: &NodeId| booted.contains(node) || losses.lost(*node);
    if new.set.is_empty() && !old.set.is_empty() || !enough && !left.iter().all(explained) {
        found.fault(ENOUGH_COPIES, step);
    }
}

fn check_election(before: &Agreed, after: &Agreed, found: &mut Found) {
    let (old, new) = (&before.config, &after.config);
    let step = || format!("index {}: {old:?} became {new:?}", after.index);
    if old.stalled {
        found.fault(STALLED_IS_NOT_LED, step);
    }
    let Some(primary) = new.primary else {
        found.fault(CONFIG_IS_ONE_SEQUENCE, step);
        return;
    };
    if !old.set.contains(&primary.node) {
        found.fault(ELECTED_FROM_SET, step);
    }
    if after.boots.get(&primary.node) != Some(&primary.incarnation) || !new.pending.is_empty() {
        found.fault(CONFIG_IS_ONE_SEQUENCE, step);
    }
}

fn check_floor(after: &Agreed, truth: &Truth, found: &mut Found) {
    let Some(floor) = after.config.floor else { return };
    if truth.chain_before(floor.lsn) != Some(floor.chain) {
        found.fault(FLOOR_IS_COMMITTED, || format!("{floor:?}, committed is {}", truth.end()));
    }
}
