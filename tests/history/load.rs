//! Producers and readers of a run, through the client library.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use dunlin::client::{
    AckFuture, Client, Delivery, Event, Position, PublishError, Publisher, PublisherBuilder,
    ReceivedRecord, Record, TopicName, TopicRequest,
};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::checker::{Operation, Outcome, Place, Seen, Session, Value};

const KEYS: u64 = 11;

/// Name and partitions of a topic.
pub(crate) type Topic = (&'static str, u32);

/// How a producer behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habit {
    /// Number of its topic.
    pub(crate) topic: usize,
    /// Records that may wait for acks.
    pub(crate) waiting_max: usize,
    /// How often it sends some records, and how many.
    pub(crate) tick: Duration,
    pub(crate) records_per_tick: u64,
    /// What it asks of its publisher.
    pub(crate) options: fn(PublisherBuilder) -> PublisherBuilder,
}

/// What everybody in a run shares.
#[derive(Debug)]
pub(crate) struct Run {
    topics: &'static [Topic],
    habits: &'static [Habit],
    /// How long a condition may take to come about.
    patience: Duration,
    /// Counts invocations and outcomes: their order.
    events: AtomicU64,
    pub(crate) under_way: AtomicU64,
    acks: Vec<AtomicU64>,
    /// Of each producer: when a record was found to be acked, and how long after its `send`.
    waits: Vec<Mutex<Vec<(Instant, Duration)>>>,
    /// Of each producer: the number of errors since its last ack, and the last of them.
    errors: Vec<Mutex<(u64, String)>>,
    pub(crate) stop: AtomicBool,
    sessions: Vec<Mutex<Vec<Seen>>>,
}

impl Run {
    pub(crate) fn new(
        topics: &'static [Topic],
        habits: &'static [Habit],
        patience: Duration,
    ) -> Self {
        Self {
            topics,
            habits,
            patience,
            events: AtomicU64::new(0),
            under_way: AtomicU64::new(0),
            acks: habits.iter().map(|_| AtomicU64::new(0)).collect(),
            waits: habits.iter().map(|_| Mutex::default()).collect(),
            errors: habits.iter().map(|_| Mutex::default()).collect(),
            stop: AtomicBool::new(false),
            sessions: topics.iter().map(|_| Mutex::default()).collect(),
        }
    }

    pub(crate) fn topic(&self, number: usize) -> TopicName {
        self.topics[number].0.parse().unwrap()
    }

    pub(crate) async fn create_topics(&self, client: &Client) {
        for (number, (_, partitions)) in self.topics.iter().enumerate() {
            let request = TopicRequest { partitions: Some(*partitions), ..TopicRequest::default() };
            client.topics().create(&self.topic(number), request).await.unwrap();
        }
    }

    pub(crate) fn acks(&self) -> Vec<u64> {
        self.acks.iter().map(|acks| acks.load(SeqCst)).collect()
    }

    /// When each record of a producer was found to be acked, and how long after its `send`. One that lets several wait looks at them
    /// once a tick.
    pub(crate) fn waits(&self, producer: usize) -> Vec<(Instant, Duration)> {
        self.waits[producer].lock().unwrap().clone()
    }

    /// Waits until every producer has got further acks, for at least this long since the first of them. Returns their count.
    ///
    /// # Errors
    /// Which producers have got none.
    pub(crate) async fn progress(&self, least: Duration) -> Result<u64, String> {
        self.progress_of(0..self.habits.len(), least).await
    }

    /// The same of the producers of these numbers.
    ///
    /// # Errors
    /// As [`Self::progress`].
    pub(crate) async fn progress_of(
        &self,
        producers: Range<usize>,
        least: Duration,
    ) -> Result<u64, String> {
        let before = self.acks();
        let mut first = None;
        let more = until(self.patience, || {
            let now = self.acks();
            if now != before {
                first.get_or_insert_with(Instant::now);
            }
            first.is_some_and(|first| first.elapsed() >= least)
                && producers.clone().all(|number| before[number] < now[number])
        });
        let waited = more.await;
        let now = self.acks();
        match waited {
            true => Ok(now.iter().sum::<u64>() - before.iter().sum::<u64>()),
            false => Err(format!(
                "no further acks of every producer within {:?}: {before:?} and then {now:?}; errors since: {:?}",
                self.patience, self.errors
            )),
        }
    }

    /// Opens the producer of this number.
    pub(crate) async fn producer(self: &Arc<Self>, number: usize, client: &Client) -> Producer {
        let habit = self.habits[number];
        let publisher = (habit.options)(client.publisher(&self.topic(habit.topic)));
        Producer {
            number,
            habit,
            publisher: publisher.open().await.unwrap(),
            run: Arc::clone(self),
            waiting: VecDeque::new(),
            operations: Vec::new(),
        }
    }

    /// Reads a topic while it grows. Ends by an error alone, and returns it.
    pub(crate) async fn read_live(self: Arc<Self>, client: Client, topic: usize) -> String {
        let builder = client.subscribe(&self.topic(topic)).from(Position::Earliest);
        let mut subscriber = match builder.open().await {
            Ok(subscriber) => subscriber,
            Err(error) => return error.to_string(),
        };
        loop {
            match subscriber.next().await {
                Some(Ok(received)) => {
                    self.sessions[topic].lock().unwrap().push(seen(topic, &received));
                }
                Some(Err(error)) => return error.to_string(),
                None => return "the subscription ended".into(),
            }
        }
    }

    /// All that is in a topic now.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub(crate) async fn read_all(
        &self,
        client: &Client,
        topic: usize,
        reader: &str,
    ) -> Result<Session, String> {
        let builder = client.subscribe(&self.topic(topic)).from(Position::Earliest);
        let all = async {
            let mut subscriber = builder.open().await?;
            let mut read = Vec::new();
            while let Some(event) = subscriber.next_event().await {
                match event? {
                    Event::Record(received) => read.push(seen(topic, &received)),
                    Event::CaughtUp => break,
                }
            }
            Ok::<_, dunlin::client::SubscribeError>(read)
        };
        let in_words =
            |why: String| format!("{reader} cannot read {}: {why}", self.topics[topic].0);
        match timeout(self.patience, all).await {
            Ok(Ok(seen)) => Ok(Session { topic, reader: reader.to_owned(), seen }),
            Ok(Err(error)) => Err(in_words(error.to_string())),
            Err(_) => Err(in_words("it does not end".into())),
        }
    }

    /// Waits until live readers have as much as the last reads, and returns what they have.
    ///
    /// # Errors
    /// Who has not.
    pub(crate) async fn live(&self, last: &[Session]) -> Result<Vec<Session>, String> {
        let len = |topic: usize| self.sessions[topic].lock().unwrap().len();
        let has_all = || last.iter().all(|last| len(last.topic) >= last.seen.len());
        if !until(self.patience, has_all).await {
            let lens: Vec<_> = last.iter().map(|l| (len(l.topic), l.seen.len())).collect();
            return Err(format!("live readers have, and should have: {lens:?}"));
        }
        let of_topic = |topic: usize| {
            let seen = self.sessions[topic].lock().unwrap().clone();
            Session { topic, reader: "the live reader".into(), seen }
        };
        Ok((0..self.topics.len()).map(of_topic).collect())
    }
}

/// Looks until it is so, and tells whether it came to be.
pub(crate) async fn until(patience: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let looks = async {
        let mut looks = interval(Duration::from_millis(2));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !is_so() {
            looks.tick().await;
        }
    };
    timeout(patience, looks).await.is_ok()
}

/// Publishes to one topic and writes down what happens.
pub(crate) struct Producer {
    number: usize,
    habit: Habit,
    publisher: Publisher,
    run: Arc<Run>,
    waiting: VecDeque<(usize, Instant, AckFuture)>,
    operations: Vec<Operation>,
}

impl Producer {
    /// Goes on until the run is to stop, and all that is under way is settled.
    pub(crate) async fn work(mut self) -> Vec<Operation> {
        let mut ticks = interval(self.habit.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while !self.run.stop.load(SeqCst) {
            ticks.tick().await;
            for _ in 0..self.habit.records_per_tick {
                self.send().await;
                while self.waiting.len() >= self.habit.waiting_max {
                    self.settle_oldest().await;
                }
            }
            while self.waiting.front().is_some_and(|(_, _, ack)| ack.try_get().is_some()) {
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
            topic: self.habit.topic,
            key: value.n % KEYS,
            invoked: self.run.events.fetch_add(1, SeqCst),
            settled: u64::MAX,
            outcome: Outcome::Unknown,
        };
        self.run.under_way.fetch_add(1, SeqCst);
        self.operations.push(operation);
        let at = self.operations.len() - 1;
        let sent = Instant::now();
        match self.publisher.send(record_of(value)).await {
            Ok(ack) => self.waiting.push_back((at, sent, ack)),
            Err(error) => self.settled(at, Err(error)),
        }
    }

    async fn settle_oldest(&mut self) {
        let Some((at, sent, ack)) = self.waiting.pop_front() else { return };
        let outcome = ack.await;
        if outcome.is_ok() {
            self.run.waits[self.number].lock().unwrap().push((Instant::now(), sent.elapsed()));
        }
        self.settled(at, outcome);
    }

    fn settled(&mut self, at: usize, outcome: Result<Delivery, PublishError>) {
        if let Err(error) = &outcome {
            let mut errors = self.run.errors[self.number].lock().unwrap();
            *errors = (errors.0 + 1, error.to_string());
        }
        let operation = &mut self.operations[at];
        operation.settled = self.run.events.fetch_add(1, SeqCst);
        operation.outcome = match outcome {
            Ok(Delivery { partition, offset, .. }) => {
                self.run.acks[self.number].fetch_add(1, SeqCst);
                self.run.errors[self.number].lock().unwrap().0 = 0;
                Outcome::Ok(Place { topic: operation.topic, partition, offset: offset.0 })
            }
            Err(PublishError::Unknown { .. }) => Outcome::Unknown,
            Err(_) => Outcome::Failed,
        };
        self.run.under_way.fetch_sub(1, SeqCst);
    }
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
