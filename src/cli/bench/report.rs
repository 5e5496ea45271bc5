//! Figures: histograms while they are taken, numbers and a table in the end.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::Report;
use crate::cli::output::Table;

/// Latencies as they are taken, in nanoseconds.
#[derive(Clone, Debug)]
pub(super) struct Latencies(Histogram<u64>);

/// What came out, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    pub(super) max_us: f64,
}

/// How much in which time.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Throughput {
    pub(super) records: u64,
    pub(super) records_per_second: f64,
    pub(super) mb_per_second: f64,
}

impl Latencies {
    pub(super) fn new() -> Self {
        // One minute at the most, three digits: about 200 KiB each.
        match Histogram::new_with_bounds(1_000, LONGEST_NS, 3) {
            Ok(histogram) => Self(histogram),
            Err(error) => unreachable!("the bounds are constants: {error}"),
        }
    }

    pub(super) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(LONGEST_NS));
    }

    pub(super) fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.0.add(&other.0);
    }

    pub(super) fn percentiles(&self) -> Option<Percentiles> {
        #[expect(clippy::cast_precision_loss, reason = "a minute of nanoseconds is exact")]
        let us = |ns: u64| ns as f64 / 1e3;
        let at = |quantile| us(self.0.value_at_quantile(quantile));
        (!self.0.is_empty()).then(|| Percentiles {
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: us(self.0.max()),
        })
    }
}

impl Throughput {
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(super) fn new(records: u64, bytes: u64, passed: Duration) -> Self {
        let seconds = passed.as_secs_f64().max(1e-9);
        Self {
            records,
            records_per_second: records as f64 / seconds,
            mb_per_second: bytes as f64 / 1e6 / seconds,
        }
    }
}

/// The report for people.
pub(super) fn in_words(report: &Report) -> String {
    let s = &report.settings;
    let mut text = format!(
        "{} producers, {} readers, {} topics of {} partitions, records of {} bytes in batches of {} bytes, \
         {} in flight, acks {}, compression {}, {} s\n\n",
        s.producers,
        s.readers,
        s.topics,
        s.partitions,
        s.size,
        s.batch,
        s.in_flight,
        s.acks,
        s.compression,
        s.seconds
    );
    let mut table = Table::new(&["what", "records/s", "MB/s", "p50", "p99", "p99.9", "max"]);
    let publish = &report.publish;
    row(&mut table, "publish to ack", publish.publish, publish.publish_to_ack);
    if let Some(deliver) = publish.deliver {
        row(&mut table, "publish to deliver", deliver, publish.publish_to_deliver);
    }
    if let Some(read_back) = publish.read_back {
        row(&mut table, "read back", read_back, None);
    }
    if let Some(floor) = &report.floor {
        row(&mut table, "floor: write + fdatasync", floor.disk, floor.disk_latency);
        row(&mut table, "floor: one quinn round trip", floor.quinn_one, floor.quinn_one_latency);
        row(&mut table, "floor: quinn, same in flight", floor.quinn_many, floor.quinn_many_latency);
        row(&mut table, "floor: quinn, one stream down", floor.quinn_down, None);
    }
    text.push_str(&table.to_text());
    if let Some(floor) = &report.floor {
        text.push_str(&ratios(report, floor));
    }
    text
}

fn ratios(report: &Report, floor: &super::Floor) -> String {
    let publish = &report.publish;
    let mb = publish.publish.mb_per_second;
    let mut text = format!(
        "\npublish / disk {:.2}   publish / quinn {:.2}\n",
        mb / floor.disk.mb_per_second,
        mb / floor.quinn_many.mb_per_second
    );
    if let (Some(ack), Some(disk), Some(quinn)) =
        (publish.publish_to_ack, floor.disk_latency, floor.quinn_one_latency)
    {
        let floor_us = disk.p50_us + quinn.p50_us;
        text.push_str(&format!("ack p50 / (fdatasync p50 + round trip p50) {:.2}\n", ack.p50_us / floor_us));
    }
    if let Some(read_back) = publish.read_back {
        let ratio = read_back.mb_per_second / floor.quinn_down.mb_per_second;
        text.push_str(&format!("read back / quinn down {ratio:.2}\n"));
    }
    text
}

fn row(table: &mut Table, name: &str, throughput: Throughput, latency: Option<Percentiles>) {
    let time = |us: Option<f64>| us.map_or_else(|| "-".to_owned(), print_us);
    table.row([
        name.to_owned(),
        format!("{:.0}", throughput.records_per_second),
        format!("{:.1}", throughput.mb_per_second),
        time(latency.map(|l| l.p50_us)),
        time(latency.map(|l| l.p99_us)),
        time(latency.map(|l| l.p999_us)),
        time(latency.map(|l| l.max_us)),
    ]);
}

fn print_us(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.0} us"),
        us if us < 1e5 => format!("{:.2} ms", us / 1e3),
        us if us < 1e6 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

const LONGEST_NS: u64 = 60_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_taken() {
        let mut latencies = Latencies::new();
        assert!(latencies.percentiles().is_none());
        let mut others = Latencies::new();
        for ms in 1..=500 {
            latencies.record(Duration::from_millis(ms));
            others.record(Duration::from_millis(500 + ms));
        }
        latencies.add(&others);
        let found = latencies.percentiles().expect("some");
        assert!((found.p50_us / 500_000.0 - 1.0).abs() < 0.01, "{found:?}");
        assert!((found.p99_us / 990_000.0 - 1.0).abs() < 0.01, "{found:?}");
    }

    #[test]
    fn times_are_printed_in_their_unit() {
        let printed = [12.3, 1_234.0, 123_456.0, 2_500_000.0].map(print_us);
        assert_eq!(printed, ["12 us", "1.23 ms", "123 ms", "2.50 s"]);
    }
}
