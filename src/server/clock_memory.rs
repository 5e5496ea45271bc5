//! The time that this node believed last, kept across starts: a start with a wrong clock must not delete what looks old by it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{broker::ClockGuard, types::Timestamp};

/// The guard of the clock, and the file that it is taken up from.
#[derive(Clone, Debug)]
pub(super) struct ClockMemory {
    pub(super) guard: ClockGuard,
    path: PathBuf,
    /// What the file says.
    kept: Timestamp,
}

/// Milliseconds since the epoch, as text.
const FILE: &str = "clock";
/// What is forgotten by a crash. Far less than what a clock may be ahead.
const KEEP_EVERY: Duration = Duration::from_secs(60 * 60);

impl ClockMemory {
    /// As the last start left it. Without the file the newest record says when the site last lived.
    pub(super) fn load(dir: &Path, newest_record: Timestamp) -> Self {
        let path = dir.join(FILE);
        let kept = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        let kept = kept.map(Timestamp);
        let guard = ClockGuard::new(kept.unwrap_or(newest_record));
        Self { guard, path, kept: kept.unwrap_or(Timestamp(0)) }
    }

    /// Writes down what is believed, if that has moved. Waits for the disk.
    pub(super) fn save(&mut self) {
        let believed = self.guard.believed();
        if believed.since(self.kept).max(self.kept.since(believed)) < KEEP_EVERY {
            return;
        }
        match write(&self.path, believed) {
            Ok(()) => self.kept = believed,
            // The next round tries again.
            Err(error) => {
                tracing::warn!(file = %self.path.display(), %error, "the time cannot be kept");
            }
        }
    }
}

/// In one step: half a number would be another one.
fn write(path: &Path, time: Timestamp) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = File::create(&part)?;
    writeln!(file, "{}", time.0)?;
    file.sync_all()?;
    fs::rename(part, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEARS: u64 = 5 * 365 * 24 * 60 * 60 * 1000;
    const NOW: Timestamp = Timestamp(20_000 * 24 * 60 * 60 * 1000);

    #[test]
    fn records_of_a_wrong_clock_do_not_vouch_for_it_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let mut memory = ClockMemory::load(dir.path(), NOW);
        assert!(memory.guard.look(NOW, Duration::ZERO));
        memory.save();
        // Written while it was wrong.
        let newest_record = Timestamp(NOW.0 + YEARS);
        let mut memory = ClockMemory::load(dir.path(), newest_record);
        assert!(!memory.guard.look(newest_record, Duration::ZERO));
        memory.save();
        assert_eq!(ClockMemory::load(dir.path(), newest_record).guard.believed(), NOW);
    }

    #[test]
    fn without_a_file_or_with_a_broken_one_the_newest_record_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ClockMemory::load(dir.path(), NOW).guard.believed(), NOW);
        fs::write(dir.path().join(FILE), "12 o'clock").unwrap();
        assert_eq!(ClockMemory::load(dir.path(), NOW).guard.believed(), NOW);
    }
}
