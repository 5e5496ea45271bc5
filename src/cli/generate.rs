//! `dunlin generate`: the files that a package carries and clap can write.

use std::{fs, io, path::PathBuf};

use clap::{CommandFactory as _, Subcommand};
use clap_complete::Shell;

use super::{Cli, Global, exit::Failure};

/// `dunlin generate`
#[derive(Debug, clap::Args)]
pub struct Generate {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Write a man page for every subcommand
    Man {
        /// Directory to write to; made if it is missing
        dir: PathBuf,
    },
    /// Write completions for bash, fish and zsh
    Completions {
        /// Directory to write to; made if it is missing
        dir: PathBuf,
    },
}

impl Generate {
    pub(super) fn run(self, _global: &Global) -> Result<(), Failure> {
        let (dir, result) = match self.what {
            What::Man { dir } => {
                let result = man(&dir);
                (dir, result)
            }
            What::Completions { dir } => {
                let result = completions(&dir);
                (dir, result)
            }
        };
        result.map_err(|error| {
            Failure::runtime(format!("cannot write to {}: {error}", dir.display()))
        })
    }
}

fn man(dir: &PathBuf) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    clap_mangen::generate_to(Cli::command(), dir)
}

fn completions(dir: &PathBuf) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    [Shell::Bash, Shell::Fish, Shell::Zsh].into_iter().try_for_each(|shell| {
        clap_complete::generate_to(shell, &mut Cli::command(), "dunlin", dir).map(drop)
    })
}
