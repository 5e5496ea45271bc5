//! The broker dies without a word; nothing that was acked is lost, and nothing is stored twice.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use dunlin::{
    client::{Client, Delivery, Position, PublishError, Publisher, Record, Subscriber},
    limits::IDLE_TIMEOUT,
};
use tokio::time::Instant;

use super::{Site, text};

/// Publishes numbers until it is told to stop, and returns them with what became of them.
async fn publish_numbers(
    publisher: Publisher,
    stop: Arc<AtomicBool>,
) -> Vec<Result<Delivery, PublishError>> {
    let mut acks = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let number = acks.len();
        let record = Record::new(format!("{number:010}")).with_key((number % 5).to_string());
        acks.push(publisher.send(record).await.unwrap());
        // Some in large batches, some alone.
        if number % 1_000 == 0 {
            tokio::task::yield_now().await;
            publisher.flush().await.unwrap();
        }
    }
    let mut outcomes = Vec::new();
    for ack in acks {
        outcomes.push(ack.await);
    }
    outcomes
}

async fn read_some(subscriber: &mut Subscriber, count: usize, into: &mut Vec<(u32, u64, String)>) {
    for _ in 0..count {
        let received = subscriber.next().await.unwrap().unwrap();
        into.push((received.partition, received.offset.0, text(&received)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acked_records_outlive_kills_once_each_and_in_order() {
    let mut site = Site::start().await;
    let topic = site.topic("kills", 3).await;
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = site.client.publisher(&topic).open().await.unwrap();
    let publishing = tokio::spawn(publish_numbers(publisher, Arc::clone(&stop)));
    let mut reader = site.client.subscribe(&topic).from(Position::Earliest).open().await.unwrap();
    let mut read = Vec::new();
    for _ in 0..3 {
        read_some(&mut reader, 2_000, &mut read).await;
        site.broker.kill().await.unwrap();
        site.broker.restart().await.unwrap();
        // A record published after the restart comes to the reader of before.
        read_some(&mut reader, 2_000, &mut read).await;
    }
    stop.store(true, Ordering::Relaxed);
    let outcomes = publishing.await.unwrap();
    let published = outcomes.len();
    let missing = published - read.len();
    read_some(&mut reader, missing, &mut read).await;

    let acked: BTreeMap<(u32, u64), String> = (outcomes.into_iter().enumerate())
        .map(|(number, outcome)| {
            let delivery = outcome.unwrap();
            ((delivery.partition, delivery.offset.0), format!("{number:010}"))
        })
        .collect();
    assert_eq!(acked.len(), published, "no two records were acked with the same offset");
    let seen: BTreeMap<(u32, u64), String> = read
        .iter()
        .map(|(partition, offset, value)| ((*partition, *offset), value.clone()))
        .collect();
    assert_eq!(seen.len(), read.len(), "no offset was read twice");
    assert_eq!(seen, acked);

    // And the log itself says the same to a new reader.
    let all = site.read_all(&topic).await;
    assert_eq!(all.len(), published);
    let mut last: BTreeMap<u32, String> = BTreeMap::new();
    for received in &all {
        let key = text(received).parse::<u32>().unwrap() % 5;
        let before = last.insert(key, text(received));
        assert!(before.is_none_or(|before| before < text(received)), "order of key {key}");
    }
}

#[tokio::test]
async fn a_node_that_was_killed_and_restarted_is_found_again_soon() {
    let mut site = Site::start().await;
    let topic = site.topic("soon", 1).await;
    let publisher = site.client.publisher(&topic).open().await.unwrap();
    // A client of its own: this one sends nothing by which it would notice.
    let other = Client::connect(site.broker.profile()).await.unwrap();
    let mut reader = other.subscribe(&topic).from(Position::Earliest).open().await.unwrap();
    publisher.publish(Record::new("before")).await.unwrap();
    assert_eq!(text(&reader.next().await.unwrap().unwrap()), "before");
    site.broker.kill().await.unwrap();
    site.broker.restart().await.unwrap();
    let restarted = Instant::now();
    publisher.publish(Record::new("after")).await.unwrap();
    println!("acked after {:?}", restarted.elapsed());
    assert_eq!(text(&reader.next().await.unwrap().unwrap()), "after");
    println!("read after {:?}", restarted.elapsed());
    // Far below the idle timeout, which is what would tell them otherwise.
    assert!(restarted.elapsed() < IDLE_TIMEOUT / 2);
}

#[tokio::test]
async fn a_client_finds_the_node_again_after_an_orderly_restart() {
    let mut site = Site::start().await;
    let topic = site.topic("restart", 1).await;
    let publisher = site.client.publisher(&topic).open().await.unwrap();
    publisher.publish(Record::new("before")).await.unwrap();
    let mut reader = site.client.subscribe(&topic).from(Position::Earliest).open().await.unwrap();
    assert_eq!(text(&reader.next().await.unwrap().unwrap()), "before");
    site.broker.stop().await.unwrap();
    site.broker.restart().await.unwrap();
    publisher.publish(Record::new("after")).await.unwrap();
    assert_eq!(text(&reader.next().await.unwrap().unwrap()), "after");
    assert_eq!(site.client.topics().show(&topic).await.unwrap().partitions[0].end.0, 2);
}
