//! The way of outcomes back to a publish stream: filled by the shards, emptied by the stream's writer.
//!
//! Bounded by the stream's window: a batch that has no outcome yet holds one of its permits.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit};

use crate::wire::{Ack, Fault};

/// What became of a batch.
#[derive(Debug)]
pub(super) enum Outcome {
    Stored(Ack),
    Refused { index: u64, fault: Fault },
}

/// The outcomes of one publish stream that are not sent yet.
#[derive(Debug, Default)]
pub(super) struct AckQueue {
    ready: Mutex<Vec<(Outcome, Permits)>>,
    notify: Notify,
}

/// What a batch holds until its outcome is sent: room in its stream's window and in its connection's.
pub(super) type Permits = [OwnedSemaphorePermit; 2];

/// One batch's claim to an outcome.
#[derive(Debug)]
pub(super) struct AckHandle {
    pub(super) queue: Arc<AckQueue>,
    pub(super) permits: Permits,
}

impl AckHandle {
    pub(super) fn ack(self, ack: Ack) {
        self.queue.push(Outcome::Stored(ack), self.permits);
    }

    pub(super) fn refuse(self, index: u64, fault: Fault) {
        self.queue.push(Outcome::Refused { index, fault }, self.permits);
    }
}

impl AckQueue {
    /// Waits until there is something, and takes it all. Cancel-safe.
    pub(super) async fn take(&self) -> Vec<(Outcome, Permits)> {
        loop {
            let ready = std::mem::take(&mut *self.lock());
            if !ready.is_empty() {
                return ready;
            }
            self.notify.notified().await;
        }
    }

    fn push(&self, outcome: Outcome, permits: Permits) {
        let mut ready = self.lock();
        let first = ready.is_empty();
        ready.push((outcome, permits));
        drop(ready);
        if first {
            self.notify.notify_one();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Outcome, Permits)>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
