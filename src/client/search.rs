//! Where nodes of the profile's site announce themselves, for a client whose addresses are silent or that has none.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::profile::Profile;
use crate::{
    discovery::{
        CaPrefix, Candidates, Dns, DnsError, Mdns, MdnsError, MdnsEvent, Reach, Sighting, Source,
        mdns::Browse,
    },
    limits::{CANDIDATE_LIFE, DISCOVER_GATHER, MDNS_RETRY},
    net::authority::Fingerprint,
    types::NodeId,
};

/// What was heard of the site's nodes, and how dials of them ended. It outlives the searches.
#[derive(Debug)]
pub(super) struct Search {
    /// A domain that names nodes, too.
    domain: Option<String>,
    begun: Instant,
    table: Mutex<Candidates>,
}

impl Search {
    /// None for a profile that is not to look round: it says so, or it leads to a node on this machine.
    pub(super) fn of(profile: &Profile) -> Option<Self> {
        let here = profile.addresses.iter().any(super::is_loopback);
        if !profile.discovery || here {
            return None;
        }
        let site = CaPrefix::of(Fingerprint::of_pem(&profile.ca)?.as_bytes());
        let table = Mutex::new(Candidates::of_site(Some(site)));
        let domain = profile.domain.clone();
        Some(Self { domain, begun: Instant::now(), table })
    }

    /// All that is known now, in the order in which to dial it.
    pub(super) fn order(&self) -> Vec<SocketAddr> {
        let now = self.now();
        let mut table = self.table();
        table.expire(now);
        table.order(now, rand::random())
    }

    pub(super) fn failed(&self, address: SocketAddr) {
        self.table().failed(address, self.now());
    }

    pub(super) fn reached(&self, address: SocketAddr, node: NodeId) {
        self.table().reached(address, node);
    }

    /// Begins to listen. It goes on until it is dropped.
    pub(super) fn begin(&self) -> Hunt<'_> {
        let (domain, now) = (self.domain.clone(), self.now());
        let named: Option<Named> = domain
            .map(|domain| Box::pin(async move { Dns::of(&domain)?.browse(now).await }) as Named);
        Hunt { search: self, mdns: None, named, ready_at: None }
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn table(&self) -> MutexGuard<'_, Candidates> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A search under way.
pub(super) struct Hunt<'a> {
    search: &'a Search,
    mdns: Option<Heard>,
    /// The answer of the domain, until it is there.
    named: Option<Named>,
    /// When what was gathered is given out.
    ready_at: Option<Instant>,
}

type Named = Pin<Box<dyn Future<Output = Result<Vec<Sighting>, DnsError>> + Send>>;

struct Heard {
    browse: Browse,
    _mdns: Mdns,
}

impl Hunt<'_> {
    /// Waits for nodes that were not known, and gives all that is known then, best first. Nothing is lost if it is dropped.
    pub(super) async fn next(&mut self) -> Vec<SocketAddr> {
        loop {
            let ready_at = self.ready_at;
            let ready = async {
                match ready_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = heard(&mut self.mdns) => self.take(event),
                answer = answered(&mut self.named) => {
                    self.named = None;
                    match answer {
                        Ok(found) => found.into_iter().for_each(|sighting| self.see(sighting)),
                        Err(error) => debug!(%error, "the domain names nobody"),
                    }
                }
                () = ready => {
                    self.ready_at = None;
                    return self.search.order();
                }
            }
        }
    }

    fn see(&mut self, sighting: Sighting) {
        if self.search.table().see(sighting, self.search.now()) {
            self.ready_at.get_or_insert(Instant::now() + DISCOVER_GATHER);
        }
    }

    fn take(&mut self, event: MdnsEvent) {
        let now = self.search.now();
        match event {
            MdnsEvent::Seen(sighting) => {
                debug!(node = %sighting.announcement.node, addresses = ?sighting.addresses, "announced");
                // Nobody says goodbye to a search that is over.
                let sighting = Sighting { until: Some(now + CANDIDATE_LIFE), ..*sighting };
                self.see(sighting);
            }
            MdnsEvent::Gone(instance) => {
                self.search.table().gone(Source::Multicast, &instance);
            }
            MdnsEvent::Strange(what) => debug!(what, "announcement not understood"),
        }
    }
}

/// Waits for ever if nothing was asked.
async fn answered(named: &mut Option<Named>) -> Result<Vec<Sighting>, DnsError> {
    match named {
        Some(named) => named.await,
        None => std::future::pending().await,
    }
}

/// The next event of multicast, which is begun first if it is not there.
async fn heard(mdns: &mut Option<Heard>) -> MdnsEvent {
    loop {
        if mdns.is_none() {
            match begin() {
                Ok(begun) => *mdns = Some(begun),
                Err(error) => debug!(%error, "no multicast"),
            }
        }
        let event = match mdns {
            Some(heard) => heard.browse.next().await,
            None => None,
        };
        if let Some(event) = event {
            return event;
        }
        *mdns = None;
        sleep_until(Instant::now() + MDNS_RETRY).await;
    }
}

fn begin() -> Result<Heard, MdnsError> {
    let mdns = Mdns::start(Reach::All)?;
    Ok(Heard { browse: mdns.browse()?, _mdns: mdns })
}
