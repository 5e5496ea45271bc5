//! Lines that carry less than is sent: the kernel's buffers are full, and senders wait without losing anything.

use std::{
    fs,
    time::{Duration, Instant},
};

use dunlin::client::{Client, Position, Profile, Record, TopicName, TopicRequest};
use tokio::{
    task::JoinSet,
    time::{interval, timeout},
};

use super::{block_on, lab::Lab, network::run, site::PATIENCE};

/// 10 MB/s: less than either side sends.
const RATE: &str = "80mbit";
/// Each over a stream of its own: the window of one is smaller than the kernel's buffer.
const TOPICS: u64 = 6;
/// Of each topic, over a connection of its own.
const READERS: usize = 2;
const RECORDS: u64 = 5_000;
const RECORD_LEN: usize = 1_024;

/// Puts a line of that rate, which holds all that is sent into it, in the place of one that takes all at once.
fn narrow(space: &str) {
    let line = ["root", "tbf", "rate", RATE, "burst", "16kb", "limit", "64mb"];
    run("tc", &[&["-n", space, "qdisc", "add", "dev", "eth0"][..], &line].concat()).unwrap();
}

/// Most bytes that wait to be sent in any socket of a process's host.
fn waiting(process: &str) -> u64 {
    let mut most = 0;
    for file in ["udp", "udp6"] {
        let table = fs::read_to_string(format!("/proc/{process}/net/{file}")).unwrap();
        for line in table.lines().skip(1) {
            let queues = line.split_whitespace().nth(4).unwrap();
            let sending = queues.split(':').next().unwrap();
            most = u64::from_str_radix(sending, 16).unwrap().max(most);
        }
    }
    most
}

/// What fills a socket's buffer: the kernel gives twice what is asked for, and what it may give at most.
fn full() -> u64 {
    let most = fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap();
    2 * most.trim().parse::<u64>().unwrap().min(2 * 1024 * 1024)
}

async fn publish(client: Client, topic: TopicName) {
    let publisher = client.publisher(&topic).open().await.unwrap();
    let mut acks = Vec::new();
    for number in 0..RECORDS {
        let mut value = number.to_be_bytes().to_vec();
        value.resize(RECORD_LEN, 0);
        let sent = publisher.send(Record::new(value));
        acks.push(timeout(PATIENCE, sent).await.expect("there is room").unwrap());
    }
    for ack in acks {
        timeout(PATIENCE, ack).await.expect("acked").unwrap();
    }
}

async fn read(client: Client, topic: TopicName) {
    let mut reader = client.subscribe(&topic).from(Position::Earliest).open().await.unwrap();
    for number in 0..RECORDS {
        let next = timeout(PATIENCE, reader.next()).await.expect("it comes");
        assert_eq!(next.unwrap().unwrap().record.value[..8], number.to_be_bytes());
    }
}

/// Waits for all, and looks meanwhile how full the fullest socket of a host is.
async fn watch(mut all: JoinSet<()>, what: &str, process: &str) {
    let (begun, mut most) = (Instant::now(), 0);
    let mut looks = interval(Duration::from_millis(2));
    loop {
        tokio::select! {
            done = all.join_next() => match done {
                Some(done) => done.unwrap(),
                None => break,
            },
            _ = looks.tick() => most = most.max(waiting(process)),
        }
    }
    println!("{what} in {:?}; {most} of {} bytes waited in a socket", begun.elapsed(), full());
    // A packet fits, or it does not: a full one is less than a packet and its book-keeping away from that.
    assert!(most > full() - full() / 8, "{what}: the buffer was never full");
}

#[test]
fn lines_that_are_too_narrow_fill_the_sockets_and_nothing_is_lost() {
    let Some(network) = super::switched_hosts(1) else { return };
    block_on(network, async |network| {
        let mut lab = Lab::new(network, 1);
        let profile = lab.found().await;
        let address = format!("{}:7440", lab.network.address(0)).parse().unwrap();
        let profile = Profile { addresses: vec![address], discovery: false, ..profile };
        let client = Client::connect(&profile).await.unwrap();
        let topics = (0..TOPICS).map(|number| format!("narrow/{number}").parse().unwrap());
        let topics: Vec<TopicName> = topics.collect();
        for topic in &topics {
            let request = TopicRequest { partitions: Some(1), ..TopicRequest::default() };
            client.topics().create(topic, request).await.unwrap();
        }
        narrow(&lab.switch().clients());
        narrow(&lab.switch().host(0));

        // One socket sends for all of them, here and there.
        let writing = topics.iter().map(|topic| publish(client.clone(), topic.clone()));
        watch(writing.collect(), "published", "thread-self").await;
        let mut readers = Vec::new();
        for topic in topics.iter().cycle().take(READERS * topics.len()) {
            readers.push((Client::connect(&profile).await.unwrap(), topic.clone()));
        }
        let reading = readers.into_iter().map(|(client, topic)| read(client, topic));
        watch(reading.collect(), "read", &lab.process(0).to_string()).await;
    });
}
