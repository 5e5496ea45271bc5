//! Has a name server say where this node is while it runs: the driver of [`Registration`].

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, time::UNIX_EPOCH};

use tokio::time::{MissedTickBehavior, interval, timeout};

use super::discovery::Beacon;
use crate::{
    config::Config,
    discovery::{
        Trouble, TsigKey,
        dns::update::{Registered, Registry},
        registration::{Instance, News, Registration, Wanted},
    },
    limits::{ANNOUNCE_INTERVAL, REGISTER_MAX, UNREGISTER_MAX},
    net::{advertise::advertised, secret_file},
    types::Address,
};

/// What the configuration says of it.
#[derive(Debug)]
pub(super) struct Registrar {
    domain: String,
    server: Option<Address>,
    key_file: PathBuf,
    advertise: Vec<Address>,
    /// Where the node listens.
    listens: SocketAddr,
}

impl Registrar {
    /// None without a domain and a key.
    pub(super) fn of(config: &Config, listens: SocketAddr) -> Option<Self> {
        let discovery = &config.discovery;
        Some(Self {
            domain: discovery.domain.clone()?,
            server: discovery.domain_server.clone(),
            key_file: discovery.tsig_key_file.clone()?,
            advertise: config.listen.advertise.clone(),
            listens,
        })
    }

    /// Registers the node and keeps it registered; takes it out when it stops.
    pub(super) async fn run(self, beacon: &Beacon) {
        let doors = &beacon.doors;
        let mut registration = Registration::default();
        let (mut serving, mut applied) = (doors.shared.clone(), beacon.group.applied());
        let mut ticks = interval(ANNOUNCE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut proven, mut cut) = (false, false);
        loop {
            serving.mark_unchanged();
            applied.mark_unchanged();
            let wanted = self.wanted(beacon);
            if let Some(wanted) = registration.due(doors.clock.uptime(), &wanted) {
                let trying = self.register(beacon, &wanted, !proven);
                let Some(tried) = doors.stopping.run_until_cancelled(trying).await else {
                    cut = true;
                    break;
                };
                proven |= tried.as_ref().is_ok_and(|registered| registered.proven);
                self.judge(beacon, &mut registration, wanted, tried);
            }
            tokio::select! {
                () = doors.stopping.cancelled() => break,
                // Its sender goes when the start of the node has failed.
                Ok(()) = serving.changed() => {}
                Ok(()) = applied.changed() => {}
                _ = ticks.tick() => {}
            }
        }
        // What was under way may have been done.
        if cut || registration.has_worked() {
            self.leave(beacon).await;
        }
    }

    fn wanted(&self, beacon: &Beacon) -> Wanted {
        Wanted {
            said: beacon.announcement(),
            addresses: advertised(&self.advertise, self.listens),
            serves: beacon.doors.shared.borrow().is_some(),
            removed: beacon
                .group
                .read(|site| site.removed.keys().copied().collect::<BTreeSet<_>>()),
        }
    }

    async fn register(
        &self,
        beacon: &Beacon,
        wanted: &Wanted,
        prove: bool,
    ) -> Result<Registered, Trouble> {
        let key = self.key().await?;
        let registry = self.registry(beacon, &key);
        match timeout(REGISTER_MAX, registry.register(wanted, prove)).await {
            Ok(done) => done,
            Err(_) => Err(self.slow(REGISTER_MAX.as_secs())),
        }
    }

    /// Says once how it went.
    fn judge(
        &self,
        beacon: &Beacon,
        registration: &mut Registration,
        wanted: Wanted,
        tried: Result<Registered, Trouble>,
    ) {
        let (domain, now) = (&self.domain, beacon.doors.clock.uptime());
        match tried {
            Ok(Registered { server, .. }) => {
                let weight = wanted.said.weight;
                match registration.worked(now, wanted) {
                    News::Yes => tracing::info!(domain, %server, weight, "registered in DNS"),
                    News::No => tracing::debug!(domain, %server, weight, "registered in DNS"),
                }
            }
            Err(trouble) => {
                let (error, hint) = (trouble.to_string(), trouble.hint());
                match registration.failed(now, trouble) {
                    News::Yes => tracing::warn!(
                        domain,
                        error,
                        hint,
                        "DNS does not say where this node is, or says what was; all else goes on"
                    ),
                    News::No => tracing::debug!(domain, error, "not registered in DNS"),
                }
            }
        }
    }

    async fn leave(&self, beacon: &Beacon) {
        let leaving = async {
            let key = self.key().await?;
            self.registry(beacon, &key).unregister(&Instance::of(&beacon.base)).await
        };
        let left = timeout(UNREGISTER_MAX, leaving).await;
        match left.unwrap_or_else(|_| Err(self.slow(UNREGISTER_MAX.as_secs()))) {
            Ok(()) => tracing::info!(domain = self.domain, "taken out of DNS"),
            Err(error) => tracing::warn!(
                domain = self.domain,
                %error,
                "this node stays in DNS while it is down: who follows that dials in vain, and goes on to the next"
            ),
        }
    }

    /// Read each time: so a key that was put right is used without a restart.
    async fn key(&self) -> Result<TsigKey, Trouble> {
        let path = self.key_file.clone();
        let read = move || {
            let text = secret_file::read_private(&path).map_err(|error| error.to_string())?;
            TsigKey::parse(&text).map_err(|error| error.in_file(&path))
        };
        let read = tokio::task::spawn_blocking(read).await;
        read.unwrap_or_else(|error| Err(error.to_string())).map_err(Trouble::KeyFile)
    }

    fn registry<'a>(&'a self, beacon: &Beacon, key: &'a TsigKey) -> Registry<'a> {
        let now = beacon.doors.clock.system().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (domain, server) = (&self.domain, self.server.as_ref());
        Registry { domain, server, key, now_s: now.as_secs() }
    }

    fn slow(&self, limit_s: u64) -> Trouble {
        Trouble::Slow { domain: self.domain.clone(), limit_s }
    }
}
