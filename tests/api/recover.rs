//! An operator lets a site go on with what is left, when the only whole copy is lost.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use dunlin::{
    cli::own_site::OwnSite,
    client::{Client, NodeRole, Position, Record, TopicName, TopicRequest},
    wire::ClusterStatus,
};
use tokio::time::{Instant, timeout};

use super::{read_until_caught_up, text};

const SETTINGS: &str = "[storage]\nshards = 3\nlow_space = '64MiB'\nballast = '0B'\n";
const DEADLINE: Duration = Duration::from_secs(20);

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_dunlin"))
}

/// Runs the program against one node.
fn run(site: &OwnSite, place: usize, args: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(args).arg("--profile").arg(site.nodes()[0].dir().join("client.toml"));
    command.args(["--server", &site.nodes()[place].profile().addresses[0].to_string()]);
    command.env_remove("DUNLIN_SERVER").env_remove("DUNLIN_PROFILE").stdin(Stdio::null());
    command.output().unwrap()
}

async fn client_of(site: &OwnSite, place: usize) -> Client {
    Client::connect(site.nodes()[place].profile()).await.unwrap()
}

async fn publish(site: &OwnSite, place: usize, topic: &TopicName, words: &[&str]) {
    let client = client_of(site, place).await;
    let publisher = client.publisher(topic).open().await.unwrap();
    for n in 0..30 {
        for word in words {
            let record = Record::new(format!("{word} {n}")).with_key(n.to_string());
            publisher.send(record).await.unwrap().await.unwrap();
        }
    }
    publisher.close().await.unwrap();
}

/// Reads until there is as much as there should be.
async fn read(site: &OwnSite, place: usize, topic: &TopicName, count: usize) -> Vec<String> {
    let client = client_of(site, place).await;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut reader = client.subscribe(topic).from(Position::Earliest).open().await.unwrap();
        let records = timeout(DEADLINE, read_until_caught_up(&mut reader)).await.unwrap();
        let mut words: Vec<String> = records.iter().map(|r| text(r).to_owned()).collect();
        if words.len() == count || Instant::now() > deadline {
            words.sort_unstable();
            return words;
        }
    }
}

fn all(words: &[&str]) -> Vec<String> {
    let mut all: Vec<String> =
        words.iter().flat_map(|word| (0..30).map(move |n| format!("{word} {n}"))).collect();
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_goes_on_with_what_is_left_and_a_disk_that_comes_back_takes_that_over() {
    let mut site = OwnSite::of(program(), SETTINGS, 2).await.unwrap();
    let witness = site.add(NodeRole::Witness).await.unwrap();
    let votes = |status: &ClusterStatus| {
        status.nodes.len() == 3 && status.nodes.iter().all(|node| node.votes)
    };
    let status = site.until(0, "three with a vote", votes).await.unwrap();
    let id = |name: &str| status.nodes.iter().find(|node| node.name == name).unwrap().id;
    let (first, second) = (id("node-1"), id("node-2"));
    let topic: TopicName = "readings".parse().unwrap();
    let settings = TopicRequest { partitions: Some(3), ..TopicRequest::default() };
    client_of(&site, 0).await.topics().create(&topic, settings).await.unwrap();
    site.in_step().await.unwrap();
    publish(&site, 0, &topic, &["both"]).await;

    // The second node misses what the first one takes; then the first one is lost.
    site.node_mut(1).stop().await.unwrap();
    let alone = |status: &ClusterStatus| status.shards.iter().all(|s| s.set == [first]);
    site.until(0, "alone", alone).await.unwrap();
    publish(&site, 0, &topic, &["lost"]).await;
    site.node_mut(0).kill().await.unwrap();
    site.node_mut(1).restart().await.unwrap();
    let down = |status: &ClusterStatus| {
        status.leader.is_some_and(|leader| leader != first)
            && status.nodes.iter().any(|n| n.id == first && n.liveness.is_some_and(|l| !l.up))
    };
    site.until(1, "the first is down", down).await.unwrap();

    let shown = run(&site, 1, &["cluster", "recover"]);
    let words = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success() && words.contains("no member of its set is up"), "{shown:?}");
    assert!(words.contains("node-2 to "), "{words}");
    let refused = run(&site, 1, &["cluster", "recover", "--accept-data-loss"]);
    assert_eq!(refused.status.code(), Some(2), "nobody is there to be asked: {refused:?}");
    let status = site.status(1).await.unwrap();
    assert!(alone(&status), "nothing was changed");
    let done = run(&site, 1, &["cluster", "recover", "--accept-data-loss", "--yes"]);
    assert!(done.status.success(), "{done:?}");
    let leads = |status: &ClusterStatus| status.shards.iter().all(|s| s.primary == Some(second));
    site.until(1, "led by the second", leads).await.unwrap();
    publish(&site, witness, &topic, &["later"]).await;
    assert_eq!(read(&site, 1, &topic, 60).await, all(&["both", "later"]));
    let again = run(&site, 1, &["cluster", "recover", "--accept-data-loss", "--yes"]);
    assert!(String::from_utf8_lossy(&again.stdout).contains("nothing has to be lost"), "{again:?}");

    // The lost disk turns up: it has more, and takes over what the site has.
    site.node_mut(0).restart().await.unwrap();
    site.in_step().await.unwrap();
    assert_eq!(read(&site, 0, &topic, 60).await, all(&["both", "later"]));
    publish(&site, 0, &topic, &["again"]).await;
    site.node_mut(1).kill().await.unwrap();
    let leads = |status: &ClusterStatus| status.shards.iter().all(|s| s.primary == Some(first));
    site.until(0, "led by the first", leads).await.unwrap();
    assert_eq!(read(&site, 0, &topic, 90).await, all(&["again", "both", "later"]));
}
