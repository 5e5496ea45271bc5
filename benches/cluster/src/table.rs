//! Lines of wanted and measured, and what they are made of. Pure.

use std::time::Duration;

use hdrhistogram::Histogram;

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted {
    AtLeast(f64),
    AtMost(f64),
    /// It is shown for itself.
    Anything,
}

impl Wanted {
    fn is_met(self, measured: f64) -> bool {
        match self {
            Self::AtLeast(wanted) => measured >= wanted,
            Self::AtMost(wanted) => measured <= wanted,
            Self::Anything => true,
        }
    }

    fn in_words(self) -> String {
        match self {
            Self::AtLeast(wanted) => format!(">= {wanted}"),
            Self::AtMost(wanted) => format!("<= {wanted}"),
            Self::Anything => String::new(),
        }
    }
}

/// The words above the lines.
pub(crate) fn heading(what: &str) {
    println!("\n{what:70} {:>8} {:>9}  FIGURES", "WANTED", "MEASURED");
}

/// One line; a miss is marked.
pub(crate) fn line(name: &str, wanted: Wanted, measured: f64, figures: &str) {
    let mark = if wanted.is_met(measured) { ' ' } else { '!' };
    println!("{name:70} {:>8} {measured:>9.2}{mark} {figures}", wanted.in_words());
}

/// Latencies of single records, in nanoseconds with three digits.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        // Up to ten minutes: far past every deadline of a client.
        match Histogram::new_with_bounds(100, 600_000_000_000, 3) {
            Ok(histogram) => Self(histogram),
            Err(error) => unreachable!("the bounds are constants: {error}"),
        }
    }

    pub(crate) fn add(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// Microseconds; 0 of none.
    pub(crate) fn us_at(&self, quantile: f64) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.value_at_quantile(quantile) as f64 / 1e3 }
    }

    /// Microseconds; 0 of none.
    pub(crate) fn max_us(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }
}

/// The middle one; of an even number the mean of the two in the middle. 0 of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n.is_multiple_of(2) => f64::midpoint(values[half - 1], values[half]),
        _ => values[half],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wanted_bound_is_met_by_itself_and_not_by_what_is_past_it() {
        assert!(Wanted::AtLeast(2.0).is_met(2.0) && !Wanted::AtLeast(2.0).is_met(1.99));
        assert!(Wanted::AtMost(1.0).is_met(1.0) && !Wanted::AtMost(1.0).is_met(1.01));
    }

    #[test]
    fn a_figure_that_could_not_be_made_misses_every_bound() {
        assert!(!Wanted::AtMost(1.0).is_met(f64::NAN) && !Wanted::AtLeast(1.0).is_met(f64::NAN));
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median([1.0, 3.0]), 2.0);
        assert_eq!(median([]), 0.0);
    }
}
