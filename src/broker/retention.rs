//! When records may be dropped for their age: not while the clock cannot be trusted.

use std::time::Duration;

use crate::types::Timestamp;

/// Tells a wall clock that is far ahead, which would make all records look old.
///
/// The newest record in the log says when the site last lived. A clock that is further from there than the time that
/// passed since the start, and a week for what the machine was switched off, is not believed, and age limits are
/// suspended: a wrong clock keeps records too long, but deletes none. A clock that is behind deletes nothing anyway; so
/// a machine that boots without a clock and gets the time later is served at once. After a longer rest the limits work
/// again from the next start on, when newer records speak for the clock.
#[derive(Clone, Copy, Debug)]
pub struct ClockGuard {
    newest: Timestamp,
}

/// What a site may rest without its clock being doubted.
const REST_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl ClockGuard {
    /// Begins with the append time of the newest record, or the wall time where there is none.
    #[must_use]
    pub fn new(newest: Timestamp) -> Self {
        Self { newest }
    }

    /// Whether the wall clock can be right, so long after the start.
    #[must_use]
    pub fn agrees(&self, wall: Timestamp, since_start: Duration) -> bool {
        wall.since(self.newest) <= REST_MAX.saturating_add(since_start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 60 * 60 * 1000;
    const HOUR: Duration = Duration::from_secs(3600);

    #[track_caller]
    fn check(newest_day: u64, wall_day: u64, want: bool) {
        let guard = ClockGuard::new(Timestamp(newest_day * DAY));
        assert_eq!(guard.agrees(Timestamp(wall_day * DAY), HOUR), want);
    }

    #[test]
    fn a_clock_that_is_years_ahead_is_not_believed() {
        check(20_000, 47_000, false);
        check(20_000, 20_008, false);
    }

    #[test]
    fn a_weekend_off_is_believed() {
        check(20_000, 20_003, true);
    }

    #[test]
    fn a_clock_that_is_behind_deletes_nothing_and_may_be_put_right() {
        check(20_000, 0, true);
        check(20_000, 20_001, true);
    }

    #[test]
    fn what_passes_while_the_node_runs_is_believed() {
        let guard = ClockGuard::new(Timestamp(20_000 * DAY));
        let year = Duration::from_secs(365 * 24 * 3600);
        assert!(guard.agrees(Timestamp(20_365 * DAY), year));
    }
}
