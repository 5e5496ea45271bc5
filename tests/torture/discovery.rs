//! A site of which nobody has written down an address: three hosts on a switch, and a client on a fourth.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    path::PathBuf,
    time::Duration,
};

use dunlin::{
    client::{
        Acks, Client, ClusterStatus, Event, FoundNode, Position, Profile, Record, TopicName,
        TopicRequest, Trust, discover,
    },
    discovery::{Announcement, CaPrefix, Mdns, MdnsEvent, Reach},
    limits::{ANNOUNCE_INTERVAL, MDNS_ASK_AGAIN, SILENCE_MAX},
    types::NodeRole,
};
use tokio::time::{Instant, timeout};

use super::{
    avahi::{self, Avahi},
    block_on, cold,
    lab::{Lab, until},
    site::{PATIENCE, program},
    spoof::{self, Flood, Liar},
};

const HOSTS: usize = 3;
/// One look round.
const LOOK: Duration = Duration::from_millis(1_500);

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

/// Says how long each part of a test took.
struct Clock(Instant);

impl Clock {
    fn after(&mut self, part: &str) {
        println!("[{:?}] {part}", std::mem::replace(&mut self.0, Instant::now()).elapsed());
    }
}

#[test]
fn nodes_and_clients_find_each_other_without_an_address() {
    let Some(network) = super::switched_hosts(HOSTS) else { return };
    block_on(network, async |network| {
        let mut clock = Clock(Instant::now());
        let mut lab = Lab::new(network, HOSTS);
        let profile = lab.found().await;
        whole(&profile).await;
        clock.after("a site is made");

        let topic: TopicName = "lab/found".parse().unwrap();
        let client = Client::connect(&profile).await.unwrap();
        for topic in [&topic, &cold_topic()] {
            client.topics().create(topic, TopicRequest::default()).await.unwrap();
        }
        client.close().await;
        publish(&profile, &topic, "one").await;
        all_are_seen(&lab, &profile).await;
        clock.after("all are seen");

        let median = cold::print(&cold::trials(&profile, &cold_topic(), 2).await);
        // A debug build on a machine that has more to do.
        assert!(median < 3 * cold::WANTED, "{median:?}");
        clock.after("clients from cold");

        a_killed_node_is_gone(&mut lab, &profile).await;
        publish(&profile, &topic, "two").await;
        lab.start(2);
        whole(&profile).await;
        clock.after("one is killed, and is back");
        spoofed_announcements_cost_dials_and_nothing_else(&profile).await;
        clock.after("spoofs");
        all_are_renumbered(&mut lab, &profile).await;
        assert_eq!(read(&profile, &topic).await, ["one", "two"]);
        clock.after("all are renumbered");

        avahi_and_dunlin_see_each_other(&lab, &profile).await;
        clock.after("avahi");
        a_goodbye_is_heard(&mut lab).await;
        clock.after("a goodbye");
    });
}

fn cold_topic() -> TopicName {
    "lab/cold".parse().unwrap()
}

async fn all_are_seen(lab: &Lab, profile: &Profile) {
    until("all are trusted", async || trusted(profile).await == ["n0", "n1", "n2"]).await;
    let seen = avahi::discovered(program(), &lab.profile_file());
    assert_eq!(seen.as_array().map(Vec::len), Some(HOSTS), "{seen}");
    assert!(seen[0]["round_trip_us"].as_u64().is_some_and(|us| us > 0), "{seen}");
    assert_eq!(seen[0]["role"], "data");
}

/// Every node moves while all are down: no address that anybody remembers is good any more.
async fn all_are_renumbered(lab: &mut Lab, profile: &Profile) {
    lab.hosts().rev().for_each(|host| lab.stop(host));
    lab.hosts().for_each(|host| lab.renumber(host));
    lab.hosts().for_each(|host| lab.start(host));
    whole(profile).await;
}

/// Nobody is sent there, and who looks afresh does not find it.
async fn a_killed_node_is_gone(lab: &mut Lab, profile: &Profile) -> Instant {
    let first = format!("{}:7440", lab.network.address(0)).parse().unwrap();
    let asked = Profile { addresses: vec![first], discovery: false, ..profile.clone() };
    let asked = Client::connect(&asked).await.unwrap();
    lab.kill(2);
    let killed = Instant::now();
    let client = Client::connect(profile).await.unwrap();
    println!("a client without an address is connected {:?} after the kill", killed.elapsed());
    client.close().await;
    until("nobody is sent to it", async || {
        let plan = asked.cluster().balance_plan().await.unwrap();
        plan.nodes.iter().any(|node| node.name == "n2" && !node.up && node.clients_wanted == 0)
    })
    .await;
    println!("no client is sent to it {:?} after the kill", killed.elapsed());
    assert!(killed.elapsed() < SILENCE_MAX + SLACK);
    asked.close().await;
    until("a killed node is gone", async || trusted(profile).await == ["n0", "n1"]).await;
    println!("who looks afresh does not find it {:?} after the kill", killed.elapsed());
    assert!(killed.elapsed() < SILENCE_MAX + LOOK + SLACK);
    killed
}

/// Those that have heard it ask for it once it is down, and forget it; what someone still says of it costs a client a moment.
async fn a_killed_node_is_forgotten(lab: &mut Lab, profile: &Profile) {
    let found = discover(Some(profile), None, LOOK).await.unwrap();
    let dead = found.iter().find(|node| node.node == "n2").unwrap().clone();
    let survivors = [lab.log(0), lab.log(1)];
    let forgotten = |log: &PathBuf| {
        let log = fs::read_to_string(log).unwrap();
        log.lines().filter(|l| l.contains("announced no more") && l.contains("\"n2 (")).count()
    };
    let before = survivors.each_ref().map(forgotten);
    let killed = a_killed_node_is_gone(lab, profile).await;
    until("the others have forgotten it", async || {
        survivors.iter().zip(before).all(|(log, before)| forgotten(log) > before)
    })
    .await;
    println!("it is gone from what nodes have heard {:?} after the kill", killed.elapsed());
    // They may have to ask twice.
    let asked = MDNS_ASK_AGAIN + ANNOUNCE_INTERVAL + MDNS_VERIFY;
    assert!(killed.elapsed() < SILENCE_MAX + ANNOUNCE_INTERVAL + asked + SLACK);

    // What others have not forgotten: a reflector, or a machine that was asleep.
    let [IpAddr::V4(ip)] =
        dead.addresses.iter().map(SocketAddr::ip).filter(IpAddr::is_ipv4).collect::<Vec<_>>()[..]
    else {
        panic!("one address of each family: {dead:?}")
    };
    let stale = spoof::packets(&[announced(&dead)], SocketAddrV4::new(ip, 7440));
    let _flood = Flood::of(liar(lab), stale);
    until("the stale record is heard", async || {
        let seen = discover(Some(profile), None, LOOK).await.unwrap();
        seen.iter().any(|node| node.id == dead.id && node.trust == Trust::Silent)
    })
    .await;
    println!("clients that hear a dead node:");
    let median = cold::print(&cold::trials(profile, &cold_topic(), 2).await);
    // It is dialled, and the next one when it is silent.
    assert!(median < Duration::from_secs(1), "{median:?}");
}

fn announced(node: &FoundNode) -> Announcement {
    Announcement {
        site: node.site.parse().unwrap(),
        node: node.node.parse().unwrap(),
        id: node.id,
        role: node.role,
        weight: node.weight,
        load: node.load,
        version: node.version.clone(),
        ca: node.ca.parse().unwrap(),
    }
}

fn liar(lab: &Lab) -> Liar {
    Liar::new(lab.switch().clients_address())
}

/// Fakes that are heard, one that is called like a true node, and a site whose node has the same name.
async fn spoofed_announcements_cost_dials_and_nothing_else(profile: &Profile) {
    let found = discover(Some(profile), None, LOOK).await.unwrap();
    let spoofer = spoof(profile, &found, 30);
    let namesake = Announcement {
        site: "elsewhere".parse().unwrap(),
        ca: "00000000000000ff".parse().unwrap(),
        // The first one has an impostor.
        ..announced(&found[1])
    };
    spoofer.announce(&namesake, 9).unwrap();
    until("the fakes are announced", async || {
        let seen = discover(Some(profile), None, LOOK).await.unwrap();
        let fakes = seen.iter().filter(|node| node.version == "9").count() > 10;
        let namesakes = seen.iter().filter(|node| node.node == found[1].node);
        let sites: BTreeSet<_> = namesakes.map(|node| node.site.as_str()).collect();
        fakes && sites == BTreeSet::from(["elsewhere", profile.site.as_str()])
    })
    .await;
    println!("a client among 30 fakes:");
    cold::print(&cold::trials(profile, &cold_topic(), 1).await);
    spoofer.stop().await;
}

/// A thousand nodes that nobody runs, said again and again, at an address where nobody answers. It goes on with what is returned.
async fn a_flood_is_survived(lab: &Lab, profile: &Profile) -> Flood {
    let found = discover(Some(profile), None, LOOK).await.unwrap();
    let fakes = spoof::fakes(&announced(&found[0]), 1_000);
    let nowhere = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 250), 7440);
    let flood = Flood::of(liar(lab), spoof::packets(&fakes, nowhere));
    let began = Instant::now();
    println!("clients in a flood:");
    cold::print(&cold::trials(profile, &cold_topic(), 3).await);
    publish(profile, &cold_topic(), "flood").await;
    until("the nodes say that they are flooded", async || {
        lab.hosts().all(|host| {
            fs::read_to_string(lab.log(host)).unwrap().contains("somebody floods this network")
        })
    })
    .await;
    println!("all nodes say that they are flooded after {:?}", began.elapsed());
    for host in lab.hosts() {
        println!("  n{host} has {} KiB in memory", lab.memory_kib(host));
        assert!(lab.memory_kib(host) < MEMORY_KIB_MAX);
    }
    flood
}

async fn avahi_and_dunlin_see_each_other(lab: &Lab, profile: &Profile) {
    // Both families, on the host of a node, where avahi and the node hear at the same port, and on one that has none.
    let spaces = [lab.switch().host(0), lab.switch().clients()];
    lab.hosts().for_each(|host| lab.switch().add_ipv6(&lab.switch().host(host), host + 1).unwrap());
    lab.switch().add_ipv6(&spaces[1], 100).unwrap();
    let both = spaces.each_ref().map(|space| Avahi::start(space));
    let [Some(beside), Some(alone)] = both else { return };
    let is_v6 = |at: &SocketAddr| matches!(at.ip(), IpAddr::V6(ip) if !ip.is_unicast_link_local());
    let mut found = vec![];
    until("nodes announce both families, and avahi the static node", async || {
        found = discover(Some(profile), None, LOOK).await.unwrap();
        let trusted = found.iter().filter(|node| node.trust == Trust::Trusted);
        let families = trusted.clone().filter(|node| node.addresses.iter().any(is_v6)).count();
        families == HOSTS && found.iter().any(avahi::is_static)
    })
    .await;
    found.retain(|node| node.trust == Trust::Trusted);
    avahi::resolves(&alone, &found).await;
    avahi::resolves(&beside, &found).await;
    let seen = avahi::discovered(program(), &lab.profile_file());
    let by_hand = seen.as_array().unwrap().iter().find(|node| node["node"] == "by-hand");
    assert_eq!(by_hand.map(|node| &node["weight"]), Some(&serde_json::json!(30)), "{seen}");
}

/// One that stops in order says goodbye: who listens already hears that it goes.
async fn a_goodbye_is_heard(lab: &mut Lab) {
    let listener = Mdns::start(Reach::All).unwrap();
    let mut heard = listener.browse().unwrap();
    lab.stop(1);
    let stopped = Instant::now();
    let goodbye = async {
        loop {
            match heard.next().await {
                Some(MdnsEvent::Gone(instance)) if instance.starts_with("n1 (") => break,
                Some(_) => {}
                None => panic!("multicast has ended"),
            }
        }
    };
    timeout(Duration::from_secs(10), goodbye).await.expect("a goodbye");
    println!("a goodbye is heard {:?} after the stop", stopped.elapsed());
}

/// The time of clients from their start to the first ack, as many as `DUNLIN_COLD` says; and what takes long to look at.
#[test]
fn discovery_times() {
    let Some(count) = super::number_from("DUNLIN_COLD") else { return };
    let Some(network) = super::switched_hosts(HOSTS) else { return };
    block_on(network, async |network| {
        let mut lab = Lab::new(network, HOSTS);
        let profile = lab.found().await;
        whole(&profile).await;
        let client = Client::connect(&profile).await.unwrap();
        client.topics().create(&cold_topic(), TopicRequest::default()).await.unwrap();
        client.close().await;
        let count = usize::try_from(count).unwrap();
        let median = cold::print(&cold::trials(&profile, &cold_topic(), count).await);
        if median >= cold::WANTED {
            println!("!  wanted: half of them within {:?}", cold::WANTED);
        }
        a_killed_node_is_forgotten(&mut lab, &profile).await;
        lab.start(2);
        whole(&profile).await;
        let flood = a_flood_is_survived(&lab, &profile).await;
        // The worst that can be: nobody knows anybody's address, and all is full of fakes.
        all_are_renumbered(&mut lab, &profile).await;
        drop(flood);
    });
}

/// What mdns-sd gives an instance that it is told to verify.
const MDNS_VERIFY: Duration = Duration::from_secs(10);
/// Of a machine that has more to do.
const SLACK: Duration = Duration::from_secs(5);
/// Several times what a node has without a flood.
const MEMORY_KIB_MAX: u64 = 256 * 1024;
