//! Room on the disk: how much is left, and a ballast to let go of when there is none.
//!
//! A trim must be committed before it frees anything, and a copy-on-write commit needs free pages. The ballast is what
//! makes that possible on a full disk.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::open::sync_parent;

/// Why room cannot be measured or held back.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {source}")]
pub struct SpaceError {
    what: &'static str,
    path: String,
    source: io::Error,
}

/// Bytes that this process may still write in the file system of `path`.
///
/// # Errors
/// [`SpaceError`] when the system does not tell.
pub fn free_bytes(path: &Path) -> Result<u64, SpaceError> {
    let stat = statvfs(path).map_err(|e| failed("measure free space of", path, e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A file of real blocks that can be given up.
#[derive(Clone, Debug)]
pub struct Ballast {
    path: PathBuf,
    bytes: u64,
}

impl Ballast {
    /// A ballast of `bytes` in the file `path`; nothing is written yet. No bytes: no ballast.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, bytes: u64) -> Self {
        Self { path: path.into(), bytes }
    }

    /// Tells whether the file holds all of its blocks.
    #[must_use]
    pub fn is_held(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        self.bytes == 0
            || fs::metadata(&self.path).is_ok_and(|m| {
                m.len() == self.bytes && m.blocks().saturating_mul(512) >= self.bytes
            })
    }

    /// Takes the blocks. On failure none are held.
    ///
    /// # Errors
    /// [`SpaceError`], among others when there is not enough room.
    pub fn hold(&self) -> Result<(), SpaceError> {
        if self.is_held() {
            return Ok(());
        }
        self.fill().map_err(|error| {
            // Half a ballast would take room away without giving any back when it matters.
            let _ = fs::remove_file(&self.path);
            failed("reserve space in", &self.path, error)
        })
    }

    /// Gives the blocks back. Returns whether there were any.
    ///
    /// # Errors
    /// [`SpaceError`].
    pub fn release(&self) -> Result<bool, SpaceError> {
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("remove", &self.path, error)),
        }
    }

    fn fill(&self) -> io::Result<()> {
        let file: File =
            OpenOptions::new().create(true).truncate(true).write(true).open(&self.path)?;
        fallocate(&file, FallocateFlags::empty(), 0, self.bytes)?;
        file.sync_all()?;
        sync_parent(&self.path)
    }
}

fn failed(what: &'static str, path: &Path, source: io::Error) -> SpaceError {
    SpaceError { what, path: path.display().to_string(), source }
}
