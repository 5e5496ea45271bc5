//! A site of one's own: one to five nodes, each a child process with a directory, that join as any machine does.

use std::{path::Path, path::PathBuf, time::Duration};

use tempfile::TempDir;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use super::{exit::Failure, own_broker::OwnBroker};
use crate::{
    client::{Client, Profile},
    limits::REPLICATION_FACTOR,
    types::NodeRole,
    wire::ClusterStatus,
};

/// A site whose nodes run as child processes. They are killed when this is dropped.
#[derive(Debug)]
pub struct OwnSite {
    // Dropped before the directory that theirs are in.
    nodes: Vec<OwnBroker>,
    program: PathBuf,
    settings: String,
    dir: TempDir,
}

impl OwnSite {
    /// Makes a site in a new directory and starts its first node: `program` is the dunlin executable, `settings` are
    /// further lines of each node's configuration.
    ///
    /// # Errors
    /// If the directory or the certificates cannot be made, or the node does not start.
    pub async fn start(program: &Path, settings: &str) -> Result<Self, Failure> {
        let dir = tempfile::Builder::new().prefix("dunlin-").tempdir();
        let dir = dir.map_err(|error| Failure::runtime(format!("no directory: {error}")))?;
        let mut first = OwnBroker::found(program, Some(dir.path()), &name(0), settings)?;
        first.restart().await?;
        Ok(Self { nodes: vec![first], program: program.into(), settings: settings.to_owned(), dir })
    }

    /// Makes a site of `count` data nodes, and waits until all of them hold everything.
    ///
    /// # Errors
    /// If a node cannot join or start.
    pub async fn of(program: &Path, settings: &str, count: usize) -> Result<Self, Failure> {
        let mut site = Self::start(program, settings).await?;
        while site.nodes.len() < count {
            site.add(NodeRole::Data).await?;
        }
        site.in_step().await?;
        Ok(site)
    }

    /// Has the first node invite one more, which joins and starts. Gives its place among the nodes.
    ///
    /// # Errors
    /// If there are as many as there may be, or it cannot join or start.
    pub async fn add(&mut self, role: NodeRole) -> Result<usize, Failure> {
        let place = self.nodes.len();
        if place >= NODES_OWN_MAX {
            return Err(Failure::runtime(format!("a site of one's own has {NODES_OWN_MAX} nodes")));
        }
        let first = self.nodes[0].profile();
        let client = Client::connect(first).await?;
        let invited = client.cluster().invite(role, None, &[]).await?;
        client.close().await;
        let (program, dir, name) = (&self.program, self.dir.path(), name(place));
        let own = (name.as_str(), self.settings.as_str());
        let mut node = OwnBroker::join(program, dir, first, &invited.token, own).await?;
        node.restart().await?;
        self.nodes.push(node);
        Ok(place)
    }

    /// The nodes, the first being the one that made the site.
    #[must_use]
    pub fn nodes(&self) -> &[OwnBroker] {
        &self.nodes
    }

    /// One of them, to be killed, stopped or started.
    ///
    /// # Panics
    /// If there is none in this place.
    pub fn node_mut(&mut self, place: usize) -> &mut OwnBroker {
        &mut self.nodes[place]
    }

    /// Where in the site the node of this name is.
    #[must_use]
    pub fn place_of(&self, node: &str) -> Option<usize> {
        (0..self.nodes.len()).find(|place| name(*place) == node)
    }

    /// A profile that leads to all of them.
    #[must_use]
    pub fn profile(&self) -> Profile {
        let all = self.nodes.iter().flat_map(|node| node.profile().addresses.clone());
        Profile { addresses: all.collect(), ..self.nodes[0].profile().clone() }
    }

    /// The directory in which theirs are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// How the site is, as one node sees it.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn status(&self, place: usize) -> Result<ClusterStatus, Failure> {
        let client = Client::connect(self.nodes[place].profile()).await?;
        let status = client.cluster().status().await;
        client.close().await;
        Ok(status?)
    }

    /// Waits until a node sees the site like this.
    ///
    /// # Errors
    /// If that takes too long; then it says how the site is.
    pub async fn until(
        &self,
        place: usize,
        what: &str,
        is_so: impl Fn(&ClusterStatus) -> bool,
    ) -> Result<ClusterStatus, Failure> {
        let deadline = Instant::now() + STEP_MAX;
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let client = Client::connect(self.nodes[place].profile()).await?;
        let mut last = None;
        loop {
            looks.tick().await;
            match timeout_at(deadline, client.cluster().status()).await {
                Ok(Ok(status)) if is_so(&status) => {
                    client.close().await;
                    return Ok(status);
                }
                Ok(Ok(status)) => last = Some(status),
                Ok(Err(error)) => tracing::debug!(%error, "no status yet"),
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                let (site, most) = (super::cluster::summary(last.as_ref()), STEP_MAX.as_secs());
                return Err(Failure::runtime(format!("not {what} within {most} s:\n{site}")));
            }
        }
    }

    /// Waits until every replica of every shard that should hold it does.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn in_step(&self) -> Result<(), Failure> {
        let holders = |status: &ClusterStatus| {
            let data = status.nodes.iter().filter(|n| n.role == NodeRole::Data && !n.draining);
            data.count().min(REPLICATION_FACTOR)
        };
        let up = self.nodes.iter().position(|node| node.process_id().is_some()).unwrap_or(0);
        let whole = |status: &ClusterStatus| {
            let want = holders(status);
            status.shards.iter().all(|shard| {
                shard.primary.is_some() && shard.set.len() >= want && shard.pending.is_empty()
            })
        };
        self.until(up, "in step", whole).await.map(drop)
    }
}

fn name(place: usize) -> String {
    format!("node-{}", place + 1)
}

/// As many nodes as a site has.
const NODES_OWN_MAX: usize = 5;
/// A step that takes longer never ends.
const STEP_MAX: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);
