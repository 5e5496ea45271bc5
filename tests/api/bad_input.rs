//! Bytes and behaviour that no client of ours shows: clear codes, and the others go on.

use std::{net::UdpSocket, sync::Arc, time::Duration};

use bytes::BytesMut;
use dunlin::{
    client::{Record, TopicName},
    limits::{CONTROL_FRAME_LEN_MAX, STREAMS_PER_CONNECTION_DEFAULT, UNFINISHED_BYTES_MAX},
    net::{
        ConnectionLimits,
        authority::NODE_SERVER_NAME,
        endpoint,
        tls::{self, ALPN_CLIENT},
    },
    wire::{CloseCode, FrameType, Hello, PROTOCOL_VERSION, put_control, put_varint},
};
use quinn::{Connection, ReadError};
use tokio::time::timeout;

use super::Site;

const SOON: Duration = Duration::from_secs(10);
/// What bad input may cost a node: as much as two clients that use all they are allowed.
const GROWTH_MAX: u64 = 16 * 1024 * 1024;

impl Site {
    /// A connection with good manners so far: its hello is said.
    async fn greeted(&self) -> (quinn::Endpoint, Connection, Control) {
        let (endpoint, connection) = self.raw().await;
        let control = hello(&connection, PROTOCOL_VERSION).await;
        (endpoint, connection, control)
    }

    /// A connection that has said nothing.
    async fn raw(&self) -> (quinn::Endpoint, Connection) {
        let profile = self.broker.profile();
        let tls = tls::client_config(&profile.credentials(), &[ALPN_CLIENT]).unwrap();
        let endpoint = endpoint::client(Arc::new(tls), &ConnectionLimits::default()).unwrap();
        let address = profile.addresses[0].to_string().parse().unwrap();
        let connection = endpoint.connect(address, NODE_SERVER_NAME).unwrap().await.unwrap();
        (endpoint, connection)
    }

    /// One of the figures in the kernel's account of the node, in bytes.
    fn memory(&self, name: &str) -> u64 {
        let process = self.broker.process_id().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1_024
    }

    /// Also in between, when it had most.
    fn grew_little_since(&self, before: u64) {
        let grown = self.memory("VmHWM:").saturating_sub(before);
        assert!(grown < GROWTH_MAX, "the node grew by {grown} bytes, limit is {GROWTH_MAX}");
    }

    pub(super) async fn still_serves(&self, topic: &TopicName) {
        let publisher = self.client.publisher(topic).open().await.unwrap();
        timeout(SOON, publisher.publish(Record::new("fine"))).await.unwrap().unwrap();
    }
}

/// The stream of the hello: a connection lasts as long as it.
type Control = (quinn::SendStream, quinn::RecvStream);

async fn hello(connection: &Connection, version_min: u16) -> Control {
    let (mut send, recv) = connection.open_bi().await.unwrap();
    let software = "test".to_owned();
    let hello =
        Hello { version_min, version_max: version_min, software, features: vec![], moved: false };
    let mut bytes = BytesMut::new();
    put_control(FrameType::Hello, &hello, &mut bytes);
    send.write_all(&bytes).await.unwrap();
    (send, recv)
}

/// The code with which the node ends a stream of these bytes.
async fn reset_code(connection: &Connection, bytes: &[u8]) -> Option<CloseCode> {
    let (mut send, mut recv) = timeout(SOON, connection.open_bi()).await.unwrap().unwrap();
    send.write_all(bytes).await.unwrap();
    send.finish().unwrap();
    match timeout(SOON, recv.read_to_end(1_000)).await.unwrap() {
        Err(quinn::ReadToEndError::Read(ReadError::Reset(code))) => {
            CloseCode::from_code(code.into_inner())
        }
        other => panic!("not reset: {other:?}"),
    }
}

#[tokio::test]
async fn bytes_that_are_no_frames_end_their_stream_alone() {
    let site = Site::start().await;
    let topic = site.topic("unharmed", 1).await;
    let (_endpoint, connection, _control) = site.greeted().await;
    let mut oversized = BytesMut::new();
    put_varint(&mut oversized, CONTROL_FRAME_LEN_MAX as u64 + 2);
    oversized.extend_from_slice(&[FrameType::Request as u8]);
    for (bytes, code) in [
        (&oversized[..], CloseCode::FrameTooLarge),
        (&[9, FrameType::Request as u8, 1], CloseCode::Protocol),
        (&[2, 0x55, 0], CloseCode::UnknownFrame),
    ] {
        assert_eq!(reset_code(&connection, bytes).await, Some(code));
    }
    assert!(connection.close_reason().is_none(), "the connection goes on");
    site.still_serves(&topic).await;
}

#[tokio::test]
async fn a_version_that_nobody_speaks_closes_the_connection_with_its_code() {
    let site = Site::start().await;
    let (_endpoint, connection) = site.raw().await;
    let _control = hello(&connection, PROTOCOL_VERSION + 1).await;
    let reason = timeout(SOON, connection.closed()).await.unwrap();
    let quinn::ConnectionError::ApplicationClosed(close) = reason else { panic!("{reason}") };
    assert_eq!(CloseCode::from_code(close.error_code.into_inner()), Some(CloseCode::Version));
}

#[tokio::test]
async fn garbage_datagrams_cost_no_memory_and_harm_nobody() {
    let site = Site::start().await;
    let topic = site.topic("unharmed", 1).await;
    site.still_serves(&topic).await;
    let before = site.memory("VmRSS:");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let node = site.broker.profile().addresses[0].to_string();
    for n in 0..20_000_u32 {
        let mut garbage: Vec<u8> =
            (0..n % 1_400 + 1).map(|i| (i * 31 + n * 7).to_le_bytes()[0]).collect();
        if n % 2 == 0 && garbage.len() >= 1_200 {
            // As the first packet of a connection looks, with ids that nobody has seen, and nothing behind them.
            garbage[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
        }
        socket.send_to(&garbage, &node).unwrap();
        if n % 5_000 == 0 {
            site.still_serves(&topic).await;
        }
    }
    site.still_serves(&topic).await;
    site.grew_little_since(before);
}

#[tokio::test]
async fn frames_without_end_and_frames_without_measure_cost_no_memory() {
    let site = Site::start().await;
    let topic = site.topic("unharmed", 1).await;
    site.still_serves(&topic).await;
    let (_endpoint, connection, _control) = site.greeted().await;
    let before = site.memory("VmRSS:");
    let mut oversized = BytesMut::new();
    put_varint(&mut oversized, CONTROL_FRAME_LEN_MAX as u64 + 2);
    oversized.extend_from_slice(&[FrameType::Request as u8]);
    for _ in 0..2_000 {
        let code = reset_code(&connection, &oversized).await;
        assert_eq!(code, Some(CloseCode::FrameTooLarge));
    }
    site.still_serves(&topic).await;
    // As long as a frame may be, and only its beginning comes.
    let mut truncated = BytesMut::new();
    put_varint(&mut truncated, CONTROL_FRAME_LEN_MAX as u64);
    truncated.extend_from_slice(&[FrameType::Request as u8, 1, 2, 3]);
    for _ in 0..2_000 {
        let (mut send, mut recv) = timeout(SOON, connection.open_bi()).await.unwrap().unwrap();
        send.write_all(&truncated).await.unwrap();
        send.finish().unwrap();
        let _ = timeout(SOON, recv.read_to_end(1_000)).await.unwrap();
    }
    // Another connection: on this one the last few streams that ended are not given free at once.
    let (_endpoint, connection, _control) = site.greeted().await;
    let mut held = Vec::new();
    for _ in 1..STREAMS_PER_CONNECTION_DEFAULT {
        let (mut send, recv) = timeout(SOON, connection.open_bi()).await.unwrap().unwrap();
        send.write_all(&truncated).await.unwrap();
        held.push((send, recv));
    }
    site.still_serves(&topic).await;
    site.grew_little_since(before);
}

#[tokio::test]
async fn large_frames_that_never_end_hold_what_a_connection_may_hold() {
    let site = Site::start().await;
    let topic = site.topic("unharmed", 1).await;
    site.still_serves(&topic).await;
    let (_endpoint, connection, _control) = site.greeted().await;
    let before = site.memory("VmRSS:");
    let mut unfinished = BytesMut::new();
    put_varint(&mut unfinished, CONTROL_FRAME_LEN_MAX as u64);
    unfinished.extend_from_slice(&[FrameType::Request as u8]);
    unfinished.resize(CONTROL_FRAME_LEN_MAX - 10, 7);
    let (mut held, mut sent) = (Vec::new(), 0);
    for _ in 1..STREAMS_PER_CONNECTION_DEFAULT {
        let (mut send, recv) = timeout(SOON, connection.open_bi()).await.unwrap().unwrap();
        let written = timeout(Duration::from_secs(1), send.write_all(&unfinished)).await;
        held.push((send, recv));
        if written.is_err() {
            break;
        }
        sent += unfinished.len();
    }
    let window = ConnectionLimits::default().receive_window as usize;
    let most = UNFINISHED_BYTES_MAX + window + CONTROL_FRAME_LEN_MAX;
    // What this side has buffered counts as sent, too.
    assert!(sent <= most + ConnectionLimits::default().send_window as usize, "took {sent} bytes");
    assert!(sent >= UNFINISHED_BYTES_MAX / 2, "refused after {sent} bytes already");
    site.still_serves(&topic).await;
    let grown = site.memory("VmHWM:").saturating_sub(before);
    assert!(grown < most as u64 + GROWTH_MAX, "the node grew by {grown} bytes");
}

#[tokio::test]
async fn clients_that_open_every_stream_and_say_nothing_cost_little_and_harm_nobody() {
    let site = Site::start().await;
    let topic = site.topic("unharmed", 1).await;
    site.still_serves(&topic).await;
    let before = site.memory("VmRSS:");
    let mut silent = Vec::new();
    for _ in 0..8 {
        let (endpoint, connection, control) = site.greeted().await;
        let mut streams = Vec::new();
        for _ in 1..STREAMS_PER_CONNECTION_DEFAULT {
            let (mut send, recv) = connection.open_bi().await.unwrap();
            // Half of a length: it is begun, and says nothing.
            send.write_all(&[0x40]).await.unwrap();
            streams.push((send, recv));
        }
        let more = timeout(Duration::from_millis(200), connection.open_bi()).await;
        assert!(more.is_err(), "one more stream than is allowed must wait");
        silent.push((endpoint, connection, control, streams));
        site.still_serves(&topic).await;
    }
    site.grew_little_since(before);
}
