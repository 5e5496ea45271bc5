//! What comes from other nodes, and where links read what they send.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use super::{discovery::Found, engine::Engine, slot::log_end_at};
use crate::{
    cluster::{BoxFuture, MetaGroup, MetaTransport, NodeRecord, Unreachable},
    limits::HEARTBEATS_WAITING_MAX,
    peer::{CallError, Heartbeat, Links, LogSource, PeerAddress, PeerSink},
    replication::{Envelope, LogEnd},
    types::{Lsn, NodeId, NodeName, ShardId},
    wire::{Entry, NodeInfo},
};

/// The parts of this node that other nodes talk to. They come one after the other while the node starts; what is asked of
/// a part that is not there yet is not answered, and is asked again. They are held weakly: they hold the links, which hold
/// this.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) group: OnceLock<Weak<MetaGroup>>,
    pub(super) engine: OnceLock<Weak<Engine>>,
    heartbeats: mpsc::Sender<Heartbeat>,
    /// Where each node has come from last.
    seen: Mutex<BTreeMap<NodeId, SocketAddr>>,
    /// Nodes that have come since that was looked at.
    awake: Mutex<BTreeSet<NodeId>>,
    /// A node has come.
    pub(super) came: Notify,
}

impl Peers {
    /// The parts, and where heartbeats come out.
    pub(super) fn new() -> (Arc<Self>, mpsc::Receiver<Heartbeat>) {
        let (heartbeats, heard) = mpsc::channel(HEARTBEATS_WAITING_MAX);
        let peers = Self {
            group: OnceLock::new(),
            engine: OnceLock::new(),
            heartbeats,
            seen: Mutex::default(),
            awake: Mutex::default(),
            came: Notify::new(),
        };
        (Arc::new(peers), heard)
    }

    /// Where nodes have come from: they dial from the socket on which they listen.
    pub(super) fn seen_at(&self) -> Vec<(NodeId, String)> {
        self.seen().iter().map(|(node, address)| (*node, address.to_string())).collect()
    }

    /// Nodes that have come since the last call.
    pub(super) fn take_awake(&self) -> BTreeSet<NodeId> {
        std::mem::take(&mut *self.awake())
    }

    fn awake(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.awake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<NodeId, SocketAddr>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn group(&self) -> Option<Arc<MetaGroup>> {
        self.group.get()?.upgrade()
    }

    fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.get()?.upgrade()
    }
}

impl PeerSink for Peers {
    fn came(&self, node: NodeId, from: SocketAddr) {
        // Bounded by the nodes that the site knows.
        self.seen().insert(node, from);
        self.awake().insert(node);
        self.came.notify_one();
    }

    fn knows(&self, node: NodeId, name: &NodeName) -> bool {
        let Some(group) = self.group() else { return false };
        group.read(|site| match site.nodes.get(&node) {
            Some(record) => record.name == *name,
            // A node that has just joined knows nobody: what its site's authority has signed is enough.
            None => site.nodes.is_empty(),
        })
    }

    fn has_removed(&self, node: NodeId) -> bool {
        self.group().is_some_and(|group| group.read(|site| site.removed.contains_key(&node)))
    }

    fn envelope(&self, _from: NodeId, envelope: Envelope<Entry>) -> BoxFuture<'_, ()> {
        if let Some(engine) = self.engine() {
            engine.message(envelope);
        }
        Box::pin(std::future::ready(()))
    }

    fn heartbeat(&self, _from: NodeId, beat: Heartbeat) {
        // One that is lost is followed by the next.
        let _ = self.heartbeats.try_send(beat);
    }

    fn call(&self, from: NodeId, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(async move {
            match self.group() {
                Some(group) => group.answer(from, request).await,
                // Not ready: the caller takes an empty answer for none.
                None => Bytes::new(),
            }
        })
    }
}

impl LogSource for Peers {
    fn entries(
        &self,
        shard: ShardId,
        from: Lsn,
        until: Lsn,
        bytes_max: usize,
    ) -> BoxFuture<'_, Option<(LogEnd, Vec<Entry>)>> {
        Box::pin(async move {
            let engine = self.engine()?;
            let recent = {
                let core = engine.slot(shard).lock();
                let prev = match from {
                    Lsn(0) => Some(LogEnd::default()),
                    from => core.recent.end_at(from),
                };
                let entries = match from < until {
                    true => core.recent.read(from, until, bytes_max),
                    false => Some(Vec::new()),
                };
                // With nothing to send, the end of the whole log is what precedes it.
                let end = core.replica.log().map(|log| log.end()).filter(|end| end.lsn == from);
                prev.or(end).zip(entries)
            };
            if recent.is_some() {
                return recent;
            }
            let store = engine.store.clone();
            let read = move || {
                let prev = log_end_at(&store, shard, from)?;
                if from >= until {
                    return Some((prev, Vec::new()));
                }
                match store.read_log(shard, from, until, bytes_max) {
                    Ok(entries) => Some((prev, entries)),
                    Err(error) => {
                        tracing::error!(%shard, %from, %error, "the log cannot be read for a replica");
                        engine.suspect(shard, &error);
                        None
                    }
                }
            };
            tokio::task::spawn_blocking(read).await.ok().flatten()
        })
    }
}

/// The other nodes of the site as the metadata names them, else as the site did when this node joined. Where a node has
/// come from, and where one announces itself, is tried, too: it may have moved, or never have registered.
pub(super) fn peers_of(
    group: &MetaGroup,
    introduced: &[NodeInfo],
    peers: &Peers,
    announced: &Found,
) -> BTreeMap<NodeId, PeerAddress> {
    let me = group.me();
    let mut found: BTreeMap<NodeId, PeerAddress> = group.read(|site| {
        let others = site.nodes.iter().filter(|(id, _)| **id != me);
        let address = |(id, node): (&NodeId, &NodeRecord)| {
            let addresses = node.info.addresses.clone();
            (*id, PeerAddress { name: node.name.clone(), addresses })
        };
        others.map(address).collect()
    });
    if found.is_empty() {
        let address = |node: &NodeInfo| {
            let addresses = node.addresses.clone();
            Some((node.id, PeerAddress { name: node.name.parse().ok()?, addresses }))
        };
        found.extend(introduced.iter().filter_map(address));
    }
    let announced = announced.iter().flat_map(|(node, all)| all.iter().map(|a| (*node, a.clone())));
    for (node, address) in peers.seen_at().into_iter().chain(announced) {
        if let Some(known) = found.get_mut(&node)
            && !known.addresses.contains(&address)
        {
            known.addresses.push(address);
        }
    }
    found.retain(|_, address| !address.addresses.is_empty());
    found
}

/// The metadata group's requests, over the links.
#[derive(Debug)]
pub(super) struct GroupLinks(pub(super) Links);

impl MetaTransport for GroupLinks {
    fn call(
        &self,
        to: NodeId,
        request: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'_, Result<Bytes, Unreachable>> {
        Box::pin(async move {
            match self.0.call(to, request, deadline).await {
                Ok(answer) if answer.is_empty() => {
                    Err(Unreachable::NotSent("the node is starting".to_owned()))
                }
                Ok(answer) => Ok(answer),
                Err(
                    error @ (CallError::UnknownPeer(_)
                    | CallError::NotConnected(_)
                    | CallError::TooLarge(_)),
                ) => Err(Unreachable::NotSent(error.to_string())),
                Err(error @ (CallError::Timeout { .. } | CallError::Lost { .. })) => {
                    Err(Unreachable::NoAnswer(error.to_string()))
                }
            }
        })
    }
}
