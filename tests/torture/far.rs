//! Bad lines and busy machines are no dead nodes: nobody loses the lead, and nothing that was acked.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use dunlin::{
    client::{Record, TopicName, TopicRequest},
    limits::FENCE_AFTER,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    PATIENT, THREE, TOPICS, block_on, connect,
    history::{
        checker::{History, check},
        load::Run,
    },
    lab::until,
    network::Network,
    number_from, read_everywhere,
    site::{PATIENCE, Site},
    wire::Quality,
};

/// Who leads which shard since which epoch, and who holds it.
async fn leads(site: &Site) -> Vec<String> {
    let status = site.status().await.unwrap();
    let mut told = Vec::new();
    for s in &status.shards {
        told.push(format!(
            "shard {:?} epoch {:?} primary {:?} set {:?}",
            s.shard, s.epoch, s.primary, s.set
        ));
    }
    told
}

/// Waits until each node leads its part: what moves by itself has moved.
async fn settled(site: &Site) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = site.status().await.unwrap();
        let led = |node| status.shards.iter().filter(|shard| shard.primary == Some(node)).count();
        let part = status.shards.len() / status.nodes.len();
        if status.nodes.iter().all(|node| led(node.id) == part) {
            return;
        }
        assert!(Instant::now() < deadline, "{:?}", status.shards);
        sleep(Duration::from_millis(100)).await;
    }
}

/// Load for as long as `trouble` takes; then everybody must lead what they led, and the history must hold.
async fn undisturbed(mut site: Site, trouble: impl AsyncFnOnce(&mut Site, &Run)) {
    let run = Arc::new(Run::new(TOPICS, PATIENT, PATIENCE));
    run.create_topics(&connect(&site).await.unwrap()).await;
    let mut producers = JoinSet::new();
    for number in 0..PATIENT.len() {
        let client = connect(&site).await.unwrap();
        producers.spawn(run.producer(number, &client).await.work());
    }
    run.progress(Duration::from_secs(1)).await.unwrap();
    site.in_sync(PATIENCE).await.unwrap();
    settled(&site).await;
    let before = leads(&site).await;
    trouble(&mut site, &run).await;
    let after = leads(&site).await;
    run.stop.store(true, SeqCst);
    let operations = timeout(PATIENCE * 2, producers.join_all()).await.unwrap().concat();
    let last = read_everywhere(&site, &run, &operations).await.unwrap();
    let acked = operations.len();
    let found = check(&History { operations, live: vec![], last });
    println!("{acked} operations, {found}");
    assert!(found.is_clean(), "{found}\n{}", found.examples());
    assert_eq!(before, after, "{}", site.logs());
}

#[test]
fn a_lossy_line_of_300_ms_there_and_back_deposes_nobody() {
    let lasting = Duration::from_secs(number_from("DUNLIN_FAR_SECS").unwrap_or(10));
    block_on(Network::wired(THREE.nodes()), async |network| {
        let site = Site::start(THREE, network).await;
        undisturbed(site, async |site, run| {
            let wires = site.network.wires().unwrap();
            let quality = Quality {
                lost: 50,
                delay: Duration::from_millis(145),
                jitter: Duration::from_millis(10),
            };
            wires.set(quality);
            let (before, begun) = (wires.count(), Instant::now());
            let (mut looks, mut short) = (0, 0);
            while begun.elapsed() < lasting {
                run.progress(Duration::from_millis(200)).await.unwrap();
                let status = site.status().await.unwrap();
                looks += status.shards.len();
                short += status.shards.iter().filter(|shard| shard.set.len() < THREE.data).count();
            }
            println!("{short} commit sets of {looks} lacked a copy");
            let (carried, lost) = wires.count();
            println!("{} datagrams came, {} were lost", carried - before.0, lost - before.1);
            assert!(lost - before.1 > 100, "the line was bad");
            wires.set(Quality::default());
        })
        .await;
    });
}

#[test]
fn a_machine_that_stalls_for_half_a_second_stays_what_it_was() {
    block_on(Network::Loopback, async |network| {
        let site = Site::start(THREE, network).await;
        undisturbed(site, async |site, run| {
            for _ in 0..3 {
                for node in site.nodes() {
                    run.progress(Duration::from_millis(300)).await.unwrap();
                    site.pause(node);
                    sleep(Duration::from_millis(500)).await;
                    site.unpause(node);
                }
            }
            run.progress(Duration::from_millis(300)).await.unwrap();
        })
        .await;
    });
}

#[test]
fn machines_that_all_stand_still_at_once_put_nobody_out_of_a_set_when_they_wake() {
    block_on(Network::Loopback, async |network| {
        let mut site = Site::start(THREE, network).await;
        let put_out = |site: &Site| site.said("is put out of the commit set");
        // A node that is gone when something is published is put out, and that is said in these words.
        let topic: TopicName = "far/asked".parse().unwrap();
        let client = connect(&site).await.unwrap();
        let request =
            TopicRequest { partitions: Some(THREE.shards.into()), ..TopicRequest::default() };
        client.topics().create(&topic, request).await.unwrap();
        let publisher = client.publisher(&topic).open().await.unwrap();
        site.all_vote().await.unwrap();
        site.in_sync(PATIENCE).await.unwrap();
        site.kill(1);
        let mut keys = 0_u64..;
        until("it is put out", async || {
            let record = Record::new("anything").with_key(keys.next().unwrap().to_string());
            drop(publisher.send(record).await.unwrap());
            put_out(&site) > 0
        })
        .await;
        site.restart(1).await.unwrap();
        undisturbed(site, async |site, run| {
            let before = put_out(site);
            for _ in 0..3 {
                for node in site.nodes() {
                    site.pause(node);
                }
                // Longer than any of them may be silent.
                sleep(FENCE_AFTER * 4).await;
                for node in site.nodes() {
                    site.unpause(node);
                }
                run.progress(Duration::from_secs(1)).await.unwrap();
            }
            assert_eq!(put_out(site), before, "{}", site.logs());
        })
        .await;
    });
}
