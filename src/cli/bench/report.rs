//! The result: one row a combination, as a table for people or as JSON.

use serde::Serialize;

use super::{
    floor::Floor,
    load::Measured,
    plan::{Combination, Load},
    stats::{Percentiles, median, per_second, rounded},
};
use crate::{cli::output::Table, types::Acks};

/// All that was measured, and over what.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) software: &'static str,
    /// The node that was measured; none for one of our own.
    pub(super) server: Option<String>,
    pub(super) topics: usize,
    pub(super) partitions: u32,
    pub(super) producers: usize,
    pub(super) readers: usize,
    pub(super) compression: String,
    pub(super) batch_bytes: Option<usize>,
    pub(super) linger_us: Option<u128>,
    /// Records per second that were asked for; none where producers went as fast as acks came.
    pub(super) rate: Option<u64>,
    pub(super) seconds: f64,
    pub(super) runs: usize,
    pub(super) rows: Vec<Row>,
}

/// One combination: the median of its runs, figure by figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) size: usize,
    pub(super) in_flight: usize,
    pub(super) acks: Acks,
    pub(super) publish: Flow,
    /// Summed over the readers; none without readers.
    pub(super) deliver: Option<Flow>,
    pub(super) floor: Option<Floors>,
}

/// Records in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Flow {
    pub(super) records_per_second: f64,
    pub(super) mb_per_second: f64,
    pub(super) latency: Percentiles,
}

/// What the machine gave without the broker, and what part of it the broker is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Floors {
    /// Bytes between two flushes.
    pub(super) append_chunk: usize,
    pub(super) append_mb_per_second: f64,
    pub(super) append_p50_us: f64,
    pub(super) echo_records_per_second: f64,
    pub(super) echo_p50_us: f64,
    /// Bytes per second of the broker over those of the appends.
    pub(super) of_append: f64,
    /// Records per second of the broker over those of the echo.
    pub(super) of_echo: f64,
    /// Publish-to-ack p50 of the broker over the sum of the other two.
    pub(super) p50_of_both: f64,
}

/// One run of a combination, with the floors measured just before.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) measured: Measured,
    pub(super) floors: Option<[Floor; 2]>,
}

impl Row {
    pub(super) fn of(row: Combination, load: &Load, runs: &[Run]) -> Self {
        let flow = |of: &dyn Fn(&Measured) -> (u64, Option<Percentiles>)| {
            let figures: Vec<_> = runs.iter().map(|run| of(&run.measured)).collect();
            let rates = figures.iter().map(|(count, _)| per_second(*count, load.lasting));
            let rate = median(rates);
            let latencies: Vec<_> = figures.iter().filter_map(|(_, latency)| *latency).collect();
            Flow {
                records_per_second: rounded(rate),
                mb_per_second: rounded(rate * row.size as f64 / 1e6),
                latency: Percentiles::median(&latencies).unwrap_or_default(),
            }
        };
        let publish = flow(&|run| (run.acked, run.ack.percentiles()));
        let deliver = flow(&|run| (run.delivered, run.deliver.percentiles()));
        Self {
            size: row.size,
            in_flight: row.in_flight,
            acks: row.acks,
            publish,
            deliver: (load.readers > 0).then_some(deliver),
            floor: Floors::of(row, load, &publish, runs),
        }
    }
}

impl Floors {
    fn of(row: Combination, load: &Load, publish: &Flow, runs: &[Run]) -> Option<Self> {
        let all: Vec<[Floor; 2]> = runs.iter().filter_map(|run| run.floors).collect();
        if all.is_empty() {
            return None;
        }
        let of = |which: usize, figure: fn(&Floor) -> f64| {
            median(all.iter().map(|floors| figure(&floors[which])))
        };
        let append = of(0, |floor| floor.bytes_per_second);
        let echo = of(1, |floor| floor.bytes_per_second) / row.size as f64;
        let p50s = [0, 1].map(|which| of(which, |floor| floor.latency.p50_us));
        let ratio = |ours: f64, floor: f64| rounded(ours / floor.max(1e-9));
        Some(Self {
            append_chunk: load.commit_bytes(row),
            append_mb_per_second: rounded(append / 1e6),
            append_p50_us: p50s[0],
            echo_records_per_second: rounded(echo),
            echo_p50_us: p50s[1],
            of_append: ratio(publish.mb_per_second * 1e6, append),
            of_echo: ratio(publish.records_per_second, echo),
            p50_of_both: ratio(publish.latency.p50_us, p50s[0] + p50s[1]),
        })
    }
}

impl Report {
    pub(super) fn in_words(&self) -> String {
        let mut text = self.heading();
        text.push_str("\n\n");
        let mut head = vec!["size", "in flight", "acks", "records/s", "MB/s"];
        head.extend(["ack p50", "p99", "p99.9", "max"]);
        if self.readers > 0 {
            head.extend(["read/s", "deliver p50", "p99", "p99.9", "max"]);
        }
        let mut table = Table::new(&head);
        for row in &self.rows {
            let mut cells = row.names();
            cells.push(count(row.publish.records_per_second));
            cells.push(format!("{:.1}", row.publish.mb_per_second));
            cells.extend(latencies(&row.publish.latency));
            if let Some(deliver) = &row.deliver {
                cells.push(count(deliver.records_per_second));
                cells.extend(latencies(&deliver.latency));
            }
            table.row(cells);
        }
        text.push_str(&table.to_text());
        if self.rows.iter().any(|row| row.floor.is_some()) {
            text.push_str(&self.floors_in_words());
        }
        text
    }

    fn heading(&self) -> String {
        let number = |n: usize, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
        let mut text = format!(
            "{}, {} of {}, {}; compression {}",
            number(self.producers, "producer"),
            number(self.topics, "topic"),
            number(self.partitions as usize, "partition"),
            number(self.readers, "reader"),
            self.compression,
        );
        match self.rate {
            Some(rate) => text
                .push_str(&format!("; {rate} records/s asked for, latency from when each was due")),
            None => text.push_str("; as fast as acks come"),
        }
        if self.runs > 1 {
            text.push_str(&format!("; median of {} runs", self.runs));
        }
        text
    }

    fn floors_in_words(&self) -> String {
        let mut table = Table::new(&[
            "size",
            "in flight",
            "acks",
            "append MB/s",
            "chunk",
            "p50",
            "broker/append",
            "echo/s",
            "p50",
            "broker/echo",
            "p50 ratio",
        ]);
        for row in &self.rows {
            let Some(floor) = &row.floor else { continue };
            let mut cells = row.names();
            cells.extend([
                format!("{:.1}", floor.append_mb_per_second),
                floor.append_chunk.to_string(),
                latency(floor.append_p50_us),
                format!("{:.2}", floor.of_append),
                count(floor.echo_records_per_second),
                latency(floor.echo_p50_us),
                format!("{:.2}", floor.of_echo),
                format!("{:.2}", floor.p50_of_both),
            ]);
            table.row(cells);
        }
        format!("\n{}{FLOORS}", table.to_text())
    }
}

impl Row {
    fn names(&self) -> Vec<String> {
        vec![self.size.to_string(), self.in_flight.to_string(), self.acks.to_string()]
    }
}

fn count(value: f64) -> String {
    format!("{value:.0}")
}

fn latencies(of: &Percentiles) -> [String; 4] {
    [of.p50_us, of.p99_us, of.p999_us, of.max_us].map(latency)
}

fn latency(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.0}us"),
        us if us < 1e6 => format!("{:.2}ms", us / 1e3),
        us => format!("{:.2}s", us / 1e6),
    }
}

const FLOORS: &str = "\
append: write and fdatasync of one chunk after the other to a growing file of the same directory; the
        chunk is all that the producers have in flight, at most 4 MiB each and together, as one commit
        can hold it.
echo:   bare quinn over loopback with the same TLS and limits: frames of one record up, 24-byte acks
        down, as many in flight.
p50 ratio: publish-to-ack over append and echo together.
";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{cli::bench::stats::Latencies, wire::Compression};

    fn load(readers: usize) -> Load {
        Load {
            topics: 1,
            partitions: 1,
            producers: 1,
            readers,
            compression: Compression::None,
            batch_bytes: None,
            linger: None,
            rate: None,
            lasting: Duration::from_secs(2),
        }
    }

    fn latency_of(us: u64) -> Latencies {
        let mut latencies = Latencies::new();
        latencies.add(Duration::from_micros(us));
        latencies
    }

    fn run(acked: u64, us: u64, append: f64) -> Run {
        let latency = latency_of(10).percentiles().expect("one");
        let floor = |bytes_per_second| Floor { bytes_per_second, latency };
        let (ack, deliver) = (latency_of(us), latency_of(us * 2));
        let measured = Measured { acked, ack, delivered: acked, deliver };
        Run { measured, floors: Some([floor(append), floor(append * 2.0)]) }
    }

    fn report(readers: usize, rows: Vec<Row>) -> Report {
        Report {
            software: "dunlin",
            server: None,
            topics: 1,
            partitions: 1,
            producers: 1,
            readers,
            compression: "none".into(),
            batch_bytes: None,
            linger_us: None,
            rate: None,
            seconds: 2.0,
            runs: 3,
            rows,
        }
    }

    const ROW: Combination = Combination { size: 100, in_flight: 10, acks: Acks::Local };

    #[test]
    fn a_row_is_the_median_of_its_runs_beside_the_median_of_the_floors() {
        let runs = [run(2_000, 40, 4e5), run(4_000, 30, 1e5), run(3_000, 50, 2e5)];
        let row = Row::of(ROW, &load(0), &runs);
        assert_eq!((row.publish.records_per_second, row.publish.mb_per_second), (1_500.0, 0.15));
        assert!((row.publish.latency.p50_us - 40.0).abs() < 0.1);
        assert_eq!(row.deliver, None);
        let floor = row.floor.expect("measured");
        assert_eq!((floor.of_append, floor.of_echo, floor.append_chunk), (0.75, 0.375, 1_000));
        assert!((floor.p50_of_both - 2.0).abs() < 0.05);
    }

    #[test]
    fn words_and_json_have_the_same_figures() {
        let row = Row::of(ROW, &load(1), &[run(2_000, 40, 4e5)]);
        let report = report(1, vec![row]);
        let text = report.in_words();
        for part in ["1000 ", "0.1 ", "40us", "80us", "broker/append".to_uppercase().as_str()] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let json = serde_json::to_value(&report).expect("plain");
        assert_eq!(json["rows"][0]["publish"]["records_per_second"], 1_000.0);
        assert!(json["rows"][0]["publish"]["latency"]["p99.9_us"].is_number());
        assert_eq!(json["rows"][0]["floor"]["of_append"], 0.25);
        assert_eq!(json["rows"][0]["acks"], "local");
    }

    #[test]
    fn latencies_are_printed_in_the_unit_that_fits() {
        assert_eq!(latency(999.4), "999us");
        assert_eq!(latency(1_530.0), "1.53ms");
        assert_eq!(latency(2e6), "2.00s");
    }
}
