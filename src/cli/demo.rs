//! `dunlin demo`: a broker of its own, producers, readers, a kill in the middle, and a verdict.

use std::{
    collections::VecDeque,
    env,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

mod sensor;
mod tally;

use self::{
    sensor::{Inspector, Line},
    tally::{Display, Seen, Tally, sums},
};
use super::{Global, exit::Failure, output::print, own_broker::OwnBroker, remote::block_on};
use crate::{
    client::{AckFuture, Client, Event, Profile, Subscriber},
    types::{Position, TopicName},
    wire::TopicRequest,
};

/// `dunlin demo`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Starts a broker in a temporary directory with fresh certificates, lets producers publish readings of \
sensors to several topics and readers read them, kills the broker with SIGKILL in the middle, and starts \
it again. Every reading is checked: content, order within its key, and that it was read once. The last \
line is the verdict, and so is the exit status. Nothing is left behind.")]
pub struct Demo {
    /// Nodes of the site
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1))]
    nodes: u32,
    /// Records, all producers together
    #[arg(long, value_name = "N", default_value_t = 240_000,
        value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    records: u32,
    /// Seconds over which they are published
    #[arg(long, value_name = "N", default_value_t = 12,
        value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
}

type Tallies = Vec<Arc<Tally>>;

impl Demo {
    pub(super) fn run(self, _global: &Global) -> Result<(), Failure> {
        block_on(async {
            let program = own_program()?;
            let broker = OwnBroker::start(&program, None, "").await?;
            let mut show = Show::prepare(broker, &self).await?;
            show.play().await?;
            let verdict = show.judge().await?;
            print(format!("{}\n", verdict.in_words()).as_bytes())?;
            if verdict.is_good() {
                return Ok(());
            }
            Err(Failure::runtime("the broker broke its promise"))
        })
    }
}

/// The program that this is.
pub(super) fn own_program() -> Result<PathBuf, Failure> {
    env::current_exe().map_err(|error| Failure::runtime(format!("cannot find myself: {error}")))
}

/// All that takes part.
struct Show {
    broker: OwnBroker,
    begun: Instant,
    tallies: Tallies,
    topics: Vec<TopicName>,
    producers: JoinSet<Result<(), Failure>>,
    readers: JoinSet<Result<(), Failure>>,
    wrong: Arc<Wrong>,
    display: Display,
    records: u64,
    news: String,
}

/// What readers found wrong with records.
#[derive(Debug, Default)]
struct Wrong {
    damaged: AtomicU64,
    out_of_order: AtomicU64,
}

#[derive(Clone, Copy)]
struct Verdict {
    published: u64,
    acked: u64,
    read: u64,
    lost: u64,
    duplicated: u64,
    damaged: u64,
    out_of_order: u64,
}

impl Show {
    async fn prepare(broker: OwnBroker, demo: &Demo) -> Result<Self, Failure> {
        let profile = broker.profile().clone();
        let client = Client::connect(&profile).await?;
        let (mut tallies, mut topics) = (Tallies::new(), Vec::new());
        let (mut producers, mut readers) = (JoinSet::new(), JoinSet::new());
        let wrong = Arc::new(Wrong::default());
        let lines = PLANTS.len() * LINES_PER_PLANT;
        let mut line = 0;
        for plant in PLANTS {
            let topic: TopicName = format!("plant/{plant}").parse().map_err(Failure::runtime)?;
            let settings = TopicRequest { partitions: Some(PARTITIONS), ..TopicRequest::default() };
            client.topics().create(&topic, settings).await?;
            let tally = Arc::new(Tally::new(topic.to_string()));
            for parts in [0..PARTITIONS / 2, PARTITIONS / 2..PARTITIONS] {
                let from = Client::connect(&profile).await?.subscribe(&topic);
                let reader = from.from(Position::Earliest).partitions(parts).open().await?;
                readers.spawn(read(reader, Arc::clone(&tally), Arc::clone(&wrong)));
            }
            for _ in 0..LINES_PER_PLANT {
                let share = share(demo.records, lines, line);
                let pace = Duration::from_secs(demo.seconds.into()) / share.max(1);
                let producer = u32::try_from(line).unwrap_or(u32::MAX);
                let work = Producer { sensors: Line::new(plant, producer), share, pace };
                producers.spawn(work.run(profile.clone(), topic.clone(), Arc::clone(&tally)));
                line += 1;
            }
            tallies.push(tally);
            topics.push(topic);
        }
        Ok(Self {
            broker,
            begun: Instant::now(),
            tallies,
            topics,
            producers,
            readers,
            wrong,
            display: Display::new(),
            records: demo.records.into(),
            news: "broker serves".into(),
        })
    }

    /// Lets them work, and kills the broker when half is acked.
    async fn play(&mut self) -> Result<(), Failure> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut killed = false;
        let mut still_since = Instant::now();
        let mut last = [0; 3];
        loop {
            ticks.tick().await;
            let counts = sums(&self.tallies);
            if counts != last {
                (last, still_since) = (counts, Instant::now());
            }
            self.display.draw(&self.tallies, &self.news, self.begun.elapsed());
            if !killed && counts[1] >= self.records / 2 {
                killed = true;
                self.kill_and_restart().await?;
                still_since = Instant::now();
            }
            while let Some(ended) = self.producers.try_join_next() {
                ended.map_err(Failure::runtime)??;
            }
            while let Some(ended) = self.readers.try_join_next() {
                ended.map_err(Failure::runtime)??;
            }
            let all_read = self.producers.is_empty() && counts[2] >= counts[0];
            if all_read || still_since.elapsed() > STILL_MAX {
                return Ok(());
            }
        }
    }

    async fn kill_and_restart(&mut self) -> Result<(), Failure> {
        let at = self.begun.elapsed().as_secs_f64();
        self.broker.kill().await?;
        self.news = format!("broker killed (SIGKILL) at {at:.1} s");
        self.display.draw_now(&self.tallies, &self.news, self.begun.elapsed());
        let down = Instant::now();
        self.broker.restart().await?;
        let down = down.elapsed().as_millis();
        self.news.push_str(&format!(", serves again after {down} ms"));
        Ok(())
    }

    /// Reads all logs once more, by readers that were not there before, and compares.
    async fn judge(mut self) -> Result<Verdict, Failure> {
        self.news.push_str(", the log is read once more");
        self.display.draw_now(&self.tallies, &self.news, self.begun.elapsed());
        self.producers.shutdown().await;
        self.readers.shutdown().await;
        let [published, acked, read] = sums(&self.tallies);
        let (mut stored, mut stored_again) = (0, 0);
        let client = Client::connect(self.broker.profile()).await?;
        for topic in &self.topics {
            let reader = client.subscribe(topic).from(Position::Earliest).open().await?;
            let audit = timeout(AUDIT_MAX, audit(reader, &self.wrong)).await;
            let seen = audit.map_err(|_| Failure::runtime("the log cannot be read to its end"))??;
            stored += seen.once;
            stored_again += seen.again;
        }
        client.close().await;
        self.broker.stop().await?;
        let read_again: u64 = self.tallies.iter().map(|tally| tally.seen().1).sum();
        Ok(Verdict {
            published,
            acked,
            read,
            // What was acked must be in the log, and must have come to the readers.
            lost: acked.saturating_sub(stored.min(read)),
            duplicated: stored_again.max(read_again),
            damaged: self.wrong.damaged.load(Ordering::Relaxed),
            out_of_order: self.wrong.out_of_order.load(Ordering::Relaxed),
        })
    }
}

impl Verdict {
    fn is_good(&self) -> bool {
        let wrong = self.lost + self.duplicated + self.damaged + self.out_of_order;
        wrong == 0 && self.published == self.acked && self.acked == self.read
    }

    fn in_words(&self) -> String {
        let mut text = String::new();
        if self.damaged + self.out_of_order > 0 {
            let (damaged, out_of_order) = (self.damaged, self.out_of_order);
            text.push_str(&format!("damaged {damaged} out of order {out_of_order}\n"));
        }
        let Self { published, acked, read, lost, duplicated, .. } = self;
        text.push_str(&format!(
            "published {published} acked {acked} read {read} lost {lost} duplicated {duplicated}"
        ));
        text
    }
}

struct Producer {
    sensors: Line,
    share: u32,
    pace: Duration,
}

impl Producer {
    async fn run(
        mut self,
        profile: Profile,
        topic: TopicName,
        tally: Arc<Tally>,
    ) -> Result<(), Failure> {
        let client = Client::connect(&profile).await?;
        let publisher = client.publisher(&topic).open().await?;
        let begun = Instant::now();
        let mut waiting: VecDeque<AckFuture> = VecDeque::new();
        for number in 0..self.share {
            let due = begun + self.pace * number;
            // Timers tick in milliseconds: several readings share a tick.
            if due > Instant::now() {
                sleep_until(due).await;
            }
            let record = self.sensors.read(rand::random_range(-1.0..1.0));
            waiting.push_back(publisher.send(record).await?);
            tally.published.fetch_add(1, Ordering::Relaxed);
            while let Some(outcome) = waiting.front().and_then(AckFuture::try_get) {
                waiting.pop_front();
                outcome?;
                tally.acked.fetch_add(1, Ordering::Relaxed);
            }
        }
        for ack in waiting {
            ack.await?;
            tally.acked.fetch_add(1, Ordering::Relaxed);
        }
        publisher.close().await?;
        client.close().await;
        Ok(())
    }
}

/// Reads for as long as it is let, through whatever happens to the broker.
async fn read(
    mut reader: Subscriber,
    tally: Arc<Tally>,
    wrong: Arc<Wrong>,
) -> Result<(), Failure> {
    let mut inspector = Inspector::default();
    while let Some(received) = reader.next().await {
        let first = inspector.inspect(&received?.record);
        let mut readings: Vec<_> = first.into_iter().collect();
        while let Some(received) = reader.next_ready() {
            readings.extend(inspector.inspect(&received?.record));
        }
        tally.saw(readings);
        wrong.add(&mut inspector);
    }
    Ok(())
}

async fn audit(mut reader: Subscriber, wrong: &Wrong) -> Result<Seen, Failure> {
    let (mut inspector, mut seen) = (Inspector::default(), Seen::default());
    while let Some(event) = reader.next_event().await {
        match event? {
            Event::Record(received) => {
                inspector.inspect(&received.record).into_iter().for_each(|r| seen.add(r));
            }
            Event::CaughtUp => break,
        }
    }
    wrong.add(&mut inspector);
    Ok(seen)
}

impl Wrong {
    fn add(&self, inspector: &mut Inspector) {
        let (damaged, out_of_order) = (&mut inspector.damaged, &mut inspector.out_of_order);
        self.damaged.fetch_add(std::mem::take(damaged), Ordering::Relaxed);
        self.out_of_order.fetch_add(std::mem::take(out_of_order), Ordering::Relaxed);
    }
}

/// So many of `records` fall to the line at this place: the first ones take what does not divide.
fn share(records: u32, lines: usize, line: usize) -> u32 {
    let lines = u32::try_from(lines).unwrap_or(1).max(1);
    let extra = (line as u64) < u64::from(records % lines);
    records / lines + u32::from(extra)
}

const PLANTS: [&str; 3] = ["north", "south", "harbour"];
const LINES_PER_PLANT: usize = 2;
const PARTITIONS: u32 = 4;
const TICK: Duration = Duration::from_millis(50);
/// Nothing moves for so long: what is missing will not come.
const STILL_MAX: Duration = Duration::from_secs(8);
const AUDIT_MAX: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for records in [1_000, 1_001, 240_000] {
            let sum: u32 = (0..6).map(|line| share(records, 6, line)).sum();
            assert_eq!(sum, records);
        }
    }

    #[test]
    fn the_verdict_is_good_only_if_all_is() {
        let good = Verdict {
            published: 5,
            acked: 5,
            read: 5,
            lost: 0,
            duplicated: 0,
            damaged: 0,
            out_of_order: 0,
        };
        assert!(good.is_good());
        assert_eq!(good.in_words(), "published 5 acked 5 read 5 lost 0 duplicated 0");
        assert!(!Verdict { read: 4, ..good }.is_good());
        assert!(!Verdict { out_of_order: 1, ..good }.is_good());
    }
}
