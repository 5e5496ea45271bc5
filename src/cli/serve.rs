//! `dunlin serve`: runs a node until it is told to stop.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use super::{
    ConfigFile, Global,
    exit::Failure,
    logging::{self, LogControl},
    runtime,
};
use crate::{Config, Server, server::StartError, types::Versions};

/// `dunlin serve`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Signals: SIGTERM and SIGINT stop in order; SIGHUP reads log level and certificates again."
)]
pub struct Serve {
    #[command(flatten)]
    config: ConfigFile,
    /// Write the address that is listened on to this file, once the node serves
    #[arg(long, hide = true, value_name = "FILE")]
    address_file: Option<PathBuf>,
    /// Stop when standard input ends: a broker that another program started for itself ends with it
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
    /// Speak these versions of the protocols, such as 1..2, whatever the program was written for: for tests of upgrades
    #[arg(long, hide = true, value_name = "RANGE")]
    speaks: Option<Versions>,
}

impl Serve {
    pub(super) fn run(self, _global: &Global) -> Result<(), Failure> {
        let mut config = self.config.load()?;
        config.speaks = self.speaks.unwrap_or(config.speaks);
        let log = logging::start(&config.log)?;
        let runtime = runtime::start()
            .map_err(|error| Failure::runtime(format!("cannot start the runtime: {error}")))?;
        runtime.block_on(self.serve(config, log))
    }

    async fn serve(self, config: Config, mut log: LogControl) -> Result<(), Failure> {
        let mut signals = Signals::listen()?;
        let mut parent = self.parent()?;
        // A node that finds nobody of its site waits, and must still be told to stop.
        let mut server = tokio::select! {
            server = Server::start(config) => server?,
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            () = &mut parent => return Ok(()),
        };
        if let Some(file) = &self.address_file {
            write_address(file, &server)?;
        }
        notify(&[NotifyState::Ready]);
        let mut failure = server.failure();
        let mut watchdog = Watchdog::new();
        loop {
            tokio::select! {
                () = watchdog.next() => watchdog.beat(&server),
                _ = signals.reload.recv() => self.reload(&mut server, &mut log),
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                () = &mut parent => break,
                // The sender lives in the server.
                _ = failure.wait_for(Option::is_some) => break,
            }
        }
        notify(&[NotifyState::Stopping]);
        let failed = server.failure().borrow().clone();
        let stopped = server.stop().await;
        match (failed, stopped) {
            (Some(reason), _) => Err(Failure::runtime(format!("the node failed: {reason}"))
                .hint("the log on disk is as safe as after a power cut; see above for the cause")),
            (None, Err(error)) => {
                Err(Failure::runtime(format!("the log was not closed in order: {error}")))
            }
            (None, Ok(())) => Ok(()),
        }
    }

    /// Resolves when the program that started this one is gone, if it wants that to be known.
    fn parent(&self) -> Result<Pin<Box<dyn Future<Output = ()>>>, Failure> {
        if !self.stop_with_stdin {
            return Ok(Box::pin(std::future::pending()));
        }
        let (gone, parent) = tokio::sync::oneshot::channel();
        // A thread of its own: a read of standard input cannot be cancelled.
        std::thread::Builder::new()
            .name("stdin".into())
            .spawn(move || {
                let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
                let _ = gone.send(());
            })
            .map_err(|error| Failure::runtime(format!("cannot start a thread: {error}")))?;
        Ok(Box::pin(async move { drop(parent.await) }))
    }

    /// Takes up what can change without a restart. What cannot be used is said, and the old stays.
    fn reload(&self, server: &mut Server, log: &mut LogControl) {
        notify(&[NotifyState::Reloading]);
        match Config::load(self.config.path.as_deref()) {
            Ok(config) => log.set_level(config.log.level),
            Err(error) => tracing::error!(%error, "configuration not reloaded"),
        }
        match server.reload_certificates() {
            Ok(()) => tracing::info!("certificates reloaded"),
            Err(error) => tracing::error!(%error, "certificates not reloaded, the old ones stay"),
        }
        notify(&[NotifyState::Ready]);
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let failure =
            if error.is_configuration() { Self::config(&error) } else { Self::runtime(&error) };
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let of = |kind| {
            signal(kind)
                .map_err(|error| Failure::runtime(format!("cannot listen to signals: {error}")))
        };
        Ok(Self {
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
            reload: of(SignalKind::hangup())?,
        })
    }
}

/// Tells systemd that the node lives: only while the commit thread comes round, and this loop with it.
struct Watchdog {
    ticks: Option<tokio::time::Interval>,
    last: u64,
}

impl Watchdog {
    fn new() -> Self {
        // Without systemd nobody listens.
        let ticks = sd_notify::watchdog_enabled().map(|limit| {
            // The commit thread beats once a second when idle: asking less often than that sees a beat each time.
            let mut ticks = interval((limit / 3).max(Duration::from_millis(1_500)));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        Self { ticks, last: 0 }
    }

    async fn next(&mut self) {
        match &mut self.ticks {
            Some(ticks) => drop(ticks.tick().await),
            None => std::future::pending().await,
        }
    }

    fn beat(&mut self, server: &Server) {
        let beat = server.heartbeat();
        if beat == self.last {
            tracing::warn!("the commit thread did not come round, the watchdog is not answered");
        } else {
            self.last = beat;
            notify(&[NotifyState::Watchdog]);
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

fn write_address(file: &Path, server: &Server) -> Result<(), Failure> {
    let mut text = format!("{}\n", server.address());
    if let Some(http) = server.http_address() {
        text.push_str(&format!("{http}\n"));
    }
    // Written aside and moved, so that nobody reads half of it.
    let aside = file.with_extension("tmp");
    let written = std::fs::write(&aside, text).and_then(|()| std::fs::rename(&aside, file));
    written.map_err(|error| Failure::runtime(format!("cannot write {}: {error}", file.display())))
}
