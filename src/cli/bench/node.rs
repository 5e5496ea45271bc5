//! What a node of our own shows of itself from outside: its counters, its memory, and its disk.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::stats::rounded;
use crate::cli::{exit::Failure, own_broker::OwnBroker};

/// Counters of its metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) records: u64,
    /// Entries of the log: batches, and a few of the node's own.
    pub(super) batches: u64,
    pub(super) batch_bytes: u64,
    pub(super) commits: u64,
    pub(super) written: u64,
}

impl Counters {
    pub(super) async fn of(broker: &OwnBroker) -> Result<Self, Failure> {
        Self::read(&broker.http_get("/metrics").await?)
    }

    fn read(page: &str) -> Result<Self, Failure> {
        let value = |name: &str| {
            let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            let value = value.and_then(|value| value.parse().ok());
            value.ok_or_else(|| Failure::runtime(format!("the broker does not count {name}")))
        };
        Ok(Self {
            records: value("dunlin_publish_records_total")?,
            batches: value("dunlin_log_entries_total")?,
            batch_bytes: value("dunlin_publish_bytes_total")?,
            commits: value("dunlin_log_commits_total")?,
            written: value("dunlin_log_written_bytes_total")?,
        })
    }

    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            records: self.records - before.records,
            batches: self.batches - before.batches,
            batch_bytes: self.batch_bytes - before.batch_bytes,
            commits: self.commits - before.commits,
            written: self.written - before.written,
        }
    }
}

/// What a run made of the disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LogUse {
    /// Bytes of a batch.
    pub(super) batch: f64,
    /// Bytes of records' values in a commit.
    pub(super) commit: f64,
    /// Bytes that the node gave to its file, for a byte of records' values.
    pub(super) written: f64,
    /// The same for bytes that the disk took, from whomever.
    pub(super) device: Option<f64>,
}

impl LogUse {
    /// `counted` over a run of records of `size` bytes, while the disk took `device` bytes.
    pub(super) fn of(counted: &Counters, size: usize, device: Option<u64>) -> Self {
        let payload = counted.records * size as u64;
        let of = |part: u64, whole: u64| rounded(part as f64 / whole.max(1) as f64);
        Self {
            batch: of(counted.batch_bytes, counted.batches),
            commit: of(payload, counted.commits),
            written: of(counted.written, payload),
            device: device.map(|bytes| of(bytes, payload)),
        }
    }
}

/// Bytes that the disk under `dir` took since the machine was started; none where the kernel does not count them.
pub(super) fn device_written(dir: &Path) -> Option<u64> {
    let device = fs::metadata(dir).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    Some(sectors_written(&stat)? * SECTOR)
}

fn sectors_written(stat: &str) -> Option<u64> {
    stat.split_whitespace().nth(6)?.parse().ok()
}

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) now: u64,
    /// The most since it was started.
    pub(super) peak: u64,
}

impl Memory {
    pub(super) fn of(process: Option<u32>) -> Result<Self, Failure> {
        let process = process.ok_or_else(|| Failure::runtime("the process has ended"))?;
        let file = format!("/proc/{process}/status");
        let status = fs::read_to_string(&file)
            .map_err(|error| Failure::runtime(format!("cannot read {file}: {error}")))?;
        Self::read(&status).ok_or_else(|| Failure::runtime(format!("{file} says no memory")))
    }

    fn read(status: &str) -> Option<Self> {
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
            Some(kib * 1_024)
        };
        Some(Self { now: of("VmRSS:")?, peak: of("VmHWM:")? })
    }

    /// Looks until it does not change any more, or for so long that it does not matter.
    pub(super) async fn settled(process: Option<u32>) -> Result<Self, Failure> {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let deadline = Instant::now() + SETTLE_MAX;
        let mut last = Self::of(process)?;
        let mut same = 0;
        looks.tick().await;
        while same < SAME && Instant::now() < deadline {
            looks.tick().await;
            let memory = Self::of(process)?;
            same = if memory.now.abs_diff(last.now) < STILL { same + 1 } else { 0 };
            last = memory;
        }
        Ok(last)
    }
}

/// Of the kernel's counters, whatever the disk's own sectors are.
const SECTOR: u64 = 512;
const LOOK_EVERY: Duration = Duration::from_millis(250);
const SETTLE_MAX: Duration = Duration::from_secs(15);
/// Looks without a change that count as settled: the clients' keep-alives have come round by then.
const SAME: u32 = 4;
const STILL: u64 = 16 * 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_their_whole_name_and_set_in_relation() {
        let page = |records: u64| {
            format!(
                "HTTP/1.1 200 OK\r\n\r\n# TYPE x counter\n\
                 dunlin_publish_records_total {records}\ndunlin_publish_bytes_total {}\n\
                 dunlin_log_commits_total_of_others 7\ndunlin_log_commits_total {}\n\
                 dunlin_log_entries_total {}\ndunlin_log_written_bytes_total {}\n",
                records * 110,
                records / 100,
                records / 10,
                records * 130,
            )
        };
        let before = Counters::read(&page(1_000)).expect("all there");
        let counted = Counters::read(&page(3_000)).expect("all there").since(&before);
        let found = LogUse::of(&counted, 100, Some(400_000));
        let wanted = LogUse { batch: 1_100.0, commit: 10_000.0, written: 1.3, device: Some(2.0) };
        assert_eq!(found, wanted);
        assert!(Counters::read("dunlin_publish_records_total 1").is_err());
    }

    #[test]
    fn files_of_the_kernel_are_read_by_name_and_place() {
        let status = "Name:\tdunlin\nVmHWM:\t   20480 kB\nVmRSS:\t   10240 kB\nThreads:\t4\n";
        let memory = Memory { now: 10 << 20, peak: 20 << 20 };
        assert_eq!(Memory::read(status), Some(memory));
        assert_eq!(Memory::read("Name:\tx\n"), None);
        assert_eq!(sectors_written("  1 2 3 4 5 6 42 8 9 10 11"), Some(42));
        assert!(Memory::of(Some(std::process::id())).expect("this process").now > 0);
    }
}
