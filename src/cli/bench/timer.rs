//! A timer that does not round to milliseconds, as the runtime's does: records of an open loop go out when they are due.

use std::{io, time::Duration};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::{io::AsyncReadExt as _, net::unix::pipe::Receiver};

/// A timer of the kernel: a file that can be read once the time is over.
#[derive(Debug)]
pub(super) struct Timer(Receiver);

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Not a pipe, but waited for and read as one.
        Ok(Self(Receiver::from_owned_fd_unchecked(timer)?))
    }

    /// Waits this long. May be dropped: the next wait sets it anew.
    pub(super) async fn wait(&mut self, time: Duration) -> io::Result<()> {
        // 0 would turn it off.
        let time = time.max(Duration::from_nanos(1));
        let it_value = Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        let mut count = [0; 8];
        self.0.read_exact(&mut count).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test]
    async fn a_wait_that_was_dropped_does_not_end_the_next() {
        let mut timer = Timer::new().expect("a timer");
        let long = timeout(Duration::from_millis(1), timer.wait(Duration::from_secs(60))).await;
        assert!(long.is_err());
        let begun = Instant::now();
        timer.wait(Duration::from_millis(3)).await.expect("waited");
        assert!(begun.elapsed() >= Duration::from_millis(3));
        timer.wait(Duration::ZERO).await.expect("waited");
    }
}
