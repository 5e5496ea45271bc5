//! Servers as child processes that end with their owner, and what the kernel says of them.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use crate::failure::{Failure, Result, While as _};

/// A child that is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts it, with its complaints appended to a file. Its standard input stays open for as long as it may live.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = fs::File::options().create(true).append(true).open(log);
        let file = file.while_(format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(file);
        command.env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM");
        let child = command.spawn().while_(format!("cannot start {command:?}"))?;
        Ok(Self { child })
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// What the kernel has counted for it so far.
    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the kernel has counted for a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Bytes that it has caused to be written to disks. A write of a few bytes to a cached file counts as all that the kernel
    /// keeps together of that file, up to 1 MiB since ext4 has large folios: it may be many times what the disk takes.
    pub(crate) written: u64,
    /// Time on a core, of all its threads.
    pub(crate) cpu: Duration,
    /// Bytes of its memory that are in RAM.
    pub(crate) resident: u64,
}

impl Usage {
    fn of(process: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{process}/{file}");
            fs::read_to_string(&path).while_(format!("cannot read {path}"))
        };
        let lacks = |what: &str| Failure(format!("/proc/{process} does not say {what}"));
        Ok(Self {
            written: field(&read("io")?, "write_bytes:").ok_or_else(|| lacks("write_bytes"))?,
            cpu: cpu(&read("stat")?).ok_or_else(|| lacks("utime and stime"))?,
            resident: 1_024 * field(&read("status")?, "VmRSS:").ok_or_else(|| lacks("VmRSS"))?,
        })
    }

    /// Bytes written since an earlier look.
    pub(crate) fn written_since(&self, before: &Self) -> u64 {
        self.written.saturating_sub(before.written)
    }

    /// Time on a core since an earlier look.
    pub(crate) fn cpu_since(&self, before: &Self) -> Duration {
        self.cpu.saturating_sub(before.cpu)
    }
}

/// The number behind a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The 14th and 15th word of `stat`: the second is a name in parentheses, which may hold anything.
fn cpu(stat: &str) -> Option<Duration> {
    let mut words = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || words.next()?.parse::<u64>().ok();
    let (user, system) = (ticks()?, ticks()?);
    let seconds = (user + system) as f64 / rustix::param::clock_ticks_per_second() as f64;
    Some(Duration::from_secs_f64(seconds))
}

/// Bytes that the disk under `dir` took since the machine was started, from whomever; none where the kernel does not count
/// them.
pub(crate) fn disk_written(dir: &Path) -> Option<u64> {
    let device = fs::metadata(dir).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    let sectors: u64 = stat.split_whitespace().nth(6)?.parse().ok()?;
    // Of the kernel's counters, whatever the disk's own sectors are.
    Some(sectors * 512)
}

/// Runs a command to its end and gives what it printed.
pub(crate) fn output(command: &mut Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().while_(format!("cannot start {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that needs no input may have ended.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Failure(format!("{command:?} ended with {}: {complaint}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_blanks_and_parentheses_does_not_shift_the_words() {
        let ticks = rustix::param::clock_ticks_per_second();
        let stat = format!("7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 {ticks} {ticks} 0 0");
        assert_eq!(cpu(&stat), Some(Duration::from_secs(2)));
    }

    #[test]
    fn bytes_written_are_not_those_that_were_cancelled() {
        let io = "rchar: 1\nwchar: 2\nwrite_bytes: 4096\ncancelled_write_bytes: 9\n";
        assert_eq!(field(io, "write_bytes:"), Some(4_096));
    }

    #[test]
    fn this_process_has_memory_and_used_a_core() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.resident > 100_000, "{usage:?}");
    }
}
