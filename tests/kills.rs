//! A broker under continuous load, killed again and again; a checker judges what everybody saw.
//!
//! `DUNLIN_KILLS` sets how often it is killed (default 6), `DUNLIN_SEED` repeats the moments of a run.

mod checker;

use std::{
    collections::VecDeque,
    env,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use dunlin::{
    cli::own_broker::OwnBroker,
    client::{
        AckFuture, Acks, Client, Delivery, Event, Position, PublishError, Publisher,
        PublisherBuilder, ReceivedRecord, Record, TopicName, TopicRequest,
    },
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use self::checker::{History, Operation, Outcome, Place, Seen, Session, Value, check};

const SETTINGS: &str = "[storage]\nlow_space = '64MiB'\nballast = '16MiB'\n";
const TOPICS: [(&str, u32); 3] = [("kills/one", 1), ("kills/two", 2), ("kills/four", 4)];
/// Of each producer: its topic and how many records may wait for acks.
const PRODUCERS: [(usize, usize); 4] = [(0, 400), (2, 400), (1, 400), (0, 1)];
const ALONE: usize = 3;
const KEYS: u64 = 11;
const TICK: Duration = Duration::from_millis(2);
const RECORDS_PER_TICK: u64 = 4;
const PATIENCE: Duration = Duration::from_secs(60);

/// What everybody in a run shares.
#[derive(Debug, Default)]
struct Run {
    /// Counts invocations and outcomes: their order.
    events: AtomicU64,
    under_way: AtomicU64,
    acks: [AtomicU64; PRODUCERS.len()],
    stop: AtomicBool,
    sessions: [Mutex<Vec<Seen>>; TOPICS.len()],
}

impl Run {
    fn acks(&self) -> [u64; PRODUCERS.len()] {
        self.acks.each_ref().map(|acks| acks.load(SeqCst))
    }

    /// Waits until every producer has got further acks, for at least this long since the first of them. Returns their count.
    async fn progress(&self, least: Duration) -> u64 {
        let before = self.acks();
        let mut first = None;
        until("further acks of every producer", || {
            let now = self.acks();
            if now != before {
                first.get_or_insert_with(Instant::now);
            }
            first.is_some_and(|first| first.elapsed() >= least)
                && before.iter().zip(now).all(|(before, now)| *before < now)
        })
        .await;
        self.acks().iter().sum::<u64>() - before.iter().sum::<u64>()
    }
}

/// Looks until it is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let looks = async {
        let mut looks = interval(Duration::from_millis(2));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !is_so() {
            looks.tick().await;
        }
    };
    assert!(timeout(PATIENCE, looks).await.is_ok(), "no {what} within {PATIENCE:?}");
}

/// Publishes to one topic and writes down what happens.
struct Producer {
    number: usize,
    publisher: Publisher,
    run: Arc<Run>,
    waiting: VecDeque<(usize, AckFuture)>,
    operations: Vec<Operation>,
}

impl Producer {
    async fn open(number: usize, broker: &OwnBroker, run: &Arc<Run>) -> Self {
        let client = Client::connect(broker.profile()).await.unwrap();
        let publisher = options(number, client.publisher(&topic(PRODUCERS[number].0)));
        Self {
            number,
            publisher: publisher.open().await.unwrap(),
            run: Arc::clone(run),
            waiting: VecDeque::new(),
            operations: Vec::new(),
        }
    }

    async fn work(mut self) -> Vec<Operation> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while !self.run.stop.load(SeqCst) {
            ticks.tick().await;
            for _ in 0..RECORDS_PER_TICK {
                self.send().await;
                while self.waiting.len() >= PRODUCERS[self.number].1 {
                    self.settle_oldest().await;
                }
            }
            while self.waiting.front().is_some_and(|(_, ack)| ack.try_get().is_some()) {
                self.settle_oldest().await;
            }
        }
        while !self.waiting.is_empty() {
            self.settle_oldest().await;
        }
        // Records that expired are an error here, and in the history already.
        let _ = self.publisher.close().await;
        self.operations
    }

    async fn send(&mut self) {
        let value = Value { producer: self.number, n: self.operations.len() as u64 };
        let operation = Operation {
            value,
            topic: PRODUCERS[self.number].0,
            key: value.n % KEYS,
            invoked: self.run.events.fetch_add(1, SeqCst),
            settled: u64::MAX,
            outcome: Outcome::Unknown,
        };
        self.run.under_way.fetch_add(1, SeqCst);
        self.operations.push(operation);
        let at = self.operations.len() - 1;
        match self.publisher.send(record_of(value)).await {
            Ok(ack) => self.waiting.push_back((at, ack)),
            Err(error) => self.settled(at, Err(error)),
        }
    }

    async fn settle_oldest(&mut self) {
        let Some((at, ack)) = self.waiting.pop_front() else { return };
        let outcome = ack.await;
        self.settled(at, outcome);
    }

    fn settled(&mut self, at: usize, outcome: Result<Delivery, PublishError>) {
        let operation = &mut self.operations[at];
        operation.settled = self.run.events.fetch_add(1, SeqCst);
        operation.outcome = match outcome {
            Ok(Delivery { partition, offset, .. }) => {
                self.run.acks[self.number].fetch_add(1, SeqCst);
                Outcome::Ok(Place { topic: operation.topic, partition, offset: offset.0 })
            }
            Err(PublishError::Unknown { .. }) => Outcome::Unknown,
            Err(_) => Outcome::Failed,
        };
        self.run.under_way.fetch_sub(1, SeqCst);
    }
}

/// Small batches, so that several are under way. The one that publishes one at a time is impatient, too: it gives up on
/// records while the broker is away, and the history gets some whose fate is unknown.
fn options(producer: usize, builder: PublisherBuilder) -> PublisherBuilder {
    match producer {
        0 | 1 => builder.acks(Acks::Replicated).batch_bytes(1_000),
        2 => builder.acks(Acks::Local).batch_bytes(1_000),
        _ => builder.deadline(Duration::from_millis(150)),
    }
}

fn topic(number: usize) -> TopicName {
    TOPICS[number].0.parse().unwrap()
}

fn record_of(value: Value) -> Record {
    let Value { producer, n } = value;
    let filling = "x".repeat(usize::try_from(n % 97).unwrap());
    Record::new(format!("{producer} {n} {filling}")).with_key(format!("{producer}/{}", n % KEYS))
}

/// What was read. What nobody published like this gets the number of a producer that does not exist.
fn seen(topic: usize, received: &ReceivedRecord) -> Seen {
    let place = Place { topic, partition: received.partition, offset: received.offset.0 };
    let parsed = str::from_utf8(&received.record.value).ok().and_then(|text| {
        let mut words = text.split(' ');
        let producer = words.next()?.parse().ok()?;
        Some(Value { producer, n: words.next()?.parse().ok()? })
    });
    let unchanged = parsed.filter(|value| {
        let sent = record_of(*value);
        (&sent.key, &sent.value) == (&received.record.key, &received.record.value)
    });
    let value = unchanged.unwrap_or(Value { producer: usize::MAX, n: place.offset });
    Seen { place, value }
}

async fn read_live(client: Client, topic_number: usize, run: Arc<Run>) {
    let builder = client.subscribe(&topic(topic_number)).from(Position::Earliest);
    let mut subscriber = builder.open().await.unwrap();
    while let Some(received) = subscriber.next().await {
        let seen = seen(topic_number, &received.unwrap());
        run.sessions[topic_number].lock().unwrap().push(seen);
    }
}

async fn read_all(client: &Client, topic_number: usize) -> Session {
    let builder = client.subscribe(&topic(topic_number)).from(Position::Earliest);
    let mut subscriber = builder.open().await.unwrap();
    let mut session = Session { topic: topic_number, seen: Vec::new() };
    while let Event::Record(received) = subscriber.next_event().await.unwrap().unwrap() {
        session.seen.push(seen(topic_number, &received));
    }
    session
}

/// What the kills met.
#[derive(Debug, Default)]
struct Kills {
    rounds: u64,
    in_recovery: u64,
    fewest_acks_before: Option<u64>,
    under_way: u64,
}

async fn kill_often(broker: &mut OwnBroker, run: &Run, rounds: u64, rng: &mut StdRng) -> Kills {
    let mut kills = Kills::default();
    for _ in 0..rounds {
        let acks = run.progress(Duration::from_millis(rng.random_range(100..500))).await;
        kills.fewest_acks_before =
            Some(kills.fewest_acks_before.map_or(acks, |least| least.min(acks)));
        kills.under_way += run.under_way.load(SeqCst);
        broker.kill().await.unwrap();
        kills.rounds += 1;
        while rng.random_range(0..3) == 0 {
            let soon = Duration::from_millis(rng.random_range(1..120));
            if let Ok(started) = timeout(soon, broker.restart()).await {
                started.unwrap();
            }
            broker.kill().await.unwrap();
            kills.in_recovery += 1;
        }
        broker.restart().await.unwrap();
    }
    run.progress(Duration::ZERO).await;
    kills
}

fn number_from(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_again_and_again_keeps_its_word() {
    let seed = number_from("DUNLIN_SEED").unwrap_or_else(rand::random);
    let rounds = number_from("DUNLIN_KILLS").unwrap_or(6);
    println!("DUNLIN_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let program = Path::new(env!("CARGO_BIN_EXE_dunlin"));
    let mut broker = OwnBroker::start(program, None, SETTINGS).await.unwrap();
    let run = Arc::new(Run::default());
    let mut readers = JoinSet::new();
    for (number, (_, partitions)) in TOPICS.iter().enumerate() {
        let client = Client::connect(broker.profile()).await.unwrap();
        let request = TopicRequest { partitions: Some(*partitions), ..TopicRequest::default() };
        client.topics().create(&topic(number), request).await.unwrap();
        readers.spawn(read_live(client, number, Arc::clone(&run)));
    }
    let mut producers = JoinSet::new();
    for number in 0..PRODUCERS.len() {
        producers.spawn(Producer::open(number, &broker, &run).await.work());
    }

    let kills = kill_often(&mut broker, &run, rounds, &mut rng).await;
    run.stop.store(true, SeqCst);
    let operations = timeout(PATIENCE * 2, producers.join_all()).await.unwrap().concat();
    // Once more: nothing may hang on the memory of the process that gave the last acks.
    broker.kill().await.unwrap();
    broker.restart().await.unwrap();
    let client = Client::connect(broker.profile()).await.unwrap();
    let mut last = Vec::new();
    for number in 0..TOPICS.len() {
        last.push(timeout(PATIENCE, read_all(&client, number)).await.unwrap());
    }
    let live_len = |number: usize| run.sessions[number].lock().unwrap().len();
    until("end of the live readers", || last.iter().all(|l| live_len(l.topic) >= l.seen.len()))
        .await;
    // A reader ends by an error alone.
    assert!(readers.try_join_next().is_none());
    drop(readers);
    let live = (0..TOPICS.len())
        .map(|topic| Session { topic, seen: run.sessions[topic].lock().unwrap().clone() });
    judge(&History { operations, live: live.collect(), last }, &kills);
}

fn judge(history: &History, kills: &Kills) {
    let count = |is: fn(&Outcome) -> bool| {
        history.operations.iter().filter(|operation| is(&operation.outcome)).count()
    };
    let acks = count(|outcome| matches!(outcome, Outcome::Ok(_)));
    let read: usize = history.last.iter().map(|session| session.seen.len()).sum();
    let found = check(history);
    println!(
        "kills {} (and {} in recovery) operations {} acks {acks} unknown {} failed {} read {read} {found} \
         (under way at kills {}, fewest acks between {})",
        kills.rounds + 1,
        kills.in_recovery,
        history.operations.len(),
        count(|outcome| *outcome == Outcome::Unknown),
        count(|outcome| *outcome == Outcome::Failed),
        kills.under_way,
        kills.fewest_acks_before.unwrap_or(0),
    );
    assert!(found.is_clean(), "{}", found.examples());
    // And all this was not about nothing.
    let rounds = usize::try_from(kills.rounds).unwrap();
    assert!(acks >= 100 * rounds && read >= acks, "{acks} acks, {read} read");
    assert!(kills.rounds == 0 || kills.fewest_acks_before >= Some(PRODUCERS.len() as u64));
    assert!(kills.under_way >= kills.rounds, "the kills met an idle broker");
    let alone = history.operations.iter().filter(|operation| operation.value.producer == ALONE);
    assert!(alone.count() >= rounds);
}
