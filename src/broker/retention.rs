//! When records may be dropped for their age: not while the clock cannot be trusted.

use std::time::Duration;

use crate::types::Timestamp;

/// Notices a wall clock that was set by much, which would make all records look old.
///
/// Age limits are suspended from then on until the clock agrees again with what has passed, or the node is started
/// anew: an operator who sets a clock right restarts, a clock that jumps by itself deletes nothing.
#[derive(Clone, Copy, Debug)]
pub struct ClockGuard {
    wall_start: Timestamp,
}

/// A step of this size is no drift and no leap second.
const STEP_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl ClockGuard {
    /// Begins at this wall time.
    #[must_use]
    pub fn new(wall: Timestamp) -> Self {
        Self { wall_start: wall }
    }

    /// Whether the wall clock has moved as far as the monotonic one since the start, within a day.
    #[must_use]
    pub fn agrees(&self, wall: Timestamp, since_start: Duration) -> bool {
        let passed = u64::try_from(since_start.as_millis()).unwrap_or(u64::MAX);
        let expected = self.wall_start.0.saturating_add(passed);
        Duration::from_millis(wall.0.abs_diff(expected)) <= STEP_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_is_not_trusted_until_it_comes_back() {
        let day = 24 * 60 * 60 * 1000;
        let guard = ClockGuard::new(Timestamp(100 * day));
        let hour = Duration::from_secs(3600);
        assert!(guard.agrees(Timestamp(100 * day + 3_600_000), hour));
        assert!(guard.agrees(Timestamp(101 * day), hour), "23 hours ahead");
        assert!(!guard.agrees(Timestamp(102 * day), hour));
        assert!(!guard.agrees(Timestamp(0), hour), "back to 1970");
        assert!(guard.agrees(Timestamp(100 * day + 7_200_000), hour * 2));
    }
}
