//! What a partition remembers of one producer, so that a batch that is sent again is stored once.
//!
//! The state is a function of the log: it is noted when a batch is appended, rebuilt from the log's tail at restart,
//! and checkpointed as it was at a position of the log. Kafka's idempotent producer (KIP-98, KIP-360) is the model;
//! sequences here number batches, not records.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    limits::PRODUCER_BATCHES_REMEMBERED,
    types::{Lsn, Offset, Sequence, Timestamp},
};

/// A producer's newest batches in one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerState {
    batches: VecDeque<Remembered>,
}

/// One stored batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remembered {
    pub(super) sequence: Sequence,
    pub(super) base_offset: Offset,
    pub(super) lsn: Lsn,
    pub(super) append_time: Timestamp,
}

/// What a sequence means to a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The next one.
    Next,
    /// It is stored already, there.
    Again(Remembered),
    /// One before it is missing.
    Gap { expected: Sequence },
    /// Too long ago to tell.
    TooOld { expected: Sequence },
}

/// Stored producer state that is not what a checkpoint writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stored producer state is malformed")]
pub struct BadState;

const REMEMBERED_LEN: usize = 32;

/// As many again as can be recognised: with all that a producer may have in flight not committed yet, a checkpoint
/// still holds what came before.
const KEPT: usize = 2 * PRODUCER_BATCHES_REMEMBERED;

impl ProducerState {
    /// What this sequence means.
    pub(super) fn look_up(&self, sequence: Sequence) -> Seen {
        let expected = self.next_sequence();
        if sequence == expected {
            return Seen::Next;
        }
        if sequence > expected {
            return Seen::Gap { expected };
        }
        match self.batches.iter().rev().find(|b| b.sequence == sequence) {
            Some(batch) => Seen::Again(*batch),
            None => Seen::TooOld { expected },
        }
    }

    /// Notes a batch that was appended.
    pub(super) fn note(&mut self, batch: Remembered) {
        if self.batches.len() == KEPT {
            self.batches.pop_front();
        }
        self.batches.push_back(batch);
    }

    /// The newest batch.
    pub(super) fn last(&self) -> Option<&Remembered> {
        self.batches.back()
    }

    /// The state as it was when the log ended at `end`.
    #[must_use]
    pub fn encode_before(&self, end: Lsn) -> Bytes {
        let mut out = BytesMut::with_capacity(self.batches.len() * REMEMBERED_LEN);
        for batch in self.batches.iter().filter(|b| b.lsn < end) {
            out.put_u64(batch.sequence.0);
            out.put_u64(batch.base_offset.0);
            out.put_u64(batch.lsn.0);
            out.put_u64(batch.append_time.0);
        }
        out.freeze()
    }

    /// Reads what [`Self::encode_before`] wrote.
    ///
    /// # Errors
    /// [`BadState`] when it is something else.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, BadState> {
        let whole = bytes.len().is_multiple_of(REMEMBERED_LEN);
        if !whole || bytes.len() > KEPT * REMEMBERED_LEN {
            return Err(BadState);
        }
        let mut batches = VecDeque::with_capacity(bytes.len() / REMEMBERED_LEN);
        while bytes.has_remaining() {
            batches.push_back(Remembered {
                sequence: Sequence(bytes.get_u64()),
                base_offset: Offset(bytes.get_u64()),
                lsn: Lsn(bytes.get_u64()),
                append_time: Timestamp(bytes.get_u64()),
            });
        }
        Ok(Self { batches })
    }

    fn next_sequence(&self) -> Sequence {
        Sequence(self.last().map_or(0, |b| b.sequence.0.saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(n: u64) -> Remembered {
        Remembered {
            sequence: Sequence(n),
            base_offset: Offset(n * 10),
            lsn: Lsn(n + 100),
            append_time: Timestamp(n),
        }
    }

    fn state(count: u64) -> ProducerState {
        let mut state = ProducerState::default();
        (0..count).for_each(|n| state.note(batch(n)));
        state
    }

    #[test]
    fn sequences_mean_what_they_should() {
        let state = state(3);
        assert_eq!(state.look_up(Sequence(3)), Seen::Next);
        assert_eq!(state.look_up(Sequence(1)), Seen::Again(batch(1)));
        assert_eq!(state.look_up(Sequence(5)), Seen::Gap { expected: Sequence(3) });
    }

    #[test]
    fn only_the_newest_batches_are_remembered() {
        let many = KEPT as u64 + 5;
        let state = state(many);
        assert_eq!(state.look_up(Sequence(4)), Seen::TooOld { expected: Sequence(many) });
        assert_eq!(state.look_up(Sequence(5)), Seen::Again(batch(5)));
    }

    #[test]
    fn a_checkpoint_under_a_full_window_still_knows_the_producer() {
        let window = PRODUCER_BATCHES_REMEMBERED as u64;
        let state = state(window * 3);
        let committed = Lsn(100 + window * 2);
        let stored = ProducerState::decode(&state.encode_before(committed)).expect("own work");
        assert_eq!(stored.look_up(Sequence(window * 2)), Seen::Next);
        assert_eq!(stored.look_up(Sequence(window * 2 - 1)), Seen::Again(batch(window * 2 - 1)));
    }

    #[test]
    fn a_checkpoint_holds_the_state_as_it_was() {
        let state = state(9);
        let early = ProducerState::decode(&state.encode_before(Lsn(104))).expect("own work");
        assert_eq!(early.look_up(Sequence(4)), Seen::Next);
        assert_eq!(ProducerState::decode(&state.encode_before(Lsn(1_000))), Ok(state));
        assert_eq!(ProducerState::decode(&[0; 31]), Err(BadState));
    }
}
