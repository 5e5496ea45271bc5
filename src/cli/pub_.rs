//! `dunlin pub`: publishes arguments, or lines of a file or of standard input.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _},
    path::PathBuf,
    time::Duration,
};

use clap::builder::NonEmptyStringValueParser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

mod lines;

use self::lines::{Line, Lines};
use super::{
    Global,
    exit::Failure,
    remote::{block_on, interrupted},
    units,
};
use crate::{
    client::{AckFuture, PublishError, Publisher},
    types::{Acks, TopicName},
    wire::{Compression, Record},
};

/// Header of a last line that had no newline: whoever writes lines out again leaves it away there.
pub(super) const NO_NEWLINE: &str = "dunlin-no-newline";

/// `dunlin pub`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each line becomes one record, byte for byte and without its newline; a carriage return is part of the \
line. A last line without newline is marked by the header 'dunlin-no-newline', so that 'dunlin sub' \
writes the same bytes again. Lines without key of a topic with several partitions are spread over \
them: their order holds within each.

Examples:
  dunlin pub plant/line3 21.5 21.7 --key temp
  dunlin pub logs --file /var/log/syslog --compression zstd
  tail -F app.log | dunlin pub app")]
pub struct Pub {
    /// Topic to publish to
    topic: TopicName,
    /// Values, one record each [default: lines of standard input]
    values: Vec<String>,
    /// Publish the lines of this file
    #[arg(long, value_name = "FILE", conflicts_with = "values")]
    file: Option<PathBuf>,
    /// Key of the records: those of one key stay in order
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Take what stands in a line before this as its key
    #[arg(long, value_name = "TEXT", conflicts_with = "key",
        value_parser = NonEmptyStringValueParser::new())]
    key_separator: Option<String>,
    /// Header of the records; give it again for more
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// What to wait for: replicated, local or none
    #[arg(long, value_name = "LEVEL", default_value_t)]
    acks: Acks,
    /// How batches are compressed: none, lz4 or zstd
    #[arg(long, value_name = "KIND", default_value_t)]
    compression: Compression,
    /// Records per second, at most
    #[arg(long, value_name = "N/s", value_parser = units::rate)]
    rate: Option<f64>,
    /// How long a record may take before it is given up
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = units::duration)]
    deadline: Duration,
}

#[derive(Serialize)]
struct Summary {
    records: u64,
    bytes: u64,
    seconds: f64,
    records_per_second: f64,
}

impl Pub {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        block_on(async {
            let lines = self.open_lines()?;
            let client = global.connect().await?;
            let publisher = client
                .publisher(&self.topic)
                .acks(self.acks)
                .compression(self.compression)
                .deadline(self.deadline)
                .open()
                .await?;
            let mut run = Run::new(&self, publisher);
            let ended = tokio::select! {
                ended = run.publish_all(lines) => ended,
                () = interrupted() => Ok(()),
            };
            let summary = run.finish(ended).await;
            client.close().await;
            let summary = summary?;
            if global.json {
                return global.output().show(&summary, |_| String::new());
            }
            say(&summary.in_words());
            Ok(())
        })
    }

    fn open_lines(&self) -> Result<Lines, Failure> {
        if !self.values.is_empty() {
            let values = self.values.iter().map(|value| value.clone().into_bytes());
            return Ok(Lines::of_values(values.collect()));
        }
        match &self.file {
            Some(path) => Lines::of_file(path),
            None => Ok(Lines::of_stdin()),
        }
    }

    fn record(&self, line: Line) -> Record {
        let (key, value) = match &self.key_separator {
            Some(separator) => split_key(line.value, separator.as_bytes()),
            None => (self.key.as_ref().map(|key| key.clone().into_bytes()), line.value),
        };
        let mut record = Record::new(value);
        record.key = key.map(Into::into);
        for (name, value) in &self.headers {
            record = record.with_header(name.clone(), value.clone());
        }
        if line.no_newline { record.with_header(NO_NEWLINE, "") } else { record }
    }
}

/// One run of publishing.
struct Run<'a> {
    args: &'a Pub,
    publisher: Publisher,
    /// Acks that have not come, with the line of each, oldest first: as many as the publisher has room for.
    waiting: VecDeque<(u64, AckFuture)>,
    begun: Instant,
    sent: u64,
    acked: u64,
    bytes: u64,
    progress: ProgressBar,
}

impl<'a> Run<'a> {
    fn new(args: &'a Pub, publisher: Publisher) -> Self {
        let progress = ProgressBar::hidden();
        Self {
            args,
            publisher,
            waiting: VecDeque::new(),
            begun: Instant::now(),
            sent: 0,
            acked: 0,
            bytes: 0,
            progress,
        }
    }

    async fn publish_all(&mut self, mut lines: Lines) -> Result<(), Failure> {
        self.progress = progress(lines.bytes_total(), lines.is_interactive());
        while let Some(group) = lines.next().await {
            for line in group {
                let line = line?;
                self.pace().await;
                let (number, len) = (line.number, line.value.len() as u64);
                let record = self.args.record(line);
                let sent = self.publisher.send(record).await;
                let ack = sent.map_err(|error| self.failure(number, error))?;
                self.waiting.push_back((number, ack));
                self.sent += 1;
                self.bytes += len;
                self.progress.inc(len + 1);
            }
            self.take_acks()?;
        }
        Ok(())
    }

    async fn pace(&self) {
        if let Some(rate) = self.args.rate {
            #[expect(clippy::cast_precision_loss, reason = "2^52 records are not reached")]
            let due = Duration::from_secs_f64(self.sent as f64 / rate);
            sleep_until(self.begun + due).await;
        }
    }

    /// Counts the acks that have come, and stops at the first error.
    fn take_acks(&mut self) -> Result<(), Failure> {
        while let Some((number, outcome)) =
            self.waiting.front().and_then(|(number, ack)| Some((*number, ack.try_get()?)))
        {
            self.waiting.pop_front();
            outcome.map_err(|error| self.failure(number, error))?;
            self.acked += 1;
        }
        Ok(())
    }

    async fn finish(mut self, ended: Result<(), Failure>) -> Result<Summary, Failure> {
        // Whatever ended the lines, those that were sent before are waited for.
        let closed = self.publisher.clone().close().await;
        let acks = self.take_acks();
        self.progress.finish_and_clear();
        let told = ended.and(acks).and(closed.map_err(Failure::from));
        if let Err(error) = told {
            if self.acked > 0 {
                say(&format!("{} of {} records are acked\n", self.acked, self.sent));
            }
            return Err(error);
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let records_per_second = self.acked as f64 / seconds.max(1e-9);
        Ok(Summary { records: self.acked, bytes: self.bytes, seconds, records_per_second })
    }

    fn failure(&self, number: u64, error: PublishError) -> Failure {
        match error {
            PublishError::Record(error) if self.args.values.is_empty() => {
                Failure::runtime(format!("line {number}: {error}"))
            }
            other => other.into(),
        }
    }
}

impl Summary {
    fn in_words(&self) -> String {
        let noun = if self.records == 1 { "record" } else { "records" };
        format!(
            "published {} {noun} in {:.2} s ({:.0} records/s, {}/s)\n",
            self.records,
            self.seconds,
            self.records_per_second,
            units::print_rate(self.bytes, self.seconds),
        )
    }
}

fn split_key(value: Vec<u8>, separator: &[u8]) -> (Option<Vec<u8>>, Vec<u8>) {
    match value.windows(separator.len()).position(|window| window == separator) {
        Some(at) => (Some(value[..at].to_vec()), value[at + separator.len()..].to_vec()),
        None => (None, value),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("a header is NAME=VALUE".to_owned()),
    }
}

/// A bar for what takes long and is seen by somebody.
fn progress(bytes_total: Option<u64>, interactive: bool) -> ProgressBar {
    if interactive || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match bytes_total {
        Some(total) => {
            (ProgressBar::new(total), "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        }
        None => (ProgressBar::no_length(), "{spinner} {bytes} {bytes_per_sec}"),
    };
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(4));
    bar
}

fn say(text: &str) {
    // With standard error gone there is nobody left to tell.
    let _ = io::Write::write_all(&mut io::stderr().lock(), text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_what_stands_before_the_first_separator() {
        let split = |text: &str| split_key(text.as_bytes().to_vec(), b": ");
        assert_eq!(split("a: b: c"), (Some(b"a".to_vec()), b"b: c".to_vec()));
        assert_eq!(split("a:b"), (None, b"a:b".to_vec()));
        assert_eq!(split(": b"), (Some(Vec::new()), b"b".to_vec()));
    }

    #[test]
    fn a_header_needs_a_name() {
        assert_eq!(header("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(header("=b").is_err() && header("b").is_err());
    }
}
