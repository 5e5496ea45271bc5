//! What must hold after each step, judged by what lies on disks, what is agreed, and what was said: the code under test
//! is never asked.
//!
//! A look costs what changed, not what there is: a disk is compared entry by entry as it is written, and one node by turns
//! is looked at though nothing was seen to happen in it.

mod agreed;
pub(super) mod rule;
mod shadow;
#[cfg(test)]
mod tests;
mod truth;

use std::collections::{BTreeMap, BTreeSet};

use self::{
    agreed::{Losses, Sequence},
    rule::{
        BARRIER_SEES_ACKS, COMMITTED_NEVER_CHANGES, Found, HALF_INSTALLED_NEVER_COUNTS,
        LOGS_END_EQUAL, LOST_DISK_NEVER_COUNTS, MEMBERS_HOLD_COMMITTED, NO_ALARM_WITHOUT_LOSS,
        NO_EPOCH_IS_RESUMED, ONE_LEADER_PER_EPOCH, PRIMARY_HOLDS_COMMITTED,
        QUORUM_CONTAINS_PENDING, Rule, STALE_PROPOSALS_FAIL, WATERMARK_IS_COMMITTED,
        WATERMARK_NEVER_FALLS,
    },
    shadow::Shadow,
    truth::Truth,
};
use super::view::{Checker, Commit, Look, NodeView, Observed, Violation};
use crate::types::{Boot, Epoch, Lsn, NodeId};

/// The judge of each step.
#[derive(Debug, Default)]
pub(crate) struct Invariants {
    truth: Truth,
    disks: Vec<Shadow>,
    sequence: Sequence,
    /// Who led each epoch.
    leaders: BTreeMap<Epoch, Boot>,
    /// Nodes that may have lost data, by a fault or by the word of their primary.
    losses: Lost,
    /// By the node that it was, what a disk held when it was lost. Until the site knows, it counts as a copy.
    gone: BTreeMap<NodeId, u64>,
    /// The end of all that was acked.
    acked: Lsn,
    /// What it was when a primary was asked, in an epoch, a question of a number.
    barriers: BTreeMap<(usize, Epoch, u64), Lsn>,
    /// As much of the clients' history was seen.
    events: usize,
    found: Found,
}

#[derive(Debug, Default)]
struct Lost {
    nodes: BTreeSet<NodeId>,
    /// A primary has said that some member lost data.
    reported: bool,
}

impl Losses for Lost {
    fn lost(&self, node: NodeId) -> bool {
        self.reported || self.nodes.contains(&node)
    }
}

impl Checker for Invariants {
    fn check(&mut self, world: &dyn Look) -> Result<(), Violation> {
        self.found.step = world.step();
        if self.disks.is_empty() {
            self.disks.resize_with(world.nodes(), Shadow::default);
            if world.step() > 1 {
                self.adopt(world);
                return Ok(());
            }
        }
        let before = self.truth.end();
        let mut touched = self.follow_disks(world);
        self.follow_commits(world);
        let grown = self.truth.end() > before;
        for (node, disk) in self.disks.iter_mut().enumerate() {
            if grown || touched.contains(&node) {
                disk.compare(&world.node(node), &self.truth);
            }
        }
        let happened = !touched.is_empty();
        touched.push(usize::try_from(world.step()).unwrap_or(0) % world.nodes());
        touched.sort_unstable();
        touched.dedup();
        for node in &touched {
            self.disks[*node].look(*node, &world.node(*node), &self.truth, &mut self.found);
        }
        let changed = self.follow_agreed(world);
        self.follow_rest(world);
        if grown || changed || happened {
            self.check_members(world);
        }
        while let Some(event) = world.history().get(self.events) {
            let node = match event {
                super::view::ClientEvent::Poll { node, .. } => *node,
                _ => 0,
            };
            self.truth.client(event, &world.node(node), &mut self.found);
            self.events += 1;
        }
        self.found.first()
    }

    fn finish(&mut self, world: &dyn Look) -> Result<(), Violation> {
        let Some(newest) = world.agreed().last() else { return Ok(()) };
        let end = self.truth.end();
        for node in 0..world.nodes() {
            let view = world.node(node);
            if !view.id.is_some_and(|id| newest.config.set.contains(&id)) {
                continue;
            }
            let agreed = Lsn(self.disks[node].agreed as u64);
            if agreed != end || view.log.len() as u64 != end.0 || view.high_watermark > end {
                self.found.fault(LOGS_END_EQUAL, || {
                    let NodeView { high_watermark, log, .. } = &view;
                    format!(
                        "node {node} has {} entries, {agreed} of {end} committed, knows {}",
                        log.len(),
                        high_watermark
                    )
                });
            }
        }
        self.found.first()
    }
}

impl Invariants {
    /// Lets a schedule go beyond what the site promises: these rules do not hold then.
    pub(crate) fn waiving(rules: &[Rule]) -> Self {
        let found = Found { waived: rules.to_vec(), ..Found::default() };
        Self { found, ..Self::default() }
    }

    /// Begins in the middle of a run: what lies there is taken for right.
    fn adopt(&mut self, world: &dyn Look) {
        let known = |view: &NodeView<'_>| {
            let believed = view.process.as_ref().map(|p| p.high_watermark).unwrap_or_default();
            believed.max(view.high_watermark).0.min(view.log.len() as u64)
        };
        let views = (0..world.nodes()).map(|node| world.node(node));
        if let Some(view) = views.max_by_key(known) {
            let end = usize::try_from(known(&view)).expect("a run is short");
            view.log[..end].iter().for_each(|record| self.truth.commit(record, &mut self.found));
        }
        for (node, disk) in self.disks.iter_mut().enumerate() {
            let view = world.node(node);
            disk.replaced(&view, true, &mut self.truth);
            disk.compare(&view, &self.truth);
            disk.look(node, &view, &self.truth, &mut self.found);
        }
        self.follow_agreed(world);
        self.events = world.history().len();
    }

    /// Takes up what happened to disks. Gives the nodes to which something happened.
    fn follow_disks(&mut self, world: &dyn Look) -> Vec<usize> {
        let mut touched = Vec::new();
        let (truth, found) = (&mut self.truth, &mut self.found);
        for (at, observed) in world.observed().iter().enumerate() {
            match *observed {
                Observed::Written { node, from } => {
                    self.disks[node].written(node, from, &world.node(node), truth, found);
                    touched.push(node);
                }
                Observed::Cut { node, end, .. } => {
                    self.disks[node].cut(node, end, found);
                    touched.push(node);
                }
                Observed::Replaced { node } => {
                    let next = world.observed().get(at + 1);
                    let installed = next == Some(&Observed::InstallEnded { node });
                    if let Some(id) = self.disks[node].id.filter(|_| !installed) {
                        self.losses.nodes.insert(id);
                        let held = self.gone.entry(id).or_default();
                        *held = self.disks[node].held().max(*held);
                    }
                    self.disks[node].replaced(&world.node(node), installed, truth);
                    touched.push(node);
                }
                Observed::InstallBegan { node } => {
                    self.disks[node].emptied();
                    touched.push(node);
                }
                _ => {}
            }
        }
        touched
    }

    /// Takes up what primaries committed: it stays so for ever.
    fn follow_commits(&mut self, world: &dyn Look) {
        for observed in world.observed() {
            let Observed::Committed { node, from, to, by } = observed else { continue };
            let node = *node;
            if to < from {
                self.found.fault(WATERMARK_NEVER_FALLS, || format!("node {node}: {from} to {to}"));
            }
            let end = self.truth.end();
            let Some(by) = by else {
                if *to > end {
                    self.found.fault(WATERMARK_IS_COMMITTED, || {
                        format!("node {node} takes {to} for committed, it is {end}")
                    });
                }
                continue;
            };
            self.sequence.check_commit(node, *to, by, &mut self.found);
            let view = world.node(node);
            while self.truth.end() < *to {
                let at = usize::try_from(self.truth.end().0).expect("a run is short");
                let Some(record) = view.log.get(at) else {
                    self.found.fault(PRIMARY_HOLDS_COMMITTED, || {
                        format!("node {node} committed lsn {at}, which it has not")
                    });
                    break;
                };
                self.truth.commit(record, &mut self.found);
            }
            self.disks[node].compare(&view, &self.truth);
            if (self.disks[node].agreed as u64) < to.0 {
                let at = self.disks[node].agreed;
                self.found.fault(COMMITTED_NEVER_CHANGES, || {
                    format!("node {node} committed another lsn {at} in epoch {}", by.epoch)
                });
            }
            self.check_pending(world, node, *to, by);
        }
    }

    fn check_pending(&mut self, world: &dyn Look, node: usize, to: Lsn, by: &Commit) {
        let Some(newest) = world.agreed().last().map(|agreed| &agreed.config) else { return };
        if newest.version != by.version {
            return;
        }
        for pending in &by.pending {
            let Some(at) = self.disks.iter().position(|disk| disk.id == Some(*pending)) else {
                continue;
            };
            self.disks[at].compare(&world.node(at), &self.truth);
            let disk = &self.disks[at];
            if !disk.lossy && (disk.agreed as u64) < to.0 {
                self.found.fault(QUORUM_CONTAINS_PENDING, || {
                    format!("node {node} committed lsn {to}, pending node {at}: {}", disk.agreed)
                });
            }
        }
    }

    /// Takes up what was agreed.
    fn follow_agreed(&mut self, world: &dyn Look) -> bool {
        let before = self.sequence.seen();
        let (truth, found) = (&self.truth, &mut self.found);
        let booted = self.sequence.follow(world.agreed(), truth, &self.losses, found);
        for disk in &mut self.disks {
            if disk.id.is_some_and(|id| booted.contains(&id)) {
                // The site has seen what this disk holds, and has decided.
                disk.lossy = false;
            }
        }
        self.sequence.seen() > before
    }

    /// Takes up who leads, what was acked, and alarms.
    fn follow_rest(&mut self, world: &dyn Look) {
        for observed in world.observed() {
            match observed {
                Observed::Leads { node, boot, epoch } => self.leads(world, *node, *boot, *epoch),
                Observed::BarrierAsked { node, epoch, number } => {
                    self.barriers.insert((*node, *epoch, *number), self.acked);
                }
                Observed::BarrierHeld { node, epoch, number, end } => {
                    let asked = self.barriers.range((*node, *epoch, 0)..=(*node, *epoch, *number));
                    let acked = asked.map(|(_, acked)| *acked).max().unwrap_or_default();
                    if acked > *end {
                        self.found.fault(BARRIER_SEES_ACKS, || {
                            format!("node {node} in epoch {epoch} answers {end}, acked was {acked}")
                        });
                    }
                }
                Observed::Applied { expected, found } if expected != found => {
                    self.found.fault(STALE_PROPOSALS_FAIL, || {
                        format!("a proposal for version {expected} changed version {found}")
                    });
                }
                Observed::Acked { node, value, partition, base, copies, .. } => {
                    let (disks, gone) = (&self.disks, &self.gone);
                    let counted = |end: Lsn| counted(world, *node, end);
                    let has = |end: Lsn| {
                        let members = counted(end);
                        let has = |disk: &&Shadow| disk.agreed as u64 >= end.0;
                        let there: Vec<_> = disks.iter().filter(has).map(|d| d.id).collect();
                        // What a disk held before it was lost was there when it was counted.
                        let was = |(id, held): &(&NodeId, &u64)| {
                            **held >= end.0
                                && !there.contains(&Some(**id))
                                && members.is_some_and(|members| members.contains(id))
                        };
                        there.len() + gone.iter().filter(was).count()
                    };
                    let what = (*value, *partition, *base);
                    let end = self.truth.acked(*node, what, *copies, has, &mut self.found);
                    self.acked = self.acked.max(end);
                }
                Observed::Alarm { node, text } => {
                    if text.starts_with("Regressed") {
                        self.losses.reported = true;
                    } else {
                        self.found.fault(NO_ALARM_WITHOUT_LOSS, || format!("node {node}: {text}"));
                    }
                }
                _ => {}
            }
        }
    }

    fn leads(&mut self, world: &dyn Look, node: usize, boot: Boot, epoch: Epoch) {
        if let Some(before) = self.leaders.insert(epoch, boot) {
            let rule =
                if before.node == boot.node { NO_EPOCH_IS_RESUMED } else { ONE_LEADER_PER_EPOCH };
            self.found.fault(rule, || {
                format!("node {node} leads epoch {epoch} as {boot}, before it {before}")
            });
        }
        if !self.sequence.elected(boot, epoch) {
            self.found.fault(ONE_LEADER_PER_EPOCH, || {
                format!("node {node} leads epoch {epoch} as {boot}, and was not elected")
            });
        }
        let (held, need) = (self.disks[node].agreed as u64, self.sequence.committed_at(epoch).0);
        if held < need {
            let lost = self.disks[node].behind;
            let rule = if lost { LOST_DISK_NEVER_COUNTS } else { PRIMARY_HOLDS_COMMITTED };
            self.found.fault(rule, || {
                let end = world.node(node).log.len();
                format!("node {node} leads epoch {epoch} with {held} of {need}, its log has {end}")
            });
        }
    }

    /// Each member of the set has everything that is committed.
    fn check_members(&mut self, world: &dyn Look) {
        let Some(newest) = world.agreed().last().map(|agreed| &agreed.config) else { return };
        if newest.stalled {
            return;
        }
        let end = self.truth.end();
        for (node, disk) in self.disks.iter().enumerate() {
            let member = disk.id.is_some_and(|id| newest.set.contains(&id));
            if !member || disk.lossy {
                continue;
            }
            if disk.installing {
                self.found
                    .fault(HALF_INSTALLED_NEVER_COUNTS, || format!("node {node} is a member"));
            }
            if (disk.agreed as u64) < end.0 {
                let rule =
                    if disk.behind { LOST_DISK_NEVER_COUNTS } else { MEMBERS_HOLD_COMMITTED };
                let agreed = disk.agreed;
                self.found.fault(rule, || {
                    format!("node {node} has {agreed} of {end}, epoch {}", newest.epoch)
                });
            }
        }
    }
}

/// The set by which a node committed what ends here. A node may learn of several configurations in one step, and commit by
/// one that is over at its end.
fn counted(world: &dyn Look, node: usize, end: Lsn) -> Option<&[NodeId]> {
    let by = world.observed().iter().find_map(|observed| match observed {
        Observed::Committed { node: at, to, by: Some(by), .. } if *at == node && *to >= end => {
            Some(by.set.as_slice())
        }
        _ => None,
    });
    let known = || world.node(node).process.and_then(|process| process.leads);
    let newest = || world.agreed().last().map(|agreed| &agreed.config);
    by.or_else(|| {
        known().map(|(config, _)| config).or_else(newest).map(|config| config.set.as_slice())
    })
}
