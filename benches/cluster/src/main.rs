//! What a dunlin site of several nodes reaches on this machine, beside what is wanted of it, and beside NATS JetStream.
//!
//! It starts programs that are built already: `--dunlin` and, for `publish`, `--nats`. All files are in temporary directories
//! below `--dir`, all processes end with it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a table is what it makes")]
#![allow(clippy::disallowed_methods, reason = "a measurement needs the machine's clock and sleeps")]

mod catchup;
mod cold;
mod failure;
mod idle;
mod load;
mod nats;
mod process;
mod publish;
mod site;
mod table;

use std::{
    env, fs,
    num::NonZero,
    path::PathBuf,
    process::{Command, ExitCode},
    thread::available_parallelism,
};

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::{Failure, Result, While as _};

/// Measures sites of several nodes.
#[derive(Debug, Parser)]
#[command(name = "dunlin-cluster-bench")]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    what: Measurement,
}

/// What all measurements need.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Common {
    /// The dunlin program, optimised
    #[arg(long, global = true, value_name = "PROGRAM", default_value = "target/release/dunlin")]
    pub(crate) dunlin: PathBuf,
    /// The nats-server program to compare with
    #[arg(long, global = true, value_name = "PROGRAM")]
    pub(crate) nats: Option<PathBuf>,
    /// Where all nodes put their files: on the disk to be measured [default: the system's place for temporary files]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Subcommand)]
enum Measurement {
    /// Throughput, latency and bytes written of one node, three nodes, and NATS
    Publish(publish::Publish),
    /// What a site with topics and nothing to do costs, and a witness
    Idle(idle::Idle),
    /// A node that was away comes back while producers go on
    Catchup(catchup::Catchup),
    /// All nodes start at once, with many partitions and clients
    Cold(cold::Cold),
    /// All of these, as they are without options
    All,
}

impl Common {
    pub(crate) fn dir(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(env::temp_dir)
    }

    /// Machine and versions.
    fn describe(&self) -> Result<()> {
        let cores = available_parallelism()?;
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name"));
        let model = model.map_or("unknown", |model| model.trim_start_matches([' ', '\t', ':']));
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or("unknown").to_owned();
        println!("machine: {cores} cores of {model}; files in {}", self.dir().display());
        println!("load before: {load}; others that use the machine make all figures worthless");
        let mut version = Command::new(&self.dunlin);
        println!("{}", process::output(version.arg("--version"), "")?.trim());
        if let Some(nats) = &self.nats {
            println!("{}, sync_interval always", nats::version(nats)?);
        }
        Ok(())
    }
}

impl Measurement {
    async fn run(&self, common: &Common) -> Result<()> {
        match self {
            Self::Publish(publish) => publish.run(common).await,
            Self::Idle(idle) => idle.run(common).await,
            Self::Catchup(catchup) => catchup.run(common).await,
            Self::Cold(cold) => cold.run(common).await,
            Self::All => {
                for word in ["publish", "idle", "catchup", "cold"] {
                    let cli = Cli::try_parse_from(["all", word])?;
                    Box::pin(cli.what.run(common)).await.while_(word)?;
                }
                Ok(())
            }
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // As the command line of dunlin has it: a core is left to the servers.
    let cores = available_parallelism().map_or(1, NonZero::get);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    match runtime.worker_threads(cores.saturating_sub(1).max(1)).enable_all().build() {
        Ok(runtime) => runtime.block_on(measure(cli)),
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(cli: Cli) -> ExitCode {
    // A task of the runtime, as producers are: on the main thread each ack would wake one thread more.
    let mut work = tokio::spawn(async move {
        cli.common.describe()?;
        cli.what.run(&cli.common).await
    });
    let result = tokio::select! {
        result = &mut work => result.unwrap_or_else(|error| Err(error.into())),
        ended = asked_to_end() => {
            // A dropped measurement ends its servers.
            work.abort();
            let _ = work.await;
            Err(ended.err().unwrap_or(Failure("interrupted".into())))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn asked_to_end() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => Ok(pressed?),
        _ = terminate.recv() => Ok(()),
        _ = hang_up.recv() => Ok(()),
    }
}
