//! A site of several nodes, each a process of its own: how it grows, loses nodes, and gets them back.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use dunlin::{
    cli::own_site::OwnSite,
    client::{Client, Event, NodeRole, Position, Record, TopicName, TopicRequest},
    types::NodeId,
    wire::{ClusterNode, ClusterStatus},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{read_until_caught_up, text};

const SETTINGS: &str = "[storage]\nshards = 3\nlow_space = '64MiB'\nballast = '0B'\n";
const DEADLINE: Duration = Duration::from_secs(20);

async fn site(nodes: usize) -> OwnSite {
    OwnSite::of(program(), SETTINGS, nodes).await.unwrap()
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_dunlin"))
}

async fn client_of(site: &OwnSite, place: usize) -> Client {
    Client::connect(site.nodes()[place].profile()).await.unwrap()
}

async fn topic(site: &OwnSite) -> TopicName {
    let name: TopicName = "readings".parse().unwrap();
    let settings = TopicRequest { partitions: Some(6), ..TopicRequest::default() };
    client_of(site, 0).await.topics().create(&name, settings).await.unwrap();
    name
}

/// Publishes over one node, and waits for the acks.
async fn publish(client: &Client, topic: &TopicName, from: u32, count: u32) {
    let publisher = client.publisher(topic).open().await.unwrap();
    let mut acks = Vec::new();
    for n in from..from + count {
        let record = Record::new(n.to_string()).with_key(format!("sensor {}", n % 20));
        acks.push(publisher.send(record).await.unwrap());
    }
    for ack in acks {
        ack.await.unwrap();
    }
    publisher.close().await.unwrap();
}

/// What one node shows once it shows all, by number.
async fn read(site: &OwnSite, place: usize, topic: &TopicName, count: usize) -> Vec<u32> {
    let client = client_of(site, place).await;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let open = client.subscribe(topic).from(Position::Earliest).open();
        let mut reader = timeout(DEADLINE, open).await.expect("nobody shows it").unwrap();
        let records = timeout(DEADLINE, read_until_caught_up(&mut reader)).await.unwrap();
        if records.len() >= count || Instant::now() > deadline {
            let numbers = records.iter().map(|record| text(record).parse().unwrap());
            return numbers.collect();
        }
    }
}

#[track_caller]
fn once_each(mut numbers: Vec<u32>, count: u32) {
    numbers.sort_unstable();
    assert_eq!(numbers, (0..count).collect::<Vec<_>>());
}

fn node<'a>(status: &'a ClusterStatus, name: &str) -> &'a ClusterNode {
    status.nodes.iter().find(|node| node.name == name).unwrap()
}

fn is_up(status: &ClusterStatus, name: &str) -> bool {
    node(status, name).liveness.is_some_and(|liveness| liveness.up)
}

fn holds(status: &ClusterStatus, id: NodeId) -> bool {
    status.shards.iter().any(|shard| shard.set.contains(&id) || shard.primary == Some(id))
}

fn leads(status: &ClusterStatus, id: NodeId) -> bool {
    status.shards.iter().all(|shard| shard.primary == Some(id))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_hold_the_same_and_any_serves_any_client() {
    let site = site(3).await;
    let topic = topic(&site).await;
    for (place, from) in [(0, 0), (1, 100), (2, 200)] {
        publish(&client_of(&site, place).await, &topic, from, 100).await;
    }
    for place in 0..3 {
        once_each(read(&site, place, &topic, 300).await, 300);
    }
    let all_up = |status: &ClusterStatus| {
        status.nodes.iter().all(|node| is_up(status, &node.name) && node.votes && node.started)
    };
    let status = site.until(2, "all up with a vote", all_up).await.unwrap();
    assert_eq!(status.nodes.len(), 3);
    assert!(status.shards.iter().all(|shard| shard.behind.is_empty()), "{:?}", status.shards);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_loses_nothing_and_sees_no_error_when_the_node_that_leads_is_killed() {
    let mut site = site(3).await;
    let topic = topic(&site).await;
    let vote = |status: &ClusterStatus| status.nodes.iter().all(|node| node.votes);
    site.until(0, "three with a vote", vote).await.unwrap();
    let client = Client::connect(&site.profile()).await.unwrap();
    let acked = Arc::new(Semaphore::new(0));
    let load = tokio::spawn({
        let (topic, acked) = (topic.clone(), Arc::clone(&acked));
        async move {
            for round in 0..30 {
                publish(&client, &topic, round * 50, 50).await;
                acked.add_permits(1);
            }
        }
    });
    drop(acked.acquire_many(5).await.unwrap());
    site.node_mut(0).kill().await.unwrap();
    let truth = |status: &ClusterStatus| {
        let gone = node(status, "node-1").id;
        let behind = |shard: &dunlin::wire::ClusterShard| {
            shard.behind.iter().any(|lag| lag.node == gone && lag.why == "it is down")
        };
        !is_up(status, "node-1") && !holds(status, gone) && status.shards.iter().all(behind)
    };
    site.until(1, "one down, others leading", truth).await.unwrap();
    timeout(DEADLINE, load).await.expect("goes on").unwrap();

    site.node_mut(0).restart().await.unwrap();
    site.in_step().await.unwrap();
    for place in 0..3 {
        once_each(read(&site, place, &topic, 1_500).await, 1_500);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_under_another_port_is_found() {
    let mut site = site(3).await;
    let topic = topic(&site).await;
    let before = site.nodes()[2].profile().addresses.clone();
    site.node_mut(2).kill().await.unwrap();
    publish(&client_of(&site, 0).await, &topic, 0, 200).await;
    site.node_mut(2).forget_address().unwrap();
    site.node_mut(2).restart().await.unwrap();
    assert_ne!(site.nodes()[2].profile().addresses, before);
    site.in_step().await.unwrap();
    once_each(read(&site, 2, &topic, 200).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gives_away_what_it_holds_takes_it_back_and_leaves_for_ever() {
    let mut site = site(3).await;
    let topic = topic(&site).await;
    publish(&client_of(&site, 0).await, &topic, 0, 100).await;
    let admin = client_of(&site, 1).await;
    let first = NodeId(1);
    admin.cluster().remove_node(first).await.expect_err("it leads");

    admin.cluster().set_node(first, None, Some(true)).await.unwrap();
    let empty = |status: &ClusterStatus| !holds(status, first);
    site.until(1, "drained", empty).await.unwrap();
    // A reader is sent on from there.
    once_each(read(&site, 0, &topic, 100).await, 100);

    admin.cluster().set_node(first, None, Some(false)).await.unwrap();
    site.in_step().await.unwrap();
    admin.cluster().set_node(first, None, Some(true)).await.unwrap();
    site.until(1, "drained again", empty).await.unwrap();

    admin.cluster().remove_node(first).await.unwrap();
    let gone = |status: &ClusterStatus| status.nodes.len() == 2 && status.leader.is_some();
    site.until(1, "without it, and led", gone).await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !site.nodes()[0].log().contains("removed") && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _ = site.node_mut(0).stop().await;
    let refused = site.node_mut(0).restart().await.unwrap_err();
    let log = site.nodes()[0].log();
    assert!(format!("{refused:?}").contains("was removed from the site"), "{refused:?}\n{log}");
    once_each(read(&site, 2, &topic, 100).await, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_holds_nothing_and_lets_one_of_two_take_over() {
    let mut site = site(2).await;
    let topic = topic(&site).await;
    let witness = site.add(NodeRole::Witness).await.unwrap();
    let vote = |status: &ClusterStatus| {
        status.nodes.len() == 3 && status.nodes.iter().all(|node| node.votes)
    };
    let status = site.until(0, "three with a vote", vote).await.unwrap();
    assert!(!holds(&status, node(&status, "node-3").id));
    publish(&client_of(&site, witness).await, &topic, 0, 100).await;
    site.in_step().await.unwrap();
    site.node_mut(0).kill().await.unwrap();
    let second = node(&status, "node-2").id;
    site.until(1, "the second leads", |status| leads(status, second)).await.unwrap();
    publish(&client_of(&site, 1).await, &topic, 100, 100).await;
    once_each(read(&site, 1, &topic, 200).await, 200);
    once_each(read(&site, witness, &topic, 200).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_node_holds_all_each_shows_all() {
    let settings = SETTINGS.replace("shards = 3", "shards = 4");
    let mut site = OwnSite::of(program(), &settings, 4).await.unwrap();
    let topic = topic(&site).await;
    let three_of_four = |status: &ClusterStatus| {
        let held = |id| status.shards.iter().filter(|shard| shard.set.contains(&id)).count();
        status.shards.len() == 4 && status.nodes.iter().all(|node| held(node.id) == 3)
    };
    site.until(0, "each with three shards of four", three_of_four).await.unwrap();
    publish(&client_of(&site, 0).await, &topic, 0, 200).await;
    for place in 0..4 {
        once_each(read(&site, place, &topic, 200).await, 200);
    }
    // A reader that stays: what comes later reaches it, and the loss of a node that it is served from.
    let client = client_of(&site, 0).await;
    let open = client.subscribe(&topic).from(Position::Earliest).open();
    let mut reader = timeout(DEADLINE, open).await.expect("nobody shows it").unwrap();
    let mut numbers = Vec::new();
    for upto in [200, 300, 400] {
        if upto == 400 {
            site.in_step().await.unwrap();
            site.node_mut(3).kill().await.unwrap();
        }
        if upto > 200 {
            publish(&client_of(&site, 1).await, &topic, upto - 100, 100).await;
        }
        while numbers.len() < upto as usize {
            let event = timeout(DEADLINE, reader.next_event()).await.unwrap().unwrap().unwrap();
            if let Event::Record(record) = event {
                numbers.push(text(&record).parse().unwrap());
            }
        }
    }
    once_each(numbers, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_joined_never_makes_the_site_once_more() {
    let mut site = site(2).await;
    site.node_mut(1).stop().await.unwrap();
    let data = site.nodes()[1].data_dir();
    let joined = fs::read(data.join("joined")).unwrap();
    fs::remove_file(data.join("joined")).unwrap();
    site.node_mut(1).restart().await.expect_err("it is another node by its metadata");
    for file in ["data.redb", "journal", "meta.redb"] {
        fs::remove_file(data.join(file)).unwrap();
    }
    let refused = site.node_mut(1).restart().await.unwrap_err();
    assert!(format!("{refused:?}").contains("another machine made site 'own'"), "{refused:?}");
    let other = String::from_utf8(joined).unwrap().replace("\"own\"", "\"other\"");
    fs::write(data.join("joined"), other).unwrap();
    fs::set_permissions(data.join("joined"), fs::Permissions::from_mode(0o600)).unwrap();
    let refused = site.node_mut(1).restart().await.unwrap_err();
    assert!(format!("{refused:?}").contains("are of site 'other'"), "{refused:?}");
}
