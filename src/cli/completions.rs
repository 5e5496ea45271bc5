//! `dunlin completions`: what a shell needs to complete our command lines.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Global, exit::Failure, output};

/// `dunlin completions`
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, for bash:\n  \
    dunlin completions bash > ~/.local/share/bash-completion/completions/dunlin")]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, _global: &Global) -> Result<(), Failure> {
        // To memory first: the generator panics when its output is a closed pipe.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "dunlin", &mut script);
        output::print(&script)
    }
}
