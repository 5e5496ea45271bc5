//! Nodes of a site in one process, with real endpoints on loopback.

mod bench;
mod flow;
mod refused;

use std::time::Duration;

use bytes::Bytes;

use self::bench::{Node, Site, beat, boot, durable, until};
use super::*;
use crate::types::{Lsn, ShardId};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn nodes_call_each_other() {
    let site = Site::new();
    let (a, b) = (site.node(1).await, site.node(2).await);
    Node::connect(&[&a, &b]).await;
    let answer = a.links.call(b.id, Bytes::from_static(b"x"), SOON).await.expect("answered");
    assert_eq!(answer, "x asked by 1");
    let answer = b.links.call(a.id, Bytes::from_static(b"y"), SOON).await.expect("answered");
    assert_eq!(answer, "y asked by 2");
    let status = &a.links.status()[0];
    assert_eq!((status.node, status.name.as_str(), status.dropped), (b.id, "n-2", 0));
    assert!(status.rtt.is_some() && status.last_error.is_none(), "{status:?}");
}

#[tokio::test]
async fn a_call_that_cannot_be_answered_says_why() {
    let site = Site::new();
    let (a, b) = (site.node(1).await, site.node(2).await);
    let ask = |to, len, deadline| a.links.call(NodeId(to), vec![0; len].into(), deadline);
    assert_eq!(ask(2, 1, SOON).await, Err(CallError::UnknownPeer(NodeId(2))));
    a.links.set_peers([(b.id, PeerAddress { name: b.name.clone(), addresses: vec![] })].into());
    assert_eq!(ask(2, 1, SOON).await, Err(CallError::NotConnected(NodeId(2))));
    until(|| a.links.status()[0].last_error.is_some()).await;
    assert_eq!(a.links.status()[0].last_error.as_deref(), Some("no address of it is known"));
    Node::connect(&[&a, &b]).await;
    let max = crate::limits::CALL_LEN_MAX;
    assert_eq!(ask(2, max + 1, SOON).await, Err(CallError::TooLarge(max + 1)));
    let lost = a.links.call(b.id, Bytes::from_static(bench::ANSWER_TOO_MUCH), SOON).await;
    assert!(matches!(&lost, Err(CallError::Lost { why, .. }) if why.contains("reset")), "{lost:?}");
    let short = Duration::from_millis(50);
    let late = a.links.call(b.id, Bytes::from_static(bench::ANSWER_NEVER), short).await;
    assert_eq!(late, Err(CallError::Timeout { node: b.id, deadline: short }));
    let echoed = ask(2, max - 16, SOON).await.expect("as large as a call may be");
    assert!(echoed.len() > max - 16);
}

#[tokio::test]
async fn heartbeats_reach_all_three() {
    let site = Site::new();
    let (a, b, c) = (site.node(1).await, site.node(2).await, site.node(3).await);
    Node::connect(&[&a, &b, &c]).await;
    let sent = beat(&a, 100);
    until(|| {
        a.links.heartbeat(&sent);
        [&b, &c].iter().all(|node| node.seen.beats(a.id).last() == Some(&sent))
    })
    .await;
}

#[tokio::test]
async fn messages_of_a_shard_arrive_in_order_and_entries_come_from_the_log() {
    let site = Site::new();
    let (a, b) = (site.node(1).await, site.node(2).await);
    Node::connect(&[&a, &b]).await;
    for n in 0..100 {
        for shard in [ShardId(0), ShardId(1)] {
            let message = Outgoing::Message(durable(&a, &b, shard, n));
            a.links.send(shard, boot(b.id), message);
        }
        b.links.send(ShardId(0), boot(a.id), Outgoing::Message(durable(&b, &a, ShardId(0), n)));
    }
    let numbers = |node: &Node, shard| node.seen.durables(ShardId(shard));
    until(|| numbers(&b, 0).len() == 100 && numbers(&b, 1).len() == 100).await;
    until(|| numbers(&a, 0).len() == 100).await;
    let all: Vec<u64> = (0..100).collect();
    assert_eq!((numbers(&b, 0), numbers(&b, 1), numbers(&a, 0)), (all.clone(), all.clone(), all));

    let log = &a.log.entries;
    let until_end = Lsn(log.len() as u64);
    let outgoing = |from, until| Outgoing::Entries {
        epoch: bench::EPOCH,
        from_boot: boot(a.id),
        from,
        until,
        high_watermark: Lsn(7),
    };
    a.links.send(ShardId(2), boot(b.id), outgoing(Lsn(5), until_end));
    a.links.send(ShardId(2), boot(b.id), outgoing(until_end, until_end));
    until(|| b.seen.appends(ShardId(2)).iter().any(|append| append.entries.is_empty())).await;
    let appends = b.seen.appends(ShardId(2));
    assert!(appends.len() > 3, "{} messages", appends.len());
    let entries: Vec<_> = appends.iter().flat_map(|append| &append.entries).cloned().collect();
    assert_eq!(entries, log[5..]);
    let mut at = log[4].header.chain;
    for append in appends {
        assert_eq!((append.prev.chain, append.high_watermark), (at, Lsn(7)));
        at = append.entries.last().map_or(at, |last| last.header.chain);
    }
}

#[tokio::test]
async fn a_link_that_is_dropped_comes_back() {
    let site = Site::new();
    let (a, b) = (site.node(1).await, site.node(2).await);
    Node::connect(&[&a, &b]).await;
    b.stop_serving();
    until(|| a.links.status()[0].connected_for.is_none()).await;
    assert_eq!(
        a.links.call(b.id, Bytes::new(), SOON).await,
        Err(CallError::NotConnected(b.id)),
        "while the node stops it serves no call"
    );
    a.links.send(ShardId(0), boot(b.id), Outgoing::Message(durable(&a, &b, ShardId(0), 1)));
    until(|| a.links.status()[0].last_error.as_deref().is_some_and(|e| e.contains("stopping")))
        .await;
    b.serve_again();
    until(|| a.links.status()[0].connected_for.is_some()).await;
    let status = a.links.status().remove(0);
    assert_eq!((status.last_error, status.dropped), (None, 1));
    assert!(a.links.call(b.id, Bytes::new(), SOON).await.is_ok());
    a.links.send(ShardId(0), boot(b.id), Outgoing::Message(durable(&a, &b, ShardId(0), 2)));
    until(|| b.seen.durables(ShardId(0)) == [2]).await;
}

#[tokio::test]
async fn peers_come_and_go_and_move() {
    let site = Site::new();
    let (a, b) = (site.node(1).await, site.node(2).await);
    Node::connect(&[&a, &b]).await;
    a.links.set_peers([].into());
    assert!(a.links.status().is_empty());
    until(|| b.serving() == 0).await;

    // The same node at another place, while the old one still answers as another.
    let moved = site.node(2).await;
    moved.seen.know(&a);
    let at = |node: &Node, extra: &[&str]| {
        let mut addresses: Vec<String> = extra.iter().map(|s| (*s).to_owned()).collect();
        addresses.push(node.address.to_string());
        [(node.id, PeerAddress { name: node.name.clone(), addresses })].into()
    };
    a.links.set_peers(at(&b, &[]));
    until(|| a.links.status()[0].connected_for.is_some()).await;
    a.links.set_peers(at(&b, &["127.0.0.1:1"]));
    assert!(
        a.links.call(b.id, Bytes::new(), SOON).await.is_ok(),
        "an address more changes nothing"
    );
    a.links.set_peers(at(&moved, &["127.0.0.1:1"]));
    until(|| moved.serving() == 2 && b.serving() == 0).await;
    until(|| a.links.status()[0].connected_for.is_some()).await;
    assert!(a.links.call(b.id, Bytes::new(), SOON).await.is_ok());
    a.links.close().await;
    until(|| moved.serving() == 0).await;
}
