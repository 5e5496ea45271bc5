//! When records may be dropped for their age: not while the clock cannot be trusted.

use std::time::Duration;

use crate::types::Timestamp;

/// Tells a wall clock that has jumped far ahead, which would make all records look old.
///
/// What counts is the time that was believed last, in this start or before it, and not the records: those that were written
/// while the clock was wrong would vouch for it when it is wrong again. A clock that is further ahead of that than the time
/// that has passed since, and a week for what the machine was switched off, is not believed, and age limits are suspended: a
/// wrong clock keeps records too long, but deletes none. After a longer rest, or on a machine that boots without a clock and
/// gets the time later, it is believed once it has run on from where it jumped to for an hour: long enough for whoever
/// sets clocks to set a wrong one right. A clock that goes back deletes nothing, and is believed at once.
#[derive(Clone, Copy, Debug)]
pub struct ClockGuard {
    /// The time that was believed last, and how long after the start that was.
    believed: (Timestamp, Duration),
    /// Where the clock has jumped to, and how long after the start.
    jumped: Option<(Timestamp, Duration)>,
}

/// What a site may rest without its clock being doubted.
const REST_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// A clock that jumped ahead is believed after it has run on so long.
const PROVEN_AFTER: Duration = Duration::from_secs(60 * 60);
/// What a clock that runs on may differ from this process's own count of time.
const DRIFT_MAX: Duration = Duration::from_secs(60);

impl ClockGuard {
    /// Begins with the time that was believed last before this start.
    #[must_use]
    pub fn new(believed: Timestamp) -> Self {
        Self { believed: (believed, Duration::ZERO), jumped: None }
    }

    /// The time that was believed last.
    #[must_use]
    pub fn believed(&self) -> Timestamp {
        self.believed.0
    }

    /// Looks at the wall clock, so long after the start. True if it can be right.
    pub fn look(&mut self, wall: Timestamp, uptime: Duration) -> bool {
        let (believed, at) = self.believed;
        let passed = uptime.saturating_sub(at);
        if wall.since(believed) > REST_MAX.saturating_add(passed) {
            let (to, since) = *self.jumped.get_or_insert((wall, uptime));
            let ran = uptime.saturating_sub(since);
            let runs_on = wall.since(to) <= ran + DRIFT_MAX && ran <= wall.since(to) + DRIFT_MAX;
            if !runs_on {
                self.jumped = Some((wall, uptime));
            }
            if !runs_on || ran < PROVEN_AFTER {
                return false;
            }
        }
        *self = Self { believed: (wall, uptime), jumped: None };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const HOUR: Duration = Duration::from_secs(60 * 60);
    const YEARS: Duration = Duration::from_secs(5 * 365 * 24 * 60 * 60);
    const NOW: Duration = Duration::from_secs(20_000 * 24 * 60 * 60);

    fn at(since_epoch: Duration) -> Timestamp {
        Timestamp(u64::try_from(since_epoch.as_millis()).unwrap())
    }

    fn guard() -> ClockGuard {
        ClockGuard::new(at(NOW))
    }

    #[test]
    fn a_clock_that_is_years_ahead_is_not_believed_however_often_it_goes_there() {
        let mut guard = guard();
        for round in 0..10 {
            let up = HOUR * 3 * round;
            assert!(guard.look(at(NOW + up), up), "round {round}");
            assert!(!guard.look(at(NOW + up + YEARS), up), "round {round}");
            let later = up + HOUR - DRIFT_MAX;
            assert!(!guard.look(at(NOW + later + YEARS), later), "round {round}");
        }
        assert!(!guard.look(at(NOW + DAY * 9), DAY), "a jump of a week and a day");
    }

    #[test]
    fn a_start_with_a_wrong_clock_is_seen_by_what_was_believed_before() {
        let mut former = guard();
        assert!(!former.look(at(NOW + YEARS), Duration::ZERO));
        let mut next = ClockGuard::new(former.believed());
        assert!(!next.look(at(NOW + YEARS + HOUR), Duration::ZERO));
        assert!(next.look(at(NOW + HOUR), Duration::ZERO));
    }

    #[test]
    fn a_weekend_off_is_believed_at_once_and_a_month_after_an_hour() {
        assert!(guard().look(at(NOW + DAY * 3), Duration::ZERO));
        let mut guard = guard();
        let month = NOW + DAY * 30;
        assert!(!guard.look(at(month), Duration::ZERO));
        assert!(!guard.look(at(month + HOUR / 2), HOUR / 2));
        assert!(guard.look(at(month + HOUR), HOUR));
        assert!(guard.look(at(month + HOUR), HOUR), "and from then on");
    }

    #[test]
    fn a_clock_that_jumps_again_is_not_proven_by_the_time_before() {
        let mut guard = guard();
        assert!(!guard.look(at(NOW + YEARS), Duration::ZERO));
        assert!(!guard.look(at(NOW + YEARS * 2), HOUR));
        assert!(!guard.look(at(NOW + YEARS * 2 + HOUR / 2), HOUR * 3 / 2));
        assert!(guard.look(at(NOW + YEARS * 2 + HOUR), HOUR * 2));
    }

    #[test]
    fn a_clock_that_goes_back_deletes_nothing_and_is_not_believed_when_it_comes_forward_again() {
        let mut guard = guard();
        assert!(guard.look(Timestamp(0), HOUR));
        assert!(!guard.look(at(NOW + HOUR), HOUR));
        assert!(guard.look(at(NOW + HOUR * 2), HOUR * 2), "after an hour it is");
    }

    #[test]
    fn what_passes_while_the_node_runs_is_believed() {
        let mut guard = guard();
        assert!(guard.look(at(NOW + YEARS), YEARS));
    }
}
