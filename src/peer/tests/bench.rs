//! A site, its nodes, and what they see of each other.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use futures_core::future::BoxFuture;
use quinn::{Connection, Endpoint};
use tokio::{sync::watch, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    net::{
        ConnectionLimits, Credentials, SiteAuthority,
        authority::{IssuedCertificate, Validity},
        endpoint::{self, ResetSecret},
        tls::{self, ALPN_CLIENT, ALPN_PEER, ClientAuth},
    },
    replication::{Append, Body, Envelope, LogEnd, LogEntry, ShardDigest},
    types::{Boot, Epoch, Incarnation, NodeName, PartitionId, ShardId},
    wire::{
        Entry,
        entry::{EntryKind, Place},
    },
};

pub(super) const EPOCH: Epoch = Epoch(5);
pub(super) const SHARDS: u16 = 4;
/// A call that is answered with more than an answer may be.
pub(super) const ANSWER_TOO_MUCH: &[u8] = b"too much";
/// A call that is not answered.
pub(super) const ANSWER_NEVER: &[u8] = b"never";

/// Waits for something to become true.
#[track_caller]
pub(super) fn until(mut holds: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        while !holds() {
            assert!(Instant::now() < deadline, "not within 20 s: {caller}");
            ticks.tick().await;
        }
    }
}

pub(super) struct Site {
    pub(super) authority: SiteAuthority,
}

pub(super) fn validity() -> Validity {
    Validity::as_long_as_the_authority(SystemTime::now())
}

impl Site {
    pub(super) fn new() -> Self {
        let authority = SiteAuthority::create("plant".parse().expect("name"), SystemTime::now());
        Self { authority: authority.expect("made") }
    }

    pub(super) fn trusting(&self, own: Option<IssuedCertificate>) -> Credentials {
        Credentials { ca_pem: self.authority.certificate_pem().into(), own }
    }

    pub(super) fn credentials(&self, name: &str) -> Credentials {
        let name = name.parse().expect("name");
        self.trusting(Some(self.authority.issue_node(&name, &[], validity()).expect("issued")))
    }

    /// A node called `n-ID` that knows no other.
    pub(super) async fn node(&self, id: u64) -> Node {
        Node::start(self, id)
    }
}

pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) name: NodeName,
    pub(super) address: SocketAddr,
    pub(super) links: Links,
    pub(super) seen: Arc<Seen>,
    pub(super) log: Arc<MemoryLog>,
    serving: Arc<AtomicUsize>,
    stopping: watch::Sender<CancellationToken>,
    _accept: JoinSet<()>,
}

impl Node {
    fn start(site: &Site, id: u64) -> Self {
        let name = format!("n-{id}");
        let credentials = site.credentials(&name);
        let alpn: &[&[u8]] = &[ALPN_CLIENT, ALPN_PEER];
        let tls = tls::server_config(&credentials, ClientAuth::Optional, alpn, SystemTime::now());
        let limits = ConnectionLimits { datagrams: true, ..ConnectionLimits::default() };
        let secret = ResetSecret::derive(name.as_bytes());
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoint = endpoint::server(address, Arc::new(tls.expect("sound")), &limits, &secret)
            .expect("bound");
        let me = Me {
            speaks: Versions::SPOKEN,
            site: "plant".parse().expect("name"),
            node: NodeId(id),
            name: name.parse().expect("name"),
            shards: SHARDS,
        };
        let seen = Arc::new(Seen::default());
        let log = Arc::new(MemoryLog::new());
        let dial = DialConfig::new(me.clone(), &credentials).expect("sound");
        let source: Arc<dyn LogSource> = Arc::<MemoryLog>::clone(&log);
        let links = Links::new(endpoint.clone(), dial, source);
        links.set_incarnation(Incarnation(id + 10));
        let stopping = watch::Sender::new(CancellationToken::new());
        let serving = Arc::new(AtomicUsize::new(0));
        let mut accept = JoinSet::new();
        let address = endpoint.local_addr().expect("bound");
        accept.spawn(accept_all(
            endpoint,
            me.clone(),
            Arc::clone(&seen),
            stopping.subscribe(),
            Arc::clone(&serving),
        ));
        let (id, name) = (me.node, me.name);
        Self { id, name, address, links, seen, log, serving, stopping, _accept: accept }
    }

    pub(super) fn peer_address(&self) -> PeerAddress {
        PeerAddress { name: self.name.clone(), addresses: vec![self.address.to_string()] }
    }

    /// Makes all of them peers of each other, and waits until they are.
    pub(super) async fn connect(nodes: &[&Self]) {
        for node in nodes {
            let others = nodes.iter().filter(|other| other.id != node.id);
            others.clone().for_each(|other| node.seen.know(other));
            node.links.set_peers(others.map(|other| (other.id, other.peer_address())).collect());
        }
        let connected =
            |node: &&Self| node.links.status().iter().all(|s| s.connected_for.is_some());
        until(|| nodes.iter().all(connected)).await;
    }

    /// Closes what others have dialled, and goes on closing it.
    pub(super) fn stop_serving(&self) {
        self.stopping.borrow().cancel();
    }

    pub(super) fn serve_again(&self) {
        self.stopping.send_replace(CancellationToken::new());
    }

    /// Connections of other nodes that are served.
    pub(super) fn serving(&self) -> usize {
        self.serving.load(Ordering::SeqCst)
    }
}

async fn accept_all(
    endpoint: Endpoint,
    me: Me,
    seen: Arc<Seen>,
    stopping: watch::Receiver<CancellationToken>,
    serving: Arc<AtomicUsize>,
) {
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        let (me, seen) = (me.clone(), Arc::clone(&seen));
        let (stopping, serving) = (stopping.borrow().clone(), Arc::clone(&serving));
        connections.spawn(async move {
            let Ok(connection) = incoming.await else { return };
            assert_eq!(tls::alpn_of(&connection).as_deref(), Some(ALPN_PEER));
            serving.fetch_add(1, Ordering::SeqCst);
            serve(connection, me, seen, stopping).await;
            serving.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

pub(super) fn boot(node: NodeId) -> Boot {
    Boot { node, incarnation: Incarnation(node.0 + 10) }
}

pub(super) fn durable(from: &Node, to: &Node, shard: ShardId, lsn: u64) -> Envelope<Entry> {
    let body = Body::Durable(Lsn(lsn));
    Envelope { shard, epoch: EPOCH, from: boot(from.id), to: boot(to.id), body }
}

pub(super) fn beat(from: &Node, shards: u16) -> Heartbeat {
    let digest = |n| ShardDigest { shard: ShardId(n), end: LogEnd::default() };
    let digests = (0..shards).map(digest).collect();
    Heartbeat { from: boot(from.id), sent: 1, digests, ..Heartbeat::default() }
}

/// What a node has been told.
pub(super) struct Seen {
    known: Mutex<BTreeMap<NodeId, NodeName>>,
    envelopes: Mutex<Vec<Envelope<Entry>>>,
    beats: Mutex<Vec<Heartbeat>>,
    /// Messages of this shard are not taken.
    pub(super) stalled: watch::Sender<Option<ShardId>>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            envelopes: Mutex::default(),
            beats: Mutex::default(),
            stalled: watch::Sender::new(None),
        }
    }
}

impl Seen {
    pub(super) fn know(&self, node: &Node) {
        self.known.lock().expect("whole").insert(node.id, node.name.clone());
    }

    pub(super) fn envelopes(&self, shard: ShardId) -> Vec<Envelope<Entry>> {
        let all = self.envelopes.lock().expect("whole");
        all.iter().filter(|envelope| envelope.shard == shard).cloned().collect()
    }

    pub(super) fn durables(&self, shard: ShardId) -> Vec<u64> {
        let lsn = |envelope: Envelope<Entry>| match envelope.body {
            Body::Durable(lsn) => lsn.0,
            other => panic!("{other:?}"),
        };
        self.envelopes(shard).into_iter().map(lsn).collect()
    }

    pub(super) fn appends(&self, shard: ShardId) -> Vec<Append<Entry>> {
        let append = |envelope: Envelope<Entry>| match envelope.body {
            Body::Append(append) => append,
            other => panic!("{other:?}"),
        };
        self.envelopes(shard).into_iter().map(append).collect()
    }

    pub(super) fn beats(&self, from: NodeId) -> Vec<Heartbeat> {
        let all = self.beats.lock().expect("whole");
        all.iter().filter(|beat| beat.from.node == from).cloned().collect()
    }
}

impl PeerSink for Seen {
    fn knows(&self, node: NodeId, name: &NodeName) -> bool {
        self.known.lock().expect("whole").get(&node) == Some(name)
    }

    fn envelope(&self, from: NodeId, envelope: Envelope<Entry>) -> BoxFuture<'_, ()> {
        assert_eq!(envelope.from.node, from);
        let mut stalled = self.stalled.subscribe();
        Box::pin(async move {
            let _ = stalled.wait_for(|stalled| *stalled != Some(envelope.shard)).await;
            self.envelopes.lock().expect("whole").push(envelope);
        })
    }

    fn heartbeat(&self, from: NodeId, beat: Heartbeat) {
        assert_eq!(beat.from.node, from);
        self.beats.lock().expect("whole").push(beat);
    }

    fn call(&self, from: NodeId, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(async move {
            if request == ANSWER_NEVER {
                std::future::pending::<()>().await;
            }
            if request == ANSWER_TOO_MUCH {
                return vec![0; crate::limits::CALL_LEN_MAX + 1].into();
            }
            let mut answer = BytesMut::from(&request[..]);
            answer.extend_from_slice(format!(" asked by {from}").as_bytes());
            answer.freeze()
        })
    }
}

/// The log of shard 2 in memory: as long as several messages.
pub(super) struct MemoryLog {
    pub(super) entries: Vec<Entry>,
}

impl MemoryLog {
    fn new() -> Self {
        let mut prev_chain = 0;
        let make = |lsn| {
            let place = Place { shard: ShardId(2), lsn: Lsn(lsn), epoch: EPOCH, prev_chain };
            let body = vec![7; 10_000].into();
            let partition = PartitionId::default();
            let entry = Entry::seal(place, EntryKind::PartitionCreate, partition, body);
            prev_chain = entry.header.chain;
            entry
        };
        Self { entries: (0..100).map(make).collect() }
    }
}

impl LogSource for MemoryLog {
    fn entries(
        &self,
        shard: ShardId,
        from: Lsn,
        until: Lsn,
        bytes_max: usize,
    ) -> BoxFuture<'_, Option<(LogEnd, Vec<Entry>)>> {
        assert_eq!(shard, ShardId(2));
        let at = |lsn: Lsn| usize::try_from(lsn.0).expect("small");
        let prev =
            at(from).checked_sub(1).map_or_else(LogEnd::default, |at| self.entries[at].end());
        let mut len = 0;
        let fits = |entry: &&Entry| {
            len += entry.header.entry_len();
            len <= bytes_max
        };
        let entries = self.entries[at(from)..at(until)].iter().take_while(fits).cloned().collect();
        Box::pin(async move { Some((prev, entries)) })
    }
}

/// Dials as whoever the credentials say, without a word.
pub(super) async fn dial(
    credentials: &Credentials,
    address: SocketAddr,
) -> Result<(Endpoint, Connection), quinn::ConnectionError> {
    let tls = tls::client_config(credentials, &[ALPN_PEER]).expect("sound");
    let limits = ConnectionLimits { datagrams: true, ..ConnectionLimits::default() };
    let endpoint = endpoint::client(Arc::new(tls), &limits).expect("bound");
    let connecting = endpoint.connect(address, crate::net::authority::NODE_SERVER_NAME);
    let connection = connecting.expect("dialled").await?;
    Ok((endpoint, connection))
}
