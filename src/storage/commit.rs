//! The commit thread: everything that waits goes to disk in one commit, and nobody is told before it is there.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use super::{
    checkpoint::ShardCheckpoint,
    error::StoreError,
    queue::{CommitQueue, Taken},
    writer::{Writer, clock},
};
use crate::{
    limits::COMMIT_BYTES_MAX,
    types::{Lsn, ShardId},
};

/// Who hears of commits. Called on the commit thread: each call must be short.
pub trait CommitSink {
    /// So many appends and changes of these shards, counted since the store was opened, survive a power cut.
    fn committed(&mut self, done: &[(ShardId, u64)]);
    /// The logs of these shards keep nothing before these positions any more.
    fn log_started(&mut self, starts: &[(ShardId, Lsn)]);
    /// A checkpoint is due: what the shards have to hand over.
    fn checkpoint(&mut self) -> Vec<ShardCheckpoint>;
    /// A write failed; called once. The node must stop: what the disk holds is unknown until it is opened again.
    fn failed(&mut self, error: &StoreError);
}

/// Starts commit threads.
#[derive(Debug)]
pub struct CommitThread;

/// The owner of a running commit thread. Dropping it stops the thread without waiting for it.
#[derive(Debug)]
pub struct CommitHandle {
    queue: CommitQueue,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    beats: AtomicU64,
    ended: Mutex<Option<Result<(), StoreError>>>,
    wake: Condvar,
}

/// An idle thread wakes this often, so that its heartbeat shows that it lives.
const BEAT: Duration = Duration::from_secs(1);
/// Bytes that the collector frees or reads at a time: a few milliseconds of a small flash disk.
const GARBAGE_SLICE: usize = 2 * 1024 * 1024;
/// Under load the collector gets one part in this many of the time spent on commits.
const GARBAGE_SHARE: u32 = 8;

struct Loop<S> {
    writer: Writer,
    queue: CommitQueue,
    sink: S,
    shared: Arc<Shared>,
    /// Time that the collector may take while others wait.
    garbage_credit: Duration,
}

impl CommitThread {
    /// Starts the thread that owns `writer` and commits what comes through `queue`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn(
        mut writer: Writer,
        queue: CommitQueue,
        sink: impl CommitSink + Send + 'static,
    ) -> io::Result<CommitHandle> {
        let shared = Arc::new(Shared::default());
        writer.move_aside()?;
        let handle = CommitHandle { queue: queue.clone(), shared: Arc::clone(&shared) };
        let work = Loop { writer, queue, sink, shared, garbage_credit: Duration::ZERO };
        thread::Builder::new().name("commit".into()).spawn(move || work.run())?;
        Ok(handle)
    }
}

impl CommitHandle {
    /// Counts the rounds of the thread. It grows at least every second as long as the disk answers.
    #[must_use]
    pub fn heartbeat(&self) -> u64 {
        self.shared.beats.load(Relaxed)
    }

    /// Commits what waits, makes a checkpoint, closes the store. Blocks for at most `deadline`.
    ///
    /// # Errors
    /// The error that ended the thread, or a timeout when the disk does not answer; both leave the log as safe as a
    /// power cut does.
    pub fn stop(self, deadline: Duration) -> Result<(), StoreError> {
        self.queue.stop();
        let ended = self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.shared.wake.wait_timeout_while(ended, deadline, |e| e.is_none());
        let (mut ended, _) = waited.unwrap_or_else(PoisonError::into_inner);
        ended.take().unwrap_or_else(|| {
            let text = "the disk did not answer before the deadline";
            Err(StoreError::Io(io::Error::new(io::ErrorKind::TimedOut, text)))
        })
    }
}

impl Drop for CommitHandle {
    fn drop(&mut self) {
        self.queue.stop();
    }
}

impl<S: CommitSink> Loop<S> {
    fn run(mut self) {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.rounds()));
        let ended = ended.unwrap_or_else(|_| {
            // Our own bug: the panic is in the log already. The node stops as it does for a bad disk.
            Err(StoreError::Io(io::Error::other("the commit thread panicked")))
        });
        if let Err(error) = &ended {
            self.queue.fail();
            self.sink.failed(error);
        }
        let Self { writer, shared, .. } = self;
        let ended = ended.and_then(|()| writer.close());
        *shared.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
        shared.wake.notify_all();
    }

    fn rounds(&mut self) -> Result<(), StoreError> {
        loop {
            self.shared.beats.fetch_add(1, Relaxed);
            let idle = if self.writer.garbage_due() { Duration::ZERO } else { BEAT };
            let Taken { entries, changes, committed, room, over } =
                self.queue.take(COMMIT_BYTES_MAX, idle);
            for (shard, lsn) in committed {
                self.writer.note_committed(shard, lsn);
            }
            if over {
                let handed = self.sink.checkpoint();
                return self.writer.checkpoint(handed);
            }
            let begun = clock();
            let worked = !entries.is_empty() || !changes.is_empty();
            if worked {
                let done = self.writer.perform(&entries, changes)?;
                drop(room);
                self.sink.committed(&done);
            }
            if self.queue.is_pressed() {
                self.writer.press();
            }
            // What was trimmed is freed behind a checkpoint: on a quiet node nothing else would bring one.
            let quiet = !worked && self.writer.has_endings();
            let asked = self.queue.is_checkpoint_asked();
            if quiet || asked || self.writer.checkpoint_due() {
                let handed = self.sink.checkpoint();
                self.writer.checkpoint(handed)?;
            }
            self.collect(!worked, begun.elapsed())?;
        }
    }

    fn collect(&mut self, idle: bool, worked: Duration) -> Result<(), StoreError> {
        if !self.writer.garbage_due() {
            self.garbage_credit = Duration::ZERO;
            return Ok(());
        }
        self.garbage_credit += worked / GARBAGE_SHARE;
        if idle || !self.garbage_credit.is_zero() {
            let begun = clock();
            self.writer.collect_garbage(GARBAGE_SLICE)?;
            let starts = self.writer.take_starts();
            if !starts.is_empty() {
                self.sink.log_started(&starts);
            }
            // What was overdrawn is paid back before the next slice.
            self.garbage_credit = self.garbage_credit.saturating_sub(begun.elapsed());
        }
        Ok(())
    }
}
