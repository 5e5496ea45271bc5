//! Nodes in ordinary DNS, with the name servers that sites use: Knot DNS takes updates, dnsmasq serves what is printed.
//!
//! Without those programs nothing is tested here, which is said.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use dunlin::{
    cli::{own_broker::OwnBroker, own_site::OwnSite},
    client::{Client, Profile},
    discovery::{Candidates, Dns, Sighting},
    types::NodeRole,
};
use tempfile::TempDir;
use tokio::time::{Instant, interval};

const DOMAIN: &str = "plant.example";
const DEADLINE: Duration = Duration::from_secs(20);
const SETTINGS: &str = "[storage]\nshards = 3\nlow_space = '64MiB'\nballast = '0B'\n";
/// What others have in the zone: a printer, and a node of another site.
const OTHERS: &str = "\
printer._ipp._tcp TXT \"rp=ipp\"
_dunlin._udp PTR abroad._dunlin._udp
_00000000000000ff._sub._dunlin._udp PTR abroad._dunlin._udp
abroad._dunlin._udp SRV 0 100 7440 dunlin-00000000000000ff-1
abroad._dunlin._udp TXT \"cluster=abroad\" \"id=1\" \"w=100\" \"ca=00000000000000ff\"
dunlin-00000000000000ff-1 A 192.0.2.9
";

/// A name server on loopback. It ends with this.
struct NameServer {
    child: Child,
    address: SocketAddr,
    dir: TempDir,
}

impl Drop for NameServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- name server\n{}", self.log());
        }
    }
}

impl NameServer {
    /// Starts one that listens where it is told. None if the program is not on this machine.
    async fn start(command: impl Fn(SocketAddr, &Path) -> Command) -> Option<Self> {
        // Between the choice of a port and its use another process may take it.
        for _ in 0..5 {
            let dir = tempfile::Builder::new().prefix("dunlin-zone-").tempdir().unwrap();
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let mut command = command(address, dir.path());
            let log = fs::File::create(dir.path().join("log")).unwrap();
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            let child = match command.spawn() {
                Err(error) if error.kind() == ErrorKind::NotFound => return missing(&command),
                child => child.unwrap(),
            };
            let mut server = Self { child, address, dir };
            if server.answers().await {
                return Some(server);
            }
        }
        panic!("no name server starts")
    }

    /// False if it has ended instead.
    async fn answers(&mut self) -> bool {
        let mut looks = interval(Duration::from_millis(20));
        let deadline = Instant::now() + DEADLINE;
        while TcpStream::connect(self.address).is_err() {
            looks.tick().await;
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(Instant::now() < deadline, "it does not listen");
        }
        true
    }

    async fn knot(key: &Path) -> Option<Self> {
        // As an operator would give it to both.
        let key = fs::read_to_string(key).unwrap();
        Self::start(|address, dir| {
            let origin = format!("$ORIGIN {DOMAIN}.\n$TTL 60\n@ SOA ns1 admin 1 60 60 3600 60\n@ NS ns1\n");
            let zone = origin + "ns1 A 127.0.0.1\n" + OTHERS;
            fs::write(dir.join("zone"), zone).unwrap();
            let (port, dir_text) = (address.port(), dir.display());
            let text = format!(
                "server:\n    rundir: {dir_text}\n    listen: 127.0.0.1@{port}\n\
                 database:\n    storage: {dir_text}\n\
                 log:\n  - target: stderr\n    any: info\n\
                 {key}\n\
                 acl:\n  - id: nodes\n    key: nodes\n    action: update\n    \
                 update-type: [PTR, SRV, TXT, A, AAAA]\n\
                 zone:\n  - domain: {DOMAIN}\n    storage: {dir_text}\n    file: zone\n    acl: nodes\n"
            );
            fs::write(dir.join("knot.conf"), text).unwrap();
            let mut command = Command::new(program("knotd"));
            command.arg("--config").arg(dir.join("knot.conf"));
            command
        })
        .await
    }

    /// With the records of a zone file that `dunlin discover --zone` printed.
    async fn dnsmasq(zone: &str) -> Option<Self> {
        let records: Vec<String> = zone.lines().filter_map(dnsmasq_record).collect();
        Self::start(|address, dir| {
            let mut command = Command::new(program("dnsmasq"));
            let pid = dir.join("pid");
            command.args([
                "--keep-in-foreground",
                "--no-resolv",
                "--no-hosts",
                "--bind-interfaces",
            ]);
            command.args(["--conf-file=/dev/null", "--listen-address=127.0.0.1", "--user="]);
            command.arg(format!("--pid-file={}", pid.display()));
            command.arg(format!("--port={}", address.port())).arg("--log-facility=-");
            command.args(&records);
            command
        })
        .await
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// What it has under a name.
    fn ask(&self, name: &str, kind: &str) -> Vec<String> {
        let mut kdig = Command::new("kdig");
        kdig.args([
            "@127.0.0.1",
            "-p",
            &self.address.port().to_string(),
            "+short",
            "+tcp",
            name,
            kind,
        ]);
        let answer = String::from_utf8(kdig.output().unwrap().stdout).unwrap();
        let mut lines: Vec<String> = answer.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    async fn sightings(&self) -> Vec<Sighting> {
        // A new resolver, which remembers nothing.
        let dns = Dns::at(DOMAIN, self.address).unwrap();
        dns.browse(Duration::ZERO).await.unwrap_or_default()
    }

    /// Weights of the site's nodes by name, as clients read them.
    async fn weights(&self) -> BTreeMap<String, u32> {
        let sightings = self.sightings().await.into_iter().map(|sighting| sighting.announcement);
        let ours = sightings.filter(|said| said.site.as_str() != "abroad");
        ours.map(|said| (said.node.to_string(), said.weight)).collect()
    }

    async fn until(&self, wanted: &[(&str, u32)]) {
        let wanted = wanted.iter().map(|(node, weight)| ((*node).to_owned(), *weight)).collect();
        let (deadline, mut looks) =
            (Instant::now() + DEADLINE, interval(Duration::from_millis(50)));
        loop {
            looks.tick().await;
            let weights: BTreeMap<String, u32> = self.weights().await;
            if weights == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "not {wanted:?}: {weights:?}");
        }
    }

    /// How many of a thousand clients would dial this node first.
    async fn chosen_first(&self, node: &OwnBroker) -> u32 {
        let ca =
            self.sightings().await.into_iter().find(|s| s.announcement.site.as_str() != "abroad");
        let mut table = Candidates::of_site(ca.map(|sighting| sighting.announcement.ca));
        for sighting in self.sightings().await {
            table.see(sighting, Duration::ZERO);
        }
        let address = node.profile().addresses[0].to_string();
        let first = |seed| table.order(Duration::ZERO, seed).first().map(ToString::to_string);
        (0..1_000).map(|seed| u32::from(first(seed).as_deref() == Some(&address))).sum()
    }
}

/// A line of a zone file as dnsmasq takes it: `NAME TTL IN TYPE DATA`. None of comments and `$ORIGIN`.
fn dnsmasq_record(line: &str) -> Option<String> {
    let (name, data) = line.split_once(" 120 IN ")?;
    let (kind, data) = data.split_once(' ').unwrap();
    let whole = |name: &str| format!("{name}.{DOMAIN}");
    let name = whole(name);
    Some(match kind {
        "PTR" => format!("--ptr-record={name},{}", whole(data)),
        "TXT" => format!("--txt-record={name},{}", data.replace("\" \"", ",").replace('"', "")),
        "SRV" => {
            let [priority, weight, port, target] = data.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            format!("--srv-host={name},{},{port},{priority},{weight}", whole(target))
        }
        "A" | "AAAA" => format!("--host-record={name},{data}"),
        other => panic!("{other}: {line}"),
    })
}

/// Where Debian puts servers is not in every user's path.
fn program(name: &str) -> PathBuf {
    let whole = Path::new("/usr/sbin").join(name);
    if whole.exists() { whole } else { name.into() }
}

fn missing<T>(command: &Command) -> Option<T> {
    println!("no {}: nothing is tested with it", command.get_program().display());
    None
}

/// A key as Knot DNS makes it. None without it.
fn new_key(file: &Path, name: &str) -> Option<()> {
    let mut command = Command::new(program("keymgr"));
    command.args(["-t", name, "hmac-sha256"]);
    let made = match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => return missing(&command),
        made => made.unwrap(),
    };
    assert!(made.status.success(), "{made:?}");
    fs::write(file, made.stdout).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    Some(())
}

fn registering(server: &NameServer, key: &Path) -> String {
    let (key, server) = (key.display(), server.address);
    format!(
        "{SETTINGS}[discovery]\nmdns = false\ndomain = '{DOMAIN}'\ntsig_key_file = '{key}'\n\
         domain_server = '{server}'\n"
    )
}

fn dunlin(profile: &Profile, dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
    command.args(args).args(["--server", &profile.addresses[0].to_string(), "--profile"]);
    let output = command.arg(dir.join("client.toml")).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_register_follow_their_weights_and_leave() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let Some(()) = new_key(&key, "nodes") else { return };
    let Some(server) = NameServer::knot(&key).await else { return };
    let others = server.ask("abroad._dunlin._udp.plant.example", "SRV");
    assert_eq!(others.len(), 1, "{others:?}");
    let program = Path::new(env!("CARGO_BIN_EXE_dunlin"));
    let mut site = OwnSite::start(program, &registering(&server, &key)).await.unwrap();
    site.add(NodeRole::Data).await.unwrap();
    server.until(&[("node-1", 100), ("node-2", 100)]).await;
    let profile = site.nodes()[0].profile().clone();
    let even = server.chosen_first(&site.nodes()[1]).await;
    assert!((450..550).contains(&even), "{even} of 1000");

    dunlin(&profile, site.nodes()[0].dir(), &["node", "weight", "node-2", "25"]);
    server.until(&[("node-1", 100), ("node-2", 25)]).await;
    let fifth = server.chosen_first(&site.nodes()[1]).await;
    assert!((150..250).contains(&fifth), "{fifth} of 1000");
    let printed = dunlin(&profile, site.nodes()[0].dir(), &["discover", "--zone", DOMAIN]);
    for line in printed.lines().filter(|line| line.contains(" SRV ")) {
        let (name, data) = line.split_once(" 120 IN SRV ").unwrap();
        let held = server.ask(&format!("{name}.{DOMAIN}"), "SRV");
        assert_eq!(held, [format!("{data}.{DOMAIN}.")], "{printed}");
    }

    // One that is killed stays, and costs a dial; once it is removed, the others take it out.
    let witness = site.add(NodeRole::Witness).await.unwrap();
    server.until(&[("node-1", 100), ("node-2", 25), ("node-3", 100)]).await;
    site.node_mut(witness).kill().await.unwrap();
    let admin = Client::connect(&profile).await.unwrap();
    let status = admin.cluster().status().await.unwrap();
    let id = status.nodes.iter().find(|node| node.name == "node-3").unwrap().id;
    server.until(&[("node-1", 100), ("node-2", 25), ("node-3", 100)]).await;
    admin.cluster().remove_node(id).await.unwrap();
    server.until(&[("node-1", 100), ("node-2", 25)]).await;
    admin.close().await;

    site.node_mut(1).stop().await.unwrap();
    // It has gone from there before its process ends.
    assert_eq!(server.weights().await, BTreeMap::from([("node-1".to_owned(), 100)]));
    site.node_mut(0).stop().await.unwrap();
    assert_eq!(server.ask("_dunlin._udp.plant.example", "PTR").len(), 1, "{}", server.log());
    assert_eq!(server.ask("abroad._dunlin._udp.plant.example", "SRV"), others);
    assert_eq!(server.ask("printer._ipp._tcp.plant.example", "TXT"), ["\"rp=ipp\""]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_is_said_and_harms_nothing_and_a_right_one_is_used_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong) = (dir.path().join("right"), dir.path().join("wrong"));
    let Some(()) = new_key(&right, "nodes") else { return };
    let Some(()) = new_key(&wrong, "strangers") else { return };
    let Some(server) = NameServer::knot(&right).await else { return };
    let program = Path::new(env!("CARGO_BIN_EXE_dunlin"));
    let mut broker = OwnBroker::start(program, None, &registering(&server, &wrong)).await.unwrap();
    let said = |log: &str, what: &str| log.matches(what).count();
    let until_said = async |what: &str| {
        let (deadline, mut looks) =
            (Instant::now() + DEADLINE, interval(Duration::from_millis(50)));
        while said(&broker.log(), what) == 0 {
            looks.tick().await;
            assert!(Instant::now() < deadline, "no {what}: {}", broker.log());
        }
    };
    until_said("does not know the key 'strangers' (BADKEY)").await;
    new_key(&wrong, "nodes").unwrap();
    until_said("has another secret for the key 'nodes' (BADSIG)").await;
    until_said("give both the same key").await;
    // It serves all the same.
    Client::connect(broker.profile()).await.unwrap().close().await;

    fs::copy(&right, &wrong).unwrap();
    let weights = [("own", 100)];
    server.until(&weights).await;
    assert_eq!(said(&broker.log(), "(BADSIG)"), 1, "{}", broker.log());
    // One that was killed finds its records where it left them, and takes them out when it stops.
    broker.kill().await.unwrap();
    server.until(&weights).await;
    broker.restart().await.unwrap();
    broker.stop().await.unwrap();
    assert_eq!(server.weights().await, BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_follow_weights_that_are_printed_for_a_zone_of_dnsmasq() {
    let program = Path::new(env!("CARGO_BIN_EXE_dunlin"));
    let mut site = OwnSite::start(program, SETTINGS).await.unwrap();
    site.add(NodeRole::Data).await.unwrap();
    let (first, second) = (&site.nodes()[0], &site.nodes()[1]);
    dunlin(first.profile(), first.dir(), &["node", "weight", "node-2", "300"]);
    let zone = dunlin(first.profile(), first.dir(), &["discover", "--zone", DOMAIN]);
    let Some(server) = NameServer::dnsmasq(&zone).await else { return };
    let weights = [("node-1".to_owned(), 100), ("node-2".to_owned(), 300)];
    assert_eq!(server.weights().await, BTreeMap::from(weights), "{zone}");
    let chosen = server.chosen_first(second).await;
    assert!(
        (700..800).contains(&chosen),
        "{chosen} of 1000 choose the one with three shares of four"
    );
    assert_eq!(server.chosen_first(first).await, 1_000 - chosen);
}

#[test]
fn a_key_file_is_checked_with_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let (config, key) = (dir.path().join("dunlin.toml"), dir.path().join("key"));
    let named = format!("[discovery]\ndomain = 'a'\ntsig_key_file = '{}'\n", key.display());
    fs::write(&config, named).unwrap();
    let check = |code: i32, says: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
        let output = command.args(["config", "check"]).arg(&config).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{complaint}");
        assert!(complaint.contains(says), "{complaint}");
    };
    check(78, "hint: discovery.tsig_key_file names this file");
    fs::write(&key, "key a {\n  algorithm hmac-md5;\n};").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    check(78, "run chmod 600");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    check(78, "key:2: no such algorithm, allowed are hmac-sha256");
    let secret = "AAAAAAAAAAAAAAAAAAAAAA==";
    fs::write(&key, format!("key a {{ algorithm hmac-sha256; secret {secret}; }};")).unwrap();
    check(0, "");
}
