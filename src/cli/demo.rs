//! `dunlin demo`: a site under load, the node that leads killed in the middle, and a count of what came through.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Waker},
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

mod reader;
mod sensors;

use self::{
    reader::{Findings, Reader},
    sensors::{Line, Sensors},
};
use super::{
    Global, exit::Failure, output::print, own_broker::OwnBroker, own_site::OwnSite, remote,
};
use crate::{
    client::{AckFuture, Client, Publisher, RetentionChange, TopicRequest},
    wire::ClusterNode,
};

/// `dunlin demo`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The last line is the verdict; the exit status is 0 only if nothing was lost or doubled."
)]
pub struct Demo {
    /// Nodes of the site; with one it is killed and started again
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=5))]
    nodes: u16,
    /// Records to publish, over all producers
    #[arg(long, default_value_t = 240_000, value_parser = clap::value_parser!(u64).range(1_000..=5_000_000))]
    records: u64,
}

/// The records take some 100 MB on each node: a small disk of temporary files is enough.
const BROKER_SETTINGS: &str = "[storage]\nlow_space = '64MiB'\nballast = '16MiB'\n";
const LINES: u64 = 3;
const PRODUCERS_PER_LINE: u64 = 2;
const PRODUCERS: u64 = LINES * PRODUCERS_PER_LINE;
const PARTITIONS: u32 = 4;
/// How long the producers take, so that there is something to see and a middle to kill in.
const PACE: Duration = Duration::from_secs(12);
const TICK: Duration = Duration::from_millis(10);
/// Acks that one producer waits for.
const WAITING_MAX: usize = 4_096;
/// How long readers may take after the last ack.
const READ_MAX: Duration = Duration::from_secs(10);
/// How long the others go on without the node that was killed.
const AWAY: Duration = Duration::from_secs(3);
/// Between looks whether a node shows all by now.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What is shown while it runs.
#[derive(Debug, Default)]
struct Counters {
    published: AtomicU64,
    acked: AtomicU64,
    failed: AtomicU64,
    read: AtomicU64,
    /// Longest time in milliseconds that a record waited for its ack.
    longest_wait_ms: AtomicU64,
}

/// One producer's part.
#[derive(Clone, Copy, Debug)]
struct Share {
    producer: u64,
    records: u64,
}

impl Demo {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        if global.json {
            return Err(Failure::usage("demo is for people: it has no --json"));
        }
        remote::block_on(async {
            tokio::select! {
                result = self.show() => result,
                // The broker and its directory go with what is dropped here.
                () = remote::interrupted() => Err(Failure::runtime("interrupted")),
            }
        })
    }

    async fn show(self) -> Result<(), Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::runtime(format!("cannot find this program: {error}")))?;
        let count = usize::from(self.nodes);
        let mut site = OwnSite::of(&program, BROKER_SETTINGS, count).await?;
        say(&introduction(&site))?;
        let admin = Client::connect(&site.profile()).await?;
        for line in Line::all(LINES) {
            let request = TopicRequest {
                partitions: Some(PARTITIONS),
                retention: RetentionChange::default(),
            };
            admin.topics().create(&line.topic(), request).await?;
        }
        let start = Instant::now();
        let counters = Arc::new(Counters::default());
        let readers = self.start_readers(&site, &counters).await?;
        let mut producers = JoinSet::new();
        for share in self.shares() {
            let client = Client::connect(&site.profile()).await?;
            let publisher = client.publisher(&line_of(share.producer).topic()).open().await?;
            producers.spawn(produce(publisher, share, Arc::clone(&counters)));
        }
        let acked = self.watch(&mut site, producers, start, &counters).await?;
        let live = finish(readers, &acked, start, &counters).await?;
        let waiting = Instant::now();
        site.in_step().await?;
        if count > 1 {
            let ms = millis(waiting.elapsed());
            say(&format!("all nodes hold everything again, {ms} ms after the last record\n"))?;
        }
        let again = read_from_each(&site, &acked, &live).await?;
        verdict(&acked, &live, &again, &counters)
    }

    async fn start_readers(
        &self,
        site: &OwnSite,
        counters: &Arc<Counters>,
    ) -> Result<JoinSet<Result<Reader, Failure>>, Failure> {
        let mut readers = JoinSet::new();
        for line in Line::all(LINES) {
            let expected: u64 =
                self.shares().filter(|s| line_of(s.producer) == line).map(|s| s.records).sum();
            let client = Client::connect(&site.profile()).await?;
            let counters = Arc::clone(counters);
            let mut reader = Reader::open(&client, line, expected).await?;
            readers.spawn(async move {
                reader.read_all(&counters.read).await?;
                Ok(reader)
            });
        }
        Ok(readers)
    }

    /// Prints a line a second, kills the node that leads on the way, and starts it again. Returns what each producer got
    /// acks for.
    async fn watch(
        &self,
        site: &mut OwnSite,
        mut producers: JoinSet<Result<Acked, Failure>>,
        start: Instant,
        counters: &Counters,
    ) -> Result<Vec<Acked>, Failure> {
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks.tick().await;
        say(&format!("{HEADING}\n"))?;
        let mut acked = Vec::new();
        let mut killed: Option<(usize, Instant)> = None;
        let mut restarted = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => say(&counters.line(start))?,
                ended = producers.join_next() => match ended {
                    None => break,
                    Some(Ok(result)) => acked.push(result?),
                    Some(Err(error)) => return Err(Failure::runtime(error)),
                },
            }
            match killed {
                None if counters.acked.load(Relaxed) >= self.records * 2 / 5 => {
                    let place = leader_of(site).await?;
                    kill(site, place, start).await?;
                    if self.nodes == 1 {
                        restart(site, place, start).await?;
                        restarted = true;
                    }
                    killed = Some((place, Instant::now()));
                }
                Some((place, at)) if !restarted && at.elapsed() >= AWAY => {
                    restart(site, place, start).await?;
                    restarted = true;
                }
                _ => {}
            }
        }
        match killed {
            None => Err(Failure::runtime("the producers were done before a node could be killed")),
            Some((place, _)) if !restarted => restart(site, place, start).await.map(|()| acked),
            Some(_) => Ok(acked),
        }
    }

    fn shares(&self) -> impl Iterator<Item = Share> + use<> {
        let records = self.records;
        (0..PRODUCERS).map(move |producer| {
            let extra = u64::from(producer < records % PRODUCERS);
            Share { producer, records: records / PRODUCERS + extra }
        })
    }
}

fn introduction(site: &OwnSite) -> String {
    let processes: Vec<String> = site.nodes().iter().map(process).collect();
    let (nodes, stored) = match site.nodes().len() {
        1 => ("one node".to_owned(), "on its disk"),
        2 => ("2 nodes".to_owned(), "on the disks of both"),
        n => (format!("{n} nodes"), "on the disks of three, or of those that are up"),
    };
    format!(
        "a fresh site of {nodes} in {}: process {}\n\
         {PRODUCERS} producers and {LINES} readers on {LINES} topics of {PARTITIONS} partitions; \
         an ack means: flushed {stored}\n\n",
        site.dir().display(),
        processes.join(", "),
    )
}

const HEADING: &str =
    "   time   published       acked        read   not acked   longest wait for an ack";

impl Counters {
    fn acked(&self, sent: Instant) {
        self.acked.fetch_add(1, Relaxed);
        self.longest_wait_ms.fetch_max(millis(sent.elapsed()), Relaxed);
    }

    fn line(&self, start: Instant) -> String {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        let (published, acked) = (of(&self.published), of(&self.acked));
        format!(
            "{:5.1} s  {published:10}  {acked:10}  {:10}  {:10}  {:21} ms\n",
            start.elapsed().as_secs_f64(),
            of(&self.read),
            published.saturating_sub(acked),
            of(&self.longest_wait_ms),
        )
    }
}

/// What one producer got acks for.
#[derive(Clone, Copy, Debug)]
struct Acked {
    producer: u64,
    published: u64,
    acked: u64,
}

async fn produce(
    publisher: Publisher,
    share: Share,
    counters: Arc<Counters>,
) -> Result<Acked, Failure> {
    let sensors = Sensors::new(share.producer, line_of(share.producer));
    let mut waiting = VecDeque::new();
    let mut acked = 0;
    let settle = async |(sent, ack): (Instant, AckFuture)| match ack.await {
        Ok(_) => {
            counters.acked(sent);
            1
        }
        Err(error) => {
            if counters.failed.fetch_add(1, Relaxed) == 0 {
                tracing::debug!(%error, "a record got no ack");
                let _ = say(&format!("         a record got no ack: {error}\n"));
            }
            0
        }
    };
    let ticks_all = PACE.as_millis() / TICK.as_millis();
    let per_tick = share.records.div_ceil(u64::try_from(ticks_all).unwrap_or(1));
    let mut ticks = interval(TICK);
    for n in 0..share.records {
        if n % per_tick == 0 {
            ticks.tick().await;
        }
        let sent = Instant::now();
        waiting.push_back((sent, publisher.send(sensors.record(n)).await?));
        counters.published.fetch_add(1, Relaxed);
        while waiting.len() > WAITING_MAX
            || waiting.front_mut().is_some_and(|(_, ack)| is_settled(ack))
        {
            let Some(ack) = waiting.pop_front() else { break };
            acked += settle(ack).await;
        }
    }
    for ack in waiting {
        acked += settle(ack).await;
    }
    Ok(Acked { producer: share.producer, published: share.records, acked })
}

/// Whether the ack is there already.
fn is_settled(ack: &mut AckFuture) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    Pin::new(ack).poll(&mut context).is_ready()
}

/// The node that leads the most shards, as another one sees it.
async fn leader_of(site: &OwnSite) -> Result<usize, Failure> {
    let status = site.status(site.nodes().len() - 1).await?;
    let leads = |node: &&ClusterNode| {
        status.shards.iter().filter(|shard| shard.primary == Some(node.id)).count()
    };
    let leader = status.nodes.iter().max_by_key(leads).and_then(|node| site.place_of(&node.name));
    leader.ok_or_else(|| Failure::runtime("no node leads"))
}

async fn kill(site: &mut OwnSite, place: usize, start: Instant) -> Result<(), Failure> {
    let id = process(&site.nodes()[place]);
    site.node_mut(place).kill().await?;
    let which = match site.nodes().len() {
        1 => String::new(),
        _ => format!(", node-{}, which leads", place + 1),
    };
    say(&format!("{:5.1} s  kill -9 {id}{which}\n", start.elapsed().as_secs_f64()))
}

async fn restart(site: &mut OwnSite, place: usize, start: Instant) -> Result<(), Failure> {
    let begun = Instant::now();
    site.node_mut(place).restart().await?;
    say(&format!(
        "{:5.1} s  started again on the same data, serving after {} ms\n",
        start.elapsed().as_secs_f64(),
        millis(begun.elapsed())
    ))
}

/// Waits for the readers to have read what was acked.
async fn finish(
    mut readers: JoinSet<Result<Reader, Failure>>,
    acked: &[Acked],
    start: Instant,
    counters: &Counters,
) -> Result<Findings, Failure> {
    let mut findings = Findings::default();
    let all = async {
        while let Some(reader) = readers.join_next().await {
            findings.add(reader.map_err(Failure::runtime)??.findings());
        }
        Ok::<_, Failure>(())
    };
    match timeout(READ_MAX, all).await {
        Ok(result) => result?,
        Err(_) => {
            let total: u64 = acked.iter().map(|a| a.acked).sum();
            let read = counters.read.load(Relaxed);
            say(&format!("readers did not end: {read} of {total} acked records came\n"))?;
            return Err(Failure::runtime(format!(
                "published {} acked {total} read {read} lost {} duplicated unknown",
                counters.published.load(Relaxed),
                total.saturating_sub(read)
            )));
        }
    }
    say(&counters.line(start))?;
    Ok(findings)
}

/// Reads everything a second time, from the first offset, from each node alone.
async fn read_from_each(
    site: &OwnSite,
    acked: &[Acked],
    live: &Findings,
) -> Result<Vec<Findings>, Failure> {
    let mut all = Vec::new();
    for node in site.nodes() {
        let client = Client::connect(node.profile()).await?;
        let deadline = Instant::now() + READ_MAX;
        let mut looks = interval(AGAIN_AFTER);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let findings = loop {
            looks.tick().await;
            let findings = read_again(&client, acked).await?;
            // A node shows what it knows to be committed: of the newest it hears a moment later.
            if findings.distinct >= live.distinct || Instant::now() > deadline {
                break findings;
            }
        };
        client.close().await;
        all.push(findings);
    }
    Ok(all)
}

async fn read_again(client: &Client, acked: &[Acked]) -> Result<Findings, Failure> {
    let mut findings = Findings::default();
    for line in Line::all(LINES) {
        let expected =
            acked.iter().filter(|a| line_of(a.producer) == line).map(|a| a.published).sum();
        let mut reader = Reader::open(client, line, expected).await?;
        reader.read_to_the_end().await?;
        findings.add(reader.findings());
    }
    Ok(findings)
}

fn verdict(
    acked: &[Acked],
    live: &Findings,
    again: &[Findings],
    counters: &Counters,
) -> Result<(), Failure> {
    let published: u64 = acked.iter().map(|a| a.published).sum();
    let total: u64 = acked.iter().map(|a| a.acked).sum();
    let lost = total.saturating_sub(live.distinct);
    let same = again.iter().all(|again| live.digest == again.digest && again.duplicated == 0);
    let clean = |of: &dyn Fn(&Findings) -> u64| of(live) == 0 && again.iter().all(|a| of(a) == 0);
    let (whence, what) = match again.len() {
        1 => ("", "the kill, the restart and the recovery are in it"),
        _ => (", from each node", "the kill and the election of another leader are in it"),
    };
    say(&format!(
        "\nread a second time from the first offset{whence}: {}\n\
         order per sensor kept: {}, contents as published: {}\n\
         longest wait of a record for its ack: {} ms ({what})\n",
        if same { "the same records at the same offsets" } else { "NOT the same" },
        yes(clean(&|f| f.disordered)),
        yes(clean(&|f| f.damaged)),
        counters.longest_wait_ms.load(Relaxed),
    ))?;
    say(&format!(
        "published {published} acked {total} read {} lost {lost} duplicated {}\n",
        live.distinct, live.duplicated
    ))?;
    let clean = live.is_clean() && again.iter().all(Findings::is_clean);
    let good = lost == 0 && total == published && same && clean;
    if good { Ok(()) } else { Err(Failure::runtime("records did not come through as they should")) }
}

fn process(broker: &OwnBroker) -> String {
    broker.process_id().map_or_else(|| "gone".to_owned(), |id| id.to_string())
}

fn line_of(producer: u64) -> Line {
    Line(producer % LINES + 1)
}

fn yes(good: bool) -> &'static str {
    if good { "yes" } else { "NO" }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn say(text: &str) -> Result<(), Failure> {
    print(text.as_bytes())
}
