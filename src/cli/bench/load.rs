//! One run of one combination: producers and readers, each with a connection of its own, against a broker that is there.

use std::{
    collections::VecDeque,
    future::{pending, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    payload::{Payloads, time_of},
    plan::{Combination, Load},
    stats::Latencies,
    timer::Timer,
};
use crate::{
    cli::exit::Failure,
    client::{AckFuture, Client, Profile, Publisher, Record, Subscriber, TopicName},
};

/// What one run has shown, over its measured part.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    /// Records whose ack came in that time, and how long those took that were due in it.
    pub(super) acked: u64,
    pub(super) ack: Latencies,
    /// The same for records that readers got, summed over the readers.
    pub(super) delivered: u64,
    pub(super) deliver: Latencies,
}

/// The time of one run, counted from `zero`.
#[derive(Clone, Copy, Debug)]
struct Window {
    zero: Instant,
    start: Duration,
    from: Duration,
    to: Duration,
}

/// What one producer or one reader counts.
struct Tally {
    window: Window,
    all: u64,
    in_window: u64,
    latencies: Latencies,
}

/// Runs it. The topics are there, and nobody else uses them.
pub(super) async fn run(
    profile: &Profile,
    topics: &[TopicName],
    row: Combination,
    load: &Load,
) -> Result<Measured, Failure> {
    let mut subscribers = Vec::new();
    for reader in 0..load.readers {
        let client = Client::connect(profile).await?;
        subscribers.push(client.subscribe(&topics[load.topic_of_reader(reader)]).open().await?);
    }
    let mut publishers = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..load.connections(row) {
        clients.push(Client::connect(profile).await?);
    }
    for producer in 0..row.producers {
        let client = &clients[producer % clients.len()];
        let mut mine = Vec::new();
        for topic in load.topics_of_producer(row, producer) {
            mine.push(open(client, &topics[topic], row, load).await?);
        }
        publishers.push(mine);
    }

    let window = Window::new(load);
    let stop = CancellationToken::new();
    let counts: Vec<_> = subscribers.iter().map(|_| Arc::new(AtomicU64::new(0))).collect();
    let mut readers = JoinSet::new();
    for (subscriber, count) in subscribers.into_iter().zip(&counts) {
        readers.spawn(read(subscriber, window, Arc::clone(count), stop.clone()));
    }
    let mut producers = JoinSet::new();
    for (index, publishers) in publishers.into_iter().enumerate() {
        let producer = Producer {
            index,
            publishers,
            load: load.clone(),
            row,
            tally: Tally::new(window),
            waiting: VecDeque::with_capacity(row.in_flight),
        };
        producers.spawn(producer.run());
    }

    let mut ack = Tally::new(window);
    let mut acked_by_topic = vec![0; topics.len()];
    while let Some(ended) = producers.join_next().await {
        let (tally, by_topic) = ended.map_err(Failure::runtime)??;
        ack.merge(&tally);
        by_topic.into_iter().for_each(|(topic, acked)| acked_by_topic[topic] += acked);
    }
    let wanted: Vec<u64> =
        (0..load.readers).map(|reader| acked_by_topic[load.topic_of_reader(reader)]).collect();
    catch_up(&counts, &wanted).await?;
    stop.cancel();
    let mut deliver = Tally::new(window);
    while let Some(ended) = readers.join_next().await {
        deliver.merge(&ended.map_err(Failure::runtime)??);
    }
    Ok(Measured {
        acked: ack.in_window,
        ack: ack.latencies,
        delivered: deliver.in_window,
        deliver: deliver.latencies,
    })
}

async fn open(
    client: &Client,
    topic: &TopicName,
    row: Combination,
    load: &Load,
) -> Result<Publisher, Failure> {
    let mut builder = client.publisher(topic);
    builder = builder.acks(row.acks).compression(load.compression).deadline(DEADLINE);
    if let Some(bytes) = load.batch_bytes {
        builder = builder.batch_bytes(bytes);
    }
    if let Some(linger) = load.linger {
        builder = builder.linger(linger);
    }
    Ok(builder.open().await?)
}

/// Waits until every reader has what was acked to its producers.
async fn catch_up(counts: &[Arc<AtomicU64>], wanted: &[u64]) -> Result<(), Failure> {
    let deadline = Instant::now() + DEADLINE;
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let read = counts.iter().map(|count| count.load(Ordering::Relaxed));
        let Some((got, want)) = read.zip(wanted.iter().copied()).find(|(got, want)| got < want)
        else {
            return Ok(());
        };
        if Instant::now() >= deadline {
            return Err(Failure::runtime(format!(
                "a reader got {got} of {want} records within {} s after the last ack",
                DEADLINE.as_secs()
            )));
        }
        looks.tick().await;
    }
}

struct Producer {
    index: usize,
    publishers: Vec<Publisher>,
    load: Load,
    row: Combination,
    tally: Tally,
    /// Records without ack, in the order in which they were sent, and when each was due.
    waiting: VecDeque<(Duration, AckFuture)>,
}

/// What keeps a producer from sending.
enum Pause {
    /// As many are in flight as may be.
    Acks,
    /// The next record is due later.
    Until(Duration),
    Over,
}

impl Producer {
    /// Publishes until the time is over and all is acked. Returns what was acked, by topic.
    async fn run(mut self) -> Result<(Tally, Vec<(usize, u64)>), Failure> {
        let seed = u64::try_from(self.index).unwrap_or_default();
        let mut payloads = Payloads::new(self.row.size, seed);
        let mut timer =
            Timer::new().map_err(|error| Failure::runtime(format!("no timer: {error}")))?;
        let mut number = 0;
        loop {
            let window = self.tally.window;
            let pause = self.fill(&mut payloads, &mut number)?;
            if matches!(pause, Pause::Over) && self.waiting.is_empty() {
                break;
            }
            tokio::select! {
                settled = settle(&mut self.waiting, &mut self.tally) => settled?,
                waited = wait(&mut timer, &pause, window) => waited?,
            }
        }
        let topics = self.load.topics_of_producer(self.row, self.index);
        let acked = |place| self.load.count_at(place, self.tally.all, topics.len());
        let by_topic = topics.iter().enumerate().map(|(i, topic)| (*topic, acked(i))).collect();
        for publisher in self.publishers {
            publisher.close().await?;
        }
        Ok((self.tally, by_topic))
    }

    /// Sends what is due as far as there is room.
    fn fill(&mut self, payloads: &mut Payloads, number: &mut u64) -> Result<Pause, Failure> {
        let window = self.tally.window;
        loop {
            if self.waiting.len() >= self.row.in_flight {
                return Ok(Pause::Acks);
            }
            let now = window.now();
            let due = match self.load.due(self.row, self.index, *number) {
                Some(after) => window.start + after,
                None => now.max(window.start),
            };
            if due >= window.to {
                return Ok(Pause::Over);
            }
            if due > now {
                return Ok(Pause::Until(due));
            }
            let publisher = &self.publishers[self.load.place(*number, self.publishers.len())];
            match publisher.try_send(&Record::new(payloads.next(due)))? {
                Some(ack) => self.waiting.push_back((due, ack)),
                None => return Ok(Pause::Acks),
            }
            *number += 1;
        }
    }
}

/// Waits for acks, and takes all that have come.
async fn settle(
    waiting: &mut VecDeque<(Duration, AckFuture)>,
    tally: &mut Tally,
) -> Result<(), Failure> {
    poll_fn(|cx| {
        let mut now = None;
        while let Some((due, ack)) = waiting.front_mut() {
            match Pin::new(ack).poll(cx) {
                Poll::Ready(Ok(_)) => {
                    let now = *now.get_or_insert_with(|| tally.window.now());
                    tally.add(*due, now);
                    waiting.pop_front();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => break,
            }
        }
        if now.is_some() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

async fn wait(timer: &mut Timer, pause: &Pause, window: Window) -> Result<(), Failure> {
    match pause {
        Pause::Until(due) => timer
            .wait(due.saturating_sub(window.now()))
            .await
            .map_err(|error| Failure::runtime(format!("the timer failed: {error}"))),
        Pause::Acks | Pause::Over => pending().await,
    }
}

/// Reads until it is stopped.
async fn read(
    mut subscriber: Subscriber,
    window: Window,
    count: Arc<AtomicU64>,
    stop: CancellationToken,
) -> Result<Tally, Failure> {
    let mut tally = Tally::new(window);
    loop {
        let received = tokio::select! {
            received = subscriber.next() => received,
            () = stop.cancelled() => return Ok(tally),
        };
        let now = window.now();
        let mut next = received;
        while let Some(received) = next {
            let received = received?;
            let due = time_of(&received.record.value)
                .ok_or_else(|| Failure::runtime("a record is not one of this run"))?;
            tally.add(due, now);
            next = subscriber.next_ready();
        }
        count.store(tally.all, Ordering::Relaxed);
    }
}

impl Window {
    fn new(load: &Load) -> Self {
        let start = START_AFTER;
        let from = start + load.warm_up();
        Self { zero: Instant::now(), start, from, to: from + load.lasting }
    }

    fn now(&self) -> Duration {
        self.zero.elapsed()
    }
}

impl Tally {
    fn new(window: Window) -> Self {
        Self { window, all: 0, in_window: 0, latencies: Latencies::new() }
    }

    /// A record that was due at one time came at another.
    fn add(&mut self, due: Duration, now: Duration) {
        self.all += 1;
        let Window { from, to, .. } = self.window;
        self.in_window += u64::from((from..to).contains(&now));
        if due >= from {
            self.latencies.add(now.saturating_sub(due));
        }
    }

    fn merge(&mut self, other: &Self) {
        self.all += other.all;
        self.in_window += other.in_window;
        self.latencies.merge(&other.latencies);
    }
}

/// All tasks are there when the first record is due.
const START_AFTER: Duration = Duration::from_millis(20);
/// A record that takes longer ends the run.
const DEADLINE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_counts_for_nothing_and_a_late_ack_for_its_latency() {
        let secs = Duration::from_secs;
        let window = Window { zero: Instant::now(), start: secs(0), from: secs(1), to: secs(3) };
        let mut tally = Tally::new(window);
        tally.add(secs(0), Duration::from_millis(500));
        assert_eq!((tally.in_window, tally.latencies.percentiles()), (0, None));
        tally.add(Duration::from_millis(900), Duration::from_millis(1_100));
        assert_eq!((tally.in_window, tally.latencies.percentiles()), (1, None));
        tally.add(secs(2), secs(7));
        assert_eq!((tally.in_window, tally.all), (1, 3));
        assert!(tally.latencies.percentiles().expect("counted").max_us > 4.9e6);
    }
}
