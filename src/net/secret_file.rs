//! Files with private keys: born with mode 0600, never overwritten, never read when others could read them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Who may read a file that is made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The owner alone (0600).
    Private,
    /// Everybody (0644): certificates without keys.
    Public,
}

/// User and group that a new file shall belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Owner {
    /// The owner of an existing file or directory.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub fn of(path: &Path) -> Result<Self, FileError> {
        let data = fs::metadata(path).map_err(FileError::io("read", path))?;
        Ok(Self { uid: data.uid(), gid: data.gid() })
    }
}

/// Makes a file that did not exist, whole and flushed or not at all.
///
/// # Errors
/// [`FileError::Exists`] if there is one already; it is left as it is.
pub fn write_new(
    path: &Path,
    contents: &[u8],
    access: Access,
    owner: Option<Owner>,
) -> Result<(), FileError> {
    let parent = parent_of(path);
    let draft = parent.join(format!(".dunlin-{:016x}.new", rand::random::<u64>()));
    let made = write_draft(&draft, contents, access, owner).map_err(FileError::io("write", path));
    // A link gives the finished file its name only if nothing bears it: rename would replace.
    let named = made.and_then(|()| {
        fs::hard_link(&draft, path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => FileError::Exists { path: path.into() },
            _ => FileError::io("write", path)(source),
        })
    });
    let cleaned = match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    named?;
    cleaned.map_err(FileError::io("remove", &draft))?;
    File::open(&parent).and_then(|dir| dir.sync_all()).map_err(FileError::io("flush", &parent))
}

/// Reads a file that holds a private key.
///
/// # Errors
/// [`FileError::TooOpen`] if group or others may read or write it.
pub fn read_private(path: &Path) -> Result<String, FileError> {
    let mut file = File::open(path).map_err(FileError::io("open", path))?;
    // Asked of the open file, so that what is checked is what is read.
    let mode = file.metadata().map_err(FileError::io("read", path))?.mode();
    if mode & 0o077 != 0 {
        return Err(FileError::TooOpen { path: path.into(), mode: mode & 0o777 });
    }
    read_bounded(&mut file).map_err(FileError::io("read", path))
}

/// Reads a file without secrets, such as a certificate.
///
/// # Errors
/// If it cannot be read, is no text, or is larger than any of ours.
pub fn read_public(path: &Path) -> Result<String, FileError> {
    let mut file = File::open(path).map_err(FileError::io("open", path))?;
    read_bounded(&mut file).map_err(FileError::io("read", path))
}

/// Tells whether anything of this name exists, even a link that leads nowhere.
#[must_use]
pub fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn read_bounded(file: &mut File) -> io::Result<String> {
    let mut text = String::new();
    let len = file.take(FILE_LEN_MAX + 1).read_to_string(&mut text)?;
    if len as u64 > FILE_LEN_MAX {
        return Err(io::Error::other(format!("larger than {FILE_LEN_MAX} bytes")));
    }
    Ok(text)
}

fn write_draft(
    draft: &Path,
    contents: &[u8],
    access: Access,
    owner: Option<Owner>,
) -> io::Result<()> {
    let mode = match access {
        Access::Private => 0o600,
        Access::Public => 0o644,
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(draft)?;
    if let Some(owner) = owner {
        std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    file.write_all(contents)?;
    file.sync_all()
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
        _ => PathBuf::from("."),
    }
}

/// Why a file was not written or not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is one already.
    #[error("{} exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Readable or writable by others than its owner.
    #[error("{} holds a private key and has mode {mode:04o}: run chmod 600 {}", path.display(), path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The system said no.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was to be done.
        verb: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl FileError {
    fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { verb, path, source }
    }

    /// Tells whether the file is simply not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Tells whether the file is there and this user may not have it.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// Certificates and profiles take a few KiB; a path to something huge is a mistake.
const FILE_LEN_MAX: u64 = 256 * 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    #[test]
    fn a_private_file_is_born_private_and_reads_back() {
        let dir = dir();
        let path = dir.path().join("ca.key");
        write_new(&path, b"secret", Access::Private, None).expect("written");
        assert_eq!(fs::metadata(&path).expect("made").mode() & 0o777, 0o600);
        assert_eq!(read_private(&path).expect("read"), "secret");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1, "no draft is left");
    }

    #[test]
    fn an_existing_file_is_left_alone() {
        let dir = dir();
        let path = dir.path().join("ca.key");
        fs::write(&path, "first").expect("written");
        let error = write_new(&path, b"second", Access::Private, None).expect_err("refused");
        assert!(error.to_string().contains("ca.key exists already"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("read"), "first");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1, "no draft is left");
    }

    #[test]
    fn an_open_key_is_refused_with_the_remedy() {
        let dir = dir();
        let path = dir.path().join("ca.key");
        for mode in [0o640, 0o604, 0o660] {
            fs::write(&path, "secret").expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            let error = read_private(&path).expect_err("refused").to_string();
            assert!(error.contains(&format!("chmod 600 {}", path.display())), "{error}");
        }
    }

    #[test]
    fn a_huge_file_is_refused() {
        let dir = dir();
        let path = dir.path().join("ca.pem");
        File::create(&path).and_then(|file| file.set_len(FILE_LEN_MAX + 1)).expect("written");
        assert!(read_public(&path).is_err());
    }
}
