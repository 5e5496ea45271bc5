//! Bits that rot on the disk of a node: found, told, and repaired from the other nodes. Disks that cannot be used at all: the
//! machine begins anew.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use dunlin::{
    cli::own_site::OwnSite,
    client::{Client, NodeRole, Position, Record, TopicName, TopicRequest},
    types::NodeId,
    wire::ClusterStatus,
};
use tokio::{
    process::Command,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{read_until_caught_up, text};

const SETTINGS: &str = "[storage]\nshards = 3\nlow_space = '64MiB'\nballast = '0B'\n";
const DEADLINE: Duration = Duration::from_secs(30);
const RECORDS: u32 = 200;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_dunlin"))
}

async fn client_of(site: &OwnSite, place: usize) -> Client {
    Client::connect(site.nodes()[place].profile()).await.unwrap()
}

/// What a record holds: not compressed, so that it can be found in the file.
fn payload(n: u32) -> String {
    format!("marker {n:06} {}", "x".repeat(3_000))
}

/// A topic of one partition, in shard 0, with records.
async fn filled(site: &OwnSite) -> TopicName {
    let name: TopicName = "readings".parse().unwrap();
    let settings = TopicRequest { partitions: Some(1), ..TopicRequest::default() };
    let client = client_of(site, 0).await;
    client.topics().create(&name, settings).await.unwrap();
    let publisher = client.publisher(&name).open().await.unwrap();
    for n in 0..RECORDS {
        // One batch each.
        publisher.send(Record::new(payload(n))).await.unwrap().await.unwrap();
    }
    publisher.close().await.unwrap();
    name
}

/// Flips a bit of a record wherever it lies in a node's log. The node is stopped.
fn damage(site: &OwnSite, place: usize, n: u32) {
    let path = site.nodes()[place].data_dir().join("data.redb");
    let bytes = fs::read(&path).unwrap();
    let marker = format!("marker {n:06} ");
    let file = fs::File::options().write(true).open(&path).unwrap();
    let found = bytes.windows(marker.len()).enumerate().filter(|(_, w)| *w == marker.as_bytes());
    let mut flipped = 0;
    for (at, _) in found {
        file.write_all_at(&[bytes[at] ^ 4], at as u64).unwrap();
        flipped += 1;
    }
    assert!(flipped > 0, "record {n} is not in the log");
}

/// Reads all that a node shows, or says why it cannot.
async fn read(site: &OwnSite, place: usize, topic: &TopicName) -> Vec<String> {
    let client = client_of(site, place).await;
    let mut reader = client.subscribe(topic).from(Position::Earliest).open().await.unwrap();
    let records = timeout(DEADLINE, read_until_caught_up(&mut reader)).await.unwrap();
    records.iter().map(|record| text(record).to_owned()).collect()
}

async fn metric(site: &OwnSite, place: usize, name: &str) -> u64 {
    let page = site.nodes()[place].http_get("/metrics").await.unwrap_or_default();
    let line = page.lines().find(|line| line.split(' ').next() == Some(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

/// Waits until a node counts so many.
async fn until_metric(site: &OwnSite, place: usize, name: &str, least: u64) {
    let deadline = Instant::now() + DEADLINE;
    let mut looks = interval(Duration::from_millis(50));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while metric(site, place, name).await < least {
        assert!(Instant::now() < deadline, "{name} < {least}: {}", site.nodes()[place].log());
        looks.tick().await;
    }
}

fn primary(status: &ClusterStatus) -> Option<NodeId> {
    status.shards[0].primary
}

fn place_of(site: &OwnSite, status: &ClusterStatus, id: NodeId) -> usize {
    let node = status.nodes.iter().find(|node| node.id == id).unwrap();
    site.place_of(&node.name).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_on_any_node_of_several_is_repaired_from_the_others() {
    let mut site = OwnSite::of(program(), SETTINGS, 3).await.unwrap();
    let topic = filled(&site).await;
    let all: Vec<String> = (0..RECORDS).map(payload).collect();

    // Found by a reader, on a node that follows.
    let status = site.status(0).await.unwrap();
    let leads = primary(&status).unwrap();
    let other = status.nodes.iter().map(|node| node.id).find(|id| *id != leads).unwrap();
    let place = place_of(&site, &status, other);
    site.node_mut(place).stop().await.unwrap();
    damage(&site, place, 20);
    site.node_mut(place).restart().await.unwrap();
    site.in_step().await.unwrap();
    let client = client_of(&site, place).await;
    let mut reader = client.subscribe(&topic).from(Position::Earliest).open().await.unwrap();
    // It is told what is damaged, or sent on.
    while let Ok(Some(Ok(_))) = timeout(Duration::from_secs(1), reader.next_event()).await {}
    until_metric(&site, place, "dunlin_damage_repaired_total", 1).await;
    site.in_step().await.unwrap();
    assert_eq!(read(&site, place, &topic).await, all);
    assert_eq!(metric(&site, place, "dunlin_damaged_shards").await, 0);

    // Found by a search that was asked for, on the node that leads: it takes the lead back when it has kept pace for long.
    let status = site.status(place).await.unwrap();
    let leads = status.shards[0].replicas[0];
    let place = place_of(&site, &status, leads);
    site.node_mut(place).stop().await.unwrap();
    damage(&site, place, 150);
    site.node_mut(place).restart().await.unwrap();
    let elsewhere = (place + 1) % 3;
    let leads_again = |status: &ClusterStatus| primary(status) == Some(leads);
    site.until(elsewhere, "led by it again", leads_again).await.unwrap();
    client_of(&site, elsewhere).await.cluster().scrub(Some(leads)).await.unwrap();
    until_metric(&site, place, "dunlin_damage_repaired_total", 1).await;
    site.in_step().await.unwrap();
    let whole = |status: &ClusterStatus| status.nodes.iter().all(|node| !node.damaged);
    site.until(elsewhere, "without damage", whole).await.unwrap();
    for place in 0..3 {
        assert_eq!(read(&site, place, &topic).await, all, "node {place}");
    }
    assert!(site.nodes()[place].log().contains("DAMAGED"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_alone_says_what_is_damaged_and_serves_the_rest() {
    let mut site = OwnSite::of(program(), SETTINGS, 1).await.unwrap();
    let topic = filled(&site).await;
    site.node_mut(0).stop().await.unwrap();
    damage(&site, 0, 20);
    site.node_mut(0).restart().await.unwrap();
    let client = client_of(&site, 0).await;
    client.cluster().scrub(None).await.unwrap();
    let told = |status: &ClusterStatus| {
        let why = |lag: &dunlin::wire::Lag| lag.why.contains("DAMAGED, it stays in use");
        status.nodes[0].damaged && status.shards.iter().any(|s| s.behind.iter().any(why))
    };
    site.until(0, "damaged", told).await.unwrap();
    assert_eq!(metric(&site, 0, "dunlin_damaged_shards").await, 1);
    let from = |offset: u64| client.subscribe(&topic).from(Position::Offset(offset.into())).open();
    let mut behind = from(21).await.unwrap();
    let rest = timeout(DEADLINE, read_until_caught_up(&mut behind)).await.unwrap();
    let rest: Vec<String> = rest.iter().map(|record| text(record).to_owned()).collect();
    assert_eq!(rest, (21..RECORDS).map(payload).collect::<Vec<_>>());
    let publisher = client.publisher(&topic).open().await.unwrap();
    publisher.send(Record::new("it goes on")).await.unwrap().await.unwrap();
    publisher.close().await.unwrap();
    let mut damaged = from(20).await.unwrap();
    let error = damaged.next_event().await.unwrap().expect_err("it is never skipped");
    assert!(format!("{error:?}").contains("Corrupted"), "{error:?}");
}

async fn run(command: &mut Command) -> Output {
    command.env_remove("DUNLIN_SERVER").env_remove("DUNLIN_PROFILE").env_remove("DUNLIN_CONFIG");
    command.stdin(Stdio::null()).kill_on_drop(true);
    timeout(DEADLINE, command.output()).await.expect("it ends").unwrap()
}

async fn join(site: &OwnSite, place: usize, token: &str, name: &str) -> Output {
    let mut command = Command::new(program());
    command.args(["join", "--move-data-aside", token, "--name", name]);
    run(command.arg("--config").arg(site.nodes()[place].dir().join("dunlin.toml"))).await
}

async fn replace(site: &OwnSite, old: &str, new: &str) -> Output {
    let mut command = Command::new(program());
    command.args(["cluster", "replace", old, new]);
    command.arg("--profile").arg(site.nodes()[0].dir().join("client.toml"));
    let address = site.nodes()[0].profile().addresses[0].to_string();
    run(command.args(["--server", &address])).await
}

#[track_caller]
fn says(output: &Output, code: i32, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(code) && said.contains(words), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_file_cannot_be_opened_begins_anew_and_replaces_what_it_was() {
    let mut site = OwnSite::of(program(), SETTINGS, 2).await.unwrap();
    let topic = filled(&site).await;
    let all: Vec<String> = (0..RECORDS).map(payload).collect();
    let invite = client_of(&site, 0).await.cluster().invite(NodeRole::Data, None, &[]).await;
    let token = invite.unwrap().token;
    says(&join(&site, 1, token.as_str(), "anew").await, 1, "a node is running");

    site.node_mut(1).stop().await.unwrap();
    let data = site.nodes()[1].data_dir();
    let good = fs::read(data.join("data.redb")).unwrap();
    let garbage = vec![0xd7; good.len()];
    for bad in [&good[..good.len() / 2], &good[..100], &garbage[..]] {
        fs::write(data.join("data.redb"), bad).unwrap();
        let refused = format!("{:?}", site.node_mut(1).restart().await.unwrap_err());
        let file = data.join("data.redb").display().to_string();
        assert!(refused.contains(&file) && refused.contains("--move-data-aside"), "{refused}");
        let kept = fs::read(data.join("data.redb")).unwrap();
        assert!(kept == bad, "nothing was changed");
    }

    says(&join(&site, 1, "dunlin-invite-1.AAAA", "anew").await, 2, "");
    assert!(data.join("data.redb").exists(), "nothing is moved for a bad invite");
    says(&join(&site, 1, token.as_str(), "anew").await, 0, "aside-1");
    assert!(fs::read(data.join("aside-1/data.redb")).unwrap() == garbage);
    let config = site.nodes()[1].dir().join("dunlin.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("name = 'node-2'", "name = 'anew'")).unwrap();

    says(&replace(&site, "node-2", "nobody").await, 1, "let it join first");
    says(&replace(&site, "node-2", "anew").await, 1, "never started");
    says(&replace(&site, "node-2", "node-2").await, 2, "cannot replace itself");
    site.node_mut(1).restart().await.unwrap();
    says(&replace(&site, "node-2", "anew").await, 0, "node anew has replaced node node-2");
    let replaced = |status: &ClusterStatus| status.nodes.iter().all(|node| node.name != "node-2");
    site.until(0, "without the old node", replaced).await.unwrap();
    site.in_step().await.unwrap();
    assert_eq!(read(&site, 1, &topic).await, all);
    says(&replace(&site, "node-2", "anew").await, 1, "has no node");
}
