//! How a node gets a connection to another: all its addresses, a little apart, until one has proven to be that node.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use quinn::{ConnectError, Connection, ConnectionError, Endpoint, WriteError};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Me,
    frame::{self, FrameError},
    hello::{LinkKind, PeerHello, PeerWelcome},
};
use crate::{
    limits::{
        CONTROL_FRAME_LEN_MAX, PEER_ACKNOWLEDGE_AFTER, PEER_ADDRESSES_MAX, PEER_DIAL_TIMEOUT,
        PEER_IDLE_TIMEOUT, PEER_KEEP_ALIVE,
    },
    net::{
        Address, ConnectionLimits, Credentials, Identity, Who,
        authority::NODE_SERVER_NAME,
        endpoint::{self, EndpointError},
        identity::BadIdentity,
        tls::{self, ALPN_PEER, TlsError},
    },
    types::{Incarnation, NodeId, NodeName},
    wire::{CloseCode, cbor},
};

/// What dialling takes.
#[derive(Clone, Debug)]
pub struct DialConfig {
    /// Who this node is.
    pub me: Me,
    /// TLS and bounds of the connections.
    pub config: quinn::ClientConfig,
}

/// Why there is no [`DialConfig`].
#[derive(Debug, thiserror::Error)]
pub enum BadDialConfig {
    /// The credentials.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// QUIC does not take them.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

impl DialConfig {
    /// Dials as the node that these credentials prove.
    ///
    /// # Errors
    /// If they are no pair, or cannot carry QUIC.
    pub fn new(me: Me, credentials: &Credentials) -> Result<Self, BadDialConfig> {
        let limits = ConnectionLimits {
            // The other side opens nothing.
            streams_max: 0,
            idle_timeout: PEER_IDLE_TIMEOUT,
            keep_alive: Some(PEER_KEEP_ALIVE),
            datagrams: true,
            acknowledge_after: Some(PEER_ACKNOWLEDGE_AFTER),
            ..ConnectionLimits::default()
        };
        let tls = tls::client_config(credentials, &[ALPN_PEER])?;
        Ok(Self { me, config: endpoint::client_config(tls.into(), &limits)? })
    }
}

/// Where a peer is to be found, and what it must prove to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// Its name, as in its certificate.
    pub name: NodeName,
    /// `host:port` each.
    pub addresses: Vec<String>,
}

/// Why a dial did not lead to a peer.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("no address of it is known")]
    NoAddress,
    #[error("cannot resolve '{address}': {why}")]
    Resolve { address: String, why: String },
    #[error("no answer within {PEER_DIAL_TIMEOUT:?}")]
    Timeout,
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("{0}")]
    Identity(#[from] BadIdentity),
    #[error("{address} is {found}, not {wanted}: correct the addresses of the nodes")]
    OtherNode { address: SocketAddr, found: String, wanted: String },
    #[error("it speaks version {0} of the protocol between nodes, which this node does not know")]
    Version(u16),
    #[error("its welcome is unreadable: {0}")]
    Welcome(String),
}

impl DialError {
    /// Only a node that has proven to be of this site comes so far.
    fn says_removed(&self) -> bool {
        matches!(self, Self::Connection(ConnectionError::ApplicationClosed(closed))
            if closed.error_code == CloseCode::Removed.code().into())
    }
}

impl From<FrameError> for DialError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Read(quinn::ReadError::ConnectionLost(error)) => Self::Connection(error),
            error => Self::Welcome(error.to_string()),
        }
    }
}

impl From<WriteError> for DialError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => Self::Connection(error),
            error => Self::Welcome(error.to_string()),
        }
    }
}

/// A connection to a peer that has proven itself.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) connection: Connection,
    /// The address that was dialled, as it was given.
    pub(super) address: String,
}

#[derive(Debug)]
pub(super) struct Dialler {
    endpoint: Endpoint,
    me: Me,
    config: Mutex<quinn::ClientConfig>,
    incarnation: AtomicU64,
    removed: watch::Sender<bool>,
}

impl Dialler {
    pub(super) fn new(endpoint: Endpoint, DialConfig { me, config }: DialConfig) -> Self {
        let (removed, _) = watch::channel(false);
        let incarnation = AtomicU64::new(0);
        Self { endpoint, me, config: Mutex::new(config), incarnation, removed }
    }

    pub(super) fn set_config(&self, config: quinn::ClientConfig) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// Looks at how a connection has ended: a node may say only then that the site has removed this one.
    pub(super) fn ended(&self, reason: &ConnectionError) {
        let removed = CloseCode::Removed.code().into();
        if matches!(reason, ConnectionError::ApplicationClosed(closed) if closed.error_code == removed)
        {
            self.removed.send_replace(true);
        }
    }

    /// Becomes true once a node of the site has said that it has removed this one.
    pub(super) fn removed(&self) -> watch::Receiver<bool> {
        self.removed.subscribe()
    }

    pub(super) fn set_incarnation(&self, incarnation: Incarnation) {
        self.incarnation.store(incarnation.0, Ordering::Relaxed);
    }

    /// Dials all addresses of a peer, the preferred one first; the first that proves itself wins.
    pub(super) async fn dial(
        &self,
        node: NodeId,
        peer: &PeerAddress,
        kind: LinkKind,
        prefer: Option<&str>,
    ) -> Result<Dialled, DialError> {
        let round = async {
            let (candidates, mut failed) = resolve_all(&peer.addresses, prefer).await;
            let mut attempts = JoinSet::new();
            let start = Instant::now();
            for ((address, socket), nth) in candidates.into_iter().zip(0u32..) {
                let greet = self.greet(node, peer.name.clone(), kind, socket);
                attempts.spawn(async move {
                    sleep_until(start + nth * STAGGER).await;
                    let met = greet.await.map_err(|error| (nth, error));
                    met.map(|connection| Dialled { connection, address })
                });
            }
            let mut first = u32::MAX;
            while let Some(attempt) = attempts.join_next().await {
                match attempt {
                    Ok(Ok(dialled)) => return Ok(dialled),
                    // Of several reasons always the same is said.
                    Ok(Err((nth, error))) if nth < first => (first, failed) = (nth, error),
                    Ok(Err(_)) => {}
                    Err(panicked) => failed = DialError::Welcome(panicked.to_string()),
                }
            }
            Err(failed)
        };
        let dialled = timeout(PEER_DIAL_TIMEOUT, round).await.unwrap_or(Err(DialError::Timeout));
        if dialled.as_ref().is_err_and(DialError::says_removed) {
            self.removed.send_replace(true);
        }
        dialled
    }

    fn greet(
        &self,
        node: NodeId,
        name: NodeName,
        kind: LinkKind,
        socket: SocketAddr,
    ) -> impl Future<Output = Result<Connection, DialError>> + Send + 'static {
        let hello = PeerHello {
            version_min: self.me.speaks.min,
            version_max: self.me.speaks.max,
            site: self.me.site.clone(),
            node: self.me.node,
            name: self.me.name.clone(),
            incarnation: Incarnation(self.incarnation.load(Ordering::Relaxed)),
            kind,
            software: crate::SOFTWARE.to_owned(),
            features: vec![],
        };
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let endpoint = self.endpoint.clone();
        async move {
            let connection = endpoint.connect_with(config, socket, NODE_SERVER_NAME)?.await?;
            let met = meet(&connection, &hello, node, name).await;
            if met.is_err() {
                close(&connection, CloseCode::Done, "");
            }
            met.map(|()| connection)
        }
    }
}

/// Asks the other side who it is, and believes what its certificate says.
async fn meet(
    connection: &Connection,
    hello: &PeerHello,
    node: NodeId,
    name: NodeName,
) -> Result<(), DialError> {
    let other = |found: String, wanted: String| DialError::OtherNode {
        address: connection.remote_address(),
        found,
        wanted,
    };
    let wanted = Identity { site: hello.site.clone(), who: Who::Node(name) };
    match Identity::of_peer(connection)? {
        Some(found) if found == wanted => {}
        found => {
            let found = found.map_or_else(|| "nobody".to_owned(), |found| found.to_uri());
            return Err(other(found, wanted.to_uri()));
        }
    }
    let (mut output, mut input) = connection.open_bi().await?;
    let mut bytes = BytesMut::new();
    cbor::put(hello, &mut bytes);
    frame::write(&mut output, bytes.freeze()).await?;
    // An error says that the stream is over already; reading says why.
    let _ = output.finish();
    let answer = frame::read(&mut input, CONTROL_FRAME_LEN_MAX).await?;
    let answer = answer.ok_or_else(|| DialError::Welcome("it is missing".to_owned()))?;
    let welcome: PeerWelcome =
        cbor::get(&answer).map_err(|error| DialError::Welcome(error.to_string()))?;
    if !hello.speaks().contains(welcome.version) {
        return Err(DialError::Version(welcome.version));
    }
    if welcome.node != node {
        return Err(other(format!("node {}", welcome.node), format!("node {node}")));
    }
    Ok(())
}

/// The sockets of all addresses, the preferred one's first, and why there are none. A name that nobody answers for takes no
/// time from the others.
async fn resolve_all(
    addresses: &[String],
    prefer: Option<&str>,
) -> (Vec<(String, SocketAddr)>, DialError) {
    let mut addresses: Vec<_> = addresses.iter().take(PEER_ADDRESSES_MAX).cloned().collect();
    addresses.sort_by_key(|address| Some(address.as_str()) != prefer);
    let mut lookups = JoinSet::new();
    for (nth, address) in addresses.into_iter().enumerate() {
        lookups.spawn(async move {
            let found = timeout(RESOLVE_MAX, resolve(&address)).await.unwrap_or_else(|_| {
                Err(DialError::Resolve { address: address.clone(), why: "no answer".to_owned() })
            });
            (nth, address, found)
        });
    }
    let (mut candidates, mut failed) = (Vec::new(), DialError::NoAddress);
    while let Some(lookup) = lookups.join_next().await {
        match lookup {
            Ok((nth, address, Ok(found))) => {
                candidates.extend(found.into_iter().map(|socket| (nth, address.clone(), socket)));
            }
            Ok((_, _, Err(error))) => failed = error,
            Err(panicked) => failed = DialError::Welcome(panicked.to_string()),
        }
    }
    candidates.sort_by_key(|(nth, _, _)| *nth);
    candidates.truncate(PEER_ADDRESSES_MAX);
    (candidates.into_iter().map(|(_, address, socket)| (address, socket)).collect(), failed)
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, DialError> {
    // With the number of a link, too: `[fe80::1%2]:7440`.
    if let Ok(socket) = address.parse() {
        return Ok(vec![socket]);
    }
    let bad = |why: String| DialError::Resolve { address: address.to_owned(), why };
    let parsed: Address = address.parse().map_err(|error| bad(format!("{error}")))?;
    if let Ok(ip) = parsed.host().parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, parsed.port())]);
    }
    let found = tokio::net::lookup_host((parsed.host(), parsed.port())).await;
    Ok(found.map_err(|error| bad(error.to_string()))?.collect())
}

/// Closes a connection with a code and a reason for people.
pub(super) fn close(connection: &Connection, code: CloseCode, reason: &str) {
    connection.close(code.code().into(), reason.as_bytes());
}

/// Between the dials of two addresses: on a healthy network the first answers within this time.
const STAGGER: Duration = Duration::from_millis(100);
/// A name server that takes longer is as good as none.
const RESOLVE_MAX: Duration = Duration::from_millis(500);
