//! `dunlin bench`: throughput and latency, beside what disk and network give without a broker.

use std::{
    env,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

mod floor;
mod load;
mod payload;
mod plan;
mod report;
mod stats;
mod timer;

use self::{
    floor::Echo,
    payload::SIZE_MIN,
    plan::{Combination, Load, combinations},
    report::{Report, Row, Run},
};
use super::{
    Global,
    exit::Failure,
    own_broker::OwnBroker,
    remote::{block_on, interrupted},
};
use crate::{
    client::{Client, Profile, TopicName, TopicRequest},
    limits::{
        BATCH_LEN_MAX, PARTITIONS_MAX, PARTITIONS_PER_TOPIC_MAX, RECORD_LEN_MAX,
        STREAMS_PER_CONNECTION_DEFAULT,
    },
    types::Acks,
    wire::Compression,
};

/// `dunlin bench`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Lists by comma give one row for each combination. Records that are not acked when the time is \
    over are waited for and count in the latencies.\n\n\
    Examples:\n  \
    dunlin bench --local --in-flight 1,64,1024 --floor\n  \
    dunlin bench --producers 8 --readers 8 --topics 8 --rate 20000 --seconds 30\n  \
    dunlin bench --local --size 65536 --json | jq '.rows[].publish'"
)]
pub struct Bench {
    /// Start a broker of its own for each run, on loopback and a fresh directory
    #[arg(long)]
    local: bool,
    /// Where --local and --floor put their files [default: the system's place for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Measure the disk and a bare QUIC echo, too, before each run (needs --local or --dir)
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
    /// Connections that publish
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    producers: u16,
    /// Connections that read, each one of the topics
    #[arg(long, value_name = "N", default_value = "0", value_parser = clap::value_parser!(u16).range(0..=1_000))]
    readers: u16,
    /// Topics that are made, and deleted at the end
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=5_000))]
    topics: u16,
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
    /// Be the echo that the floor measures
    #[arg(long, hide = true, value_name = "DIR")]
    echo: Option<PathBuf>,
}

/// Where the runs go to.
struct Target {
    /// This program.
    program: PathBuf,
    dir: PathBuf,
    /// A node that is there; none to start one.
    remote: Option<(Profile, Client)>,
    echo: Option<Echo>,
    /// What is to be deleted there.
    topics: Mutex<Vec<TopicName>>,
}

impl Bench {
    pub(super) fn run(self: Box<Self>, global: &Global) -> Result<(), Failure> {
        if let Some(dir) = &self.echo {
            return block_on(floor::serve(dir));
        }
        let load = self.load()?;
        let rows = combinations(&self.size, &self.in_flight, &self.acks);
        if rows.len() > ROWS_MAX {
            let rows = rows.len();
            return Err(Failure::usage(format!("{rows} combinations, limit is {ROWS_MAX}")));
        }
        block_on(async {
            let target = self.target(global).await?;
            let report = tokio::select! {
                report = self.measure(&target, &load, &rows) => report,
                () = interrupted() => Err(Failure::runtime("interrupted")),
            };
            // Also what an interrupted run has made.
            let cleaned = target.delete_topics().await;
            let report = report?;
            cleaned?;
            global.output().show(&report, Report::in_words)
        })
    }

    fn load(&self) -> Result<Load, Failure> {
        let partitions = u32::from(self.topics) * self.partitions;
        if partitions > PARTITIONS_MAX {
            let message = format!("{partitions} partitions in all, limit is {PARTITIONS_MAX}");
            return Err(Failure::usage(message));
        }
        // A producer has a stream for each of its topics, and one more is the connection's own.
        let streams = u32::from(self.topics.div_ceil(self.producers)) + 1;
        if streams > STREAMS_PER_CONNECTION_DEFAULT {
            let max = (STREAMS_PER_CONNECTION_DEFAULT - 1) * u32::from(self.producers);
            let message = format!("{} topics, limit is {max} with so few producers", self.topics);
            return Err(Failure::usage(message).hint("add --producers"));
        }
        if self.floor && !self.local && self.dir.is_none() {
            return Err(Failure::usage("--floor needs --local, or --dir on the disk of the node"));
        }
        if let Some(dir) = self.dir.as_ref().filter(|dir| !dir.is_dir()) {
            return Err(Failure::usage(format!("{} is no directory", dir.display())));
        }
        Ok(Load {
            topics: self.topics.into(),
            partitions: self.partitions,
            producers: self.producers.into(),
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
        let program = env::current_exe()
            .map_err(|error| Failure::runtime(format!("cannot find this program: {error}")))?;
        let remote = match self.local {
            true => None,
            false => Some((global.profile()?, global.connect().await?)),
        };
        let echo = match self.floor {
            true => Some(Echo::start(&program).await?),
            false => None,
        };
        let dir = self.dir.clone().unwrap_or_else(env::temp_dir);
        Ok(Target { program, dir, remote, echo, topics: Mutex::default() })
    }

    async fn measure(
        &self,
        target: &Target,
        load: &Load,
        rows: &[Combination],
    ) -> Result<Report, Failure> {
        let progress = progress(rows.len() as u64 * u64::from(self.runs()));
        let mut done = Vec::new();
        for row in rows {
            let mut runs = Vec::new();
            for _ in 0..self.runs() {
                let Combination { size, in_flight, acks } = row;
                progress.set_message(format!("{size} bytes, {in_flight} in flight, acks {acks}"));
                runs.push(target.run(*row, load).await?);
                progress.inc(1);
            }
            done.push(Row::of(*row, load, &runs));
        }
        progress.finish_and_clear();
        Ok(Report {
            software: crate::SOFTWARE,
            server: target.remote.as_ref().map(|(profile, _)| {
                profile.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            }),
            topics: load.topics,
            partitions: load.partitions,
            producers: load.producers,
            readers: load.readers,
            compression: load.compression.to_string(),
            batch_bytes: load.batch_bytes,
            linger_us: load.linger.map(|linger| linger.as_micros()),
            rate: load.rate,
            seconds: load.lasting.as_secs_f64(),
            runs: self.runs().into(),
            rows: done,
        })
    }
}

impl Target {
    /// One run, with the floors just before it.
    async fn run(&self, row: Combination, load: &Load) -> Result<Run, Failure> {
        let floors = match &self.echo {
            Some(echo) => Some(self.floors(echo, row, load).await?),
            None => None,
        };
        let measured = match &self.remote {
            Some((profile, client)) => {
                let measured = self.run_on(profile, client, row, load).await?;
                self.delete_topics().await?;
                measured
            }
            None => {
                // A fresh one each time: no run pays for what another has left on the disk.
                let broker = OwnBroker::start(&self.program, Some(&self.dir), OWN_SETTINGS).await?;
                let client = Client::connect(broker.profile()).await?;
                self.run_on(broker.profile(), &client, row, load).await?
            }
        };
        Ok(Run { measured, floors })
    }

    async fn run_on(
        &self,
        profile: &Profile,
        client: &Client,
        row: Combination,
        load: &Load,
    ) -> Result<load::Measured, Failure> {
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
        load::run(profile, &topics, row, load).await
    }

    async fn floors(
        &self,
        echo: &Echo,
        row: Combination,
        load: &Load,
    ) -> Result<[floor::Floor; 2], Failure> {
        let lasting = load.lasting.min(FLOOR_MAX);
        let (dir, chunk) = (self.dir.clone(), load.commit_bytes(row));
        let append = tokio::task::spawn_blocking(move || floor::append(&dir, chunk, lasting));
        let append = append.await.map_err(Failure::runtime)?;
        let append = append.map_err(|error| cannot_write(&self.dir, &error))?;
        Ok([append, echo.run(row, load, lasting).await?])
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

fn cannot_write(dir: &Path, error: &std::io::Error) -> Failure {
    Failure::runtime(format!("cannot write to {}: {error}", dir.display()))
}

/// Shown on a terminal alone.
fn progress(runs: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:20} run {pos} of {len}: {msg}");
    let bar = ProgressBar::new(runs);
    bar.enable_steady_tick(Duration::from_millis(200));
    match style {
        Ok(style) => bar.with_style(style),
        Err(error) => unreachable!("the template is a constant: {error}"),
    }
}

fn size(text: &str) -> Result<usize, String> {
    bytes(text, SIZE_MIN, RECORD_LEN_MAX - RECORD_OVERHEAD_MAX)
}

fn batch_bytes(text: &str) -> Result<usize, String> {
    bytes(text, 1, BATCH_LEN_MAX)
}

fn bytes(text: &str, min: usize, max: usize) -> Result<usize, String> {
    let size = text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64());
    let size = size.and_then(|size| usize::try_from(size).ok());
    let size = size.ok_or("a size is a number of bytes, or one with a unit such as 64KiB")?;
    if (min..=max).contains(&size) {
        Ok(size)
    } else {
        Err(format!("limits are {min} and {max} bytes"))
    }
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

/// All that are measured come from one address at once, and a producer has a stream for each of its topics.
const OWN_SETTINGS: &str = "[limits]\nhandshakes_per_address = 100_000\n";
/// Timestamp, no key, length of the value, no headers.
const RECORD_OVERHEAD_MAX: usize = 32;
const ROWS_MAX: usize = 100;
const IN_FLIGHT_MAX: usize = 65_536;
const LINGER_MAX: Duration = Duration::from_secs(1);
const SECONDS_MIN: Duration = Duration::from_millis(100);
const SECONDS_MAX: Duration = Duration::from_secs(3_600);
const RUNS_WITH_FLOOR: u16 = 5;
/// Of each of the two: longer fills the disk, and says no more.
const FLOOR_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command, exit::Exit};

    fn parse(args: &[&str]) -> Result<Box<Bench>, String> {
        let args = ["dunlin", "bench"].iter().chain(args);
        match Cli::try_parse_from(args) {
            Ok(Cli { command: Command::Bench(bench), .. }) => Ok(bench),
            Ok(_) => panic!("another command"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn lists_and_units_are_read() {
        let bench = parse(&["--size", "100,64KiB", "--in-flight", "1,64", "--acks", "none,local"]);
        let bench = bench.expect("good");
        assert_eq!((bench.size, bench.in_flight), (vec![100, 65_536], vec![1, 64]));
        assert_eq!(bench.acks, [Acks::None, Acks::Local]);
        let bench = parse(&["--linger", "500us", "--seconds", "0.5", "--floor"]).expect("good");
        assert_eq!(bench.linger, Some(Duration::from_micros(500)));
        assert_eq!((bench.seconds, bench.runs()), (Duration::from_millis(500), 5));
    }

    #[test]
    fn a_figure_out_of_bounds_is_refused_with_the_bound() {
        for (args, say) in [
            (["--rate", "0"], "1..="),
            (["--size", "7"], "8 and"),
            (["--size", "2MiB"], "1047520"),
            (["--size", "big"], "64KiB"),
            (["--in-flight", "0"], "1 to 65536"),
            (["--batch-bytes", "2MB"], "1048576"),
            (["--linger", "2s"], "at most 1 s"),
            (["--seconds", "0"], "0.1 to 3600"),
            (["--seconds", "nan"], "0.1 to 3600"),
            (["--partitions", "257"], "256"),
            (["--producers", "0"], "1..="),
            (["--acks", "all"], "replicated, local, none"),
        ] {
            let error = parse(&args).expect_err(args[1]);
            assert!(error.contains(say), "{error}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_a_usage_error() {
        for (args, say) in [
            (&["--floor"][..], "--local"),
            (&["--topics", "300"], "limit is 255"),
            (&["--topics", "100", "--partitions", "256"], "25600 partitions"),
            (&["--local", "--dir", "/none/such"], "no directory"),
        ] {
            match parse(args).expect("good one by one").load() {
                Err(Failure::Told { exit: Exit::Usage, message, .. }) => {
                    assert!(message.contains(say), "{message}");
                }
                other => panic!("{args:?}: {other:?}"),
            }
        }
    }
}
