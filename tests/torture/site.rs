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

use super::{
    clock,
    network::{Network, PORT, run},
};

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
    /// Nodes that have joined after the start.
    added: u32,
    /// Whether the clocks of the nodes can be stepped.
    own_clocks: bool,
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
    /// Its disk was full once: a write that failed then ends it a moment later.
    was_full: bool,
    /// What `serve` gets beside what every node gets.
    more: Vec<String>,
}

impl Node {
    /// Writes down what it is to be.
    fn new(name: String, number: usize, site: &Path, shape: Shape, network: &Network) -> Self {
        let dir = site.join(&name);
        fs::create_dir(&dir).unwrap();
        let (address, found_at) = (network.address(number), network.found_at(number));
        let data = dir.join("data").display().to_string();
        // All clients of a test come from one address.
        let level = env::var("DUNLIN_TORTURE_LOG").unwrap_or_else(|_| "info".into());
        let text = format!(
            "[node]\nname = '{name}'\ndata_dir = '{data}'\n[listen]\naddress = '{address}:{PORT}'\n\
             advertise = ['{found_at}']\nhttp = 'off'\n[limits]\nhandshakes_per_address = 1000\n\
             [storage]\nshards = {}\nlow_space = '16MiB'\nballast = '8MiB'\n\
             [log]\nlevel = '{level}'\nformat = 'text'\n",
            shape.shards
        );
        fs::write(dir.join("dunlin.toml"), text).unwrap();
        let (child, more) = (None, Vec::new());
        Self { name, dir, child, is_paused: false, has_own_disk: false, was_full: false, more }
    }
}

impl Site {
    /// Makes and starts a site: the founder by `init`, the others by `invite` and `join`. Returns once all shards are where
    /// they should be.
    pub(crate) async fn start(shape: Shape, network: Network) -> Self {
        let dir = tempfile::Builder::new().prefix("dunlin-torture-").tempdir().unwrap();
        let names = (0..shape.nodes()).map(|number| format!("n{number}"));
        let nodes: Vec<Node> = names
            .enumerate()
            .map(|(number, name)| Node::new(name, number, dir.path(), shape, &network))
            .collect();
        let admin = dir.path().join(ADMIN);
        let addresses: Vec<String> =
            (0..nodes.len()).map(|number| network.found_at(number)).collect();
        let mut init = Command::new(program());
        init.args(["init", "--site", "torture", "--config"]).arg(nodes[0].dir.join("dunlin.toml"));
        init.arg("--admin-profile").arg(&admin);
        for address in &addresses {
            init.args(["--address", address]);
        }
        succeeds(&mut init, "");
        let profile = Profile::load(&admin).unwrap();
        let (added, own_clocks) = (0, false);
        let mut site = Self { network, shape, nodes, profile, added, own_clocks, dir };
        site.restart(0).await.unwrap();
        for number in 1..shape.nodes() {
            let role = if number < shape.data { "data" } else { "witness" };
            site.join(number, role).unwrap();
            site.restart(number).await.unwrap();
        }
        site.in_sync(PATIENCE).await.unwrap();
        site
    }

    fn join(&self, number: usize, role: &str) -> Result<(), String> {
        let mut invite = Command::new(program());
        invite.args(["invite", "--role", role, "--profile"]).arg(self.dir.path().join(ADMIN));
        let token = output(&mut invite, "")?;
        let mut join = self.network.command(number, program());
        join.args(["join", "-", "--config"]).arg(self.nodes[number].dir.join("dunlin.toml"));
        output(&mut join, &token).map(drop)
    }

    /// One data node more, which serves. The network must have a host for it.
    pub(crate) async fn add(&mut self) -> Result<usize, String> {
        let number = self.nodes.len();
        // One that was removed does not come back: each has a name and a disk of its own.
        self.added += 1;
        let name = format!("x{}", self.added);
        self.nodes.push(Node::new(name, number, self.dir.path(), self.shape, &self.network));
        self.profile.addresses.push(self.network.found_at(number).parse().unwrap());
        self.join(number, "data")?;
        self.restart(number).await?;
        Ok(number)
    }

    /// Takes the node out that came last, which holds nothing any more.
    pub(crate) fn remove(&mut self, number: usize) -> Result<(), String> {
        assert_eq!(number + 1, self.nodes.len(), "the others keep their numbers");
        let mut remove = Command::new(program());
        remove.args(["cluster", "remove", self.name(number), "--profile"]);
        output(remove.arg(self.dir.path().join(ADMIN)), "")?;
        self.kill(number);
        self.nodes.pop();
        self.profile.addresses.pop();
        Ok(())
    }

    /// From their next start on the clocks of the nodes can be stepped.
    pub(crate) fn own_clocks(&mut self) {
        self.own_clocks = true;
    }

    /// Where a node's files are.
    pub(crate) fn dir_of(&self, number: usize) -> &Path {
        &self.nodes[number].dir
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
        if self.own_clocks {
            clock::give(&mut command, self.dir_of(number));
        }
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
                    // A disk that is full may have ended it first.
                    if !self.ended_without_room(number) {
                        return Err(format!("{} ended with {status}", self.name(number)));
                    }
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

    /// Waits until every node votes in the metadata group.
    pub(crate) async fn all_vote(&self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status().await?;
            if status.nodes.iter().all(|node| node.votes) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("not all vote within {PATIENCE:?}: {status:?}"));
            }
            sleep(LOOK_EVERY).await;
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

    /// Does what a supervisor does: starts those again that a full disk has ended.
    pub(crate) async fn revive(&mut self) -> Result<(), String> {
        for number in self.nodes() {
            if self.nodes[number].was_full && self.has_ended(number) {
                self.kill(number);
                self.restart(number).await?;
            }
        }
        Ok(())
    }

    fn ended_without_room(&self, number: usize) -> bool {
        let log = fs::read_to_string(self.log_file(number)).unwrap_or_default();
        let last = log.lines().rev().find(|line| line.starts_with("error: "));
        self.nodes[number].was_full && last.is_some_and(|line| line.contains("No space left"))
    }

    /// Takes all that is free of a node's own disk, or gives it back.
    pub(crate) fn fill_disk(&mut self, number: usize, is_full: bool) {
        self.nodes[number].was_full = true;
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

    /// How many lines of the nodes' logs say this.
    pub(crate) fn said(&self, what: &str) -> usize {
        let logs = self.nodes().map(|n| fs::read_to_string(self.log_file(n)).unwrap_or_default());
        logs.map(|log| log.lines().filter(|line| line.contains(what)).count()).sum()
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
    output(command, input).unwrap()
}

/// What a command says, or its complaint.
fn output(command: &mut Command, input: &str) -> Result<String, String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that needs no input may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
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
/// The profile of whoever runs the site.
const ADMIN: &str = "admin.toml";
const STOP_MAX: Duration = Duration::from_secs(20);
const ASK_MAX: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(10);
const LOG_LINES: usize = 60;
