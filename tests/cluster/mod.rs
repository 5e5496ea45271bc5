//! Several nodes in one process, over loopback, with real disks and links.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{
    Server,
    client::{Client, Event, Profile},
    config::Config,
    net::{
        SiteAuthority,
        authority::Validity,
        tls::{NODE_CERTIFICATE_FILE, NODE_KEY_FILE},
    },
    server::joined::Joined,
    types::{ClientName, NodeId, NodeName, NodeRole, Position, SiteName, TopicName},
    wire::{NodeInfo, TopicRequest},
};

struct Site {
    dir: TempDir,
    authority: SiteAuthority,
    nodes: Vec<Option<Server>>,
    addresses: Vec<String>,
}

fn name(n: usize) -> NodeName {
    format!("n{n}").parse().expect("allowed")
}

impl Site {
    async fn start(count: usize) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let site: SiteName = "plant".parse().expect("allowed");
        #[expect(clippy::disallowed_methods, reason = "certificates are valid from now on")]
        let now = SystemTime::now();
        let authority = SiteAuthority::create(site, now).expect("no reason to fail");
        let mut site = Self { dir, authority, nodes: Vec::new(), addresses: Vec::new() };
        for n in 0..count {
            site.add(n, now).await;
        }
        site
    }

    fn data_dir(&self, n: usize) -> PathBuf {
        self.dir.path().join(format!("n{n}"))
    }

    fn config(&self, n: usize) -> Config {
        let address = self.addresses.get(n).map_or("127.0.0.1:0", String::as_str);
        let data = self.data_dir(n).display().to_string();
        let text = format!(
            "[node]\nname = 'n{n}'\ndata_dir = '{data}'\n[listen]\naddress = '{address}'\nhttp = 'off'\n\
             [storage]\nshards = 3\nballast = '0B'\nlow_space = '16MiB'\n"
        );
        Config::parse(&text, &PathBuf::from("test")).expect("good")
    }

    async fn add(&mut self, n: usize, now: SystemTime) {
        let pki = self.data_dir(n).join("pki");
        std::fs::create_dir_all(&pki).expect("writable");
        let validity = Validity::as_long_as_the_authority(now);
        let issued = self.authority.issue_node(&name(n), &[], validity).expect("own authority");
        let write = |file: &str, text: &str| {
            use std::os::unix::fs::OpenOptionsExt as _;
            let mut options = std::fs::OpenOptions::new();
            let mut file =
                options.write(true).create(true).mode(0o600).open(pki.join(file)).expect("new");
            std::io::Write::write_all(&mut file, text.as_bytes()).expect("writable");
        };
        write("ca.pem", self.authority.certificate_pem());
        write(NODE_CERTIFICATE_FILE, &issued.certificate_pem);
        write(NODE_KEY_FILE, &issued.key_pem);
        if let Some(Some(first)) = self.nodes.first() {
            let disk_id = 1_000 + n as u128;
            let node = first.admit(name(n), disk_id).await;
            let site = self.authority.site().clone();
            let nodes = vec![NodeInfo {
                id: NodeId(1),
                name: "n0".into(),
                addresses: vec![self.addresses[0].clone()],
            }];
            let joined = Joined { site, node, disk_id, shards: 3, role: NodeRole::Data, nodes };
            joined.save(&self.data_dir(n), None).expect("writable");
        }
        let started = self.start_node(n).await;
        self.addresses.push(started.address().to_string());
        self.nodes.push(Some(started));
    }

    async fn start_node(&self, n: usize) -> Server {
        Server::start(self.config(n)).await.expect("starts")
    }

    async fn stop(&mut self, n: usize) {
        self.nodes[n].take().expect("runs").stop().await.expect("in order");
    }

    fn profile(&self, only: &[usize]) -> Profile {
        #[expect(clippy::disallowed_methods, reason = "certificates are valid from now on")]
        let validity = Validity::as_long_as_the_authority(SystemTime::now());
        let name: ClientName = "tester".parse().expect("allowed");
        let issued = self.authority.issue_client(&name, validity).expect("own authority");
        Profile {
            name,
            site: self.authority.site().clone(),
            addresses: only.iter().map(|n| self.addresses[*n].parse().expect("address")).collect(),
            ca: self.authority.certificate_pem().to_owned(),
            certificate: Some(issued.certificate_pem),
            key: Some(issued.key_pem),
        }
    }

    async fn until(&self, what: &str, holds: impl Fn(&crate::cluster::SiteState) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let server = self.nodes.iter().flatten().next().expect("one runs");
        while !server.site(&holds) {
            assert!(
                Instant::now() < deadline,
                "{what}: {}",
                server.site(|site| format!("{site:#?}"))
            );
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn all_in_sync(&self) {
        let members = self.nodes.iter().flatten().count();
        self.until("every shard on every node", |site| {
            site.shards.iter().all(|shard| shard.set.len() == members && shard.pending.is_empty())
        })
        .await;
    }
}

fn log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .try_init();
}

async fn publish(client: &Client, topic: &TopicName, from: usize, count: usize) {
    let publisher = client.publisher(topic).open().await.expect("opens");
    let mut receipts = Vec::new();
    for n in from..from + count {
        let record = crate::client::Record::new(format!("record {n}"));
        receipts.push(publisher.send(record).await.expect("room"));
    }
    for receipt in receipts {
        receipt.await.expect("stored");
    }
    publisher.close().await.expect("in order");
}

async fn read(client: &Client, topic: &TopicName) -> Vec<String> {
    let opened = client.subscribe(topic).from(Position::Earliest).open().await;
    let mut subscriber = opened.expect("opens");
    let mut found = Vec::new();
    while let Some(Ok(Event::Record(received))) = subscriber.next_event().await {
        found.push(String::from_utf8_lossy(&received.record.value).into_owned());
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_hold_the_same_and_any_serves_any_client() {
    log();
    let mut site = Site::start(3).await;
    site.all_in_sync().await;
    let topic: TopicName = "readings".parse().expect("allowed");
    // Over each node in turn: the first leads all, so that the others pass on.
    for n in 0..3 {
        let client = Client::connect(&site.profile(&[n])).await.expect("lets us in");
        if n == 0 {
            let settings = TopicRequest { partitions: Some(4), ..TopicRequest::default() };
            client.topics().create(&topic, settings).await.expect("new");
        }
        publish(&client, &topic, n * 100, 100).await;
        client.close().await;
    }
    for n in 0..3 {
        let client = Client::connect(&site.profile(&[n])).await.expect("lets us in");
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let mut found = read(&client, &topic).await;
            if found.len() == 300 {
                found.sort();
                found.dedup();
                assert_eq!(found.len(), 300);
                break;
            }
            assert!(Instant::now() < deadline, "node {n} shows {} records", found.len());
        }
        client.close().await;
    }
    for n in 0..3 {
        site.stop(n).await;
    }
}
