//! Publishing, and reading what is published: throughput and latency by combination, beside the floors.

use std::{path::PathBuf, sync::Mutex, time::Duration};

use super::{
    Own, bytes,
    floor::{BareQuinn, Floors},
    load,
    node::{Counters, LogUse, device_written},
    payload::SIZE_MIN,
    plan::{Combination, Load, combinations},
    progress,
    report::{Report, Row, Run},
    unless_interrupted,
};
use crate::{
    cli::{Global, exit::Failure},
    client::{Client, Profile, TopicName, TopicRequest},
    limits::{
        BATCH_LEN_MAX, PARTITIONS_MAX, PARTITIONS_PER_TOPIC_MAX, RECORD_LEN_MAX,
        STREAMS_PER_CONNECTION_DEFAULT,
    },
    types::Acks,
    wire::Compression,
};

#[derive(Debug, clap::Args)]
pub(super) struct Publish {
    /// Start a broker of its own for each run, on loopback and a fresh directory
    #[arg(long)]
    local: bool,
    /// Where --local and --floor put their files [default: the system's place for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Measure the disk, a bare redb, a bare QUIC echo and one that stores, too, before each run (needs --local or --dir)
    #[arg(long)]
    floor: bool,
    /// Bytes of a record
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "1024", value_parser = size)]
    size: Vec<usize>,
    /// Records of a producer that wait for their ack; 1 sends one at a time
    #[arg(long, value_name = "RECORDS", value_delimiter = ',', default_value = "1024", value_parser = in_flight)]
    in_flight: Vec<usize>,
    /// What acks wait for: replicated, local or none
    #[arg(long, value_name = "LEVEL", value_delimiter = ',', default_value = "replicated")]
    acks: Vec<Acks>,
    /// Producers that publish, each over a connection of its own
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1",
        value_parser = clap::value_parser!(u16).range(1..=1_000))]
    producers: Vec<u16>,
    /// Connections that all producers share [default: one each]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    connections: Option<u16>,
    /// Connections that read, each one of the topics
    #[arg(long, value_name = "N", default_value = "0", value_parser = clap::value_parser!(u16).range(0..=1_000))]
    readers: u16,
    /// Topics that are made, and deleted at the end
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=5_000))]
    topics: u16,
    /// Records that a producer publishes to one topic before it goes on to its next: with several topics, what one
    /// batch can hold
    #[arg(long, value_name = "RECORDS", default_value = "1", value_parser = in_flight)]
    run: usize,
    /// Partitions of each topic
    #[arg(long, value_name = "N", default_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(PARTITIONS_PER_TOPIC_MAX)))]
    partitions: u32,
    /// How batches are compressed: none, lz4 or zstd
    #[arg(long, value_name = "HOW", default_value = "none")]
    compression: Compression,
    /// Bytes at which a batch is full [default: about 64 KB]
    #[arg(long, value_name = "BYTES", value_parser = batch_bytes)]
    batch_bytes: Option<usize>,
    /// How long a batch waits for more behind several under way, such as 500us [default: 1ms]
    #[arg(long, value_name = "TIME", value_parser = linger)]
    linger: Option<Duration>,
    /// Records per second of all producers; latency then counts from when a record was due [default: as acks come]
    #[arg(long, value_name = "RECORDS", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: Option<u64>,
    /// Measured seconds of a run, after a fifth of it, at most 1 s, to warm up
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    seconds: Duration,
    /// Runs of each combination, of which the median is shown [default: 1, with --floor 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    repeat: Option<u16>,
}

/// Where the runs go to.
struct Target {
    own: Own,
    /// A node that is there; none to start one.
    remote: Option<(Profile, Client)>,
    quinn: Option<BareQuinn>,
    /// What is to be deleted there.
    topics: Mutex<Vec<TopicName>>,
}

impl Publish {
    pub(super) async fn run(&self, global: &Global) -> Result<(), Failure> {
        let load = self.load()?;
        let producers: Vec<usize> = self.producers.iter().map(|n| (*n).into()).collect();
        let rows = combinations(&self.size, &self.in_flight, &producers, &self.acks);
        if rows.len() > ROWS_MAX {
            let rows = rows.len();
            return Err(Failure::usage(format!("{rows} combinations, limit is {ROWS_MAX}")));
        }
        let target = self.target(global).await?;
        let report = unless_interrupted(self.measure(&target, &load, &rows)).await;
        // Also what an interrupted run has made.
        let cleaned = target.delete_topics().await;
        let report = report?;
        cleaned?;
        global.output().show(&report, Report::in_words)
    }

    fn load(&self) -> Result<Load, Failure> {
        let partitions = u32::from(self.topics) * self.partitions;
        if partitions > PARTITIONS_MAX {
            let message = format!("{partitions} partitions in all, limit is {PARTITIONS_MAX}");
            return Err(Failure::usage(message));
        }
        // A producer has a stream for each of its topics, and one more is the connection's own.
        let fewest = self.producers.iter().copied().min().unwrap_or(1);
        let most = self.producers.iter().copied().max().unwrap_or(1);
        let sharing = self.connections.map_or(1, |connections| most.div_ceil(connections));
        let streams = u32::from(self.topics.div_ceil(fewest)) * u32::from(sharing) + 1;
        if streams > STREAMS_PER_CONNECTION_DEFAULT {
            let max = (STREAMS_PER_CONNECTION_DEFAULT - 1) * u32::from(fewest);
            let message = format!("{} topics, limit is {max} with so few producers", self.topics);
            return Err(Failure::usage(message).hint("add --producers"));
        }
        if self.floor && !self.local && self.dir.is_none() {
            return Err(Failure::usage("--floor needs --local, or --dir on the disk of the node"));
        }
        Ok(Load {
            topics: self.topics.into(),
            connections: self.connections.map(usize::from),
            partitions: self.partitions,
            run: self.run,
            readers: self.readers.into(),
            compression: self.compression,
            batch_bytes: self.batch_bytes,
            linger: self.linger,
            rate: self.rate,
            lasting: self.seconds,
        })
    }

    fn runs(&self) -> u16 {
        self.repeat.unwrap_or(if self.floor { RUNS_WITH_FLOOR } else { 1 })
    }

    async fn target(&self, global: &Global) -> Result<Target, Failure> {
        let own = Own::new(self.dir.as_deref())?;
        let remote = match self.local {
            true => None,
            false => Some((global.profile()?, global.connect().await?)),
        };
        let quinn = match self.floor {
            true => Some(BareQuinn::start(&own.program, &own.dir).await?),
            false => None,
        };
        Ok(Target { own, remote, quinn, topics: Mutex::default() })
    }

    async fn measure(
        &self,
        target: &Target,
        load: &Load,
        rows: &[Combination],
    ) -> Result<Report, Failure> {
        let progress = progress(rows.len() as u64 * u64::from(self.runs()));
        let mut runs = vec![Vec::new(); rows.len()];
        // One of each, again and again: what else the machine does meanwhile hits all rows alike.
        for _ in 0..self.runs() {
            for (row, runs) in rows.iter().zip(&mut runs) {
                let Combination { size, in_flight, producers, acks } = row;
                progress.set_message(format!(
                    "{size} bytes, {in_flight} in flight, {producers} producers, acks {acks}"
                ));
                runs.push(target.run(*row, load).await?);
                progress.inc(1);
            }
        }
        progress.finish_and_clear();
        Ok(Report {
            software: crate::SOFTWARE,
            server: target.remote.as_ref().map(|(profile, _)| {
                profile.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            }),
            topics: load.topics,
            partitions: load.partitions,
            run: load.run,
            readers: load.readers,
            compression: load.compression.to_string(),
            batch_bytes: load.batch_bytes,
            linger_us: load.linger.map(|linger| linger.as_micros()),
            rate: load.rate,
            seconds: load.lasting.as_secs_f64(),
            runs: self.runs().into(),
            rows: Row::all(rows, load, &runs),
        })
    }
}

impl Target {
    /// One run, with the floors just before it.
    async fn run(&self, row: Combination, load: &Load) -> Result<Run, Failure> {
        let floors = match &self.quinn {
            Some(quinn) => Some(Floors::measure(&self.own.dir, quinn, row, load).await?),
            None => None,
        };
        let Some((profile, client)) = &self.remote else {
            let (measured, log) = self.run_on_own(row, load).await?;
            return Ok(Run { measured, log: Some(log), floors });
        };
        let topics = self.make_topics(client, load).await?;
        let measured = load::run(profile, &topics, row, load).await?;
        self.delete_topics().await?;
        Ok(Run { measured, log: None, floors })
    }

    async fn run_on_own(
        &self,
        row: Combination,
        load: &Load,
    ) -> Result<(load::Measured, LogUse), Failure> {
        let broker = self.own.broker().await?;
        let client = Client::connect(broker.profile()).await?;
        let topics = self.make_topics(&client, load).await?;
        let before = (Counters::of(&broker).await?, device_written(&self.own.dir));
        let measured = load::run(broker.profile(), &topics, row, load).await?;
        let device =
            device_written(&self.own.dir).zip(before.1).map(|(after, before)| after - before);
        let log = Counters::of(&broker).await?.since(&before.0);
        Ok((measured, LogUse::of(&log, row.size, device)))
    }

    async fn make_topics(&self, client: &Client, load: &Load) -> Result<Vec<TopicName>, Failure> {
        let run: u32 = rand::random();
        let mut topics = Vec::new();
        for topic in 0..load.topics {
            let name: TopicName =
                format!("bench/{run:08x}/{topic}").parse().map_err(Failure::runtime)?;
            if self.remote.is_some() {
                self.made().push(name.clone());
            }
            let partitions = Some(load.partitions);
            let settings = TopicRequest { partitions, ..TopicRequest::default() };
            client.topics().create(&name, settings).await?;
            topics.push(name);
        }
        Ok(topics)
    }

    async fn delete_topics(&self) -> Result<(), Failure> {
        let topics = std::mem::take(&mut *self.made());
        let Some((_, client)) = &self.remote else { return Ok(()) };
        let mut result = Ok(());
        for topic in topics {
            if let Err(error) = client.topics().delete(&topic).await {
                let failure = Failure::runtime(format!("cannot delete {topic}: {error}"));
                result =
                    Err(failure.hint("delete what begins with bench/ by 'dunlin topic delete'"));
            }
        }
        result
    }

    fn made(&self) -> std::sync::MutexGuard<'_, Vec<TopicName>> {
        self.topics.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn size(text: &str) -> Result<usize, String> {
    bytes(text, SIZE_MIN, RECORD_LEN_MAX - RECORD_OVERHEAD_MAX)
}

fn batch_bytes(text: &str) -> Result<usize, String> {
    bytes(text, 1, BATCH_LEN_MAX)
}

fn in_flight(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=IN_FLIGHT_MAX) => Ok(count),
        _ => Err(format!("a number from 1 to {IN_FLIGHT_MAX}")),
    }
}

fn linger(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time <= LINGER_MAX => Ok(time),
        _ => Err(format!("a time such as 500us or 5ms, at most {} s", LINGER_MAX.as_secs())),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let time = text.parse().ok().and_then(|secs| Duration::try_from_secs_f64(secs).ok());
    time.filter(|time| (SECONDS_MIN..=SECONDS_MAX).contains(time)).ok_or_else(|| {
        let (min, max) = (SECONDS_MIN.as_secs_f64(), SECONDS_MAX.as_secs());
        format!("a number from {min} to {max}")
    })
}

/// Timestamp, no key, length of the value, no headers.
const RECORD_OVERHEAD_MAX: usize = 32;
const ROWS_MAX: usize = 100;
const IN_FLIGHT_MAX: usize = 65_536;
const LINGER_MAX: Duration = Duration::from_secs(1);
const SECONDS_MIN: Duration = Duration::from_millis(100);
const SECONDS_MAX: Duration = Duration::from_secs(3_600);
const RUNS_WITH_FLOOR: u16 = 5;

#[cfg(test)]
mod tests;
