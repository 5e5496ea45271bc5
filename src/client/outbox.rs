//! What a publisher has taken and not settled yet: which batch goes out when, under which sequence, and what its answer means.
//!
//! Pure: time is an argument, and what is to be done comes out as [`Effect`]s. The driver in `publisher` does it.
//!
//! Invariants, which keep a record from being stored twice or out of order:
//! - a batch keeps its producer and sequence until the node has said that it is not stored;
//! - batches of a partition go out in the order of their sequences, and no further apart than the node remembers;
//! - a batch that may be stored is never given another sequence: it is acked, or reported as unknown.

use std::{collections::VecDeque, time::Duration, time::Instant};

use bytes::Bytes;

mod lane;

use self::lane::{Lane, Next, Removed};
use super::error::{Obstacle, PublishError};
use crate::{
    limits::{PUBLISH_WINDOW_BATCHES, PUBLISH_WINDOW_BYTES},
    types::{Acks, Offset, ProducerId, partition_of_key},
    wire::{Ack, BadRecord, Code, Compression, Fault, PublishOk, Record},
};

/// Number of a batch of this publisher, from 0, in the order in which batches were begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct BatchNo(u64);

/// Where a record went that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    /// Its batch.
    pub(super) batch: BatchNo,
    /// Its place there, from 0.
    pub(super) index: u32,
    /// Whether the driver has something to do now.
    pub(super) wake: bool,
}

/// Where a batch was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) partition: u32,
    pub(super) base_offset: Offset,
    pub(super) level: Acks,
    pub(super) copies: u8,
}

/// What the driver has to do, in this order.
#[derive(Debug)]
pub(super) enum Effect {
    /// Write the batch to the stream: it is the next of the stream's batches.
    Send { partition: u32, bytes: Bytes },
    /// Tell those who wait for the batch.
    Settle { batch: BatchNo, outcome: Result<Stored, PublishError> },
}

/// What the caller of the publisher has decided.
#[derive(Clone, Debug)]
pub(super) struct OutboxOptions {
    pub(super) batch_len: usize,
    pub(super) linger: Duration,
    /// Batches under way from which on a batch lingers.
    pub(super) linger_behind: usize,
    pub(super) compression: Compression,
    pub(super) in_flight_batches: usize,
    pub(super) in_flight_bytes: usize,
    pub(super) deadline: Duration,
    pub(super) idempotent: bool,
}

/// The node answered about a batch that was never sent on this stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("answer to batch {0}, which was not sent")]
pub(super) struct NoSuchBatch(u64);

/// The state of a publisher.
#[derive(Debug)]
pub(super) struct Outbox {
    options: OutboxOptions,
    /// The id that the next lane takes which cannot go on under its old one.
    fresh: ProducerId,
    lanes: Vec<Lane>,
    /// How many partitions the topic has now; there may be more lanes, of partitions that it had.
    partitions: u32,
    /// The lane of records without key: it changes with each batch, so that batches are full and lanes even.
    sticky: usize,
    /// The lane that is served first: it changes, so that no lane starves.
    turn: usize,
    next_batch: u64,
    flush_before: BatchNo,
    closing: bool,
    /// The stream leads to a topic that is no more: another stream may lead to one of the same name.
    stale: bool,
    stream: Option<Stream>,
    held_bytes: usize,
    flying_batches: usize,
    flying_bytes: usize,
}

/// The publish stream that is open.
#[derive(Debug)]
struct Stream {
    window_batches: usize,
    window_bytes: usize,
    /// Index of the front of `sent`.
    first: u64,
    /// Batches in the order in which they were sent; none where the answer has come.
    sent: VecDeque<Option<(usize, BatchNo)>>,
    /// Another stream takes over: nothing more goes over this one.
    settling: bool,
}

impl Outbox {
    /// A publisher that holds nothing. `producer` is random.
    pub(super) fn new(options: OutboxOptions, producer: ProducerId) -> Self {
        Self {
            options,
            fresh: producer,
            lanes: Vec::new(),
            partitions: 0,
            sticky: 0,
            turn: 0,
            next_batch: 0,
            flush_before: BatchNo(0),
            closing: false,
            stale: false,
            stream: None,
            held_bytes: 0,
            flying_batches: 0,
            flying_bytes: 0,
        }
    }

    /// A publish stream is open.
    pub(super) fn opened(&mut self, ok: &PublishOk) {
        let window = |ours: usize, theirs: u32, usual: u32| {
            // A node that names no window means the usual one.
            ours.min(if theirs == 0 { usual } else { theirs } as usize)
        };
        self.stream = Some(Stream {
            window_batches: window(
                self.options.in_flight_batches,
                ok.window_batches,
                PUBLISH_WINDOW_BATCHES,
            ),
            window_bytes: window(
                self.options.in_flight_bytes,
                ok.window_bytes,
                PUBLISH_WINDOW_BYTES,
            ),
            first: 0,
            sent: VecDeque::new(),
            settling: false,
        });
        self.stale = false;
        self.partitions = ok.partitions.max(1);
        let producer = if self.options.idempotent { self.fresh } else { ProducerId::NONE };
        while self.lanes.len() < self.partitions as usize {
            self.lanes.push(Lane::new(self.options.batch_len, producer));
        }
        self.sticky %= self.partitions as usize;
    }

    /// The publish stream is gone: what was on it may be stored or not.
    pub(super) fn lost(&mut self, why: &Obstacle) {
        self.stream = None;
        for lane in &mut self.lanes {
            lane.lost(why);
        }
        self.recount();
    }

    /// Another publish stream is about to take over: nothing more goes over this one, what did is still answered.
    pub(super) fn settle(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.settling = true;
        }
    }

    /// Batches that went over the stream and have no answer.
    pub(super) fn unanswered(&self) -> usize {
        self.flying_batches
    }

    /// Tells whether all that went over a stream that is to be left is answered.
    pub(super) fn is_settled(&self) -> bool {
        self.flying_batches == 0 && self.stream.as_ref().is_some_and(|stream| stream.settling)
    }

    /// There is no publish stream yet, for this reason.
    pub(super) fn hindered(&mut self, why: &Obstacle) {
        for lane in &mut self.lanes {
            lane.hindered(why);
        }
    }

    /// Takes a record. The first stream must have been open.
    pub(super) fn push(&mut self, now: Instant, record: &Record) -> Result<Ticket, BadRecord> {
        let lane = match &record.key {
            Some(key) => partition_of_key(key, self.partitions) as usize,
            None => self.sticky,
        };
        let options = &self.options;
        let next_batch = &mut self.next_batch;
        let mut number = || {
            *next_batch += 1;
            BatchNo(*next_batch - 1)
        };
        let pushed = change(
            &mut self.lanes[lane],
            (&mut self.held_bytes, &mut self.flying_batches, &mut self.flying_bytes),
            |lane| lane.push(now, record, options, &mut number),
        )?;
        if pushed.sealed && record.key.is_none() {
            // The record that did not fit has begun the next batch of this lane; those after it go elsewhere.
            self.sticky = (self.sticky + 1) % self.partitions as usize;
        }
        let wake =
            pushed.sealed || pushed.begun || self.flying_batches < self.options.linger_behind;
        Ok(Ticket { batch: pushed.batch, index: pushed.index, wake })
    }

    /// Tells whether a record may be pushed: past that, callers wait.
    pub(super) fn has_room(&self) -> bool {
        self.held_bytes < self.options.in_flight_bytes.saturating_mul(2) && !self.lanes.is_empty()
    }

    /// Everything taken so far goes out without lingering. Returns the number before which all must be settled.
    pub(super) fn flush(&mut self) -> BatchNo {
        self.flush_before = BatchNo(self.next_batch);
        self.flush_before
    }

    /// Nothing more will be pushed.
    pub(super) fn close(&mut self) {
        self.closing = true;
    }

    /// Tells whether [`Self::close`] was called and all is settled.
    pub(super) fn is_done(&self) -> bool {
        self.closing && self.is_empty()
    }

    /// Tells whether nothing more can go over the stream that is open, and all that did is answered.
    pub(super) fn must_reopen(&self) -> bool {
        self.stale && self.flying_batches == 0
    }

    /// Tells whether all is settled.
    pub(super) fn is_empty(&self) -> bool {
        self.held_bytes == 0
    }

    /// Tells whether all batches before `batch` are settled.
    pub(super) fn is_settled_before(&self, batch: BatchNo) -> bool {
        self.lanes.iter().all(|lane| lane.oldest().is_none_or(|oldest| oldest >= batch))
    }

    /// Sends what is due and settles what is past its deadline.
    pub(super) fn poll(&mut self, now: Instant, out: &mut Vec<Effect>) {
        self.expire(now, out);
        let lanes = self.lanes.len();
        let mut idle_in_a_row = 0;
        while idle_in_a_row < lanes {
            let lane = self.turn % lanes;
            self.turn = lane + 1;
            if self.send_one(lane, now, out) {
                idle_in_a_row = 0;
            } else {
                idle_in_a_row += 1;
            }
        }
    }

    /// When [`Self::poll`] has something to do again even if nothing else happens.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let streaming = self.stream.is_some();
        self.lanes.iter().filter_map(|lane| lane.next_wake(now, streaming)).min()
    }

    /// A batch of the stream is stored.
    pub(super) fn acked(&mut self, ack: &Ack, out: &mut Vec<Effect>) -> Result<(), NoSuchBatch> {
        let (lane, batch) = self.answered(ack.index)?;
        let Some(batch) = batch else { return Ok(()) };
        if self.changed(lane, |lane| lane.acked(batch)) {
            out.push(Effect::Settle {
                batch,
                outcome: Ok(Stored {
                    partition: ack.partition,
                    base_offset: ack.base_offset,
                    level: ack.level,
                    copies: ack.copies,
                }),
            });
        }
        Ok(())
    }

    /// A batch of the stream is not stored now.
    pub(super) fn nacked(
        &mut self,
        now: Instant,
        index: u64,
        fault: &Fault,
        out: &mut Vec<Effect>,
    ) -> Result<(), NoSuchBatch> {
        let (lane, batch) = self.answered(index)?;
        self.stale |= fault.code == Code::UnknownTopic;
        let Some(batch) = batch else { return Ok(()) };
        let idempotent = self.options.idempotent;
        let removed = self.changed(lane, |lane| lane.nacked(now, batch, fault, idempotent));
        settle(removed, out);
        Ok(())
    }

    /// There will be no stream without a change: all that waits is settled.
    pub(super) fn refuse_all(&mut self, why: &PublishError, out: &mut Vec<Effect>) {
        for lane in &mut self.lanes {
            settle(lane.refuse_all(why), out);
        }
        self.recount();
    }

    fn expire(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let after = self.options.deadline;
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].is_overdue(now) {
                let removed = self.changed(lane, |lane| lane.expire(now, after));
                settle(removed, out);
            }
        }
    }

    fn send_one(&mut self, lane: usize, now: Instant, out: &mut Vec<Effect>) -> bool {
        let Some(stream) = &self.stream else { return false };
        if self.stale || stream.settling || self.flying_batches >= stream.window_batches {
            return false;
        }
        let bytes_left = if self.flying_batches == 0 {
            // One batch always fits, however small the window.
            usize::MAX
        } else {
            stream.window_bytes.saturating_sub(self.flying_bytes)
        };
        let next = Next {
            now,
            bytes_left,
            hurry: self.closing || self.flying_batches < self.options.linger_behind,
            flush_before: self.flush_before,
        };
        let (options, fresh) = (&self.options, &mut self.fresh);
        let sent = change(
            &mut self.lanes[lane],
            (&mut self.held_bytes, &mut self.flying_batches, &mut self.flying_bytes),
            |lane| {
                lane.rebase(|| {
                    // 128 random bits plus a small number are as unique as 128 random bits.
                    fresh.0 = fresh.0.wrapping_add(1).max(1);
                    *fresh
                });
                lane.send(&next, options)
            },
        );
        let Some((batch, bytes, was_open)) = sent else { return false };
        if was_open && lane == self.sticky {
            self.sticky = (self.sticky + 1) % self.partitions.max(1) as usize;
        }
        if let Some(stream) = &mut self.stream {
            stream.sent.push_back(Some((lane, batch)));
        }
        let partition = u32::try_from(lane).unwrap_or(u32::MAX);
        out.push(Effect::Send { partition, bytes });
        true
    }

    /// Which batch an answer is about; none if that answer has come already.
    fn answered(&mut self, index: u64) -> Result<(usize, Option<BatchNo>), NoSuchBatch> {
        let stream = self.stream.as_mut().ok_or(NoSuchBatch(index))?;
        let Some(at) = index.checked_sub(stream.first) else { return Ok((0, None)) };
        let at = usize::try_from(at).map_err(|_| NoSuchBatch(index))?;
        let slot = stream.sent.get_mut(at).ok_or(NoSuchBatch(index))?.take();
        while let Some(None) = stream.sent.front() {
            stream.sent.pop_front();
            stream.first += 1;
        }
        Ok(slot.map_or((0, None), |(lane, batch)| (lane, Some(batch))))
    }

    fn changed<T>(&mut self, lane: usize, f: impl FnOnce(&mut Lane) -> T) -> T {
        change(
            &mut self.lanes[lane],
            (&mut self.held_bytes, &mut self.flying_batches, &mut self.flying_bytes),
            f,
        )
    }

    fn recount(&mut self) {
        self.held_bytes = self.lanes.iter().map(Lane::held_bytes).sum();
        self.flying_batches = self.lanes.iter().map(|lane| lane.flying().0).sum();
        self.flying_bytes = self.lanes.iter().map(|lane| lane.flying().1).sum();
    }
}

/// Changes a lane and keeps the sums over all lanes right.
fn change<T>(
    lane: &mut Lane,
    (held_bytes, flying_batches, flying_bytes): (&mut usize, &mut usize, &mut usize),
    f: impl FnOnce(&mut Lane) -> T,
) -> T {
    let (held, flying) = (lane.held_bytes(), lane.flying());
    let result = f(lane);
    *held_bytes = *held_bytes - held + lane.held_bytes();
    *flying_batches = *flying_batches - flying.0 + lane.flying().0;
    *flying_bytes = *flying_bytes - flying.1 + lane.flying().1;
    result
}

fn settle(removed: Vec<Removed>, out: &mut Vec<Effect>) {
    out.extend(
        removed.into_iter().map(|(batch, error)| Effect::Settle { batch, outcome: Err(error) }),
    );
}

#[cfg(test)]
mod tests;
