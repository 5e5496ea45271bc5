//! The broker as a whole: the only place where all parts meet.
//!
//! Start: identity, metadata, log, shards, then the doors. Stop is the reverse: no new work, acks in flight, then the log.

mod acks;
mod balance;
mod clients;
mod clock;
mod clock_memory;
mod connection;
mod damage;
mod discovery;
mod doors;
mod drain;
mod engine;
mod heartbeats;
mod housekeeping;
mod http;
mod install;
mod join;
pub mod joined;
mod liveness;
mod members;
mod metadata;
mod metrics;
mod peers;
mod proposals;
mod publish;
mod recover;
mod recovery;
mod registrar;
mod relay;
mod remote;
mod request;
mod scrub;
mod sink;
mod site_admin;
mod slot;
mod start;
mod streams;
mod subscribe;
mod topics;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use quinn::Endpoint;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use self::{
    clients::Clients,
    clock::Clock,
    connection::Shared,
    doors::Doors,
    engine::{Asked, Engine, Ground},
    joined::Joined,
    liveness::LivenessTable,
    metrics::Metrics,
    peers::{GroupLinks, Peers},
    registrar::Registrar,
    relay::Relays,
    sink::Sink,
    start::{Disk, NodeIdentity},
};
use crate::{
    cluster::{BootClaim, GroupError, MetaGroup, MetaReject, MetaTiming, NodeInfo},
    config::Config,
    discovery::{Candidates, Reach},
    limits::{DRAIN_MAX, GOODBYE_MAX, JOINS_MAX, RELAY_IDLE_TIMEOUT, UNREGISTER_MAX},
    net::{
        ConnectionLimits, Credentials, ReloadableTls,
        advertise::advertised,
        endpoint::{self, EndpointError},
        secret_file::FileError,
        tls::{self, ALPN_CLIENT, ALPN_JOIN, ALPN_PEER, ClientAuth, TlsError},
    },
    peer::{BadDialConfig, DialConfig, Heartbeat, Links, Me, PeerDoor},
    storage::{CommitHandle, CommitQueue, CommitThread, StoreError},
    types::Boot,
    wire,
};

/// A running broker.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    doors: Arc<Doors>,
    links: Links,
    endpoint: Endpoint,
    address: SocketAddr,
    http_address: Option<SocketAddr>,
    pki_dir: PathBuf,
    tls: ReloadableTls,
    connection_limits: ConnectionLimits,
    commit: CommitHandle,
    tasks: TaskTracker,
    /// What others were told of this node, and must be told no more.
    told: TaskTracker,
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
    /// What the node's joining has left.
    #[error(transparent)]
    Joined(#[from] FileError),
    /// The node's data and certificate do not belong together.
    #[error("{path}: {why}")]
    Place {
        /// What says where the node belongs.
        path: PathBuf,
        /// Why it cannot be.
        why: String,
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
    /// How other nodes are dialled.
    #[error(transparent)]
    Dial(#[from] BadDialConfig),
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
            | Self::Joined(_)
            | Self::Place { .. }
            | Self::Group(GroupError::OtherNode { .. })
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
            | Self::Dial(_)
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
            Self::Place { .. } | Self::Group(GroupError::OtherNode { .. }) => Some(
                "put back the files that belong together; if they are lost, move data and pki directories away \
                 and let the machine join anew: dunlin invite"
                    .to_owned(),
            ),
            Self::Endpoint(EndpointError::Bind { .. }) | Self::Http { .. } => Some(
                "another process may have the port: set listen.address or listen.http".to_owned(),
            ),
            Self::Open { source: StoreError::InUse, .. } => {
                Some("another dunlin runs on this data: is the service active?".to_owned())
            }
            Self::Open { source: StoreError::Corrupted(_) | StoreError::Foreign(_), .. }
            | Self::Recovery(_) => Some(ANEW.to_owned()),
            Self::Group(GroupError::Rejected(MetaReject::OtherShards { have, .. })) => {
                Some(format!("the number is fixed at the first start: set storage.shards = {have}"))
            }
            Self::Group(GroupError::Rejected(MetaReject::OtherDisk(_))) => Some(
                "data.redb is not the one this node had: put that back, or move data.redb and meta.redb \
                 away both to start anew"
                    .to_owned(),
            ),
            Self::Group(GroupError::Rejected(MetaReject::Removed(_))) => Some(
                "to let this machine join anew: dunlin join --move-data-aside, with a new invite"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// What to do about data that cannot be used.
const ANEW: &str = "nothing was deleted or moved. Put back data.redb, journal and meta.redb of one moment from a backup; \
                    or, on a site of several nodes, let the machine join anew under another name: \
                    dunlin join --move-data-aside INVITE, then dunlin cluster replace OLD NEW";

/// The socket, and what it takes to change its certificates.
struct Front {
    tls: ReloadableTls,
    limits: ConnectionLimits,
    endpoint: Endpoint,
}

/// What a node has before it knows its site.
struct Ahead {
    config: Config,
    identity: NodeIdentity,
    address: SocketAddr,
    links: Links,
    peers: Arc<Peers>,
    heard: mpsc::Receiver<Heartbeat>,
    relays: Arc<Relays>,
    group: Arc<MetaGroup>,
    doors: Arc<Doors>,
    /// Where other nodes were heard to be.
    found: watch::Sender<discovery::Found>,
    /// Opens the door for clients.
    open: watch::Sender<Option<Arc<Shared>>>,
    tasks: TaskTracker,
    /// See [`Server`].
    told: TaskTracker,
    /// A start that fails stops what has begun.
    guard: DropGuard,
}

/// The part of [`Disk`] that is left once the group has its store.
struct LogDisk {
    shards: u16,
    joined: Option<Joined>,
    store: crate::storage::Store,
    writer: crate::storage::Writer,
    recovered: crate::storage::Recovered,
    claim: BootClaim,
}

impl Server {
    /// Starts a broker. It serves when this returns.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let clock = Clock::start();
        // A joiner has no certificate yet: who else comes without one is refused behind the handshake.
        let (auth, alpn) = (ClientAuth::Optional, [ALPN_CLIENT, ALPN_PEER, ALPN_JOIN]);
        let tls = ReloadableTls::load(&config.pki_dir(), auth, &alpn, clock.system())?;
        let (identity, credentials) = start::node_identity(&config)?;
        start::make_data_dir(&config.node.data_dir)?;
        start::check_place(&config, &identity)?;
        let disk = {
            let config = config.clone();
            let open = tokio::task::spawn_blocking(move || start::open_disk(&config));
            open.await.map_err(|error| StartError::Recovery(error.to_string()))??
        };
        let limits = ConnectionLimits {
            streams_max: config.limits.streams_per_connection,
            datagrams: true,
            ..ConnectionLimits::default()
        };
        let endpoint =
            endpoint::server(config.listen.address, tls.current(), &limits, &identity.secret)?;
        let front = Front { tls, limits, endpoint };
        let (ahead, disk) =
            Ahead::open(config, clock, identity, &credentials, &front, disk).await?;
        ahead.follow_addresses(disk.joined.as_ref());
        ahead.discover(&credentials);
        let me = ahead.enter(&disk).await?;
        ahead.links.set_incarnation(me.incarnation);
        let queue = CommitQueue::new();
        let ground = Ground {
            me,
            group: Arc::clone(&ahead.group),
            store: disk.store,
            queue: queue.clone(),
            clock,
            fence: ahead.config.cluster.fence_after,
            metrics: ahead.doors.metrics.clone(),
        };
        let (engine, asked) = start::engine(ground, disk.recovered)?;
        let sink = Sink(Arc::clone(&engine));
        let commit = CommitThread::spawn(disk.writer, queue, sink).map_err(StartError::Thread)?;
        ahead.serve(front, engine, asked, commit).await
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
    /// [`StartError`] when they are not usable; the old ones stay in use.
    pub fn reload_certificates(&mut self) -> Result<(), StartError> {
        let credentials = Credentials::of_node(&self.pki_dir)?;
        let relays = relay_config(&credentials)?;
        let links = DialConfig::new(self.doors.peers.me().clone(), &credentials)?;
        self.tls.reload(self.shared.engine.clock.system())?;
        let config = endpoint::server_config(self.tls.current(), &self.connection_limits)?;
        self.endpoint.set_server_config(Some(config));
        self.shared.relays.set_dial(relays);
        self.links.set_config(links.config);
        Ok(())
    }

    /// Stops: takes nothing new, answers what it has taken, closes the log.
    ///
    /// # Errors
    /// When the log could not be closed in order; it is as safe as after a power cut.
    pub async fn stop(self) -> Result<(), StoreError> {
        tracing::info!("stopping");
        let failed = self.failure().borrow().is_some();
        if !failed {
            drain::give_away(&self.shared).await;
        }
        self.shared.stopping.cancel();
        if failed {
            // It can store nothing and change nothing: whoever waits for an answer waits for nothing.
            self.shared.engine.abandon("the node failed", |_| true);
        }
        self.doors.connections.close();
        self.tasks.close();
        if timeout(DRAIN_MAX, self.doors.connections.wait()).await.is_err() {
            tracing::warn!("some clients did not leave in time");
        }
        self.told.close();
        // Each of those tasks has its own, shorter bound.
        let _ = timeout(UNREGISTER_MAX + GOODBYE_MAX, self.told.wait()).await;
        self.links.close().await;
        let group = Arc::clone(&self.shared.engine.group);
        group.shutdown().await;
        let code = wire::CloseCode::Stopping;
        self.endpoint.close(code.code().into(), code.to_string().as_bytes());
        let idle = async {
            self.endpoint.wait_idle().await;
            self.doors.peers.closed().await;
            self.tasks.wait().await;
        };
        // Peers that are gone do not answer a close.
        let _ = timeout(CLOSE_MAX, idle).await;
        let commit = self.commit;
        let stopped = tokio::task::spawn_blocking(move || commit.stop(STORE_CLOSE_MAX)).await;
        stopped.unwrap_or_else(|error| Err(StoreError::Io(io::Error::other(error))))?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// How long a stopping node waits for its peers to hear that it closed.
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// How long a stopping node waits for its disk.
const STORE_CLOSE_MAX: Duration = Duration::from_secs(30);

impl Ahead {
    /// Opens the doors for other nodes, and takes this one's place in the metadata group.
    async fn open(
        config: Config,
        clock: Clock,
        identity: NodeIdentity,
        credentials: &Credentials,
        front: &Front,
        disk: Disk,
    ) -> Result<(Self, LogDisk), StartError> {
        let Disk { node, shards, joined, meta, store, writer, recovered, claim } = disk;
        let endpoint = &front.endpoint;
        let address = endpoint
            .local_addr()
            .map_err(|source| EndpointError::Bind { address: config.listen.address, source })?;
        let (site, name) = (identity.site.clone(), identity.name.clone());
        let me = Me { site, node, name, speaks: config.speaks, shards };
        let (peers, heard) = Peers::new();
        let source: Arc<Peers> = Arc::clone(&peers);
        let links = Links::new(endpoint.clone(), DialConfig::new(me.clone(), credentials)?, source);
        let relays = Arc::new(Relays::new(endpoint.clone(), relay_config(credentials)?));
        let stopping = CancellationToken::new();
        let guard = stopping.clone().drop_guard();
        let (open, shared) = watch::channel(None);
        let doors = Arc::new(Doors {
            metrics: Metrics::new(),
            clock,
            peers: PeerDoor::new(me, Arc::clone(&peers) as Arc<_>, stopping.clone()),
            shared,
            connections_max: config.limits.connections as usize,
            connections: TaskTracker::new(),
            stopping,
        });
        let tasks = TaskTracker::new();
        let per_second = config.limits.handshakes_per_address;
        tasks.spawn(doors::accept(Arc::clone(&doors), endpoint.clone(), per_second));
        let transport = Arc::new(GroupLinks(links.clone()));
        let group = MetaGroup::open(meta, node, transport, MetaTiming::default()).await?;
        let group = Arc::new(group);
        // Nobody else sets it.
        let _ = peers.group.set(Arc::downgrade(&group));
        let ahead = Self {
            config,
            identity,
            address,
            links,
            peers,
            heard,
            relays,
            group,
            doors,
            found: watch::Sender::default(),
            open,
            tasks,
            told: TaskTracker::new(),
            guard,
        };
        Ok((ahead, LogDisk { shards, joined, store, writer, recovered, claim }))
    }

    /// Where others reach this node.
    fn addresses(&self) -> Vec<String> {
        let addresses = advertised(&self.config.listen.advertise, self.address);
        addresses.iter().map(ToString::to_string).collect()
    }

    /// Dials the nodes that the metadata names, for as long as the node runs.
    fn follow_addresses(&self, joined: Option<&Joined>) {
        let (group, links, peers) =
            (Arc::clone(&self.group), self.links.clone(), Arc::clone(&self.peers));
        let stopping = self.doors.stopping.clone();
        let introduced = joined.map(|joined| joined.nodes.clone()).unwrap_or_default();
        let mut announced = self.found.subscribe();
        self.tasks.spawn(async move {
            let mut applied = group.applied();
            let mut known = BTreeMap::new();
            loop {
                applied.mark_unchanged();
                let found = {
                    let announced = announced.borrow_and_update();
                    peers::peers_of(&group, &introduced, &peers, &announced)
                };
                if found != known {
                    links.set_peers(found.clone());
                    known = found;
                }
                peers.take_awake().into_iter().for_each(|node| links.wake(node));
                tokio::select! {
                    () = stopping.cancelled() => return,
                    // The sender lives in the group.
                    _ = applied.changed() => {}
                    // Its sender goes when the start has failed.
                    Ok(()) = announced.changed() => {}
                    () = peers.came.notified() => {}
                }
            }
        });
    }

    /// Announces this node once it serves, and hears of the others at once, where multicast can reach anybody.
    fn discover(&self, credentials: &Credentials) {
        let reach = Reach::of(self.address.ip()).filter(|_| self.config.discovery.mdns);
        let base = discovery::base(&self.identity, credentials, self.group.me());
        if let Some(base) = base {
            let (group, doors) = (Arc::clone(&self.group), Arc::clone(&self.doors));
            let (found, port) = (self.found.clone(), self.address.port());
            let table = Mutex::new(Candidates::of_site(Some(base.ca)));
            let beacon = discovery::Beacon { group, doors, found, base, port, table };
            let domain = self.config.discovery.domain.clone();
            let registrar = Registrar::of(&self.config, self.address);
            self.told.spawn(discovery::run(beacon, reach, domain, registrar));
        }
    }

    /// Takes this boot's place in the site, as long as it takes to find somebody who can give it.
    async fn enter(&self, disk: &LogDisk) -> Result<Boot, StartError> {
        let name = &self.identity.name;
        let entering = async {
            match disk.joined {
                None => start::founded(&self.group, &self.identity.site, disk.shards).await?,
                Some(_) => start::introduced(&self.group).await,
            }
            let info = NodeInfo {
                addresses: self.addresses(),
                software: crate::SOFTWARE.to_owned(),
                protocol: (self.config.speaks.min, self.config.speaks.max),
            };
            start::register(&self.group, name, disk.recovered.disk_id, &disk.claim, info).await
        };
        let mut removed = self.links.removed();
        tokio::select! {
            me = entering => me,
            // The sender lives in the links.
            _ = removed.wait_for(|removed| *removed) => {
                Err(GroupError::Rejected(MetaReject::Removed(name.clone())).into())
            }
        }
    }

    /// What all connections share.
    fn shared(&self, engine: &Arc<Engine>) -> Arc<Shared> {
        let config = &self.config;
        let inflight = config.limits.inflight_bytes_per_connection;
        Arc::new(Shared {
            engine: Arc::clone(engine),
            relays: Arc::clone(&self.relays),
            site: self.identity.site.clone(),
            node: self.identity.name.clone(),
            addresses: self.addresses(),
            data_dir: config.node.data_dir.clone(),
            pki_dir: config.pki_dir(),
            joins: Semaphore::new(JOINS_MAX),
            liveness: LivenessTable::new(config.cluster.fence_after),
            clients: Arc::new(Clients::default()),
            connections_max: self.doors.connections_max,
            topic_defaults: config.topic_defaults.settings(),
            allow_anonymous: config.listen.allow_anonymous,
            speaks: config.speaks,
            streams_max: config.limits.streams_per_connection,
            inflight_bytes_max: u32::try_from(inflight).unwrap_or(u32::MAX),
            connections: self.doors.connections.clone(),
            stopping: self.doors.stopping.clone(),
            draining: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
            leave: Mutex::new(self.doors.stopping.child_token()),
        })
    }

    async fn http(&self, shared: &Arc<Shared>) -> Result<Option<SocketAddr>, StartError> {
        let Some(address) = self.config.listen.http else { return Ok(None) };
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| StartError::Http { address, source })?;
        let bound = listener.local_addr().ok();
        let serving = http::serve(Arc::clone(shared), listener);
        self.tasks.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "metrics and health are not served any more");
            }
        });
        Ok(bound)
    }

    /// Runs a task until the node stops.
    fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.doors.stopping.clone();
        self.tasks.spawn(async move {
            let _ = stopping.run_until_cancelled(task).await;
        });
    }

    async fn serve(
        mut self,
        front: Front,
        engine: Arc<Engine>,
        asked: Asked,
        commit: CommitHandle,
    ) -> Result<Server, StartError> {
        let shared = self.shared(&engine);
        // Nobody else sets them.
        let _ = engine.links.set(self.links.clone());
        let _ = self.peers.engine.set(Arc::downgrade(&engine));
        let (_, none) = mpsc::channel(1);
        let heard = std::mem::replace(&mut self.heard, none);
        self.run(metadata::watch_failure(Arc::clone(&engine)));
        self.run(metadata::run(Arc::clone(&engine)));
        self.run(heartbeats::run(Arc::clone(&shared), self.config.cluster.heartbeat, heard));
        self.run(proposals::run(Arc::clone(&engine), asked.proposals));
        self.run(install::run(Arc::clone(&engine), asked.installs));
        self.run(damage::run(Arc::clone(&shared), asked.suspects));
        self.run(scrub::run(Arc::clone(&shared)));
        self.run(members::run(Arc::clone(&shared)));
        self.run(members::watch_removal(Arc::clone(&shared), self.links.removed()));
        self.run(drain::run(Arc::clone(&shared)));
        self.run(balance::run(Arc::clone(&shared)));
        let alone = engine.group.read(|site| site.nodes.len() <= 1);
        start::ready(&engine, alone).await?;
        let marks = start::disk_marks(&self.config);
        housekeeping::check_disk(&shared, &marks);
        self.run(housekeeping::run(Arc::clone(&shared), marks));
        let http_address = self.http(&shared).await?;
        self.open.send_replace(Some(Arc::clone(&shared)));
        let Boot { node: number, incarnation } = engine.me;
        tracing::info!(
            address = %self.address, node = %shared.node, %number, %incarnation, site = %shared.site,
            "serving"
        );
        self.guard.disarm();
        Ok(Server {
            shared,
            doors: self.doors,
            links: self.links,
            endpoint: front.endpoint,
            address: self.address,
            http_address,
            pki_dir: self.config.pki_dir(),
            tls: front.tls,
            connection_limits: front.limits,
            commit,
            tasks: self.tasks,
            told: self.told,
        })
    }
}

/// How batches are passed on: as a client, that notices soon when the other node is gone.
fn relay_config(credentials: &Credentials) -> Result<quinn::ClientConfig, StartError> {
    let limits = ConnectionLimits {
        idle_timeout: RELAY_IDLE_TIMEOUT,
        keep_alive: Some(RELAY_IDLE_TIMEOUT / 3),
        ..ConnectionLimits::default()
    };
    let tls = tls::client_config(credentials, &[ALPN_CLIENT])?;
    Ok(endpoint::client_config(tls.into(), &limits)?)
}
