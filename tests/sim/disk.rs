//! What is durable on a node, what it was asked to make durable, and what a power cut leaves of it.
//!
//! The store commits whole prefixes of what it was asked, as redb does: a cut while a commit is under way leaves all of it
//! or nothing, and nobody was told which.

use std::{collections::VecDeque, hash::Hasher, rc::Rc};

use super::view::Record;
use crate::{
    replication::{EpochHistory, LogChange, LogEnd, LogEntry, LogView, ShardReport, Stored},
    types::{Epoch, Lsn, NodeId, Timestamp},
    wire::{Batch, Entry, EntryKind},
};

/// Older images that can be put back.
const IMAGES_MAX: usize = 6;

/// Who a disk says it is.
#[derive(Clone, Debug)]
pub(crate) struct Ident {
    pub(crate) name: String,
    pub(crate) disk_id: u128,
    pub(crate) node: Option<NodeId>,
    pub(crate) boot: u64,
    /// Nonces of the boots since the last one that is known to have registered, that one too.
    pub(crate) nonces: Vec<u64>,
    pub(crate) suspect: bool,
}

/// All that survives a power cut.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) ident: Ident,
    pub(crate) promised: Epoch,
    pub(crate) log: Vec<Rc<Record>>,
    pub(crate) start: Lsn,
    pub(crate) high_watermark: Lsn,
    pub(crate) installing: bool,
    partial: Vec<Rc<Record>>,
}

/// Something that the disk was asked to do.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Append(Rc<Record>),
    Change(LogChange<Entry>),
}

/// What an operation did to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Appended(Lsn),
    Cut(Lsn),
    InstallBegan,
    InstallEnded,
    Other,
}

/// A node's disk.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) durable: Image,
    pub(crate) queue: VecDeque<Op>,
    /// As many of the queue are in the commit that is under way.
    pub(crate) flying: usize,
    pub(crate) done: u64,
    pub(crate) committed: Lsn,
    pub(crate) full: bool,
    /// Each commit takes this many times as long.
    pub(crate) slow: u64,
    pub(crate) images: VecDeque<Image>,
}

impl Image {
    pub(crate) fn empty(name: String, disk_id: u128) -> Self {
        Self {
            ident: Ident { name, disk_id, node: None, boot: 0, nonces: Vec::new(), suspect: false },
            promised: Epoch(0),
            log: Vec::new(),
            start: Lsn(0),
            high_watermark: Lsn(0),
            installing: false,
            partial: Vec::new(),
        }
    }

    pub(crate) fn end(&self) -> Lsn {
        Lsn(self.log.len() as u64)
    }

    pub(crate) fn log_end(&self) -> LogEnd {
        self.log.last().map(|record| record.entry.end()).unwrap_or_default()
    }

    /// What a process finds when it starts.
    pub(crate) fn stored(&self) -> Stored {
        if self.installing {
            return Stored {
                promised: self.promised,
                high_watermark: self.high_watermark,
                installing: true,
                ..Stored::default()
            };
        }
        Stored {
            promised: self.promised,
            history: EpochHistory::new(self.log.iter().map(|record| (record.epoch, record.lsn))),
            start: self.start,
            end: self.log_end(),
            high_watermark: self.high_watermark,
            installing: false,
        }
    }

    pub(crate) fn report(&self) -> ShardReport {
        ShardReport { end: self.log_end(), installing: self.installing }
    }

    fn apply(&mut self, op: Op) -> Done {
        match op {
            Op::Append(record) => {
                let lsn = record.lsn;
                assert_eq!(lsn, self.end(), "the log on the disk has no gaps");
                self.log.push(record);
                Done::Appended(lsn)
            }
            Op::Change(LogChange::Promise(epoch)) => {
                self.promised = self.promised.max(epoch);
                Done::Other
            }
            Op::Change(LogChange::Truncate(end)) => {
                self.log.truncate(index(end));
                Done::Cut(end)
            }
            Op::Change(change @ (LogChange::InstallBegin(_) | LogChange::Forget)) => {
                if matches!(change, LogChange::Forget) {
                    self.high_watermark = Lsn(0);
                }
                self.log.clear();
                self.partial.clear();
                self.start = Lsn(0);
                self.installing = true;
                Done::InstallBegan
            }
            Op::Change(LogChange::InstallChunk(chunk)) => {
                self.partial.extend(chunk.entries.into_iter().map(|e| Rc::new(Record::new(e))));
                Done::Other
            }
            Op::Change(LogChange::InstallEnd { base, .. }) => {
                self.log = std::mem::take(&mut self.partial);
                self.start = base.lsn;
                self.high_watermark = base.lsn;
                self.installing = false;
                Done::InstallEnded
            }
        }
    }
}

impl LogView for Image {
    fn end_at(&self, lsn: Lsn) -> Option<LogEnd> {
        if lsn < self.start || lsn > self.end() {
            return None;
        }
        match index(lsn) {
            0 => Some(LogEnd::default()),
            n => Some(self.log[n - 1].entry.end()),
        }
    }
}

impl Disk {
    pub(crate) fn new(image: Image) -> Self {
        Self {
            durable: image,
            queue: VecDeque::new(),
            flying: 0,
            done: 0,
            committed: Lsn(0),
            full: false,
            slow: 1,
            images: VecDeque::new(),
        }
    }

    /// The entries from `from` to `until`, durable or not, and what comes before them.
    pub(crate) fn read(&self, from: Lsn, until: Lsn) -> (LogEnd, Vec<Entry>) {
        let at = |lsn: u64| -> Option<&Rc<Record>> {
            let durable = self.durable.end().0;
            if lsn < durable {
                return self.durable.log.get(index(Lsn(lsn)));
            }
            match self.queue.get(index(Lsn(lsn - durable))) {
                Some(Op::Append(record)) => Some(record),
                _ => None,
            }
        };
        let prev = match from.0 {
            0 => LogEnd::default(),
            n => at(n - 1).map(|record| record.entry.end()).unwrap_or_default(),
        };
        let entries = (from.0..until.0).map_while(|lsn| at(lsn).map(|r| r.entry.clone()));
        (prev, entries.collect())
    }

    /// The commit that was under way is done.
    pub(crate) fn commit(&mut self) -> Vec<Done> {
        let done = self.queue.drain(..self.flying).map(|op| self.durable.apply(op)).collect();
        self.done += self.flying as u64;
        self.flying = 0;
        let end = self.durable.end();
        if !self.durable.installing {
            let committed = self.committed.min(end);
            self.durable.high_watermark = self.durable.high_watermark.max(committed);
        }
        done
    }

    /// The process is gone. What was in the commit may be there or not; nothing behind it is.
    pub(crate) fn lose_power(&mut self, survives: bool) -> Vec<Done> {
        let done = if survives { self.commit() } else { Vec::new() };
        self.queue.clear();
        (self.flying, self.done, self.committed) = (0, 0, Lsn(0));
        if self.images.len() == IMAGES_MAX {
            self.images.pop_front();
        }
        self.images.push_back(self.durable.clone());
        done
    }
}

impl Record {
    pub(crate) fn new(entry: Entry) -> Self {
        let header = entry.header;
        let mut hash = std::hash::DefaultHasher::new();
        hash.write_u8(header.kind as u8);
        hash.write_u32(header.partition.index);
        hash.write(&entry.body);
        let values = (header.kind == EntryKind::Records).then(|| values(&entry)).flatten();
        Self {
            lsn: header.lsn,
            epoch: header.epoch,
            chain: header.chain,
            content: hash.finish(),
            values,
            entry,
        }
    }

    /// Append time and offset behind the last record, of a records entry.
    pub(crate) fn stamp(&self) -> Option<(Timestamp, u64)> {
        let header = self.entry.batch_header().ok()?;
        Some((header.append_time, header.end_offset().0))
    }
}

fn values(entry: &Entry) -> Option<(u32, crate::types::Offset, Vec<u64>)> {
    let batch = Batch::parse(entry.body.clone()).ok()?;
    let mut values = Vec::new();
    for record in batch.records().ok()? {
        let (_, record) = record.ok()?;
        let bytes: [u8; 8] = record.value.as_ref().try_into().ok()?;
        values.push(u64::from_be_bytes(bytes));
    }
    Some((entry.header.partition.index, batch.header().base_offset, values))
}

/// A position as an index: runs are short.
pub(crate) fn index(lsn: Lsn) -> usize {
    usize::try_from(lsn.0).expect("a run is short")
}
