//! The command line: one file a subcommand.
//!
//! A subcommand is a struct of arguments with `run(self, &Global) -> Result<(), Failure>`, and a line in [`Command`].

pub mod exit;
pub mod output;
#[doc(hidden)]
pub mod own_broker;
#[doc(hidden)]
pub mod own_site;

mod aside;
mod balance;
mod bench;
mod cert;
mod cluster;
mod completions;
mod config;
mod demo;
mod discover;
mod generate;
mod init;
mod invite;
mod join;
mod logging;
mod node;
mod pub_;
mod recover;
mod remote;
mod replace;
mod runtime;
mod serve;
mod sub;
mod topic;
mod units;

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::SystemTime};

use clap::{Parser, Subcommand};

use crate::{client::profile::Profile, config::Config, net::Address};
use exit::{Exit, Failure};
use output::Output;

/// Runs the program with these arguments, the first being its own name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and complaints go to a pipe that may be closed: then nobody wants them.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    match cli.command.run(&cli.global) {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => output::report(&failure).into(),
    }
}

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "dunlin",
    version,
    about = "Message broker for the edge: durable, replicated topics over QUIC",
    after_help = "Start with 'dunlin init', then 'dunlin serve'. More machines: 'dunlin invite' here, 'dunlin join' there.",
    arg_required_else_help = true,
    propagate_version = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Options of all subcommands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all subcommands.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Node to talk to, instead of those in the profile (port 7440 if none is given)
    #[arg(long, global = true, value_name = "ADDR", env = "DUNLIN_SERVER", hide_env_values = true)]
    pub server: Option<Address>,
    /// Client profile [default: your own, else /etc/dunlin/client.toml]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "DUNLIN_PROFILE",
        hide_env_values = true
    )]
    pub profile: Option<PathBuf>,
    /// Print JSON for programs instead of tables for people
    #[arg(long, global = true)]
    pub json: bool,
}

impl Global {
    /// The profile that the user means, going to `--server` where that is given.
    ///
    /// # Errors
    /// If there is none, or it cannot be used.
    pub fn profile(&self) -> Result<Profile, Failure> {
        let mut profile = Profile::discover(self.profile.as_deref())?;
        if let Some(server) = &self.server {
            profile.addresses = vec![server.clone()];
            profile.discovery = false;
        }
        Ok(profile)
    }

    /// Where results go.
    #[must_use]
    pub fn output(&self) -> Output {
        Output { json: self.json }
    }
}

/// The option that names a node's configuration.
#[derive(Clone, Debug, clap::Args)]
pub struct ConfigFile {
    /// Configuration of the node [default: /etc/dunlin/dunlin.toml]
    #[arg(long = "config", value_name = "FILE", env = "DUNLIN_CONFIG", hide_env_values = true)]
    pub path: Option<PathBuf>,
}

impl ConfigFile {
    /// Reads it.
    ///
    /// # Errors
    /// If it cannot be read or says something that is not allowed.
    pub fn load(&self) -> Result<Config, Failure> {
        Ok(Config::load(self.path.as_deref())?)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum Command {
    /// Make a site: its authority, this node's certificate and an admin profile
    Init(init::Init),
    /// Run a node until it is told to stop
    Serve(serve::Serve),
    /// Let one more machine become a node: prints an invite for it
    Invite(invite::Invite),
    /// Make this machine a node of a site that invites it
    Join(Box<join::Join>),
    /// Show the site's nodes and shards, drain and remove nodes
    Cluster(cluster::Cluster),
    /// List the nodes that announce themselves on this network
    Discover(discover::Discover),
    /// Change how much a node is given to do
    Node(node::Node),
    /// Give certificates to clients
    Cert(cert::Cert),
    /// Make, show, change and delete topics
    Topic(topic::Topic),
    /// Publish arguments, or lines of a file or of standard input
    Pub(pub_::Pub),
    /// Read a topic
    Sub(sub::Sub),
    /// Measure throughput and latency, beside what the disk and a bare QUIC give
    Bench(Box<bench::Bench>),
    /// Check or show the configuration of a node
    Config(config::ConfigCommand),
    /// Kill a broker under load, start it again, and count what came through
    Demo(demo::Demo),
    /// Print completions for a shell
    Completions(completions::Completions),
    /// Write man pages and completions for a package
    #[command(hide = true)]
    Generate(generate::Generate),
}

impl Command {
    fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Init(args) => args.run(global),
            Self::Serve(args) => args.run(global),
            Self::Invite(args) => args.run(global),
            Self::Join(args) => args.run(global),
            Self::Cluster(args) => args.run(global),
            Self::Discover(args) => args.run(global),
            Self::Node(args) => args.run(global),
            Self::Cert(args) => args.run(global),
            Self::Topic(args) => args.run(global),
            Self::Pub(args) => args.run(global),
            Self::Sub(args) => args.run(global),
            Self::Bench(args) => args.run(global),
            Self::Config(args) => args.run(global),
            Self::Demo(args) => args.run(global),
            Self::Completions(args) => args.run(global),
            Self::Generate(args) => args.run(global),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the command line is where time comes in")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_says_in_a_short_line_what_it_does() {
        for command in Cli::command().get_subcommands() {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!((10..80).contains(&about.len()), "{}: {about}", command.get_name());
        }
    }
}
