//! Hosts with a node each, of which nobody has written down an address. Each node listens on all that its host has.

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use dunlin::client::{Client, Profile};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{
    network::{Network, Switch, run},
    site::{PATIENCE, program, succeeds},
};

/// The hosts, with a node each.
pub(crate) struct Lab {
    pub(crate) network: Network,
    children: Vec<Option<Child>>,
    dir: TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.hosts().for_each(|host| self.kill(host));
        if std::thread::panicking() {
            for host in self.hosts() {
                let log = fs::read_to_string(self.log(host)).unwrap_or_default();
                let from = log.lines().count().saturating_sub(40);
                let last: Vec<&str> = log.lines().skip(from).collect();
                eprintln!("---- n{host}\n{}", last.join("\n"));
            }
        }
    }
}

impl Lab {
    pub(crate) fn new(network: Network, hosts: usize) -> Self {
        let dir = tempfile::Builder::new().prefix("dunlin-discovery-").tempdir().unwrap();
        for host in 0..hosts {
            let data = dir.path().join(format!("n{host}")).display().to_string();
            // No address: each listens on all that its host has.
            let text = format!(
                "[node]\nname = 'n{host}'\ndata_dir = '{data}'\n[listen]\nhttp = 'off'\n\
                 [storage]\nshards = 3\nlow_space = '16MiB'\nballast = '8MiB'\n\
                 [log]\nlevel = 'debug'\nformat = 'text'\n"
            );
            fs::write(dir.path().join(format!("n{host}.toml")), text).unwrap();
        }
        Self { network, children: (0..hosts).map(|_| None).collect(), dir }
    }

    pub(crate) fn hosts(&self) -> std::ops::Range<usize> {
        0..self.children.len()
    }

    /// The site's profile without any address, as a file.
    pub(crate) fn profile_file(&self) -> PathBuf {
        self.dir.path().join("free.toml")
    }

    /// Of a node that runs.
    pub(crate) fn process(&self, host: usize) -> u32 {
        self.children[host].as_ref().unwrap().id()
    }

    /// What a node's process has in memory.
    pub(crate) fn memory_kib(&self, host: usize) -> u64 {
        let id = self.process(host);
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }

    pub(crate) fn switch(&self) -> &Switch {
        let Network::Switch(switch) = &self.network else { unreachable!("hosts are on a switch") };
        switch
    }

    fn config(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("n{host}.toml"))
    }

    pub(crate) fn log(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("n{host}.log"))
    }

    fn on(&self, host: usize, arguments: &[&str]) -> Command {
        let mut command = self.network.command(host, program());
        command.args(arguments).arg("--config").arg(self.config(host));
        command
    }

    pub(crate) fn start(&mut self, host: usize) {
        let log = fs::File::options().create(true).append(true).open(self.log(host)).unwrap();
        let mut command = self.on(host, &["serve", "--stop-with-stdin"]);
        command.env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        self.children[host] = Some(command.spawn().unwrap());
    }

    pub(crate) fn kill(&mut self, host: usize) {
        if let Some(mut child) = self.children[host].take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// As systemd does it.
    pub(crate) fn stop(&mut self, host: usize) {
        let mut child = self.children[host].take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        child.wait().unwrap();
    }

    /// Makes the site, by invites whose only address nobody has. Gives a profile without any.
    pub(crate) async fn found(&mut self) -> Profile {
        let admin = self.dir.path().join("admin.toml");
        succeeds(self.on(0, &["init", "--site", "lab"]).arg("--admin-profile").arg(&admin), "");
        self.start(0);
        let profile = Profile { addresses: vec![], ..Profile::load(&admin).unwrap() };
        let free = self.profile_file();
        profile.save(&free, None).unwrap();
        until("the founder is found", async || Client::connect(&profile).await.is_ok()).await;
        // This process is where clients are.
        let invite = || {
            let mut invite = Command::new(program());
            invite.args(["invite", "--address", "192.0.2.1", "--profile"]).arg(&free);
            succeeds(&mut invite, "")
        };
        // At once: each asks that address first.
        let join = |host, token: String| succeeds(&mut self.on(host, &["join", "-"]), &token);
        thread::scope(|scope| {
            for host in self.hosts().skip(1) {
                let token = invite();
                scope.spawn(move || join(host, token));
            }
        });
        for host in self.hosts().skip(1) {
            self.start(host);
        }
        profile
    }

    /// Gives a host another address.
    pub(crate) fn renumber(&self, host: usize) {
        let space = self.switch().host(host);
        let old = format!("{}/24", self.network.address(host));
        let new = format!("{}/24", Ipv4Addr::new(10, 77, 0, 50 + u8::try_from(host).unwrap()));
        run("ip", &["-n", &space, "addr", "del", &old, "dev", "eth0"]).unwrap();
        run("ip", &["-n", &space, "addr", "add", &new, "dev", "eth0"]).unwrap();
    }
}

pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}
