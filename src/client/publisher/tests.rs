//! Publishers at a node that only listens: in which order batches come whole.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use quinn::Endpoint;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

use super::*;
use crate::{
    client::{
        Client, Profile,
        error::StreamError,
        stream::{FrameReader, send_control},
    },
    net::{
        ConnectionLimits, Credentials,
        authority::{SiteAuthority, Validity},
        endpoint::{self, ResetSecret},
        tls::{self, ALPN_CLIENT, ClientAuth},
    },
    types::{NodeId, TopicId},
    wire::{FrameType, Hello, PublishOk, Welcome, WireLimits},
};

const DEADLINE: Duration = Duration::from_secs(30);

/// A node, and a profile that leads to it.
fn node() -> (Endpoint, Profile) {
    let now = SystemTime::now();
    let site = SiteAuthority::create("plant".parse().unwrap(), now).unwrap();
    let validity = Validity::as_long_as_the_authority(now);
    let own = site.issue_node(&"n-1".parse().unwrap(), &[], validity).unwrap();
    let credentials = Credentials { ca_pem: site.certificate_pem().into(), own: Some(own) };
    let tls = tls::server_config(&credentials, ClientAuth::Optional, &[ALPN_CLIENT], now).unwrap();
    let (address, limits) = ((Ipv4Addr::LOCALHOST, 0).into(), ConnectionLimits::default());
    let secret = ResetSecret::derive(b"key");
    let endpoint = endpoint::server(address, Arc::new(tls), &limits, &secret).unwrap();
    let profile = Profile {
        name: "press".parse().unwrap(),
        site: "plant".parse().unwrap(),
        addresses: vec![endpoint.local_addr().unwrap().to_string().parse().unwrap()],
        discovery: false,
        domain: None,
        ca: site.certificate_pem().into(),
        certificate: None,
        key: None,
    };
    (endpoint, profile)
}

/// Takes one client, agrees to all its publish streams, and tells the topics whose first batch has come. Answers none.
async fn listen(node: Endpoint, heard: mpsc::Sender<TopicName>) -> Result<(), StreamError> {
    let connection = node.accept().await.expect("it is open").await?;
    let (mut send, recv) = connection.accept_bi().await?;
    let mut control_stream = FrameReader::new(recv);
    let hello: Hello = control_stream.expect(FrameType::Hello).await?;
    let welcome = Welcome {
        version: hello.version_max,
        software: "listens".into(),
        site: "plant".into(),
        node: "n-1".into(),
        node_id: NodeId(1),
        you: None,
        features: vec![],
        limits: WireLimits { batch_len_max: 1 << 20, control_len_max: 1 << 16, streams_max: 64 },
        nodes: vec![],
    };
    send_control(&mut send, FrameType::Welcome, &welcome).await?;
    let mut streams = JoinSet::new();
    loop {
        let (mut send, recv) = connection.accept_bi().await?;
        let heard = heard.clone();
        streams.spawn(async move {
            let mut reader = FrameReader::new(recv);
            let open: PublishOpen = reader.expect(FrameType::PublishOpen).await?;
            let (topic_id, partitions) = (TopicId(1), 1);
            let ok = PublishOk { topic_id, partitions, window_batches: 0, window_bytes: 0 };
            send_control(&mut send, FrameType::PublishOk, &ok).await?;
            let frame = reader.next().await?.expect("a batch");
            assert_eq!(frame.kind, FrameType::Publish);
            let _ = heard.send(open.topic).await;
            // The stream stays open.
            std::future::pending::<Result<(), StreamError>>().await
        });
    }
}

#[tokio::test]
async fn a_large_batch_does_not_wait_for_small_ones_that_were_written_after_it() {
    let (node, profile) = node();
    let (heard, mut order) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    tasks.spawn(listen(node, heard));
    let client = Client::connect(&profile).await.expect("connected");
    let topics = ["large", "a", "b", "c", "d", "e", "f", "g", "h"];
    let mut publishers = Vec::new();
    for topic in topics {
        let publisher = client.publisher(&topic.parse().unwrap()).open().await.expect("agreed");
        publishers.push(publisher);
    }
    for (publisher, len) in publishers.iter().zip([900_000].into_iter().chain([100_000; 8])) {
        let sent = publisher.try_send(&Record::new(vec![7; len])).expect("good");
        assert!(sent.is_some(), "there is room");
    }
    let mut came = Vec::new();
    while came.len() < topics.len() {
        let topic = timeout(DEADLINE, order.recv()).await.expect("all come").expect("it listens");
        came.push(topic.to_string());
    }
    // In turn, packet by packet, it would come last.
    assert_ne!(came.last().map(String::as_str), Some("large"), "{came:?}");
}
