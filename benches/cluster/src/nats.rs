//! NATS JetStream on loopback: three servers that keep a stream of three replicas and flush each message.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use async_nats::{
    Client,
    jetstream::{
        self,
        stream::{Config, StorageType},
    },
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{
    failure::{Failure, Result, While as _},
    process::{Process, Usage, output},
    site::host,
};

/// Three servers whose processes and files end with it.
#[derive(Debug)]
pub(crate) struct Nats {
    servers: Vec<Server>,
    // Dropped last: the servers have their files there.
    _dir: TempDir,
}

#[derive(Debug)]
struct Server {
    name: String,
    url: String,
    process: Process,
}

impl Nats {
    /// Starts the servers and makes the stream.
    pub(crate) async fn start(program: &Path, parent: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("nats-cluster-").tempdir_in(parent)?;
        let hosts: Vec<String> = (0..SERVERS).map(|_| host().to_string()).collect();
        let routes: Vec<String> = hosts.iter().map(|host| format!("nats://{host}:6222")).collect();
        let mut servers = Vec::new();
        for (number, host) in hosts.iter().enumerate() {
            let name = format!("s{number}");
            let own: PathBuf = dir.path().join(&name);
            fs::create_dir(&own)?;
            let config = own.join("nats.conf");
            let store = own.join("store");
            let text = format!(
                "server_name: {name}\nlisten: \"{host}:4222\"\n\
                 cluster {{\n  name: bench\n  listen: \"{host}:6222\"\n  routes: [{}]\n}}\n\
                 jetstream {{\n  store_dir: \"{}\"\n  sync_interval: always\n}}\n",
                routes.join(", "),
                store.display()
            );
            fs::write(&config, text)?;
            let mut command = Command::new(program);
            command.arg("--config").arg(&config);
            let process = Process::start(&mut command, &own.join("log"))?;
            servers.push(Server { name, url: format!("nats://{host}:4222"), process });
        }
        let mut nats = Self { servers, _dir: dir };
        nats.make_stream().await?;
        Ok(nats)
    }

    /// As soon as the servers have found each other and agree on a leader.
    async fn make_stream(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_MAX;
        loop {
            let made = async {
                let client = async_nats::connect(&self.servers[0].url).await?;
                let config = Config {
                    name: STREAM.into(),
                    subjects: vec![SUBJECT.into()],
                    num_replicas: SERVERS,
                    storage: StorageType::File,
                    ..Config::default()
                };
                jetstream::new(client).create_stream(config).await?;
                Result::Ok(())
            };
            let Err(why) = made.await else { break };
            for server in &mut self.servers {
                if let Some(status) = server.process.ended()? {
                    return Err(Failure(format!("{} ended with {status}", server.name)));
                }
            }
            if Instant::now() > deadline {
                return Err(Failure(format!("no stream within {START_MAX:?}: {why}")));
            }
            sleep(Duration::from_millis(200)).await;
        }
        // All replicas, so that the first round is not one of catching up.
        loop {
            let client = async_nats::connect(&self.servers[0].url).await?;
            let info = jetstream::new(client).get_stream(STREAM).await?.cached_info().clone();
            let current = info.cluster.is_some_and(|cluster| {
                cluster.replicas.len() + 1 == SERVERS && cluster.replicas.iter().all(|r| r.current)
            });
            if current {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure(format!("replicas lag behind after {START_MAX:?}")));
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// A connection to the server that leads the stream, or to one that does not.
    pub(crate) async fn connect(&self, elsewhere: bool) -> Result<Client> {
        let deadline = Instant::now() + START_MAX;
        loop {
            let client = async_nats::connect(&self.servers[0].url).await?;
            let stream = jetstream::new(client).get_stream(STREAM).await?;
            let leader = stream.cached_info().cluster.as_ref().and_then(|c| c.leader.clone());
            if let Some(leader) = leader {
                let server = self.servers.iter().find(|s| (s.name == leader) != elsewhere);
                let server = server.ok_or_else(|| Failure(format!("no server {leader}")))?;
                return Ok(async_nats::connect(&server.url).await?);
            }
            if Instant::now() > deadline {
                return Err(Failure(format!("the stream has no leader within {START_MAX:?}")));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the kernel has counted for each server.
    pub(crate) fn usage(&self) -> Result<Vec<Usage>> {
        self.servers.iter().map(|server| server.process.usage()).collect()
    }
}

/// What the program says it is.
pub(crate) fn version(program: &Path) -> Result<String> {
    let text = output(Command::new(program).arg("--version"), "").while_("no NATS server")?;
    Ok(text.trim().replace(": ", " "))
}

/// What records are published to.
pub(crate) const SUBJECT: &str = "bench.records";
const STREAM: &str = "bench";
const SERVERS: usize = 3;
const START_MAX: Duration = Duration::from_secs(30);
