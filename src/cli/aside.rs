//! Old data and certificates of a machine, moved out of the way of new ones. Nothing is deleted.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use super::exit::Failure;
use crate::{
    net::{
        authority::{CA_CERTIFICATE_FILE, CA_KEY_FILE},
        secret_file,
        tls::{NODE_CERTIFICATE_FILE, NODE_KEY_FILE},
    },
    server::joined::JOINED_FILE,
};

/// What a node has in its data directory, and a machine that begins anew must not have. What else lies there may stay.
const DATA: [&str; 5] = ["data.redb", "journal", "meta.redb", JOINED_FILE, "removed"];
const KEYS: [&str; 4] = [CA_CERTIFICATE_FILE, CA_KEY_FILE, NODE_CERTIFICATE_FILE, NODE_KEY_FILE];
/// Directories of this kind that there may be: then somebody should look.
const ASIDE_MAX: usize = 100;

/// The authority of the site, if this machine had it.
pub(super) struct OldAuthority {
    certificate_pem: String,
    key_pem: String,
}

impl OldAuthority {
    /// None where there is none that can be read: then a machine that joins gets none either.
    pub(super) fn load(pki: &Path) -> Option<Self> {
        Some(Self {
            certificate_pem: secret_file::read_public(&pki.join(CA_CERTIFICATE_FILE)).ok()?,
            key_pem: secret_file::read_private(&pki.join(CA_KEY_FILE)).ok()?,
        })
    }

    /// The key, if it is the one of this site.
    pub(super) fn key_of(&self, certificate_pem: &str) -> Option<&str> {
        (self.certificate_pem == certificate_pem).then_some(&self.key_pem)
    }
}

/// Whether no node runs on the data. A file that is damaged can be locked, too.
pub(super) fn check_stopped(data: &Path) -> Result<(), Failure> {
    for name in ["data.redb", "meta.redb"] {
        let path = data.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("open", &path, &error)),
        };
        match file.try_lock() {
            // Given back when the file is closed.
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!("a node is running on {}", data.display());
                return Err(Failure::runtime(message).hint("stop it first: systemctl stop dunlin"));
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock", &path, &error)),
        }
    }
    Ok(())
}

/// Moves what there is into directories of their own beside it. Gives these.
pub(super) fn move_aside(data: &Path, pki: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut made = Vec::new();
    for (dir, names) in [(data, &DATA[..]), (pki, &KEYS[..])] {
        let there: Vec<&str> =
            names.iter().copied().filter(|name| secret_file::exists(&dir.join(name))).collect();
        if there.is_empty() {
            continue;
        }
        let aside = make_directory(dir)?;
        for name in there {
            let (from, to) = (dir.join(name), aside.join(name));
            fs::rename(&from, &to).map_err(|error| failed("move", &from, &error))?;
        }
        for dir in [dir, &aside] {
            let synced = File::open(dir).and_then(|dir| dir.sync_all());
            synced.map_err(|error| failed("flush", dir, &error))?;
        }
        made.push(aside);
    }
    Ok(made)
}

fn make_directory(dir: &Path) -> Result<PathBuf, Failure> {
    for number in 1..=ASIDE_MAX {
        let path = dir.join(format!("aside-{number}"));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("make", &path, &error)),
        }
    }
    let message = format!("{} has {ASIDE_MAX} directories with old data", dir.display());
    Err(Failure::runtime(message).hint("remove those that nobody needs"))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::runtime(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_node_is_moved_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let (data, pki) = (dir.path().join("data"), dir.path().join("data/pki"));
        fs::create_dir_all(&pki).expect("made");
        for (dir, names) in [(&data, &DATA[..]), (&pki, &KEYS[..])] {
            for name in names {
                fs::write(dir.join(name), *name).expect("written");
            }
        }
        fs::write(data.join("ballast"), "stays").expect("written");
        check_stopped(&data).expect("nobody runs");
        let running = File::open(data.join("data.redb")).expect("there");
        running.lock().expect("ours");
        assert!(format!("{:?}", check_stopped(&data)).contains("a node is running"));
        drop(running);
        let made = move_aside(&data, &pki).expect("moved");
        assert_eq!(made, [data.join("aside-1"), pki.join("aside-1")]);
        for (dir, names) in [(&made[0], &DATA[..]), (&made[1], &KEYS[..])] {
            for name in names {
                assert_eq!(fs::read_to_string(dir.join(name)).expect("moved"), *name);
            }
        }
        assert!(data.join("ballast").exists() && !data.join("data.redb").exists());
        assert_eq!(move_aside(&data, &pki), Ok(vec![]), "nothing is left");
        fs::write(data.join("journal"), "new").expect("written");
        assert_eq!(move_aside(&data, &pki), Ok(vec![data.join("aside-2")]));
    }
}
