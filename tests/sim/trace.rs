//! What happened, as a hash that two runs of one seed must share, and as lines for whoever looks for the reason.

use std::{collections::VecDeque, hash::Hasher};

use super::event::Event;

/// Lines that are kept.
const LINES_MAX: usize = 100_000;

/// The trace of one run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    hash: std::hash::DefaultHasher,
    /// Whether lines are kept: they cost more than the run itself.
    pub(crate) verbose: bool,
    pub(crate) lines: VecDeque<String>,
}

impl Trace {
    pub(crate) fn event(&mut self, now: u64, event: &Event) {
        self.hash.write_u64(now);
        self.hash.write_u8(code(event));
        if let Event::Message(to, envelope) = event {
            self.hash.write_usize(*to);
            self.hash.write_u64(envelope.epoch.0);
            self.hash.write_u64(envelope.from.incarnation.0);
        }
        if self.verbose {
            self.say(format!("{now:>10} {event:?}"));
        }
    }

    pub(crate) fn say(&mut self, line: String) {
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash.finish()
    }
}

/// A run that panics says what led to it.
impl Drop for Trace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.lines.iter().for_each(|line| println!("{line}"));
        }
    }
}

fn code(event: &Event) -> u8 {
    match event {
        Event::Tick { .. } => 0,
        Event::Message(..) => 1,
        Event::Heartbeat { .. } => 2,
        Event::Committed { .. } => 3,
        Event::Register { .. } => 4,
        Event::Registered { .. } => 5,
        Event::Propose(_) => 6,
        Event::Learn { .. } => 7,
        Event::Start { .. } => 8,
        Event::Fault(_) => 9,
        Event::Mend(_) => 10,
        Event::Producer(_) => 11,
        Event::Reader(_) => 12,
        Event::Publish { .. } => 13,
        Event::Answer { .. } => 14,
        Event::Poll { .. } => 15,
        Event::Unbelieve { .. } => 16,
        Event::Ambush(..) => 17,
    }
}
