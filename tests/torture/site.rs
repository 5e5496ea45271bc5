//! A site of real processes, made by the commands that a person would use.

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::LazyLock,
    time::Duration,
};

use dunlin::client::{Client, ClusterStatus, Profile};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use super::network::{Network, PORT, run};

/// How many nodes a site has, and of what kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) data: usize,
    pub(crate) witnesses: usize,
    pub(crate) shards: u16,
}

impl Shape {
    pub(crate) fn nodes(self) -> usize {
        self.data + self.witnesses
    }
}

/// A site whose processes end with it, and all that was made for them.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) network: Network,
    pub(crate) shape: Shape,
    nodes: Vec<Node>,
    profile: Profile,
    // Dropped last: the others have their files there.
    dir: TempDir,
}

#[derive(Debug)]
struct Node {
    name: String,
    dir: PathBuf,
    child: Option<Child>,
    is_paused: bool,
    has_own_disk: bool,
    /// What `serve` gets beside what every node gets.
    more: Vec<String>,
}

impl Node {
    fn new(site: &Path, number: usize) -> Self {
        let name = format!("n{number}");
        let dir = site.join(&name);
        Self { name, dir, child: None, is_paused: false, has_own_disk: false, more: Vec::new() }
    }

    /// Writes its configuration.
    fn configure(&self, network: &Network, number: usize, found_at: &str, shards: u16) {
        let address = format!("{}:{PORT}", network.address(number));
        fs::create_dir(&self.dir).unwrap();
        let (name, data) = (&self.name, self.dir.join("data").display().to_string());
        let level = env::var("DUNLIN_TORTURE_LOG").unwrap_or_else(|_| "info".into());
        // All clients of a test come from one address.
        let text = format!(
            "[node]\nname = '{name}'\ndata_dir = '{data}'\n[listen]\naddress = '{address}'\n\
             advertise = ['{found_at}']\nhttp = 'off'\n[limits]\nhandshakes_per_address = 1000\n\
             [storage]\nshards = {shards}\nlow_space = '16MiB'\nballast = '8MiB'\n\
             [log]\nlevel = '{level}'\nformat = 'text'\n"
        );
        fs::write(self.dir.join("dunlin.toml"), text).unwrap();
    }
}

impl Site {
    /// Makes and starts a site: the founder by `init`, the others by `invite` and `join`. Returns once all shards are where
    /// they should be.
    pub(crate) async fn start(shape: Shape, network: Network) -> Self {
        let dir = tempfile::Builder::new().prefix("dunlin-torture-").tempdir().unwrap();
        let nodes: Vec<Node> = (0..shape.nodes()).map(|n| Node::new(dir.path(), n)).collect();
        let admin = dir.path().join(ADMIN);
        let found_at = |n| network.advertised(n).unwrap_or(network.address(n));
        let addresses: Vec<String> =
            (0..nodes.len()).map(|n| format!("{}:{PORT}", found_at(n))).collect();
        for (number, (node, found_at)) in nodes.iter().zip(&addresses).enumerate() {
            node.configure(&network, number, found_at, shape.shards);
        }
        let mut init = Command::new(program());
        init.args(["init", "--site", "torture", "--config"]).arg(nodes[0].dir.join("dunlin.toml"));
        init.arg("--admin-profile").arg(&admin);
        for address in &addresses {
            init.args(["--address", address]);
        }
        succeeds(&mut init, "");
        let profile = Profile::load(&admin).unwrap();
        let mut site = Self { network, shape, nodes, profile, dir };
        site.restart(0).await.unwrap();
        for number in 1..shape.nodes() {
            site.join(number, &admin);
            site.restart(number).await.unwrap();
        }
        site.in_sync(PATIENCE).await.unwrap();
        site
    }

    fn join(&self, number: usize, admin: &Path) {
        let role = if number < self.shape.data { "data" } else { "witness" };
        let mut invite = Command::new(program());
        invite.arg("invite").args(["--role", role]).arg("--profile").arg(admin);
        let token = succeeds(&mut invite, "");
        let mut join = self.network.command(number, program());
        join.args(["join", "-", "--config"]).arg(self.nodes[number].dir.join("dunlin.toml"));
        succeeds(&mut join, &token);
    }

    /// Lets one more data node join, which is reached by the site's profile from then on. Returns its number once it serves.
    pub(crate) async fn add(&mut self) -> Result<usize, String> {
        let number = self.nodes.len();
        let at = self.network.advertised(number).unwrap_or(self.network.address(number));
        let found_at = format!("{at}:{PORT}");
        let node = Node::new(self.dir.path(), number);
        node.configure(&self.network, number, &found_at, self.shape.shards);
        self.nodes.push(node);
        self.shape.data += 1;
        self.profile.addresses.push(found_at.parse().unwrap());
        self.join(number, &self.dir.path().join(ADMIN));
        self.restart(number).await?;
        Ok(number)
    }

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

    /// Leads to one node alone.
    pub(crate) fn profile_of(&self, number: usize) -> Profile {
        let addresses = vec![self.profile.addresses[number].clone()];
        Profile { addresses, ..self.profile.clone() }
    }

    pub(crate) fn runs(&self, number: usize) -> bool {
        self.nodes[number].child.is_some() && !self.nodes[number].is_paused
    }

    /// What `serve` gets from its next start on, beside what every node gets.
    pub(crate) fn serve_with(&mut self, number: usize, more: &[&str]) {
        self.nodes[number].more = more.iter().map(|arg| (*arg).to_owned()).collect();
    }

    /// Starts the process of a node; it does not serve yet.
    pub(crate) fn begin(&mut self, number: usize) {
        let config = self.nodes[number].dir.join("dunlin.toml");
        let log =
            fs::File::options().create(true).append(true).open(self.log_file(number)).unwrap();
        // The file of the last start must not be taken for this one's.
        let _ = fs::remove_file(self.address_file(number));
        let mut command = self.network.command(number, program());
        command
            .arg("serve")
            .arg("--config")
            .arg(config)
            .arg("--address-file")
            .arg(self.address_file(number))
            // Ends with us, however we end.
            .arg("--stop-with-stdin")
            .args(&self.nodes[number].more)
            .env_remove("NOTIFY_SOCKET")
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        self.nodes[number].child = Some(command.spawn().unwrap());
    }

    /// Waits until a node that was begun serves.
    pub(crate) async fn serves(&mut self, number: usize) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !self.address_file(number).exists() {
            let name = self.name(number).to_owned();
            let child = self.nodes[number].child.as_mut();
            match child.map(Child::try_wait) {
                Some(Ok(None)) => {}
                Some(Ok(Some(status))) => return Err(format!("{name} ended with {status}")),
                other => return Err(format!("{name} does not run: {other:?}")),
            }
            if Instant::now() > deadline {
                return Err(format!("{name} does not serve within {PATIENCE:?}"));
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    pub(crate) async fn restart(&mut self, number: usize) -> Result<(), String> {
        self.begin(number);
        self.serves(number).await
    }

    /// Ends a node as a power cut would, as far as a process can.
    pub(crate) fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.nodes[number].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        self.nodes[number].is_paused = false;
    }

    /// Tells a node to end in order.
    pub(crate) fn begin_stop(&self, number: usize) {
        self.signal(number, Signal::TERM);
    }

    /// Ends a node in order. Returns how long that took.
    pub(crate) async fn stop(&mut self, number: usize) -> Result<Duration, String> {
        let begun = Instant::now();
        self.begin_stop(number);
        loop {
            let Some(child) = self.nodes[number].child.as_mut() else {
                return Ok(begun.elapsed());
            };
            match child.try_wait() {
                Ok(Some(status)) if status.success() => self.nodes[number].child = None,
                Ok(Some(status)) => {
                    self.nodes[number].child = None;
                    return Err(format!("{} ended with {status}", self.name(number)));
                }
                _ if begun.elapsed() > STOP_MAX => {
                    return Err(format!("{} does not stop within {STOP_MAX:?}", self.name(number)));
                }
                _ => sleep(LOOK_EVERY).await,
            }
        }
    }

    pub(crate) fn pause(&mut self, number: usize) {
        self.signal(number, Signal::STOP);
        self.nodes[number].is_paused = true;
    }

    pub(crate) fn unpause(&mut self, number: usize) {
        self.signal(number, Signal::CONT);
        self.nodes[number].is_paused = false;
    }

    fn signal(&self, number: usize, signal: Signal) {
        let id = self.nodes[number].child.as_ref().map(Child::id);
        let id = id.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id {
            kill_process(id, signal).unwrap();
        }
    }

    pub(crate) fn has_ended(&mut self, number: usize) -> bool {
        let child = self.nodes[number].child.as_mut();
        child.is_some_and(|child| child.try_wait().unwrap().is_some())
    }

    /// Processes that have ended by themselves.
    pub(crate) fn ended(&mut self) -> Vec<String> {
        let found = self.nodes.iter_mut().filter_map(|node| {
            let status = node.child.as_mut()?.try_wait().unwrap()?;
            Some(format!("{} ended with {status}", node.name))
        });
        found.collect()
    }

    /// The site as a node sees it.
    pub(crate) async fn status_of(&self, number: usize) -> Result<ClusterStatus, String> {
        let profile = self.profile_of(number);
        let asked = async {
            let client = Client::connect(&profile).await.map_err(|error| error.to_string())?;
            let status = client.cluster().status().await.map_err(|error| error.to_string());
            client.close().await;
            status
        };
        timeout(ASK_MAX, asked).await.unwrap_or_else(|_| Err("no answer in time".into()))
    }

    /// The site as the first node sees it that knows a leader of the metadata group.
    pub(crate) async fn status(&self) -> Result<ClusterStatus, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for number in self.nodes().filter(|number| self.runs(*number)) {
                match self.status_of(number).await {
                    Ok(status) if status.leader.is_some() => return Ok(status),
                    _ => {}
                }
            }
            if Instant::now() > deadline {
                return Err(format!("no node knows a leader within {PATIENCE:?}"));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Which of ours a node of the site is.
    pub(crate) fn number_of(&self, status: &ClusterStatus, id: dunlin::client::NodeId) -> usize {
        let name = &status.nodes.iter().find(|node| node.id == id).unwrap().name;
        self.nodes.iter().position(|node| node.name == *name).unwrap()
    }

    /// Waits until every node says that each shard has a primary and all its copies.
    pub(crate) async fn in_sync(&self, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        let mut number = 0;
        let copies = self.shape.data.min(REPLICATION_FACTOR);
        loop {
            let lacks = match self.status_of(number).await {
                Ok(status) => status
                    .shards
                    .iter()
                    .find(|shard| shard.primary.is_none() || shard.set.len() < copies)
                    .map(|shard| format!("{shard:?}")),
                Err(error) => Some(error),
            };
            match lacks {
                None if number + 1 == self.nodes.len() => return Ok(()),
                None => number += 1,
                Some(lacks) if Instant::now() > deadline => {
                    let name = self.name(number);
                    return Err(format!("not in sync within {patience:?}, {name} says: {lacks}"));
                }
                Some(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Gives the node's data a small disk of its own, before it is started. Needs root.
    pub(crate) fn own_disk(&mut self, number: usize, mib: u32) -> Result<(), String> {
        let data = self.nodes[number].dir.join("data");
        let (aside, size) =
            (self.nodes[number].dir.join("aside"), format!("size={mib}m,mode=0700"));
        let [from, to] = [&data, &aside].map(|path| path.display().to_string());
        run("mv", &[&from, &to])?;
        fs::create_dir(&data).map_err(|error| error.to_string())?;
        run("mount", &["-t", "tmpfs", "-o", &size, "none", &from])?;
        self.nodes[number].has_own_disk = true;
        run("cp", &["-a", &format!("{to}/."), &from]).map(drop)
    }

    pub(crate) fn has_own_disk(&self, number: usize) -> bool {
        self.nodes[number].has_own_disk
    }

    /// Takes all that is free of a node's own disk, or gives it back.
    pub(crate) fn fill_disk(&self, number: usize, is_full: bool) {
        assert!(self.nodes[number].has_own_disk, "it would fill the machine's");
        let path = self.nodes[number].dir.join("data/filling");
        if !is_full {
            fs::remove_file(path).unwrap();
            return;
        }
        let mut file = fs::File::create(path).unwrap();
        let zeros = vec![0; 64 * 1024];
        while file.write_all(&zeros).is_ok() {}
        while file.write_all(&zeros[..512]).is_ok() {}
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn address_file(&self, number: usize) -> PathBuf {
        self.nodes[number].dir.join("address")
    }

    fn log_file(&self, number: usize) -> PathBuf {
        self.nodes[number].dir.join("log")
    }

    /// The end of every node's log.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for number in self.nodes() {
            let log = fs::read_to_string(self.log_file(number)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().filter(|l| !l.contains(" openraft::")).collect();
            let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
            text.push_str(&format!("--- {}\n{}\n", self.name(number), last.join("\n")));
        }
        text
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for number in self.nodes() {
            self.kill(number);
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
            if env::var_os("DUNLIN_TORTURE_KEEP").is_some() {
                let kept =
                    env::temp_dir().join(format!("dunlin-torture-kept-{}", std::process::id()));
                let _ = run(
                    "cp",
                    &["-a", &self.dir().display().to_string(), &kept.display().to_string()],
                );
                eprintln!("files of all nodes are kept in {}", kept.display());
            }
        }
        for node in self.nodes.iter().filter(|node| node.has_own_disk) {
            if let Err(error) = run("umount", &["-l", &node.dir.join("data").display().to_string()])
            {
                eprintln!("a disk of {} stays: {error}", node.name);
            }
        }
    }
}

pub(crate) fn succeeds(command: &mut Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that needs no input may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// The program of the nodes: what `DUNLIN_PROGRAM` names, so that times are those of an optimised one while the tests are
/// not, else the one that was built with the tests.
pub(crate) fn program() -> &'static str {
    static PROGRAM: LazyLock<String> = LazyLock::new(|| {
        let Some(named) = env::var_os("DUNLIN_PROGRAM").filter(|named| !named.is_empty()) else {
            return env!("CARGO_BIN_EXE_dunlin").to_owned();
        };
        // A relative path would be looked for in the search path.
        let found = fs::canonicalize(&named);
        let found = found.unwrap_or_else(|error| panic!("DUNLIN_PROGRAM={named:?}: {error}"));
        found.into_os_string().into_string().unwrap()
    });
    &PROGRAM
}

/// Copies of a shard, where there are as many data nodes.
const REPLICATION_FACTOR: usize = 3;
/// How long a site may take for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const ADMIN: &str = "admin.toml";
const STOP_MAX: Duration = Duration::from_secs(20);
const ASK_MAX: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(10);
const LOG_LINES: usize = 60;
