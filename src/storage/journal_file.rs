//! The journal's file, of which whole pages go to the disk past the kernel's cache.
//!
//! What is written there is read once, when the store is opened again, so that a copy in the cache serves nobody; and to
//! write it back costs more than to write it. Durable is what was written once the file is flushed, as without.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use redb::backends::FileBackend;
use rustix::fs::OFlags;

use super::{backend::Backend, journal::PAGE};

/// A file whose pages are not cached, where the file system can do that. It has no locks: who holds the database's holds both.
#[derive(Debug)]
pub(super) struct JournalFile {
    file: FileBackend,
    /// The same file, opened for direct I/O (`O_DIRECT` in open(2)).
    direct: Option<File>,
    /// The file system wants other alignment than that of pages.
    refused: AtomicBool,
}

impl JournalFile {
    /// Takes the file that was opened at `path`.
    pub(super) fn new(file: FileBackend, path: &Path) -> Self {
        let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or_default();
        // Some file systems have no such thing, and say so here.
        let direct = File::options().write(true).custom_flags(flags).open(path);
        let direct = direct.inspect_err(say_cached).ok();
        Self { file, direct, refused: AtomicBool::new(false) }
    }

    fn direct(&self, offset: u64, data: &[u8]) -> Option<&File> {
        let whole = offset.is_multiple_of(PAGE as u64)
            && data.len().is_multiple_of(PAGE)
            && data.as_ptr().align_offset(PAGE) == 0;
        self.direct.as_ref().filter(|_| whole && !self.refused.load(Relaxed))
    }
}

fn say_cached(error: &io::Error) {
    tracing::debug!(%error, "the journal is written through the kernel's cache");
}

impl Backend for JournalFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Some(direct) = self.direct(offset, data) {
            match direct.write_all_at(data, offset) {
                // EINVAL: nothing is wrong with the disk.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {
                    say_cached(&error);
                    self.refused.store(true, Relaxed);
                }
                done => return done,
            }
        }
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: usize = 8;

    fn make(dir: &Path) -> JournalFile {
        let path = dir.join("journal");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        JournalFile::new(FileBackend::new(file.expect("made")).expect("ours"), &path)
    }

    /// Memory that begins on a page.
    fn pages(count: usize, fill: u8, work: impl FnOnce(&[u8])) {
        let memory = vec![fill; (count + 1) * PAGE];
        let from = memory.as_ptr().align_offset(PAGE);
        work(&memory[from..from + count * PAGE]);
    }

    /// Pages and pieces, over each other, must be found as they were written last.
    fn write_and_read(journal: &JournalFile, path: &Path) {
        journal.set_len((PAGES * PAGE) as u64).expect("there is room");
        journal.write(0, &[1; PAGES * PAGE]).expect("a good disk");
        journal.write(0, b"head").expect("a good disk");
        pages(2, 2, |two| journal.write(PAGE as u64, two).expect("a good disk"));
        journal.write(2 * PAGE as u64 + 7, &[3; 9]).expect("a good disk");
        pages(1, 4, |one| journal.write(5 * PAGE as u64, one).expect("a good disk"));
        journal.sync_data().expect("a good disk");

        let mut wanted = vec![1; PAGES * PAGE];
        wanted[..4].copy_from_slice(b"head");
        wanted[PAGE..3 * PAGE].fill(2);
        wanted[2 * PAGE + 7..2 * PAGE + 16].fill(3);
        wanted[5 * PAGE..6 * PAGE].fill(4);
        let mut found = vec![0; PAGES * PAGE];
        journal.read(0, &mut found).expect("a good disk");
        assert!(found == wanted, "through the handle that wrote it");
        assert!(std::fs::read(path.join("journal")).expect("there") == wanted);
    }

    #[test]
    fn what_is_written_is_read_past_the_cache_or_through_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let journal = make(dir.path());
        write_and_read(&journal, dir.path());
        let through = JournalFile { direct: None, ..make(dir.path()) };
        write_and_read(&through, dir.path());
    }

    #[test]
    fn a_file_system_that_refuses_the_alignment_is_asked_once() {
        let dir = tempfile::tempdir().expect("a directory");
        // EINVAL for whatever is no number.
        let never = File::options().write(true).open("/proc/self/oom_score_adj").expect("there");
        let journal = JournalFile { direct: Some(never), ..make(dir.path()) };
        write_and_read(&journal, dir.path());
        assert!(journal.refused.load(Relaxed));
    }

    #[test]
    fn another_error_of_the_disk_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let full = File::options().write(true).open("/dev/full").expect("there");
        let journal = JournalFile { direct: Some(full), ..make(dir.path()) };
        let told = |one: &[u8]| journal.write(0, one).expect_err("no room").kind();
        pages(1, 4, |one| assert_eq!(told(one), ErrorKind::StorageFull));
        assert!(!journal.refused.load(Relaxed));
    }
}
