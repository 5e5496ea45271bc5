//! What must be true of the stores at the end.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use dunlin::{
    types::{Lsn, Offset},
    wire::Batch,
};

use super::{
    node::{Node, PARTITIONS, SHARD, partition},
    world::{Machine, World},
};

impl World {
    /// All nodes have the same logs and records, all that was acked and is not trimmed among them, nothing twice.
    pub(super) fn check_end(&mut self) {
        let nodes: Vec<&Node> = self.machines.iter().filter_map(Machine::node).collect();
        let end = nodes[0].store.log_end(SHARD);
        let start = nodes.iter().map(|node| node.store.log_start(SHARD)).max().expect("three");
        let logs = nodes.iter().map(|node| {
            let read = |from: Lsn| node.store.read_log(SHARD, from, end, 1 << 20).expect("whole");
            let mut log = read(start);
            while log.last().is_some_and(|last| last.header.lsn.next() < end) {
                let more = read(Lsn(start.0 + log.len() as u64));
                if more.is_empty() {
                    // It ends before the first one's: told below.
                    break;
                }
                log.extend(more);
            }
            log
        });
        let logs: Vec<_> = logs.collect();
        assert_eq!(logs[0].len() as u64, end.0 - start.0);
        assert!(logs.iter().all(|log| *log == logs[0]), "the logs differ");
        let mut records = 0;
        for index in 0..PARTITIONS {
            let all: Vec<_> = nodes.iter().map(|node| read(node, index)).collect();
            assert!(all.iter().all(|found| *found == all[0]), "partition {index} differs");
            let found = &all[0];
            records += found.len() as u64;
            let distinct: BTreeSet<_> = found.values().map(|value| &value[..8]).collect();
            assert_eq!(distinct.len(), found.len(), "a record is there twice");
            let kept = nodes[0].applied.view(partition(index)).expect("never dropped").start;
            for acked in self.acked.iter().filter(|acked| acked.partition == index) {
                for (offset, value) in (acked.base.0..).map(Offset).zip(&acked.values) {
                    assert!(
                        offset < kept || found.get(&offset) == Some(value),
                        "acked at {offset} of partition {index}, and not there"
                    );
                }
            }
        }
        self.counters.records = records;
    }
}

/// All records of a partition that are kept.
fn read(node: &Node, index: u32) -> BTreeMap<Offset, Bytes> {
    let view = node.applied.view(partition(index)).expect("never dropped");
    let bounds = node.store.bounds(partition(index)).expect("never dropped");
    assert_eq!((bounds.start, bounds.end), (view.start, view.end), "{:?}", node.boot);
    let (mut found, mut next) = (BTreeMap::new(), view.start);
    while next < view.end {
        let chunk =
            node.store.read(partition(index), next, view.end, 1 << 20).expect("can be read");
        for batch in chunk.batches {
            for record in Batch::parse(batch).expect("whole").records().expect("whole") {
                let (offset, record) = record.expect("whole");
                if offset >= view.start {
                    found.insert(offset, record.value.to_vec().into());
                }
            }
        }
        assert!(chunk.next > next);
        next = chunk.next;
    }
    found
}
