//! What waits for the commit thread: bounded in bytes, in order.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::change::Change;
use crate::{
    limits::COMMIT_QUEUE_BYTES_MAX,
    types::{Lsn, ShardId},
    wire::Entry,
};

/// The log takes nothing any more: it was stopped, or a write failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log is closed")]
pub struct Closed;

/// Room in the queue, given back when the entry is committed or the reservation is dropped.
#[derive(Debug)]
pub struct Reservation(
    #[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>,
);

impl Reservation {
    /// For entries that the node makes itself: few and small, and they must not wait behind those of clients.
    pub const FREE: Self = Self(None);
}

/// The way of entries to the commit thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CommitQueue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    room: Arc<Semaphore>,
    pressed: AtomicBool,
    checkpoint: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    entries: VecDeque<(Entry, Reservation)>,
    /// Entries that were taken since the queue was made.
    taken: u64,
    /// Changes, each with the number of the entry before which it comes.
    changes: VecDeque<(u64, ShardId, Change)>,
    /// At most one for each shard.
    committed: Vec<(ShardId, Lsn)>,
    /// The commit thread waits, and was not woken yet: to wake one that works is a system call for nothing.
    asleep: bool,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// Takes nothing more; what waits is still committed.
    Stopping,
    /// A write failed.
    Failed,
}

/// What the commit thread took from the queue.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) entries: Vec<Entry>,
    /// Changes, each with the index of the entry before which it comes.
    pub(super) changes: Vec<(usize, ShardId, Change)>,
    /// Positions below which a log is committed.
    pub(super) committed: Vec<(ShardId, Lsn)>,
    pub(super) room: Vec<Reservation>,
    /// Nothing waits, and nothing will come.
    pub(super) over: bool,
}

impl Default for CommitQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl CommitQueue {
    /// An empty queue of the size that `limits` allows.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                waiting: Mutex::default(),
                wake: Condvar::new(),
                room: Arc::new(Semaphore::new(COMMIT_QUEUE_BYTES_MAX)),
                pressed: AtomicBool::new(false),
                checkpoint: AtomicBool::new(false),
            }),
        }
    }

    /// How full it is, in percent.
    #[must_use]
    pub fn fill(&self) -> u8 {
        let taken = COMMIT_QUEUE_BYTES_MAX.saturating_sub(self.shared.room.available_permits());
        u8::try_from(taken * 100 / COMMIT_QUEUE_BYTES_MAX).unwrap_or(100)
    }

    /// Waits for room for an entry of `bytes`.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn reserve(&self, bytes: usize) -> Result<Reservation, Closed> {
        let room = Arc::clone(&self.shared.room);
        match room.acquire_many_owned(permits(bytes)).await {
            Ok(permit) => Ok(Reservation(Some(permit))),
            Err(_) => Err(Closed),
        }
    }

    /// Takes room for an entry of `bytes` if there is some now.
    ///
    /// # Errors
    /// [`Closed`].
    pub fn try_reserve(&self, bytes: usize) -> Result<Option<Reservation>, Closed> {
        let room = Arc::clone(&self.shared.room);
        match room.try_acquire_many_owned(permits(bytes)) {
            Ok(permit) => Ok(Some(Reservation(Some(permit)))),
            Err(tokio::sync::TryAcquireError::NoPermits) => Ok(None),
            Err(tokio::sync::TryAcquireError::Closed) => Err(Closed),
        }
    }

    /// Hands an entry over. Called under the lock of its shard, so that order is kept; it never waits for the disk.
    ///
    /// # Errors
    /// [`Closed`].
    pub fn push(&self, entry: Entry, room: Reservation) -> Result<(), Closed> {
        let mut waiting = self.waiting();
        if waiting.state != State::Open {
            return Err(Closed);
        }
        waiting.entries.push_back((entry, room));
        self.wake(waiting);
        Ok(())
    }

    /// Hands over a change, behind all entries that were handed over before. It waits for no room: the protocol bounds
    /// changes. A shard has one promise and one cut an epoch, and asks for the next part of an install when the one
    /// before is durable.
    ///
    /// # Errors
    /// [`Closed`].
    pub fn push_change(&self, shard: ShardId, change: Change) -> Result<(), Closed> {
        let mut waiting = self.waiting();
        if waiting.state != State::Open {
            return Err(Closed);
        }
        let before = waiting.taken + waiting.entries.len() as u64;
        waiting.changes.push_back((before, shard, change));
        self.wake(waiting);
        Ok(())
    }

    fn wake(&self, mut waiting: MutexGuard<'_, Waiting>) {
        let asleep = std::mem::take(&mut waiting.asleep);
        drop(waiting);
        if asleep {
            self.shared.wake.notify_one();
        }
    }

    /// Notes that positions of a shard below `committed` are committed: made durable with the next commit, which it does
    /// not bring about.
    pub fn note_committed(&self, shard: ShardId, committed: Lsn) {
        let noted = &mut self.waiting().committed;
        match noted.iter_mut().find(|(known, _)| *known == shard) {
            Some((_, lsn)) => *lsn = committed.max(*lsn),
            None => noted.push((shard, committed)),
        }
    }

    /// Asks the commit thread to free on the disk what it can.
    pub fn press(&self) {
        self.shared.pressed.store(true, Relaxed);
    }

    /// Whether that was asked since the last call.
    pub(super) fn is_pressed(&self) -> bool {
        self.shared.pressed.swap(false, Relaxed)
    }

    /// Asks for a checkpoint: a snapshot is as new as the last one.
    pub fn ask_checkpoint(&self) {
        self.shared.checkpoint.store(true, Relaxed);
        self.shared.wake.notify_one();
    }

    /// Whether that was asked since the last call.
    pub(super) fn is_checkpoint_asked(&self) -> bool {
        self.shared.checkpoint.swap(false, Relaxed)
    }

    /// Tells whether the log takes entries.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.waiting().state == State::Open
    }

    /// Takes what waits, up to `max_bytes` but at least one entry or change. Waits for some at most `timeout`.
    pub(super) fn take(&self, max_bytes: usize, timeout: Duration) -> Taken {
        let mut waiting = self.waiting();
        let empty = waiting.entries.is_empty() && waiting.changes.is_empty();
        if empty && waiting.state == State::Open && !timeout.is_zero() {
            waiting.asleep = true;
            let waited = self.shared.wake.wait_timeout(waiting, timeout);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
            waiting.asleep = false;
        }
        let mut taken = Taken::default();
        let mut bytes = 0;
        loop {
            while let Some((_, shard, change)) = waiting.next_change(taken.entries.len()) {
                bytes += change.len();
                taken.changes.push((taken.entries.len(), shard, change));
            }
            let Some((entry, _)) = waiting.entries.front() else { break };
            bytes += entry.header.entry_len();
            if bytes > max_bytes && !(taken.entries.is_empty() && taken.changes.is_empty()) {
                break;
            }
            if let Some((entry, room)) = waiting.entries.pop_front() {
                taken.entries.push(entry);
                taken.room.push(room);
            }
        }
        waiting.taken += taken.entries.len() as u64;
        taken.committed = std::mem::take(&mut waiting.committed);
        let nothing = taken.entries.is_empty() && taken.changes.is_empty();
        taken.over = nothing && waiting.state != State::Open;
        taken
    }

    /// Takes nothing more; what waits is still committed.
    pub(super) fn stop(&self) {
        self.shut(State::Stopping);
    }

    /// Takes nothing more and forgets what waits: nobody was told that it is safe.
    pub(super) fn fail(&self) {
        self.shut(State::Failed);
        let mut waiting = self.waiting();
        waiting.entries.clear();
        waiting.changes.clear();
    }

    fn shut(&self, state: State) {
        let mut waiting = self.waiting();
        if waiting.state != State::Failed {
            waiting.state = state;
        }
        drop(waiting);
        self.shared.room.close();
        self.shared.wake.notify_all();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// The next change, if it comes before the entry that is `taken` entries further on than those of the last call.
    fn next_change(&mut self, taken: usize) -> Option<(u64, ShardId, Change)> {
        let at = self.taken + taken as u64;
        self.changes.pop_front_if(|(before, _, _)| *before <= at)
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.min(COMMIT_QUEUE_BYTES_MAX)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::{
        storage::writer::clock,
        types::{Epoch, Offset, PartitionId, TopicId},
        wire::{
            EntryKind,
            entry::{Place, trim_body},
        },
    };

    /// Far beyond what a wake takes.
    const LONG: Duration = Duration::from_secs(60);

    fn entry() -> Entry {
        let place = Place { shard: ShardId(0), lsn: Lsn(0), epoch: Epoch(1), prev_chain: 0 };
        let partition = PartitionId { topic: TopicId(1), index: 0 };
        Entry::seal(place, EntryKind::Trim, partition, trim_body(Offset(9)))
    }

    #[test]
    fn who_sleeps_is_woken_by_what_is_handed_over() {
        let queue = CommitQueue::new();
        for round in 0..100 {
            let begun = clock();
            let taken = thread::scope(|scope| {
                let taken = scope.spawn(|| queue.take(usize::MAX, LONG));
                while !queue.waiting().asleep {
                    assert!(begun.elapsed() < LONG / 2, "it sleeps");
                    thread::yield_now();
                }
                let handed_over = match round % 2 {
                    0 => queue.push(entry(), Reservation::FREE),
                    _ => queue.push_change(ShardId(0), Change::Promise(Epoch(1))),
                };
                handed_over.expect("open");
                taken.join().expect("whole")
            });
            assert_eq!(taken.entries.len() + taken.changes.len(), 1);
            assert!(begun.elapsed() < LONG / 2, "it slept on");
        }
    }
}
