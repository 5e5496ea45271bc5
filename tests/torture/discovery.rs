//! A site of which nobody has written down an address: three hosts on a switch, and a client on a fourth.

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use dunlin::{
    client::{
        Acks, Client, ClusterStatus, Event, FoundNode, Position, Profile, Record, TopicName,
        TopicRequest, Trust, discover,
    },
    discovery::{Announcement, CaPrefix, Mdns, MdnsEvent, Reach},
    types::NodeRole,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use super::{
    block_on,
    network::{Network, run},
    site::{PATIENCE, program, succeeds},
};

const HOSTS: usize = 3;
/// One look round.
const LOOK: Duration = Duration::from_millis(1_500);

/// The hosts, with a node each.
struct Lab {
    network: Network,
    children: Vec<Option<Child>>,
    dir: TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        (0..HOSTS).for_each(|host| self.kill(host));
        if std::thread::panicking() {
            for host in 0..HOSTS {
                let log = fs::read_to_string(self.log(host)).unwrap_or_default();
                let from = log.lines().count().saturating_sub(40);
                let last: Vec<&str> = log.lines().skip(from).collect();
                eprintln!("---- n{host}\n{}", last.join("\n"));
            }
        }
    }
}

impl Lab {
    fn new(network: Network) -> Self {
        let dir = tempfile::Builder::new().prefix("dunlin-discovery-").tempdir().unwrap();
        for host in 0..HOSTS {
            let data = dir.path().join(format!("n{host}")).display().to_string();
            // No address: each listens on all that its host has.
            let text = format!(
                "[node]\nname = 'n{host}'\ndata_dir = '{data}'\n[listen]\nhttp = 'off'\n\
                 [storage]\nshards = 3\nlow_space = '16MiB'\nballast = '8MiB'\n\
                 [log]\nlevel = 'debug'\nformat = 'text'\n"
            );
            fs::write(dir.path().join(format!("n{host}.toml")), text).unwrap();
        }
        Self { network, children: (0..HOSTS).map(|_| None).collect(), dir }
    }

    fn config(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("n{host}.toml"))
    }

    fn log(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("n{host}.log"))
    }

    fn on(&self, host: usize, arguments: &[&str]) -> Command {
        let mut command = self.network.command(host, program());
        command.args(arguments).arg("--config").arg(self.config(host));
        command
    }

    fn start(&mut self, host: usize) {
        let log = fs::File::options().create(true).append(true).open(self.log(host)).unwrap();
        let mut command = self.on(host, &["serve", "--stop-with-stdin"]);
        command.env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        self.children[host] = Some(command.spawn().unwrap());
    }

    fn kill(&mut self, host: usize) {
        if let Some(mut child) = self.children[host].take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// As systemd does it.
    fn stop(&mut self, host: usize) {
        let mut child = self.children[host].take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        child.wait().unwrap();
    }

    /// Makes the site, by invites whose only address nobody has. Gives a profile without any.
    async fn found(&mut self) -> Profile {
        let admin = self.dir.path().join("admin.toml");
        succeeds(self.on(0, &["init", "--site", "lab"]).arg("--admin-profile").arg(&admin), "");
        self.start(0);
        let profile = Profile { addresses: vec![], ..Profile::load(&admin).unwrap() };
        let free = self.dir.path().join("free.toml");
        profile.save(&free, None).unwrap();
        until("the founder is found", async || Client::connect(&profile).await.is_ok()).await;
        for host in 1..HOSTS {
            // This process is where clients are.
            let mut invite = Command::new(program());
            invite.args(["invite", "--address", "192.0.2.1", "--profile"]).arg(&free);
            let token = succeeds(&mut invite, "");
            succeeds(&mut self.on(host, &["join", "-"]), &token);
            self.start(host);
        }
        profile
    }

    /// Gives a host another address.
    fn renumber(&self, host: usize) {
        let Network::Switch(switch) = &self.network else { unreachable!("hosts are on a switch") };
        let space = switch.host(host);
        let old = format!("{}/24", self.network.address(host));
        let new = format!("{}/24", Ipv4Addr::new(10, 77, 0, 50 + u8::try_from(host).unwrap()));
        run("ip", &["-n", &space, "addr", "del", &old, "dev", "eth0"]).unwrap();
        run("ip", &["-n", &space, "addr", "add", &new, "dev", "eth0"]).unwrap();
    }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn trusted(profile: &Profile) -> Vec<String> {
    let found = discover(Some(profile), None, LOOK).await.unwrap();
    let trusted = found.iter().filter(|node| node.trust == Trust::Trusted);
    trusted.map(|node| node.node.clone()).collect()
}

fn in_step(status: &ClusterStatus) -> bool {
    let whole = |shard: &dunlin::wire::ClusterShard| {
        shard.primary.is_some() && shard.set.len() == HOSTS && shard.pending.is_empty()
    };
    status.nodes.len() == HOSTS && status.shards.iter().all(whole)
}

async fn whole(profile: &Profile) {
    until("in step", async || {
        let Ok(client) = Client::connect(profile).await else { return false };
        let status = client.cluster().status().await;
        client.close().await;
        status.is_ok_and(|status| in_step(&status))
    })
    .await;
}

async fn publish(profile: &Profile, topic: &TopicName, value: &'static str) {
    let client = Client::connect(profile).await.unwrap();
    let publisher = client.publisher(topic).acks(Acks::Replicated).open().await.unwrap();
    timeout(PATIENCE, publisher.publish(Record::new(value))).await.unwrap().unwrap();
    publisher.close().await.unwrap();
    client.close().await;
}

async fn read(profile: &Profile, topic: &TopicName) -> Vec<String> {
    let client = Client::connect(profile).await.unwrap();
    let mut reader = client.subscribe(topic).from(Position::Earliest).open().await.unwrap();
    let mut read = Vec::new();
    while let Some(event) = timeout(PATIENCE, reader.next_event()).await.unwrap() {
        match event.unwrap() {
            Event::Record(record) => {
                read.push(String::from_utf8(record.record.value.to_vec()).unwrap());
            }
            Event::CaughtUp => break,
        }
    }
    client.close().await;
    read
}

/// Nodes that nobody runs, and one that is called like a true one: all where the client is.
fn spoof(profile: &Profile, found: &[FoundNode], count: u64) -> Mdns {
    let ca: CaPrefix = found[0].ca.parse().unwrap();
    let of = |id, name: String| Announcement {
        site: profile.site.clone(),
        node: name.parse().unwrap(),
        id,
        role: NodeRole::Data,
        weight: 1_000,
        load: 0,
        version: "9".into(),
        ca,
    };
    let mut all = vec![of(found[0].id, "impostor".into())];
    all.extend((1..count).map(|nth| of((1_000_000 + nth).into(), format!("fake-{nth}"))));
    let mdns = Mdns::start(Reach::All).unwrap();
    all.iter().for_each(|fake| mdns.announce(fake, 9).unwrap());
    mdns
}

#[test]
fn nodes_and_clients_find_each_other_without_an_address() {
    let Some(network) = super::switched_hosts(HOSTS) else { return };
    block_on(network, async |network| {
        let mut lab = Lab::new(network);
        let profile = lab.found().await;
        whole(&profile).await;

        let began = Instant::now();
        let topic: TopicName = "lab/found".parse().unwrap();
        let client = Client::connect(&profile).await.unwrap();
        println!("a client without an address is connected after {:?}", began.elapsed());
        client.topics().create(&topic, TopicRequest::default()).await.unwrap();
        client.close().await;
        publish(&profile, &topic, "one").await;

        until("all are trusted", async || trusted(&profile).await == ["n0", "n1", "n2"]).await;
        let mut command = Command::new(program());
        command.args(["discover", "--json", "--profile"]).arg(lab.dir.path().join("free.toml"));
        let seen: serde_json::Value = serde_json::from_str(&succeeds(&mut command, "")).unwrap();
        assert_eq!(seen.as_array().map(Vec::len), Some(HOSTS), "{seen}");
        assert!(seen[0]["round_trip_us"].as_u64().is_some_and(|us| us > 0), "{seen}");
        assert_eq!(seen[0]["role"], "data");

        spoofed_announcements_cost_dials_and_nothing_else(&profile).await;

        lab.kill(2);
        let killed = Instant::now();
        until("a killed node is gone", async || trusted(&profile).await == ["n0", "n1"]).await;
        println!("a killed node is gone from discovery after {:?}", killed.elapsed());
        publish(&profile, &topic, "two").await;
        lab.start(2);
        whole(&profile).await;

        // Every node moves while all are down: no address that anybody remembers is good any more.
        (0..HOSTS).rev().for_each(|host| lab.stop(host));
        (0..HOSTS).for_each(|host| lab.renumber(host));
        (0..HOSTS).for_each(|host| lab.start(host));
        whole(&profile).await;
        assert_eq!(read(&profile, &topic).await, ["one", "two"]);

        // One that stops in order says goodbye: who listens already hears that it goes.
        let listener = Mdns::start(Reach::All).unwrap();
        let mut heard = listener.browse().unwrap();
        lab.stop(1);
        let stopped = Instant::now();
        let goodbye = async {
            loop {
                match heard.next().await {
                    Some(MdnsEvent::Gone(instance)) if instance.starts_with("n1.") => break,
                    Some(_) => {}
                    None => panic!("multicast has ended"),
                }
            }
        };
        timeout(Duration::from_secs(10), goodbye).await.expect("a goodbye");
        println!("a goodbye is heard {:?} after the stop", stopped.elapsed());
    });
}

async fn spoofed_announcements_cost_dials_and_nothing_else(profile: &Profile) {
    let found = discover(Some(profile), None, LOOK).await.unwrap();
    let spoofer = spoof(profile, &found, 30);
    until("the fakes are announced", async || {
        let seen = discover(Some(profile), None, LOOK).await.unwrap();
        seen.iter().filter(|node| node.version == "9").count() > 10
    })
    .await;
    let began = Instant::now();
    for _ in 0..3 {
        Client::connect(profile).await.unwrap().close().await;
    }
    println!("three clients among 30 fakes are connected after {:?}", began.elapsed());
    spoofer.stop().await;
}
