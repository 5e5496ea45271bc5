//! Figures: latencies by HDR histogram, medians over runs. Pure.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Latencies of single records, in nanoseconds with three digits.
#[derive(Clone, Debug)]
pub(super) struct Latencies(Histogram<u64>);

/// What is shown of them, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    #[serde(rename = "p99.9_us")]
    pub(super) p999_us: f64,
    pub(super) max_us: f64,
}

impl Latencies {
    pub(super) fn new() -> Self {
        match Histogram::new_with_bounds(LOWEST, HIGHEST, DIGITS) {
            Ok(histogram) => Self(histogram),
            Err(error) => unreachable!("the bounds are constants: {error}"),
        }
    }

    pub(super) fn add(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn merge(&mut self, other: &Self) {
        if let Err(error) = self.0.add(&other.0) {
            unreachable!("all histograms have the same bounds: {error}");
        }
    }

    /// None without a single record.
    pub(super) fn percentiles(&self) -> Option<Percentiles> {
        let at = |quantile| us(self.0.value_at_quantile(quantile));
        (!self.0.is_empty()).then(|| Percentiles {
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: us(self.0.max()),
        })
    }
}

impl Percentiles {
    /// The median of each figure over several runs; none if no run has any.
    pub(super) fn median(runs: &[Self]) -> Option<Self> {
        (!runs.is_empty()).then(|| Self {
            p50_us: median(runs.iter().map(|run| run.p50_us)),
            p99_us: median(runs.iter().map(|run| run.p99_us)),
            p999_us: median(runs.iter().map(|run| run.p999_us)),
            max_us: median(runs.iter().map(|run| run.max_us)),
        })
    }
}

/// The middle one; of an even number the mean of the two in the middle. 0 of none.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n.is_multiple_of(2) => f64::midpoint(values[half - 1], values[half]),
        _ => values[half],
    }
}

/// So many of something in that time, per second.
pub(super) fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

/// To three digits behind the point, which is more than any figure here is worth.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn us(nanos: u64) -> f64 {
    rounded(nanos as f64 / 1e3)
}

/// Nanoseconds that are told apart at the low end, about.
const LOWEST: u64 = 100;
/// Ten minutes: far past every deadline of the client.
const HIGHEST: u64 = 600_000_000_000;
const DIGITS: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_all_histograms_together() {
        let (mut one, mut two) = (Latencies::new(), Latencies::new());
        assert_eq!(one.percentiles(), None);
        (1..=500).for_each(|ms| one.add(Duration::from_millis(ms)));
        (501..=1000).for_each(|ms| two.add(Duration::from_millis(ms)));
        one.merge(&two);
        let found = one.percentiles().expect("records");
        let near = |found: f64, ms: f64| assert!((found / ms / 1e3 - 1.0).abs() < 2e-3, "{found}");
        near(found.p50_us, 500.0);
        near(found.p99_us, 990.0);
        near(found.p999_us, 999.0);
        near(found.max_us, 1000.0);
    }

    #[test]
    fn a_latency_out_of_bounds_counts_as_the_bound() {
        let mut one = Latencies::new();
        one.add(Duration::from_secs(3_600));
        one.add(Duration::ZERO);
        assert!(one.percentiles().expect("records").max_us > 5.9e8);
    }

    #[test]
    fn the_median_is_no_mean() {
        assert_eq!(median([9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 100.0]), 3.0);
        assert_eq!(median([]), 0.0);
        let run = |p50_us| Percentiles { p50_us, p99_us: 10.0 - p50_us, ..Percentiles::default() };
        let found = Percentiles::median(&[run(1.0), run(5.0), run(2.0)]).expect("runs");
        assert_eq!((found.p50_us, found.p99_us), (2.0, 8.0));
        assert_eq!(Percentiles::median(&[]), None);
    }
}
