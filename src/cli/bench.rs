//! `dunlin bench`: throughput and latency, beside what the disk and a bare quinn give.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

mod floor;
mod load;
mod report;

use self::{
    floor::{Floor, FloorArgs},
    load::{Load, Loaded},
};
use super::{
    Global,
    demo::own_program,
    exit::Failure,
    own_broker::OwnBroker,
    remote::block_on,
    units::{duration, size},
};
use crate::{
    client::Profile,
    limits::{BATCH_LEN_MAX, RECORD_LEN_MAX, ROW_LEN_MAX},
    types::Acks,
    wire::Compression,
};

/// `dunlin bench`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Producers send as soon as a batch of theirs is acked, so that '--in-flight' batches of each are always \
under way. Latencies are counted from the moment a record is handed to the library.

'--floor' measures in the same run: writing chunks of the batch size one after the other, each followed \
by fdatasync, in the directory of '--dir'; and the same frames over a bare QUIC connection on loopback, \
acked and thrown away.

Examples:
  dunlin bench --local --floor
  dunlin bench --local --producers 64 --batch 1 --in-flight 1
  dunlin bench --server edge-1 --topics 100 --seconds 30 --json")]
pub struct Bench {
    /// Bytes of a record's value
    #[arg(long, value_name = "SIZE", default_value = "1KiB", value_parser = size)]
    size: u64,
    /// Bytes of a batch; 1 sends each record alone [default: one row of the log, about 64 KB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    batch: Option<u64>,
    /// Batches of each producer that are under way at once
    #[arg(long, value_name = "N", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=4_096))]
    in_flight: u32,
    /// How long a batch waits to become full while others are under way
    #[arg(long, value_name = "TIME", default_value = "1ms", value_parser = duration)]
    linger: Duration,
    /// Topics that the producers take in turn, batch by batch
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1_000))]
    topics: u32,
    /// Partitions of each topic
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=256))]
    partitions: u32,
    /// Producers, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1_000))]
    producers: u32,
    /// Readers, each with a connection of its own, that read all topics meanwhile
    #[arg(long, value_name = "N", default_value_t = 0,
        value_parser = clap::value_parser!(u32).range(0..=1_000))]
    readers: u32,
    /// Read everything again at the end, by one reader and as fast as it goes
    #[arg(long)]
    read_back: bool,
    /// What producers wait for: replicated, local or none
    #[arg(long, value_name = "LEVEL", default_value_t)]
    acks: Acks,
    /// How batches are compressed: none, lz4 or zstd; the values are random, and do not shrink
    #[arg(long, value_name = "KIND", default_value_t)]
    compression: Compression,
    /// Seconds that are measured, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// Start a broker for the run, instead of using one that serves
    #[arg(long)]
    local: bool,
    /// Where the broker of --local keeps its data, and --floor writes [default: for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Measure disk and bare quinn, too
    #[arg(long)]
    floor: bool,
}

#[derive(Serialize)]
struct Report {
    settings: Settings,
    publish: Loaded,
    #[serde(skip_serializing_if = "Option::is_none")]
    floor: Option<Floor>,
}

/// What was measured, as it came out of options and defaults.
#[derive(Clone, Copy, Debug, Serialize)]
struct Settings {
    size: usize,
    batch: usize,
    in_flight: usize,
    topics: u32,
    partitions: u32,
    producers: u32,
    readers: u32,
    acks: Acks,
    compression: Compression,
    #[serde(rename = "linger_ms", serialize_with = "as_ms")]
    linger: Duration,
    seconds: u32,
    read_back: bool,
}

impl Bench {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        let settings = self.settings()?;
        block_on(async {
            let floor = if self.floor {
                let dir = self.dir.clone().unwrap_or_else(std::env::temp_dir);
                Some(FloorArgs { settings, dir }.measure().await?)
            } else {
                None
            };
            let publish = if self.local {
                let program = own_program()?;
                let mut broker = OwnBroker::start(&program, self.dir.as_deref(), "").await?;
                let loaded = load(settings, broker.profile()).await;
                broker.stop().await?;
                loaded?
            } else {
                load(settings, &global.profile()?).await?
            };
            let report = Report { settings, publish, floor };
            global.output().show(&report, report::in_words)
        })
    }

    fn settings(&self) -> Result<Settings, Failure> {
        let within = |name: &str, value: u64, max: usize| match usize::try_from(value) {
            Ok(value) if (1..=max).contains(&value) => Ok(value),
            _ => Err(Failure::usage(format!("--{name} is {value} bytes, allowed are 1 to {max}"))),
        };
        // The time of sending stands in the first bytes.
        let size = within("size", self.size, RECORD_LEN_MAX - 64)?.max(load::STAMP_LEN);
        let batch = self.batch.unwrap_or(ROW_LEN_MAX as u64 - 512);
        Ok(Settings {
            size,
            batch: within("batch", batch, BATCH_LEN_MAX)?,
            in_flight: self.in_flight as usize,
            topics: self.topics,
            partitions: self.partitions,
            producers: self.producers,
            readers: self.readers,
            acks: self.acks,
            compression: self.compression,
            linger: self.linger,
            seconds: self.seconds,
            read_back: self.read_back,
        })
    }
}

async fn load(settings: Settings, profile: &Profile) -> Result<Loaded, Failure> {
    let load = Load::prepare(settings, profile).await?;
    let loaded = load.run().await;
    // The topics go, whatever became of the run.
    let cleaned = load.clean_up().await;
    let loaded = loaded?;
    cleaned?;
    Ok(loaded)
}

fn as_ms<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64() * 1e3)
}
