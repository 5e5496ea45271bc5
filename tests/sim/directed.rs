//! Schedules for the holes that chance misses. Each drives a quiet site to one place, does one thing there that would
//! be a coincidence anywhere else, and lets the judges look at all of it.

mod failures;
mod recovery;
mod schedules;
mod stage;

pub(super) use schedules::SCHEDULES;

use super::view::Violation;

/// A schedule.
pub(super) struct Schedule {
    pub(super) name: &'static str,
    pub(super) run: fn() -> Result<(), Violation>,
}

/// The rule of a schedule that did not come to where it wanted: this proves nothing.
pub(super) const NOT_REACHED: &str = "not_reached";

#[test]
fn no_directed_schedule_breaks_a_rule() {
    let mut failed = Vec::new();
    for schedule in SCHEDULES {
        if let Err(Violation { rule, text }) = (schedule.run)() {
            println!("{}: {rule}: {text}", schedule.name);
            failed.push(schedule.name);
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}
