//! What must hold of what clients did and saw, judged once a run has come to rest: against each other, and against the
//! log of every member of the commit set. It sorts and compares, and searches nothing.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::view::{Checker, ClientEvent, Look, Violation};
use crate::types::Offset;

/// The judge of what clients saw.
#[derive(Debug, Default)]
pub(crate) struct History;

/// What is wrong. The names are those of the checks in docs/replication.md; those of jepsen.tests.kafka stand beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Anomaly {
    /// Acked, and missing in a replica's log (lost-write, unseen).
    Lost,
    /// One value at two places (duplicate).
    Duplicated,
    /// Two values at one place, or acked at one and found at another (inconsistent-offsets).
    Inconsistent,
    /// Sends of one producer stand in another order (nonmonotonic-send).
    Reordered,
    /// Sent after the ack of another record, and stored before it.
    Untimely,
    /// Refused for good, and stored (G1a).
    Aborted,
    /// Stored, and never sent, or sent to another partition.
    Phantom,
    /// A reader was not given an offset (poll-skip).
    Skipped,
    /// A reader was given an offset again, or an earlier one (nonmonotonic-poll).
    Nonmonotonic,
    /// A node told readers of an end, and later of a smaller one.
    EndFell,
    /// Two members of the set hold different records.
    Differing,
}

impl Anomaly {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::Inconsistent => "inconsistent",
            Self::Reordered => "reordered",
            Self::Untimely => "untimely",
            Self::Aborted => "aborted",
            Self::Phantom => "phantom",
            Self::Skipped => "skipped",
            Self::Nonmonotonic => "nonmonotonic",
            Self::EndFell => "end_fell",
            Self::Differing => "differing",
        }
    }
}

/// Partition and offset.
type Place = (u32, u64);
/// The records of one replica, in the order of its log.
type Replica = Vec<(Place, u64)>;

/// A value from its `send` to what its producer was told; times are indices of the history.
#[derive(Clone, Debug)]
struct Sent {
    client: usize,
    partition: u32,
    invoked: usize,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Unknown,
    Failed,
    /// When, and where.
    Ok(usize, Place),
}

/// By kind, what is wrong.
#[derive(Debug, Default)]
struct Findings(BTreeMap<Anomaly, String>);

impl Findings {
    /// Keeps the first of each kind.
    fn add(&mut self, anomaly: Anomaly, text: impl FnOnce() -> String) {
        self.0.entry(anomaly).or_insert_with(text);
    }
}

impl Checker for History {
    fn check(&mut self, _: &dyn Look) -> Result<(), Violation> {
        Ok(())
    }

    fn finish(&mut self, world: &dyn Look) -> Result<(), Violation> {
        let Some(newest) = world.agreed().last() else { return Ok(()) };
        let views = (0..world.nodes()).map(|node| world.node(node));
        let members = views.filter(|v| v.id.is_some_and(|id| newest.config.set.contains(&id)));
        let replicas: Vec<Replica> = members
            .map(|view| {
                let records = view.log.iter().filter_map(|record| record.values.as_ref());
                let placed =
                    records.flat_map(|(partition, base, values)| places(*partition, *base, values));
                placed.collect()
            })
            .collect();
        match judge(world.history(), &replicas).0.into_iter().next() {
            None => Ok(()),
            Some((anomaly, text)) => Err(Violation { rule: anomaly.name(), text }),
        }
    }
}

fn places(partition: u32, base: Offset, values: &[u64]) -> impl Iterator<Item = (Place, u64)> {
    (base.0..).zip(values).map(move |(offset, value)| ((partition, offset), *value))
}

fn judge(history: &[ClientEvent], replicas: &[Replica]) -> Findings {
    let mut found = Findings::default();
    let sent = sends(history);
    let acked = acked(&sent);
    let mut seen = polled(history, &mut found);
    seen.extend(replicas.iter().flatten());
    check_places(seen, &sent, &acked, &mut found);
    check_replicas(&acked, replicas, &mut found);
    check_order(&acked, &mut found);
    check_time(&acked, &mut found);
    check_ends(history, &mut found);
    found
}

fn sends(history: &[ClientEvent]) -> BTreeMap<u64, Sent> {
    let mut sent: BTreeMap<u64, Sent> = BTreeMap::new();
    for (at, event) in history.iter().enumerate() {
        match event {
            ClientEvent::Invoke { client, partition, values } => {
                let (client, partition, outcome) = (*client, *partition, Outcome::Unknown);
                let one = Sent { client, partition, invoked: at, outcome };
                sent.extend(values.iter().map(|value| (*value, one.clone())));
            }
            ClientEvent::Ok { partition, values, base, .. } => {
                for (place, value) in places(*partition, *base, values) {
                    if let Some(sent) = sent.get_mut(&value) {
                        sent.outcome = Outcome::Ok(at, place);
                    }
                }
            }
            ClientEvent::Fail { values, .. } => {
                for value in values {
                    if let Some(sent) = sent.get_mut(value) {
                        sent.outcome = Outcome::Failed;
                    }
                }
            }
            ClientEvent::Info { .. } | ClientEvent::Poll { .. } => {}
        }
    }
    sent
}

/// An acked value: when it was acked, and where it is said to be.
#[derive(Clone, Debug)]
struct Acked<'a> {
    value: u64,
    sent: &'a Sent,
    settled: usize,
    place: Place,
}

fn acked(sent: &BTreeMap<u64, Sent>) -> Vec<Acked<'_>> {
    let acked = sent.iter().filter_map(|(value, sent)| match sent.outcome {
        Outcome::Ok(settled, place) => Some(Acked { value: *value, sent, settled, place }),
        Outcome::Failed | Outcome::Unknown => None,
    });
    acked.collect()
}

/// What readers were given. Questions may overtake each other, so that an offset may be asked for again; what is never
/// asked for was skipped, and so was what an answer leaves out.
fn polled(history: &[ClientEvent], found: &mut Findings) -> Replica {
    let mut seen = Vec::new();
    let mut nexts: BTreeMap<usize, u64> = BTreeMap::new();
    for event in history {
        let ClientEvent::Poll { client, partition, from, got, end, .. } = event else { continue };
        let next = nexts.entry(*client).or_default();
        if from.0 > *next || (got.is_empty() && from < end) {
            found.add(Anomaly::Skipped, || format!("offset {next} by {event:?}"));
        }
        let mut expected = from.0;
        for (offset, value) in got {
            if offset.0 > expected {
                found.add(Anomaly::Skipped, || format!("offset {expected} by {event:?}"));
            } else if offset.0 < expected {
                found.add(Anomaly::Nonmonotonic, || format!("offset {offset} by {event:?}"));
            }
            expected = expected.max(offset.0 + 1);
            seen.push(((*partition, offset.0), *value));
        }
        *next = expected.max(*next);
    }
    seen
}

/// Each value has one place and each place one value, whoever speaks of them; and somebody sent it there.
fn check_places(
    mut seen: Replica,
    sent: &BTreeMap<u64, Sent>,
    acked: &[Acked<'_>],
    found: &mut Findings,
) {
    seen.sort_unstable_by_key(|(place, value)| (*value, *place));
    seen.dedup();
    for pair in seen.windows(2).filter(|pair| pair[0].1 == pair[1].1) {
        found.add(Anomaly::Duplicated, || format!("{pair:?}"));
    }
    for (place, value) in &seen {
        match sent.get(value) {
            Some(sent) if sent.partition != place.0 => {
                found.add(Anomaly::Phantom, || format!("{value} at {place:?}: {sent:?}"));
            }
            Some(sent) if sent.outcome == Outcome::Failed => {
                found.add(Anomaly::Aborted, || format!("{value} at {place:?}: {sent:?}"));
            }
            Some(_) => {}
            None => found.add(Anomaly::Phantom, || format!("{value} at {place:?} was not sent")),
        }
    }
    seen.extend(acked.iter().map(|acked| (acked.place, acked.value)));
    seen.sort_unstable();
    seen.dedup();
    for pair in seen.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        found.add(Anomaly::Inconsistent, || format!("{pair:?}"));
    }
}

/// Every member of the set has every acked record where its ack said, and all have the same.
fn check_replicas(acked: &[Acked<'_>], replicas: &[Replica], found: &mut Findings) {
    for (number, replica) in replicas.iter().enumerate() {
        let places: BTreeMap<u64, Place> = replica.iter().map(|(p, value)| (*value, *p)).collect();
        for Acked { value, place, .. } in acked {
            match places.get(value) {
                None => found.add(Anomaly::Lost, || {
                    format!("{value} at {place:?} by replica {number} of the set")
                }),
                Some(there) if there != place => found.add(Anomaly::Inconsistent, || {
                    format!("{value} acked at {place:?} and stored at {there:?}")
                }),
                Some(_) => {}
            }
        }
    }
    for pair in replicas.windows(2).filter(|pair| pair[0] != pair[1]) {
        let at = pair[0].iter().zip(&pair[1]).take_while(|(a, b)| a == b).count();
        found.add(Anomaly::Differing, || {
            format!("record {at}: {:?} and {:?}", pair[0].get(at), pair[1].get(at))
        });
    }
}

/// The order of one producer's sends is the order of their offsets.
fn check_order(acked: &[Acked<'_>], found: &mut Findings) {
    let mut newest: BTreeMap<(usize, u32), u64> = BTreeMap::new();
    for Acked { value, sent, place, .. } in acked {
        let before = newest.insert((sent.client, place.0), place.1);
        if before.is_some_and(|before| before >= place.1) {
            found.add(Anomaly::Reordered, || format!("{value} at {place:?} behind {before:?}"));
        }
    }
}

/// What was sent after an ack, by anyone, stands behind what was acked.
fn check_time(acked: &[Acked<'_>], found: &mut Findings) {
    let mut by_settled: Vec<&Acked<'_>> = acked.iter().collect();
    by_settled.sort_by_key(|acked| acked.settled);
    let mut by_invoked: Vec<&Acked<'_>> = acked.iter().collect();
    by_invoked.sort_by_key(|acked| acked.sent.invoked);
    let mut settled = by_settled.into_iter().peekable();
    let mut newest: BTreeMap<u32, u64> = BTreeMap::new();
    for acked in by_invoked {
        while let Some(before) = settled.next_if(|before| before.settled < acked.sent.invoked) {
            let (partition, offset) = before.place;
            let newest = newest.entry(partition).or_default();
            *newest = offset.max(*newest);
        }
        let (partition, offset) = acked.place;
        if let Some(before) = newest.get(&partition).filter(|before| **before >= offset) {
            found.add(Anomaly::Untimely, || format!("{acked:?}, acked before: {before}"));
        }
    }
}

/// What a node once said to be committed is so for ever: it serves again only when it knows of all of it.
fn check_ends(history: &[ClientEvent], found: &mut Findings) {
    let mut ends: BTreeMap<(usize, u32), Offset> = BTreeMap::new();
    for event in history {
        let ClientEvent::Poll { node, partition, end, .. } = event else { continue };
        let told = ends.entry((*node, *partition)).or_insert(*end);
        if *told > *end {
            found.add(Anomaly::EndFell, || format!("{told}, then {event:?}"));
        }
        *told = (*told).max(*end);
    }
}
