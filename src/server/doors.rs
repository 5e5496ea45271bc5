//! Where connections come in: nodes as soon as the socket is open, clients once the node can serve.

use std::sync::Arc;

use quinn::{Connection, Endpoint, Incoming};
use tokio::{
    sync::watch,
    time::{error::Elapsed, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    clock::Clock,
    connection::{self, Shared, close},
    join,
    metrics::Metrics,
};
use crate::{
    limits::{HELLO_TIMEOUT, PEER_HANDSHAKES_SPARE},
    net::{
        Handshakes,
        tls::{self, ALPN_JOIN, ALPN_PEER},
    },
    peer::PeerDoor,
    wire::CloseCode,
};

/// What all that comes in meets first.
#[derive(Debug)]
pub(super) struct Doors {
    pub(super) metrics: Metrics,
    pub(super) clock: Clock,
    /// For nodes.
    pub(super) peers: PeerDoor,
    /// For clients, once they can be served.
    pub(super) shared: watch::Receiver<Option<Arc<Shared>>>,
    pub(super) connections_max: usize,
    /// One task each; the server's stop waits for them.
    pub(super) connections: TaskTracker,
    pub(super) stopping: CancellationToken,
}

/// Takes connections until the endpoint closes or the node stops.
pub(super) async fn accept(doors: Arc<Doors>, endpoint: Endpoint, per_second: u32) {
    let mut unproven = Handshakes::new(per_second);
    let mut proven = Handshakes::new(per_second);
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = doors.stopping.cancelled() => None,
        };
        let Some(incoming) = incoming else { return };
        let address = incoming.remote_address();
        // Only after a handshake it is known whether a node or a client has come.
        if doors.connections.len() >= doors.connections_max + PEER_HANDSHAKES_SPARE {
            doors.metrics.refused("connections");
            tracing::warn!(%address, max = doors.connections_max, "connection refused, the node is full");
            incoming.refuse();
            continue;
        }
        let now = doors.clock.monotonic();
        if !incoming.remote_address_validated() {
            // A forged address must not use up another's share: past the limit the sender first proves that it is there.
            if !unproven.allow(address.ip(), now) {
                // Fails only for an address that is proven.
                let _ = incoming.retry();
                continue;
            }
        } else if !proven.allow(address.ip(), now) {
            doors.metrics.refused("handshakes");
            tracing::debug!(%address, "handshake refused, too many from this address");
            incoming.refuse();
            continue;
        }
        let task = serve(Arc::clone(&doors), incoming);
        doors.connections.spawn(task);
    }
}

async fn serve(doors: Arc<Doors>, incoming: Incoming) {
    let address = incoming.remote_address();
    let handshake = async { incoming.accept()?.await };
    let connection = match timeout(HELLO_TIMEOUT, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            doors.metrics.refused("handshake");
            tracing::info!(%address, %error, "handshake failed");
            return;
        }
        Err(Elapsed { .. }) => {
            doors.metrics.refused("timeout");
            tracing::info!(%address, "handshake took too long");
            return;
        }
    };
    let alpn = tls::alpn_of(&connection);
    if alpn.as_deref() == Some(ALPN_PEER) {
        return doors.peers.take(connection);
    }
    if doors.connections.len() > doors.connections_max {
        doors.metrics.refused("connections");
        return close(&connection, CloseCode::Busy, &CloseCode::Busy.to_string());
    }
    match ready(&doors, &connection).await {
        Some(shared) if alpn.as_deref() == Some(ALPN_JOIN) => join::serve(shared, connection).await,
        Some(shared) => connection::serve(shared, connection).await,
        None => close(&connection, CloseCode::Busy, "the node is starting"),
    }
}

/// Waits a moment for a node that is starting.
async fn ready(doors: &Doors, connection: &Connection) -> Option<Arc<Shared>> {
    let mut shared = doors.shared.clone();
    let ready = timeout(HELLO_TIMEOUT, shared.wait_for(Option::is_some));
    tokio::select! {
        () = doors.stopping.cancelled() => None,
        _ = connection.closed() => None,
        ready = ready => ready.ok()?.ok()?.clone(),
    }
}
