//! Votes and entries, as openraft wants them kept. What it is told to be kept is durable when it is told so.

use std::{fmt::Debug, io, ops::RangeBounds};

use bytes::Bytes;
use openraft::{
    ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader,
    storage::{LogFlushed, RaftLogStorage},
};

use super::{
    disk::{Disk, DiskError},
    type_config::{Entry, LogId, StorageError, TypeConfig, Vote, decode, encode},
};
use crate::{storage::MetaStore, types::NodeId};

const VOTE: &str = "vote";
const COMMITTED: &str = "committed";

/// The log of the group on this node.
#[derive(Clone, Debug)]
pub(in crate::cluster) struct LogStore {
    me: NodeId,
    disk: Disk,
}

impl LogStore {
    pub(in crate::cluster) fn new(me: NodeId, disk: Disk) -> Self {
        Self { me, disk }
    }
}

/// The last entry that was purged, and the last that is there or was purged.
fn bounds(store: &MetaStore) -> Result<(Option<LogId>, Option<LogId>), DiskError> {
    let purged = match store.purged()? {
        Some(bytes) => decode::<Option<LogId>>(&bytes)?,
        None => None,
    };
    let last = match store.last()? {
        Some((_, bytes)) => Some(decode::<Entry>(&bytes)?.log_id),
        None => purged,
    };
    Ok((purged, last))
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, StorageError> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        let read = move |store: &MetaStore| {
            let found = store.entries(range)?;
            Ok(found.iter().map(|(_, bytes)| decode(bytes)).collect::<Result<_, _>>()?)
        };
        self.disk.run(ErrorSubject::Logs, ErrorVerb::Read, read).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let (last_purged_log_id, last_log_id) =
            self.disk.run(ErrorSubject::Logs, ErrorVerb::Read, bounds).await?;
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let bytes = encode(vote);
        let write = move |store: &MetaStore| Ok(store.put(VOTE, &bytes)?);
        self.disk.run(ErrorSubject::Vote, ErrorVerb::Write, write).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let me = self.me;
        let read = move |store: &MetaStore| {
            let Some(bytes) = store.get(VOTE)? else { return Ok(None) };
            let mut vote: Vote = decode(&bytes)?;
            let (_, last) = bounds(store)?;
            // A leader that finds itself so at its start goes on at once. But without an entry of its own term it could
            // commit nothing: it was killed before its first one. As a mere candidate it is elected again.
            let led = vote.is_committed() && vote.leader_id().voted_for() == Some(me);
            if led && last.is_none_or(|last| last.leader_id != *vote.leader_id()) {
                vote.committed = false;
            }
            Ok(Some(vote))
        };
        self.disk.run(ErrorSubject::Vote, ErrorVerb::Read, read).await
    }

    /// What is known to be committed is applied at a start before anybody is heard: a node must know where the others are
    /// when it is the one that has to call them. It costs no flush, and may be a little behind.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let bytes = encode(&committed);
        let write = move |store: &MetaStore| Ok(store.put_soon(COMMITTED, &bytes)?);
        self.disk.run(ErrorSubject::Store, ErrorVerb::Write, write).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let read = |store: &MetaStore| match store.get(COMMITTED)? {
            Some(bytes) => {
                let committed = decode::<Option<LogId>>(&bytes)?;
                let (_, last) = bounds(store)?;
                Ok(committed.min(last))
            }
            None => Ok(None),
        };
        self.disk.run(ErrorSubject::Store, ErrorVerb::Read, read).await
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut first = None;
        let mut bytes: Vec<Bytes> = Vec::new();
        for entry in entries {
            first.get_or_insert(entry.log_id.index);
            bytes.push(encode(&entry));
        }
        let write = move |store: &MetaStore| match first {
            Some(first) => Ok(store.append(first, &bytes)?),
            None => Ok(()),
        };
        let done = self.disk.run(ErrorSubject::Logs, ErrorVerb::Write, write).await;
        callback.log_io_completed(match &done {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::other(error.to_string())),
        });
        done
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let write = move |store: &MetaStore| Ok(store.truncate_from(log_id.index)?);
        self.disk.run(ErrorSubject::Logs, ErrorVerb::Write, write).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let bytes = encode(&Some(log_id));
        let write = move |store: &MetaStore| Ok(store.purge_to(log_id.index, &bytes)?);
        self.disk.run(ErrorSubject::Logs, ErrorVerb::Delete, write).await
    }
}
