//! Connections: who may come in, and what each of their streams is for.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{error::Elapsed, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    clients::Clients,
    engine::Engine,
    liveness::LivenessTable,
    publish::PublishStream,
    relay::Relays,
    request,
    site_admin::node_infos,
    streams::{self, StreamError},
    subscribe::SubscribeStream,
};
use crate::{
    limits::{
        BATCH_LEN_MAX, CONTROL_FRAME_LEN_MAX, DRAIN_MAX, HELLO_TIMEOUT, REQUEST_TIMEOUT,
        REQUESTS_PER_CONNECTION_MAX, UNFINISHED_BYTES_MAX,
    },
    net::{Group, Identity, Who, frames::FrameReader},
    types::{NodeName, SiteName, TopicSettings, Versions},
    wire::{
        Answer, CloseCode, Code, Fault, Frame, FrameType, GoAway, Hello, Leave, NodeInfo,
        PublishOpen, Welcome, WireLimits, cbor,
    },
};

/// What all connections of a node share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) engine: Arc<Engine>,
    pub(super) relays: Arc<Relays>,
    pub(super) site: SiteName,
    pub(super) node: NodeName,
    pub(super) addresses: Vec<String>,
    pub(super) data_dir: PathBuf,
    pub(super) pki_dir: PathBuf,
    /// Machines that may be joining at once.
    pub(super) joins: Semaphore,
    /// Who was heard when.
    pub(super) liveness: LivenessTable,
    /// Who is connected, and may be asked to go elsewhere.
    pub(super) clients: Arc<Clients>,
    pub(super) connections_max: usize,
    pub(super) topic_defaults: TopicSettings,
    pub(super) allow_anonymous: bool,
    pub(super) speaks: Versions,
    pub(super) streams_max: u32,
    pub(super) inflight_bytes_max: u32,
    /// One task each; the server's stop waits for them.
    pub(super) connections: TaskTracker,
    /// Set when the node stops: streams answer what they have taken, and end.
    pub(super) stopping: CancellationToken,
    /// This node gives its work to others.
    pub(super) draining: AtomicBool,
    /// The way from this node to one that leads is cut; others reach it.
    pub(super) cut_off: AtomicBool,
    /// Cancelled, and replaced, when the clients that are here now are to go elsewhere.
    pub(super) leave: Mutex<CancellationToken>,
}

impl Shared {
    pub(super) fn is_draining(&self) -> bool {
        self.stopping.is_cancelled() || self.draining.load(Ordering::Relaxed)
    }

    /// Whether clients do better with any other node.
    pub(super) fn gives_clients_away(&self) -> bool {
        self.is_draining() || self.cut_off.load(Ordering::Relaxed)
    }

    /// How busy this node is, in percent: of the connections that it may have, or of what may wait for its disk.
    pub(super) fn load(&self) -> u8 {
        let open = self.connections.len() * 100 / self.connections_max.max(1);
        u8::try_from(open.min(100)).unwrap_or(100).max(self.engine.queue.fill())
    }

    /// Asks the clients that are here to go to another node. Those that come again later are served.
    pub(super) fn move_clients(&self) {
        let next = self.stopping.child_token();
        let mut leave = self.leave.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *leave, next).cancel();
    }

    fn leave(&self) -> CancellationToken {
        self.leave.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One connection.
struct Client {
    shared: Arc<Shared>,
    connection: Connection,
    name: String,
    /// It is another node, which passes on what its clients send.
    is_node: bool,
    /// Cancelled when the client is to leave: streams answer what they have taken, and end.
    leave: CancellationToken,
    streams: TaskTracker,
    /// What its publish streams do.
    publishing: Group,
    requests: Arc<Semaphore>,
    inflight_bytes: Arc<Semaphore>,
    /// What frames may hold that are not here whole, over all streams.
    unfinished_bytes: Arc<Semaphore>,
}

/// Serves a client until it leaves or the node stops.
pub(super) async fn serve(shared: Arc<Shared>, connection: Connection) {
    let address = connection.remote_address();
    shared.engine.metrics.connected(1);
    let client = match Client::admit(Arc::clone(&shared), connection.clone()) {
        Ok(client) => client,
        Err(reason) => {
            shared.engine.metrics.refused("certificate");
            tracing::warn!(%address, reason, "connection refused");
            close(&connection, CloseCode::Forbidden, &reason);
            shared.engine.metrics.connected(-1);
            return;
        }
    };
    client.run().await;
    shared.engine.metrics.connected(-1);
}

impl Client {
    fn admit(shared: Arc<Shared>, connection: Connection) -> Result<Arc<Self>, String> {
        let identity = Identity::of_peer(&connection).map_err(|error| error.to_string())?;
        let is_node =
            identity.as_ref().is_some_and(|identity| matches!(identity.who, Who::Node(_)));
        let name = match identity {
            Some(identity) if identity.site != shared.site => {
                return Err(format!("certificate is of site '{}'", identity.site));
            }
            Some(identity) => identity.to_uri(),
            None if shared.allow_anonymous => ANONYMOUS.to_owned(),
            None => return Err("the node lets nobody in without a certificate".to_owned()),
        };
        let inflight = shared.inflight_bytes_max as usize;
        let leave = shared.leave();
        Ok(Arc::new(Self {
            leave,
            shared,
            connection,
            name,
            is_node,
            streams: TaskTracker::new(),
            publishing: Group::default(),
            requests: Arc::new(Semaphore::new(REQUESTS_PER_CONNECTION_MAX as usize)),
            inflight_bytes: Arc::new(Semaphore::new(inflight)),
            unfinished_bytes: Arc::new(Semaphore::new(UNFINISHED_BYTES_MAX)),
        }))
    }

    async fn run(self: Arc<Self>) {
        let address = self.connection.remote_address();
        let (mut control, input, hello) = match self.hello().await {
            Ok(hello) => hello,
            Err((code, reason)) => {
                tracing::info!(%address, client = %self.name, reason, "connection refused");
                close(&self.connection, code, &reason);
                return;
            }
        };
        tracing::debug!(%address, client = %self.name, software = hello.software, "client connected");
        // Kept until the end: dropping it would tell the client to stop.
        let _input = input;
        let place = (!self.is_node)
            .then(|| self.shared.clients.enter(self.shared.engine.clock, hello.moved));
        let (place, mut told) = place.unzip();
        loop {
            tokio::select! {
                stream = self.connection.accept_bi() => match stream {
                    Ok((output, input)) => {
                        let client = Arc::clone(&self);
                        self.streams.spawn(async move { client.stream(output, input).await });
                    }
                    Err(error) => {
                        tracing::debug!(%address, client = %self.name, %error, "client left");
                        break;
                    }
                },
                Some(goodbye) = next(&mut told) => {
                    tracing::debug!(%address, client = %self.name, "client is asked to move");
                    let sent = streams::send(&mut control, FrameType::GoAway, &goodbye);
                    // A client that reads nothing stays.
                    let _ = timeout(GOODBYE_MAX, sent).await;
                }
                () = self.leave.cancelled() => {
                    self.say_goodbye(&mut control).await;
                    break;
                }
            }
        }
        drop(place);
        self.streams.close();
        // What has no answer by then may never have one. The connection ends, and the client sends it again elsewhere.
        let _ = timeout(DRAIN_MAX, self.streams.wait()).await;
        if self.leave.is_cancelled() {
            // The goodbye must not be overtaken by the close.
            let _ = control.finish();
            let _ = timeout(GOODBYE_MAX, control.stopped()).await;
            let code = CloseCode::Stopping;
            close(&self.connection, code, &code.to_string());
        }
    }

    async fn hello(&self) -> Result<(SendStream, FrameReader, Hello), (CloseCode, String)> {
        let exchange = async {
            let (mut output, input) = self
                .connection
                .accept_bi()
                .await
                .map_err(|e| (CloseCode::Protocol, e.to_string()))?;
            let mut input = FrameReader::new(input);
            let frame = input.next().await.map_err(|e| (CloseCode::Protocol, e.to_string()))?;
            let Some(Frame { kind: FrameType::Hello, body }) = frame else {
                return Err((CloseCode::Protocol, "the first frame is no hello".to_owned()));
            };
            let hello: Hello =
                cbor::get(&body).map_err(|e| (CloseCode::Protocol, e.to_string()))?;
            let theirs = Versions { min: hello.version_min, max: hello.version_max };
            let ours = self.shared.speaks;
            let Some(version) = ours.common(theirs) else {
                let reason = format!("client speaks versions {theirs}, this node {ours}");
                return Err((CloseCode::Version, reason));
            };
            let welcome = self.welcome(version);
            let sent = streams::send(&mut output, FrameType::Welcome, &welcome).await;
            sent.map_err(|e| (CloseCode::Protocol, e.to_string()))?;
            Ok((output, input, hello))
        };
        match timeout(HELLO_TIMEOUT, exchange).await {
            Ok(result) => result,
            Err(Elapsed { .. }) => Err((CloseCode::HelloTimeout, "no hello in time".to_owned())),
        }
    }

    fn welcome(&self, version: u16) -> Welcome {
        let shared = &self.shared;
        let me = NodeInfo {
            id: shared.engine.me.node,
            name: shared.node.to_string(),
            addresses: shared.addresses.clone(),
        };
        let mut nodes = vec![me];
        nodes
            .extend(shared.engine.group.read(|site| node_infos(site, Some(shared.engine.me.node))));
        Welcome {
            version,
            software: crate::SOFTWARE.to_owned(),
            site: shared.site.to_string(),
            node: shared.node.to_string(),
            node_id: shared.engine.me.node,
            you: (self.name != ANONYMOUS).then(|| self.name.clone()),
            features: vec![],
            limits: WireLimits {
                batch_len_max: u32::try_from(BATCH_LEN_MAX).unwrap_or(u32::MAX),
                control_len_max: u32::try_from(CONTROL_FRAME_LEN_MAX).unwrap_or(u32::MAX),
                streams_max: shared.streams_max,
            },
            nodes,
        }
    }

    async fn say_goodbye(&self, control: &mut SendStream) {
        let engine = &self.shared.engine;
        let goodbye = GoAway {
            reason: engine.goodbye().message,
            within_ms: u32::try_from(DRAIN_MAX.as_millis()).unwrap_or(u32::MAX),
            nodes: engine.group.read(|site| node_infos(site, Some(engine.me.node))),
            leave: Leave::Now,
        };
        // A client that does not listen learns it from the end of its streams.
        let _ = streams::send(control, FrameType::GoAway, &goodbye).await;
    }

    /// Serves one stream: its first frame says what it is for.
    async fn stream(self: &Arc<Self>, mut output: SendStream, input: RecvStream) {
        let mut input = FrameReader::within(input, Arc::clone(&self.unfinished_bytes));
        let first = tokio::select! {
            first = timeout(REQUEST_TIMEOUT, input.next()) => first,
            () = self.leave.cancelled() => {
                let fault = self.shared.engine.goodbye();
                return streams::end(&mut output, fault.into()).await;
            }
        };
        let first = match first {
            Ok(Ok(Some(first))) => first,
            // Ended before it said anything.
            Ok(Ok(None)) => return drop(streams::finish(&mut output)),
            Ok(Err(error)) => return streams::end(&mut output, error.into()).await,
            Err(Elapsed { .. }) => {
                let fault =
                    Fault::new(Code::Timeout, "the stream's first frame did not come in time");
                return streams::end(&mut output, fault.into()).await;
            }
        };
        let kind = first.kind;
        let ended = match kind {
            FrameType::Request => self.request(&first, &mut output).await,
            FrameType::PublishOpen => match cbor::get(&first.body) {
                Ok(open) => {
                    let publish = Arc::clone(self).publish(open, input, output);
                    return self.publishing.add(self.streams.track_future(publish));
                }
                Err(error) => Err(streams::malformed(&error).into()),
            },
            FrameType::SubscribeOpen => match cbor::get(&first.body) {
                Ok(open) => {
                    let stream = SubscribeStream {
                        engine: &self.shared.engine,
                        relays: &self.shared.relays,
                        leave: &self.leave,
                    };
                    stream.serve(open, input, &mut output).await
                }
                Err(error) => Err(streams::malformed(&error).into()),
            },
            kind => Err(streams::unexpected(kind).into()),
        };
        self.end(kind, ended, output).await;
    }

    async fn publish(self: Arc<Self>, open: PublishOpen, input: FrameReader, output: SendStream) {
        let mut output = output;
        let stream = PublishStream {
            engine: &self.shared.engine,
            relays: &self.shared.relays,
            connection_bytes: &self.inflight_bytes,
            connection_bytes_max: self.shared.inflight_bytes_max,
            leave: &self.leave,
        };
        let ended = stream.serve(open, input, &mut output).await;
        self.end(FrameType::PublishOpen, ended, output).await;
    }

    async fn end(&self, kind: FrameType, ended: Result<(), StreamError>, mut output: SendStream) {
        if let Err(error) = ended {
            tracing::debug!(client = %self.name, ?kind, %error, "stream ended early");
            streams::end(&mut output, error).await;
        }
        // What was sent is delivered before the task ends, so that a node that stops loses no answer.
        let _ = timeout(DRAIN_MAX, output.stopped()).await;
    }

    async fn request(&self, first: &Frame, output: &mut SendStream) -> Result<(), StreamError> {
        let Ok(_permit) = self.requests.acquire().await else {
            return Err(self.shared.engine.goodbye().into());
        };
        let answer = match cbor::get(&first.body) {
            Ok(request) => request::answer(&self.shared, &self.name, request).await,
            Err(error) => Answer::Fault(streams::malformed(&error)),
        };
        streams::send(output, FrameType::Answer, &answer).await?;
        streams::finish(output)
    }
}

/// What a client is to be told; nothing ever for who is none.
async fn next(told: &mut Option<mpsc::Receiver<GoAway>>) -> Option<GoAway> {
    match told {
        Some(told) => told.recv().await,
        None => std::future::pending().await,
    }
}

/// The name of who has no certificate. No identity is like it: they are URIs.
pub(super) const ANONYMOUS: &str = "anonymous";
/// How long a stopping node waits for a client to have read its goodbye.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// Closes a connection with a code and a reason for people.
pub(super) fn close(connection: &Connection, code: CloseCode, reason: &str) {
    connection.close(VarInt::from_u32(code.code()), reason.as_bytes());
}
