//! How a node starts: its disk, its place in the site, this boot's registration, its shards.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::timeout;

use super::{
    StartError,
    engine::{Engine, EngineError, Ground},
    housekeeping::DiskMarks,
    joined::Joined,
};
use crate::{
    cluster::{BootClaim, GroupError, MetaCommand, MetaGroup, MetaOutcome, MetaReject, NodeInfo},
    config::Config,
    limits::{READY_MAX, REGISTER_RETRY},
    net::{Credentials, Identity, Who, endpoint::ResetSecret},
    replication::ShardReport,
    storage::{Ballast, MetaStore, Options, Recovered, Store, StoreError, Writer},
    types::{Boot, NodeId, NodeName, ShardId, SiteName},
    wire::cbor,
};

/// The log's file in the data directory.
pub(super) const DATA_FILE: &str = "data.redb";
const META_FILE: &str = "meta.redb";
/// Number of the node that founds a site.
const FOUNDER: NodeId = NodeId(1);
/// Named value of the metadata store: the boots of this disk that the site may have registered last.
const BOOTS: &str = "boots";

/// Who the node's certificate says it is.
pub(super) struct NodeIdentity {
    pub(super) site: SiteName,
    pub(super) name: NodeName,
    pub(super) secret: ResetSecret,
}

/// Who this node is in its site, and the store of the site's metadata.
pub(super) struct Place {
    pub(super) node: NodeId,
    /// Number of shards of the site.
    pub(super) shards: u16,
    /// None on the node that founds the site.
    pub(super) joined: Option<Joined>,
    pub(super) meta: MetaStore,
}

/// The log once it is open.
pub(super) struct Opened {
    pub(super) store: Store,
    pub(super) writer: Writer,
    pub(super) recovered: Recovered,
}

/// Boots of this disk: the number of the newest, and the nonces of all since the last one that is known to have registered.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Boots {
    boot: u64,
    nonces: Vec<u64>,
}

/// Boots that may fail to register before the oldest is forgotten: a disk that is put back from before them counts as lost.
const NONCES_MAX: usize = 64;

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

pub(super) fn disk_marks(config: &Config) -> DiskMarks {
    let ballast_bytes = config.storage.ballast;
    DiskMarks {
        low_space: config.storage.low_space,
        ballast: Ballast::new(config.node.data_dir.join("ballast"), ballast_bytes),
        ballast_bytes,
    }
}

/// Finds out who this node is. Blocks.
pub(super) fn place(config: &Config) -> Result<Place, StartError> {
    let dir = &config.node.data_dir;
    let (data, meta) = (dir.join(DATA_FILE), dir.join(META_FILE));
    let fresh = !meta.exists();
    if fresh && data.exists() {
        return Err(StartError::MetadataMissing { data, meta });
    }
    let joined = Joined::load(dir)?;
    let store = MetaStore::open(&meta)
        .map_err(|source| StartError::Open { path: meta.clone(), source })?;
    let node = joined.as_ref().map_or(FOUNDER, |joined| joined.node);
    let shards = joined.as_ref().map_or(config.storage.shards, |joined| joined.shards);
    Ok(Place { node, shards, joined, meta: store })
}

/// Opens the log. Blocks.
pub(super) fn open_log(
    config: &Config,
    shards: u16,
    disk_id: Option<u128>,
) -> Result<Opened, StartError> {
    let data = config.node.data_dir.join(DATA_FILE);
    let cache_bytes = usize::try_from(config.storage.cache).unwrap_or(usize::MAX);
    let disk_id = disk_id.unwrap_or_else(rand::random);
    let options = Options { cache_bytes, ..Options::new(shards, disk_id) };
    let (store, writer, recovered) = Store::open(&data, options)
        .map_err(|source| StartError::Open { path: data.clone(), source })?;
    if !recovered.clean_shutdown {
        tracing::warn!("the node was not stopped in order, the log is recovered");
    }
    Ok(Opened { store, writer, recovered })
}

/// Notes on the disk that a boot begins, before the site hears of it. Blocks.
pub(super) fn begin_boot(meta: &MetaStore, opened: &Opened) -> Result<BootClaim, StoreError> {
    let mut boots = match meta.get(BOOTS)? {
        Some(bytes) => cbor::get::<Boots>(&bytes)
            .map_err(|error| StoreError::Corrupted(format!("boots: {error}")))?,
        None => Boots::default(),
    };
    let nonce = rand::random();
    let before = boots.nonces.clone();
    boots.boot += 1;
    boots.nonces.push(nonce);
    if boots.nonces.len() > NONCES_MAX {
        // The last one that registered stays: it is the one that the site compares with.
        boots.nonces.remove(1);
    }
    meta.put(BOOTS, &encoded(&boots))?;
    let report = |found: &crate::storage::RecoveredShard| {
        let stored = super::recovery::stored(found);
        let report = ShardReport { end: stored.end, installing: stored.installing };
        (found.shard, report)
    };
    let shards: Vec<(ShardId, ShardReport)> = opened.recovered.shards.iter().map(report).collect();
    Ok(BootClaim { boot: boots.boot, nonce, before, suspect: false, shards })
}

/// Notes on the disk that a boot is registered. Blocks.
pub(super) fn end_boot(meta: &MetaStore, claim: &BootClaim) -> Result<(), StoreError> {
    meta.put(BOOTS, &encoded(&Boots { boot: claim.boot, nonces: vec![claim.nonce] }))
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
                tokio::time::sleep(REGISTER_RETRY).await;
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

/// Where the log lies, for messages.
pub(super) fn data_file(config: &Config) -> PathBuf {
    config.node.data_dir.join(DATA_FILE)
}
