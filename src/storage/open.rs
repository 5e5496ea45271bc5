//! Opens a database: empty, present, or unreadable, and the last is an error.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use redb::{
    Database, ReadableDatabase, ReadableTable, TableHandle, WriteTransaction, backends::FileBackend,
};

use super::{
    backend::{Backend, Meter, Metered},
    error::{StoreError, guarded},
    journal::Journal,
    journal_file::JournalFile,
    read::Store,
    recover::{self, Recovered},
    row::{Cursor, pieces},
    schema::{
        CHECKPOINT, FORMAT_VERSION, INDEX, LOG_INDEX, LOG_KEY, LogInfo, META, ROWS, STATE, array,
    },
    writer::Writer,
};
use crate::{limits::JOURNAL_LEN, wire::BadEntry};

/// How to open a store.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Memory for pages of the database.
    pub cache_bytes: usize,
    /// Number of shards, fixed when the store is made.
    pub shards: u16,
    /// The identity of a store that is made now: random, never used before.
    pub disk_id: u128,
    /// Length of the journal of a store that is made now, in bytes.
    pub journal_len: usize,
}

impl Options {
    /// The usual options, for a store of so many shards and with this identity.
    #[must_use]
    pub fn new(shards: u16, disk_id: u128) -> Self {
        Self { cache_bytes: 32 * 1024 * 1024, shards, disk_id, journal_len: JOURNAL_LEN }
    }
}

impl Store {
    /// Opens the store in the file `path` and its journal beside it, or makes both when there is no such file.
    ///
    /// # Errors
    /// [`StoreError`]. A file that is there but empty or not ours is refused: it may be what is left of a store.
    pub fn open(path: &Path, options: Options) -> Result<(Self, Writer, Recovered), StoreError> {
        let journal = path.with_file_name(JOURNAL_FILE);
        // While a store is made, its database has another name.
        if journal.exists() && !path.exists() && !making(path).exists() {
            let text = format!("{} is there, but its log is not", journal.display());
            return Err(StoreError::Foreign(text));
        }
        open_file(path, |backend, fresh| {
            let journal = JournalFile::new(file_backend(&journal, fresh)?, &journal);
            if fresh {
                sync_parent(path)?;
            }
            open_with(backend, journal, options, fresh)
        })
    }

    /// Opens the store in `backend` and `journal`, or makes it when `backend` is empty.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open_backend(
        backend: impl Backend,
        journal: impl Backend,
        options: Options,
    ) -> Result<(Self, Writer, Recovered), StoreError> {
        open_with(backend, journal, options, true)
    }
}

/// Name of the journal, beside the database.
const JOURNAL_FILE: &str = "journal";

/// Who the store is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) disk_id: u128,
    pub(super) clean: bool,
}

fn open_with(
    backend: impl Backend,
    journal: impl Backend,
    options: Options,
    may_make: bool,
) -> Result<(Store, Writer, Recovered), StoreError> {
    guarded(|| {
        let (db, meter) = database(backend, options.cache_bytes)?;
        let (journal, journal_meter) = Metered::new(journal);
        let journal = Box::new(journal);
        let (identity, journal) = if is_empty(&db)? {
            if !may_make {
                return Err(StoreError::Foreign("the database has no tables".into()));
            }
            let journal = Journal::create(journal, options.disk_id, options.journal_len)?;
            format(&db, options)?;
            (Identity { disk_id: options.disk_id, clean: true }, journal)
        } else {
            let (identity, next_frame) = identify(&db, options.shards)?;
            let (mut journal, frames) = Journal::open(journal, identity.disk_id, next_frame)?;
            take_over(&db, &frames, journal.next())?;
            journal.restart();
            (identity, journal)
        };
        recover::recover(db, [meter, journal_meter], journal, identity, options.shards)
    })
}

/// Moves what the journal holds into the database, and marks that the store is open.
///
/// It is moved now, not when there is more: a frame that was read may lie in the system's cache alone, after a flush
/// that failed. What is written anew is safe.
fn take_over(db: &Database, frames: &[Bytes], next_frame: u64) -> Result<(), StoreError> {
    let txn = begin(db)?;
    txn.open_table(META)?.insert("clean", &[0][..])?;
    // A store that was made before replicas were known has none.
    txn.open_table(LOG_INDEX)?;
    if !frames.is_empty() {
        let mut rows = txn.open_table(ROWS)?;
        let behind = rows.last()?.map_or(0, |(row, _)| row.value() + 1);
        let log = match txn.open_table(CHECKPOINT)?.get(LOG_KEY)? {
            Some(value) => LogInfo::decode(value.value())?,
            None => LogInfo::default(),
        };
        let mut rest = &frames.concat()[..];
        let lens: Result<Vec<usize>, BadEntry> =
            pieces(rest).map(|piece| Ok(piece?.len())).collect();
        let lens = lens.map_err(|e| StoreError::Corrupted(format!("journal: {e}")))?;
        let mut cursor = Cursor::at(behind.max(log.next_row));
        for (row, range) in cursor.cut(lens.iter().copied()) {
            let (entries, behind) = rest.split_at(lens[range].iter().sum::<usize>());
            rows.insert(row, entries)?;
            rest = behind;
        }
        write_next_frame(&txn, next_frame)?;
    }
    Ok(txn.commit()?)
}

/// Notes that the frames before `next` are in the database.
pub(super) fn write_next_frame(txn: &WriteTransaction, next: u64) -> Result<(), StoreError> {
    txn.open_table(META)?.insert("journal", &next.to_be_bytes()[..])?;
    Ok(())
}

/// Opens a redb database over a counting backend.
pub(super) fn database(
    backend: impl Backend,
    cache_bytes: usize,
) -> Result<(Database, Arc<Meter>), StoreError> {
    let (backend, meter) = Metered::new(backend);
    let opened = Database::builder().set_cache_size(cache_bytes).create_with_backend(backend);
    match opened.map_err(StoreError::from) {
        Err(StoreError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
            Err(StoreError::Foreign(error.to_string()))
        }
        opened => Ok((opened?, meter)),
    }
}

/// Tells whether the database holds no table: it was made a moment ago, or the power went before it was formatted.
pub(super) fn is_empty(db: &Database) -> Result<bool, StoreError> {
    Ok(db.begin_read()?.list_tables()?.next().is_none())
}

/// Begins a transaction that survives a power cut once its commit has returned, and lets the next open be instant.
pub(super) fn begin(db: &Database) -> Result<WriteTransaction, StoreError> {
    let mut txn = db.begin_write()?;
    txn.set_two_phase_commit(true);
    txn.set_quick_repair(true);
    Ok(txn)
}

fn format(db: &Database, options: Options) -> Result<(), StoreError> {
    let txn = begin(db)?;
    {
        let mut meta = txn.open_table(META)?;
        meta.insert("format", &FORMAT_VERSION.to_be_bytes()[..])?;
        meta.insert("disk", &options.disk_id.to_be_bytes()[..])?;
        meta.insert("shards", &options.shards.to_be_bytes()[..])?;
        meta.insert("clean", &[0][..])?;
        meta.insert("journal", &0_u64.to_be_bytes()[..])?;
        txn.open_table(ROWS)?;
        txn.open_table(INDEX)?;
        txn.open_table(LOG_INDEX)?;
        txn.open_table(STATE)?;
        txn.open_table(CHECKPOINT)?;
    }
    Ok(txn.commit()?)
}

/// Who the store is, and the first frame of the journal that is not in the database.
fn identify(db: &Database, shards: u16) -> Result<(Identity, u64), StoreError> {
    let txn = db.begin_read()?;
    check_format(&txn)?;
    let meta = txn.open_table(META)?;
    let absent = |key| StoreError::Foreign(format!("'{key}' is missing"));
    let found = meta.get("shards")?.ok_or_else(|| absent("shards"))?;
    let found = u16::from_be_bytes(array(found.value(), "shards")?);
    if found != shards {
        return Err(StoreError::Shards { found, wanted: shards });
    }
    let disk_id = meta.get("disk")?.ok_or_else(|| absent("disk"))?;
    let disk_id = u128::from_be_bytes(array(disk_id.value(), "disk")?);
    let clean = meta.get("clean")?.ok_or_else(|| absent("clean"))?.value() == [1];
    let next_frame = meta.get("journal")?.ok_or_else(|| absent("journal"))?;
    let next_frame = u64::from_be_bytes(array(next_frame.value(), "journal")?);
    Ok((Identity { disk_id, clean }, next_frame))
}

/// Refuses what a newer program wrote, and what is not ours.
pub(super) fn check_format(txn: &redb::ReadTransaction) -> Result<(), StoreError> {
    if !txn.list_tables()?.any(|table| table.name() == "meta") {
        return Err(StoreError::Foreign("the database has no table 'meta'".into()));
    }
    let meta = txn.open_table(META)?;
    let Some(found) = meta.get("format")? else {
        return Err(StoreError::Foreign("'format' is missing".into()));
    };
    match u32::from_be_bytes(array(found.value(), "format")?) {
        found if found > FORMAT_VERSION => {
            Err(StoreError::NewerFormat { found, known: FORMAT_VERSION })
        }
        _ => Ok(()),
    }
}

/// Opens the file, or makes it under another name that is changed only when `open` has filled it: a power cut in
/// between leaves no half-made store.
pub(super) fn open_file<T>(
    path: &Path,
    open: impl FnOnce(FileBackend, bool) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    match File::options().read(true).write(true).open(path) {
        Ok(file) if file.metadata()?.len() == 0 => {
            Err(StoreError::Foreign("the file is empty".into()))
        }
        Ok(file) => open(FileBackend::new(file)?, false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let making = making(path);
            let made = open(file_backend(&making, true)?, true)?;
            fs::rename(&making, path)?;
            sync_parent(path)?;
            Ok(made)
        }
        Err(error) => Err(error.into()),
    }
}

/// The name of a database that is being made.
fn making(path: &Path) -> PathBuf {
    path.with_extension("making")
}

fn file_backend(path: &Path, make: bool) -> Result<FileBackend, StoreError> {
    let opened = File::options().read(true).write(true).create(make).truncate(make).open(path);
    let file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if !make => {
            StoreError::Foreign(format!("{} is missing, but the log needs it", path.display()))
        }
        _ => StoreError::Io(error),
    })?;
    Ok(FileBackend::new(file)?)
}

/// Makes a new name in a directory durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}
