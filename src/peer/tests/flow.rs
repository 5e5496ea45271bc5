//! What is slow or dead harms nothing but itself.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use tokio::{net::UdpSocket, sync::watch, task::JoinSet, time::Instant};

use super::{bench::EPOCH, *};
use crate::{
    limits::{PEER_IDLE_TIMEOUT, PEER_QUEUE_BYTES_MAX, PEER_QUEUE_LEN},
    replication::{Body, Chunk, Envelope, StateRow},
};

/// A message of about this length.
fn large(from: &Node, to: &Node, shard: ShardId, len: usize) -> Outgoing {
    let row = StateRow { kind: 1, key: vec![], value: vec![7; len] };
    let chunk = Chunk { entries: vec![], state: vec![row] };
    let body = Body::InstallChunk { number: 1, index: 0, chunk };
    let (from, to) = (boot(from.id), boot(to.id));
    Outgoing::Message(Envelope { shard, epoch: EPOCH, from, to, body })
}

#[tokio::test]
async fn a_shard_that_is_not_read_delays_nothing_else_and_takes_bounded_room() {
    let site = Site::new();
    let (a, b, c) = (site.node(1).await, site.node(2).await, site.node(3).await);
    Node::connect(&[&a, &b, &c]).await;
    let (stalled, other) = (ShardId(0), ShardId(1));
    b.seen.stalled.send_replace(Some(stalled));
    // In bytes, four times what may wait here, in the connection's windows, and there.
    let (len, count) = (500_000, 200);
    for _ in 0..count {
        a.links.send(stalled, boot(b.id), large(&a, &b, stalled, len));
    }
    let dropped = |node: &Node| node.links.status().iter().map(|s| s.dropped).sum::<u64>();
    let most = (PEER_QUEUE_BYTES_MAX / len) as u64 + 8;
    assert!(dropped(&a) >= count - most, "{} of {count} were dropped", dropped(&a));

    let before = dropped(&a);
    for n in 0..100 {
        for to in [&b, &c] {
            a.links.send(other, boot(to.id), Outgoing::Message(durable(&a, to, other, n)));
        }
        a.links.send(stalled, boot(c.id), Outgoing::Message(durable(&a, &c, stalled, n)));
    }
    let began = Instant::now();
    let sent = beat(&a, 3);
    until(|| {
        a.links.heartbeat(&sent);
        b.seen.durables(other).len() == 100
            && c.seen.durables(other).len() == 100
            && c.seen.durables(stalled).len() == 100
            && !b.seen.beats(a.id).is_empty()
    })
    .await;
    assert!(a.links.call(b.id, Bytes::new(), SOON).await.is_ok());
    assert!(began.elapsed() < PEER_IDLE_TIMEOUT, "{:?}", began.elapsed());
    assert_eq!(dropped(&a), before);
    assert!(b.seen.envelopes(stalled).is_empty());

    b.seen.stalled.send_replace(None);
    let arrives = usize::try_from(count - before).expect("small");
    until(|| b.seen.envelopes(stalled).len() == arrives).await;
}

#[tokio::test]
async fn many_small_messages_are_bounded_by_their_number() {
    let site = Site::new();
    let (a, b) = (site.node(1).await, site.node(2).await);
    Node::connect(&[&a, &b]).await;
    // No await between: the stream's task does not run.
    let count = 3 * PEER_QUEUE_LEN as u64;
    for n in 0..count {
        a.links.send(ShardId(0), boot(b.id), Outgoing::Message(durable(&a, &b, ShardId(0), n)));
    }
    assert_eq!(a.links.status()[0].dropped, count - PEER_QUEUE_LEN as u64);
    until(|| b.seen.durables(ShardId(0)).len() == PEER_QUEUE_LEN).await;
    assert!(b.seen.durables(ShardId(0)).into_iter().eq(0..PEER_QUEUE_LEN as u64));
}

/// Passes datagrams on between two nodes while `open` is set, for the one that dials at `listen`.
struct Relay {
    address: SocketAddr,
    /// Whether what the dialling side sends arrives.
    forth: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Relay {
    async fn to(target: SocketAddr) -> Self {
        let bind = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let (near, far) =
            (Arc::new(bind().await.expect("bound")), Arc::new(bind().await.expect("bound")));
        let address = near.local_addr().expect("bound");
        let forth = watch::Sender::new(true);
        let dialler: watch::Sender<Option<SocketAddr>> = watch::Sender::new(None);
        let from = dialler.subscribe();
        let mut tasks = JoinSet::new();
        let open = forth.subscribe();
        let (near_of_task, far_of_task) = (Arc::clone(&near), Arc::clone(&far));
        tasks.spawn(async move {
            let mut packet = [0; 2_048];
            while let Ok((len, address)) = near_of_task.recv_from(&mut packet).await {
                dialler.send_replace(Some(address));
                if *open.borrow() {
                    let _ = far_of_task.send_to(&packet[..len], target).await;
                }
            }
        });
        tasks.spawn(async move {
            let mut packet = [0; 2_048];
            while let Ok(len) = far.recv(&mut packet).await {
                let to = *from.borrow();
                if let Some(to) = to {
                    let _ = near.send_to(&packet[..len], to).await;
                }
            }
        });
        Self { address, forth, _tasks: tasks }
    }
}

#[tokio::test]
async fn a_cut_in_one_direction_is_noticed_and_the_other_direction_goes_on() {
    let site = Site::new();
    let (a, b, c) = (site.node(1).await, site.node(2).await, site.node(3).await);
    let relay = Relay::to(b.address).await;
    let all = [&a, &b, &c];
    Node::connect(&all).await;
    let behind = PeerAddress { addresses: vec![relay.address.to_string()], ..b.peer_address() };
    a.links.set_peers([(b.id, behind), (c.id, c.peer_address())].into());
    let link = |to: &Node| a.links.status().into_iter().find(|s| s.node == to.id).expect("a peer");
    until(|| link(&b).connected_for.is_none()).await;
    until(|| link(&b).connected_for.is_some()).await;

    relay.forth.send_replace(false);
    let cut = Instant::now();
    until(|| link(&b).connected_for.is_none()).await;
    assert!(cut.elapsed() < 2 * PEER_IDLE_TIMEOUT, "{:?}", cut.elapsed());
    assert!(link(&c).connected_for.is_some_and(|time| time >= cut.elapsed()));
    assert!(b.links.call(a.id, Bytes::new(), SOON).await.is_ok(), "it has dialled for itself");

    relay.forth.send_replace(true);
    until(|| link(&b).connected_for.is_some()).await;
    assert!(a.links.call(b.id, Bytes::new(), SOON).await.is_ok());
}
