//! Where log lines go: the journal under systemd with fields kept, standard error elsewhere.

use std::io::IsTerminal;

use tracing_subscriber::{
    EnvFilter, Layer, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use super::exit::Failure;
use crate::config::{Log, LogFormat, LogLevel};

/// Changes the level while the node runs.
#[derive(Debug)]
pub(super) struct LogControl {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// Libraries tell their own troubles at these levels, whatever ours is. What openraft calls an error is a node that is
/// down, several times a second: links tell that once.
const LIBRARIES: &str =
    "openraft=off,quinn=warn,quinn_proto=warn,quinn_udp=error,rustls=warn,h2=warn,hyper=warn";

/// Begins to log. `RUST_LOG` wins over the configuration.
pub(super) fn start(config: &Log) -> Result<LogControl, Failure> {
    let (filter, handle) = reload::Layer::new(filter(config.level));
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let format = match config.format {
        LogFormat::Auto if under_systemd => LogFormat::Journald,
        LogFormat::Auto => LogFormat::Text,
        format => format,
    };
    let lines: Box<dyn Layer<_> + Send + Sync> = match format {
        LogFormat::Journald => match tracing_journald::layer() {
            Ok(journal) => Box::new(journal),
            Err(error) if config.format == LogFormat::Auto => {
                // A container may have the variable and no journal.
                let text = text();
                drop(error);
                Box::new(text)
            }
            Err(error) => {
                return Err(Failure::config(format!("cannot log to the journal: {error}"))
                    .hint("set log.format to text or json"));
            }
        },
        LogFormat::Json => Box::new(
            tracing_subscriber::fmt::layer()
                .json()
                .flatten_event(true)
                .with_writer(std::io::stderr),
        ),
        LogFormat::Text | LogFormat::Auto => Box::new(text()),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(|error| Failure::runtime(format!("cannot log: {error}")))?;
    Ok(LogControl { filter: handle })
}

impl LogControl {
    pub(super) fn set_level(&mut self, level: LogLevel) {
        match self.filter.reload(filter(level)) {
            Ok(()) => tracing::info!(level = level.as_str(), "log level set"),
            Err(error) => tracing::error!(%error, "log level not set"),
        }
    }
}

fn filter(level: LogLevel) -> EnvFilter {
    EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{},{LIBRARIES}", level.as_str())))
}

fn text<S>() -> impl Layer<S> + Send + Sync
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
}
