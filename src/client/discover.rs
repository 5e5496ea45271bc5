//! A look round for everybody who wants to see what is there.

use std::{net::SocketAddr, time::Duration};

use serde::Serialize;
use tokio::{task::JoinSet, time::timeout};

use super::{
    Profile,
    dial::{Manner, greet, heard_at},
    error::ConnectError,
    profile_endpoint,
};
use crate::{
    discovery::{Announcement, CaPrefix, Candidates, GatherError, Until, gather},
    limits::DISCOVER_PROBE,
    net::authority::Fingerprint,
    types::{NodeId, NodeRole},
    wire::CloseCode,
};

/// A node that announces itself. What it says is what it says; see [`Trust`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FoundNode {
    /// Its site, in its own words.
    pub site: String,
    /// Its name, in its own words.
    pub node: String,
    /// Its number.
    pub id: NodeId,
    /// What it is for.
    pub role: NodeRole,
    /// Its share of clients, beside the others.
    pub weight: u32,
    /// How busy it is, 0 to 100.
    pub load: u8,
    /// Its release.
    pub version: String,
    /// How its authority's fingerprint begins.
    pub ca: String,
    /// Where it listens, the one that answered first.
    pub addresses: Vec<SocketAddr>,
    /// Microseconds for a question and its answer, if it answered.
    pub round_trip_us: Option<u64>,
    /// Whether it is who it says.
    pub trust: Trust,
}

/// What a dial has shown of a node that announces itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// It has proven to be this node, by the authority of the profile.
    Trusted,
    /// It names the authority of the profile, and did not answer.
    Silent,
    /// It names the authority of the profile, and who answers is not that node.
    False,
    /// It is of another site, or there is no profile to judge it by.
    Unknown,
}

impl Trust {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::Silent => "silent",
            Self::False => "false",
            Self::Unknown => "unknown",
        }
    }
}

/// Why nobody can be looked for.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// Neither multicast nor a domain is to be had.
    #[error(transparent)]
    Gather(#[from] GatherError),
    /// The profile cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// Listens for a time to what nodes announce on the networks of this machine, asks the domain that is given or that the
/// profile names, and dials those of the profile's site to see
/// whether they are what they say.
///
/// # Errors
/// [`DiscoverError`]. To find nobody is none.
pub async fn discover(
    profile: Option<&Profile>,
    domain: Option<&str>,
    time: Duration,
) -> Result<Vec<FoundNode>, DiscoverError> {
    let endpoint = profile.map(profile_endpoint).transpose()?;
    let own = profile.and_then(|profile| Fingerprint::of_pem(&profile.ca));
    let own = own.map(|ca| CaPrefix::of(ca.as_bytes()));
    let domain = domain.or_else(|| profile?.domain.as_deref());
    let table = gather(None, domain, Until::Time(time)).await?;
    let mut found: Vec<FoundNode> =
        table.nodes().map(|(_, node)| of(node.announcement())).collect();
    let mut probes = JoinSet::new();
    for ((nth, node), (key, _)) in found.iter_mut().enumerate().zip(table.nodes()) {
        node.addresses = addresses(&table, key.id, key.ca);
        if let Some(endpoint) = endpoint.as_ref().filter(|_| own == Some(key.ca)) {
            node.trust = Trust::Silent;
            let (endpoint, all, id) = (endpoint.clone(), node.addresses.clone(), node.id);
            probes.spawn(async move { (nth, probe(&endpoint, &all, id).await) });
        }
    }
    while let Some(probed) = probes.join_next().await {
        let Ok((nth, (trust, first))) = probed else { continue };
        found[nth].trust = trust;
        if let Some((address, round_trip)) = first {
            found[nth].round_trip_us =
                Some(u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX));
            found[nth].addresses.sort_by_key(|other| *other != address);
        }
    }
    Ok(found)
}

fn of(said: &Announcement) -> FoundNode {
    FoundNode {
        site: said.site.to_string(),
        node: said.node.to_string(),
        id: said.id,
        role: said.role,
        weight: said.weight,
        load: said.load,
        version: said.version.clone(),
        ca: said.ca.to_string(),
        addresses: Vec::new(),
        round_trip_us: None,
        trust: Trust::Unknown,
    }
}

fn addresses(table: &Candidates, id: NodeId, ca: CaPrefix) -> Vec<SocketAddr> {
    let node = table.nodes().find(|(key, _)| key.id == id && key.ca == ca);
    let mut all: Vec<SocketAddr> =
        node.into_iter().flat_map(|(_, node)| node.addresses()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Dials all addresses at once; the first that proves to be the node says how far it is.
async fn probe(
    endpoint: &quinn::Endpoint,
    addresses: &[SocketAddr],
    id: NodeId,
) -> (Trust, Option<(SocketAddr, Duration)>) {
    let mut dials = JoinSet::new();
    for socket in addresses.iter().copied() {
        let Some((address, socket)) = heard_at(socket) else { continue };
        let endpoint = endpoint.clone();
        dials.spawn(async move {
            (
                socket,
                timeout(DISCOVER_PROBE, greet(&endpoint, address, socket, &Manner::default()))
                    .await,
            )
        });
    }
    let mut trust = Trust::Silent;
    while let Some(dialled) = dials.join_next().await {
        match dialled {
            Ok((socket, Ok(Ok(session)))) => {
                let round_trip = session.connection.rtt();
                session.connection.close(CloseCode::Done.code().into(), b"");
                if session.welcome.node_id == id {
                    return (Trust::Trusted, Some((socket, round_trip)));
                }
                trust = Trust::False;
            }
            Ok((_, Ok(Err(Some(ConnectError::NotThisSite { .. }))))) => trust = Trust::False,
            Ok(_) | Err(_) => {}
        }
    }
    (trust, None)
}
