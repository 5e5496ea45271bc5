//! Announces this node while it serves, and hears where the other nodes of the site are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{doors::Doors, start::NodeIdentity};
use crate::{
    cluster::MetaGroup,
    discovery::{
        Announcement, CaPrefix, Candidates, Mdns, MdnsError, MdnsEvent, NodeKey, Reach, Source,
        mdns::{Browse, Troubles},
    },
    limits::{
        ANNOUNCE_INTERVAL, DISCOVERED_ADDRESSES_MAX, LOAD_STEP, MDNS_COUNT_INTERVAL, MDNS_RETRY,
        MULTICAST_SILENCE,
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
pub(super) async fn run(beacon: Beacon, reach: Reach) {
    let stopping = beacon.doors.stopping.clone();
    let mut told = false;
    loop {
        match Heard::begin(&beacon, reach) {
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
    table: Candidates,
    /// What was announced last.
    told: Option<Announcement>,
    /// Nodes that are down: they are asked once whether they are there.
    asked: BTreeSet<NodeId>,
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
        let now = Instant::now();
        Ok(Self {
            beacon,
            mdns,
            browse,
            troubles,
            table: Candidates::of_site(Some(beacon.base.ca)),
            told: None,
            asked: BTreeSet::new(),
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
        let now = self.beacon.doors.clock.uptime();
        match event {
            MdnsEvent::Seen(sighting) => {
                let (id, node) = (sighting.announcement.id, sighting.announcement.node.clone());
                if !self.table.see(*sighting, now) || id == self.beacon.base.id {
                    return;
                }
                let addresses = self.addresses_of(id);
                tracing::debug!(%id, %node, ?addresses, "a node announces itself");
                self.beacon.found.send_if_modified(|found| {
                    found.retain(|known, _| {
                        *known == id || self.table.nodes().any(|(key, _)| key.id == *known)
                    });
                    found.insert(id, addresses.clone()).as_ref() != Some(&addresses)
                });
            }
            MdnsEvent::Gone(instance) => {
                tracing::debug!(instance, "a node is announced no more");
                self.table.gone(Source::Multicast, &instance);
            }
            MdnsEvent::Strange(what) => tracing::debug!(what, "announcement not understood"),
        }
    }

    /// Those that only a link knows come last: hosts with nothing else are reached all the same.
    fn addresses_of(&self, id: NodeId) -> Vec<String> {
        let key = NodeKey { ca: self.beacon.base.ca, id };
        let node = self.table.nodes().find(|(known, _)| **known == key);
        let all = node.into_iter().flat_map(|(_, node)| node.addresses_in_turn());
        let (mut all, local): (Vec<_>, Vec<_>) = all.partition(is_global);
        all.extend(local);
        all.iter().take(DISCOVERED_ADDRESSES_MAX).map(ToString::to_string).collect()
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
        for (key, node) in self.table.nodes() {
            let down = shared.liveness.of(key.id, now).is_some_and(|liveness| !liveness.up);
            if !down {
                self.asked.remove(&key.id);
            } else if self.asked.insert(key.id) {
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
        let heard = self.table.nodes().any(|(key, _)| key.id != me);
        if heard || !others {
            self.silence_told = false;
            self.heard_at = Instant::now();
            return;
        }
        if self.silence_told || self.heard_at.elapsed() < MULTICAST_SILENCE {
            return;
        }
        self.silence_told = true;
        let own = self.table.nodes().any(|(key, _)| key.id == me);
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
    /// What to announce. A node that does not serve yet has weight 0: clients go to others first, and nodes must find it all
    /// the same. When all of them start at new addresses, none could serve before.
    fn announcement(&self) -> Announcement {
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
        let told = Announcement {
            site: "plant".parse().expect("name"),
            node: "n".parse().expect("name"),
            id: NodeId(1),
            role: NodeRole::Data,
            weight: 100,
            load: 20,
            version: "0".into(),
            ca: CaPrefix::of(&[0; 32]),
        };
        let at = |load, weight| Announcement { load, weight, ..told.clone() };
        assert!(!is_news(&told, &at(29, 100)) && !is_news(&told, &at(11, 100)));
        assert!(is_news(&told, &at(30, 100)) && is_news(&told, &at(10, 100)));
        assert!(is_news(&told, &at(20, 0)));
    }
}
