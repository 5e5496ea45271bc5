//! When a site that is whole again has nothing left to do.

use super::{node::Process, world::World};
use crate::{broker::Replica, replication::LocalLog, types::NodeId};

impl World {
    /// Faults are over: what is broken is mended, and producers finish what they have begun.
    pub(crate) fn begin_rest(&mut self) {
        self.forget_faults();
        self.heal();
        self.acks_at_rest = None;
    }

    /// Whether the site serves, every replica is in the set and has everything, and no client waits.
    pub(crate) fn is_at_rest(&mut self) -> bool {
        if !self.is_whole() {
            return false;
        }
        // Publishes must get through once the site is whole, and then end.
        match self.acks_at_rest {
            None => self.acks_at_rest = Some(self.counters.acks),
            Some(before) if self.counters.acks > before => self.quiet = true,
            Some(_) => {}
        }
        self.quiet && self.producers.iter().all(|p| p.open.is_none()) && self.is_even()
    }

    /// Whether no member of the set has a disk any more: one was lost while proposals to drop the others were under way.
    /// An operator would have to decide.
    pub(crate) fn is_orphaned(&self) -> bool {
        let config = &self.metadata.newest().config;
        !config.set.is_empty() && config.set.iter().all(|id| !self.ids.contains_key(id))
    }

    /// What is missing, for whoever reads a failure.
    pub(crate) fn describe(&self) -> String {
        let config = &self.metadata.newest().config;
        let nodes: Vec<String> = self
            .nodes
            .iter()
            .map(|node| {
                let process = node.process.as_ref();
                let replica = process.and_then(|p| p.replica.as_ref());
                let log = replica.and_then(Replica::log);
                format!(
                    "{:?} applied {:?} leads {:?} end {:?} hw {:?} settled {:?} promised {:?} waiting {}",
                    process.and_then(|p| p.boot),
                    process.map(|p| p.applied),
                    process.and_then(Process::leads),
                    log.map(LocalLog::end),
                    log.map(LocalLog::high_watermark),
                    log.map(LocalLog::is_settled),
                    log.map(LocalLog::promised),
                    node.disk.queue.len(),
                )
            })
            .collect();
        let open = self.producers.iter().filter(|p| p.open.is_some()).count();
        format!("{config:?}; {open} batches open; {}", nodes.join("; "))
    }

    fn is_whole(&self) -> bool {
        let newest = self.metadata.newest();
        let config = &newest.config;
        let same = |node: &NodeId| config.set.contains(node);
        let full = config.replicas.iter().all(same) && config.set.len() == config.replicas.len();
        let primary = config.primary.and_then(|boot| self.ids.get(&boot.node));
        let leads = primary.is_some_and(|at| {
            let process = self.nodes[*at].process.as_ref();
            let shard = process.and_then(|p| p.replica.as_ref()).and_then(|r| r.shard());
            shard.is_some_and(|s| s.is_recovered() && s.primary().epoch() == config.epoch)
        });
        full && leads && config.pending.is_empty()
    }

    fn is_even(&self) -> bool {
        let config = &self.metadata.newest().config;
        let mut ends = Vec::new();
        for id in &config.set {
            let Some(node) = self.ids.get(id).map(|at| &self.nodes[*at]) else { return false };
            let replica = node.process.as_ref().and_then(|p| p.replica.as_ref());
            let Some(log) = replica.and_then(Replica::log) else { return false };
            if !log.is_settled() || log.high_watermark() != log.end().lsn {
                return false;
            }
            ends.push((log.end().lsn, node.disk.durable.high_watermark));
        }
        ends.iter().all(|(end, _)| *end == ends[0].0)
    }
}
