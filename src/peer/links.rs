//! All peers of this node, as those see them who send.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use quinn::Endpoint;
use tokio::{runtime::Handle, sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    dial::{DialConfig, Dialler, PeerAddress},
    heartbeat::Heartbeat,
    link::{CallError, Link, LinkStatus, LogSource, Outgoing},
};
use crate::types::{Boot, Incarnation, NodeId, ShardId};

/// The outgoing side of all links. Cheap to clone; any thread may send.
#[derive(Clone)]
pub struct Links {
    inner: Arc<Inner>,
}

struct Inner {
    dialler: Arc<Dialler>,
    source: Arc<dyn LogSource>,
    links: Mutex<BTreeMap<NodeId, Arc<Link>>>,
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Links {
    /// Begins without peers. To be called in a tokio runtime, which then runs the tasks.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(endpoint: Endpoint, dial: DialConfig, source: Arc<dyn LogSource>) -> Self {
        Self {
            inner: Arc::new(Inner {
                dialler: Arc::new(Dialler::new(endpoint, dial)),
                source,
                links: Mutex::default(),
                runtime: Handle::current(),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        }
    }

    /// Says who the peers are: new ones are dialled, those that are gone are dropped, addresses are followed. A link whose
    /// address is still among those given stays as it is.
    pub fn set_peers(&self, peers: BTreeMap<NodeId, PeerAddress>) {
        let inner = &self.inner;
        if inner.stop.is_cancelled() {
            return;
        }
        let mut links = inner.links();
        links.retain(|node, link| {
            let stays = peers.contains_key(node);
            if !stays {
                link.stop();
            }
            stays
        });
        for (node, address) in peers {
            match links.get(&node) {
                Some(link) => link.set_address(address),
                None => {
                    let link = Link::begin(
                        node,
                        address,
                        Arc::clone(&inner.dialler),
                        Arc::clone(&inner.source),
                        inner.stop.child_token(),
                        inner.tasks.clone(),
                        inner.runtime.clone(),
                    );
                    links.insert(node, link);
                }
            }
        }
    }

    /// A peer has just shown that it is there: a dial that waits for it begins anew, at once.
    pub fn wake(&self, node: NodeId) {
        if let Some(link) = self.inner.link(node) {
            link.wake();
        }
    }

    /// The boot that later connections name. Those that are open stay: messages carry boots of their own.
    pub fn set_incarnation(&self, incarnation: Incarnation) {
        self.inner.dialler.set_incarnation(incarnation);
    }

    /// Becomes true once a node of the site has said that it has removed this one.
    #[must_use]
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.inner.dialler.removed()
    }

    /// What later connections use: for certificates that were read again.
    pub fn set_config(&self, config: quinn::ClientConfig) {
        self.inner.dialler.set_config(config);
    }

    /// Sends to a replica, in order within a shard. Never waits: what finds no link or no room is dropped and counted,
    /// and the core asks again.
    pub fn send(&self, shard: ShardId, to: Boot, outgoing: Outgoing) {
        if let Some(link) = self.inner.link(to.node) {
            link.send(shard, to, outgoing);
        }
    }

    /// Sends a heartbeat to every peer that is connected. It may be lost.
    pub fn heartbeat(&self, beat: &Heartbeat) {
        let datagrams = beat.encode();
        for link in self.inner.links().values() {
            link.datagrams(&datagrams);
        }
    }

    /// Asks a peer, and waits for its answer. Whether the peer did what was asked is not known after an error.
    ///
    /// # Errors
    /// [`CallError`]. Without a connection it fails at once.
    pub async fn call(
        &self,
        to: NodeId,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let link = self.inner.link(to).ok_or(CallError::UnknownPeer(to))?;
        link.call(request, deadline).await
    }

    /// How each link does.
    #[must_use]
    pub fn status(&self) -> Vec<LinkStatus> {
        self.inner.links().values().map(|link| link.status()).collect()
    }

    /// Ends all links, and waits for their tasks.
    pub async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.links().clear();
        self.inner.tasks.close();
        if timeout(CLOSE_MAX, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!("links to other nodes did not end in time");
        }
    }
}

impl Inner {
    fn links(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self, node: NodeId) -> Option<Arc<Link>> {
        self.links().get(&node).cloned()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").field("links", &self.status()).finish()
    }
}

/// Tasks end at their next wait; only a read of the log may take a moment.
const CLOSE_MAX: Duration = Duration::from_secs(1);
