//! A world as checkers see it.

use std::{rc::Rc, time::Duration};

use super::{
    view::{Agreed, ClientEvent, Counters, Look, NodeView, Observed, ProcessView},
    world::World,
};

impl Look for World {
    fn step(&self) -> u64 {
        self.counters.steps
    }

    fn now(&self) -> Duration {
        Duration::from_micros(self.now)
    }

    fn nodes(&self) -> usize {
        self.nodes.len()
    }

    fn node(&self, index: usize) -> NodeView<'_> {
        let node = &self.nodes[index];
        let image = &node.disk.durable;
        let process = node.process.as_ref();
        let replica = process.and_then(|p| p.replica.as_ref());
        let view = replica.and_then(|replica| {
            let log = replica.log()?;
            Some(ProcessView {
                promised: log.promised(),
                end: log.end().lsn,
                high_watermark: log.high_watermark(),
                durable_end: log.durable_end(),
                history: log.history().starts().collect(),
                settled: log.is_settled(),
                leads: replica.shard().map(|s| (s.primary().config(), s.is_recovered())),
            })
        });
        NodeView {
            id: image.ident.node,
            boot: process.and_then(|p| p.boot),
            log: &image.log,
            start: image.start,
            promised: image.promised,
            high_watermark: image.high_watermark,
            installing: image.installing,
            process: view,
        }
    }

    fn agreed(&self) -> &[Rc<Agreed>] {
        &self.metadata.agreed
    }

    fn observed(&self) -> &[Observed] {
        &self.observed
    }

    fn history(&self) -> &[ClientEvent] {
        &self.history
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}
