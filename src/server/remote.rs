//! Partitions of a reader's topic that this node does not hold, read from nodes that do.
//!
//! One subscribe stream of the client protocol goes to each of those nodes. What it brings is passed on as it comes: at
//! most [`FRAMES_MAX`] batches of a stream wait here, and the windows of QUIC hold back the rest. When one stream ends,
//! the reader's stream ends, too, with a fault that lets it come again: it resumes by its positions, and then other nodes
//! may hold what it wants.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use quinn::SendStream;
use tokio::sync::mpsc;

use super::{
    engine::Engine,
    relay::{Relays, electing},
    subscribe::not_held,
    topics::{Partition, Topic},
};
use crate::{
    net::frames::FrameReader,
    types::{NodeId, Offset},
    wire::{CaughtUp, Code, Fault, FrameType, ReadStart, SubscribeOpen, cbor},
};

/// Batches that wait for the reader, of all nodes together.
pub(super) const FRAMES_MAX: usize = 4;
/// Nodes that are asked for a partition, one after the other.
const ASKED_MAX: usize = 3;

/// Streams to other nodes.
pub(super) struct Remote {
    /// Where the reader starts in these partitions.
    pub(super) starts: Vec<ReadStart>,
    frames: mpsc::Receiver<Result<Brought, Fault>>,
    /// Streams that have not caught up.
    behind: usize,
    positions: Vec<(u32, Offset)>,
    /// Whether there are streams at all: else nothing ever comes.
    any: bool,
}

enum Brought {
    /// The body of a `Deliver` frame.
    Batch(Bytes),
    CaughtUp(CaughtUp),
}

impl Remote {
    /// Opens streams for these partitions. A node that cannot be reached is left out, and the next that holds them is asked.
    pub(super) async fn open(
        engine: &Engine,
        relays: &Arc<Relays>,
        topic: &Topic,
        open: &SubscribeOpen,
        partitions: &[Arc<Partition>],
    ) -> Result<Self, Fault> {
        let (sender, frames) = mpsc::channel(FRAMES_MAX);
        let any = !partitions.is_empty();
        let mut remote = Self { starts: Vec::new(), frames, behind: 0, positions: Vec::new(), any };
        let mut left: Vec<&Arc<Partition>> = partitions.iter().collect();
        let mut failed = BTreeSet::new();
        for _ in 0..ASKED_MAX {
            let mut groups: BTreeMap<NodeId, Vec<&Arc<Partition>>> = BTreeMap::new();
            for partition in left.drain(..) {
                let node = holder(engine, partition, &failed).ok_or_else(|| not_held(partition))?;
                groups.entry(node).or_default().push(partition);
            }
            for (node, group) in groups {
                let wanted: Vec<u32> = group.iter().map(|partition| partition.id.index).collect();
                let resume = open.resume.iter().filter(|(index, _)| wanted.contains(index));
                let open = SubscribeOpen {
                    topic: open.topic.clone(),
                    from: open.from,
                    resume: resume.copied().collect(),
                    partitions: Some(wanted),
                    direct: true,
                };
                match relays.subscribe(engine, node, open).await {
                    Ok((ok, output, input)) if ok.topic_id == topic.id => {
                        remote.starts.extend(ok.partitions);
                        remote.behind += 1;
                        let sender = sender.clone();
                        relays.tasks().spawn(bring(node, output, input, sender));
                    }
                    Ok(_) => return Err(electing("the topic was made anew")),
                    // It would say the same wherever it is asked.
                    Err(fault) if fault.code == Code::OutOfRange => return Err(fault),
                    Err(fault) => {
                        tracing::debug!(%node, %fault, "what a reader wants is asked elsewhere");
                        failed.insert(node);
                        left.extend(group);
                    }
                }
            }
            if left.is_empty() {
                return Ok(remote);
            }
        }
        match left.first() {
            Some(partition) => Err(not_held(partition)),
            None => Ok(remote),
        }
    }

    /// A batch that is here already.
    pub(super) fn ready(&mut self) -> Option<Result<Bytes, Fault>> {
        loop {
            match self.frames.try_recv().ok()? {
                Ok(Brought::Batch(body)) => return Some(Ok(body)),
                Ok(Brought::CaughtUp(caught_up)) => self.take(caught_up),
                Err(fault) => return Some(Err(fault)),
            }
        }
    }

    /// The next batch, or `None` when a stream has caught up. Never, where there are no streams.
    ///
    /// May be given up at any time without loss.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        if !self.any {
            return std::future::pending().await;
        }
        match self.frames.recv().await {
            Some(Ok(Brought::Batch(body))) => Ok(Some(body)),
            Some(Ok(Brought::CaughtUp(caught_up))) => {
                self.take(caught_up);
                Ok(None)
            }
            Some(Err(fault)) => Err(fault),
            None => Err(electing("the nodes that have the partitions were lost")),
        }
    }

    /// The positions at which all streams had caught up, once they all have.
    pub(super) fn caught_up(&self) -> Option<Vec<(u32, Offset)>> {
        (self.behind == 0).then(|| self.positions.clone())
    }

    fn take(&mut self, caught_up: CaughtUp) {
        self.behind = self.behind.saturating_sub(1);
        self.positions.extend(caught_up.positions);
    }
}

/// A node that has all of a partition that is committed: its primary, else another member of the set.
fn holder(engine: &Engine, partition: &Partition, failed: &BTreeSet<NodeId>) -> Option<NodeId> {
    let core = engine.slot(partition.shard).lock();
    let config = core.replica.config();
    let primary = config.primary.map(|boot| boot.node);
    let mut members = primary.into_iter().chain(config.set.iter().copied());
    members.find(|node| *node != engine.me.node && !failed.contains(node))
}

/// Brings what one node sends, until either side ends it.
async fn bring(
    node: NodeId,
    // Ended, it would tell the node that nobody reads any more.
    _output: SendStream,
    mut input: FrameReader,
    sender: mpsc::Sender<Result<Brought, Fault>>,
) {
    loop {
        let next = tokio::select! {
            next = input.next() => next,
            () = sender.closed() => return,
        };
        let lost = |why: &dyn std::fmt::Display| {
            electing(&format!("node {node}, from which a partition is read, was lost: {why}"))
        };
        let brought = match next {
            Ok(Some(frame)) if frame.kind == FrameType::Deliver => Ok(Brought::Batch(frame.body)),
            Ok(Some(frame)) if frame.kind == FrameType::CaughtUp => {
                cbor::get(&frame.body).map(Brought::CaughtUp).map_err(|error| lost(&error))
            }
            Ok(Some(frame)) if frame.kind == FrameType::Fault => {
                let fault = cbor::get::<Fault>(&frame.body).map_err(|error| lost(&error));
                Err(fault.map_or_else(
                    |lost| lost,
                    |fault| if fault.code == Code::OutOfRange { fault } else { lost(&fault) },
                ))
            }
            Ok(Some(frame)) => Err(lost(&format!("it sent {:?}", frame.kind))),
            Ok(None) => Err(lost(&"it ended the stream")),
            Err(error) => Err(lost(&error)),
        };
        let ends = brought.is_err();
        if sender.send(brought).await.is_err() || ends {
            return;
        }
    }
}
