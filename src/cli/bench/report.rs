//! The result: one row a combination, as a table for people or as JSON.

use serde::Serialize;

use super::{
    floor::{self, Floor},
    load::Measured,
    node::LogUse,
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
    /// Records in a row of one producer to one topic.
    pub(super) run: usize,
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
    pub(super) producers: usize,
    pub(super) acks: Acks,
    pub(super) publish: Flow,
    /// Records per second over those of the same row with the number of producers that was given first.
    pub(super) of_first: Option<f64>,
    /// Summed over the readers; none without readers.
    pub(super) deliver: Option<Flow>,
    /// What the node made of its disk; none for one that is not our own.
    pub(super) log: Option<Log>,
    pub(super) floor: Option<Floors>,
}

/// What the node made of its disk, over the whole run with its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Log {
    /// Bytes of a batch, in the middle.
    pub(super) batch: f64,
    /// Bytes of records' values in a commit, in the middle.
    pub(super) commit: f64,
    /// Bytes that the node wrote, for a byte of records' values.
    pub(super) written: f64,
    /// Bytes that the disk took in that time from the whole machine, for a byte of records' values.
    pub(super) device_written: Option<f64>,
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
    pub(super) append_64k_mb_per_second: f64,
    pub(super) append_64k_p50_us: f64,
    /// Bytes between two flushes, for the next two and for redb.
    pub(super) commit: usize,
    pub(super) append_mb_per_second: f64,
    pub(super) append_p50_us: f64,
    pub(super) redb_mb_per_second: f64,
    pub(super) redb_p50_us: f64,
    /// Records in a frame.
    pub(super) echo_frame: usize,
    pub(super) echo_mb_per_second: f64,
    pub(super) echo_p50_us: f64,
    /// The same with an append and a flush before the acks.
    pub(super) stored_echo_mb_per_second: f64,
    pub(super) stored_echo_p50_us: f64,
    /// Bytes per second of the broker over those of the floors.
    pub(super) of_append_64k: f64,
    pub(super) of_append: f64,
    pub(super) of_redb: f64,
    pub(super) of_echo: f64,
    pub(super) of_stored_echo: f64,
    /// The same over the slower of redb and echo.
    pub(super) of_slower: f64,
    /// Publish-to-ack p50 of the broker over the sum of append and echo.
    pub(super) p50_of_both: f64,
    /// The same over that of a stored echo.
    pub(super) p50_of_stored_echo: f64,
}

/// One run of a combination, with the floors measured just before.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) measured: Measured,
    pub(super) log: Option<LogUse>,
    pub(super) floors: Option<floor::Floors>,
}

impl Row {
    /// One row for each combination, from its runs.
    pub(super) fn all(rows: &[Combination], load: &Load, runs: &[Vec<Run>]) -> Vec<Self> {
        let done = rows.iter().zip(runs).map(|(row, runs)| Self::of(*row, load, runs));
        let mut done: Vec<Self> = done.collect();
        for at in 1..done.len() {
            let same = |row: &Self| (row.size, row.in_flight, row.acks);
            let first = done[..at].iter().find(|first| same(first) == same(&done[at]));
            let ours = done[at].publish.records_per_second;
            let of_first = first.map(|first| ours / first.publish.records_per_second.max(1e-9));
            done[at].of_first = of_first.map(rounded);
        }
        done
    }

    fn of(row: Combination, load: &Load, runs: &[Run]) -> Self {
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
            producers: row.producers,
            acks: row.acks,
            publish,
            of_first: None,
            deliver: (load.readers > 0).then_some(deliver),
            log: Log::of(runs),
            floor: Floors::of(row, load, &publish, runs),
        }
    }
}

impl Log {
    fn of(runs: &[Run]) -> Option<Self> {
        let all: Vec<LogUse> = runs.iter().filter_map(|run| run.log).collect();
        let of = |figure: fn(&LogUse) -> f64| median(all.iter().map(figure));
        let devices: Vec<f64> = all.iter().filter_map(|log| log.device).collect();
        (!all.is_empty()).then(|| Self {
            batch: of(|log| log.batch),
            commit: of(|log| log.commit),
            written: of(|log| log.written),
            device_written: (!devices.is_empty()).then(|| median(devices)),
        })
    }
}

impl Floors {
    fn of(row: Combination, load: &Load, publish: &Flow, runs: &[Run]) -> Option<Self> {
        let all: Vec<floor::Floors> = runs.iter().filter_map(|run| run.floors).collect();
        if all.is_empty() {
            return None;
        }
        let rate = |of: fn(&floor::Floors) -> Floor| {
            rounded(median(all.iter().map(|floors| of(floors).bytes_per_second)) / 1e6)
        };
        let p50 = |of: fn(&floor::Floors) -> Floor| {
            median(all.iter().map(|floors| of(floors).latency.p50_us))
        };
        let append_64k = rate(|floors| floors.append_chunks);
        let (append, append_p50) = (rate(|floors| floors.append), p50(|floors| floors.append));
        let (redb, redb_p50) = (rate(|floors| floors.redb), p50(|floors| floors.redb));
        let (echo, echo_p50) = (rate(|floors| floors.echo), p50(|floors| floors.echo));
        let stored_echo = rate(|floors| floors.stored_echo);
        let stored_echo_p50 = p50(|floors| floors.stored_echo);
        let ratio = |ours: f64, floor: f64| rounded(ours / floor.max(1e-9));
        let ours = publish.mb_per_second;
        Some(Self {
            append_64k_mb_per_second: append_64k,
            append_64k_p50_us: p50(|floors| floors.append_chunks),
            commit: load.commit_bytes(row),
            append_mb_per_second: append,
            append_p50_us: append_p50,
            redb_mb_per_second: redb,
            redb_p50_us: redb_p50,
            echo_frame: load.frame_records(row),
            echo_mb_per_second: echo,
            echo_p50_us: echo_p50,
            stored_echo_mb_per_second: stored_echo,
            stored_echo_p50_us: stored_echo_p50,
            of_append_64k: ratio(ours, append_64k),
            of_append: ratio(ours, append),
            of_redb: ratio(ours, redb),
            of_echo: ratio(ours, echo),
            of_stored_echo: ratio(ours, stored_echo),
            of_slower: ratio(ours, redb.min(echo)),
            p50_of_both: ratio(publish.latency.p50_us, append_p50 + echo_p50),
            p50_of_stored_echo: ratio(publish.latency.p50_us, stored_echo_p50),
        })
    }
}

impl Report {
    pub(super) fn in_words(&self) -> String {
        let mut text = self.heading();
        text.push_str("\n\n");
        let mut head = NAMES.to_vec();
        head.extend(["records/s", "MB/s", "ack p50", "p99", "p99.9", "max"]);
        let first = self.rows.first().map_or(0, |row| row.producers);
        let to_first = format!("to {first} producer{}", if first == 1 { "" } else { "s" });
        let is_compared = self.rows.iter().any(|row| row.of_first.is_some());
        if is_compared {
            head.push(&to_first);
        }
        if self.readers > 0 {
            head.extend(["read/s", "deliver p50", "p99", "p99.9", "max"]);
        }
        let mut table = Table::new(&head);
        for row in &self.rows {
            let mut cells = row.names();
            cells.push(count(row.publish.records_per_second));
            cells.push(format!("{:.1}", row.publish.mb_per_second));
            cells.extend(latencies(&row.publish.latency));
            if is_compared {
                cells.push(row.of_first.map_or_else(String::new, |ratio| format!("{ratio:.1}")));
            }
            if let Some(deliver) = &row.deliver {
                cells.push(count(deliver.records_per_second));
                cells.extend(latencies(&deliver.latency));
            }
            table.row(cells);
        }
        text.push_str(&table.to_text());
        if self.rows.iter().any(|row| row.log.is_some()) {
            text.push_str(&self.log_in_words());
        }
        if self.rows.iter().any(|row| row.floor.is_some()) {
            text.push_str(&self.floors_in_words());
        }
        text
    }

    fn heading(&self) -> String {
        let number = |n: usize, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
        let mut text = format!(
            "{} of {}, {}, each producer and reader over a connection of its own; compression {}",
            number(self.topics, "topic"),
            number(self.partitions as usize, "partition"),
            number(self.readers, "reader"),
            self.compression,
        );
        if self.run > 1 {
            text.push_str(&format!("; {} to a topic in a row", number(self.run, "record")));
        }
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

    fn log_in_words(&self) -> String {
        let mut head = NAMES.to_vec();
        head.extend(["batch", "commit", "written/byte", "device/byte"]);
        let mut table = Table::new(&head);
        for row in &self.rows {
            let Some(log) = &row.log else { continue };
            let mut cells = row.names();
            cells.extend([log.batch, log.commit].map(count));
            cells.push(format!("{:.2}", log.written));
            cells.push(
                log.device_written.map_or_else(|| "-".into(), |device| format!("{device:.2}")),
            );
            table.row(cells);
        }
        format!("\n{}{LOG}", table.to_text())
    }

    fn floors_in_words(&self) -> String {
        let mut head = NAMES.to_vec();
        head.extend(["floor", "MB/s", "broker to it", "p50", "broker to it"]);
        let mut table = Table::new(&head);
        for row in &self.rows {
            for (name, rate, p50) in row.floor.iter().flat_map(Floors::in_words) {
                let mut cells = row.names();
                let ratio = |ours: f64, floor: f64| format!("{:.2}", ours / floor.max(1e-9));
                cells.push(name);
                cells.extend(rate.map_or_else(Default::default, |rate| {
                    [format!("{rate:.1}"), ratio(row.publish.mb_per_second, rate)]
                }));
                cells.extend(p50.map_or_else(Default::default, |p50| {
                    [latency(p50), ratio(row.publish.latency.p50_us, p50)]
                }));
                table.row(cells);
            }
        }
        format!("\n{}{FLOORS}", table.to_text())
    }
}

impl Floors {
    /// Name, MB/s and p50 of each, and of those that are looked at together.
    fn in_words(&self) -> [(String, Option<f64>, Option<f64>); 7] {
        let rate = |name: &str, rate, p50| (name.to_owned(), Some(rate), Some(p50));
        let kib = |bytes: usize| bytes as f64 / 1_024.0;
        let slower = self.redb_mb_per_second.min(self.echo_mb_per_second);
        let both = self.append_p50_us + self.echo_p50_us;
        [
            rate("append 64 KiB", self.append_64k_mb_per_second, self.append_64k_p50_us),
            rate(
                &format!("append {:.0} KiB", kib(self.commit)),
                self.append_mb_per_second,
                self.append_p50_us,
            ),
            rate(
                &format!("redb {:.0} KiB", kib(self.commit)),
                self.redb_mb_per_second,
                self.redb_p50_us,
            ),
            rate(
                &format!("quinn {} a frame", self.echo_frame),
                self.echo_mb_per_second,
                self.echo_p50_us,
            ),
            rate("quinn and append", self.stored_echo_mb_per_second, self.stored_echo_p50_us),
            ("the slower of redb and quinn".to_owned(), Some(slower), None),
            ("sum of append and quinn".to_owned(), None, Some(both)),
        ]
    }
}

impl Row {
    fn names(&self) -> Vec<String> {
        let Self { size, in_flight, producers, acks, .. } = self;
        vec![size.to_string(), in_flight.to_string(), producers.to_string(), acks.to_string()]
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

const NAMES: [&str; 4] = ["size", "in flight", "producers", "acks"];

const LOG: &str = "\
batch:        mean bytes of a batch.
commit:       mean bytes of records' values in one commit, which is one flush for all that waited.
written/byte: bytes that the node wrote to its file, for each byte of the records' values.
device/byte:  the same for bytes that the disk under the directory took: those of the whole machine.
";

const FLOORS: &str = "\
append: write and fdatasync of one chunk after the other to a growing file of the same directory: 64 KiB,
        and all that the producers have in flight, at most 4 MiB each and together.
redb:   the bare database: one table, rows of 64 KiB, two-phase commits with quick repair, as large.
quinn:  bare quinn over loopback with the same TLS and limits: frames of so many records up, 24-byte acks
        down, as many in flight.
quinn and append: the same, where all that has come is appended to one file and flushed before its
        acks: what any broker must do with the same cores.
p50:    of one append, one commit, one frame until its ack; publish-to-ack of the broker stands to it.
";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{cli::bench::stats::Latencies, wire::Compression};

    fn load(readers: usize) -> Load {
        Load {
            topics: 1,
            connections: None,
            partitions: 1,
            run: 1,
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

    /// Floors of which the small append is the slowest, and each of the others is faster by its own factor.
    fn run(acked: u64, us: u64, append: f64) -> Run {
        let latency = latency_of(10).percentiles().expect("one");
        let floor = |bytes_per_second| Floor { bytes_per_second, latency };
        let (ack, deliver) = (latency_of(us), latency_of(us * 2));
        let measured = Measured { acked, ack, delivered: acked, deliver };
        let log = LogUse { batch: 50.0, commit: 500.0, written: 1.5, device: Some(1.75) };
        let floors = floor::Floors {
            append_chunks: floor(append / 2.0),
            append: floor(append),
            redb: floor(append * 2.0),
            echo: floor(append * 3.0),
            stored_echo: floor(append / 4.0),
        };
        Run { measured, log: Some(log), floors: Some(floors) }
    }

    fn report(readers: usize, rows: Vec<Row>) -> Report {
        Report {
            software: "dunlin",
            server: None,
            topics: 1,
            partitions: 1,
            run: 1,
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

    const ROW: Combination =
        Combination { size: 100, in_flight: 10, producers: 1, acks: Acks::Local };

    #[test]
    fn a_row_is_the_median_of_its_runs_beside_the_median_of_the_floors() {
        let runs = [run(2_000, 40, 4e5), run(4_000, 30, 1e5), run(3_000, 50, 2e5)];
        let row = Row::of(ROW, &load(0), &runs);
        assert_eq!((row.publish.records_per_second, row.publish.mb_per_second), (1_500.0, 0.15));
        assert!((row.publish.latency.p50_us - 40.0).abs() < 1.0);
        assert_eq!(row.deliver, None);
        let floor = row.floor.expect("measured");
        assert_eq!((floor.of_append_64k, floor.of_append, floor.commit), (1.5, 0.75, 1_000));
        assert_eq!((floor.of_redb, floor.of_echo, floor.of_slower), (0.375, 0.25, 0.375));
        assert_eq!(floor.of_stored_echo, 3.0);
        assert!((floor.p50_of_both - 2.0).abs() < 0.05);
    }

    #[test]
    fn rows_are_compared_with_the_first_number_of_producers() {
        let more = Combination { producers: 64, ..ROW };
        let runs = [vec![run(100, 40, 1e5)], vec![run(2_500, 40, 1e5)]];
        let rows = Row::all(&[ROW, more], &load(0), &runs);
        assert_eq!((rows[0].of_first, rows[1].of_first), (None, Some(25.0)));
        let text = report(0, rows).in_words();
        assert!(text.contains("TO 1 PRODUCER") && text.contains("25.0"), "{text}");
    }

    #[test]
    fn words_and_json_have_the_same_figures() {
        let row = Row::of(ROW, &load(1), &[run(2_000, 40, 4e5)]);
        let report = report(1, vec![row]);
        let text = report.in_words();
        for part in ["1000 ", "0.1 ", "40us", "80us", "append 64 KiB", "500 ", "1.50 ", "1.75"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let json = serde_json::to_value(&report).expect("plain");
        assert_eq!(json["rows"][0]["publish"]["records_per_second"], 1_000.0);
        assert!(json["rows"][0]["publish"]["latency"]["p99.9_us"].is_number());
        assert_eq!(json["rows"][0]["floor"]["of_append"], 0.25);
        assert_eq!(json["rows"][0]["log"]["device_written"], 1.75);
        assert_eq!(json["rows"][0]["acks"], "local");
    }

    #[test]
    fn latencies_are_printed_in_the_unit_that_fits() {
        assert_eq!(latency(999.4), "999us");
        assert_eq!(latency(1_530.0), "1.53ms");
        assert_eq!(latency(2e6), "2.00s");
    }
}
