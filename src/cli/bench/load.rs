//! The load: producers that keep so many batches under way, and readers beside them.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use rand::RngExt as _;
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Settings,
    report::{Latencies, Percentiles, Throughput},
};
use crate::{
    cli::exit::Failure,
    client::{AckFuture, Client, Event, Profile, Publisher, ReceivedRecord, Subscriber},
    types::{Position, ProducerId, Sequence, TopicName},
    wire::{BatchBuilder, Compression, Pushed, Record, TopicRequest},
};

/// Bytes of a value that say when it was sent.
pub(super) const STAMP_LEN: usize = 8;

/// What came out.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Loaded {
    pub(super) publish: Throughput,
    pub(super) publish_to_ack: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) deliver: Option<Throughput>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) publish_to_deliver: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) read_back: Option<Throughput>,
}

/// A load that is ready to run.
pub(super) struct Load {
    settings: Settings,
    profile: Profile,
    client: Client,
    topics: Vec<TopicName>,
    /// Records that fill a batch.
    records_per_batch: usize,
}

/// The times that all share.
#[derive(Clone, Copy)]
struct Clock {
    /// From which latencies are counted, in nanoseconds that fit a value.
    zero: Instant,
    /// What is measured begins and ends.
    begin: Instant,
    end: Instant,
}

impl Load {
    pub(super) async fn prepare(settings: Settings, profile: &Profile) -> Result<Self, Failure> {
        let client = Client::connect(profile).await?;
        let run: u32 = rand::random();
        let mut topics = Vec::new();
        for i in 0..settings.topics {
            let name: TopicName =
                format!("bench/{run:08x}/{i}").parse().map_err(Failure::runtime)?;
            let partitions = Some(settings.partitions);
            let request = TopicRequest { partitions, ..TopicRequest::default() };
            client.topics().create(&name, request).await?;
            topics.push(name);
        }
        let records_per_batch = records_per_batch(settings)?;
        Ok(Self { settings, profile: profile.clone(), client, topics, records_per_batch })
    }

    pub(super) async fn run(&self) -> Result<Loaded, Failure> {
        let zero = Instant::now();
        let begin = zero + WARM_UP;
        let end = begin + Duration::from_secs(self.settings.seconds.into());
        let clock = Clock { zero, begin, end };
        let stop = CancellationToken::new();
        let mut readers = JoinSet::new();
        let delivered = Arc::new(AtomicU64::new(0));
        for _ in 0..self.settings.readers {
            let client = Client::connect(&self.profile).await?;
            for topic in &self.topics {
                let reader = client.subscribe(topic).from(Position::Latest).open().await?;
                readers.spawn(read(reader, clock, stop.clone(), Arc::clone(&delivered)));
            }
        }
        let mut producers = JoinSet::new();
        for number in 0..self.settings.producers {
            producers.spawn(self.producer(number).await?.run(clock));
        }
        let (mut records, mut acks) = (0, Latencies::new());
        while let Some(ended) = producers.join_next().await {
            let (count, latencies) = ended.map_err(Failure::runtime)??;
            records += count;
            acks.add(&latencies);
        }
        stop.cancel();
        let mut delivers = Latencies::new();
        while let Some(ended) = readers.join_next().await {
            delivers.add(&ended.map_err(Failure::runtime)??);
        }
        let measured = end - begin;
        let bytes = |records: u64| records * self.settings.size as u64;
        let delivered = delivered.load(Ordering::Relaxed);
        let read_back = if self.settings.read_back { Some(self.read_back().await?) } else { None };
        Ok(Loaded {
            publish: Throughput::new(records, bytes(records), measured),
            publish_to_ack: acks.percentiles(),
            deliver: (self.settings.readers > 0)
                .then(|| Throughput::new(delivered, bytes(delivered), measured)),
            publish_to_deliver: delivers.percentiles(),
            read_back,
        })
    }

    pub(super) async fn clean_up(&self) -> Result<(), Failure> {
        for topic in &self.topics {
            self.client.topics().delete(topic).await?;
        }
        self.client.close().await;
        Ok(())
    }

    async fn producer(&self, number: u32) -> Result<Producer, Failure> {
        let s = &self.settings;
        let client = Client::connect(&self.profile).await?;
        let mut publishers = Vec::new();
        for topic in &self.topics {
            let builder = client.publisher(topic).acks(s.acks).compression(s.compression);
            publishers.push(builder.batch_bytes(s.batch).linger(s.linger).open().await?);
        }
        let mut random = vec![0; RANDOM_LEN.max(s.size)];
        rand::rng().fill(&mut random[..]);
        Ok(Producer {
            publishers,
            // Producers begin at different topics.
            turn: number as usize % self.topics.len(),
            records_per_batch: self.records_per_batch,
            records_max: self.records_per_batch * s.in_flight,
            size: s.size,
            random,
        })
    }

    async fn read_back(&self) -> Result<Throughput, Failure> {
        let client = Client::connect(&self.profile).await?;
        let begin = Instant::now();
        let (mut records, mut bytes) = (0, 0);
        for topic in &self.topics {
            let mut reader = client.subscribe(topic).from(Position::Earliest).open().await?;
            while let Some(event) = reader.next_event().await {
                let Event::Record(received) = event? else { break };
                records += 1;
                bytes += received.record.value.len() as u64;
            }
        }
        Ok(Throughput::new(records, bytes, begin.elapsed()))
    }
}

struct Producer {
    publishers: Vec<Publisher>,
    turn: usize,
    records_per_batch: usize,
    records_max: usize,
    size: usize,
    random: Vec<u8>,
}

impl Producer {
    /// Sends until the end, and waits for what is under way.
    async fn run(mut self, clock: Clock) -> Result<(u64, Latencies), Failure> {
        let mut waiting: VecDeque<(Instant, AckFuture)> = VecDeque::new();
        let (mut latencies, mut records) = (Latencies::new(), 0);
        let mut acked = |sent: Instant, now: Instant| {
            if clock.measures(now) {
                records += 1;
                latencies.record(now.saturating_duration_since(sent));
            }
        };
        let mut sent = 0;
        while Instant::now() < clock.end {
            while waiting.len() < self.records_max {
                if sent % self.records_per_batch == 0 {
                    self.turn = (self.turn + 1) % self.publishers.len();
                }
                sent += 1;
                let now = Instant::now();
                let record = Record::new(self.value(clock.nanos(now), sent));
                waiting.push_back((now, self.publishers[self.turn].send(record).await?));
            }
            if let Some((sent, ack)) = waiting.pop_front() {
                ack.await?;
                let now = Instant::now();
                acked(sent, now);
                // Those of the same batch came with it.
                while let Some(outcome) = waiting.front().and_then(|(_, ack)| ack.try_get()) {
                    outcome?;
                    waiting.pop_front().into_iter().for_each(|(sent, _)| acked(sent, now));
                }
            }
        }
        for publisher in self.publishers {
            publisher.close().await?;
        }
        Ok((records, latencies))
    }

    fn value(&self, nanos: u64, number: usize) -> Bytes {
        let mut value = BytesMut::with_capacity(self.size);
        value.put_u64(nanos);
        let rest = self.size - STAMP_LEN;
        let from = (number * 7_919) % (self.random.len() - rest).max(1);
        value.put_slice(&self.random[from..from + rest]);
        value.freeze()
    }
}

impl Clock {
    fn measures(&self, now: Instant) -> bool {
        (self.begin..self.end).contains(&now)
    }

    fn nanos(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.zero);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Reads until told to stop, or for a while after the end.
async fn read(
    mut reader: Subscriber,
    clock: Clock,
    stop: CancellationToken,
    delivered: Arc<AtomicU64>,
) -> Result<Latencies, Failure> {
    let mut latencies = Latencies::new();
    let mut take = |received: ReceivedRecord, now: Instant| {
        let Some(stamp) = received.record.value.first_chunk::<STAMP_LEN>() else { return 0 };
        if !clock.measures(now) {
            return 0;
        }
        let sent = Duration::from_nanos(u64::from_be_bytes(*stamp));
        latencies.record(now.saturating_duration_since(clock.zero + sent));
        1
    };
    loop {
        let first = tokio::select! {
            received = reader.next() => match received {
                Some(received) => received?,
                None => return Ok(latencies),
            },
            () = stop.cancelled() => return Ok(latencies),
            () = sleep_until(clock.end + LINGER_MAX) => return Ok(latencies),
        };
        let now = Instant::now();
        let mut count = take(first, now);
        // The records of one batch are there together.
        while let Some(received) = reader.next_ready() {
            count += take(received?, now);
        }
        delivered.fetch_add(count, Ordering::Relaxed);
    }
}

/// How many records of the wanted size the library puts into a batch of the wanted size.
fn records_per_batch(settings: Settings) -> Result<usize, Failure> {
    let record = Record::new(vec![0; settings.size]);
    let mut builder = BatchBuilder::new(settings.batch);
    while builder.push(&record).map_err(Failure::usage)? == Pushed::In {}
    let records = builder.records() as usize;
    drop(builder.finish(Compression::None, ProducerId::NONE, Sequence(0)));
    Ok(records)
}

const WARM_UP: Duration = Duration::from_secs(1);
/// Random bytes that values are cut from: more than a compressor's window would find again.
const RANDOM_LEN: usize = 4 * 1024 * 1024;
const LINGER_MAX: Duration = Duration::from_secs(10);
