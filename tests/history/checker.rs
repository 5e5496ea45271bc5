//! Judges a history: what producers were told against what readers saw. It decides by its arguments alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// What one operation published. No two operations publish the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Value {
    pub(crate) producer: usize,
    pub(crate) n: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) topic: usize,
    pub(crate) partition: u32,
    pub(crate) offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok(Place),
    /// It is not stored and never will be.
    Failed,
    /// It may be stored, once, or not.
    Unknown,
}

/// One record from its `send` to what its producer was told. `invoked` and `settled` count the events of the whole run.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) value: Value,
    pub(crate) topic: usize,
    pub(crate) key: u64,
    pub(crate) invoked: u64,
    pub(crate) settled: u64,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// What one reader of one topic saw, in its order, from offset 0 on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Session {
    pub(crate) topic: usize,
    /// Who read, for people.
    pub(crate) reader: String,
    pub(crate) seen: Vec<Seen>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) operations: Vec<Operation>,
    pub(crate) live: Vec<Session>,
    /// Reads of each topic after everything has ended, at least one of each: through every node there is.
    pub(crate) last: Vec<Session>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Anomaly {
    /// Acked, and missing in a last read.
    Lost,
    /// Read at two places.
    Duplicated,
    /// Two values at one place, or acked at one place and read at another.
    Inconsistent,
    /// Acked sends of one producer stand in a partition in another order, or a key changed its partition.
    Reordered,
    /// Sent after the ack of another record, and stored before it.
    Untimely,
    /// Refused for good, and read.
    Aborted,
    /// Read, and never published like this.
    Phantom,
    /// A reader was not given an offset.
    Skipped,
    /// A reader was given an offset again, or an earlier one.
    Nonmonotonic,
    /// A live reader and a last read, or two last reads, do not say the same.
    Differing,
}

impl Anomaly {
    pub(crate) const ALL: [Self; 10] = [
        Self::Lost,
        Self::Duplicated,
        Self::Inconsistent,
        Self::Reordered,
        Self::Untimely,
        Self::Aborted,
        Self::Phantom,
        Self::Skipped,
        Self::Nonmonotonic,
        Self::Differing,
    ];
}

/// What is wrong, in words, by kind. Its display is the count of every kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings(BTreeMap<Anomaly, Vec<String>>);

impl Findings {
    pub(crate) fn is_clean(&self) -> bool {
        self.0.is_empty()
    }

    /// Some of each kind.
    pub(crate) fn examples(&self) -> String {
        let some = self.0.iter().flat_map(|(kind, found)| {
            found.iter().take(5).map(move |what| format!("{kind:?}: {what}\n"))
        });
        some.collect()
    }

    fn add(&mut self, kind: Anomaly, what: String) {
        self.0.entry(kind).or_default().push(what);
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = Anomaly::ALL.map(|kind| {
            let count = self.0.get(&kind).map_or(0, Vec::len);
            format!("{kind:?} {count}").to_lowercase()
        });
        f.write_str(&counts.join(" "))
    }
}

pub(crate) fn check(history: &History) -> Findings {
    let mut found = Findings::default();
    for session in history.live.iter().chain(&history.last) {
        check_session(session, &mut found);
    }
    check_places(history, &mut found);
    check_outcomes(history, &mut found);
    check_order(&history.operations, &mut found);
    check_time(&history.operations, &mut found);
    check_same(history, &mut found);
    found
}

fn check_session(session: &Session, found: &mut Findings) {
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    for seen in &session.seen {
        let next = next.entry(seen.place.partition).or_default();
        let offset = seen.place.offset;
        if offset > *next {
            found.add(Anomaly::Skipped, format!("{seen:?} came instead of offset {next}"));
        } else if offset < *next {
            found.add(Anomaly::Nonmonotonic, format!("{seen:?} came instead of offset {next}"));
        }
        *next = (*next).max(offset + 1);
    }
}

/// Each value has one place and each place one value, whoever speaks of them.
fn check_places(history: &History, found: &mut Findings) {
    let mut read: Vec<(Value, Place)> =
        all_seen(history).map(|seen| (seen.value, seen.place)).collect();
    read.sort_unstable();
    read.dedup();
    for pair in read.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        found.add(Anomaly::Duplicated, format!("{pair:?}"));
    }
    let mut owners: Vec<(Place, Value)> =
        read.into_iter().map(|(value, place)| (place, value)).collect();
    owners.extend(acked(&history.operations).map(|(operation, place)| (place, operation.value)));
    owners.sort_unstable();
    owners.dedup();
    for pair in owners.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        found.add(Anomaly::Inconsistent, format!("{pair:?}"));
    }
}

/// What producers were told is so.
fn check_outcomes(history: &History, found: &mut Findings) {
    let operations: BTreeMap<Value, &Operation> =
        history.operations.iter().map(|operation| (operation.value, operation)).collect();
    let seen: BTreeSet<Seen> = all_seen(history).copied().collect();
    for seen in seen {
        match operations.get(&seen.value) {
            Some(operation) if operation.topic != seen.place.topic => {
                found.add(Anomaly::Phantom, format!("{seen:?} belongs to another topic"));
            }
            Some(operation) if operation.outcome == Outcome::Failed => {
                found.add(Anomaly::Aborted, format!("{seen:?} of {operation:?}"));
            }
            Some(_) => {}
            None => found.add(Anomaly::Phantom, format!("{seen:?} was not sent")),
        }
    }
    for session in &history.last {
        let mut last: BTreeMap<Value, Vec<Place>> = BTreeMap::new();
        for seen in &session.seen {
            last.entry(seen.value).or_default().push(seen.place);
        }
        let reader = &session.reader;
        let of_topic = acked(&history.operations).filter(|(o, _)| o.topic == session.topic);
        for (operation, place) in of_topic {
            match last.get(&operation.value) {
                None => found.add(Anomaly::Lost, format!("{operation:?} for {reader}")),
                Some(places) if places.contains(&place) => {}
                Some(places) => {
                    let what = format!("{operation:?} read at {places:?} by {reader}");
                    found.add(Anomaly::Inconsistent, what);
                }
            }
        }
    }
}

/// The order of one producer's sends is the order of their offsets, and a key keeps its partition.
fn check_order(operations: &[Operation], found: &mut Findings) {
    let mut by_number: Vec<(&Operation, Place)> = acked(operations).collect();
    by_number.sort_unstable_by_key(|(operation, _)| operation.value);
    let mut newest = BTreeMap::new();
    let mut partitions = BTreeMap::new();
    for (operation, place) in by_number {
        let producer = operation.value.producer;
        let before = newest.insert((producer, place.topic, place.partition), place.offset);
        if before.is_some_and(|before| before >= place.offset) {
            found.add(Anomaly::Reordered, format!("{operation:?} after offset {before:?}"));
        }
        let partition = place.partition;
        let before = partitions.insert((producer, place.topic, operation.key), partition);
        if before.is_some_and(|before| before != partition) {
            found.add(Anomaly::Reordered, format!("{operation:?} after partition {before:?}"));
        }
    }
}

/// What was sent after an ack, by anyone, stands behind what was acked.
fn check_time(operations: &[Operation], found: &mut Findings) {
    let mut partitions: BTreeMap<(usize, u32), Vec<(&Operation, Place)>> = BTreeMap::new();
    for (operation, place) in acked(operations) {
        partitions.entry((place.topic, place.partition)).or_default().push((operation, place));
    }
    for mut by_invoked in partitions.into_values() {
        let mut by_settled = by_invoked.clone();
        by_settled.sort_unstable_by_key(|(operation, _)| operation.settled);
        by_invoked.sort_unstable_by_key(|(operation, _)| operation.invoked);
        let mut settled = by_settled.into_iter().peekable();
        let mut newest: Option<u64> = None;
        for (operation, place) in by_invoked {
            while let Some((_, before)) =
                settled.next_if(|(before, _)| before.settled < operation.invoked)
            {
                newest = newest.max(Some(before.offset));
            }
            if newest.is_some_and(|newest| newest >= place.offset) {
                found.add(Anomaly::Untimely, format!("{operation:?}, acked before: {newest:?}"));
            }
        }
    }
}

/// Whoever read a topic read the same: each against the first of the last reads.
fn check_same(history: &History, found: &mut Findings) {
    let mut firsts: BTreeMap<usize, (&str, BTreeSet<&Seen>)> = BTreeMap::new();
    for last in &history.last {
        let seen = || (last.reader.as_str(), last.seen.iter().collect());
        firsts.entry(last.topic).or_insert_with(seen);
    }
    for session in history.live.iter().chain(&history.last) {
        let Some((reader, first)) = firsts.get(&session.topic) else { continue };
        let these: BTreeSet<&Seen> = session.seen.iter().collect();
        for seen in these.symmetric_difference(first) {
            let (by, not_by) = match these.contains(seen) {
                true => (session.reader.as_str(), *reader),
                false => (*reader, session.reader.as_str()),
            };
            let what = format!("{seen:?} was seen by {by} and not by {not_by}");
            found.add(Anomaly::Differing, what);
        }
    }
}

fn all_seen(history: &History) -> impl Iterator<Item = &Seen> {
    history.live.iter().chain(&history.last).flat_map(|session| &session.seen)
}

fn acked(operations: &[Operation]) -> impl Iterator<Item = (&Operation, Place)> {
    operations.iter().filter_map(|operation| match operation.outcome {
        Outcome::Ok(place) => Some((operation, place)),
        Outcome::Failed | Outcome::Unknown => None,
    })
}

mod tests {
    use super::*;

    fn place(offset: u64) -> Place {
        Place { topic: 0, partition: 0, offset }
    }

    fn value(n: u64) -> Value {
        Value { producer: 0, n }
    }

    fn seen(n: u64, offset: u64) -> Seen {
        Seen { place: place(offset), value: value(n) }
    }

    /// Five records, each sent after the ack of the one before, seen by one live reader.
    fn good() -> History {
        let operations = (0..5).map(|n| Operation {
            value: value(n),
            topic: 0,
            key: n % 2,
            invoked: 2 * n,
            settled: 2 * n + 1,
            outcome: Outcome::Ok(place(n)),
        });
        let seen: Vec<_> = (0..5).map(|n| seen(n, n)).collect();
        let session =
            |reader: &str| Session { topic: 0, reader: reader.into(), seen: seen.clone() };
        History {
            operations: operations.collect(),
            live: vec![session("live reader")],
            last: vec![session("last read")],
        }
    }

    /// A change of the good history is found as exactly these kinds.
    #[track_caller]
    fn finds(kinds: &[Anomaly], change: impl FnOnce(&mut History)) {
        let mut history = good();
        change(&mut history);
        let found = check(&history);
        assert_eq!(found.0.keys().copied().collect::<Vec<_>>(), kinds, "{}", found.examples());
    }

    fn both(history: &mut History) -> impl Iterator<Item = &mut Vec<Seen>> {
        history.live.iter_mut().chain(&mut history.last).map(|session| &mut session.seen)
    }

    #[test]
    fn a_good_history_is_clean() {
        finds(&[], |_| {});
        let clean = check(&good()).to_string();
        assert!(clean.starts_with("lost 0 duplicated 0 inconsistent 0 reordered 0"), "{clean}");
    }

    #[test]
    fn what_is_unknown_may_be_there_or_not() {
        finds(&[], |history| history.operations[4].outcome = Outcome::Unknown);
        finds(&[], |history| {
            history.operations[4].outcome = Outcome::Unknown;
            both(history).for_each(|seen| {
                seen.pop();
            });
        });
    }

    #[test]
    fn an_acked_record_at_the_end_or_in_the_middle_that_is_not_there_is_lost() {
        finds(&[Anomaly::Lost], |history| {
            both(history).for_each(|seen| {
                seen.pop();
            })
        });
        finds(&[Anomaly::Lost, Anomaly::Skipped], |history| {
            both(history).for_each(|seen| {
                seen.remove(2);
            });
        });
        finds(&[Anomaly::Lost, Anomaly::Differing], |history| {
            history.last[0].seen.pop();
        });
    }

    #[test]
    fn a_record_at_two_places_is_duplicated() {
        finds(&[Anomaly::Duplicated], |history| both(history).for_each(|all| all.push(seen(2, 5))));
    }

    #[test]
    fn two_values_at_one_place_are_inconsistent() {
        finds(&[Anomaly::Inconsistent, Anomaly::Reordered, Anomaly::Untimely], |history| {
            history.operations[4].outcome = Outcome::Ok(place(3));
        });
        // Nobody was told where, and readers disagree.
        finds(&[Anomaly::Duplicated, Anomaly::Inconsistent, Anomaly::Differing], |history| {
            history.operations[3].outcome = Outcome::Unknown;
            history.operations[4].outcome = Outcome::Unknown;
            history.live[0].seen[3] = seen(4, 3);
        });
    }

    #[test]
    fn a_record_that_is_not_where_its_ack_said_is_inconsistent() {
        finds(&[Anomaly::Inconsistent], |history| {
            history.operations[4].outcome = Outcome::Ok(place(7));
        });
    }

    #[test]
    fn a_later_record_before_an_earlier_one_is_reordered() {
        finds(&[Anomaly::Reordered], |history| {
            // Both were under way at the same time.
            history.operations[1].settled = 7;
            history.operations[2].settled = 7;
            history.operations[1].outcome = Outcome::Ok(place(2));
            history.operations[2].outcome = Outcome::Ok(place(1));
            both(history).for_each(|all| (all[1], all[2]) = (seen(2, 1), seen(1, 2)));
        });
    }

    #[test]
    fn a_key_that_changes_its_partition_is_reordered() {
        finds(&[Anomaly::Reordered], |history| {
            let place = Place { topic: 0, partition: 1, offset: 0 };
            history.operations[4].outcome = Outcome::Ok(place);
            both(history).for_each(|all| all[4].place = place);
        });
    }

    #[test]
    fn a_record_of_another_producer_before_what_was_acked_is_untimely() {
        finds(&[Anomaly::Untimely], |history| {
            let other = Value { producer: 1, n: 0 };
            history.operations[0].value = other;
            (history.operations[0].invoked, history.operations[0].settled) = (20, 21);
            both(history).for_each(|all| all[0].value = other);
        });
    }

    #[test]
    fn a_refused_record_that_is_read_is_aborted() {
        finds(&[Anomaly::Aborted], |history| history.operations[2].outcome = Outcome::Failed);
    }

    #[test]
    fn a_record_that_nobody_sent_there_is_a_phantom() {
        finds(&[Anomaly::Phantom], |history| both(history).for_each(|all| all.push(seen(9, 5))));
        finds(&[Anomaly::Phantom], |history| {
            history.operations[4].topic = 1;
        });
    }

    #[test]
    fn a_reader_that_jumps_or_goes_back_is_found() {
        finds(&[Anomaly::Skipped, Anomaly::Differing], |history| {
            history.live[0].seen.remove(2);
        });
        finds(&[Anomaly::Skipped, Anomaly::Differing], |history| {
            history.live[0].seen.remove(0);
        });
        finds(&[Anomaly::Nonmonotonic], |history| history.live[0].seen.push(seen(4, 4)));
        finds(&[Anomaly::Skipped, Anomaly::Nonmonotonic], |history| {
            history.live[0].seen.swap(1, 2);
        });
    }

    #[test]
    fn a_node_that_has_less_than_another_is_found() {
        finds(&[Anomaly::Lost, Anomaly::Differing], |history| {
            let mut other = history.last[0].clone();
            other.seen.pop();
            history.last.push(other);
        });
        finds(&[Anomaly::Differing], |history| {
            history.operations[4].outcome = Outcome::Unknown;
            let mut other = history.last[0].clone();
            other.seen.pop();
            history.last.push(other);
        });
    }

    #[test]
    fn a_live_reader_that_saw_more_or_less_than_the_last_read_differs() {
        finds(&[Anomaly::Differing], |history| {
            history.live[0].seen.pop();
        });
        finds(&[Anomaly::Differing], |history| {
            history.operations[4].outcome = Outcome::Unknown;
            history.last[0].seen.pop();
        });
    }
}
