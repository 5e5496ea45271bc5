//! Whose turn it is when several streams of a connection have something to send: the one that has waited longest.
//!
//! quinn sends what waits on streams of one priority by turns, packet by packet, so that batches of many topics all come
//! whole at the end: until then the node has nothing to store, and nothing to answer. Here each batch takes a number when
//! it is written, and a stream has the priority of the oldest of its batches that have no answer. Batches then go out one
//! after the other, about in the order in which they were written. What another stream writes later goes before only while that
//! stream has an older batch without answer, which its window bounds: none starves.

use std::{
    collections::VecDeque,
    iter::repeat_n,
    sync::atomic::{AtomicU64, Ordering},
};

/// What a connection has been given to send.
#[derive(Debug, Default)]
pub(super) struct Turns(AtomicU64);

/// The turns of one stream.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// Of batches without answer, in the order in which they were written.
    waiting: VecDeque<i32>,
}

impl Turns {
    fn take(&self, bytes: usize) -> i32 {
        let written = self.0.fetch_add(bytes as u64, Ordering::Relaxed);
        i32::try_from(written / TURN_BYTES).unwrap_or(i32::MAX)
    }
}

impl Turn {
    /// The priority of the stream from when `batches` more are written, of `bytes` together, where all but `unanswered` of
    /// those before have been answered. Answers that come out of order only make it less exact.
    pub(super) fn next(
        &mut self,
        turns: &Turns,
        bytes: usize,
        batches: usize,
        unanswered: usize,
    ) -> i32 {
        let answered = self.waiting.len().saturating_sub(unanswered);
        self.waiting.drain(..answered);
        self.waiting.extend(repeat_n(turns.take(bytes), batches));
        // What goes over streams of requests and answers has the priority of none, 0, and goes before.
        self.waiting.front().map_or(0, |oldest| -oldest)
    }
}

/// Within so many bytes streams take turns by packets: small batches do not each take a number. The numbers last for 35 TB of a
/// connection; behind that all streams have the last one, and take turns by packets again.
const TURN_BYTES: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 64 * 1024;

    #[test]
    fn what_was_written_first_goes_first() {
        let turns = Turns::default();
        let priorities = [Turn::default(), Turn::default(), Turn::default()]
            .each_mut()
            .map(|stream| stream.next(&turns, LEN, 1, 0));
        assert!(priorities.is_sorted_by(|one, next| one > next), "{priorities:?}");
    }

    #[test]
    fn a_stream_is_as_old_as_its_oldest_batch_without_answer() {
        let turns = Turns::default();
        let (mut busy, mut other) = (Turn::default(), Turn::default());
        let first = busy.next(&turns, LEN, 1, 0);
        let second = other.next(&turns, LEN, 1, 0);
        assert_eq!(busy.next(&turns, LEN, 1, 1), first, "its first batch may still wait");
        assert!(busy.next(&turns, LEN, 1, 1) < second, "the first is answered");
        assert!(busy.next(&turns, LEN, 2, 0) < second, "all are answered");
    }

    #[test]
    fn who_always_has_something_to_send_does_not_go_before_others_for_ever() {
        let turns = Turns::default();
        let (mut busy, mut other) = (Turn::default(), Turn::default());
        for written in 0..64 {
            busy.next(&turns, LEN, 1, written);
        }
        let waits = other.next(&turns, LEN, 1, 0);
        // Batch by batch it is answered, and writes another.
        let before = (0..100).take_while(|_| busy.next(&turns, LEN, 1, 63) > waits).count();
        assert_eq!(before, 63, "until all that it had written before are answered");
    }

    #[test]
    fn small_batches_share_a_turn_and_the_last_one_is_for_all() {
        let turns = Turns::default();
        let first = Turn::default().next(&turns, 100, 1, 0);
        assert_eq!(Turn::default().next(&turns, 100, 1, 0), first);
        turns.0.store(u64::MAX / 2, Ordering::Relaxed);
        for _ in 0..2 {
            assert_eq!(Turn::default().next(&turns, LEN, 1, 0), -i32::MAX);
        }
    }
}
