//! The batches of one partition, in the order of their sequences.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{BatchNo, OutboxOptions};
use crate::{
    client::error::{Obstacle, PublishError},
    limits::PRODUCER_BATCHES_REMEMBERED,
    types::{ProducerId, Sequence},
    wire::{BadRecord, BatchBuilder, Code, Fault, Pushed, Record, Retry, batch::readdress},
};

/// A batch that left its lane without being acked, and why.
pub(super) type Removed = (BatchNo, PublishError);

#[derive(Debug)]
pub(super) struct Lane {
    builder: BatchBuilder,
    /// The batch that `builder` holds; none while it is empty.
    open: Option<Open>,
    entries: VecDeque<Entry>,
    entries_bytes: usize,
    flying: usize,
    flying_bytes: usize,
    producer: ProducerId,
    next_sequence: u64,
    /// A batch has left without being stored: those behind it cannot follow it under this producer.
    rebase: bool,
    /// The last batch under this producer that was past its deadline while it could be under way: it may come to be stored.
    expired_to: Option<Sequence>,
    /// What stood in the way last.
    obstacle: Obstacle,
    paused_until: Option<Instant>,
    /// Answers in a row that said "later".
    pauses: u32,
}

#[derive(Debug)]
struct Open {
    batch: BatchNo,
    linger_until: Instant,
    deadline: Instant,
}

#[derive(Debug)]
struct Entry {
    batch: BatchNo,
    sequence: Sequence,
    bytes: Bytes,
    deadline: Instant,
    /// It is on the stream that is open, and not answered.
    flying: bool,
    /// It was sent before, and the answer was lost or said that nobody knows.
    maybe_stored: bool,
    obstacle: Obstacle,
}

/// Where a record went.
pub(super) struct PushedInto {
    pub(super) batch: BatchNo,
    pub(super) index: u32,
    /// The record began a batch.
    pub(super) begun: bool,
    /// The record did not fit into the batch that was open, which is complete now.
    pub(super) sealed: bool,
}

/// What limits the next send.
pub(super) struct Next {
    pub(super) now: Instant,
    pub(super) bytes_left: usize,
    /// The open batch goes out without lingering.
    pub(super) hurry: bool,
    /// Open batches before this one do so too.
    pub(super) flush_before: BatchNo,
}

impl Lane {
    pub(super) fn new(batch_len: usize, producer: ProducerId) -> Self {
        Self {
            builder: BatchBuilder::new(batch_len),
            open: None,
            entries: VecDeque::new(),
            entries_bytes: 0,
            flying: 0,
            flying_bytes: 0,
            producer,
            next_sequence: 0,
            rebase: false,
            expired_to: None,
            obstacle: Obstacle::default(),
            paused_until: None,
            pauses: 0,
        }
    }

    pub(super) fn push(
        &mut self,
        now: Instant,
        record: &Record,
        options: &OutboxOptions,
        number: &mut impl FnMut() -> BatchNo,
    ) -> Result<PushedInto, BadRecord> {
        let mut sealed = false;
        if self.builder.push(record)? == Pushed::Full {
            self.seal(options);
            sealed = true;
            let pushed = self.builder.push(record)?;
            assert_eq!(pushed, Pushed::In, "an empty batch takes any record that keeps the limits");
        }
        let begun = self.open.is_none();
        let open = self.open.get_or_insert_with(|| Open {
            batch: number(),
            linger_until: now + options.linger,
            deadline: now + options.deadline,
        });
        Ok(PushedInto { batch: open.batch, index: self.builder.records() - 1, begun, sealed })
    }

    /// The next batch that may go out, and whether it was the open one.
    pub(super) fn send(
        &mut self,
        next: &Next,
        options: &OutboxOptions,
    ) -> Option<(BatchNo, Bytes, bool)> {
        if self.rebase || self.paused_until.is_some_and(|until| until > next.now) {
            return None;
        }
        self.paused_until = None;
        let mut was_open = false;
        let at = match self.entries.iter().position(|entry| !entry.flying) {
            Some(at) => at,
            None => {
                let open = self.open.as_ref()?;
                let due =
                    next.hurry || open.batch < next.flush_before || open.linger_until <= next.now;
                if !due || self.builder.len() > next.bytes_left || self.is_full(self.next_sequence)
                {
                    return None;
                }
                self.seal(options);
                was_open = true;
                self.entries.len() - 1
            }
        };
        let sequence = self.entries[at].sequence.0;
        if self.entries[at].bytes.len() > next.bytes_left || self.is_full(sequence) {
            return None;
        }
        let entry = &mut self.entries[at];
        entry.flying = true;
        self.flying += 1;
        self.flying_bytes += entry.bytes.len();
        Some((entry.batch, entry.bytes.clone(), was_open))
    }

    /// Begins again under a new producer if a batch is missing and no other can be stored already.
    pub(super) fn rebase(&mut self, fresh: impl FnOnce() -> ProducerId) {
        if !self.rebase || self.flying > 0 {
            return;
        }
        self.rebase = false;
        if self.entries.iter().any(|entry| entry.maybe_stored) {
            // The answer to the next one says which it is: stored, or a gap that leads back here.
            return;
        }
        self.producer = fresh();
        self.next_sequence = 0;
        self.expired_to = None;
        for entry in &mut self.entries {
            entry.sequence = Sequence(self.next_sequence);
            entry.bytes = readdress(&entry.bytes, self.producer, entry.sequence);
            self.next_sequence += 1;
        }
    }

    /// Tells whether the batch was still there.
    pub(super) fn acked(&mut self, batch: BatchNo) -> bool {
        self.pauses = 0;
        self.paused_until = None;
        let at = self.find(batch);
        at.is_some_and(|at| self.remove(at).is_some())
    }

    pub(super) fn nacked(
        &mut self,
        now: Instant,
        batch: BatchNo,
        fault: &Fault,
        idempotent: bool,
    ) -> Vec<Removed> {
        let Some(at) = self.find(batch) else { return Vec::new() };
        self.land(at);
        let entry = &mut self.entries[at];
        entry.obstacle = Obstacle::Fault(Box::new(fault.clone()));
        match (fault.code, fault.retry) {
            (Code::SequenceGap, _) if idempotent => self.gap(now, at, fault),
            (Code::UnknownProducer, _) if idempotent => self.forgotten(now, fault),
            (Code::SequenceTooOld, _) => {
                // It is stored, as all before the last are; where, the node has forgotten.
                self.entries[at].maybe_stored = true;
                vec![self.give_up(at, &PublishError::Fault(Box::new(fault.clone())))]
            }
            (_, Retry::Never) => {
                vec![self.give_up(at, &PublishError::Fault(Box::new(fault.clone())))]
            }
            (code, Retry::After(ms)) => {
                let most = if code == Code::Electing { PAUSE_ELECTING } else { PAUSE_LAST };
                self.pause(now, Duration::from_millis(ms.into()), most);
                Vec::new()
            }
            (_, Retry::SameSequence) => {
                entry.maybe_stored = true;
                self.pause(now, Duration::ZERO, PAUSE_LAST);
                Vec::new()
            }
        }
    }

    pub(super) fn lost(&mut self, why: &Obstacle) {
        for entry in self.entries.iter_mut().filter(|entry| entry.flying) {
            entry.flying = false;
            entry.maybe_stored = true;
            entry.obstacle = why.clone();
        }
        self.flying = 0;
        self.flying_bytes = 0;
        self.paused_until = None;
    }

    pub(super) fn hindered(&mut self, why: &Obstacle) {
        self.obstacle = why.clone();
        for entry in &mut self.entries {
            entry.obstacle = why.clone();
        }
    }

    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.first_deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Deadlines grow along the lane, so those past theirs are at its front.
    pub(super) fn expire(&mut self, now: Instant, after: Duration) -> Vec<Removed> {
        let mut removed = Vec::new();
        while self.entries.front().is_some_and(|entry| entry.deadline <= now) {
            let Entry { obstacle, flying, maybe_stored, sequence, .. } = &self.entries[0];
            let cause = obstacle.clone();
            if *flying || *maybe_stored {
                self.expired_to = Some(*sequence);
            }
            removed.push(self.give_up(0, &PublishError::Expired { after, cause }));
        }
        if self.open.as_ref().is_some_and(|open| open.deadline <= now) {
            let cause = self.obstacle.clone();
            removed.extend(self.drop_open(&PublishError::Expired { after, cause }));
        }
        removed
    }

    pub(super) fn refuse_all(&mut self, why: &PublishError) -> Vec<Removed> {
        let mut removed = Vec::new();
        while !self.entries.is_empty() {
            removed.push(self.give_up(0, why));
        }
        removed.extend(self.drop_open(why));
        removed
    }

    pub(super) fn oldest(&self) -> Option<BatchNo> {
        self.entries.front().map(|e| e.batch).or(self.open.as_ref().map(|o| o.batch))
    }

    pub(super) fn next_wake(&self, now: Instant, streaming: bool) -> Option<Instant> {
        let linger = self.open.as_ref().map(|open| open.linger_until);
        let sends = [linger, self.paused_until].into_iter().flatten().filter(|_| streaming);
        // A time that is past waits for something else: an answer, or room.
        sends.chain(self.first_deadline()).filter(|at| *at > now).min()
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.entries_bytes + if self.open.is_some() { self.builder.len() } else { 0 }
    }

    /// Batches and bytes that are sent and not answered.
    pub(super) fn flying(&self) -> (usize, usize) {
        (self.flying, self.flying_bytes)
    }

    fn seal(&mut self, options: &OutboxOptions) {
        let Some(open) = self.open.take() else { return };
        let sequence = Sequence(self.next_sequence);
        self.next_sequence += u64::from(options.idempotent);
        let bytes = self.builder.finish(options.compression, self.producer, sequence);
        self.entries_bytes += bytes.len();
        self.entries.push_back(Entry {
            batch: open.batch,
            sequence,
            bytes,
            deadline: open.deadline,
            flying: false,
            maybe_stored: false,
            obstacle: Obstacle::default(),
        });
    }

    /// Whether a batch of this sequence is too far ahead of the oldest that waits for the node to recognise that one.
    fn is_full(&self, sequence: u64) -> bool {
        let oldest = self.entries.front().map_or(sequence, |entry| entry.sequence.0);
        self.flying >= PRODUCER_BATCHES_REMEMBERED
            || sequence.saturating_sub(oldest) >= PRODUCER_BATCHES_REMEMBERED as u64
    }

    /// The node waits for a batch before this one: it has none from there on.
    fn gap(&mut self, now: Instant, at: usize, fault: &Fault) -> Vec<Removed> {
        let sequence = self.entries[at].sequence;
        let expected = fault.detail.expected.filter(|expected| *expected < sequence);
        let Some(expected) = expected else {
            self.entries[at].maybe_stored = true;
            return vec![self.give_up(at, &PublishError::Fault(Box::new(fault.clone())))];
        };
        // Nothing behind the expected one is stored. If that one was given up while it could still be under way, on a path that
        // was lost, it may yet be stored, and what was sent behind it after it: that stays uncertain, and keeps its sequence
        // until it is past its own deadline.
        if self.expired_to.is_none_or(|last| expected > last) {
            for entry in self.entries.iter_mut().filter(|entry| entry.sequence > expected) {
                entry.maybe_stored = false;
            }
        }
        // Either the expected one is here and will be sent again before this one, or it left without being stored.
        if !self.entries.iter().any(|entry| entry.sequence == expected) {
            self.rebase = true;
            self.pause(now, Duration::ZERO, PAUSE_LAST);
        }
        Vec::new()
    }

    /// The node has forgotten the producer: what it may have stored before that cannot be asked for any more.
    fn forgotten(&mut self, now: Instant, fault: &Fault) -> Vec<Removed> {
        let error = PublishError::Fault(Box::new(fault.clone()));
        let mut removed = Vec::new();
        while let Some(at) = self.entries.iter().position(|e| e.maybe_stored && !e.flying) {
            removed.push(self.give_up(at, &error));
        }
        self.rebase = true;
        self.pause(now, Duration::ZERO, PAUSE_LAST);
        removed
    }

    /// Removes a batch that will not be sent again.
    fn give_up(&mut self, at: usize, error: &PublishError) -> Removed {
        let uncertain = self.entries[at].flying || self.entries[at].maybe_stored;
        self.land(at);
        self.rebase = self.producer.is_some();
        let Some(entry) = self.remove(at) else { unreachable!("the caller found it there") };
        let error = match error {
            PublishError::Expired { cause, .. } if uncertain => {
                PublishError::Unknown { cause: cause.clone() }
            }
            PublishError::Fault(fault) if uncertain => {
                PublishError::Unknown { cause: Obstacle::Fault(fault.clone()) }
            }
            PublishError::Connect(why) if uncertain => {
                PublishError::Unknown { cause: Obstacle::Connect(why.clone()) }
            }
            other => other.clone(),
        };
        (entry.batch, error)
    }

    fn drop_open(&mut self, error: &PublishError) -> Option<Removed> {
        let open = self.open.take()?;
        let len_max = self.builder.len_max();
        self.builder = BatchBuilder::new(len_max);
        Some((open.batch, error.clone()))
    }

    /// Whatever was under way when a pause began is refused within it, as a rule: that makes one pause, not one for each.
    fn pause(&mut self, now: Instant, asked: Duration, most: Duration) {
        if let Some(until) = self.paused_until.filter(|until| *until > now) {
            self.paused_until = Some(until.max(now + asked));
            return;
        }
        let own = PAUSE_FIRST.saturating_mul(1 << self.pauses.min(10)).min(most);
        self.pauses += 1;
        self.paused_until = Some(now + own.max(asked));
    }

    fn find(&self, batch: BatchNo) -> Option<usize> {
        self.entries.binary_search_by_key(&batch, |entry| entry.batch).ok()
    }

    fn land(&mut self, at: usize) {
        let entry = &mut self.entries[at];
        if std::mem::take(&mut entry.flying) {
            self.flying -= 1;
            self.flying_bytes -= entry.bytes.len();
        }
    }

    fn remove(&mut self, at: usize) -> Option<Entry> {
        self.land(at);
        let entry = self.entries.remove(at)?;
        self.entries_bytes -= entry.bytes.len();
        Some(entry)
    }

    fn first_deadline(&self) -> Option<Instant> {
        self.entries.front().map(|e| e.deadline).or(self.open.as_ref().map(|o| o.deadline))
    }
}

const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_LAST: Duration = Duration::from_secs(1);
/// The same while the site elects a leader, which takes a second: whoever sleeps through its end doubles the outage.
const PAUSE_ELECTING: Duration = Duration::from_millis(100);
