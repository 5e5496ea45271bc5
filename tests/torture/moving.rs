//! A client whose address changes in mid-stream: its connection goes with it, and nobody notices but by a pause.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use dunlin::{
    client::{Client, Position, Profile, Publisher, Record, Subscriber, TopicName, TopicRequest},
    limits::CLIENT_KEEP_ALIVE,
};
use tokio::{
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};

use super::{
    block_on,
    lab::{Lab, until},
    network::run,
    site::PATIENCE,
};

const SEND_EVERY: Duration = Duration::from_millis(5);
/// How long a client is without any address in some of the moves: as long as it takes to be given one.
/// A client that took its node for dead would have closed the connection by then.
const AWAY: Duration = Duration::from_millis(1_300);
/// What a client may need beyond that, and beyond the time after which it asks: for what was lost to be sent again, and for a
/// cable that is put back. Who has the node's address is asked once a second, and a bridge takes a moment to look at its port.
const PAUSE_MAX: Duration = Duration::from_millis(2_500);

/// The network of the host that clients are on.
struct Roaming<'a> {
    lab: &'a Lab,
    space: String,
}

impl Roaming<'_> {
    fn ip(&self, arguments: &[&str]) {
        run("ip", &[&["-n", &self.space][..], arguments].concat()).unwrap();
    }

    fn leave(&self, address: &str) {
        self.ip(&["addr", "del", address, "dev", "eth0"]);
    }

    fn take(&self, address: &str) {
        self.ip(&["addr", "add", address, "dev", "eth0"]);
    }

    /// A second way, which is worse while the first one is there.
    fn add_second(&self, address: &str) {
        // Each way answers for its own address alone: the node would look for the first one behind the second one's cable.
        for (key, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
            fs::write(format!("/proc/sys/net/ipv4/conf/all/{key}"), value).unwrap();
        }
        self.lab.switch().add_cable(&self.space, "eth1", "second").unwrap();
        self.ip(&["addr", "add", address, "dev", "eth1", "metric", "200"]);
        self.ip(&["link", "set", "eth1", "up"]);
    }

    fn first(&self, state: &str) {
        self.ip(&["link", "set", "eth0", state]);
    }
}

/// What one reader was given: numbers in order, and how long each was on its way.
type Read = Arc<Mutex<Vec<Duration>>>;
/// When each number was sent.
type Sent = Arc<Mutex<Vec<Instant>>>;

/// Sends numbers until it is told to end. Gives how long each waited for its ack.
async fn write(publisher: Publisher, sent: Sent, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut acks = JoinSet::new();
    let mut ticks = interval(SEND_EVERY);
    let mut n = 0;
    while !stop.load(SeqCst) {
        ticks.tick().await;
        let at = Instant::now();
        sent.lock().unwrap().push(at);
        let ack = publisher.send(Record::new(n.to_string()).with_key("one")).await;
        let ack = ack.expect("no error reaches the application");
        acks.spawn(async move {
            ack.await.expect("no error reaches the application");
            (n, at.elapsed())
        });
        n += 1;
    }
    let mut waits = acks.join_all().await;
    waits.sort_unstable();
    publisher.close().await.unwrap();
    waits.into_iter().map(|(_, wait)| wait).collect()
}

/// Reads numbers for ever, and looks whether each comes once and in order.
async fn read(mut subscriber: Subscriber, sent: Sent, read: Read) {
    while let Some(received) = subscriber.next().await {
        let received = received.expect("no error reaches the application");
        let mut read = read.lock().unwrap();
        let n = read.len();
        assert_eq!(received.record.value, n.to_string().as_bytes(), "each once, in order");
        read.push(sent.lock().unwrap()[n].elapsed());
    }
}

/// Clients that were let in since the node began.
fn connects(lab: &Lab) -> usize {
    fs::read_to_string(lab.log(0)).unwrap().matches("client connected").count()
}

/// What happens at once, and what after a time.
struct Move<'a> {
    what: &'static str,
    away: Duration,
    leave: Box<dyn Fn() + 'a>,
    come: Box<dyn Fn() + 'a>,
}

fn moves<'a>(roaming: &'a Roaming<'a>) -> [Move<'a>; 5] {
    let [home, other, third, second] =
        ["10.77.0.100/24", "10.77.0.101/24", "10.77.0.102/24", "10.77.0.201/24"];
    [
        Move {
            what: "another address",
            away: Duration::ZERO,
            leave: Box::new(|| roaming.leave(home)),
            come: Box::new(|| roaming.take(other)),
        },
        Move {
            what: "no address for a while, then a third one",
            away: AWAY,
            leave: Box::new(|| roaming.leave(other)),
            come: Box::new(|| roaming.take(third)),
        },
        Move {
            what: "the first way goes down, the second one is there",
            away: Duration::ZERO,
            leave: Box::new(|| roaming.add_second(second)),
            come: Box::new(|| roaming.first("down")),
        },
        Move {
            what: "the first way is back",
            away: Duration::ZERO,
            leave: Box::new(|| {}),
            come: Box::new(|| roaming.first("up")),
        },
        Move {
            what: "no way at all for a while",
            away: AWAY,
            leave: Box::new(|| {
                roaming.ip(&["link", "set", "eth1", "down"]);
                roaming.first("down");
            }),
            come: Box::new(|| roaming.first("up")),
        },
    ]
}

struct Clients {
    /// Sends to `busy`, and reads it.
    busy: Client,
    /// Reads `busy`.
    listener: Client,
    /// Reads `quiet`, where next to nothing is sent.
    quiet: Client,
}

impl Clients {
    async fn connect(profile: &Profile) -> Self {
        let connect = async || Client::connect(profile).await.unwrap();
        Self { busy: connect().await, listener: connect().await, quiet: connect().await }
    }
}

async fn subscribe(client: &Client, topic: &TopicName) -> Subscriber {
    client.subscribe(topic).from(Position::Earliest).open().await.unwrap()
}

/// A profile that names the one node.
async fn found(lab: &mut Lab) -> Profile {
    let profile = lab.found().await;
    let address = format!("{}:7440", lab.network.address(0)).parse().unwrap();
    Profile { addresses: vec![address], discovery: false, ..profile }
}

#[test]
fn a_client_whose_address_changes_keeps_its_connection_and_its_streams() {
    let Some(network) = super::switched_hosts(1) else { return };
    block_on(network, async |network| {
        let mut lab = Lab::new(network, 1);
        let profile = found(&mut lab).await;
        let clients = Clients::connect(&profile).await;
        let [busy, quiet]: [TopicName; 2] = ["busy", "quiet"].map(|name| name.parse().unwrap());
        for topic in [&busy, &quiet] {
            let request = TopicRequest { partitions: Some(1), ..TopicRequest::default() };
            clients.busy.topics().create(topic, request).await.unwrap();
        }
        let mut readers = JoinSet::new();
        let (sent, stop) = (Sent::default(), Arc::new(AtomicBool::new(false)));
        let reads = [Read::default(), Read::default()];
        for (client, seen) in [&clients.busy, &clients.listener].into_iter().zip(&reads) {
            let subscriber = subscribe(client, &busy).await;
            readers.spawn(read(subscriber, Arc::clone(&sent), Arc::clone(seen)));
        }
        let mut silent = subscribe(&clients.quiet, &quiet).await;
        let publisher = clients.busy.publisher(&busy).open().await.unwrap();
        let seldom = clients.busy.publisher(&quiet).open().await.unwrap();
        let writer = tokio::spawn(write(publisher, Arc::clone(&sent), Arc::clone(&stop)));
        let roaming = Roaming { lab: &lab, space: lab.switch().clients() };
        let before = connects(&lab);

        let moves = moves(&roaming);
        for (nth, Move { what, away, leave, come }) in moves.iter().enumerate() {
            let from = sent.lock().unwrap().len().saturating_sub(1);
            leave();
            if !away.is_zero() {
                sleep(*away).await;
            }
            come();
            // Sent after the move, so that nobody who has not moved gets it.
            let there = Instant::now();
            let number = nth.to_string();
            seldom.publish(Record::new(number.clone())).await.expect("no error");
            let received =
                timeout(PATIENCE, silent.next()).await.unwrap().unwrap().expect("no error");
            assert_eq!(received.record.value, number.as_bytes());
            let quiet = there.elapsed();
            let to = sent.lock().unwrap().len() + 20;
            until("read on", async || reads.iter().all(|r| r.lock().unwrap().len() > to)).await;
            let pauses = reads.each_ref().map(|r| r.lock().unwrap()[from..].iter().max().copied());
            println!("{what}: longest way to readers {pauses:?}, to one who waits {quiet:?}");
            for pause in pauses.into_iter().flatten() {
                assert!(pause < *away + PAUSE_MAX, "{what}: {pause:?}");
            }
            assert!(quiet < CLIENT_KEEP_ALIVE + PAUSE_MAX, "{what}: {quiet:?}");
            assert_eq!(connects(&lab), before, "{what}: the connections are the same");
        }
        stop.store(true, SeqCst);
        let waits = timeout(PATIENCE, writer).await.unwrap().unwrap();
        println!("{} records, longest ack {:?}", waits.len(), waits.iter().max());
        until("all is read", async || reads.iter().all(|r| r.lock().unwrap().len() == waits.len()))
            .await;
        assert_eq!(connects(&lab), before);
        assert!(readers.try_join_next().is_none(), "a reader ended");
    });
}
