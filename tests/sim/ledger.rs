//! The truth that every replica is measured by: what was committed first at a position stays there.

use std::collections::BTreeMap;

use super::view::{Checker, Look, Observed, Record, Violation};
use crate::types::Lsn;

/// What is committed, by position: epoch, chain, content.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    committed: Vec<(u64, u64, u64)>,
    /// As far as each node was compared.
    seen: BTreeMap<usize, usize>,
}

impl Checker for Ledger {
    fn check(&mut self, world: &dyn Look) -> Result<(), Violation> {
        for observed in world.observed() {
            match observed {
                Observed::Committed { node, by, .. } => {
                    self.follow(world, *node, by.is_some())?;
                }
                Observed::Written { node, .. } => self.follow(world, *node, false)?,
                Observed::Replaced { node } | Observed::InstallBegan { node } => {
                    self.seen.insert(*node, 0);
                }
                Observed::Cut { node, end, .. } => {
                    let view = world.node(*node);
                    if *end < view.high_watermark {
                        let text = format!(
                            "node {node} cut its log at {end}, below its high watermark {}",
                            view.high_watermark
                        );
                        return Err(Violation { rule: "no_cut_below_high_watermark", text });
                    }
                }
                Observed::Alarm { node, text } if text.starts_with("Diverged") => {
                    let text = format!("node {node}: {text}");
                    return Err(Violation { rule: "no_divergence", text });
                }
                Observed::Alarm { node, text } if text.starts_with("Chain") => {
                    let text = format!("node {node}: {text}");
                    return Err(Violation { rule: "no_chain_mismatch", text });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn finish(&mut self, world: &dyn Look) -> Result<(), Violation> {
        for node in 0..world.nodes() {
            let view = world.node(node);
            if view.installing || view.process.as_ref().is_none_or(|p| !p.settled) {
                continue;
            }
            let end = view.high_watermark.min(Lsn(view.log.len() as u64));
            for (at, record) in view.log.iter().enumerate().take(super::disk::index(end)) {
                if at < self.committed.len() {
                    self.commit(node, at, record)?;
                }
            }
        }
        Ok(())
    }
}

impl Ledger {
    /// Compares what is durable on a node and committed by its own belief. A leader's belief is what makes it so.
    fn follow(&mut self, world: &dyn Look, node: usize, leads: bool) -> Result<(), Violation> {
        let view = world.node(node);
        let Some(process) = &view.process else { return Ok(()) };
        if view.installing {
            return Ok(());
        }
        let to = process.high_watermark.min(process.durable_end).0;
        let to = usize::try_from(to).expect("a run is short").min(view.log.len());
        let from = self.seen.get(&node).copied().unwrap_or(0);
        for (at, record) in view.log.iter().enumerate().take(to).skip(from) {
            if at < self.committed.len() || leads {
                self.commit(node, at, record)?;
                self.seen.insert(node, at + 1);
            }
        }
        Ok(())
    }

    fn commit(&mut self, node: usize, at: usize, record: &Record) -> Result<(), Violation> {
        let found = (record.epoch.0, record.chain, record.content);
        match self.committed.get(at) {
            None if at == self.committed.len() => {
                self.committed.push(found);
                Ok(())
            }
            Some(first) if *first == found => Ok(()),
            first => {
                let text = format!("node {node} has {found:?} at {at}, committed is {first:?}");
                Err(Violation { rule: "committed_never_changes", text })
            }
        }
    }
}
