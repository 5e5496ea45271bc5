//! How a node starts: its disk, its place in the site, this boot's registration, its shards.

use std::{fs, os::unix::fs::DirBuilderExt, path::Path, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until, timeout};

use super::{
    StartError,
    engine::{Engine, EngineError, Ground},
    housekeeping::DiskMarks,
    joined::{JOINED_FILE, Joined},
    recovery,
};
use crate::{
    cluster::{
        BootClaim, FOUNDER, GroupError, MetaCommand, MetaGroup, MetaOutcome, MetaReject, NodeInfo,
    },
    config::Config,
    limits::{READY_MAX, REGISTER_RETRY},
    net::{Credentials, Identity, Who, authority::CA_KEY_FILE, endpoint::ResetSecret},
    replication::ShardReport,
    storage::{Ballast, MetaStore, Options, Recovered, Store, StoreError, Writer},
    types::{Boot, NodeId, NodeName, ShardId, SiteName},
    wire::cbor,
};

/// The log's file in the data directory.
pub(super) const DATA_FILE: &str = "data.redb";
const META_FILE: &str = "meta.redb";
/// In the data directory of a node that its site has removed.
pub(super) const REMOVED_FILE: &str = "removed";
/// Named value of the metadata store: the boots of this disk that the site may have registered last.
const BOOTS: &str = "boots";

/// Who the node's certificate says it is.
pub(super) struct NodeIdentity {
    pub(super) site: SiteName,
    pub(super) name: NodeName,
    pub(super) secret: ResetSecret,
}

/// What the disk holds once it is open.
pub(super) struct Disk {
    /// This node's number.
    pub(super) node: NodeId,
    /// Number of shards of the site.
    pub(super) shards: u16,
    /// None on the node that founds the site.
    pub(super) joined: Option<Joined>,
    pub(super) meta: MetaStore,
    pub(super) store: Store,
    pub(super) writer: Writer,
    pub(super) recovered: Recovered,
    pub(super) claim: BootClaim,
}

/// Boots of this disk: the number of the newest, and the nonces of the last ones, the newest at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Boots {
    boot: u64,
    nonces: Vec<u64>,
}

/// Boots that are remembered: as many may fail to register in a row before the disk counts as put back from a copy.
const NONCES_MAX: usize = 1_024;

pub(super) fn node_identity(config: &Config) -> Result<(NodeIdentity, Credentials), StartError> {
    let pki_dir = config.pki_dir();
    let credentials = Credentials::of_node(&pki_dir)?;
    let secret = credentials.reset_secret()?;
    let named = |name: &NodeName| config.node.name.as_ref().is_none_or(|wanted| wanted == name);
    match credentials.identity()? {
        Some(Identity { site, who: Who::Node(name) }) if named(&name) => {
            Ok((NodeIdentity { site, name, secret }, credentials))
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

pub(super) fn make_data_dir(path: &Path) -> Result<(), StartError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(path);
    made.map_err(|source| StartError::DataDir { path: path.into(), source })
}

/// Whether what lies on the disk lets this node start: it has not been removed, and its data are of the site that its
/// certificate is of. A machine that joined must never found that site once more.
pub(super) fn check_place(config: &Config, identity: &NodeIdentity) -> Result<(), StartError> {
    let (dir, pki_dir) = (&config.node.data_dir, config.pki_dir());
    // Its site does not talk to it: it would ask for ever.
    if dir.join(REMOVED_FILE).exists() {
        let reject = MetaReject::Removed(identity.name.clone());
        return Err(GroupError::Rejected(reject).into());
    }
    let path = dir.join(JOINED_FILE);
    let why = match Joined::load(dir)? {
        Some(joined) if joined.site != identity.site => {
            let (data, own) = (joined.site, &identity.site);
            format!(
                "the data are of site '{data}', the certificate in {} is of '{own}'",
                pki_dir.display()
            )
        }
        None if !dir.join(META_FILE).exists() && !pki_dir.join(CA_KEY_FILE).exists() => format!(
            "the file is missing, and another machine made site '{}', as there is no {CA_KEY_FILE} here",
            identity.site
        ),
        _ => return Ok(()),
    };
    Err(StartError::Place { path, why })
}

pub(super) fn disk_marks(config: &Config) -> DiskMarks {
    let ballast_bytes = config.storage.ballast;
    DiskMarks {
        low_space: config.storage.low_space,
        ballast: Ballast::new(config.node.data_dir.join("ballast"), ballast_bytes),
        ballast_bytes,
    }
}

/// Opens metadata and log, and notes that a boot begins, before the site hears of it. Blocks.
pub(super) fn open_disk(config: &Config) -> Result<Disk, StartError> {
    let dir = &config.node.data_dir;
    let (data, meta) = (dir.join(DATA_FILE), dir.join(META_FILE));
    // The metadata comes first, so that a log without it always means that it was lost.
    if !meta.exists() && data.exists() {
        return Err(StartError::MetadataMissing { data, meta });
    }
    let joined = Joined::load(dir)?;
    let opened = |path: &Path| {
        let path = path.to_path_buf();
        move |source| StartError::Open { path, source }
    };
    let meta_store = MetaStore::open(&meta).map_err(opened(&meta))?;
    let node = joined.as_ref().map_or(FOUNDER, |joined| joined.node);
    let shards = joined.as_ref().map_or(config.storage.shards, |joined| joined.shards);
    let disk_id = joined.as_ref().map_or_else(rand::random, |joined| joined.disk_id);
    let cache_bytes = usize::try_from(config.storage.cache).unwrap_or(usize::MAX);
    let options = Options { cache_bytes, ..Options::new(shards, disk_id) };
    let (store, writer, recovered) = Store::open(&data, options).map_err(opened(&data))?;
    if !recovered.clean_shutdown {
        tracing::warn!("the node was not stopped in order, the log is recovered");
    }
    let claim = begin_boot(&meta_store, &recovered).map_err(opened(&meta))?;
    Ok(Disk { node, shards, joined, meta: meta_store, store, writer, recovered, claim })
}

fn begin_boot(meta: &MetaStore, recovered: &Recovered) -> Result<BootClaim, StoreError> {
    let mut boots = match meta.get(BOOTS)? {
        Some(bytes) => cbor::get::<Boots>(&bytes)
            .map_err(|error| StoreError::Corrupted(format!("boots: {error}")))?,
        None => Boots::default(),
    };
    let nonce = rand::random();
    let before = boots.nonces.clone();
    boots.boot += 1;
    boots.nonces.push(nonce);
    let surplus = boots.nonces.len().saturating_sub(NONCES_MAX);
    boots.nonces.drain(..surplus);
    meta.put(BOOTS, &encoded(&boots))?;
    let report = |found: &crate::storage::RecoveredShard| {
        let stored = recovery::stored(found);
        (found.shard, ShardReport { end: stored.end, installing: stored.installing })
    };
    let shards: Vec<(ShardId, ShardReport)> = recovered.shards.iter().map(report).collect();
    Ok(BootClaim { boot: boots.boot, nonce, before, suspect: false, shards })
}

fn encoded(boots: &Boots) -> Vec<u8> {
    let mut bytes = bytes::BytesMut::new();
    cbor::put(boots, &mut bytes);
    bytes.to_vec()
}

/// Registers this boot, as long as it takes to find somebody who can.
pub(super) async fn register(
    group: &MetaGroup,
    name: &NodeName,
    disk_id: u128,
    claim: &BootClaim,
    info: NodeInfo,
) -> Result<Boot, StartError> {
    let mut claim = claim.clone();
    let mut told = false;
    loop {
        let command = MetaCommand::Register {
            name: name.clone(),
            disk_id,
            claim: claim.clone(),
            info: info.clone(),
        };
        match group.propose(command).await {
            Ok(MetaOutcome::Registered(node, incarnation)) => {
                return Ok(Boot { node, incarnation });
            }
            Ok(_) => return Err(StartError::Recovery("registration was answered oddly".into())),
            Err(GroupError::Rejected(MetaReject::StaleBoot { have, .. })) if !claim.suspect => {
                tracing::error!(
                    "this disk does not know the last start of this node: it was put back from a copy; \
                     what the node holds counts as lost, and is fetched from the others"
                );
                claim.suspect = true;
                claim.boot = have + 1;
            }
            Err(error @ (GroupError::NoLeader | GroupError::Unknown)) => {
                if !told {
                    tracing::warn!(%error, "waiting for the site to register this start");
                }
                told = true;
                sleep_until(Instant::now() + REGISTER_RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The engine over an open log.
pub(super) fn engine(
    ground: Ground,
    recovered: Recovered,
) -> Result<(Arc<Engine>, super::engine::Asked), StartError> {
    Engine::begin(ground, recovered).map_err(|error| match error {
        EngineError::Group(error) => StartError::Group(error),
        EngineError::Shard { .. } => StartError::Recovery(error.to_string()),
    })
}

/// Waits until every shard can be served; on a site of several not for ever: others may be down.
pub(super) async fn ready(engine: &Engine, alone: bool) -> Result<(), StartError> {
    let mut ready = engine.ready();
    let mut failure = engine.failure();
    let waiting = async {
        tokio::select! {
            // The senders live in the engine.
            _ = ready.wait_for(|ready| *ready) => Ok(()),
            _ = failure.wait_for(Option::is_some) => Err(()),
        }
    };
    let most = if alone { crate::limits::RECOVERY_MAX } else { READY_MAX };
    match timeout(most, waiting).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(())) => {
            Err(StartError::Failed(engine.failure().borrow().clone().unwrap_or_default()))
        }
        Err(_) if alone => Err(StartError::Failed(format!("the disk took longer than {most:?}"))),
        Err(_) => {
            tracing::warn!("not every partition has a leader yet; clients wait for it");
            Ok(())
        }
    }
}

/// How long a node that has joined waits before it says that nobody has called.
pub(super) const SILENCE: Duration = Duration::from_secs(10);

/// Founds the site, or finds that it was founded like this, as long as it takes to find somebody who knows.
pub(super) async fn founded(
    group: &MetaGroup,
    site: &SiteName,
    shards: u16,
) -> Result<(), StartError> {
    let mut told = false;
    loop {
        match group.found(site.clone(), shards).await {
            Ok(_) => return Ok(()),
            Err(error @ (GroupError::NoLeader | GroupError::Unknown)) => {
                if !told {
                    tracing::warn!(%error, "waiting for the other nodes of the site");
                }
                told = true;
                sleep_until(Instant::now() + REGISTER_RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until this node has heard what its site is.
pub(super) async fn introduced(group: &MetaGroup) {
    let mut applied = group.applied();
    while group.read(|site| site.site.is_none()) {
        match timeout(SILENCE, applied.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => tracing::warn!(
                "no node of the site has called yet: does the address that this node told others lead here?"
            ),
        }
    }
}
