//! Applies committed entries to the site's state. The state lives in memory: snapshot and log on the disk make it anew.

use std::{
    io::Cursor,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use openraft::{
    EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, Snapshot,
    storage::RaftStateMachine,
};
use tokio::sync::watch;

use super::{
    disk::{Disk, DiskError},
    type_config::{
        Entry, LogId, Membership, MetaAnswer, SnapshotMeta, StorageError, TypeConfig, decode,
        encode,
    },
};
use crate::{
    cluster::{command::MetaOutcome, site::SiteState},
    storage::MetaStore,
    types::NodeId,
};

/// The state as everybody on this node sees it.
#[derive(Debug)]
pub(in crate::cluster) struct SiteView {
    site: RwLock<SiteState>,
    applied: watch::Sender<u64>,
}

impl SiteView {
    pub(in crate::cluster) fn read(&self) -> RwLockReadGuard<'_, SiteState> {
        // A panic of another thread cannot leave the state half changed: `apply` checks before it changes.
        self.site.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::cluster) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    fn write(&self) -> RwLockWriteGuard<'_, SiteState> {
        self.site.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What openraft applies entries to.
#[derive(Debug)]
pub(in crate::cluster) struct StateMachine {
    me: NodeId,
    disk: Disk,
    view: Arc<SiteView>,
    last: Option<LogId>,
    membership: Membership,
}

impl StateMachine {
    /// Takes up the snapshot of the disk, if there is one. Waits for the disk.
    pub(in crate::cluster) fn open(me: NodeId, disk: Disk) -> Result<Self, DiskError> {
        let (last, membership, site) = match disk.run_here(|store| Ok(store.snapshot()?))? {
            None => <(Option<LogId>, Membership, SiteState)>::default(),
            Some(found) => {
                let meta: SnapshotMeta = decode(&found.about)?;
                (meta.last_log_id, meta.last_membership, decode(&found.bytes)?)
            }
        };
        let applied = watch::Sender::new(site.applied);
        let view = Arc::new(SiteView { site: RwLock::new(site), applied });
        Ok(Self { me, disk, view, last, membership })
    }

    pub(in crate::cluster) fn view(&self) -> Arc<SiteView> {
        Arc::clone(&self.view)
    }

    fn apply_one(&mut self, site: &mut SiteState, entry: Entry) -> MetaAnswer {
        let index = entry.log_id.index;
        self.last = Some(entry.log_id);
        MetaAnswer(match entry.payload {
            EntryPayload::Normal(command) => site.apply(index, command),
            EntryPayload::Blank => {
                site.pass(index);
                Ok(MetaOutcome::Done)
            }
            EntryPayload::Membership(membership) => {
                site.pass(index);
                site.voters = membership.voter_ids().collect();
                self.membership = Membership::new(self.last, membership);
                Ok(MetaOutcome::Done)
            }
        })
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<MetaAnswer>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let view = self.view();
        let mut site = view.write();
        let answers = entries.into_iter().map(|entry| self.apply_one(&mut site, entry)).collect();
        let applied = site.applied;
        drop(site);
        view.applied.send_replace(applied);
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let meta = SnapshotMeta {
            last_log_id: self.last,
            last_membership: self.membership.clone(),
            // Equal states have equal bytes, but another node may run other software.
            snapshot_id: match self.last {
                Some(last) => format!("{}-{}-{}", last.leader_id, last.index, self.me),
                None => format!("none-{}", self.me),
            },
        };
        SnapshotBuilder { disk: self.disk.clone(), meta, site: self.view.read().clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let about = encode(meta);
        let save = move |store: &MetaStore| {
            let bytes = snapshot.into_inner();
            // Read before it is kept: what cannot be read must not be what the next start finds.
            let site: SiteState = decode(&bytes)?;
            store.save_snapshot(&about, &bytes)?;
            Ok(site)
        };
        let subject = ErrorSubject::Snapshot(Some(meta.signature()));
        let site = self.disk.run(subject, ErrorVerb::Write, save).await?;
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        let applied = site.applied;
        *self.view.write() = site;
        self.view.applied.send_replace(applied);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let read = |store: &MetaStore| match store.snapshot()? {
            Some(found) => Ok(Some((decode::<SnapshotMeta>(&found.about)?, found.bytes))),
            None => Ok(None),
        };
        let found = self.disk.run(ErrorSubject::Snapshot(None), ErrorVerb::Read, read).await?;
        Ok(found.map(|(meta, bytes)| snapshot(meta, &bytes)))
    }
}

/// A copy of the state on its way to the disk.
pub(in crate::cluster) struct SnapshotBuilder {
    disk: Disk,
    meta: SnapshotMeta,
    site: SiteState,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let (about, site) = (encode(&self.meta), std::mem::take(&mut self.site));
        let save = move |store: &MetaStore| {
            let bytes = encode(&site);
            store.save_snapshot(&about, &bytes)?;
            Ok(bytes)
        };
        let subject = ErrorSubject::Snapshot(Some(self.meta.signature()));
        let bytes = self.disk.run(subject, ErrorVerb::Write, save).await?;
        Ok(snapshot(self.meta.clone(), &bytes))
    }
}

fn snapshot(meta: SnapshotMeta, bytes: &Bytes) -> Snapshot<TypeConfig> {
    Snapshot { meta, snapshot: Box::new(Cursor::new(bytes.to_vec())) }
}
