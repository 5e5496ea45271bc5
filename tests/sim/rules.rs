//! What must hold of each node, and of each commit, after every step.

use std::collections::BTreeMap;

use super::view::{Checker, Look, Observed, Violation};
use crate::types::{Epoch, NodeId};

/// Promises, histories and commit sets.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    promised: BTreeMap<(usize, Option<NodeId>), Epoch>,
    leaders: BTreeMap<Epoch, NodeId>,
}

impl Checker for Rules {
    fn check(&mut self, world: &dyn Look) -> Result<(), Violation> {
        for observed in world.observed() {
            match observed {
                Observed::Written { node, .. } | Observed::Cut { node, .. } => {
                    self.look(world, *node)?;
                }
                Observed::Replaced { node } => {
                    let id = world.node(*node).id;
                    self.promised.remove(&(*node, id));
                }
                Observed::Leads { node, boot, epoch } => {
                    let first = *self.leaders.entry(*epoch).or_insert(boot.node);
                    if first != boot.node {
                        let text = format!("{first} and {} (node {node}) lead {epoch}", boot.node);
                        return Err(Violation { rule: "one_primary_per_epoch", text });
                    }
                }
                Observed::Committed { node, by: Some(by), to, .. } => {
                    if by.set.len() < by.copies_min as usize {
                        let text = format!("node {node} committed to {to} with {:?}", by.set);
                        return Err(Violation { rule: "copies_min", text });
                    }
                    if let Some(text) = uncovered(world, *node, by) {
                        return Err(Violation { rule: "quorum_superset", text });
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn finish(&mut self, world: &dyn Look) -> Result<(), Violation> {
        (0..world.nodes()).try_for_each(|node| self.look(world, node))
    }
}

impl Rules {
    fn look(&mut self, world: &dyn Look, node: usize) -> Result<(), Violation> {
        let view = world.node(node);
        let promised = self.promised.entry((node, view.id)).or_default();
        if view.promised < *promised {
            let text = format!("node {node} had promised {promised}, now {}", view.promised);
            return Err(Violation { rule: "promises_grow", text });
        }
        *promised = view.promised;
        let Some(process) = view.process.filter(|p| p.settled && !view.installing) else {
            return Ok(());
        };
        let mut starts = Vec::new();
        for record in view.log {
            if starts.last().is_none_or(|(epoch, _)| *epoch != record.epoch) {
                starts.push((record.epoch, record.lsn));
            }
        }
        let same = starts.ends_with(&process.history) || process.history == starts;
        if !same || (process.history.is_empty() && !starts.is_empty()) {
            let text = format!("node {node}: {:?}, its log says {starts:?}", process.history);
            return Err(Violation { rule: "history_is_of_the_log", text });
        }
        if process.promised < process.history.last().map(|(epoch, _)| *epoch).unwrap_or_default() {
            let text = format!("node {node} has entries of an epoch that it has not promised");
            return Err(Violation { rule: "promise_covers_log", text });
        }
        Ok(())
    }
}

/// Who may be elected now in the epoch of a commit, and was not waited for.
fn uncovered(world: &dyn Look, node: usize, by: &super::view::Commit) -> Option<String> {
    let newest = &world.agreed().last()?.config;
    if newest.epoch != by.epoch {
        return None;
    }
    let waited = |member: &&NodeId| by.set.contains(member) || by.pending.contains(member);
    let missing = newest.set.iter().find(|member| !waited(member))?;
    Some(format!("node {node} committed by {by:?}, {missing} may be elected"))
}
