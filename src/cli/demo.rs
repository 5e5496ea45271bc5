//! `dunlin demo`: a broker under load, killed in the middle, and a count of what came through.

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
use super::{Global, exit::Failure, output::print, own_broker::OwnBroker, remote};
use crate::client::{AckFuture, Client, Publisher, RetentionChange, TopicRequest};

/// `dunlin demo`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The last line is the verdict; the exit status is 0 only if nothing was lost or doubled."
)]
pub struct Demo {
    /// Nodes of the site (this version runs one)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1))]
    nodes: u32,
    /// Records to publish, over all producers
    #[arg(long, default_value_t = 240_000, value_parser = clap::value_parser!(u64).range(1_000..=5_000_000))]
    records: u64,
}

/// The records take some 100 MB: a small disk of temporary files is enough.
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

/// What is shown while it runs.
#[derive(Debug, Default)]
struct Counters {
    published: AtomicU64,
    acked: AtomicU64,
    failed: AtomicU64,
    read: AtomicU64,
    /// Milliseconds since the start at the newest ack, and the longest time without one.
    last_ack_ms: AtomicU64,
    longest_pause_ms: AtomicU64,
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
        let mut broker = OwnBroker::start(&program, None, BROKER_SETTINGS).await?;
        say(&format!(
            "broker: process {}, a fresh site in {}\n\
             {PRODUCERS} producers and {LINES} readers on {LINES} topics of {PARTITIONS} partitions; \
             every ack means: on disk, flushed\n\n",
            process(&broker),
            broker.data_dir().display()
        ))?;
        let admin = Client::connect(broker.profile()).await?;
        for line in Line::all(LINES) {
            let request = TopicRequest {
                partitions: Some(PARTITIONS),
                retention: RetentionChange::default(),
            };
            admin.topics().create(&line.topic(), request).await?;
        }
        let start = Instant::now();
        let counters = Arc::new(Counters::default());
        let readers = self.start_readers(&broker, &counters).await?;
        let mut producers = JoinSet::new();
        for share in self.shares() {
            let client = Client::connect(broker.profile()).await?;
            let publisher = client.publisher(&line_of(share.producer).topic()).open().await?;
            producers.spawn(produce(publisher, share, start, Arc::clone(&counters)));
        }
        let acked = self.watch(&mut broker, producers, start, &counters).await?;
        let findings = finish(readers, &acked, start, &counters).await?;
        let again = read_again(&broker, &acked).await?;
        verdict(&acked, &findings, &again, &counters)
    }

    async fn start_readers(
        &self,
        broker: &OwnBroker,
        counters: &Arc<Counters>,
    ) -> Result<JoinSet<Result<Reader, Failure>>, Failure> {
        let mut readers = JoinSet::new();
        for line in Line::all(LINES) {
            let expected: u64 =
                self.shares().filter(|s| line_of(s.producer) == line).map(|s| s.records).sum();
            let client = Client::connect(broker.profile()).await?;
            let counters = Arc::clone(counters);
            let mut reader = Reader::open(&client, line, expected).await?;
            readers.spawn(async move {
                reader.read_all(&counters.read).await?;
                Ok(reader)
            });
        }
        Ok(readers)
    }

    /// Prints a line a second, and kills the broker on the way. Returns what each producer got acks for.
    async fn watch(
        &self,
        broker: &mut OwnBroker,
        mut producers: JoinSet<Result<Acked, Failure>>,
        start: Instant,
        counters: &Counters,
    ) -> Result<Vec<Acked>, Failure> {
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks.tick().await;
        say(&format!("{HEADING}\n"))?;
        let mut acked = Vec::new();
        let mut killed = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => say(&counters.line(start))?,
                ended = producers.join_next() => match ended {
                    None => break,
                    Some(Ok(result)) => acked.push(result?),
                    Some(Err(error)) => return Err(Failure::runtime(error)),
                },
            }
            if !killed && counters.acked.load(Relaxed) >= self.records * 2 / 5 {
                killed = true;
                kill_and_restart(broker, start).await?;
            }
        }
        if !killed {
            return Err(Failure::runtime(
                "the producers were done before the broker could be killed",
            ));
        }
        Ok(acked)
    }

    fn shares(&self) -> impl Iterator<Item = Share> + use<> {
        let records = self.records;
        (0..PRODUCERS).map(move |producer| {
            let extra = u64::from(producer < records % PRODUCERS);
            Share { producer, records: records / PRODUCERS + extra }
        })
    }
}

const HEADING: &str = "   time   published       acked        read   not acked  longest pause";

impl Counters {
    fn acked(&self, start: Instant) {
        self.acked.fetch_add(1, Relaxed);
        let now = millis(start.elapsed());
        let before = self.last_ack_ms.swap(now, Relaxed);
        self.longest_pause_ms.fetch_max(now.saturating_sub(before), Relaxed);
    }

    fn line(&self, start: Instant) -> String {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        let (published, acked) = (of(&self.published), of(&self.acked));
        format!(
            "{:5.1} s  {published:10}  {acked:10}  {:10}  {:10}  {:10} ms\n",
            start.elapsed().as_secs_f64(),
            of(&self.read),
            published.saturating_sub(acked),
            of(&self.longest_pause_ms),
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
    start: Instant,
    counters: Arc<Counters>,
) -> Result<Acked, Failure> {
    let sensors = Sensors::new(share.producer, line_of(share.producer));
    let mut waiting = VecDeque::new();
    let mut acked = 0;
    let settle = async |ack: AckFuture| match ack.await {
        Ok(_) => {
            counters.acked(start);
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
        waiting.push_back(publisher.send(sensors.record(n)).await?);
        counters.published.fetch_add(1, Relaxed);
        while waiting.len() > WAITING_MAX || waiting.front_mut().is_some_and(is_settled) {
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

async fn kill_and_restart(broker: &mut OwnBroker, start: Instant) -> Result<(), Failure> {
    let id = process(broker);
    broker.kill().await?;
    say(&format!("{:5.1} s  kill -9 {id}\n", start.elapsed().as_secs_f64()))?;
    let begun = Instant::now();
    broker.restart().await?;
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

/// Reads everything a second time, from the first offset, by fresh readers.
async fn read_again(broker: &OwnBroker, acked: &[Acked]) -> Result<Findings, Failure> {
    let client = Client::connect(broker.profile()).await?;
    let mut findings = Findings::default();
    for line in Line::all(LINES) {
        let expected =
            acked.iter().filter(|a| line_of(a.producer) == line).map(|a| a.published).sum();
        let mut reader = Reader::open(&client, line, expected).await?;
        reader.read_to_the_end().await?;
        findings.add(reader.findings());
    }
    Ok(findings)
}

fn verdict(
    acked: &[Acked],
    live: &Findings,
    again: &Findings,
    counters: &Counters,
) -> Result<(), Failure> {
    let published: u64 = acked.iter().map(|a| a.published).sum();
    let total: u64 = acked.iter().map(|a| a.acked).sum();
    let lost = total.saturating_sub(live.distinct);
    let same = live.digest == again.digest && again.duplicated == 0;
    say(&format!(
        "\nread a second time from the first offset: {}\n\
         order per sensor kept: {}, contents as published: {}\n\
         longest time without an ack: {} ms (the kill, the restart and the recovery are in it)\n",
        if same { "the same records at the same offsets" } else { "NOT the same" },
        yes(live.disordered == 0 && again.disordered == 0),
        yes(live.damaged == 0 && again.damaged == 0),
        counters.longest_pause_ms.load(Relaxed),
    ))?;
    say(&format!(
        "published {published} acked {total} read {} lost {lost} duplicated {}\n",
        live.distinct, live.duplicated
    ))?;
    let good = lost == 0 && total == published && same && live.is_clean() && again.is_clean();
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
