//! How checkers see a world: what lies on disks, what the site has agreed on, what clients were told. Checkers judge by
//! these alone, never by asking the code under test for a verdict.

#![allow(dead_code, reason = "it shows a world whole; no checker looks at all of it")]

use std::{rc::Rc, time::Duration};

use crate::{
    replication::{Boots, ShardConfig},
    types::{Boot, Epoch, Lsn, NodeId, Offset},
    wire::Entry,
};

/// An entry on a disk, with what the checkers compare. Places and epochs are as written in its header.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) entry: Entry,
    pub(crate) lsn: Lsn,
    pub(crate) epoch: Epoch,
    pub(crate) chain: u64,
    /// A hash of kind, partition and body: not the log's own checksum.
    pub(crate) content: u64,
    /// Of a records entry: index of its partition, offset of its first record, and the values in it.
    pub(crate) values: Option<(u32, Offset, Vec<u64>)>,
}

/// A node as it is after a step.
#[derive(Clone, Debug)]
pub(crate) struct NodeView<'a> {
    /// The id of the disk that is in it now.
    pub(crate) id: Option<NodeId>,
    /// The registered boot, while a process runs that has registered.
    pub(crate) boot: Option<Boot>,
    /// Everything on the disk. Entries before `start` are kept as state only: the log begins there.
    pub(crate) log: &'a [Rc<Record>],
    pub(crate) start: Lsn,
    pub(crate) promised: Epoch,
    pub(crate) high_watermark: Lsn,
    pub(crate) installing: bool,
    /// What the process believes; none while there is none, or it has not registered.
    pub(crate) process: Option<ProcessView<'a>>,
}

/// What a running replica believes. It may be ahead of its disk.
#[derive(Clone, Debug)]
pub(crate) struct ProcessView<'a> {
    pub(crate) promised: Epoch,
    pub(crate) end: Lsn,
    pub(crate) high_watermark: Lsn,
    pub(crate) durable_end: Lsn,
    /// Starts of epochs, oldest first.
    pub(crate) history: Vec<(Epoch, Lsn)>,
    /// The disk has done all that it was asked: log and belief must be the same.
    pub(crate) settled: bool,
    /// While it leads: the metadata that it goes by, and whether its own epoch's start is committed.
    pub(crate) leads: Option<(&'a ShardConfig, bool)>,
}

/// The shard's metadata as of one index of the metadata log.
#[derive(Clone, Debug)]
pub(crate) struct Agreed {
    pub(crate) index: u64,
    pub(crate) config: ShardConfig,
    pub(crate) boots: Boots,
}

/// What happened in a step, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Observed {
    /// Entries from here on are new on the node's disk.
    Written {
        node: usize,
        from: Lsn,
    },
    /// The node's disk was cut here. `by` is the epoch that it had promised then.
    Cut {
        node: usize,
        end: Lsn,
        by: Epoch,
    },
    /// The disk holds something else than before: an older image, nothing, an install.
    Replaced {
        node: usize,
    },
    /// A node began to lead.
    Leads {
        node: usize,
        boot: Boot,
        epoch: Epoch,
    },
    /// A node leads no more.
    Resigned {
        node: usize,
        epoch: Epoch,
    },
    /// The high watermark moved in a process; if it leads, by this commit set and these pending replicas.
    Committed {
        node: usize,
        from: Lsn,
        to: Lsn,
        by: Option<Commit>,
    },
    /// A change was applied that named version `expected`, to the shard at version `found`.
    Applied {
        expected: u64,
        found: u64,
    },
    /// The metadata got another entry: the last of [`Look::agreed`] is new.
    Agreed,
    /// An install began or ended.
    InstallBegan {
        node: usize,
    },
    InstallEnded {
        node: usize,
    },
    /// A process raised an alarm.
    Alarm {
        node: usize,
        text: String,
    },
    /// A producer was told that its batch is stored. The entry's place is that on the node that said so.
    Acked {
        node: usize,
        value: u64,
        partition: u32,
        base: Offset,
        copies: u8,
        epoch: Epoch,
    },
    /// A primary asked whether its epoch still holds.
    BarrierAsked {
        node: usize,
        epoch: Epoch,
        number: u64,
    },
    /// All its questions up to this number are answered, and so much is committed.
    BarrierHeld {
        node: usize,
        epoch: Epoch,
        number: u64,
        end: Lsn,
    },
    /// A process began, or ended.
    Started {
        node: usize,
    },
    Stopped {
        node: usize,
    },
}

/// By what a primary moved its high watermark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) epoch: Epoch,
    pub(crate) version: u64,
    pub(crate) set: Vec<NodeId>,
    pub(crate) pending: Vec<NodeId>,
    pub(crate) copies_min: u32,
}

/// What a client did and was told. Each value is published once in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClientEvent {
    /// A producer begins to publish a batch of these values.
    Invoke { client: usize, partition: u32, values: Vec<u64> },
    /// It is stored, from this offset on, on so many copies.
    Ok { client: usize, partition: u32, values: Vec<u64>, base: Offset, copies: u8 },
    /// Nobody can tell whether it is or will be stored.
    Info { client: usize, values: Vec<u64> },
    /// It is not stored and never will be.
    Fail { client: usize, values: Vec<u64> },
    /// A reader asked from `from` and got these, up to the end that is committed.
    Poll {
        client: usize,
        node: usize,
        partition: u32,
        from: Offset,
        got: Vec<(Offset, u64)>,
        end: Offset,
    },
}

/// How much happened: a run in which nothing did proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) steps: u64,
    pub(crate) failovers: u64,
    pub(crate) truncations: u64,
    pub(crate) set_changes: u64,
    pub(crate) installs: u64,
    pub(crate) acks: u64,
    pub(crate) reads: u64,
    pub(crate) alarms: u64,
    /// Times that a primary proved that it led.
    pub(crate) barriers: u64,
}

/// A world, seen from outside.
pub(crate) trait Look {
    /// Events that were processed.
    fn step(&self) -> u64;
    /// Simulated time since the start.
    fn now(&self) -> Duration;
    /// Number of nodes; they are named by their index.
    fn nodes(&self) -> usize;
    /// One of them.
    fn node(&self, index: usize) -> NodeView<'_>;
    /// The whole metadata of the shard, oldest first, one for each index of its log.
    fn agreed(&self) -> &[Rc<Agreed>];
    /// What happened in the last step.
    fn observed(&self) -> &[Observed];
    /// All that clients did and saw.
    fn history(&self) -> &[ClientEvent];
    /// How much happened so far.
    fn counters(&self) -> Counters;
}

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Name of the check, as docs/replication.md lists them.
    pub(crate) rule: &'static str,
    pub(crate) text: String,
}

/// A judge of worlds.
pub(crate) trait Checker {
    /// Looks after each step.
    fn check(&mut self, world: &dyn Look) -> Result<(), Violation>;
    /// Looks once all has healed and come to rest.
    fn finish(&mut self, world: &dyn Look) -> Result<(), Violation>;
}
