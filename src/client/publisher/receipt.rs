//! How those who wait for acks learn of them: one receipt a batch, shared by its records.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use crate::{
    client::{
        error::{Obstacle, PublishError},
        outbox::{BatchNo, Stored},
    },
    types::{AckLevel, Offset},
};

/// Where a record was stored, and how safely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The partition.
    pub partition: u32,
    /// The record's offset there.
    pub offset: Offset,
    /// What was reached: never less than what was asked for.
    pub level: AckLevel,
    /// On how many nodes it is.
    pub copies: u8,
}

/// Waits for the ack of one record. Dropping it changes nothing for the record.
#[derive(Debug)]
#[must_use = "errors of the record show here"]
pub struct AckFuture {
    receipt: Arc<Receipt>,
    index: u32,
}

impl AckFuture {
    pub(super) fn new(receipt: Arc<Receipt>, index: u32) -> Self {
        Self { receipt, index }
    }

    /// What became of the record, if that is known already.
    #[must_use]
    pub fn try_get(&self) -> Option<Result<Delivery, PublishError>> {
        let state = self.receipt.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Settled(outcome) => Some(self.delivery(outcome)),
            State::Waiting(_) => None,
        }
    }

    fn delivery(&self, outcome: &Result<Stored, PublishError>) -> Result<Delivery, PublishError> {
        let stored = outcome.as_ref().map_err(Clone::clone)?;
        Ok(Delivery {
            partition: stored.partition,
            offset: Offset(stored.base_offset.0.saturating_add(self.index.into())),
            level: stored.level,
            copies: stored.copies,
        })
    }
}

impl Future for AckFuture {
    type Output = Result<Delivery, PublishError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.receipt.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *state {
            State::Settled(outcome) => Poll::Ready(self.delivery(outcome)),
            State::Waiting(wakers) => {
                match wakers.get_mut(&self.index) {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => drop(wakers.insert(self.index, cx.waker().clone())),
                }
                Poll::Pending
            }
        }
    }
}

/// What becomes of one batch.
#[derive(Debug)]
pub(super) struct Receipt(Mutex<State>);

#[derive(Debug)]
enum State {
    /// Who is to be woken, by place in the batch.
    Waiting(HashMap<u32, Waker>),
    Settled(Result<Stored, PublishError>),
}

impl Receipt {
    pub(super) fn settle(&self, outcome: Result<Stored, PublishError>) {
        let before = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *state, State::Settled(outcome))
        };
        if let State::Waiting(wakers) = before {
            wakers.into_values().for_each(Waker::wake);
        }
    }
}

/// The receipts of all batches that are not settled.
#[derive(Debug, Default)]
pub(super) struct Receipts(HashMap<BatchNo, Arc<Receipt>>);

impl Receipts {
    pub(super) fn get(&mut self, batch: BatchNo) -> Arc<Receipt> {
        let new = || Arc::new(Receipt(Mutex::new(State::Waiting(HashMap::new()))));
        Arc::clone(self.0.entry(batch).or_insert_with(new))
    }

    pub(super) fn remove(&mut self, batch: BatchNo) -> Option<Arc<Receipt>> {
        self.0.remove(&batch)
    }
}

impl Drop for Receipts {
    /// The publisher is gone and with it all that could bring answers.
    fn drop(&mut self) {
        for receipt in self.0.values() {
            receipt.settle(Err(PublishError::Unknown { cause: Obstacle::Dropped }));
        }
    }
}
