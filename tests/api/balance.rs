//! Clients go where the weights say, and notice nothing.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dunlin::{
    cli::own_site::OwnSite,
    client::{Client, Position, Publisher, Record, Subscriber, TopicName, TopicRequest},
    limits::{BALANCE_BAND_MIN, BALANCE_BAND_PERCENT, BALANCE_DRAIN_MAX},
    types::NodeId,
    wire::BalancePlan,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, interval, timeout},
};

use super::text;

// All clients of a test come from one address.
const SETTINGS: &str = "[storage]\nshards = 6\nlow_space = '64MiB'\nballast = '0B'\n\
    [limits]\nhandshakes_per_address = 1000\n";
// A client that was moved stays for a minute.
const DEADLINE: Duration = Duration::from_secs(90);

async fn site(nodes: usize) -> OwnSite {
    OwnSite::of(Path::new(env!("CARGO_BIN_EXE_dunlin")), SETTINGS, nodes).await.unwrap()
}

/// Waits until a node sees the shares like this.
async fn until(client: &Client, what: &str, is_so: impl Fn(&BalancePlan) -> bool) -> BalancePlan {
    let deadline = Instant::now() + DEADLINE;
    let mut looks = interval(Duration::from_millis(100));
    loop {
        looks.tick().await;
        let plan = client.cluster().balance_plan().await.unwrap();
        if is_so(&plan) {
            return plan;
        }
        assert!(Instant::now() < deadline, "not {what}: {plan:?}");
    }
}

/// Whether all nodes are up and have their share of so many clients, within the band.
fn is_even(plan: &BalancePlan, clients: u64) -> bool {
    let held: u64 = plan.nodes.iter().filter_map(|node| node.clients).sum();
    let even = plan.nodes.iter().all(|node| {
        let band = (node.clients_wanted * BALANCE_BAND_PERCENT / 100).max(BALANCE_BAND_MIN);
        let off = node.clients.map(|clients| clients.abs_diff(node.clients_wanted));
        node.settled && off.is_some_and(|off| off <= band)
    });
    even && held == clients && plan.clients.is_empty()
}

/// On which node each client is.
async fn places(clients: &[Client]) -> Vec<NodeId> {
    let mut places = Vec::new();
    for client in clients {
        places.push(client.welcome().await.unwrap().node_id);
    }
    places
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_and_primaries_follow_the_weights_also_when_a_node_comes_back() {
    const CLIENTS: usize = 60;
    let mut site = site(3).await;
    let admin = Client::connect(&site.profile()).await.unwrap();
    let status = admin.cluster().status().await.unwrap();
    let third = status.nodes.iter().find(|node| node.name == "node-3").unwrap().id;
    admin.cluster().set_node(third, Some(50), None).await.unwrap();
    let mut clients = vec![admin];
    while clients.len() < CLIENTS {
        clients.push(Client::connect(&site.profile()).await.unwrap());
    }
    let all = CLIENTS as u64;
    let plan = until(&clients[0], "even", |plan| is_even(plan, all)).await;
    let wanted: Vec<u64> = plan.nodes.iter().map(|node| node.clients_wanted).collect();
    assert_eq!(wanted, [24, 24, 12]);
    let led = |plan: &BalancePlan| plan.nodes.iter().all(|n| n.primaries == n.primaries_wanted);
    until(&clients[0], "led as wanted", led).await;

    let second = site.place_of("node-2").unwrap();
    let gone = plan.nodes[1].id;
    site.node_mut(second).kill().await.unwrap();
    let deadline = Instant::now() + DEADLINE;
    let mut looks = interval(Duration::from_millis(100));
    // A client without a stream dials when it is used.
    while places(&clients).await.contains(&gone) {
        assert!(Instant::now() < deadline, "clients stay with a node that is gone");
        looks.tick().await;
    }
    site.node_mut(second).restart().await.unwrap();
    let restarted = Instant::now();
    let before = places(&clients).await;
    until(&clients[0], "even again", |plan| is_even(plan, all)).await;
    println!("even {:?} after the restart", restarted.elapsed());
    let after = places(&clients).await;
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    let had = before.iter().filter(|node| **node == gone).count();
    println!("{moved} clients moved, it had {had} of 24");
    // What it lacked, and what may be moved between the two others.
    assert!(moved <= 24 - had + 2 * usize::try_from(BALANCE_BAND_MIN).unwrap(), "{moved} moved");
    until(&clients[0], "led as wanted again", led).await;
}

/// A client with a topic of its own, which it writes and reads all the time.
struct Busy {
    client: Client,
    /// For each record, in order: when it was acked, and how long that took.
    written: JoinHandle<Vec<(Instant, Duration)>>,
    read: JoinHandle<Vec<String>>,
}

async fn write(publisher: Publisher, stop: Arc<AtomicBool>) -> Vec<(Instant, Duration)> {
    let mut acked = Vec::new();
    let mut turns = interval(Duration::from_millis(10));
    while !stop.load(Ordering::Relaxed) {
        turns.tick().await;
        let begun = Instant::now();
        let record = Record::new(acked.len().to_string()).with_key("one");
        publisher.publish(record).await.expect("no error reaches the application");
        acked.push((Instant::now(), begun.elapsed()));
    }
    publisher.publish(Record::new("end").with_key("one")).await.unwrap();
    publisher.close().await.unwrap();
    acked
}

async fn read(mut subscriber: Subscriber) -> Vec<String> {
    let mut read = Vec::new();
    loop {
        let received = subscriber.next().await.unwrap().expect("no error reaches the application");
        match text(&received).as_str() {
            "end" => return read,
            value => read.push(value.to_owned()),
        }
    }
}

impl Busy {
    async fn start(client: Client, name: &str, stop: &Arc<AtomicBool>) -> Self {
        let topic: TopicName = name.parse().unwrap();
        let settings = TopicRequest { partitions: Some(2), ..TopicRequest::default() };
        client.topics().create(&topic, settings).await.unwrap();
        let publisher = client.publisher(&topic).open().await.unwrap();
        let open = client.subscribe(&topic).from(Position::Earliest).open();
        let read = tokio::spawn(read(open.await.unwrap()));
        let written = tokio::spawn(write(publisher, Arc::clone(stop)));
        Self { client, written, read }
    }
}

/// Lets all end, and looks whether each read what it wrote. Gives the longest ack of each client around its move, and all acks of
/// the others.
async fn settle(
    busy: Vec<Busy>,
    moved_at: &BTreeMap<usize, Instant>,
) -> (Vec<Duration>, Vec<Duration>) {
    let (mut pauses, mut usual) = (Vec::new(), Vec::new());
    for (nth, busy) in busy.into_iter().enumerate() {
        let written = timeout(DEADLINE, busy.written).await.expect("acked").unwrap();
        let read = timeout(DEADLINE, busy.read).await.expect("read").unwrap();
        let all: Vec<String> = (0..written.len()).map(|n| n.to_string()).collect();
        assert_eq!(read, all, "client {nth}: each record once, in order");
        assert!(written.len() > 10, "client {nth} wrote {}", written.len());
        let Some(at) = moved_at.get(&nth) else {
            usual.extend(written.iter().map(|(_, took)| *took));
            continue;
        };
        let near = Duration::from_millis(500);
        let around = written.iter().filter(|(acked, _)| {
            *acked + near > *at && acked.saturating_duration_since(*at) < near
        });
        pauses.push(around.map(|(_, took)| *took).max().unwrap());
    }
    (pauses, usual)
}

/// The longest of `times` but one in so many.
fn but_one_in(times: &mut [Duration], part: usize) -> Duration {
    times.sort_unstable();
    times[times.len() - 1 - times.len() / part]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_moved_loses_nothing_doubles_nothing_and_sees_no_error() {
    const CLIENTS: usize = 16;
    let site = site(2).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut busy = Vec::new();
    for nth in 0..CLIENTS {
        // All know one node, and the last three, who are asked first, go nowhere else.
        let profile = site.nodes()[0].profile();
        let builder = Client::builder(profile);
        let builder = match nth < CLIENTS - 3 {
            true => builder,
            false => builder.server(profile.addresses[0].clone()),
        };
        let client = builder.connect().await.unwrap();
        busy.push(Busy::start(client, &format!("busy/{nth}"), &stop).await);
    }
    let first = busy[0].client.welcome().await.unwrap().node_id;
    let mut moved_at = BTreeMap::new();
    let deadline = Instant::now() + DEADLINE;
    let mut looks = interval(Duration::from_millis(20));
    while moved_at.len() < CLIENTS / 2 {
        looks.tick().await;
        assert!(Instant::now() < deadline, "{} clients moved", moved_at.len());
        for (nth, busy) in busy.iter().enumerate() {
            if busy.client.welcome().await.unwrap().node_id != first {
                moved_at.entry(nth).or_insert_with(Instant::now);
            }
        }
    }
    // All streams have gone over: the old connections are closed.
    let even = |plan: &BalancePlan| plan.nodes.iter().all(|node| node.clients == Some(8));
    until(&busy[0].client, "eight on each node", even).await;
    let moved = moved_at.len();
    assert!(moved_at.keys().all(|nth| *nth < CLIENTS - 3), "{moved_at:?}");
    stop.store(true, Ordering::Relaxed);
    let (mut pauses, mut usual) = settle(busy, &moved_at).await;
    println!(
        "{moved} clients moved; longest ack around a move: {pauses:?}; acks of the others: p99 {:?}, longest {:?}",
        but_one_in(&mut usual, 100),
        but_one_in(&mut usual, usize::MAX),
    );
    // Debug builds on a shared machine: a move that waits for a timeout would take much longer.
    assert!(but_one_in(&mut pauses, usize::MAX) < Duration::from_secs(2), "{pauses:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_node_that_is_drained_are_moved_and_come_back_when_it_is_not() {
    const CLIENTS: usize = 12;
    let site = site(2).await;
    let stop = Arc::new(AtomicBool::new(false));
    let admin = Client::connect(site.nodes()[1].profile()).await.unwrap();
    let mut busy = Vec::new();
    for nth in 0..CLIENTS {
        let client = Client::connect(&site.profile()).await.unwrap();
        busy.push(Busy::start(client, &format!("busy/{nth}"), &stop).await);
    }
    let all = CLIENTS as u64 + 1;
    let has = |plan: &BalancePlan, first: u64| {
        plan.nodes[0].clients == Some(first) && plan.nodes[1].clients == Some(all - first)
    };
    let first = admin.cluster().status().await.unwrap().nodes[0].id;
    admin.cluster().set_node(first, None, Some(true)).await.unwrap();
    let begun = Instant::now();
    until(&admin, "drained", |plan| has(plan, 0) && plan.nodes[0].primaries == 0).await;
    println!("drained after {:?}", begun.elapsed());
    // Nobody had to be told: that comes later.
    assert!(begun.elapsed() < BALANCE_DRAIN_MAX);
    admin.cluster().set_node(first, None, Some(false)).await.unwrap();
    until(&admin, "shared again", |plan| plan.nodes[0].weight == 100 && is_even(plan, all)).await;
    stop.store(true, Ordering::Relaxed);
    let (_, mut acks) = settle(busy, &BTreeMap::new()).await;
    let longest = but_one_in(&mut acks, usize::MAX);
    println!("acks: p99 {:?}, longest {longest:?}", but_one_in(&mut acks, 100));
    assert!(longest < Duration::from_secs(3), "{longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_sees_the_shares_and_has_them_evened_out_at_once() {
    let mut site = site(2).await;
    let profile = site.nodes()[0].dir().join("client.toml");
    let server = site.nodes()[0].profile().addresses[0].to_string();
    let balance = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
        command.args(["cluster", "balance"]).args(args).arg("--profile").arg(&profile);
        command.args(["--server", &server]);
        let output = command.env_remove("DUNLIN_SERVER").output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {complaint}");
        String::from_utf8(output.stdout).unwrap()
    };
    let client = Client::connect(site.nodes()[0].profile()).await.unwrap();
    let led = |plan: &BalancePlan| plan.nodes.iter().all(|node| node.primaries == 3);
    until(&client, "three shards each", led).await;
    // Its shards are led by the other one, until it has been back for a while.
    site.node_mut(1).kill().await.unwrap();
    until(&client, "all led by one", |plan| plan.nodes[0].primaries == 6).await;
    site.node_mut(1).restart().await.unwrap();
    site.in_step().await.unwrap();
    let text = balance(&["--now", "--dry-run"]);
    assert!(text.contains("node-1 to node-2, later"), "{text}");
    assert!(text.contains("Nothing was begun"), "{text}");
    let begun = Instant::now();
    let json: serde_json::Value = serde_json::from_str(&balance(&["--now", "--json"])).unwrap();
    assert_eq!(json["begun"], true, "{json}");
    assert_eq!(json["nodes"][1]["primaries_wanted"], 3, "{json}");
    until(&client, "three shards each again", led).await;
    println!("primaries are back {:?} after the command", begun.elapsed());
    let text = balance(&[]);
    assert!(text.contains("Nothing moves"), "{text}");
}
