//! The group that orders the site's commands: of one member, with its log and snapshot in `meta.redb`.

use std::sync::Mutex;

use bytes::BytesMut;
use serde::{Deserialize, Serialize};

use super::{
    command::{MetaCommand, MetaOutcome, MetaReject},
    site::SiteState,
};
use crate::{
    limits::META_LOG_LEN_MAX,
    storage::{MetaStore, StoreError},
    wire::cbor::{self, BadCbor},
};

/// The metadata group. Proposals block on the disk: call it from a thread that may wait.
#[derive(Debug)]
pub struct MetaGroup {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: MetaStore,
    state: SiteState,
    snapshot: u64,
    broken: bool,
}

/// An entry of the metadata log, with the term that a group of several would vote on.
#[derive(Serialize, Deserialize)]
struct LogEntry {
    term: u64,
    command: MetaCommand,
}

/// Why a proposal did not go through.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// It was applied, and changed nothing.
    #[error(transparent)]
    Rejected(#[from] MetaReject),
    /// The disk failed; the node must stop.
    #[error("metadata: {0}")]
    Store(#[from] StoreError),
    /// What the disk holds cannot be understood.
    #[error("metadata entry {index} is unreadable: {source}")]
    Unreadable {
        /// Which.
        index: u64,
        /// Why.
        source: BadCbor,
    },
    /// An entry of the log is missing.
    #[error("metadata entry {0} is missing")]
    Missing(u64),
    /// A write failed before: nothing is accepted until the node is started again.
    #[error("metadata cannot be written since an earlier error; restart the node")]
    Broken,
}

impl MetaGroup {
    /// Takes up the state that `store` holds: its snapshot, and the log behind it.
    ///
    /// # Errors
    /// [`GroupError`] when it cannot be read whole.
    pub fn open(store: MetaStore) -> Result<Self, GroupError> {
        let mut state = SiteState::default();
        if let Some(snapshot) = store.snapshot()? {
            state = cbor::get(&snapshot.bytes)
                .map_err(|source| GroupError::Unreadable { index: snapshot.index, source })?;
        }
        let snapshot = state.applied;
        for (index, bytes) in store.entries(snapshot + 1..)? {
            if index != state.applied + 1 {
                return Err(GroupError::Missing(state.applied + 1));
            }
            let entry: LogEntry =
                cbor::get(&bytes).map_err(|source| GroupError::Unreadable { index, source })?;
            // A command that was rejected then is rejected now: the state is the same.
            let _ = state.apply(index, entry.command);
        }
        Ok(Self { inner: Mutex::new(Inner { store, state, snapshot, broken: false }) })
    }

    /// Makes a command durable and applies it.
    ///
    /// # Errors
    /// [`GroupError::Rejected`] when it changed nothing, the others when the disk failed.
    pub fn propose(&self, command: MetaCommand) -> Result<MetaOutcome, GroupError> {
        let mut inner = self.lock();
        if inner.broken {
            return Err(GroupError::Broken);
        }
        let index = inner.state.applied + 1;
        let mut bytes = BytesMut::new();
        cbor::put(&LogEntry { term: 1, command: command.clone() }, &mut bytes);
        if let Err(error) = inner.store.append(index, &[bytes.freeze()]) {
            // Whether the entry is on the disk is unknown: going on could apply it now and not after a restart.
            inner.broken = true;
            return Err(error.into());
        }
        let outcome = inner.state.apply(index, command);
        inner.compact();
        Ok(outcome?)
    }

    /// Looks at the state.
    pub fn read<T>(&self, look: impl FnOnce(&SiteState) -> T) -> T {
        look(&self.lock().state)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic of another thread cannot leave the state half changed: `apply` checks before it changes.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    /// Replaces the log by a snapshot once it is long. A failure is no loss: the log is whole.
    fn compact(&mut self) {
        if self.state.applied - self.snapshot < META_LOG_LEN_MAX {
            return;
        }
        let mut bytes = BytesMut::new();
        cbor::put(&self.state, &mut bytes);
        let index = self.state.applied;
        let saved = self.store.save_snapshot(index, &bytes);
        match saved.and_then(|()| self.store.purge_to(index)) {
            Ok(()) => self.snapshot = index,
            Err(error) => {
                tracing::error!(%error, "metadata snapshot could not be written");
                self.broken = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TopicSettings;

    fn create(n: u64) -> MetaCommand {
        MetaCommand::CreateTopic {
            name: format!("t{n}").parse().expect("allowed"),
            settings: TopicSettings::default(),
            now: crate::types::Timestamp(n),
        }
    }

    #[test]
    fn the_state_survives_restarts_across_snapshots() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("meta.redb");
        let mut want = SiteState::default();
        for round in 0..3 {
            let group = MetaGroup::open(MetaStore::open(&path).expect("opens")).expect("reads");
            assert_eq!(group.read(SiteState::clone), want);
            let site = "home".parse().expect("allowed");
            group.propose(MetaCommand::Found { site, shards: 2 }).expect("new or the same");
            for n in 0..META_LOG_LEN_MAX * 2 / 3 {
                group.propose(create(round * 1_000 + n)).expect("new");
            }
            let other = "away".parse().expect("allowed");
            let rejected = group.propose(MetaCommand::Found { site: other, shards: 2 });
            assert!(matches!(rejected, Err(GroupError::Rejected(_))));
            want = group.read(SiteState::clone);
        }
        assert_eq!(want.topics.len() as u64, 3 * (META_LOG_LEN_MAX * 2 / 3));
    }
}
