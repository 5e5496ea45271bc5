//! A dunlin site of real processes on loopback, made by the commands that a person would use.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use dunlin::client::{Client, ClusterStatus, NodeId, Profile, TopicName, TopicRequest};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    failure::{Failure, Result},
    process::{Process, Usage, output},
};

/// How many nodes a site has, and how they are configured.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) data: usize,
    pub(crate) witnesses: usize,
    /// Further lines of each node's configuration: tables that are not `[node]`, `[listen]` or `[log]`.
    pub(crate) settings: String,
}

/// A site whose processes and files end with it.
#[derive(Debug)]
pub(crate) struct Site {
    program: PathBuf,
    shape: Shape,
    nodes: Vec<Node>,
    profile: Profile,
    // Dropped last: the others have their files there.
    dir: TempDir,
}

#[derive(Debug)]
struct Node {
    name: String,
    dir: PathBuf,
    /// Where its metrics are.
    http: String,
    process: Option<Process>,
}

impl Site {
    /// Makes and starts a site: the founder by `init`, the others by `invite` and `join`. Returns once all shards are where
    /// they should be.
    pub(crate) async fn start(program: &Path, parent: &Path, shape: Shape) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("dunlin-cluster-").tempdir_in(parent)?;
        let node = |number: usize| Node {
            name: format!("n{number}"),
            dir: dir.path().join(format!("n{number}")),
            http: String::new(),
            process: None,
        };
        let mut nodes: Vec<Node> = (0..shape.data + shape.witnesses).map(node).collect();
        let mut addresses = Vec::new();
        for node in &mut nodes {
            let host = host();
            node.http = format!("{host}:{HTTP_PORT}");
            addresses.push(format!("{host}:{PORT}"));
        }
        for (node, address) in nodes.iter().zip(&addresses) {
            fs::create_dir(&node.dir)?;
            fs::write(node.config(), node.settings(address, &shape.settings))?;
        }
        let admin = dir.path().join("admin.toml");
        let mut init = Command::new(program);
        init.args(["init", "--site", "bench", "--config"]).arg(nodes[0].config());
        init.arg("--admin-profile").arg(&admin);
        for address in &addresses {
            init.args(["--address", address]);
        }
        output(&mut init, "")?;
        let profile = Profile::load(&admin)?;
        let mut site = Self { program: program.into(), shape, nodes, profile, dir };
        site.restart(0).await?;
        for number in 1..site.nodes.len() {
            site.join(number, &admin)?;
            site.restart(number).await?;
        }
        site.in_sync(START_MAX).await?;
        Ok(site)
    }

    fn join(&self, number: usize, admin: &Path) -> Result<()> {
        let role = if number < self.shape.data { "data" } else { "witness" };
        let mut invite = Command::new(&self.program);
        invite.args(["invite", "--role", role, "--profile"]).arg(admin);
        let token = output(&mut invite, "")?;
        let mut join = Command::new(&self.program);
        join.args(["join", "-", "--config"]).arg(self.nodes[number].config());
        output(&mut join, &token).map(drop)
    }

    /// All nodes; witnesses are the last ones.
    pub(crate) fn nodes(&self) -> std::ops::Range<usize> {
        0..self.nodes.len()
    }

    pub(crate) fn name(&self, number: usize) -> &str {
        &self.nodes[number].name
    }

    /// Leads to all nodes.
    pub(crate) fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Leads to these nodes alone, the first one first.
    pub(crate) fn profile_of(&self, numbers: &[usize]) -> Profile {
        let address = |number: &usize| self.profile.addresses[*number].clone();
        Profile { addresses: numbers.iter().map(address).collect(), ..self.profile.clone() }
    }

    /// Starts the process of a node; it does not serve yet.
    pub(crate) fn begin(&mut self, number: usize) -> Result<()> {
        let node = &mut self.nodes[number];
        // The file of the last start must not be taken for this one's.
        let _ = fs::remove_file(node.address_file());
        let mut command = Command::new(&self.program);
        command.arg("serve").arg("--config").arg(node.config());
        command.arg("--address-file").arg(node.address_file());
        // Ends with us, however we end.
        command.arg("--stop-with-stdin");
        node.process = Some(Process::start(&mut command, &node.log())?);
        Ok(())
    }

    /// Waits until a node that was begun serves.
    pub(crate) async fn serves(&mut self, number: usize) -> Result<()> {
        let deadline = Instant::now() + START_MAX;
        let node = &mut self.nodes[number];
        while !node.address_file().exists() {
            let ended = node.process.as_mut().map(Process::ended).transpose()?;
            match ended {
                Some(None) if Instant::now() < deadline => sleep(LOOK_EVERY).await,
                Some(None) => {
                    let why = format!("{} does not serve within {START_MAX:?}", node.name);
                    return Err(Failure(format!("{why}\n{}", node.last_words())));
                }
                other => {
                    let why = format!("{} does not run ({other:?})", node.name);
                    return Err(Failure(format!("{why}\n{}", node.last_words())));
                }
            }
        }
        Ok(())
    }

    pub(crate) async fn restart(&mut self, number: usize) -> Result<()> {
        self.begin(number)?;
        self.serves(number).await
    }

    /// Ends a node by SIGKILL.
    pub(crate) fn kill(&mut self, number: usize) {
        self.nodes[number].process = None;
    }

    /// What the kernel has counted for each node.
    pub(crate) fn usage(&self) -> Result<Vec<Usage>> {
        let usage = |node: &Node| {
            let process = node.process.as_ref();
            process.ok_or_else(|| Failure(format!("{} does not run", node.name)))?.usage()
        };
        self.nodes.iter().map(usage).collect()
    }

    /// Bytes that each node has given to its disk for records, as it counts them itself.
    pub(crate) fn own_counts(&self) -> Result<Vec<u64>> {
        self.nodes.iter().map(Node::written).collect()
    }

    /// The site as a node sees it.
    pub(crate) async fn status_of(&self, number: usize) -> Result<ClusterStatus> {
        let profile = self.profile_of(&[number]);
        let asked = async {
            let client = Client::connect(&profile).await?;
            let status = client.cluster().status().await;
            client.close().await;
            Ok(status?)
        };
        let answer = timeout(ASK_MAX, asked).await;
        answer.unwrap_or_else(|_| Err(Failure(format!("no answer within {ASK_MAX:?}"))))
    }

    /// Which of ours a node of the site is.
    pub(crate) fn number_of(&self, status: &ClusterStatus, id: NodeId) -> Result<usize> {
        let known = status.nodes.iter().find(|node| node.id == id);
        let number = known.and_then(|known| self.nodes.iter().position(|n| n.name == known.name));
        number.ok_or_else(|| Failure(format!("node {id} is none of this site")))
    }

    /// Waits until every node says that each shard has a primary and all its copies.
    pub(crate) async fn in_sync(&self, patience: Duration) -> Result<()> {
        for number in self.nodes() {
            self.in_sync_for(number, patience).await?;
        }
        Ok(())
    }

    /// The same, as one node sees it.
    pub(crate) async fn in_sync_for(&self, number: usize, patience: Duration) -> Result<()> {
        let (deadline, profile) = (Instant::now() + patience, self.profile_of(&[number]));
        // One connection for all looks: handshakes would be part of what is measured meanwhile.
        let client = timeout(patience, Client::connect(&profile)).await;
        let client =
            client.map_err(|_| Failure(format!("no connection within {patience:?}")))??;
        loop {
            let lacks = match timeout(ASK_MAX, client.cluster().status()).await {
                Ok(Ok(status)) => match status.shards.iter().find(|shard| !self.is_whole(shard)) {
                    Some(shard) => format!("{shard:?}"),
                    None => break,
                },
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {ASK_MAX:?}"),
            };
            if Instant::now() > deadline {
                let name = self.name(number);
                return Err(Failure(format!("not whole within {patience:?}, {name}: {lacks}")));
            }
            sleep(LOOK_EVERY * 5).await;
        }
        client.close().await;
        Ok(())
    }

    fn is_whole(&self, shard: &dunlin::wire::ClusterShard) -> bool {
        let copies = self.shape.data.min(COPIES);
        shard.primary.is_some() && shard.set.len() == copies && shard.pending.is_empty()
    }

    /// What `dunlin --json cluster status` prints of the site.
    pub(crate) fn status_by_program(&self) -> Result<serde_json::Value> {
        let mut command = Command::new(&self.program);
        command.args(["--json", "cluster", "status", "--profile"]);
        command.arg(self.dir.path().join("admin.toml"));
        Ok(serde_json::from_str(&output(&mut command, "")?)?)
    }

    /// Makes topics of so many partitions each, and waits until every one has begun.
    pub(crate) async fn make_topics(&self, count: u32, partitions: u32) -> Result<Vec<TopicName>> {
        let client = Client::connect(&self.profile).await?;
        let mut topics = Vec::new();
        for number in 0..count {
            let topic: TopicName = format!("bench/{number}").parse()?;
            let settings = TopicRequest { partitions: Some(partitions), ..TopicRequest::default() };
            client.topics().create(&topic, settings).await?;
            topics.push(topic);
        }
        let deadline = Instant::now() + START_MAX;
        for topic in &topics {
            while client.topics().show(topic).await?.partitions.len() < partitions as usize {
                if Instant::now() > deadline {
                    return Err(Failure(format!("{topic} has not begun within {START_MAX:?}")));
                }
                sleep(LOOK_EVERY).await;
            }
        }
        client.close().await;
        Ok(topics)
    }
}

impl Node {
    fn config(&self) -> PathBuf {
        self.dir.join("dunlin.toml")
    }

    fn address_file(&self) -> PathBuf {
        self.dir.join("address")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn settings(&self, address: &str, more: &str) -> String {
        let data = self.dir.join("data");
        format!(
            "[node]\nname = '{}'\ndata_dir = '{}'\n[listen]\naddress = '{address}'\nhttp = '{}'\n\
             [log]\nlevel = 'warn'\nformat = 'text'\n{more}",
            self.name,
            data.display(),
            self.http
        )
    }

    fn written(&self) -> Result<u64> {
        let mut stream = TcpStream::connect(&self.http)?;
        stream.set_read_timeout(Some(ASK_MAX))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        let count = page.lines().find_map(|line| line.strip_prefix(WRITTEN)?.trim().parse().ok());
        count.ok_or_else(|| Failure(format!("{} does not count {WRITTEN}", self.name)))
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

/// An address of loopback that no other server of this process has, nor one of another process like this.
pub(crate) fn host() -> Ipv4Addr {
    static LAST: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = process::id().to_be_bytes();
    Ipv4Addr::new(127, 1 + high % 120, low, LAST.fetch_add(1, Ordering::Relaxed))
}

const PORT: u16 = 7440;
const HTTP_PORT: u16 = 7441;
const WRITTEN: &str = "dunlin_log_written_bytes_total";
/// Copies of a shard, where there are as many data nodes.
const COPIES: usize = 3;
/// A node that takes longer to start never does.
const START_MAX: Duration = Duration::from_secs(120);
const ASK_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);
