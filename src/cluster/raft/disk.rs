//! The metadata store off the runtime: its calls wait for the disk, so each runs on a blocking thread.

use std::sync::{Arc, PoisonError, RwLock};

use openraft::{AnyError, ErrorSubject, ErrorVerb, StorageIOError};
use tokio::sync::watch;

use super::type_config::StorageError;
use crate::{storage::MetaStore, types::NodeId, wire::cbor::BadCbor};

/// The store, shared by log and state machine. After an error it takes nothing more: what is on the disk is unknown then.
#[derive(Clone, Debug)]
pub(in crate::cluster) struct Disk {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// None once it is closed: the file is free for the next who opens it, whoever still holds a `Disk`.
    store: RwLock<Option<MetaStore>>,
    failed: watch::Sender<Option<String>>,
}

/// Why the store gave nothing.
#[derive(Debug, thiserror::Error)]
pub(in crate::cluster) enum DiskError {
    #[error(transparent)]
    Store(#[from] crate::storage::StoreError),
    #[error("what it holds is unreadable: {0}")]
    Unreadable(#[from] BadCbor),
    #[error("it failed before: {0}")]
    Failed(String),
    #[error("it is closed")]
    Closed,
    #[error("its thread ended")]
    Thread,
}

impl Disk {
    pub(in crate::cluster) fn new(store: MetaStore) -> Self {
        let inner = Inner { store: RwLock::new(Some(store)), failed: watch::Sender::new(None) };
        Self { inner: Arc::new(inner) }
    }

    /// Becomes the reason once the store has failed.
    pub(in crate::cluster) fn failure(&self) -> watch::Receiver<Option<String>> {
        self.inner.failed.subscribe()
    }

    /// Does `work` on a blocking thread.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        subject: ErrorSubject<NodeId>,
        verb: ErrorVerb,
        work: impl FnOnce(&MetaStore) -> Result<T, DiskError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let disk = self.clone();
        let done = tokio::task::spawn_blocking(move || disk.run_here(work)).await;
        let done = done.unwrap_or(Err(DiskError::Thread));
        done.map_err(|error| StorageIOError::new(subject, verb, AnyError::new(&error)).into())
    }

    /// Does `work` on this thread, which may wait.
    pub(in crate::cluster) fn run_here<T>(
        &self,
        work: impl FnOnce(&MetaStore) -> Result<T, DiskError>,
    ) -> Result<T, DiskError> {
        if let Some(reason) = &*self.inner.failed.borrow() {
            return Err(DiskError::Failed(reason.clone()));
        }
        // A panic under the lock cannot leave the store half changed: its commits are whole or nothing.
        let store = self.inner.store.read().unwrap_or_else(PoisonError::into_inner);
        // Closed in order is no failure.
        let done = work(store.as_ref().ok_or(DiskError::Closed)?);
        if let Err(error) = &done {
            let reason = error.to_string();
            self.inner.failed.send_modify(|failed| *failed = failed.take().or(Some(reason)));
        }
        done
    }

    /// Closes the file, after what is under way.
    pub(in crate::cluster) fn close(&self) {
        let store = self.inner.store.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(store);
    }
}
