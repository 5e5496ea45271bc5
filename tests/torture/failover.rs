//! How long clients wait when a node goes. Where it is killed or cut off: from the fault to the first ack of what was sent
//! after it. Where it goes in order: the longest that any record waited meanwhile, because it still acknowledges for a while.

use std::{sync::Arc, time::Duration};

use dunlin::client::{Acks, Client, Publisher, Record, TopicName, TopicRequest};
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};

use super::{
    fault::set_draining,
    site::{PATIENCE, Shape, Site},
};

/// What happens to which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trial {
    PrimaryKilled,
    PrimaryAndControllerKilled,
    PrimaryUnplugged,
    BackupKilled,
    PrimaryStopped,
    PrimaryDrained,
    /// From one other node; the third hears both.
    PrimaryCutFromOne,
    /// From the node that then has it replaced, and cannot tell it; the third hears both.
    PrimaryCutFromController,
}

impl Trial {
    pub(crate) const ALL: [Self; 8] = [
        Self::PrimaryKilled,
        Self::PrimaryAndControllerKilled,
        Self::PrimaryUnplugged,
        Self::BackupKilled,
        Self::PrimaryStopped,
        Self::PrimaryDrained,
        Self::PrimaryCutFromOne,
        Self::PrimaryCutFromController,
    ];

    fn in_words(self) -> &'static str {
        match self {
            Self::PrimaryKilled => "primary killed, controller elsewhere",
            Self::PrimaryAndControllerKilled => "primary killed, controller too",
            Self::PrimaryUnplugged => "primary's cable pulled",
            Self::BackupKilled => "backup killed",
            Self::PrimaryStopped => "primary stopped by SIGTERM, longest wait",
            Self::PrimaryDrained => "primary drained, longest wait",
            Self::PrimaryCutFromOne => "primary cut from another node",
            Self::PrimaryCutFromController => "primary cut from the controller",
        }
    }

    /// What a client may wait on a quiet network: the middle of the trials, and the longest.
    fn wanted(self) -> (Option<Duration>, Option<Duration>) {
        let ms = |ms| Some(Duration::from_millis(ms));
        match self {
            Self::PrimaryKilled => (ms(1_000), ms(1_500)),
            Self::PrimaryAndControllerKilled => (None, ms(2_000)),
            Self::PrimaryStopped | Self::PrimaryDrained => (None, ms(250)),
            Self::PrimaryUnplugged
            | Self::BackupKilled
            | Self::PrimaryCutFromOne
            | Self::PrimaryCutFromController => (None, None),
        }
    }

    /// Whether it is done to the network.
    pub(crate) fn needs_switch(self) -> bool {
        matches!(
            self,
            Self::PrimaryUnplugged | Self::PrimaryCutFromOne | Self::PrimaryCutFromController
        )
    }

    /// The word that chooses it.
    pub(crate) fn kind(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Whether the node knows that it goes.
    fn is_in_order(self) -> bool {
        matches!(self, Self::PrimaryStopped | Self::PrimaryDrained)
    }
}

/// One shard, so that it is known who leads it.
pub(crate) const SHAPE: Shape = Shape { data: 3, witnesses: 0, shards: 1 };
const SEND_EVERY: Duration = Duration::from_millis(5);

/// The node that a publisher is connected to, and what was acked to it.
struct Watched {
    acked: Arc<Mutex<Acked>>,
    at: usize,
}

#[derive(Debug)]
struct Acked {
    /// The newest moment of sending that is acked.
    newest: Instant,
    /// The longest from sending to ack, of what was acked since this was set to zero.
    longest: Duration,
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
        "{:42} {:12} {:>5} {:>7} {:>7} {:>7}",
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
    let longest = waits[waits.len() - 1];
    let (middle_max, longest_max) = trial.wanted();
    let is_over = |wait: Duration, most: Option<Duration>| most.filter(|most| wait > *most);
    let mut missed = String::new();
    if let Some(most) = is_over(waits[waits.len() / 2], middle_max) {
        missed.push_str(&format!("!  p50 wanted: <= {}", most.as_millis()));
    }
    if let Some(most) = is_over(longest, longest_max) {
        missed.push_str(&format!("!  max wanted: <= {}", most.as_millis()));
    }
    println!(
        "{:42} {at:12} {:>5} {:>7} {:>7} {:>7}{missed}",
        trial.in_words(),
        waits.len(),
        quantile(50),
        quantile(99),
        longest.as_millis(),
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
        Trial::PrimaryCutFromOne => site.nodes().find(|n| *n != primary).unwrap(),
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
        let acked = Acked { newest: Instant::now(), longest: Duration::ZERO };
        let acked = Arc::new(Mutex::new(acked));
        tasks.spawn(publish(client, publisher, Arc::clone(&acked)));
        clients.push(Watched { acked, at });
    }
    sleep(Duration::from_millis(300)).await;
    for client in &clients {
        client.acked.lock().await.longest = Duration::ZERO;
    }
    let fault = Instant::now();
    match trial {
        Trial::PrimaryUnplugged => site.network.switch().unwrap().plug(victim, "down").unwrap(),
        Trial::PrimaryCutFromOne => site.network.switch().unwrap().cut(victim, primary).unwrap(),
        Trial::PrimaryCutFromController => {
            site.network.switch().unwrap().cut(victim, controller).unwrap();
        }
        Trial::PrimaryStopped => drop(site.stop(victim).await.unwrap()),
        Trial::PrimaryDrained => {
            set_draining(site, victim, true).await.unwrap();
            holds_nothing(site, victim).await;
        }
        _ => site.kill(victim),
    }
    // What was sent before may have gone through: to cut a network takes a moment.
    let gone = Instant::now();
    let mut waits = Vec::new();
    let mut watch = JoinSet::new();
    for Watched { acked, at } in clients {
        watch.spawn(async move {
            let mut looks = interval(Duration::from_millis(1));
            while acked.lock().await.newest <= gone {
                looks.tick().await;
            }
            let longest = acked.lock().await.longest;
            (at, if trial.is_in_order() { longest } else { fault.elapsed() })
        });
    }
    while let Some(waited) = timeout(PATIENCE, watch.join_next()).await.unwrap() {
        waits.push(waited.unwrap());
    }
    drop(tasks);
    match trial {
        Trial::PrimaryUnplugged => site.network.switch().unwrap().plug(victim, "up").unwrap(),
        Trial::PrimaryDrained => set_draining(site, victim, false).await.unwrap(),
        Trial::PrimaryCutFromOne | Trial::PrimaryCutFromController => {
            site.network.heal().unwrap();
        }
        _ => site.restart(victim).await.unwrap(),
    }
    site.in_sync(PATIENCE).await.unwrap();
    (victim, waits)
}

/// Waits until a node leads nothing and counts nowhere, as another one sees it.
pub(crate) async fn holds_nothing(site: &Site, node: usize) {
    let deadline = Instant::now() + PATIENCE;
    let other = site.nodes().find(|other| *other != node).unwrap();
    let mut looks = interval(Duration::from_millis(20));
    loop {
        looks.tick().await;
        let status = site.status_of(other).await;
        let holds = status.as_ref().map(|status| {
            let id = status.nodes.iter().find(|n| n.name == site.name(node)).unwrap().id;
            status.shards.iter().any(|shard| {
                shard.primary == Some(id) || shard.set.contains(&id) || shard.replicas.contains(&id)
            })
        });
        if holds == Ok(false) {
            return;
        }
        assert!(Instant::now() < deadline, "a drain does not end: {status:?}");
    }
}

/// Restarts nodes until primary and controller are as the trial wants them.
async fn arrange(site: &mut Site, trial: Trial) -> (usize, usize) {
    loop {
        let status = site.status().await.unwrap();
        let controller = site.number_of(&status, status.leader.unwrap());
        let primary = site.number_of(&status, status.shards[0].primary.unwrap());
        let fits = match trial {
            Trial::PrimaryKilled | Trial::PrimaryCutFromController => primary != controller,
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

async fn publish(_client: Client, publisher: Publisher, acked: Arc<Mutex<Acked>>) {
    let mut ticks = interval(SEND_EVERY);
    let mut acks = JoinSet::new();
    loop {
        ticks.tick().await;
        let sent = Instant::now();
        let Ok(ack) = publisher.send(Record::new("failover")).await else { return };
        let acked = Arc::clone(&acked);
        acks.spawn(async move {
            if ack.await.is_ok() {
                let mut acked = acked.lock().await;
                acked.newest = sent.max(acked.newest);
                acked.longest = sent.elapsed().max(acked.longest);
            }
        });
        while acks.try_join_next().is_some() {}
    }
}
