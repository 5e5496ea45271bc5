//! Batches for partitions that another node leads go there, over a publish stream of the client protocol: any node serves
//! any client. What other nodes hold is read there, over a subscribe stream.
//!
//! A client's stream has one relay for each node that leads some of its partitions. A batch holds its room in the
//! client's window until its answer is back, which bounds what a relay may hold. When the other node is lost, or leads no
//! more, what was sent is answered with `Unknown`, and the client sends it again under the same sequence.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::task::TaskTracker;

use super::{
    acks::AckHandle,
    engine::{Engine, soon},
    streams,
};
use crate::{
    limits::{PUBLISH_WINDOW_BATCHES, RELAY_DIAL_MAX},
    net::{authority::NODE_SERVER_NAME, frames::FrameReader},
    peer::Links,
    types::{NodeId, ShardId},
    wire::{
        Ack, Code, Fault, FrameType, Hello, Nack, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN,
        PublishOk, PublishOpen, SubscribeOk, SubscribeOpen, Welcome, cbor, put_frame_head,
    },
};

/// The connections over which batches are passed on: one to each node that leads what clients of this one publish.
#[derive(Debug)]
pub(super) struct Relays {
    endpoint: Endpoint,
    dial: RwLock<quinn::ClientConfig>,
    links: Mutex<HashMap<NodeId, Arc<tokio::sync::Mutex<Option<Session>>>>>,
    tasks: TaskTracker,
}

/// A connection, with the control stream that must stay open as long as it is used.
#[derive(Debug)]
struct Session {
    connection: Connection,
    _control: (SendStream, RecvStream),
}

/// A batch that is passed on.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) shard: ShardId,
    pub(super) partition: u32,
    pub(super) batch: Bytes,
    /// Number of the batch on the client's stream.
    pub(super) index: u64,
    pub(super) handle: AckHandle,
}

/// The way of one client's stream to one node.
#[derive(Debug)]
pub(super) struct Relay {
    batches: mpsc::Sender<Passed>,
}

/// Batches that the other node has not answered, by their number on its stream.
type Waiting = Mutex<BTreeMap<u64, (ShardId, u64, AckHandle)>>;

impl Relays {
    pub(super) fn new(endpoint: Endpoint, dial: quinn::ClientConfig) -> Self {
        let (links, tasks) = (Mutex::default(), TaskTracker::new());
        Self { endpoint, dial: RwLock::new(dial), links, tasks }
    }

    /// Connections that come from now on are dialled with this.
    pub(super) fn set_dial(&self, dial: quinn::ClientConfig) {
        *self.dial.write().unwrap_or_else(PoisonError::into_inner) = dial;
    }

    /// Where tasks that pass something on run.
    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Opens a way to `node` for a stream.
    pub(super) fn open(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        node: NodeId,
        open: PublishOpen,
    ) -> Relay {
        let (batches, queue) = mpsc::channel(PUBLISH_WINDOW_BATCHES as usize);
        let (relays, engine) = (Arc::clone(self), Arc::clone(engine));
        self.tasks.spawn(async move { relays.run(&engine, node, open, queue).await });
        Relay { batches }
    }

    async fn run(
        &self,
        engine: &Engine,
        node: NodeId,
        open: PublishOpen,
        mut queue: mpsc::Receiver<Passed>,
    ) {
        let waiting = Waiting::default();
        let ended = match self.stream(engine, node, open).await {
            Ok((mut output, mut input)) => tokio::select! {
                ended = write(engine, node, &mut queue, &mut output, &waiting) => ended,
                ended = read(&mut input, &waiting) => ended,
                () = leads_no_more(engine, node, &waiting) => Some(electing("the leader changed")),
            },
            Err(fault) => Some(fault),
        };
        // What was sent may be stored; what was not is not.
        queue.close();
        for (_, (_, index, handle)) in std::mem::take(&mut *lock(&waiting)) {
            let text = "the node that leads the partition was lost before it answered";
            handle.refuse(index, Fault::new(Code::Unknown, text));
        }
        let fault = ended.unwrap_or_else(|| electing("the node that leads the partition was lost"));
        while let Some(passed) = queue.recv().await {
            passed.handle.refuse(passed.index, fault.clone());
        }
    }

    async fn stream(
        &self,
        engine: &Engine,
        node: NodeId,
        open: PublishOpen,
    ) -> Result<(SendStream, FrameReader), Fault> {
        let open = PublishOpen { direct: true, ..open };
        let kinds = (FrameType::PublishOpen, FrameType::PublishOk);
        let (_, output, input) = self.open_stream::<PublishOk>(engine, node, kinds, &open).await?;
        Ok((output, input))
    }

    /// Opens a subscribe stream to `node`, for partitions that it holds. The sending half must live as long as it is read.
    pub(super) async fn subscribe(
        &self,
        engine: &Engine,
        node: NodeId,
        open: SubscribeOpen,
    ) -> Result<(SubscribeOk, SendStream, FrameReader), Fault> {
        let open = SubscribeOpen { direct: true, ..open };
        self.open_stream(engine, node, (FrameType::SubscribeOpen, FrameType::SubscribeOk), &open)
            .await
    }

    /// Opens a stream with the frame that says what it is for, and waits for the answer of the other kind.
    async fn open_stream<T: DeserializeOwned>(
        &self,
        engine: &Engine,
        node: NodeId,
        (kind, answer): (FrameType, FrameType),
        open: &impl Serialize,
    ) -> Result<(T, SendStream, FrameReader), Fault> {
        let lost = |why: &dyn std::fmt::Display| {
            electing(&format!("node {node}, which has the partition, cannot be reached: {why}"))
        };
        let opened = async {
            let connection = self.connection(engine, node).await.map_err(|why| lost(&why))?;
            let (mut output, input) = connection.open_bi().await.map_err(|e| lost(&e))?;
            streams::send(&mut output, kind, open).await.map_err(|error| lost(&error))?;
            let mut input = FrameReader::new(input);
            let frame = input.next().await.map_err(|e| lost(&e))?;
            match frame {
                Some(frame) if frame.kind == answer => {
                    let answer = cbor::get(&frame.body).map_err(|e| lost(&e))?;
                    Ok((answer, output, input))
                }
                Some(frame) if frame.kind == FrameType::Fault => {
                    let fault: Fault = cbor::get(&frame.body).map_err(|e| lost(&e))?;
                    // The other node may not have heard of a new topic yet.
                    let later = fault.code == Code::UnknownTopic;
                    Err(if later { electing("the topic is being made") } else { fault })
                }
                Some(frame) => Err(lost(&format!("it answered with {:?}", frame.kind))),
                None => Err(lost(&"it ended the stream")),
            }
        };
        match timeout(RELAY_DIAL_MAX, opened).await {
            Ok(opened) => opened,
            Err(_) => Err(lost(&"no answer in time")),
        }
    }

    async fn connection(&self, engine: &Engine, node: NodeId) -> Result<Connection, String> {
        let link = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(links.entry(node).or_default())
        };
        let mut session = link.lock().await;
        if let Some(session) = session.as_ref().filter(|s| s.connection.close_reason().is_none()) {
            return Ok(session.connection.clone());
        }
        // Where the link between the nodes leads has proven to be that node, and it may have moved.
        let status = engine.links.get().map(Links::status).unwrap_or_default();
        let linked =
            status.into_iter().find(|link| link.node == node).and_then(|link| link.address);
        let known = engine.group.read(|site| {
            site.nodes.get(&node).map(|node| node.info.addresses.clone()).unwrap_or_default()
        });
        let addresses = linked.map(|address| address.to_string()).into_iter().chain(known);
        let mut error = "it has told no address".to_owned();
        for address in addresses {
            match self.dial(&address).await {
                Ok(dialled) => return Ok(session.insert(dialled).connection.clone()),
                Err(why) => error = why,
            }
        }
        Err(error)
    }

    async fn dial(&self, address: &str) -> Result<Session, String> {
        let mut found = tokio::net::lookup_host(address).await.map_err(|e| e.to_string())?;
        let socket: SocketAddr = found.next().ok_or("the name has no address")?;
        let config = self.dial.read().unwrap_or_else(PoisonError::into_inner).clone();
        let connecting = self
            .endpoint
            .connect_with(config, socket, NODE_SERVER_NAME)
            .map_err(|error| error.to_string())?;
        let connection = connecting.await.map_err(|error| error.to_string())?;
        let (mut output, input) = connection.open_bi().await.map_err(|e| e.to_string())?;
        let hello = Hello {
            version_min: PROTOCOL_VERSION_MIN,
            version_max: PROTOCOL_VERSION,
            software: crate::SOFTWARE.to_owned(),
            features: vec![],
            moved: false,
        };
        let sent = streams::send(&mut output, FrameType::Hello, &hello).await;
        sent.map_err(|error| error.to_string())?;
        let mut reader = FrameReader::new(input);
        let frame = reader.next().await.map_err(|error| error.to_string())?;
        let Some(frame) = frame.filter(|frame| frame.kind == FrameType::Welcome) else {
            return Err("it did not welcome this node".to_owned());
        };
        cbor::get::<Welcome>(&frame.body).map_err(|error| error.to_string())?;
        Ok(Session { connection, _control: (output, reader.into_stream()) })
    }
}

impl Relay {
    /// Passes a batch on. It comes back when the way has ended: a new one is to be opened.
    pub(super) fn send(&self, passed: Passed) -> Result<(), Passed> {
        self.batches.try_send(passed).map_err(|error| match error {
            mpsc::error::TrySendError::Full(passed) | mpsc::error::TrySendError::Closed(passed) => {
                passed
            }
        })
    }
}

/// Sends batches as they come. Ends in order once there will be no more and all are answered.
async fn write(
    engine: &Engine,
    node: NodeId,
    queue: &mut mpsc::Receiver<Passed>,
    output: &mut SendStream,
    waiting: &Waiting,
) -> Option<Fault> {
    let mut number = 0;
    while let Some(Passed { shard, partition, batch, index, handle }) = queue.recv().await {
        // Who passed it on may not have heard yet. Behind the change that `leads_no_more` waits for, nothing would end it.
        if !leads(engine, node, shard) {
            let changed = electing("the leader changed");
            handle.refuse(index, changed.clone());
            return Some(changed);
        }
        let mut head = BytesMut::new();
        put_frame_head(FrameType::Publish, 4 + batch.len(), &mut head);
        head.put_u32(partition);
        lock(waiting).insert(number, (shard, index, handle));
        number += 1;
        if let Err(error) = output.write_all_chunks(&mut [head.freeze(), batch]).await {
            return Some(electing(&error.to_string()));
        }
    }
    let _ = output.finish();
    // The reader ends when the other side does.
    std::future::pending().await
}

/// Hands answers back. Ends with the stream.
async fn read(input: &mut FrameReader, waiting: &Waiting) -> Option<Fault> {
    loop {
        let frame = match input.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return None,
            Err(error) => return Some(electing(&error.to_string())),
        };
        match frame.kind {
            FrameType::Ack => {
                let Ok(ack) = Ack::decode(&frame.body) else { return None };
                if let Some((_, index, handle)) = lock(waiting).remove(&ack.index) {
                    handle.ack(Ack { index, ..ack });
                }
            }
            FrameType::Nack => {
                let Ok(nack) = cbor::get::<Nack>(&frame.body) else { return None };
                if let Some((_, index, handle)) = lock(waiting).remove(&nack.index) {
                    handle.refuse(index, nack.fault);
                }
            }
            FrameType::Fault => return cbor::get(&frame.body).ok().map(later),
            _ => return None,
        }
    }
}

/// Ends when `node` leads a shard no more for which a batch waits: its answer may never come.
async fn leads_no_more(engine: &Engine, node: NodeId, waiting: &Waiting) {
    let mut applied = engine.group.applied();
    loop {
        let lost = {
            let waiting = lock(waiting);
            waiting.values().any(|(shard, _, _)| !leads(engine, node, *shard))
        };
        if lost || applied.changed().await.is_err() {
            return;
        }
    }
}

/// By the metadata itself: shards take over what it says a moment later.
fn leads(engine: &Engine, node: NodeId, shard: ShardId) -> bool {
    engine.group.read(|site| {
        let primary = site.shards.get(usize::from(shard.0)).and_then(|config| config.primary);
        primary.is_some_and(|primary| primary.node == node)
    })
}

/// A fault of the other node that ends a stream is not the client's end: there will be another leader.
fn later(fault: Fault) -> Fault {
    match fault.code {
        Code::Stopping => electing("the node that leads the partition stops"),
        _ => fault,
    }
}

/// Nobody can take the batch now; in a moment somebody can.
pub(super) fn electing(why: &str) -> Fault {
    Fault { retry: soon(), ..Fault::new(Code::Electing, why) }
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, BTreeMap<u64, (ShardId, u64, AckHandle)>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
