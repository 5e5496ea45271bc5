//! One peer: the two connections to it, and what waits to be sent on them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_core::future::BoxFuture;
use quinn::{Connection, ConnectionError, SendStream, WriteError};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    dial::{Dialled, Dialler, PeerAddress, close},
    frame::{self, FrameError},
    hello::LinkKind,
    message::{self, TooLarge},
};
use crate::{
    limits::{
        APPEND_BYTES, CALL_LEN_MAX, CALLS_PER_PEER_MAX, PEER_QUEUE_BYTES_MAX, PEER_QUEUE_LEN,
        PEER_REDIAL_FIRST, PEER_REDIAL_LAST,
    },
    replication::{Append, Body, Envelope, LogEnd, LogEntry},
    types::{Boot, Epoch, Lsn, NodeId, NodeName, ShardId},
    wire::{CloseCode, Entry},
};

/// What is sent to a replica.
#[derive(Clone, Debug)]
pub enum Outgoing {
    /// This.
    Message(Envelope<Entry>),
    /// Entries, read from the log when their turn comes: what a peer lacks is not held in memory.
    Entries {
        /// In which epoch.
        epoch: Epoch,
        /// Who says it.
        from_boot: Boot,
        /// The first.
        from: Lsn,
        /// Behind the last; equal to `from` when only the high watermark is to be told.
        until: Lsn,
        /// Positions below this are committed.
        high_watermark: Lsn,
    },
}

/// Where entries are read that a peer lacks.
pub trait LogSource: Send + Sync + 'static {
    /// Entries from `from` up to `until`, about `bytes_max` but at least one if there is one, with the log's end before
    /// the first. None if that end is not known any more. A read that blocks is put on a thread of its own by the
    /// implementor.
    fn entries(
        &self,
        shard: ShardId,
        from: Lsn,
        until: Lsn,
        bytes_max: usize,
    ) -> BoxFuture<'_, Option<(LogEnd, Vec<Entry>)>>;
}

/// How the link to one peer does.
#[derive(Clone, Debug)]
pub struct LinkStatus {
    /// The peer.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// For how long both connections are there; none if one is not.
    pub connected_for: Option<Duration>,
    /// Round trip time on the control connection.
    pub rtt: Option<Duration>,
    /// Where the control connection leads.
    pub address: Option<SocketAddr>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Messages that were dropped because there was no link or no room.
    pub dropped: u64,
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The site has no such node, or it was not told to this one yet.
    #[error("node {0} is not known as a peer")]
    UnknownPeer(NodeId),
    /// There is no connection to it.
    #[error("node {0} is not connected")]
    NotConnected(NodeId),
    /// The request is larger than a call may be.
    #[error("call of {0} bytes is over the limit of {CALL_LEN_MAX} bytes")]
    TooLarge(usize),
    /// The time is over.
    #[error("node {node} did not answer within {deadline:?}")]
    Timeout {
        /// Who.
        node: NodeId,
        /// Which time.
        deadline: Duration,
    },
    /// The connection or the stream ended.
    #[error("call to node {node} was lost: {why}")]
    Lost {
        /// Who.
        node: NodeId,
        /// How.
        why: String,
    },
}

/// One of the two connections, as it is now.
#[derive(Clone, Debug)]
struct Up {
    connection: Connection,
    /// Which connection since the link began: what was queued for another is stale.
    number: u64,
    since: Instant,
}

#[derive(Debug)]
struct Path {
    kind: LinkKind,
    up: watch::Sender<Option<Up>>,
    number: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl Path {
    fn new(kind: LinkKind) -> Self {
        let up = watch::Sender::new(None);
        Self { kind, up, number: AtomicU64::new(0), last_error: Mutex::default() }
    }

    fn now(&self) -> Option<Up> {
        self.up.borrow().clone()
    }

    fn set(&self, connection: &Connection) {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let up = Up { connection: connection.clone(), number, since: Instant::now() };
        *self.error() = None;
        self.up.send_replace(Some(up));
    }

    fn error(&self) -> MutexGuard<'_, Option<String>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says each reason once.
    fn failed(&self, node: NodeId, name: &NodeName, why: String) {
        let mut last = self.error();
        if last.as_ref() != Some(&why) {
            tracing::warn!(%node, %name, kind = ?self.kind, error = why, "no link to another node");
            *last = Some(why);
        }
    }
}

struct Queued {
    outgoing: Outgoing,
    to: Boot,
    /// Number of the connection that was there.
    number: u64,
    _room: OwnedSemaphorePermit,
}

struct Queue {
    messages: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
}

/// One peer.
pub(super) struct Link {
    node: NodeId,
    dialler: Arc<Dialler>,
    source: Arc<dyn LogSource>,
    address: watch::Sender<PeerAddress>,
    control: Path,
    data: Path,
    queues: Mutex<BTreeMap<ShardId, Queue>>,
    calls: Semaphore,
    dropped: AtomicU64,
    stop: CancellationToken,
    tasks: TaskTracker,
    runtime: Handle,
}

impl Link {
    pub(super) fn begin(
        node: NodeId,
        address: PeerAddress,
        dialler: Arc<Dialler>,
        source: Arc<dyn LogSource>,
        stop: CancellationToken,
        tasks: TaskTracker,
        runtime: Handle,
    ) -> Arc<Self> {
        let link = Arc::new(Self {
            node,
            dialler,
            source,
            address: watch::Sender::new(address),
            control: Path::new(LinkKind::Control),
            data: Path::new(LinkKind::Data),
            queues: Mutex::default(),
            calls: Semaphore::new(CALLS_PER_PEER_MAX as usize),
            dropped: AtomicU64::new(0),
            stop,
            tasks,
            runtime,
        });
        for kind in [LinkKind::Control, LinkKind::Data] {
            let link_of_task = Arc::clone(&link);
            link.tasks.spawn_on(async move { link_of_task.run(kind).await }, &link.runtime);
        }
        link
    }

    pub(super) fn set_address(&self, address: PeerAddress) {
        self.address.send_if_modified(|known| {
            let changed = *known != address;
            *known = address;
            changed
        });
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    fn path(&self, kind: LinkKind) -> &Path {
        match kind {
            LinkKind::Control => &self.control,
            LinkKind::Data => &self.data,
        }
    }

    /// Keeps one of the two connections until the link stops.
    async fn run(&self, kind: LinkKind) {
        let path = self.path(kind);
        self.stop.run_until_cancelled(self.keep(path)).await;
        if let Some(up) = path.up.send_replace(None) {
            close(&up.connection, CloseCode::Done, "");
        }
    }

    async fn keep(&self, path: &Path) {
        let mut addresses = self.address.subscribe();
        let mut pause = PEER_REDIAL_FIRST;
        let mut prefer: Option<String> = None;
        loop {
            let address = addresses.borrow_and_update().clone();
            let dialled = tokio::select! {
                dialled = self.dialler.dial(self.node, &address, path.kind, prefer.as_deref()) => dialled,
                _ = addresses.changed() => continue,
            };
            match dialled {
                Ok(dialled) => {
                    let began = Instant::now();
                    path.set(&dialled.connection);
                    tracing::info!(node = %self.node, name = %address.name, kind = ?path.kind, "link to another node");
                    let why = self.until_lost(&mut addresses, &address, &dialled).await;
                    path.up.send_replace(None);
                    if let Some(reason) = dialled.connection.close_reason() {
                        self.dialler.ended(&reason);
                    }
                    path.failed(self.node, &address.name, why);
                    // A peer that greets and hangs up is not dialled in a tight loop.
                    if began.elapsed() >= PEER_REDIAL_LAST {
                        pause = PEER_REDIAL_FIRST;
                    }
                    prefer = Some(dialled.address);
                }
                Err(error) => path.failed(self.node, &address.name, error.to_string()),
            }
            // Drawn from the upper half, so that two nodes that lost each other do not dial in step.
            let wait = pause.mul_f64(0.5 + 0.5 * rand::random::<f64>());
            pause = (pause * 2).min(PEER_REDIAL_LAST);
            tokio::select! {
                () = sleep_until(Instant::now() + wait) => {}
                _ = addresses.changed() => pause = PEER_REDIAL_FIRST,
            }
        }
    }

    /// Waits until the connection is gone, or is not one to this peer any more.
    async fn until_lost(
        &self,
        addresses: &mut watch::Receiver<PeerAddress>,
        was: &PeerAddress,
        Dialled { connection, address }: &Dialled,
    ) -> String {
        loop {
            tokio::select! {
                error = connection.closed() => return error.to_string(),
                _ = addresses.changed() => {
                    let now = addresses.borrow_and_update();
                    if now.name != was.name || !now.addresses.contains(address) {
                        close(connection, CloseCode::Done, "");
                        return "its addresses have changed".to_owned();
                    }
                }
            }
        }
    }

    pub(super) fn wake(&self) {
        // Whoever is connected finds the same address, and stays.
        self.address.send_modify(|_| {});
    }

    pub(super) fn status(&self) -> LinkStatus {
        let (control, data) = (self.control.now(), self.data.now());
        let since = control.as_ref().zip(data.as_ref()).map(|(c, d)| c.since.max(d.since));
        LinkStatus {
            node: self.node,
            name: self.address.borrow().name.clone(),
            connected_for: since.map(|since| since.elapsed()),
            rtt: control.as_ref().map(|up| up.connection.rtt()),
            address: control.map(|up| up.connection.remote_address()),
            last_error: self.control.error().clone().or_else(|| self.data.error().clone()),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    pub(super) fn datagrams(&self, datagrams: &[Bytes]) {
        let up = self.control.up.borrow();
        let Some(up) = up.as_ref() else { return };
        for datagram in datagrams {
            if let Err(error) = up.connection.send_datagram(datagram.clone()) {
                tracing::debug!(node = %self.node, %error, "heartbeat not sent");
            }
        }
    }

    pub(super) async fn call(
        &self,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        if request.len() > CALL_LEN_MAX {
            return Err(CallError::TooLarge(request.len()));
        }
        let node = self.node;
        let asking = async {
            let not_connected = CallError::NotConnected(node);
            let up = self.control.now().ok_or_else(|| not_connected.clone())?;
            let _permit = self.calls.acquire().await.map_err(|_| not_connected)?;
            ask(&up.connection, request)
                .await
                .map_err(|error| CallError::Lost { node, why: error.to_string() })
        };
        timeout(deadline, asking).await.unwrap_or(Err(CallError::Timeout { node, deadline }))
    }

    pub(super) fn send(self: &Arc<Self>, shard: ShardId, to: Boot, outgoing: Outgoing) {
        if self.queue(shard, to, outgoing).is_none() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn queue(self: &Arc<Self>, shard: ShardId, to: Boot, outgoing: Outgoing) -> Option<()> {
        let number = self.data.up.borrow().as_ref()?.number;
        let bytes = match &outgoing {
            Outgoing::Message(envelope) => message::encoded_len(envelope),
            Outgoing::Entries { .. } => 0,
        };
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queues.entry(shard).or_insert_with(|| self.begin_stream(shard));
        let bytes = u32::try_from(bytes).ok()?;
        let room = Arc::clone(&queue.room).try_acquire_many_owned(bytes).ok()?;
        queue.messages.try_send(Queued { outgoing, to, number, _room: room }).ok()
    }

    fn begin_stream(self: &Arc<Self>, shard: ShardId) -> Queue {
        let (messages, queued) = mpsc::channel(PEER_QUEUE_LEN);
        let link = Arc::clone(self);
        let task = async move {
            link.stop.run_until_cancelled(link.stream(shard, queued)).await;
        };
        self.tasks.spawn_on(task, &self.runtime);
        Queue { messages, room: Arc::new(Semaphore::new(PEER_QUEUE_BYTES_MAX)) }
    }

    /// Sends what is queued for one shard, on a stream of its own.
    async fn stream(&self, shard: ShardId, mut queued: mpsc::Receiver<Queued>) {
        let mut open: Option<(u64, SendStream)> = None;
        while let Some(next) = queued.recv().await {
            let up = self.data.now().filter(|up| up.number == next.number);
            let sent = match up {
                Some(up) => self.write(shard, next, &up, &mut open).await,
                // Queued for a connection that is gone.
                None => Err(SendError::Stale),
            };
            if let Err(error) = sent {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                match &error {
                    SendError::TooLarge(_) => {
                        tracing::error!(node = %self.node, %shard, %error, "message dropped");
                    }
                    SendError::Stale | SendError::NotInLog(_) => {
                        tracing::debug!(node = %self.node, %shard, %error, "message dropped");
                    }
                    SendError::Connection(_) | SendError::Write(_) => {
                        tracing::debug!(node = %self.node, %shard, %error, "message dropped");
                        open = None;
                    }
                }
            }
        }
    }

    async fn write(
        &self,
        shard: ShardId,
        next: Queued,
        up: &Up,
        open: &mut Option<(u64, SendStream)>,
    ) -> Result<(), SendError> {
        let stream = match open {
            Some((number, stream)) if *number == up.number => stream,
            _ => &mut open.insert((up.number, up.connection.open_uni().await?)).1,
        };
        let Queued { outgoing, to, .. } = next;
        match outgoing {
            Outgoing::Message(envelope) => {
                prioritise(stream, matches!(envelope.body, Body::InstallChunk { .. }));
                for part in message::split(envelope) {
                    put(&part, stream).await?;
                }
                Ok(())
            }
            Outgoing::Entries { epoch, from_boot, mut from, until, high_watermark } => {
                prioritise(stream, false);
                loop {
                    let read = self.source.entries(shard, from, until, APPEND_BYTES).await;
                    let Some((prev, entries)) = read.filter(|(prev, _)| prev.lsn == from) else {
                        // The log was cut or trimmed meanwhile.
                        return Err(SendError::NotInLog(from));
                    };
                    let last = entries.last().map(|last| last.end().lsn);
                    if last.is_none() && from < until {
                        return Err(SendError::NotInLog(from));
                    }
                    let body = Body::Append(Append { prev, entries, high_watermark });
                    put(&Envelope { shard, epoch, from: from_boot, to, body }, stream).await?;
                    match last {
                        Some(end) if end < until => from = end,
                        _ => return Ok(()),
                    }
                    // More than one message is catching up: it yields to shards that keep pace.
                    prioritise(stream, true);
                }
            }
        }
    }
}

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("it was queued for a connection that is gone")]
    Stale,
    #[error("entry {0} is not in the log any more")]
    NotInLog(Lsn),
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

async fn put(envelope: &Envelope<Entry>, stream: &mut SendStream) -> Result<(), SendError> {
    let mut bytes = BytesMut::new();
    message::encode(envelope, &mut bytes)?;
    Ok(frame::write(stream, bytes.freeze()).await?)
}

/// What is sent in bulk waits for what is not, on the streams of a connection.
fn prioritise(stream: &SendStream, bulk: bool) {
    // Fails only on a stream that is over, and then writing says so.
    let _ = stream.set_priority(if bulk { -1 } else { 0 });
}

/// Why a call was lost.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("it ended the stream without an answer")]
    NoAnswer,
}

async fn ask(connection: &Connection, request: Bytes) -> Result<Bytes, AskError> {
    let (mut output, mut input) = connection.open_bi().await?;
    frame::write(&mut output, request).await?;
    // An error says that the stream is over already; reading says why.
    let _ = output.finish();
    frame::read(&mut input, CALL_LEN_MAX).await?.ok_or(AskError::NoAnswer)
}
