//! Who and what is not let in, and what it is told.

use std::net::SocketAddr;

use bytes::{BufMut, BytesMut};
use quinn::{Connection, ConnectionError, Endpoint};

use super::{
    bench::{dial, validity},
    *,
};
use crate::{
    limits::{CALL_LEN_MAX, CONTROL_FRAME_LEN_MAX, PEER_MESSAGE_LEN_MAX},
    net::Credentials,
    types::Incarnation,
    wire::{CloseCode, cbor},
};

fn hello(kind: LinkKind) -> PeerHello {
    PeerHello {
        version_min: 1,
        version_max: 1,
        site: "plant".parse().expect("name"),
        node: NodeId(2),
        name: "n-2".parse().expect("name"),
        incarnation: Incarnation(0),
        kind,
        software: String::new(),
        features: vec![],
    }
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_u32(u32::try_from(bytes.len()).expect("small"));
    out.put_slice(bytes);
    out.to_vec()
}

fn hello_frame(hello: &PeerHello) -> Vec<u8> {
    let mut body = BytesMut::new();
    cbor::put(hello, &mut body);
    framed(&body)
}

/// What a node says to whoever sends these first bytes.
async fn begin(
    credentials: &Credentials,
    address: SocketAddr,
    first: &[u8],
) -> Result<(Endpoint, Connection), ConnectionError> {
    let (endpoint, connection) = dial(credentials, address).await?;
    let (mut output, mut input) = connection.open_bi().await?;
    let _ = output.write_all(first).await;
    let _ = output.finish();
    match input.read_to_end(CONTROL_FRAME_LEN_MAX).await {
        Ok(_) => Ok((endpoint, connection)),
        Err(_) => Err(connection.closed().await),
    }
}

#[track_caller]
fn assert_code(error: &ConnectionError, code: CloseCode, why: &str) {
    let ConnectionError::ApplicationClosed(close) = error else { panic!("{error}") };
    assert_eq!(close.error_code.into_inner(), u64::from(code.code()), "{error}");
    let reason = String::from_utf8_lossy(&close.reason);
    assert!(reason.contains(why), "{reason} does not say {why}");
}

/// A node 1 that knows node 2.
async fn door(site: &Site) -> Node {
    let (a, b) = (site.node(1).await, site.node(2).await);
    a.seen.know(&b);
    a
}

#[tokio::test]
async fn who_is_no_node_of_the_site_is_refused() {
    let (site, other) = (Site::new(), Site::new());
    let a = door(&site).await;
    let first = hello_frame(&hello(LinkKind::Control));
    let client = site.authority.issue_client(&"n-2".parse().expect("name"), validity());
    let client = site.trusting(Some(client.expect("issued")));
    let error = begin(&client, a.address, &first).await.expect_err("a client");
    assert_code(&error, CloseCode::Forbidden, "dunlin://plant/client/n-2");
    let error = begin(&site.trusting(None), a.address, &first).await.expect_err("nobody");
    assert_code(&error, CloseCode::Forbidden, "no certificate");
    let foreign = Credentials { own: other.credentials("n-2").own, ..site.trusting(None) };
    let error = begin(&foreign, a.address, &first).await.expect_err("a stranger");
    assert!(matches!(error, ConnectionError::ConnectionClosed(_)), "by TLS: {error}");
    let named = site.credentials("n-3");
    let error = begin(&named, a.address, &first).await.expect_err("another node");
    assert_code(&error, CloseCode::Forbidden, "certificate is of 'n-3'");
    assert!(begin(&site.credentials("n-2"), a.address, &first).await.is_ok());
}

#[tokio::test]
async fn a_bad_hello_is_refused_with_its_reason() {
    let site = Site::new();
    let a = door(&site).await;
    let credentials = site.credentials("n-2");
    let good = hello(LinkKind::Data);
    let cases = [
        (
            hello_frame(&PeerHello { node: NodeId(7), ..good.clone() }),
            CloseCode::Forbidden,
            "node 7",
        ),
        (
            hello_frame(&PeerHello { node: NodeId(1), ..good.clone() }),
            CloseCode::Forbidden,
            "node 1",
        ),
        (
            hello_frame(&PeerHello { site: "mill".parse().expect("name"), ..good.clone() }),
            CloseCode::Forbidden,
            "mill",
        ),
        (
            hello_frame(&PeerHello { version_min: 2, version_max: 3, ..good.clone() }),
            CloseCode::Version,
            "2 to 3",
        ),
        (framed(b"garbage"), CloseCode::Protocol, "malformed"),
        (vec![0, 0, 0, 9, 1], CloseCode::Protocol, "middle of a frame"),
        (vec![], CloseCode::Protocol, "hello is missing"),
        (u32::MAX.to_be_bytes().to_vec(), CloseCode::FrameTooLarge, "limit is 262144"),
    ];
    for (first, code, why) in cases {
        let error = begin(&credentials, a.address, &first).await.expect_err(why);
        assert_code(&error, code, why);
    }
}

/// Sends these bytes on a data stream of node 2, and returns how the connection ends.
async fn after_data(site: &Site, a: &Node, bytes: &[u8]) -> ConnectionError {
    let first = hello_frame(&hello(LinkKind::Data));
    let begun = begin(&site.credentials("n-2"), a.address, &first).await;
    let (_endpoint, connection) = begun.expect("let in");
    let mut output = connection.open_uni().await.expect("open");
    let _ = output.write_all(bytes).await;
    connection.closed().await
}

#[tokio::test]
async fn a_bad_message_ends_its_connection() {
    let site = Site::new();
    let (a, c) = (door(&site).await, site.node(3).await);
    let error = after_data(&site, &a, &framed(b"garbage")).await;
    assert_code(&error, CloseCode::Protocol, "message of node 2");
    let max = u32::try_from(PEER_MESSAGE_LEN_MAX).expect("small");
    let error = after_data(&site, &a, &(max + 1).to_be_bytes()).await;
    assert_code(&error, CloseCode::FrameTooLarge, "limit is 2097152");
    let mut forged = BytesMut::new();
    message::encode(&durable(&c, &a, ShardId(0), 1), &mut forged).expect("small");
    let error = after_data(&site, &a, &framed(&forged)).await;
    assert_code(&error, CloseCode::Forbidden, "node 2 has sent a message of node 3");
    assert!(a.seen.envelopes(ShardId(0)).is_empty());
}

#[tokio::test]
async fn a_bad_datagram_ends_its_connection_and_a_bad_call_only_itself() {
    let site = Site::new();
    let (a, c) = (door(&site).await, site.node(3).await);
    let first = hello_frame(&hello(LinkKind::Control));
    let credentials = site.credentials("n-2");
    let begin = || async { begin(&credentials, a.address, &first).await.expect("let in") };

    let (_endpoint, connection) = begin().await;
    connection.send_datagram(Bytes::from_static(b"garbage")).expect("sent");
    assert_code(&connection.closed().await, CloseCode::Protocol, "no heartbeat");
    let (_endpoint, connection) = begin().await;
    connection.send_datagram(beat(&c, 1).encode().remove(0)).expect("sent");
    assert_code(&connection.closed().await, CloseCode::Forbidden, "message of node 3");
    assert!(a.seen.beats(c.id).is_empty());

    let (_endpoint, connection) = begin().await;
    let (mut output, mut input) = connection.open_bi().await.expect("open");
    let max = u32::try_from(CALL_LEN_MAX).expect("small");
    output.write_all(&(max + 1).to_be_bytes()).await.expect("sent");
    let reset = quinn::ReadError::Reset(CloseCode::FrameTooLarge.code().into());
    assert_eq!(input.read_to_end(1).await, Err(quinn::ReadToEndError::Read(reset)));
    let (mut output, mut input) = connection.open_bi().await.expect("open");
    output.write_all(&framed(b"x")).await.expect("sent");
    let answer = input.read_to_end(100).await.expect("answered");
    assert_eq!(answer, framed(b"x asked by 2"));
}

#[tokio::test]
async fn a_peer_that_turns_out_to_be_another_node_is_not_believed() {
    let site = Site::new();
    let (a, b) = (site.node(1).await, site.node(2).await);
    b.seen.know(&a);
    let named = |id, name: &str| {
        let name = name.parse().expect("name");
        [(NodeId(id), PeerAddress { name, addresses: vec![b.address.to_string()] })].into()
    };
    let says = |what: &str| {
        let status = a.links.status();
        status[0].connected_for.is_none()
            && status[0].last_error.as_deref().is_some_and(|error| error.contains(what))
    };
    a.links.set_peers(named(3, "n-3"));
    until(|| says("is dunlin://plant/node/n-2, not dunlin://plant/node/n-3")).await;
    a.links.set_peers(named(3, "n-2"));
    until(|| says("is node 2, not node 3")).await;
    a.links.set_peers(named(2, "n-2"));
    until(|| a.links.status().iter().all(|status| status.connected_for.is_some())).await;

    let stranger = Site::new().node(2).await;
    a.links.set_peers([(NodeId(2), stranger.peer_address())].into());
    until(|| says("UnknownIssuer") || says("invalid peer certificate")).await;
}
