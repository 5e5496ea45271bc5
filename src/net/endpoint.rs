//! QUIC endpoints: a socket with buffers that do not drop bursts, and bounds for each connection.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use quinn::{
    AckFrequencyConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};
use tracing::debug;

use super::socket;
use crate::limits::{
    IDLE_TIMEOUT, KEEP_ALIVE, PUBLISH_WINDOW_BYTES, STREAMS_PER_CONNECTION_DEFAULT,
};

/// What one connection may take of this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Bidirectional streams that the other side may have open at once. More wait, on its side.
    pub streams_max: u32,
    /// Bytes, all streams together, that may have arrived and not been read. More wait, on the other side.
    pub receive_window: u32,
    /// Bytes of one stream that may have arrived and not been read.
    pub stream_window: u32,
    /// Bytes that may wait here for the other side's acknowledgement: what a reader that stops reading can hold.
    pub send_window: u32,
    /// After this long without any packet the connection is dead.
    pub idle_timeout: Duration,
    /// How often this side sends something to keep the connection alive.
    pub keep_alive: Option<Duration>,
    /// Whether unreliable datagrams are taken.
    pub datagrams: bool,
    /// After how many packets of this side the other one acknowledges them at once (draft-ietf-quic-ack-frequency): for
    /// connections on which it has nothing else to say that could carry the acknowledgement. None: after two.
    pub acknowledge_after: Option<u32>,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            streams_max: STREAMS_PER_CONNECTION_DEFAULT,
            receive_window: 2 * PUBLISH_WINDOW_BYTES,
            stream_window: STREAM_WINDOW,
            send_window: SEND_WINDOW,
            idle_timeout: IDLE_TIMEOUT,
            keep_alive: Some(KEEP_ALIVE),
            datagrams: false,
            acknowledge_after: None,
        }
    }
}

impl ConnectionLimits {
    fn transport(&self) -> Result<TransportConfig, EndpointError> {
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(MTU_MAX);
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(self.streams_max.into())
            // The protocol has no unidirectional streams.
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .receive_window(self.receive_window.into())
            .stream_receive_window(self.stream_window.min(self.receive_window).into())
            .send_window(self.send_window.into())
            .max_idle_timeout(Some(
                IdleTimeout::try_from(self.idle_timeout)
                    .map_err(|_| EndpointError::IdleTimeout { timeout: self.idle_timeout })?,
            ))
            .keep_alive_interval(self.keep_alive)
            .datagram_receive_buffer_size(self.datagrams.then_some(DATAGRAM_BUFFER))
            .datagram_send_buffer_size(DATAGRAM_BUFFER)
            .mtu_discovery_config(Some(mtu));
        if let Some(packets) = self.acknowledge_after {
            let mut frequency = AckFrequencyConfig::default();
            frequency.ack_eliciting_threshold(packets.saturating_sub(1).into());
            transport.ack_frequency_config(Some(frequency));
        }
        Ok(transport)
    }
}

/// Opens an endpoint that listens. Its connections have the `tls` and `limits` given here until others are set.
///
/// # Errors
/// If the address cannot be bound.
pub fn server(
    address: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    limits: &ConnectionLimits,
    secret: &ResetSecret,
) -> Result<Endpoint, EndpointError> {
    let config = server_config(tls, limits)?;
    let socket = bind(address).map_err(|source| EndpointError::Bind { address, source })?;
    open(secret.config(), Some(config), socket, address)
}

/// What lets a restarted node tell the peers of its former self that their connections are gone (RFC 9000 section
/// 10.3). With a new secret each time they would only find out by their idle timeout.
#[derive(Clone)]
pub struct ResetSecret([u8; 32]);

impl ResetSecret {
    /// Derives it from something that only this node knows and keeps, such as its private key.
    #[must_use]
    pub fn derive(from: &[u8]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, from);
        let mut secret = [0; 32];
        secret.copy_from_slice(hmac::sign(&key, b"dunlin stateless reset").as_ref());
        Self(secret)
    }

    fn config(&self) -> EndpointConfig {
        let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &self.0)));
        config.cid_generator(|| Box::new(RandomIds)).min_reset_interval(RESET_INTERVAL);
        config
    }
}

/// Connection ids of random bytes. Those of quinn's default carry a mark by which the node's former self would not be
/// known: packets to it would get no answer at all.
struct RandomIds;

const ID_LEN: usize = 8;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; ID_LEN]>())
    }

    fn cid_len(&self) -> usize {
        ID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

impl std::fmt::Debug for ResetSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResetSecret")
    }
}

/// What connections that come from now on get: for `Endpoint::set_server_config` after a reload.
///
/// # Errors
/// If the TLS cannot carry QUIC.
pub fn server_config(
    tls: Arc<rustls::ServerConfig>,
    limits: &ConnectionLimits,
) -> Result<quinn::ServerConfig, EndpointError> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|_| EndpointError::Tls)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(limits.transport()?))
        .migration(true)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
    Ok(config)
}

/// Opens an endpoint that dials, from a port of the system's choice.
///
/// # Errors
/// If no socket can be had.
pub fn client(
    tls: Arc<rustls::ClientConfig>,
    limits: &ConnectionLimits,
) -> Result<Endpoint, EndpointError> {
    let config = client_config(tls, limits)?;
    let (address, socket) = bind_to_dial()?;
    let mut endpoint = open(EndpointConfig::default(), None, socket, address)?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// Gives an endpoint that dials another socket, from which its connections let their nodes hear of them at once: for when the
/// addresses of this machine have changed. What still comes to the former one is read until the first packet comes to this.
///
/// # Errors
/// If no socket can be had: then the former one stays.
pub fn rebind(endpoint: &Endpoint) -> Result<(), EndpointError> {
    let (address, socket) = bind_to_dial()?;
    socket::wrap(socket)
        .and_then(|socket| endpoint.rebind_abstract(socket))
        .map_err(|source| EndpointError::Bind { address, source })
}

/// What connections that are dialled get: for `Endpoint::connect_with`.
///
/// # Errors
/// If the TLS cannot carry QUIC.
pub fn client_config(
    tls: Arc<rustls::ClientConfig>,
    limits: &ConnectionLimits,
) -> Result<quinn::ClientConfig, EndpointError> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|_| EndpointError::Tls)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(limits.transport()?));
    Ok(config)
}

fn open(
    config: EndpointConfig,
    server: Option<quinn::ServerConfig>,
    socket: UdpSocket,
    address: SocketAddr,
) -> Result<Endpoint, EndpointError> {
    let runtime = Arc::new(quinn::TokioRuntime);
    socket::wrap(socket)
        .and_then(|socket| Endpoint::new_with_abstract_socket(config, server, socket, runtime))
        .map_err(|source| EndpointError::Bind { address, source })
}

fn bind_to_dial() -> Result<(SocketAddr, UdpSocket), EndpointError> {
    let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    // A kernel without IPv6 still has the other.
    match bind(v6) {
        Ok(socket) => Ok((v6, socket)),
        Err(_) => match bind(v4) {
            Ok(socket) => Ok((v4, socket)),
            Err(source) => Err(EndpointError::Bind { address: v4, source }),
        },
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if let SocketAddr::V6(v6) = address {
        socket.set_only_v6(!v6.ip().is_unspecified())?;
    }
    ask_for_buffers(&socket);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The kernel's default holds a few milliseconds of a fast sender: what comes on top is lost and sent again.
fn ask_for_buffers(socket: &Socket) {
    let asked = socket
        .set_recv_buffer_size(SOCKET_BUFFER)
        .and_then(|()| socket.set_send_buffer_size(SOCKET_BUFFER));
    let got = socket.recv_buffer_size().and_then(|r| Ok(r.min(socket.send_buffer_size()?)));
    match (asked, got) {
        (Ok(()), Ok(got)) if got >= SOCKET_BUFFER => {}
        (asked, got) => debug!(
            wanted = SOCKET_BUFFER,
            got = got.unwrap_or_default(),
            error = asked.err().map(tracing::field::display),
            "socket buffers are small: raise net.core.rmem_max and net.core.wmem_max"
        ),
    }
}

/// Why an endpoint was not opened.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The system said no.
    #[error("cannot listen on UDP {address}: {source}")]
    Bind {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The TLS configuration lacks what QUIC needs.
    #[error("TLS has no cipher suite that QUIC can start with")]
    Tls,
    /// Longer than QUIC can say.
    #[error("idle timeout of {timeout:?} is longer than QUIC can say")]
    IdleTimeout {
        /// What was asked for.
        timeout: Duration,
    },
}

/// Measured: at 2 MiB a full-speed upload loses nothing, where the default loses some 1,800 packets.
const SOCKET_BUFFER: usize = 2 * 1024 * 1024;
/// What Ethernet carries (1,500 less the headers): beyond it segmentation offload stops working on loopback.
const MTU_MAX: u16 = 1_452;
/// 100 Mbit/s at 100 ms: one stream fills the links that edge sites have.
const STREAM_WINDOW: u32 = 1_250_000;
/// 40 MB/s at 100 ms, and half of what one stalled reader may cost a node.
const SEND_WINDOW: u32 = 4 * 1024 * 1024;
/// Ephemeral records that may wait: dropped rather than queued is their contract.
const DATAGRAM_BUFFER: usize = 256 * 1024;
/// A thousand clients of a restarted node hear of it within a second.
const RESET_INTERVAL: Duration = Duration::from_millis(1);
/// Handshakes that may wait for the accept loop; more are refused.
const INCOMING_MAX: usize = 1_024;
/// Bytes that one of them may send ahead: certificates fit, data does not.
const INCOMING_BUFFER: u64 = 32 * 1024;
/// Bytes that all of them may send ahead.
const INCOMING_BUFFER_TOTAL: u64 = 4 * 1024 * 1024;

#[cfg(test)]
mod tests;
