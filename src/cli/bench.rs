//! `dunlin bench`: throughput, latency and memory, beside what disk and network give without a broker.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

mod floor;
mod idle;
mod load;
mod node;
mod payload;
mod plan;
mod publish;
mod read;
mod report;
mod stats;
mod stopped;
mod timer;

use super::{
    Global,
    exit::Failure,
    own_broker::OwnBroker,
    remote::{block_on, interrupted},
};

/// `dunlin bench`
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_help_heading = "Other measurements",
    after_help = "Lists by comma give one row for each combination. Records that are not acked when the time is \
    over are waited for and count in the latencies.\n\n\
    Examples:\n  \
    dunlin bench --local --in-flight 1,64,1024 --floor\n  \
    dunlin bench --local --in-flight 1 --producers 1,64\n  \
    dunlin bench --local --topics 100 --run 62 --in-flight 3968 --floor\n  \
    dunlin bench --producers 8 --readers 8 --topics 8 --rate 20000 --seconds 30\n  \
    dunlin bench --local --size 65536 --json | jq '.rows[].publish'\n  \
    dunlin bench read"
)]
pub struct Bench {
    #[command(subcommand)]
    other: Option<Other>,
    #[command(flatten)]
    publish: publish::Publish,
}

/// What is measured besides publishing, each on brokers of its own.
#[derive(Debug, clap::Subcommand)]
enum Other {
    /// Read a topic from its start, beside a bare QUIC download of the same frames
    Read(read::Read),
    /// Memory that idle connections cost a node, beside a bare QUIC server
    Idle(idle::Idle),
    /// Memory that a reader costs a node when it stops to read
    Stopped(stopped::Stopped),
    /// Be the bare QUIC server
    #[command(hide = true)]
    Bare {
        #[arg(hide = true)]
        dir: PathBuf,
        /// Where it stores
        #[arg(hide = true)]
        files: PathBuf,
    },
}

impl Bench {
    pub(super) fn run(self: Box<Self>, global: &Global) -> Result<(), Failure> {
        let Self { other, publish } = *self;
        block_on(async {
            match other {
                None => publish.run(global).await,
                Some(Other::Read(read)) => read.run(global).await,
                Some(Other::Idle(idle)) => idle.run(global).await,
                Some(Other::Stopped(stopped)) => stopped.run(global).await,
                Some(Other::Bare { dir, files }) => floor::serve(&dir, files).await,
            }
        })
    }
}

/// Where brokers and floors of our own run.
#[derive(Clone, Debug)]
struct Own {
    /// This program.
    program: PathBuf,
    dir: PathBuf,
}

impl Own {
    fn new(dir: Option<&Path>) -> Result<Self, Failure> {
        let program = env::current_exe()
            .map_err(|error| Failure::runtime(format!("cannot find this program: {error}")))?;
        let dir = dir.map_or_else(env::temp_dir, Path::to_owned);
        if !dir.is_dir() {
            return Err(Failure::usage(format!("{} is no directory", dir.display())));
        }
        Ok(Self { program, dir })
    }

    /// A fresh one: no run pays for what another has left on the disk or in memory.
    async fn broker(&self) -> Result<OwnBroker, Failure> {
        OwnBroker::start(&self.program, Some(&self.dir), OWN_SETTINGS).await
    }
}

/// Runs a measurement until it is done or the user has enough of it.
async fn unless_interrupted<T>(
    measure: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        measured = measure => measured,
        () = interrupted() => Err(Failure::runtime("interrupted")),
    }
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

/// All that are measured come from one address at once.
const OWN_SETTINGS: &str = "[limits]\nhandshakes_per_address = 100_000\n";
