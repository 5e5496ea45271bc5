//! The small store of the metadata group, in a file of its own so that votes do not queue behind bulk data.

use std::{ops::RangeBounds, path::Path};

use bytes::Bytes;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::{
    backend::Backend,
    error::{StoreError, guarded},
    open::{begin, check_format, database, is_empty, open_file},
    schema::{FORMAT_VERSION, META},
};

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const VALUES: TableDefinition<&str, &[u8]> = TableDefinition::new("values");
/// What the snapshot covers, and the snapshot: one row, so that neither comes without the other.
const SNAPSHOT: TableDefinition<(), (&[u8], &[u8])> = TableDefinition::new("snapshot");
/// Named value: what is known of the last entry that was purged.
const PURGED: &str = "purged";
/// The metadata of a site is small; what is hot of it lives in memory anyway.
const CACHE_BYTES: usize = 1024 * 1024;

/// A durable log, a snapshot and named values. Every change survives a power cut once its call has returned.
/// Calls wait for the disk.
#[derive(Debug)]
pub struct MetaStore {
    db: Database,
}

/// A snapshot of the metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaSnapshot {
    /// What it covers, in the words of the group.
    pub about: Bytes,
    /// Its bytes.
    pub bytes: Bytes,
}

impl MetaStore {
    /// Opens the store in the file `path`, or makes it when there is no such file.
    ///
    /// # Errors
    /// [`StoreError`]. A file that is there but empty or not ours is refused.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        open_file(path, Self::open_with)
    }

    /// Opens the store in `backend`, or makes it when the backend is empty.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open_backend(backend: impl Backend) -> Result<Self, StoreError> {
        Self::open_with(backend, true)
    }

    fn open_with(backend: impl Backend, may_make: bool) -> Result<Self, StoreError> {
        guarded(|| {
            let (db, _) = database(backend, CACHE_BYTES)?;
            if !is_empty(&db)? {
                let txn = db.begin_read()?;
                check_format(&txn)?;
                txn.open_table(LOG)?;
                drop(txn);
                return Ok(Self { db });
            }
            if !may_make {
                return Err(StoreError::Foreign("the database has no tables".into()));
            }
            let txn = begin(&db)?;
            txn.open_table(META)?.insert("format", &FORMAT_VERSION.to_be_bytes()[..])?;
            txn.open_table(LOG)?;
            txn.open_table(VALUES)?;
            txn.open_table(SNAPSHOT)?;
            txn.commit()?;
            Ok(Self { db })
        })
    }

    /// Appends entries, the first at `index`, in one commit.
    ///
    /// # Errors
    /// [`StoreError`].
    ///
    /// # Panics
    /// If they would leave a gap or replace an entry: the caller truncates first. Behind an empty log any index will do:
    /// a snapshot of another member may have gone ahead of it.
    pub fn append(&self, index: u64, entries: &[Bytes]) -> Result<(), StoreError> {
        if let Some((last, _)) = self.last()? {
            assert_eq!(index, last + 1, "metadata entries follow each other");
        }
        self.write(|txn| {
            let mut log = txn.open_table(LOG)?;
            for (index, bytes) in (index..).zip(entries) {
                log.insert(index, &bytes[..])?;
            }
            Ok(())
        })
    }

    /// The entries in a range, with their indexes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn entries(&self, range: impl RangeBounds<u64>) -> Result<Vec<(u64, Bytes)>, StoreError> {
        guarded(|| {
            let log = self.db.begin_read()?.open_table(LOG)?;
            let mut found = Vec::new();
            for item in log.range(range)? {
                let (index, bytes) = item?;
                found.push((index.value(), Bytes::copy_from_slice(bytes.value())));
            }
            Ok(found)
        })
    }

    /// The last entry.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn last(&self) -> Result<Option<(u64, Bytes)>, StoreError> {
        guarded(|| {
            let log = self.db.begin_read()?.open_table(LOG)?;
            let last = log.last()?;
            Ok(last.map(|(index, bytes)| (index.value(), Bytes::copy_from_slice(bytes.value()))))
        })
    }

    /// Removes the entries from `index` on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn truncate_from(&self, index: u64) -> Result<(), StoreError> {
        self.write(|txn| Ok(txn.open_table(LOG)?.retain_in(index.., |_, _| false)?))
    }

    /// Removes the entries up to and including `index`, and remembers `last`: what is known of the entry at `index`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn purge_to(&self, index: u64, last: &[u8]) -> Result<(), StoreError> {
        self.write(|txn| {
            txn.open_table(VALUES)?.insert(PURGED, last)?;
            Ok(txn.open_table(LOG)?.retain_in(..=index, |_, _| false)?)
        })
    }

    /// What was remembered of the last entry that was purged.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn purged(&self) -> Result<Option<Bytes>, StoreError> {
        self.get(PURGED)
    }

    /// Replaces the snapshot.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn save_snapshot(&self, about: &[u8], bytes: &[u8]) -> Result<(), StoreError> {
        self.write(|txn| {
            txn.open_table(SNAPSHOT)?.insert((), (about, bytes))?;
            Ok(())
        })
    }

    /// The snapshot, if one was ever saved.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn snapshot(&self) -> Result<Option<MetaSnapshot>, StoreError> {
        guarded(|| {
            let table = self.db.begin_read()?.open_table(SNAPSHOT)?;
            let found = table.get(())?;
            Ok(found.map(|value| {
                let (about, bytes) = value.value();
                MetaSnapshot {
                    about: Bytes::copy_from_slice(about),
                    bytes: Bytes::copy_from_slice(bytes),
                }
            }))
        })
    }

    /// Sets a named value.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.write(|txn| {
            txn.open_table(VALUES)?.insert(key, bytes)?;
            Ok(())
        })
    }

    /// Sets a named value that may be lost: it is on the disk with the next change of anything else.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put_soon(&self, key: &str, bytes: &[u8]) -> Result<(), StoreError> {
        guarded(|| {
            let mut txn = begin(&self.db)?;
            txn.set_durability(Durability::None)?;
            txn.open_table(VALUES)?.insert(key, bytes)?;
            Ok(txn.commit()?)
        })
    }

    /// A named value.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        guarded(|| {
            let table = self.db.begin_read()?.open_table(VALUES)?;
            Ok(table.get(key)?.map(|value| Bytes::copy_from_slice(value.value())))
        })
    }

    fn write(
        &self,
        work: impl FnOnce(&redb::WriteTransaction) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        guarded(|| {
            let txn = begin(&self.db)?;
            work(&txn)?;
            Ok(txn.commit()?)
        })
    }
}
