//! Who counts what, and how it is shown.

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::sensor::Reading;
use crate::cli::output::Table;

/// The counts of one topic.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) topic: String,
    pub(super) published: AtomicU64,
    pub(super) acked: AtomicU64,
    seen: Mutex<Seen>,
}

/// What readers have seen: each reading once, if all is well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// By producer, a bit for each number.
    readings: Vec<(u32, Vec<u64>)>,
    pub(super) once: u64,
    pub(super) again: u64,
}

impl Seen {
    pub(super) fn add(&mut self, reading: Reading) {
        let at = match self.readings.iter().position(|(producer, _)| *producer == reading.producer) {
            Some(at) => at,
            None => {
                self.readings.push((reading.producer, Vec::new()));
                self.readings.len() - 1
            }
        };
        let bits = &mut self.readings[at].1;
        let (word, bit) = (reading.number as usize / 64, 1 << (reading.number % 64));
        if bits.len() <= word {
            bits.resize(word + 1, 0);
        }
        if bits[word] & bit == 0 {
            bits[word] |= bit;
            self.once += 1;
        } else {
            self.again += 1;
        }
    }
}

impl Tally {
    pub(super) fn new(topic: String) -> Self {
        let (published, acked, seen) = Default::default();
        Self { topic, published, acked, seen }
    }

    pub(super) fn saw(&self, readings: impl IntoIterator<Item = Reading>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        readings.into_iter().for_each(|reading| seen.add(reading));
    }

    /// How many were seen, and how often one was seen again.
    pub(super) fn seen(&self) -> (u64, u64) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        (seen.once, seen.again)
    }

    fn counts(&self) -> [u64; 3] {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [load(&self.published), load(&self.acked), self.seen().0]
    }
}

/// The sums over all topics: published, acked, read.
pub(super) fn sums(tallies: &[impl AsRef<Tally>]) -> [u64; 3] {
    tallies.iter().map(|tally| tally.as_ref().counts()).fold([0; 3], |sum, counts| {
        std::array::from_fn(|i| sum[i] + counts[i])
    })
}

/// Shows the counts: a table drawn over itself on a terminal, a line now and then elsewhere.
#[derive(Debug)]
pub(super) struct Display {
    terminal: bool,
    lines: usize,
    last: Duration,
}

impl Display {
    pub(super) fn new() -> Self {
        Self { terminal: io::stdout().is_terminal(), lines: 0, last: Duration::ZERO }
    }

    /// Draws, if it is time to.
    pub(super) fn draw(&mut self, tallies: &[impl AsRef<Tally>], news: &str, passed: Duration) {
        let every = if self.terminal { REDRAW } else { LINE };
        if self.lines == 0 || passed >= self.last + every {
            self.draw_now(tallies, news, passed);
        }
    }

    /// Draws.
    pub(super) fn draw_now(&mut self, tallies: &[impl AsRef<Tally>], news: &str, passed: Duration) {
        self.last = passed;
        let mut text = String::new();
        if self.terminal {
            if self.lines > 0 {
                text.push_str(&format!("\x1b[{}A\x1b[J", self.lines));
            }
            text.push_str(&table(tallies));
            text.push_str(&format!("{:>5.1} s  {news}\n", passed.as_secs_f64()));
        } else {
            let [published, acked, read] = sums(tallies);
            text.push_str(&format!(
                "{:>5.1} s  published {published} acked {acked} read {read}  {news}\n",
                passed.as_secs_f64()
            ));
        }
        self.lines = text.matches('\n').count();
        // Who closes our output does not want to see it.
        let _ = io::stdout().lock().write_all(text.as_bytes());
    }
}

fn table(tallies: &[impl AsRef<Tally>]) -> String {
    let mut table = Table::new(&["topic", "published", "acked", "read"]);
    for tally in tallies {
        let [published, acked, read] = tally.as_ref().counts();
        table.row([
            tally.as_ref().topic.clone(),
            published.to_string(),
            acked.to_string(),
            read.to_string(),
        ]);
    }
    let [published, acked, read] = sums(tallies);
    table.row(["all".to_owned(), published.to_string(), acked.to_string(), read.to_string()]);
    table.to_text()
}

const REDRAW: Duration = Duration::from_millis(100);
const LINE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reading_counts_once() {
        let mut seen = Seen::default();
        for (producer, number) in [(1, 0), (1, 64), (2, 0), (1, 64), (1, 63), (2, 0)] {
            seen.add(Reading { producer, number });
        }
        assert_eq!((seen.once, seen.again), (4, 2));
    }
}
