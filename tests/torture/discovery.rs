//! A site of which nobody has written down an address: three hosts on a switch, and a client on a fourth.

use std::{process::Command, time::Duration};

use dunlin::{
    client::{
        Acks, Client, ClusterStatus, Event, FoundNode, Position, Profile, Record, TopicName,
        TopicRequest, Trust, discover,
    },
    discovery::{Announcement, CaPrefix, Mdns, MdnsEvent, Reach},
    types::NodeRole,
};
use tokio::time::{Instant, timeout};

use super::{
    block_on,
    lab::{Lab, until},
    site::{PATIENCE, program, succeeds},
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

#[test]
fn nodes_and_clients_find_each_other_without_an_address() {
    let Some(network) = super::switched_hosts(HOSTS) else { return };
    block_on(network, async |network| {
        let mut lab = Lab::new(network, HOSTS);
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
        command.args(["discover", "--json", "--profile"]).arg(lab.profile_file());
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
