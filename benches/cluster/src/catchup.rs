//! A node that was away for long comes back while producers go on.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    thread,
    time::Duration,
};

use bytes::Bytes;
use dunlin::client::{AckFuture, Acks, Client, Publisher, Record, TopicName};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    Common,
    failure::{Failure, Result, While as _},
    load::{Producer, run},
    site::{Shape, Site},
    table::{Latencies, Wanted, heading, line},
};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Catchup {
    /// Bytes of payload that are published while the node is away, such as 2GB
    #[arg(long, value_name = "BYTES", default_value = "2GB", value_parser = bytes)]
    bytes: u64,
    /// Records of 1 KiB a second of the steady producers together [default: a third of what they reach]
    #[arg(long, value_name = "RECORDS")]
    rate: Option<u64>,
    /// Steady producers, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least_one)]
    producers: usize,
    /// Seconds of quiet before the node is killed
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    quiet: u64,
    /// Shards of the site, and partitions of the topic; with 1 the node that is killed leads nothing
    #[arg(long, value_name = "N", default_value_t = 12)]
    shards: u32,
}

/// What the site goes through, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Quiet,
    Away,
    CatchingUp,
    After,
}

/// The phase, and the latencies of what was due in each.
struct Phases {
    now: AtomicUsize,
    latencies: [Mutex<Latencies>; 4],
}

/// Producers that publish at a rate, whatever the acks do.
struct Steady {
    phases: Arc<Phases>,
    is_over: Arc<AtomicBool>,
    producers: JoinSet<Result<()>>,
}

impl Catchup {
    pub(crate) async fn run(&self, common: &Common) -> Result<()> {
        let settings = format!("[storage]\nshards = {}\n", self.shards);
        let shape = Shape { data: 3, witnesses: 0, settings };
        let mut site = Site::start(&common.dunlin, &common.dir(), shape).await?;
        let topic = site.make_topics(1, self.shards).await?.remove(0);
        let victim = self.victim(&site).await?;
        let others: Vec<usize> = site.nodes().filter(|node| *node != victim).collect();

        let (rate, how) = match self.rate {
            Some(rate) => (rate, "as told"),
            None => {
                let capacity = capacity(self.producers, &site, &others, &topic).await?;
                (capacity / 3, "a third of what they reach with 16 in flight each")
            }
        };
        let mut steady = self.steady(&site, &others, &topic, rate.max(1)).await?;
        // What begins with the producers is not quiet, nor what is left of finding the rate.
        sleep(Duration::from_secs(5)).await;
        steady.phases.forget(Phase::Quiet);
        steady.lasts(Duration::from_secs(self.quiet)).await?;

        steady.phases.enter(Phase::Away);
        // What was due in the quiet is acked before the node goes.
        steady.lasts(Duration::from_secs(1)).await?;
        site.kill(victim);
        let filling = Instant::now();
        fill(&site, &others, &topic, self.bytes).await?;
        let filled = filling.elapsed();
        steady.check()?;
        let status = site.status_of(others[0]).await?;
        if status.shards.iter().any(|shard| shard.set.len() > others.len()) {
            return Err(Failure("a shard still counts on the node that was killed".into()));
        }

        steady.phases.enter(Phase::CatchingUp);
        let back = Instant::now();
        site.begin(victim)?;
        site.in_sync_for(others[0], CATCH_UP_MAX).await?;
        let took = back.elapsed();
        steady.phases.enter(Phase::After);
        steady.lasts(Duration::from_secs(self.quiet)).await?;
        let phases = steady.end().await?;
        let whole = sets(&site.status_by_program()?)?;

        let gigabytes = self.bytes as f64 / 1e9;
        heading(&format!(
            "catch-up: {gigabytes:.1} GB, {} producers, {rate} records/s",
            self.producers
        ));
        println!("  rate: {how}; {gigabytes:.1} GB published in {:.1} s", filled.as_secs_f64());
        for phase in [Phase::Quiet, Phase::Away, Phase::CatchingUp, Phase::After] {
            println!("  {:12} {}", format!("{phase:?}"), phases.in_words(phase));
        }
        let p99 = |phase| phases.of(phase, |latencies| latencies.us_at(0.99));
        let (quiet, during) = (p99(Phase::Quiet), p99(Phase::CatchingUp));
        let figures = format!("{during:.0} of {quiet:.0} us");
        let name = "producers' p99 while the node catches up: of the quiet one";
        line(name, Wanted::AtMost(3.0), during / quiet, &figures);
        let name = "until it is in all commit sets again, s";
        line(name, Wanted::Anything, took.as_secs_f64(), &whole);
        Ok(())
    }

    /// A node that does not lead the metadata group; with one shard, one that leads no shard either.
    async fn victim(&self, site: &Site) -> Result<usize> {
        let status = site.status_of(0).await?;
        let mut busy = Vec::new();
        for id in status.leader.into_iter().chain(status.shards.iter().filter_map(|s| s.primary)) {
            busy.push(site.number_of(&status, id)?);
        }
        let leads = |node: usize| busy.iter().skip(1).filter(|leads| **leads == node).count();
        let candidates = site.nodes().filter(|node| busy.first() != Some(node));
        let victim = candidates.min_by_key(|node| leads(*node));
        victim.ok_or_else(|| Failure("the site has no other node than its leader".into()))
    }

    async fn steady(
        &self,
        site: &Site,
        others: &[usize],
        topic: &TopicName,
        rate: u64,
    ) -> Result<Steady> {
        let phases = Arc::new(Phases::new());
        let is_over = Arc::new(AtomicBool::new(false));
        let mut producers = JoinSet::new();
        let mut due = Vec::new();
        for _ in 0..self.producers {
            let client = Client::connect(&site.profile_of(others)).await?;
            let publisher = client.publisher(topic).acks(Acks::Replicated).open().await?;
            let (sender, receiver) = mpsc::channel(DUE_MAX);
            producers.spawn(produce((client, publisher), receiver, Arc::clone(&phases)));
            due.push(sender);
        }
        let stop = Arc::clone(&is_over);
        // A thread: its sleep is fifty times finer than the runtime's.
        thread::spawn(move || pace(&due, rate, &stop));
        Ok(Steady { phases, is_over, producers })
    }
}

/// Says when records are due, so many a second in bursts, to one producer after the other.
fn pace(due: &[mpsc::Sender<Instant>], rate: u64, is_over: &AtomicBool) {
    let begun = Instant::now();
    let (mut bursts, mut sent) = (0, 0);
    while !is_over.load(Ordering::Relaxed) {
        bursts += 1;
        let at = begun + BURST_EVERY * bursts;
        thread::sleep(at.saturating_duration_since(Instant::now()));
        let wanted = rate as f64 * (at - begun).as_secs_f64();
        while (sent as f64) < wanted {
            // One that has ended says why itself.
            if due[sent % due.len()].blocking_send(at).is_err() {
                return;
            }
            sent += 1;
        }
    }
}

/// Publishes what is due until there is no more, and counts from when it was due to its ack.
async fn produce(
    (_client, publisher): (Client, Publisher),
    mut due: mpsc::Receiver<Instant>,
    phases: Arc<Phases>,
) -> Result<()> {
    let payload = Bytes::from_iter((0..RECORD).map(|_| rand::random::<u8>()));
    let mut waiting: VecDeque<(usize, Instant, AckFuture)> = VecDeque::new();
    let mut is_over = false;
    while !is_over || !waiting.is_empty() {
        tokio::select! {
            next = due.recv(), if !is_over => match next {
                Some(due) => {
                    let phase = phases.now.load(Ordering::Relaxed);
                    let ack = publisher.send(Record::new(payload.clone())).await?;
                    waiting.push_back((phase, due, ack));
                }
                None => is_over = true,
            },
            acked = oldest(&mut waiting), if !waiting.is_empty() => {
                let (phase, due) = acked?;
                phases.add(phase, due.elapsed());
            }
        }
    }
    Ok(())
}

/// Waits for the ack of the record that has waited longest.
async fn oldest(waiting: &mut VecDeque<(usize, Instant, AckFuture)>) -> Result<(usize, Instant)> {
    poll_fn(|cx| {
        let Some((phase, due, ack)) = waiting.front_mut() else { return Poll::Pending };
        let (phase, due) = (*phase, *due);
        match Pin::new(ack).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(acked) => {
                waiting.pop_front();
                Poll::Ready(acked.map(|_| (phase, due)).while_("a steady producer's record"))
            }
        }
    })
    .await
}

impl Steady {
    /// Lets them go on for so long.
    async fn lasts(&mut self, time: Duration) -> Result<()> {
        sleep(time).await;
        self.check()
    }

    /// Fails if one of them has failed.
    fn check(&mut self) -> Result<()> {
        match self.producers.try_join_next() {
            Some(ended) => Err(ended?.err().unwrap_or(Failure("a steady producer ended".into()))),
            None => Ok(()),
        }
    }

    async fn end(mut self) -> Result<Arc<Phases>> {
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.producers.join_next().await {
            ended??;
        }
        Ok(Arc::clone(&self.phases))
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

impl Phases {
    fn new() -> Self {
        Self {
            now: AtomicUsize::new(0),
            latencies: std::array::from_fn(|_| Mutex::new(Latencies::new())),
        }
    }

    fn enter(&self, phase: Phase) {
        self.now.store(phase as usize, Ordering::Relaxed);
    }

    fn add(&self, phase: usize, latency: Duration) {
        self.latencies[phase].lock().unwrap_or_else(PoisonError::into_inner).add(latency);
    }

    fn forget(&self, phase: Phase) {
        let latencies = &self.latencies[phase as usize];
        *latencies.lock().unwrap_or_else(PoisonError::into_inner) = Latencies::new();
    }

    fn of<T>(&self, phase: Phase, figure: impl FnOnce(&Latencies) -> T) -> T {
        figure(&self.latencies[phase as usize].lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn in_words(&self, phase: Phase) -> String {
        self.of(phase, |latencies| {
            let [p50, p99] = [0.5, 0.99].map(|quantile| latencies.us_at(quantile));
            let (count, max) = (latencies.count(), latencies.max_us());
            format!("{count:>9} records, p50 {p50:.0} us, p99 {p99:.0} us, max {max:.0} us")
        })
    }
}

/// Records a second that so many producers get through together with a few in flight each: batches as small as those of
/// steady producers, of which a full window would say too much.
async fn capacity(
    producers: usize,
    site: &Site,
    others: &[usize],
    topic: &TopicName,
) -> Result<u64> {
    let mut running = JoinSet::new();
    for _ in 0..producers {
        let client = Client::connect(&site.profile_of(others)).await?;
        let publisher = client.publisher(topic).acks(Acks::Replicated).open().await?;
        running.spawn(async move {
            let producer = Producer::Dunlin(publisher);
            let (warm, lasting) = (Duration::from_secs(1), Duration::from_secs(3));
            run(&producer, (CAPACITY_IN_FLIGHT, RECORD), warm, lasting).await
        });
    }
    let mut rate = 0.0;
    while let Some(measured) = running.join_next().await {
        rate += measured??.rate;
    }
    Ok(rate as u64)
}

/// Publishes so many bytes of payload as fast as they are taken.
async fn fill(site: &Site, others: &[usize], topic: &TopicName, bytes: u64) -> Result<()> {
    let client = Client::connect(&site.profile_of(others)).await?;
    let publisher = client.publisher(topic).acks(Acks::Replicated).open().await?;
    let payload = Bytes::from_iter((0..FILL_RECORD).map(|_| rand::random::<u8>()));
    for _ in 0..bytes.div_ceil(FILL_RECORD as u64) {
        // The flush tells of errors.
        drop(publisher.send(Record::new(payload.clone())).await?);
    }
    publisher.close().await?;
    client.close().await;
    Ok(())
}

/// The commit sets by the words of the program, if all of them are whole.
fn sets(status: &serde_json::Value) -> Result<String> {
    let shards = status["shards"].as_array().map(Vec::as_slice).unwrap_or_default();
    let members = |shard: &serde_json::Value| shard["set"].as_array().map_or(0, Vec::len);
    match shards.iter().find(|shard| members(shard) != 3) {
        None if shards.is_empty() => Err(Failure(format!("a status without shards: {status}"))),
        Some(shard) => Err(Failure(format!("not in the commit set any more: {shard}"))),
        None => Ok(format!("dunlin cluster status: 3 members in each of {} sets", shards.len())),
    }
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    let number = text.parse().map_err(|_| format!("'{text}' is no number"))?;
    if number == 0 { Err("at least one is needed".into()) } else { Ok(number) }
}

/// Such as `2GB` or `500MB`: decimal.
fn bytes(text: &str) -> std::result::Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        other => return Err(format!("'{other}' is no unit: MB or GB")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("'{digits}' is no number"))?;
    number.checked_mul(unit).ok_or_else(|| format!("{text} is too much"))
}

const BURST_EVERY: Duration = Duration::from_millis(1);
/// Due records of one producer that it has not taken yet: past that, pacing waits, and the records count from when they were due.
const DUE_MAX: usize = 65_536;
const RECORD: usize = 1_024;
const CAPACITY_IN_FLIGHT: usize = 16;
const FILL_RECORD: usize = 16 * 1_024;
const CATCH_UP_MAX: Duration = Duration::from_secs(1_800);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_decimal_units() {
        assert_eq!(bytes("2GB"), Ok(2_000_000_000));
        assert_eq!(bytes("500MB"), Ok(500_000_000));
        assert_eq!(bytes("7"), Ok(7));
        assert!(bytes("7GiB").is_err() && bytes("GB").is_err() && bytes("99999999999GB").is_err());
    }

    #[test]
    fn a_set_that_lacks_a_member_is_no_success() {
        let whole = serde_json::json!({ "shards": [{ "set": [1, 2, 3] }] });
        assert!(sets(&whole).is_ok());
        let lacking = serde_json::json!({ "shards": [{ "set": [1, 2, 3] }, { "set": [1, 2] }] });
        assert!(sets(&lacking).is_err() && sets(&serde_json::json!({})).is_err());
    }
}
