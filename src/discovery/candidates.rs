//! The table of nodes that somebody has named, merged by identity: which are dialled, and in which order.
//!
//! Invariant: its size is bounded whatever is announced, and what a dial has proven never makes room for what is only said.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::announcement::{Announcement, CaPrefix};
use crate::{
    limits::{
        CANDIDATES_MAX, CANDIDATES_PER_SOURCE_MAX, DIAL_FAILURE_FIRST, DIAL_FAILURE_LAST,
        DIAL_FAILURES_REMEMBERED, SIGHTING_ADDRESSES_MAX, SIGHTINGS_PER_CANDIDATE_MAX,
    },
    types::NodeId,
};

/// Who has named a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The node itself, on this network.
    Multicast,
    /// A zone.
    Dns,
}

/// A node, as its announcements call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeKey {
    /// Its authority.
    pub ca: CaPrefix,
    /// Its number.
    pub id: NodeId,
}

impl NodeKey {
    /// Who is announced.
    #[must_use]
    pub fn of(announcement: &Announcement) -> Self {
        Self { ca: announcement.ca, id: announcement.id }
    }
}

/// One announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Where it was heard.
    pub source: Source,
    /// The whole name of the instance: a later announcement under it replaces this one.
    pub instance: String,
    /// What it says.
    pub announcement: Announcement,
    /// Where the node listens.
    pub addresses: Vec<SocketAddr>,
    /// Those with less come first (RFC 2782).
    pub priority: u16,
    /// Until when it counts; none if its source says when it is over.
    pub until: Option<Duration>,
}

/// A node that was announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What is said of it, by source and instance.
    sightings: BTreeMap<(Source, String), Sighting>,
    /// A dial has reached it.
    proven: bool,
}

/// How often an address failed in a row, and until when others come before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failure {
    tries: u32,
    until: Duration,
}

/// All nodes that were announced. Times are those of one clock of the caller's.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    /// Only nodes of this authority are wanted.
    site: Option<CaPrefix>,
    nodes: BTreeMap<NodeKey, Candidate>,
    failed: BTreeMap<SocketAddr, Failure>,
}

impl Candidates {
    /// Of one site; of all without one.
    #[must_use]
    pub fn of_site(site: Option<CaPrefix>) -> Self {
        Self { site, ..Self::default() }
    }

    /// Takes an announcement. False if it changed nothing: it is of another site, says what was known, or there is no room.
    pub fn see(&mut self, mut sighting: Sighting, now: Duration) -> bool {
        let key = NodeKey::of(&sighting.announcement);
        if self.site.is_some_and(|site| site != key.ca) {
            return false;
        }
        self.expire(now);
        sighting.addresses.sort_unstable();
        sighting.addresses.dedup();
        // A spoofer that names thousands is cut here, in an order that does not depend on it.
        sighting.addresses.truncate(SIGHTING_ADDRESSES_MAX);
        let name = (sighting.source, sighting.instance.clone());
        let known = self.nodes.get(&key).and_then(|node| node.sightings.get(&name));
        if known == Some(&sighting) {
            return false;
        }
        if known.is_none() {
            // An instance that now names another node names the former one no more.
            self.gone(sighting.source, &sighting.instance);
            if !self.make_room(key, &sighting) {
                return false;
            }
        }
        let new = || Candidate { sightings: BTreeMap::new(), proven: false };
        self.nodes.entry(key).or_insert_with(new).sightings.insert(name, sighting);
        true
    }

    /// An instance is announced no more. False if it was not known.
    pub fn gone(&mut self, source: Source, instance: &str) -> bool {
        let name = (source, instance.to_owned());
        let mut any = false;
        self.nodes.retain(|_, node| {
            any |= node.sightings.remove(&name).is_some();
            !node.sightings.is_empty()
        });
        any
    }

    /// Forgets all that a source has said.
    pub fn forget(&mut self, source: Source) {
        self.nodes.retain(|_, node| {
            node.sightings.retain(|(of, _), _| *of != source);
            !node.sightings.is_empty()
        });
    }

    /// Drops what is over. False if nothing was.
    pub fn expire(&mut self, now: Duration) -> bool {
        let mut any = false;
        self.nodes.retain(|_, node| {
            let before = node.sightings.len();
            node.sightings.retain(|_, sighting| sighting.until.is_none_or(|until| until > now));
            any |= node.sightings.len() < before;
            !node.sightings.is_empty()
        });
        any
    }

    /// A dial of this address did not lead to a node of the site.
    pub fn failed(&mut self, address: SocketAddr, now: Duration) {
        let tries = self.failed.get(&address).map_or(0, |failure| failure.tries);
        let wait = DIAL_FAILURE_FIRST.saturating_mul(1 << tries.min(16)).min(DIAL_FAILURE_LAST);
        let failure = Failure { tries: tries.saturating_add(1), until: now + wait };
        self.failed.insert(address, failure);
        if self.failed.len() > DIAL_FAILURES_REMEMBERED {
            let first = self.failed.iter().min_by_key(|(_, failure)| failure.until);
            let first = first.map(|(address, _)| *address);
            first.map(|address| self.failed.remove(&address));
        }
    }

    /// A dial of this address reached a node of the site with this number.
    pub fn reached(&mut self, address: SocketAddr, id: NodeId) {
        self.failed.remove(&address);
        let of_it = |(key, node): (&NodeKey, &mut Candidate)| {
            if key.id == id && node.addresses().any(|known| known == address) {
                node.proven = true;
            }
        };
        self.nodes.iter_mut().for_each(of_it);
    }

    /// All nodes, by authority and number.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeKey, &Candidate)> {
        self.nodes.iter()
    }

    /// Every address once, in the order in which they should be dialled. The seed draws it.
    #[must_use]
    pub fn order(&self, now: Duration, seed: u64) -> Vec<SocketAddr> {
        let mut draw = Draw(seed);
        let mut nodes: Vec<(u16, f64, Vec<SocketAddr>)> = Vec::with_capacity(self.nodes.len());
        for node in self.nodes.values() {
            // Drawn without putting back: the least of -ln(u) / weight comes first (Efraimidis and Spirakis).
            let share = f64::from(node.announcement().share()).max(SHARE_MIN);
            let rank = -draw.next().ln() / share;
            nodes.push((node.priority(), rank, node.addresses().collect()));
        }
        nodes.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        for (nth, (_, _, addresses)) in nodes.iter_mut().enumerate() {
            alternate(addresses, nth % 2 == 0);
        }
        let longest = nodes.iter().map(|(_, _, addresses)| addresses.len()).max().unwrap_or(0);
        // The first address of each node, then the second of each.
        let layer = |nth: usize| nodes.iter().filter_map(move |(_, _, all)| all.get(nth).copied());
        let mut order: Vec<SocketAddr> = Vec::new();
        for address in (0..longest).flat_map(layer) {
            if !order.contains(&address) {
                order.push(address);
            }
        }
        // Those that failed come last, the one that may be tried again first before the others.
        order.sort_by_key(|address| self.failed_until(address, now).unwrap_or_default());
        order
    }

    /// Whether the address failed of late.
    #[must_use]
    pub fn is_in_disgrace(&self, address: &SocketAddr, now: Duration) -> bool {
        self.failed_until(address, now).is_some()
    }

    fn failed_until(&self, address: &SocketAddr, now: Duration) -> Option<Duration> {
        self.failed.get(address).map(|failure| failure.until).filter(|until| *until > now)
    }

    /// Whether there is room for one more announcement of this node; if need be another node goes. First one whose addresses
    /// others name as well: they are dialled all the same, and who answers there says who it is. So a thousand nodes at one
    /// address take the place of none.
    fn make_room(&mut self, key: NodeKey, sighting: &Sighting) -> bool {
        let source = sighting.source;
        if let Some(node) = self.nodes.get_mut(&key) {
            if node.sightings.len() >= SIGHTINGS_PER_CANDIDATE_MAX {
                let failed =
                    |s: &&Sighting| s.addresses.iter().all(|a| self.failed.contains_key(a));
                let name = node.sightings.values().find(failed);
                let name = name.map(|sighting| (sighting.source, sighting.instance.clone()));
                name.map(|name| node.sightings.remove(&name));
            }
            return node.sightings.len() < SIGHTINGS_PER_CANDIDATE_MAX;
        }
        let named = |node: &Candidate| node.sightings.keys().any(|(of, _)| *of == source);
        let by_source = self.nodes.values().filter(|node| named(node)).count();
        let crowded = by_source >= CANDIDATES_PER_SOURCE_MAX;
        if !crowded && self.nodes.len() < CANDIDATES_MAX {
            return true;
        }
        let tries = |node: &Candidate| -> u32 {
            let tries = node.addresses().map(|a| self.failed.get(&a).map_or(0, |f| f.tries));
            tries.min().unwrap_or(u32::MAX)
        };
        if self.are_named(&sighting.addresses, 1) {
            return false;
        }
        let worst = self
            .nodes
            .iter()
            .filter(|(_, node)| !node.proven && (!crowded || named(node)))
            .map(|(key, node)| {
                let all: Vec<SocketAddr> = node.addresses().collect();
                (self.are_named(&all, 2), tries(node), *key)
            })
            .max();
        match worst {
            Some((spare, tries, key)) if spare || tries > 0 => self.nodes.remove(&key).is_some(),
            _ => false,
        }
    }

    /// Whether each of these addresses is named by so many nodes of the table.
    fn are_named(&self, addresses: &[SocketAddr], by: usize) -> bool {
        let names = |node: &&Candidate, address| node.addresses().any(|known| known == address);
        addresses.iter().all(|address| {
            self.nodes.values().filter(|node| names(node, *address)).take(by).count() == by
        })
    }
}

impl Candidate {
    /// What is said of it. Where sources disagree, the one that is nearer to the node counts.
    ///
    /// # Panics
    /// Never: a candidate without a sighting is none.
    #[must_use]
    pub fn announcement(&self) -> &Announcement {
        match self.sightings.values().next() {
            Some(sighting) => &sighting.announcement,
            None => unreachable!("a candidate without a sighting is dropped at once"),
        }
    }

    /// All its addresses, as all sources say them; one may come twice.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.sightings.values().flat_map(|sighting| sighting.addresses.iter().copied())
    }

    /// The same, but what one announcement says does not crowd out what another says.
    pub fn addresses_in_turn(&self) -> impl Iterator<Item = SocketAddr> {
        (0..SIGHTING_ADDRESSES_MAX).flat_map(|nth| {
            self.sightings.values().filter_map(move |sighting| sighting.addresses.get(nth).copied())
        })
    }

    /// Who has named it.
    pub fn sources(&self) -> impl Iterator<Item = Source> {
        self.sightings.keys().map(|(source, _)| *source)
    }

    /// Under which names a source announces it.
    pub fn instances(&self, source: Source) -> impl Iterator<Item = &str> {
        let of_it = self.sightings.keys().filter(move |(of, _)| *of == source);
        of_it.map(|(_, instance)| instance.as_str())
    }

    fn priority(&self) -> u16 {
        self.sightings.values().map(|sighting| sighting.priority).min().unwrap_or_default()
    }
}

/// One of each family in turn. An address that only this link knows comes behind those of its family.
fn alternate(addresses: &mut Vec<SocketAddr>, v6_first: bool) {
    addresses.sort_unstable();
    addresses.dedup();
    addresses.sort_by_key(is_link_local);
    let (mut v6, mut v4): (Vec<_>, Vec<_>) =
        addresses.drain(..).partition(|address| address.is_ipv6());
    if !v6_first {
        std::mem::swap(&mut v6, &mut v4);
    }
    let (mut first, mut second) = (v6.into_iter(), v4.into_iter());
    loop {
        let (one, other) = (first.next(), second.next());
        if one.is_none() && other.is_none() {
            return;
        }
        addresses.extend(one.into_iter().chain(other));
    }
}

fn is_link_local(address: &SocketAddr) -> bool {
    match address {
        SocketAddr::V4(v4) => v4.ip().is_link_local(),
        SocketAddr::V6(v6) => v6.ip().is_unicast_link_local(),
    }
}

/// Numbers in 0..1 out of a seed (SplitMix64).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let high = u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or(u32::MAX);
        // Never 0, whose logarithm has no end.
        (f64::from(high) + 1.0) / (f64::from(u32::MAX) + 2.0)
    }
}

/// Share of a node that should be given nothing: it comes after all others, and still before none.
const SHARE_MIN: f64 = 1e-3;

#[cfg(test)]
mod tests;
