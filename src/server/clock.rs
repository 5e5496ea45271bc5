//! The only clocks of the broker: everything else is told the time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::types::Timestamp;

/// Wall clock and monotonic clock of this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the driver's clock")]
    pub(super) fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Wall time; 1970 on a machine whose clock is before it.
    #[expect(clippy::disallowed_methods, reason = "this is the driver's clock")]
    #[expect(clippy::unused_self, reason = "whoever has no clock must not read it")]
    pub(super) fn wall(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the driver's clock")]
    #[expect(clippy::unused_self, reason = "whoever has no clock must not read it")]
    pub(super) fn system(&self) -> SystemTime {
        SystemTime::now()
    }

    /// Time since the process started; it does not count suspend.
    pub(super) fn uptime(&self) -> Duration {
        self.start.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the driver's clock")]
    #[expect(clippy::unused_self, reason = "whoever has no clock must not read it")]
    pub(super) fn monotonic(&self) -> Instant {
        Instant::now()
    }
}
