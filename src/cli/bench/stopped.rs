//! What a reader costs a node that stops to read while others publish: the node's most memory with it and without it.

use std::path::PathBuf;

use serde::Serialize;

use super::{
    Own, bytes,
    node::Memory,
    payload::SIZE_MIN,
    progress,
    read::publish,
    stats::{median, rounded},
    unless_interrupted,
};
use crate::{
    cli::{Global, exit::Failure, output::Table},
    client::{Client, Position, TopicName, TopicRequest},
    limits::RECORD_LEN_MAX,
};

/// `dunlin bench stopped`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Brokers of its own, in turn: to one a producer publishes alone, to the next while a reader has taken its \
    first record and takes no more."
)]
pub(super) struct Stopped {
    /// Bytes of records that are published
    #[arg(long, value_name = "BYTES", default_value = "1GB", value_parser = published)]
    publish: usize,
    /// Bytes of a record
    #[arg(long, value_name = "BYTES", default_value = "1024", value_parser = size)]
    size: usize,
    /// Where the brokers put their files [default: the system's place for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Runs, of which the median is shown
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=100))]
    repeat: u16,
}

/// Medians, in bytes of resident memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Report {
    software: &'static str,
    runs: u16,
    published: usize,
    without_reader: Figures,
    with_reader: Figures,
    /// The most with the reader, less the most without.
    cost: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Figures {
    peak: f64,
    end: f64,
}

impl Stopped {
    pub(super) async fn run(&self, global: &Global) -> Result<(), Failure> {
        let own = Own::new(self.dir.as_deref())?;
        let report = unless_interrupted(self.measure(&own)).await?;
        global.output().show(&report, Report::in_words)
    }

    async fn measure(&self, own: &Own) -> Result<Report, Failure> {
        let progress = progress(u64::from(self.repeat) * 2);
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..self.repeat {
            for (runs, reader) in [(&mut without, false), (&mut with, true)] {
                progress.set_message(if reader { "with a reader" } else { "without" });
                runs.push(self.once(own, reader).await?);
                progress.inc(1);
            }
        }
        progress.finish_and_clear();
        let (without_reader, with_reader) = (Figures::median(&without), Figures::median(&with));
        Ok(Report {
            software: crate::SOFTWARE,
            runs: self.repeat,
            published: self.publish,
            without_reader,
            with_reader,
            cost: rounded(with_reader.peak - without_reader.peak),
        })
    }

    async fn once(&self, own: &Own, with_reader: bool) -> Result<Memory, Failure> {
        let broker = own.broker().await?;
        let topic: TopicName = "bench/stopped".parse().map_err(Failure::runtime)?;
        let client = Client::connect(broker.profile()).await?;
        client.topics().create(&topic, TopicRequest::default()).await?;
        let mut reader = None;
        if with_reader {
            // What it takes is there before, so that the load is the same.
            let open = client.subscribe(&topic).from(Position::Earliest).open().await?;
            reader = Some(open);
        }
        publish(&broker, &topic, self.size, 1).await?;
        if let Some(reader) = &mut reader {
            reader.next().await.transpose()?;
        }
        publish(&broker, &topic, self.size, (self.publish / self.size).max(1) as u64).await?;
        Memory::of(broker.process_id())
    }
}

impl Figures {
    fn median(runs: &[Memory]) -> Self {
        Self {
            peak: median(runs.iter().map(|run| run.peak as f64)),
            end: median(runs.iter().map(|run| run.now as f64)),
        }
    }
}

impl Report {
    fn in_words(&self) -> String {
        let mut table = Table::new(&["node", "most memory", "at the end"]);
        let mb = |bytes: f64| format!("{:.1} MB", bytes / 1e6);
        for (name, of) in
            [("without the reader", self.without_reader), ("with the reader", self.with_reader)]
        {
            table.row([name.to_owned(), mb(of.peak), mb(of.end)]);
        }
        table.row(["the reader".to_owned(), mb(self.cost)]);
        let published = mb(self.published as f64);
        format!("{published} published; median of {} runs\n\n{}", self.runs, table.to_text())
    }
}

fn size(text: &str) -> Result<usize, String> {
    bytes(text, SIZE_MIN, RECORD_LEN_MAX / 2)
}

fn published(text: &str) -> Result<usize, String> {
    bytes(text, 1, PUBLISHED_MAX)
}

const PUBLISHED_MAX: usize = 64 * 1024 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_is_told_with_its_sign() {
        let figures = |peak: u64| Figures::median(&[Memory { now: peak, peak }]);
        let report = Report {
            software: "dunlin",
            runs: 1,
            published: 1_000_000_000,
            without_reader: figures(60_000_000),
            with_reader: figures(67_500_000),
            cost: 7_500_000.0,
        };
        let text = report.in_words();
        for part in ["1000.0 MB published", "60.0 MB", "67.5 MB", "7.5 MB"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
