//! All nodes of a site start at once, with clients that wait for it.

use std::{sync::Arc, time::Duration};

use dunlin::{
    client::{Acks, Client, Publisher, Record, TopicName},
    wire::ClusterStatus,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    Common,
    failure::{Failure, Result, While as _},
    site::{Shape, Site},
    table::{Wanted, heading, line},
};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Cold {
    /// Topics of the site
    #[arg(long, value_name = "N", default_value_t = 20)]
    topics: u32,
    /// Partitions of each topic
    #[arg(long, value_name = "N", default_value_t = 100)]
    partitions: u32,
    /// Clients, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 500)]
    clients: usize,
    /// Starts, of which each is shown
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
}

/// A client that publishes to one topic.
struct OneClient {
    client: Client,
    publisher: Publisher,
    topic: TopicName,
    key: String,
}

/// When a client had its ack, and its record.
struct Served {
    acked: Instant,
    read: Instant,
}

impl Cold {
    pub(crate) async fn run(&self, common: &Common) -> Result<()> {
        allow_sockets();
        // All clients come from one address here, which elsewhere they do not.
        let settings = "[limits]\nhandshakes_per_address = 100000\n".to_owned();
        let shape = Shape { data: 3, witnesses: 0, settings };
        let mut site = Site::start(&common.dunlin, &common.dir(), shape).await?;
        let topics = site.make_topics(self.topics, self.partitions).await?;
        let clients = self.connect(&site, &topics).await?;
        all(&clients, 0).await?;
        let partitions = self.topics * self.partitions;
        let what =
            format!("cold start of three: {partitions} partitions, {} clients", self.clients);
        heading(&what);
        for round in 1..=self.rounds {
            self.start(&mut site, &clients, round).await?;
        }
        Ok(())
    }

    async fn connect(&self, site: &Site, topics: &[TopicName]) -> Result<Vec<Arc<OneClient>>> {
        let mut connecting = JoinSet::new();
        // At first they come one after the other: what is measured begins when all are there.
        let places = Arc::new(Semaphore::new(CONNECTING_MAX));
        for number in 0..self.clients {
            let topic = topics[number % topics.len()].clone();
            let (profile, places) = (site.profile().clone(), Arc::clone(&places));
            connecting.spawn(async move {
                let _place = places.acquire().await?;
                let client = Client::connect(&profile).await?;
                let publisher = client.publisher(&topic).acks(Acks::Replicated);
                let publisher = publisher.deadline(SERVED_MAX).open().await?;
                Result::Ok(OneClient { client, publisher, topic, key: format!("client {number}") })
            });
        }
        let mut clients = Vec::new();
        while let Some(connected) = connecting.join_next().await {
            clients.push(Arc::new(connected??));
        }
        Ok(clients)
    }

    async fn start(&self, site: &mut Site, clients: &[Arc<OneClient>], round: usize) -> Result<()> {
        let before = site.status_of(0).await?;
        for node in site.nodes() {
            site.kill(node);
        }
        let begun = Instant::now();
        for node in site.nodes() {
            site.begin(node)?;
        }
        let (served, led) = tokio::try_join!(all(clients, round), led_anew(site, &before))?;
        for node in site.nodes() {
            site.serves(node).await?;
        }
        let last = |when: fn(&Served) -> Instant| {
            let last = served.iter().map(when).max().unwrap_or(begun);
            (last - begun).as_secs_f64()
        };
        let (acked, read) = (last(|served| served.acked), last(|served| served.read));
        let first = served.iter().map(|served| served.acked).min().unwrap_or(begun);
        let figures = format!(
            "first ack {:.2}, primaries {:.2}, all read {read:.2}",
            (first - begun).as_secs_f64(),
            (led - begun).as_secs_f64(),
        );
        let ready = acked.max((led - begun).as_secs_f64());
        let name = format!("start {round}: all clients acked, all partitions led, s");
        line(&name, Wanted::AtMost(COLD_MAX), ready, &figures);
        Ok(())
    }
}

/// Each client publishes one record, and reads it.
async fn all(clients: &[Arc<OneClient>], round: usize) -> Result<Vec<Served>> {
    let mut working = JoinSet::new();
    for client in clients {
        let client = Arc::clone(client);
        working.spawn(async move { client.publish_and_read(round).await });
    }
    let mut served = Vec::new();
    while let Some(one) = working.join_next().await {
        served.push(one??);
    }
    Ok(served)
}

impl OneClient {
    async fn publish_and_read(&self, round: usize) -> Result<Served> {
        let value = format!("{} in round {round}", self.key);
        let record = Record::new(value.clone()).with_key(self.key.clone());
        let delivery = self.publisher.publish(record).await;
        let delivery = delivery.while_(format!("{} has no ack", self.key))?;
        let acked = Instant::now();
        let read = async {
            let subscription = self.client.subscribe(&self.topic);
            let subscription = subscription.partitions([delivery.partition]);
            let at = [(delivery.partition, delivery.offset)];
            let mut subscriber = subscription.resume(at).open().await?;
            let first = subscriber.next().await;
            Ok(first.ok_or_else(|| Failure("its subscription ended".into()))??)
        };
        let read = timeout(SERVED_MAX, read).await;
        let read = read.unwrap_or_else(|_| Err(Failure(format!("nothing in {SERVED_MAX:?}"))));
        let read = read.while_(format!("{} reads", self.key))?;
        if read.offset != delivery.offset || read.record.value != value {
            return Err(Failure(format!("{} reads {read:?} in place of its record", self.key)));
        }
        Ok(Served { acked, read: Instant::now() })
    }
}

/// Waits until each shard has a primary in an epoch that began after `before`: then each partition has one.
async fn led_anew(site: &Site, before: &ClusterStatus) -> Result<Instant> {
    let deadline = Instant::now() + SERVED_MAX;
    loop {
        let why = match site.status_of(0).await {
            Ok(status) => {
                let lacks = status
                    .shards
                    .iter()
                    .zip(&before.shards)
                    .find(|(now, before)| now.primary.is_none() || now.epoch <= before.epoch);
                match lacks {
                    None if status.shards.len() == before.shards.len() => return Ok(Instant::now()),
                    None => "shards are missing".to_owned(),
                    Some((shard, _)) => format!("{shard:?}"),
                }
            }
            Err(error) => error.to_string(),
        };
        if Instant::now() > deadline {
            return Err(Failure(format!("not led within {SERVED_MAX:?}: {why}")));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Each client has sockets of its own.
fn allow_sockets() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        eprintln!("the limit of open files stays: {error}");
    }
}

const COLD_MAX: f64 = 10.0;
const CONNECTING_MAX: usize = 20;
/// Far past what is wanted, so that a miss is a figure.
const SERVED_MAX: Duration = Duration::from_secs(120);
