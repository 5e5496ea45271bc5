//! The incoming side: what other nodes have dialled.

use std::{fmt, net::SocketAddr, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_core::future::BoxFuture;
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, VarInt};
use tokio::{
    task::{JoinError, JoinSet},
    time::{error::Elapsed, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Me,
    dial::close,
    frame::{self, FrameError},
    heartbeat::{Digests, Heartbeat},
    hello::{LinkKind, PeerHello, PeerWelcome},
    message,
};
use crate::{
    limits::{
        CALL_LEN_MAX, CALLS_PER_PEER_MAX, CONTROL_FRAME_LEN_MAX, HELLO_TIMEOUT,
        PEER_CONNECTIONS_MAX, PEER_MESSAGE_LEN_MAX,
    },
    net::{ConnectionLimits, Identity, Who},
    replication::Envelope,
    types::{NodeId, NodeName},
    wire::{CloseCode, Entry, cbor},
};

/// What is done with what other nodes say. What is under way when a connection ends is dropped at its next wait.
pub trait PeerSink: Send + Sync + 'static {
    /// Whether the site has a node of this number and name.
    fn knows(&self, node: NodeId, name: &NodeName) -> bool;

    /// Whether the site has taken this node out, for ever.
    fn has_removed(&self, node: NodeId) -> bool {
        let _ = node;
        false
    }

    /// A node that is known has come, from this address.
    fn came(&self, node: NodeId, from: SocketAddr) {
        let _ = (node, from);
    }

    /// Takes a message of a replica. While it waits, nothing more of that shard is read from that node; others go on.
    fn envelope(&self, from: NodeId, envelope: Envelope<Entry>) -> BoxFuture<'_, ()>;

    /// Takes a heartbeat.
    fn heartbeat(&self, from: NodeId, beat: Heartbeat);

    /// Answers a call.
    fn call(&self, from: NodeId, request: Bytes) -> BoxFuture<'_, Bytes>;
}

/// Why a connection is over.
enum Ended {
    /// The peer closed it, or it was lost.
    Left(ConnectionError),
    /// This node closes it.
    Refused(CloseCode, String),
}

impl From<ConnectionError> for Ended {
    fn from(error: ConnectionError) -> Self {
        Self::Left(error)
    }
}

fn refused(code: CloseCode, reason: impl fmt::Display) -> Ended {
    Ended::Refused(code, reason.to_string())
}

/// Serves a connection that came with the ALPN of peers, until it ends or `stopping` is set.
pub async fn serve(
    connection: Connection,
    me: Me,
    sink: Arc<dyn PeerSink>,
    stopping: CancellationToken,
) {
    let address = connection.remote_address();
    match stopping.run_until_cancelled(admit_and_run(&connection, &me, &sink)).await {
        None => close(&connection, CloseCode::Stopping, "the node is stopping"),
        Some(Ended::Left(error)) => tracing::debug!(%address, %error, "peer left"),
        Some(Ended::Refused(code, reason)) => {
            tracing::warn!(%address, ?code, reason, "connection of a node refused");
            close(&connection, code, &reason);
        }
    }
}

async fn admit_and_run(connection: &Connection, me: &Me, sink: &Arc<dyn PeerSink>) -> Ended {
    let admitted = async {
        let name = proven_name(connection, me)?;
        match timeout(HELLO_TIMEOUT, greet(connection, me, sink.as_ref(), name)).await {
            Ok(hello) => hello,
            Err(Elapsed { .. }) => Err(refused(CloseCode::HelloTimeout, "no hello in time")),
        }
    };
    let hello: PeerHello = match admitted.await {
        Ok(hello) => hello,
        Err(ended) => return ended,
    };
    let (node, name) = (hello.node, &hello.name);
    sink.came(node, connection.remote_address());
    tracing::debug!(%node, %name, kind = ?hello.kind, software = hello.software, "peer connected");
    let peer = Peer { connection, node, sink };
    match hello.kind {
        LinkKind::Control => peer.control().await,
        LinkKind::Data => peer.data(me.shards).await,
    }
}

fn proven_name(connection: &Connection, me: &Me) -> Result<NodeName, Ended> {
    let forbidden = |reason: String| refused(CloseCode::Forbidden, reason);
    match Identity::of_peer(connection).map_err(|error| forbidden(error.to_string()))? {
        Some(Identity { site, who: Who::Node(name) }) if site == me.site => Ok(name),
        Some(other) => Err(forbidden(format!(
            "certificate is of {}, not of a node of site '{}'",
            other.to_uri(),
            me.site
        ))),
        None => Err(forbidden("no certificate: a node needs one".to_owned())),
    }
}

async fn greet(
    connection: &Connection,
    me: &Me,
    sink: &dyn PeerSink,
    proven: NodeName,
) -> Result<PeerHello, Ended> {
    let protocol = |error: &dyn fmt::Display| refused(CloseCode::Protocol, error);
    let (mut output, mut input) = connection.accept_bi().await?;
    let bytes = match frame::read(&mut input, CONTROL_FRAME_LEN_MAX).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(protocol(&"the hello is missing")),
        Err(error) => return Err(bad_frame(error, "hello")),
    };
    let hello: PeerHello = cbor::get(&bytes).map_err(|error| protocol(&error))?;
    let Some(version) = me.speaks.common(hello.speaks()) else {
        let reason = format!("node speaks versions {}, this node {}", hello.speaks(), me.speaks);
        return Err(refused(CloseCode::Version, reason));
    };
    if hello.site != me.site || hello.name != proven {
        let reason = format!(
            "hello is of node '{}' of site '{}', certificate is of '{proven}' of '{}'",
            hello.name, hello.site, me.site
        );
        return Err(refused(CloseCode::Forbidden, reason));
    }
    if hello.node == me.node || !sink.knows(hello.node, &hello.name) {
        let reason = format!("the site has no other node {} called '{proven}'", hello.node);
        let code = match sink.has_removed(hello.node) {
            true => CloseCode::Removed,
            false => CloseCode::Forbidden,
        };
        return Err(refused(code, reason));
    }
    let welcome = PeerWelcome {
        version,
        site: me.site.clone(),
        node: me.node,
        name: me.name.clone(),
        software: crate::SOFTWARE.to_owned(),
        features: vec![],
    };
    let mut bytes = BytesMut::new();
    cbor::put(&welcome, &mut bytes);
    frame::write(&mut output, bytes.freeze()).await.map_err(|error| protocol(&error))?;
    // Ended already only when the peer is gone.
    let _ = output.finish();
    Ok(hello)
}

fn bad_frame(error: FrameError, what: &str) -> Ended {
    match error {
        FrameError::TooLarge { .. } => {
            refused(CloseCode::FrameTooLarge, format!("{what}: {error}"))
        }
        FrameError::Read(ReadError::ConnectionLost(error)) => error.into(),
        FrameError::Truncated | FrameError::Read(_) => {
            refused(CloseCode::Protocol, format!("{what}: {error}"))
        }
    }
}

/// A node that has proven itself.
struct Peer<'a> {
    connection: &'a Connection,
    node: NodeId,
    sink: &'a Arc<dyn PeerSink>,
}

impl Peer<'_> {
    async fn control(self) -> Ended {
        let (connection, node) = (self.connection, self.node);
        connection.set_max_concurrent_bi_streams(CALLS_PER_PEER_MAX.into());
        let mut calls = JoinSet::new();
        let mut digests = Digests::default();
        loop {
            let done = tokio::select! {
                stream = connection.accept_bi() => stream.map_err(Ended::from).map(|(output, input)| {
                    calls.spawn(call(node, Arc::clone(self.sink), output, input));
                }),
                datagram = connection.read_datagram() => match datagram {
                    Ok(datagram) => self.heartbeat(&datagram, &mut digests),
                    Err(error) => Err(error.into()),
                },
                Some(done) = calls.join_next() => done.map_err(|error| panicked(&error)),
            };
            if let Err(ended) = done {
                return ended;
            }
        }
    }

    fn heartbeat(&self, datagram: &[u8], digests: &mut Digests) -> Result<(), Ended> {
        let beat = Heartbeat::decode(datagram).map_err(|bad| refused(CloseCode::Protocol, bad))?;
        if beat.from.node != self.node {
            return Err(other_node(self.node, beat.from.node));
        }
        if self.sink.has_removed(self.node) {
            return Err(refused(CloseCode::Removed, CloseCode::Removed));
        }
        if let Some(beat) = digests.take(beat) {
            self.sink.heartbeat(self.node, beat);
        }
        Ok(())
    }

    async fn data(self, shards: u16) -> Ended {
        let (connection, node) = (self.connection, self.node);
        // A shard that is not read fills its own stream. Were the connection's window smaller than all of them, it would
        // stop the others too.
        let window = ConnectionLimits::default().stream_window.saturating_mul(shards.into());
        connection.set_receive_window(window.into());
        connection.set_max_concurrent_uni_streams(shards.into());
        let mut streams = JoinSet::new();
        loop {
            let done = tokio::select! {
                stream = connection.accept_uni() => stream.map_err(Ended::from).map(|input| {
                    streams.spawn(shard_stream(node, Arc::clone(self.sink), input));
                }),
                Some(done) = streams.join_next() => {
                    done.unwrap_or_else(|error| Err(panicked(&error)))
                }
            };
            if let Err(ended) = done {
                return ended;
            }
        }
    }
}

fn other_node(node: NodeId, claimed: NodeId) -> Ended {
    refused(CloseCode::Forbidden, format!("node {node} has sent a message of node {claimed}"))
}

fn panicked(error: &JoinError) -> Ended {
    tracing::error!(%error, "serving a peer failed");
    refused(CloseCode::Internal, "the node failed")
}

/// One question, one answer. A stream that is no call ends by itself: others have done nothing wrong.
async fn call(
    node: NodeId,
    sink: Arc<dyn PeerSink>,
    mut output: SendStream,
    mut input: RecvStream,
) {
    let request = match frame::read(&mut input, CALL_LEN_MAX).await {
        Ok(Some(request)) => request,
        // Given up by the caller.
        Ok(None) | Err(FrameError::Truncated | FrameError::Read(_)) => return,
        Err(error @ FrameError::TooLarge { .. }) => {
            tracing::warn!(%node, %error, "call refused");
            let code = VarInt::from_u32(CloseCode::FrameTooLarge.code());
            // Refused only when the stream has ended already.
            let _ = output.reset(code);
            let _ = input.stop(code);
            return;
        }
    };
    let answer = sink.call(node, request).await;
    if answer.len() > CALL_LEN_MAX {
        tracing::error!(%node, len = answer.len(), max = CALL_LEN_MAX, "answer to a call is too large");
        let _ = output.reset(VarInt::from_u32(CloseCode::Internal.code()));
        return;
    }
    // The caller may have given up.
    let _ = frame::write(&mut output, answer).await;
    let _ = output.finish();
}

/// The messages of one shard, in order.
async fn shard_stream(
    node: NodeId,
    sink: Arc<dyn PeerSink>,
    mut input: RecvStream,
) -> Result<(), Ended> {
    loop {
        let bytes = match frame::read(&mut input, PEER_MESSAGE_LEN_MAX).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) | Err(FrameError::Read(ReadError::Reset(_))) => return Ok(()),
            Err(error) => return Err(bad_frame(error, "message")),
        };
        let envelope = message::decode(bytes).map_err(|bad| {
            refused(CloseCode::Protocol, format!("message of node {node}: {bad}"))
        })?;
        if envelope.from.node != node {
            return Err(other_node(node, envelope.from.node));
        }
        sink.envelope(node, envelope).await;
    }
}

/// Where connections of other nodes come in: their tasks, and their end.
pub struct PeerDoor {
    me: Me,
    sink: Arc<dyn PeerSink>,
    connections: TaskTracker,
    stopping: CancellationToken,
}

impl PeerDoor {
    /// A door that closes when `stopping` is set.
    #[must_use]
    pub fn new(me: Me, sink: Arc<dyn PeerSink>, stopping: CancellationToken) -> Self {
        Self { me, sink, connections: TaskTracker::new(), stopping }
    }

    /// Who this node is to those who come in.
    #[must_use]
    pub fn me(&self) -> &Me {
        &self.me
    }

    /// Serves a connection that came with the ALPN of peers, in a task of its own.
    pub fn take(&self, connection: Connection) {
        if self.connections.len() >= PEER_CONNECTIONS_MAX {
            tracing::warn!(
                max = PEER_CONNECTIONS_MAX,
                "connection of a node refused, there are too many"
            );
            return close(&connection, CloseCode::Busy, "too many connections of nodes");
        }
        let (me, sink) = (self.me.clone(), Arc::clone(&self.sink));
        self.connections.spawn(serve(connection, me, sink, self.stopping.clone()));
    }

    /// Waits until all connections are closed, once `stopping` is set.
    pub async fn closed(&self) {
        self.connections.close();
        self.connections.wait().await;
    }
}

impl fmt::Debug for PeerDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerDoor").field("connections", &self.connections.len()).finish()
    }
}
