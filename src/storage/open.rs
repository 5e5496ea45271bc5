//! Opens a database: empty, present, or unreadable, and the last is an error.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::Path,
    sync::Arc,
};

use redb::{Database, ReadableDatabase, TableHandle, WriteTransaction, backends::FileBackend};

use super::{
    backend::{Backend, Meter, Metered},
    error::{StoreError, guarded},
    read::Store,
    recover::{self, Recovered},
    schema::{CHECKPOINT, FORMAT_VERSION, INDEX, META, ROWS, STATE, array},
    writer::Writer,
};

/// How to open a store.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Memory for pages of the database.
    pub cache_bytes: usize,
    /// Number of shards, fixed when the store is made.
    pub shards: u16,
    /// The identity of a store that is made now: random, never used before.
    pub disk_id: u128,
}

impl Store {
    /// Opens the store in the file `path`, or makes it when there is no such file.
    ///
    /// # Errors
    /// [`StoreError`]. A file that is there but empty or not ours is refused: it may be what is left of a store.
    pub fn open(path: &Path, options: Options) -> Result<(Self, Writer, Recovered), StoreError> {
        open_file(path, |backend, fresh| open_with(backend, options, fresh))
    }

    /// Opens the store in `backend`, or makes it when the backend is empty.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open_backend(
        backend: impl Backend,
        options: Options,
    ) -> Result<(Self, Writer, Recovered), StoreError> {
        open_with(backend, options, true)
    }
}

/// Who the store is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) disk_id: u128,
    pub(super) clean: bool,
}

fn open_with(
    backend: impl Backend,
    options: Options,
    may_make: bool,
) -> Result<(Store, Writer, Recovered), StoreError> {
    guarded(|| {
        let (db, meter) = database(backend, options.cache_bytes)?;
        let identity = if is_empty(&db)? {
            if !may_make {
                return Err(StoreError::Foreign("the database has no tables".into()));
            }
            format(&db, options)?;
            Identity { disk_id: options.disk_id, clean: true }
        } else {
            let identity = identify(&db, options.shards)?;
            set_clean(&db, false)?;
            identity
        };
        recover::recover(db, meter, identity, options.shards)
    })
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
        txn.open_table(ROWS)?;
        txn.open_table(INDEX)?;
        txn.open_table(STATE)?;
        txn.open_table(CHECKPOINT)?;
    }
    Ok(txn.commit()?)
}

fn identify(db: &Database, shards: u16) -> Result<Identity, StoreError> {
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
    Ok(Identity { disk_id, clean })
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

pub(super) fn set_clean(db: &Database, clean: bool) -> Result<(), StoreError> {
    let txn = begin(db)?;
    txn.open_table(META)?.insert("clean", &[u8::from(clean)][..])?;
    Ok(txn.commit()?)
}

/// Opens the file, or makes it under another name that is changed only when `open` has filled it: a power cut in
/// between leaves no half-made store.
pub(super) fn open_file<T>(
    path: &Path,
    open: impl FnOnce(FileBackend, bool) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match options.open(path) {
        Ok(file) if file.metadata()?.len() == 0 => {
            Err(StoreError::Foreign("the file is empty".into()))
        }
        Ok(file) => open(FileBackend::new(file)?, false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let making = path.with_extension("making");
            let file = options.create(true).truncate(true).open(&making)?;
            let made = open(FileBackend::new(file)?, true)?;
            fs::rename(&making, path)?;
            sync_parent(path)?;
            Ok(made)
        }
        Err(error) => Err(error.into()),
    }
}

/// Makes a new name in a directory durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}
