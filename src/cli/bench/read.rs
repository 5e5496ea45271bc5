//! Reading what is in memory: one reader from a topic's start to its end, beside a bare download of the same frames.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;
use tokio::time::{Instant, timeout};

use super::{
    Own, bytes,
    floor::BareQuinn,
    node::Counters,
    payload::{Payloads, SIZE_MIN},
    progress,
    stats::{median, per_second, rounded},
    unless_interrupted,
};
use crate::{
    cli::{Global, exit::Failure, output::Table, own_broker::OwnBroker},
    client::{Client, Event, Position, Record, TopicName, TopicRequest},
    limits::RECORD_LEN_MAX,
};

/// `dunlin bench read`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A broker of its own is filled once for each size of record; then each run reads all of it, after a bare \
    QUIC download of as many bytes in the same frames on one stream."
)]
pub(super) struct Read {
    /// Bytes of a record
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "1024", value_parser = size)]
    size: Vec<usize>,
    /// Bytes of records in the topic
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = fill)]
    fill: usize,
    /// Where the broker puts its files [default: the system's place for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Runs, of which the median is shown
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u16).range(1..=100))]
    repeat: u16,
}

#[derive(Debug, Serialize)]
struct Report {
    software: &'static str,
    runs: u16,
    rows: Vec<Row>,
}

/// Medians for one size of record.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Row {
    size: usize,
    records: u64,
    records_per_second: f64,
    mb_per_second: f64,
    /// Bytes of a frame, in the middle.
    frame: usize,
    quinn_mb_per_second: f64,
    /// Bytes per second of the reader over those of the download. Both count whole frames.
    of_quinn: f64,
}

impl Read {
    pub(super) async fn run(&self, global: &Global) -> Result<(), Failure> {
        let own = Own::new(self.dir.as_deref())?;
        let report = unless_interrupted(self.measure(&own)).await?;
        global.output().show(&report, Report::in_words)
    }

    async fn measure(&self, own: &Own) -> Result<Report, Failure> {
        let quinn = BareQuinn::start(&own.program, &own.dir).await?;
        let progress = progress(self.size.len() as u64 * u64::from(self.repeat));
        let mut rows = Vec::new();
        for &size in &self.size {
            progress.set_message(format!("{size} bytes"));
            let broker = own.broker().await?;
            let before = Counters::of(&broker).await?;
            let topic = "bench/read".parse().map_err(Failure::runtime)?;
            let records = (self.fill / size).max(1) as u64;
            publish(&broker, &topic, size, records).await?;
            let counted = Counters::of(&broker).await?.since(&before);
            let bytes = counted.batch_bytes + counted.batches * FRAME_HEAD;
            let frame = usize::try_from(bytes / counted.batches.max(1)).unwrap_or(usize::MAX);
            let mut runs = Vec::new();
            for _ in 0..self.repeat {
                let quinn = quinn.download(bytes, frame).await?;
                runs.push((read(&broker, &topic, records).await?, quinn / bytes as f64));
                progress.inc(1);
            }
            rows.push(Row::of(size, records, frame, &runs));
        }
        progress.finish_and_clear();
        Ok(Report { software: crate::SOFTWARE, runs: self.repeat, rows })
    }
}

impl Row {
    /// `runs` hold how often in a second the reader and the download had all of it.
    fn of(size: usize, records: u64, frame: usize, runs: &[(f64, f64)]) -> Self {
        let ours = median(runs.iter().map(|(ours, _)| *ours));
        let quinn = median(runs.iter().map(|(_, quinn)| *quinn));
        let megabytes = records as f64 * size as f64 / 1e6;
        Self {
            size,
            records,
            records_per_second: rounded(ours * records as f64),
            mb_per_second: rounded(ours * megabytes),
            frame,
            quinn_mb_per_second: rounded(quinn * megabytes),
            of_quinn: rounded(ours / quinn.max(1e-9)),
        }
    }
}

impl Report {
    fn in_words(&self) -> String {
        let mut table = Table::new(&[
            "size",
            "records",
            "records/s",
            "MB/s",
            "frame",
            "quinn MB/s",
            "reader/quinn",
        ]);
        for row in &self.rows {
            table.row([
                row.size.to_string(),
                row.records.to_string(),
                format!("{:.0}", row.records_per_second),
                format!("{:.1}", row.mb_per_second),
                row.frame.to_string(),
                format!("{:.1}", row.quinn_mb_per_second),
                format!("{:.2}", row.of_quinn),
            ]);
        }
        format!(
            "one reader, one topic; median of {} runs\n\n{}{LEGEND}",
            self.runs,
            table.to_text()
        )
    }
}

/// Fills a topic, as fast as it goes.
pub(super) async fn publish(
    broker: &OwnBroker,
    topic: &TopicName,
    size: usize,
    records: u64,
) -> Result<(), Failure> {
    let client = Client::connect(broker.profile()).await?;
    client.topics().create(topic, TopicRequest::default()).await?;
    let publisher = client.publisher(topic).open().await?;
    let mut payloads = Payloads::new(size, 1);
    for _ in 0..records {
        // One that fails is told of by the close.
        drop(publisher.send(Record::new(payloads.next(Duration::ZERO))).await?);
    }
    Ok(publisher.close().await?)
}

/// Reads all of it over a connection of its own. Returns how often that can be done in a second.
async fn read(broker: &OwnBroker, topic: &TopicName, records: u64) -> Result<f64, Failure> {
    let client = Client::connect(broker.profile()).await?;
    let begun = Instant::now();
    let mut subscriber = client.subscribe(topic).from(Position::Earliest).open().await?;
    let mut count = 0;
    let all = async {
        while let Some(event) = subscriber.next_event().await {
            match event? {
                Event::Record(_) => count += 1,
                Event::CaughtUp => break,
            }
            while let Some(received) = subscriber.next_ready() {
                received?;
                count += 1;
            }
        }
        Ok::<_, Failure>(())
    };
    timeout(READ_MAX, all).await.map_err(|_| Failure::runtime("the reader does not get on"))??;
    let rate = per_second(1, begun.elapsed());
    client.close().await;
    if count != records {
        return Err(Failure::runtime(format!("the reader got {count} of {records} records")));
    }
    Ok(rate)
}

fn size(text: &str) -> Result<usize, String> {
    bytes(text, SIZE_MIN, RECORD_LEN_MAX / 2)
}

fn fill(text: &str) -> Result<usize, String> {
    bytes(text, 1, FILL_MAX)
}

/// Length, type and partition.
const FRAME_HEAD: u64 = 9;
const FILL_MAX: usize = 16 * 1024 * 1024 * 1024;
const READ_MAX: Duration = Duration::from_secs(600);
const LEGEND: &str = "\
MB/s:  bytes of the records' values, taken out of their frames and batches by the reader.
quinn: bare quinn over loopback with the same TLS and limits: the same frames down one stream.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_median_of_reader_and_download() {
        let row = Row::of(1_000, 2_000, 60_000, &[(3.0, 8.0), (1.0, 4.0), (2.0, 1.0)]);
        assert_eq!((row.records_per_second, row.mb_per_second), (4_000.0, 4.0));
        assert_eq!((row.quinn_mb_per_second, row.of_quinn), (8.0, 0.5));
        let report = Report { software: "dunlin", runs: 3, rows: vec![row] };
        assert!(report.in_words().contains("0.50"), "{}", report.in_words());
    }
}
