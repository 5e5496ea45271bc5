//! What is committed, as the world showed it when it happened: the truth that everything else is measured by.

use std::{collections::BTreeMap, rc::Rc};

use super::{
    super::view::{ClientEvent, NodeView, Record},
    rule::{
        ACKED_IS_COMMITTED, COPIES_ARE_THERE, FAILED_IS_NEVER_STORED, Found, OFFSETS_HAVE_NO_GAPS,
        READ_END_NEVER_FALLS, READ_IS_COMMITTED, SAME_PLACE_SAME_ENTRY, STORED_ONCE,
    },
};
use crate::types::{Epoch, Lsn, Offset};

/// Everything that was committed or written anywhere in a run.
#[derive(Debug, Default)]
pub(super) struct Truth {
    /// By position.
    committed: Vec<Rc<Record>>,
    /// By position, what was ever written there.
    written: Vec<Vec<Fact>>,
    /// Damaged entries that others were given for the truth: by the election of the disk that holds them.
    adopted: Vec<(Lsn, Fact)>,
    /// Where each committed value is.
    placed: BTreeMap<u64, Place>,
    /// Committed values by partition and offset.
    partitions: BTreeMap<u32, Vec<u64>>,
    /// Values whose producers were told that they are not stored.
    failed: BTreeMap<u64, usize>,
    /// By partition and epoch, the greatest end that a reader was told.
    ends: BTreeMap<(u32, Epoch), Offset>,
}

/// An entry that was written, and the epoch of the one before it: by induction this stands for the whole log up to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fact {
    epoch: Epoch,
    chain: u64,
    content: u64,
    before: Epoch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    lsn: Lsn,
    partition: u32,
    offset: u64,
}

impl Truth {
    pub(super) fn end(&self) -> Lsn {
        Lsn(self.committed.len() as u64)
    }

    /// Whether this is what is committed at its position.
    pub(super) fn agrees(&self, record: &Record) -> bool {
        let at = usize::try_from(record.lsn.0).expect("a run is short");
        self.committed.get(at).is_some_and(|committed| same(committed, record))
    }

    /// The chain value at the end of the first `end` positions.
    pub(super) fn chain_before(&self, end: Lsn) -> Option<u64> {
        let at = usize::try_from(end.0).expect("a run is short").checked_sub(1)?;
        self.committed.get(at).map(|record| record.chain)
    }

    /// The next position is committed.
    pub(super) fn commit(&mut self, record: &Rc<Record>, found: &mut Found) {
        let lsn = self.end();
        self.committed.push(Rc::clone(record));
        let Some((partition, base, values)) = &record.values else { return };
        let stored = self.partitions.entry(*partition).or_default();
        if base.0 != stored.len() as u64 {
            found.fault(OFFSETS_HAVE_NO_GAPS, || {
                format!("lsn {lsn} of partition {partition} begins at {base}, not {}", stored.len())
            });
        }
        for (offset, value) in (base.0..).zip(values) {
            stored.push(*value);
            let place = Place { lsn, partition: *partition, offset };
            if let Some(before) = self.placed.insert(*value, place) {
                found.fault(STORED_ONCE, || format!("value {value} at {before:?} and {place:?}"));
            }
            if let Some(client) = self.failed.get(value) {
                found.fault(FAILED_IS_NEVER_STORED, || {
                    format!("client {client} was refused value {value}, stored at {place:?}")
                });
            }
        }
    }

    /// A record was written on a disk behind one of epoch `before`. False if the same position and epoch was seen to
    /// hold something else.
    pub(super) fn write(&mut self, record: &Record, before: Epoch) -> bool {
        let at = usize::try_from(record.lsn.0).expect("a run is short");
        if self.written.len() <= at {
            self.written.resize(at + 1, Vec::new());
        }
        let Record { epoch, chain, content, .. } = *record;
        let fact = Fact { epoch, chain, content, before };
        match self.written[at].iter().find(|fact| fact.epoch == epoch) {
            Some(known) => *known == fact || self.adopted.contains(&(record.lsn, fact)),
            None => {
                self.written[at].push(fact);
                true
            }
        }
    }

    /// A damaged disk leads, or was copied from one that did: there is nothing better any more.
    pub(super) fn adopt(&mut self, record: &Record, before: Epoch) {
        let Record { lsn, epoch, chain, content, .. } = *record;
        self.adopted.push((lsn, Fact { epoch, chain, content, before }));
    }

    pub(super) fn fault_same_place(&self, node: usize, record: &Record, found: &mut Found) {
        let Record { lsn, epoch, chain, content, .. } = record;
        found.fault(SAME_PLACE_SAME_ENTRY, || {
            let at = usize::try_from(lsn.0).expect("a run is short");
            let known = &self.written[at];
            format!("node {node}, lsn {lsn}, epoch {epoch}: {chain:x} {content:x}, was {known:?}")
        });
    }

    /// A producer was told that the batch which begins with this value is stored. `has` counts the disks that have all
    /// before a position. Gives the end of what is acked by it.
    pub(super) fn acked(
        &self,
        node: usize,
        (value, partition, base): (u64, u32, Offset),
        copies: u8,
        has: impl Fn(Lsn) -> usize,
        found: &mut Found,
    ) -> Lsn {
        let place = self.placed.get(&value);
        let Some(place) = place.filter(|p| p.partition == partition && p.offset == base.0) else {
            found.fault(ACKED_IS_COMMITTED, || {
                format!("node {node} acked value {value} at {partition}/{base}, it is at {place:?}")
            });
            return Lsn(0);
        };
        let there = has(place.lsn.next());
        if there < usize::from(copies) {
            found.fault(COPIES_ARE_THERE, || {
                format!("node {node} acked lsn {} on {copies} copies, {there} have it", place.lsn)
            });
        }
        place.lsn.next()
    }

    /// A client did or saw something.
    pub(super) fn client(&mut self, event: &ClientEvent, view: &NodeView<'_>, found: &mut Found) {
        match event {
            ClientEvent::Fail { client, values } => {
                for value in values {
                    self.failed.insert(*value, *client);
                    if let Some(place) = self.placed.get(value) {
                        found.fault(FAILED_IS_NEVER_STORED, || {
                            format!(
                                "client {client} was refused value {value}, stored at {place:?}"
                            )
                        });
                    }
                }
            }
            ClientEvent::Poll { client, node, partition, from, got, end } => {
                let empty = Vec::new();
                let stored = self.partitions.get(partition).unwrap_or(&empty);
                let at = |offset: u64| usize::try_from(offset).ok().and_then(|at| stored.get(at));
                let wrong = (from.0..).zip(got).find(|(next, (offset, value))| {
                    *next != offset.0 || at(*next) != Some(value) || *offset >= *end
                });
                let nothing = got.is_empty() && *from < *end;
                if wrong.is_some() || nothing || end.0 > stored.len() as u64 {
                    let committed = stored.len();
                    found.fault(READ_IS_COMMITTED, || {
                        format!(
                            "client {client} at node {node}, {partition}/{from}: {wrong:?}, \
                             end {end} of {committed}"
                        )
                    });
                }
                self.read_end(*client, *partition, *end, view, found);
            }
            ClientEvent::Invoke { .. } | ClientEvent::Ok { .. } | ClientEvent::Info { .. } => {}
        }
    }

    /// A primary that has committed its own epoch's start knows of all that earlier ones committed.
    fn read_end(
        &mut self,
        client: usize,
        partition: u32,
        end: Offset,
        view: &NodeView<'_>,
        found: &mut Found,
    ) {
        let Some((config, _)) = view.process.as_ref().and_then(|process| process.leads) else {
            found.fault(READ_IS_COMMITTED, || format!("client {client} read where nobody leads"));
            return;
        };
        let epoch = config.epoch;
        let earlier = self.ends.range((partition, Epoch(0))..=(partition, epoch));
        if let Some(((_, before), told)) = earlier.max_by_key(|(_, told)| **told)
            && *told > end
        {
            found.fault(READ_END_NEVER_FALLS, || {
                format!("client {client}: end {end} in epoch {epoch}, {told} in epoch {before}")
            });
        }
        let told = self.ends.entry((partition, epoch)).or_insert(end);
        *told = (*told).max(end);
    }
}

/// Whether two records are the same entry.
fn same(one: &Record, other: &Record) -> bool {
    one.epoch == other.epoch && one.chain == other.chain && one.content == other.content
}
