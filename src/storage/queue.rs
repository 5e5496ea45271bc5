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

use crate::{limits::COMMIT_QUEUE_BYTES_MAX, wire::Entry};

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
}

#[derive(Debug, Default)]
struct Waiting {
    entries: VecDeque<(Entry, Reservation)>,
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
            }),
        }
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
        let first = waiting.entries.len() == 1;
        drop(waiting);
        if first {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    /// Asks the commit thread to free on the disk what it can.
    pub fn press(&self) {
        self.shared.pressed.store(true, Relaxed);
    }

    /// Whether that was asked since the last call.
    pub(super) fn is_pressed(&self) -> bool {
        self.shared.pressed.swap(false, Relaxed)
    }

    /// Tells whether the log takes entries.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.waiting().state == State::Open
    }

    /// Takes what waits, up to `max_bytes` but at least one entry. Waits for some at most `timeout`.
    pub(super) fn take(&self, max_bytes: usize, timeout: Duration) -> Taken {
        let mut waiting = self.waiting();
        if waiting.entries.is_empty() && waiting.state == State::Open && !timeout.is_zero() {
            let waited = self.shared.wake.wait_timeout(waiting, timeout);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let mut taken = Taken::default();
        let mut bytes = 0;
        while let Some((entry, _)) = waiting.entries.front() {
            bytes += entry.header.entry_len();
            if bytes > max_bytes && !taken.entries.is_empty() {
                break;
            }
            if let Some((entry, room)) = waiting.entries.pop_front() {
                taken.entries.push(entry);
                taken.room.push(room);
            }
        }
        taken.over = taken.entries.is_empty() && waiting.state != State::Open;
        taken
    }

    /// Takes nothing more; what waits is still committed.
    pub(super) fn stop(&self) {
        self.shut(State::Stopping);
    }

    /// Takes nothing more and forgets what waits: nobody was told that it is safe.
    pub(super) fn fail(&self) {
        self.shut(State::Failed);
        self.waiting().entries.clear();
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

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.min(COMMIT_QUEUE_BYTES_MAX)).unwrap_or(u32::MAX)
}
