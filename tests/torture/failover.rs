//! How long clients wait when a node goes: from the fault to the first ack of what was sent after it.

use std::{sync::Arc, time::Duration};

use dunlin::client::{Acks, Client, Publisher, Record, TopicName, TopicRequest};
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};

use super::site::{PATIENCE, Shape, Site};

/// What happens to which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trial {
    PrimaryKilled,
    PrimaryAndControllerKilled,
    PrimaryUnplugged,
    BackupKilled,
    PrimaryStopped,
}

impl Trial {
    pub(crate) const ALL: [Self; 5] = [
        Self::PrimaryKilled,
        Self::PrimaryAndControllerKilled,
        Self::PrimaryUnplugged,
        Self::BackupKilled,
        Self::PrimaryStopped,
    ];

    fn in_words(self) -> &'static str {
        match self {
            Self::PrimaryKilled => "primary killed, controller elsewhere",
            Self::PrimaryAndControllerKilled => "primary killed, controller too",
            Self::PrimaryUnplugged => "primary's cable pulled",
            Self::BackupKilled => "backup killed",
            Self::PrimaryStopped => "primary stopped by SIGTERM",
        }
    }
}

/// One shard, so that it is known who leads it.
pub(crate) const SHAPE: Shape = Shape { data: 3, witnesses: 0, shards: 1 };
const SEND_EVERY: Duration = Duration::from_millis(5);

/// The node that a publisher is connected to, and the newest moment of sending that is acked.
struct Watched {
    acked: Arc<Mutex<Instant>>,
    at: usize,
}

/// Makes the topic that is published to.
pub(crate) async fn topic(site: &Site) -> TopicName {
    let topic: TopicName = "failover".parse().unwrap();
    let client = Client::connect(site.profile()).await.unwrap();
    let request = TopicRequest { partitions: Some(1), ..TopicRequest::default() };
    client.topics().create(&topic, request).await.unwrap();
    client.close().await;
    topic
}

/// Measures each trial so often and prints the table.
pub(crate) async fn measure(mut site: Site, trials: &[Trial], count: usize) {
    let topic = topic(&site).await;
    println!(
        "{:38} {:12} {:>5} {:>7} {:>7} {:>7}",
        "ms to next ack", "client at", "n", "p50", "p99", "max"
    );
    for trial in trials {
        let (mut at_victim, mut elsewhere) = (Vec::new(), Vec::new());
        while at_victim.len() < count || elsewhere.len() < count {
            let (victim, waits) = once(&mut site, &topic, *trial).await;
            for (at, wait) in waits {
                if at == victim { at_victim.push(wait) } else { elsewhere.push(wait) }
            }
        }
        row(*trial, "the node", &mut at_victim);
        row(*trial, "another", &mut elsewhere);
    }
}

fn row(trial: Trial, at: &str, waits: &mut [Duration]) {
    waits.sort_unstable();
    let quantile = |of: usize| waits[(waits.len() * of / 100).min(waits.len() - 1)].as_millis();
    println!(
        "{:38} {at:12} {:>5} {:>7} {:>7} {:>7}",
        trial.in_words(),
        waits.len(),
        quantile(50),
        quantile(99),
        waits[waits.len() - 1].as_millis()
    );
}

/// One fault. Returns the node that it met, and of each client where it was connected and how long it waited.
pub(crate) async fn once(
    site: &mut Site,
    topic: &TopicName,
    trial: Trial,
) -> (usize, Vec<(usize, Duration)>) {
    let (primary, controller) = arrange(site, trial).await;
    let victim = match trial {
        Trial::BackupKilled => site.nodes().find(|n| ![primary, controller].contains(n)).unwrap(),
        _ => primary,
    };
    let mut tasks = JoinSet::new();
    let mut clients = Vec::new();
    for at in site.nodes() {
        // Its own node first; the others are there for when it is gone.
        let mut profile = site.profile().clone();
        profile.addresses.rotate_left(at);
        let client = Client::connect(&profile).await.unwrap();
        let connected = client.welcome().await.unwrap().node;
        let at = site.nodes().find(|n| site.name(*n) == connected).unwrap();
        let publisher = client.publisher(topic).acks(Acks::Replicated).open().await.unwrap();
        let acked = Arc::new(Mutex::new(Instant::now()));
        tasks.spawn(publish(client, publisher, Arc::clone(&acked)));
        clients.push(Watched { acked, at });
    }
    sleep(Duration::from_millis(300)).await;
    let fault = Instant::now();
    match trial {
        Trial::PrimaryUnplugged => site.network.switch().unwrap().plug(victim, "down").unwrap(),
        Trial::PrimaryStopped => site.begin_stop(victim),
        _ => site.kill(victim),
    }
    let mut waits = Vec::new();
    let mut watch = JoinSet::new();
    for Watched { acked, at } in clients {
        watch.spawn(async move {
            let mut looks = interval(Duration::from_millis(1));
            while *acked.lock().await <= fault {
                looks.tick().await;
            }
            (at, fault.elapsed())
        });
    }
    while let Some(waited) = timeout(PATIENCE, watch.join_next()).await.unwrap() {
        waits.push(waited.unwrap());
    }
    drop(tasks);
    if trial == Trial::PrimaryUnplugged {
        site.network.switch().unwrap().plug(victim, "up").unwrap();
    } else {
        if trial == Trial::PrimaryStopped {
            site.stop(victim).await.unwrap();
        }
        site.restart(victim).await.unwrap();
    }
    site.in_sync(PATIENCE).await.unwrap();
    (victim, waits)
}

/// Restarts nodes until primary and controller are as the trial wants them.
async fn arrange(site: &mut Site, trial: Trial) -> (usize, usize) {
    loop {
        let status = site.status().await.unwrap();
        let controller = site.number_of(&status, status.leader.unwrap());
        let primary = site.number_of(&status, status.shards[0].primary.unwrap());
        let fits = match trial {
            Trial::PrimaryKilled => primary != controller,
            Trial::PrimaryAndControllerKilled => primary == controller,
            _ => true,
        };
        if fits {
            return (primary, controller);
        }
        // Either may go anywhere then.
        site.kill(controller);
        sleep(Duration::from_secs(2)).await;
        site.restart(controller).await.unwrap();
        site.in_sync(PATIENCE).await.unwrap();
    }
}

async fn publish(_client: Client, publisher: Publisher, acked: Arc<Mutex<Instant>>) {
    let mut ticks = interval(SEND_EVERY);
    let mut acks = JoinSet::new();
    loop {
        ticks.tick().await;
        let sent = Instant::now();
        let Ok(ack) = publisher.send(Record::new("failover")).await else { return };
        let acked = Arc::clone(&acked);
        acks.spawn(async move {
            if ack.await.is_ok() {
                let mut newest = acked.lock().await;
                *newest = sent.max(*newest);
            }
        });
        while acks.try_join_next().is_some() {}
    }
}
