//! `dunlin sub`: reads a topic.

use std::io::{self, BufWriter, IsTerminal as _, Write as _};

use clap::ArgAction;

mod format;

use self::format::Format;
use super::{
    Global,
    exit::Failure,
    now,
    remote::{block_on, interrupted},
    units,
};
use crate::{
    client::{Event, Subscriber},
    types::TopicName,
};

/// `dunlin sub`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Writes the value of each record and a newline; what is asked for beside it stands before it, parted by \
tabs. Lines that 'dunlin pub' has read come out as the same bytes. With --json each record is a line of \
JSON; a value that is no UTF-8 is given in base64.

Examples:
  dunlin sub plant/line3
  dunlin sub plant/line3 --from -15m --key --time
  dunlin sub logs --from earliest --until-caught-up > logs.txt")]
pub struct Sub {
    /// Topic to read
    topic: TopicName,
    /// Where to start: earliest, latest, an offset, a UTC time, or how long ago such as -15m
    #[arg(long, value_name = "POSITION", default_value = "latest", allow_hyphen_values = true)]
    from: String,
    /// Read this partition alone; give it again for more
    #[arg(long = "partition", value_name = "N")]
    partitions: Vec<u32>,
    /// End after this many records
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End when all that there is has been read
    #[arg(long)]
    until_caught_up: bool,
    /// Show the key
    #[arg(long, action = ArgAction::SetTrue)]
    key: bool,
    /// Show partition and offset
    #[arg(long)]
    offset: bool,
    /// Show when the site took the record
    #[arg(long)]
    time: bool,
    /// Show headers
    #[arg(long)]
    headers: bool,
}

impl Sub {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        let from = units::position(&self.from, now())
            .map_err(|error| Failure::usage(format!("--from {}: {error}", self.from)))?;
        block_on(async {
            if self.count == Some(0) {
                return Ok(());
            }
            let client = global.connect().await?;
            let mut builder = client.subscribe(&self.topic).from(from);
            if !self.partitions.is_empty() {
                builder = builder.partitions(self.partitions.iter().copied());
            }
            let subscriber = builder.open().await?;
            let format = Format {
                json: global.json,
                key: self.key,
                offset: self.offset,
                time: self.time,
                headers: self.headers,
            };
            let result = self.copy(subscriber, &format).await;
            client.close().await;
            result
        })
    }

    /// Writes records as they come, and flushes whenever none is ready.
    async fn copy(&self, mut subscriber: Subscriber, format: &Format) -> Result<(), Failure> {
        let stdout = io::stdout();
        // A person sees each line at once; a pipe gets large pieces.
        let capacity = if stdout.is_terminal() { 4_096 } else { WRITE_LEN };
        let mut out = BufWriter::with_capacity(capacity, stdout.lock());
        let mut left = self.count.unwrap_or(u64::MAX);
        let interrupted = interrupted();
        tokio::pin!(interrupted);
        while left > 0 {
            let received = match subscriber.next_ready() {
                Some(received) => received?,
                None => {
                    out.flush().map_err(broken)?;
                    let event = tokio::select! {
                        event = subscriber.next_event() => event,
                        () = &mut interrupted => break,
                    };
                    match event {
                        Some(Ok(Event::Record(received))) => received,
                        Some(Ok(Event::CaughtUp)) if self.until_caught_up => break,
                        Some(Ok(Event::CaughtUp)) => continue,
                        Some(Err(error)) => return Err(error.into()),
                        None => break,
                    }
                }
            };
            format.write(&self.topic, &received, &mut out).map_err(broken)?;
            left -= 1;
        }
        out.flush().map_err(broken)
    }
}

fn broken(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
        _ => Failure::runtime(format!("cannot write to standard output: {error}")),
    }
}

const WRITE_LEN: usize = 256 * 1024;
