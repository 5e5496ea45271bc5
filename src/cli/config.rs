//! `dunlin config`: what a node would run with.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::json;

use super::{ConfigFile, Global, exit::Failure};
use crate::{
    config::{Config, DEFAULT_PATH},
    discovery::TsigKey,
    net::secret_file,
};

/// `dunlin config`
#[derive(Debug, clap::Args)]
pub struct ConfigCommand {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Tell whether a configuration file can be used
    Check {
        /// The file [default: /etc/dunlin/dunlin.toml]
        file: Option<PathBuf>,
    },
    /// Print every key with its effective value, as a configuration file
    Show {
        #[command(flatten)]
        config: ConfigFile,
    },
}

impl ConfigCommand {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        match self.command {
            Subcommands::Check { file } => {
                let config = Config::load(file.as_deref())?;
                if let Some(path) = &config.discovery.tsig_key_file {
                    check_key(path)?;
                }
                let file = file.unwrap_or_else(|| DEFAULT_PATH.into());
                let (exists, name) = (file.exists(), file.display());
                let result = json!({ "file": file, "exists": exists, "ok": true });
                global.output().show(&result, |_| match exists {
                    true => format!("{name}: ok\n"),
                    false => format!("{name}: ok, there is none: every key has its default\n"),
                })
            }
            Subcommands::Show { config } => {
                let config = config.load()?;
                global.output().show(&config.effective(), Config::to_toml)
            }
        }
    }
}

/// Whether a node could register itself with this key.
fn check_key(path: &Path) -> Result<(), Failure> {
    let named = "discovery.tsig_key_file names this file";
    let text =
        secret_file::read_private(path).map_err(|error| Failure::config(error).hint(named))?;
    let key = TsigKey::parse(&text);
    key.map(drop).map_err(|error| Failure::config(error.in_file(path)).hint(named))
}
