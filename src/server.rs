//! The broker as a whole: the only place where all parts meet.
//!
//! Start: identity, metadata, log, shards, then the doors. Stop is the reverse: no new work, acks in flight, then the log.

mod acks;
mod clock;
mod connection;
mod engine;
mod housekeeping;
mod http;
mod join;
pub mod joined;
mod metrics;
mod publish;
mod request;
mod site_admin;
mod streams;
mod subscribe;
mod topics;

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use quinn::Endpoint;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    clock::Clock,
    connection::Shared,
    engine::{Engine, EngineError, Sink},
    housekeeping::DiskMarks,
    metrics::Metrics,
};
use crate::{
    broker::ClockGuard,
    cluster::{
        BootClaim, FOUNDER, GroupError, MetaCommand, MetaGroup, MetaReject, MetaTiming, NoLinks,
        NodeInfo,
    },
    config::Config,
    limits::{DRAIN_MAX, JOINS_MAX, RECOVERY_MAX},
    net::{
        ConnectionLimits, Credentials, Identity, ReloadableTls, Who,
        advertise::advertised,
        endpoint::{self, EndpointError, ResetSecret},
        tls::{ALPN_CLIENT, ALPN_JOIN, ClientAuth, TlsError},
    },
    storage::{
        Ballast, CommitHandle, CommitQueue, CommitThread, MetaStore, Options, Store, StoreError,
    },
    types::{NodeName, SiteName},
};

/// A running broker.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    address: SocketAddr,
    http_address: Option<SocketAddr>,
    tls: ReloadableTls,
    connection_limits: ConnectionLimits,
    commit: CommitHandle,
    tasks: TaskTracker,
}

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error("cannot use data directory {path}: {source}")]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Certificates and keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The node's own certificate is of another node.
    #[error("the certificate in {pki_dir} is of {found}, not of {wanted}")]
    OtherName {
        /// Where it lies.
        pki_dir: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
    /// A database.
    #[error("cannot open {path}: {source}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// The metadata is gone while the log is there.
    #[error(
        "{data} holds records, but {meta} is empty or missing: put back the file, or move both away to start anew"
    )]
    MetadataMissing {
        /// The log.
        data: PathBuf,
        /// The metadata.
        meta: PathBuf,
    },
    /// The metadata group.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// What the log holds.
    #[error("{0}")]
    Recovery(String),
    /// The disk failed before the node could serve.
    #[error("the log cannot be written: {0}")]
    Failed(String),
    /// The socket.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The HTTP socket.
    #[error("cannot listen on TCP {address}: {source}")]
    Http {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

impl StartError {
    /// Whether starting again without a change cannot help.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Tls(_)
            | Self::OtherName { .. }
            | Self::MetadataMissing { .. }
            | Self::Open {
                source:
                    StoreError::NewerFormat { .. }
                    | StoreError::Shards { .. }
                    | StoreError::Foreign { .. },
                ..
            }
            | Self::Group(GroupError::Rejected(_)) => true,
            Self::DataDir { .. }
            | Self::Open { .. }
            | Self::Group(_)
            | Self::Recovery(_)
            | Self::Failed(_)
            | Self::Endpoint(_)
            | Self::Http { .. }
            | Self::Thread(_) => false,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Tls(TlsError::File(error)) if error.is_not_found() => {
                Some("make a site first: dunlin init".to_owned())
            }
            Self::Endpoint(EndpointError::Bind { .. }) | Self::Http { .. } => Some(
                "another process may have the port: set listen.address or listen.http".to_owned(),
            ),
            Self::Group(GroupError::Rejected(MetaReject::OtherShards { have, .. })) => {
                Some(format!("the number is fixed at the first start: set storage.shards = {have}"))
            }
            Self::Group(GroupError::Rejected(MetaReject::OtherDisk(_))) => Some(
                "data.redb is not the one this node had: put that back, or move data.redb and meta.redb \
                 away both to start anew"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// Log and metadata once they are open and agree.
struct Opened {
    store: Store,
    group: MetaGroup,
    recovered: crate::storage::Recovered,
    writer: crate::storage::Writer,
    registered: crate::cluster::MetaOutcome,
}

impl Server {
    /// Starts a broker. It serves when this returns.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let clock = Clock::start();
        let now: SystemTime = clock.system();
        // A joiner has no certificate yet: who else comes without one is refused behind the handshake.
        let (auth, alpn) = (ClientAuth::Optional, [ALPN_CLIENT, ALPN_JOIN]);
        let tls = ReloadableTls::load(&config.pki_dir(), auth, &alpn, now)?;
        let NodeIdentity { site, name, secret } = node_identity(&config)?;
        make_data_dir(&config.node.data_dir)?;
        let marks = disk_marks(&config);
        let opened = {
            let (config, site, name) = (config.clone(), site.clone(), name.clone());
            let open = tokio::task::spawn_blocking(move || open(&config, site, name));
            open.await.map_err(|error| StartError::Recovery(error.to_string()))??
        };
        let queue = CommitQueue::new();
        let (registered, group, store, recovery) =
            (opened.registered, opened.group, opened.store, opened.recovered);
        let (shards, metrics) = (queue.clone(), Metrics::new());
        // It proposes, and waits for what comes of it.
        let begin = tokio::task::spawn_blocking(move || {
            Engine::begin(registered, group, store, shards, recovery, clock, metrics)
        });
        let begun = begin.await.map_err(|error| StartError::Recovery(error.to_string()))?;
        let engine = begun.map_err(|error| match error {
            EngineError::Group(error) => StartError::Group(error),
            EngineError::Shard { .. } => StartError::Recovery(error.to_string()),
        })?;
        let sink = Sink(Arc::clone(&engine));
        let commit = CommitThread::spawn(opened.writer, queue, sink).map_err(StartError::Thread)?;
        recovered(&engine).await?;
        let node = NodeIdentity { site, name, secret };
        Self::open_doors(config, node, engine, commit, tls, marks).await
    }

    async fn open_doors(
        config: Config,
        node: NodeIdentity,
        engine: Arc<Engine>,
        commit: CommitHandle,
        tls: ReloadableTls,
        marks: DiskMarks,
    ) -> Result<Self, StartError> {
        let limits = ConnectionLimits {
            streams_max: config.limits.streams_per_connection,
            ..ConnectionLimits::default()
        };
        let endpoint =
            endpoint::server(config.listen.address, tls.current(), &limits, &node.secret)?;
        let address = endpoint
            .local_addr()
            .map_err(|source| EndpointError::Bind { address: config.listen.address, source })?;
        let http = match config.listen.http {
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .map_err(|source| StartError::Http { address, source })?,
            ),
            None => None,
        };
        let http_address = http.as_ref().and_then(|listener| listener.local_addr().ok());
        let inflight = config.limits.inflight_bytes_per_connection;
        let shared = Arc::new(Shared {
            engine,
            site: node.site,
            node: node.name,
            addresses: advertised(&config.listen.advertise, address)
                .iter()
                .map(ToString::to_string)
                .collect(),
            data_dir: config.node.data_dir.clone(),
            pki_dir: config.pki_dir(),
            joins: Semaphore::new(JOINS_MAX),
            topic_defaults: config.topic_defaults.settings(),
            allow_anonymous: config.listen.allow_anonymous,
            connections_max: config.limits.connections as usize,
            streams_max: config.limits.streams_per_connection,
            inflight_bytes_max: u32::try_from(inflight).unwrap_or(u32::MAX),
            connections: TaskTracker::new(),
            stopping: CancellationToken::new(),
        });
        housekeeping::check_disk(&shared, &marks);
        let guard = ClockGuard::new(shared.engine.newest_record());
        let tasks = TaskTracker::new();
        tasks.spawn(fail_with_group(Arc::clone(&shared)));
        tasks.spawn(housekeeping::run(Arc::clone(&shared), marks, guard));
        let per_second = config.limits.handshakes_per_address;
        tasks.spawn(connection::accept(Arc::clone(&shared), endpoint.clone(), per_second));
        if let Some(listener) = http {
            let serving = http::serve(Arc::clone(&shared), listener);
            tasks.spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "metrics and health are not served any more");
                }
            });
        }
        tracing::info!(%address, node = %shared.node, site = %shared.site, "serving");
        Ok(Self {
            shared,
            endpoint,
            address,
            http_address,
            tls,
            connection_limits: limits,
            commit,
            tasks,
        })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where metrics and health are served.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Grows at least every second as long as the disk answers.
    #[must_use]
    pub fn heartbeat(&self) -> u64 {
        self.commit.heartbeat()
    }

    /// Becomes the reason once the node can write no more, and must be stopped.
    #[must_use]
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.shared.engine.failure()
    }

    /// Reads certificates and trust anchors again. Open connections stay.
    ///
    /// # Errors
    /// [`StartError::Tls`] when they are not usable; the old ones stay in use.
    pub fn reload_certificates(&mut self) -> Result<(), StartError> {
        self.tls.reload(self.shared.engine.clock.system())?;
        let config = endpoint::server_config(self.tls.current(), &self.connection_limits)?;
        self.endpoint.set_server_config(Some(config));
        Ok(())
    }

    /// Stops: takes nothing new, answers what it has taken, closes the log.
    ///
    /// # Errors
    /// When the log could not be closed in order; it is as safe as after a power cut.
    pub async fn stop(self) -> Result<(), StoreError> {
        tracing::info!("stopping");
        self.shared.stopping.cancel();
        self.shared.connections.close();
        self.tasks.close();
        if timeout(DRAIN_MAX, self.shared.connections.wait()).await.is_err() {
            tracing::warn!("some clients did not leave in time");
        }
        let code = crate::wire::CloseCode::Stopping;
        self.endpoint.close(code.code().into(), code.to_string().as_bytes());
        let idle = async {
            self.endpoint.wait_idle().await;
            self.tasks.wait().await;
        };
        // Peers that are gone do not answer a close.
        let _ = timeout(CLOSE_MAX, idle).await;
        self.shared.engine.group.shutdown().await;
        let commit = self.commit;
        let stopped = tokio::task::spawn_blocking(move || commit.stop(STORE_CLOSE_MAX)).await;
        stopped.unwrap_or_else(|error| Err(StoreError::Io(io::Error::other(error))))?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// The log's file in the data directory.
const DATA_FILE: &str = "data.redb";
/// The protocol that nodes speak with each other.
const PEER_PROTOCOL: u16 = 1;
/// How long a stopping node waits for its peers to hear that it closed.
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// How long a stopping node waits for its disk.
const STORE_CLOSE_MAX: Duration = Duration::from_secs(30);

/// A node whose metadata can be written no more must stop, whether or not somebody proposes anything.
async fn fail_with_group(shared: Arc<Shared>) {
    let mut failure = shared.engine.group.failure();
    tokio::select! {
        () = shared.stopping.cancelled() => {}
        Ok(failed) = failure.wait_for(Option::is_some) => {
            shared.engine.fail(failed.as_deref().unwrap_or_default());
        }
    }
}

async fn recovered(engine: &Engine) -> Result<(), StartError> {
    let mut recovered = engine.recovered();
    let mut failure = engine.failure();
    let waiting = async {
        tokio::select! {
            // The senders live in the engine.
            _ = recovered.wait_for(|recovered| *recovered) => Ok(()),
            _ = failure.wait_for(Option::is_some) => Err(()),
        }
    };
    match timeout(RECOVERY_MAX, waiting).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(())) => {
            Err(StartError::Failed(engine.failure().borrow().clone().unwrap_or_default()))
        }
        Err(_) => Err(StartError::Failed(format!("the disk took longer than {RECOVERY_MAX:?}"))),
    }
}

/// Who the node's certificate says it is.
struct NodeIdentity {
    site: SiteName,
    name: NodeName,
    secret: ResetSecret,
}

fn node_identity(config: &Config) -> Result<NodeIdentity, StartError> {
    let pki_dir = config.pki_dir();
    let credentials = Credentials::of_node(&pki_dir)?;
    let secret = credentials.reset_secret()?;
    let named = |name: &NodeName| config.node.name.as_ref().is_none_or(|wanted| wanted == name);
    match credentials.identity()? {
        Some(Identity { site, who: Who::Node(name) }) if named(&name) => {
            Ok(NodeIdentity { site, name, secret })
        }
        other => Err(StartError::OtherName {
            pki_dir,
            found: other.map_or_else(|| "nobody".to_owned(), |identity| identity.to_uri()),
            wanted: match &config.node.name {
                Some(name) => format!("node '{name}' as the configuration says"),
                None => "a node".to_owned(),
            },
        }),
    }
}

fn make_data_dir(path: &Path) -> Result<(), StartError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(path);
    made.map_err(|source| StartError::DataDir { path: path.into(), source })
}

fn disk_marks(config: &Config) -> DiskMarks {
    let ballast_bytes = config.storage.ballast;
    DiskMarks {
        low_space: config.storage.low_space,
        ballast: Ballast::new(config.node.data_dir.join("ballast"), ballast_bytes),
        ballast_bytes,
    }
}

/// Opens log and metadata, and registers this boot.
fn open(config: &Config, site: SiteName, name: NodeName) -> Result<Opened, StartError> {
    let dir = &config.node.data_dir;
    let (data, meta) = (dir.join(DATA_FILE), dir.join("meta.redb"));
    let cache_bytes = usize::try_from(config.storage.cache).unwrap_or(usize::MAX);
    let options = Options { cache_bytes, ..Options::new(config.storage.shards, rand::random()) };
    let runtime = tokio::runtime::Handle::current();
    let group = MetaStore::open(&meta)
        .map_err(|source| StartError::Open { path: meta.clone(), source })
        .and_then(|store| {
            let group = MetaGroup::open(store, FOUNDER, Arc::new(NoLinks), MetaTiming::default());
            Ok(runtime.block_on(group)?)
        })?;
    let founded = group.read(|state| state.site.is_some());
    if !founded && data.exists() {
        return Err(StartError::MetadataMissing { data, meta });
    }
    // Before the log is made, so that a log without a founded site always means lost metadata.
    runtime.block_on(group.found(site, config.storage.shards))?;
    let (store, writer, recovered) = Store::open(&data, options)
        .map_err(|source| StartError::Open { path: data.clone(), source })?;
    if !recovered.clean_shutdown {
        tracing::warn!("the node was not stopped in order, the log is recovered");
    }
    // This node is the whole group: the number of its last boot is in its own metadata.
    let last: Vec<(u64, u64)> = group
        .read(|site| site.nodes.values().map(|node| (node.claim.boot, node.claim.nonce)).collect());
    let claim = BootClaim {
        boot: last.iter().map(|(boot, _)| boot + 1).max().unwrap_or(1),
        before: last.iter().map(|(_, nonce)| *nonce).collect(),
        nonce: rand::random(),
        suspect: false,
        shards: Vec::new(),
    };
    let disk_id = recovered.disk_id;
    let info = NodeInfo {
        addresses: Vec::new(),
        software: crate::SOFTWARE.to_owned(),
        protocol: (PEER_PROTOCOL, PEER_PROTOCOL),
    };
    let register = MetaCommand::Register { name, disk_id, claim, info };
    let registered = group.propose_blocking(register)?;
    Ok(Opened { store, group, recovered, writer, registered })
}
