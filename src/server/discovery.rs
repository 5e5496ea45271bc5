//! Announces this node while it serves, and hears where the other nodes of the site are.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{doors::Doors, registrar::Registrar, start::NodeIdentity};
use crate::{
    cluster::MetaGroup,
    discovery::{
        Announcement, CaPrefix, Candidate, Candidates, Dns, Mdns, MdnsError, MdnsEvent, NodeKey,
        Reach, Sighting, Source,
        mdns::{Browse, Troubles},
    },
    limits::{
        ANNOUNCE_INTERVAL, DISCOVERED_ADDRESSES_MAX, DNS_INTERVAL, DNS_RETRY, LOAD_STEP,
        MDNS_ASK_AGAIN, MDNS_COUNT_INTERVAL, MDNS_RETRY, MULTICAST_SILENCE, STRANGERS_MAX,
    },
    net::{Credentials, authority::Fingerprint},
    types::{NodeId, NodeRole},
};

/// Where other nodes were heard to be, by number. Those that fell silent stay: a link may still lead there.
pub(super) type Found = BTreeMap<NodeId, Vec<String>>;

/// This node's part in discovery.
pub(super) struct Beacon {
    pub(super) group: Arc<MetaGroup>,
    pub(super) doors: Arc<Doors>,
    pub(super) found: watch::Sender<Found>,
    /// What never changes of the announcement; the rest is filled in.
    pub(super) base: Announcement,
    pub(super) port: u16,
    /// What was heard, of all sources.
    pub(super) table: Mutex<Candidates>,
}

/// The announcement of a node of this name, before it is known what the site says of it. None without a usable authority:
/// then the node does not start.
pub(super) fn base(
    identity: &NodeIdentity,
    credentials: &Credentials,
    id: NodeId,
) -> Option<Announcement> {
    let ca = Fingerprint::of_pem(&credentials.ca_pem)?;
    Some(Announcement {
        site: identity.site.clone(),
        node: identity.name.clone(),
        id,
        role: NodeRole::Data,
        weight: 0,
        load: 0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ca: CaPrefix::of(ca.as_bytes()),
    })
}

/// Runs until the node stops.
pub(super) async fn run(
    beacon: Beacon,
    reach: Option<Reach>,
    domain: Option<String>,
    registrar: Option<Registrar>,
) {
    let multicast = async {
        if let Some(reach) = reach {
            follow_multicast(&beacon, reach).await;
        }
    };
    let dns = async {
        if let Some(domain) = domain {
            let asking = follow_domain(&beacon, &domain);
            let _ = beacon.doors.stopping.run_until_cancelled(asking).await;
        }
    };
    let registration = async {
        if let Some(registrar) = registrar {
            registrar.run(&beacon).await;
        }
    };
    tokio::join!(multicast, dns, registration);
}

/// Asks the domain again and again, oftener while it does not answer.
async fn follow_domain(beacon: &Beacon, domain: &str) {
    let mut told = false;
    loop {
        let asked = match Dns::of(domain) {
            Ok(dns) => dns.browse(beacon.doors.clock.uptime()).await,
            Err(error) => Err(error),
        };
        let pause = match asked {
            Ok(found) => {
                tracing::debug!(domain, found = found.len(), "the domain was asked");
                told = false;
                found.into_iter().for_each(|sighting| beacon.see(sighting));
                DNS_INTERVAL
            }
            Err(error) => {
                if !told {
                    tracing::warn!(domain, %error, "DNS names no node of the site");
                }
                told = true;
                DNS_RETRY
            }
        };
        sleep_until(Instant::now() + pause).await;
    }
}

async fn follow_multicast(beacon: &Beacon, reach: Reach) {
    let stopping = beacon.doors.stopping.clone();
    let mut told = false;
    loop {
        match Heard::begin(beacon, reach) {
            Ok(heard) => {
                if heard.follow().await.is_none() {
                    return;
                }
                tracing::debug!("multicast DNS is begun anew");
            }
            Err(error) if !told => {
                tracing::warn!(%error, "this node does not announce itself");
                told = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stopping.cancelled() => return,
            () = sleep_until(Instant::now() + MDNS_RETRY) => {}
        }
    }
}

/// One life of the daemon.
struct Heard<'a> {
    beacon: &'a Beacon,
    mdns: Mdns,
    browse: Browse,
    troubles: Troubles,
    /// What was announced last.
    told: Option<Announcement>,
    /// Nodes that are down, and when they were asked last whether they are there.
    asked: BTreeMap<NodeId, Instant>,
    /// When another node was known last.
    heard_at: Instant,
    counted: Instant,
    silence_told: bool,
}

/// The daemon has to be begun anew.
struct Again;

impl<'a> Heard<'a> {
    fn begin(beacon: &'a Beacon, reach: Reach) -> Result<Self, MdnsError> {
        let mdns = Mdns::start(reach)?;
        let troubles = mdns.troubles()?;
        let browse = mdns.browse()?;
        // The former daemon says no goodbye for what it has heard.
        beacon.table().forget(Source::Multicast);
        let now = Instant::now();
        Ok(Self {
            beacon,
            mdns,
            browse,
            troubles,
            told: None,
            asked: BTreeMap::new(),
            heard_at: now,
            counted: now,
            silence_told: false,
        })
    }

    /// None once the node stops.
    async fn follow(mut self) -> Option<Again> {
        let mut serving = self.beacon.doors.shared.clone();
        let mut ticks = interval(ANNOUNCE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.beacon.doors.stopping.cancelled() => {
                    self.mdns.stop().await;
                    return None;
                }
                event = self.browse.next() => match event {
                    Some(event) => self.hear(event),
                    None => return Some(Again),
                },
                trouble = self.troubles.next() => match trouble {
                    Some(trouble) => tracing::info!(trouble, "multicast DNS"),
                    None => return Some(Again),
                },
                // The sender goes when the start of the node has failed.
                Ok(()) = serving.changed() => {}
                _ = ticks.tick() => {}
            }
            if self.announce().is_err() || self.is_overfull().await {
                return Some(Again);
            }
            self.ask_for_the_silent();
            self.say_whether_silent();
        }
    }

    fn hear(&mut self, event: MdnsEvent) {
        match event {
            MdnsEvent::Seen(sighting) => self.beacon.see(*sighting),
            MdnsEvent::Gone(instance) => {
                tracing::debug!(instance, "a node is announced no more");
                self.beacon.table().gone(Source::Multicast, &instance);
            }
            MdnsEvent::Strange(what) => tracing::debug!(what, "announcement not understood"),
        }
    }

    fn announce(&mut self) -> Result<(), MdnsError> {
        let now = self.beacon.announcement();
        if self.told.as_ref().is_none_or(|told| is_news(told, &now)) {
            self.mdns.announce(&now, self.beacon.port)?;
            self.told = Some(now);
        }
        Ok(())
    }

    async fn is_overfull(&mut self) -> bool {
        if self.counted.elapsed() < MDNS_COUNT_INTERVAL {
            return false;
        }
        self.counted = Instant::now();
        let overfull = self.mdns.is_overfull().await;
        if overfull {
            tracing::warn!(
                "somebody floods this network with announcements: what was heard is forgotten"
            );
        }
        overfull
    }

    /// A node that was killed said no goodbye: without an answer it is announced no more.
    fn ask_for_the_silent(&mut self) {
        let shared = self.beacon.doors.shared.borrow();
        let Some(shared) = shared.as_ref() else { return };
        let now = self.beacon.doors.clock.uptime();
        for (key, node) in self.beacon.table().nodes() {
            let down = shared.liveness.of(key.id, now).is_some_and(|liveness| !liveness.up);
            if !down {
                self.asked.remove(&key.id);
            } else if self.asked.get(&key.id).is_none_or(|at| at.elapsed() >= MDNS_ASK_AGAIN) {
                // Once is not enough: it may have been back, and gone again, between two looks.
                self.asked.insert(key.id, Instant::now());
                for instance in node.instances(Source::Multicast) {
                    // If it cannot be asked now, its announcement ends by itself within two minutes.
                    let _ = self.mdns.verify(instance);
                }
            }
        }
    }

    fn say_whether_silent(&mut self) {
        let me = self.beacon.base.id;
        let others = self.beacon.group.read(|site| site.nodes.keys().any(|id| *id != me));
        let by_multicast = |node: &Candidate| node.sources().any(|of| of == Source::Multicast);
        let is_heard = |wanted: &dyn Fn(NodeId) -> bool| {
            self.beacon.table().nodes().any(|(key, node)| wanted(key.id) && by_multicast(node))
        };
        let heard = is_heard(&|id| id != me);
        if heard || !others {
            self.silence_told = false;
            self.heard_at = Instant::now();
            return;
        }
        if self.silence_told || self.heard_at.elapsed() < MULTICAST_SILENCE {
            return;
        }
        let own = is_heard(&|id| id == me);
        self.silence_told = true;
        tracing::warn!(
            within_s = MULTICAST_SILENCE.as_secs(),
            heard_itself = own,
            "multicast reaches no other node of the site: {}",
            if own {
                "a switch or access point may filter it (UDP port 5353); known addresses are used"
            } else {
                "not even this machine, does its firewall let UDP port 5353 pass? known addresses are used"
            }
        );
    }
}

impl Beacon {
    fn table(&self) -> MutexGuard<'_, Candidates> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an announcement, and has the node dialled where it says.
    fn see(&self, sighting: Sighting) {
        let (id, node) = (sighting.announcement.id, sighting.announcement.node.clone());
        let mut table = self.table();
        // Whoever floods this network with nodes that the site does not have leaves room for those that it has, and for one that has
        // just joined: this node may not know it yet.
        let is_stranger = !self.group.read(|site| site.nodes.contains_key(&id));
        if is_stranger && table.nodes().count() >= STRANGERS_MAX {
            return;
        }
        if !table.see(sighting, self.doors.clock.uptime()) || id == self.base.id {
            return;
        }
        let addresses = addresses_of(&table, NodeKey { ca: self.base.ca, id });
        tracing::debug!(%id, %node, ?addresses, "a node announces itself");
        self.found.send_if_modified(|found| {
            found.retain(|known, _| *known == id || table.nodes().any(|(key, _)| key.id == *known));
            found.insert(id, addresses.clone()).as_ref() != Some(&addresses)
        });
    }

    /// What to announce. A node that does not serve yet has weight 0: clients go to others first, and nodes must find it all
    /// the same. When all of them start at new addresses, none could serve before.
    pub(super) fn announcement(&self) -> Announcement {
        let serves = self.doors.shared.borrow().is_some();
        let known = self.group.read(|site| {
            let node = site.nodes.get(&self.base.id)?;
            Some((node.role, if node.draining || !serves { 0 } else { node.weight }))
        });
        let (role, weight) = known.unwrap_or((self.base.role, 0));
        let (open, most) = (self.doors.connections.len(), self.doors.connections_max.max(1));
        let load = u8::try_from((open * 100 / most).min(100)).unwrap_or(100);
        Announcement { role, weight, load, ..self.base.clone() }
    }
}

/// Those that only a link knows come last: hosts with nothing else are reached all the same.
fn addresses_of(table: &Candidates, key: NodeKey) -> Vec<String> {
    let node = table.nodes().find(|(known, _)| **known == key);
    let all = node.into_iter().flat_map(|(_, node)| node.addresses_in_turn());
    let (mut all, local): (Vec<_>, Vec<_>) = all.partition(is_global);
    all.extend(local);
    all.iter().take(DISCOVERED_ADDRESSES_MAX).map(ToString::to_string).collect()
}

/// Whether others should hear it: each announcement wakes every machine of the network.
fn is_news(told: &Announcement, now: &Announcement) -> bool {
    let same = Announcement { load: told.load, ..now.clone() } == *told;
    !same || told.load.abs_diff(now.load) >= LOAD_STEP
}

fn is_global(address: &SocketAddr) -> bool {
    !matches!(address.ip(), IpAddr::V6(v6) if v6.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_told_when_it_has_moved_far_and_all_else_at_once() {
        let told = Announcement { load: 20, ..Announcement::fixture("n", 1) };
        let at = |load, weight| Announcement { load, weight, ..told.clone() };
        assert!(!is_news(&told, &at(29, 100)) && !is_news(&told, &at(11, 100)));
        assert!(is_news(&told, &at(30, 100)) && is_news(&told, &at(10, 100)));
        assert!(is_news(&told, &at(20, 0)));
    }
}
