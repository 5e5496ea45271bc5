//! Publishing to one topic.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

mod driver;
mod receipt;

pub use self::receipt::{AckFuture, Delivery};
use self::{
    driver::Driver,
    receipt::{Receipt, Receipts},
};
use super::{
    error::PublishError,
    link::Link,
    outbox::{Effect, Outbox, OutboxOptions},
};
use crate::{
    limits::{BATCH_LEN_MAX, PUBLISH_WINDOW_BATCHES, PUBLISH_WINDOW_BYTES, ROW_LEN_MAX},
    net::group::Member,
    types::{Acks, ProducerId, Timestamp, TopicName},
    wire::{Compression, PublishOpen, Record},
};

/// What can be decided about a publisher.
#[derive(Clone, Debug)]
pub struct PublisherBuilder {
    link: Arc<Link>,
    open: PublishOpen,
    options: OutboxOptions,
}

impl PublisherBuilder {
    pub(super) fn new(link: Arc<Link>, topic: TopicName) -> Self {
        let producer = ProducerId(rand::random::<u128>().max(1));
        Self {
            link,
            open: PublishOpen {
                topic,
                acks: Acks::default(),
                require_copies: None,
                producer,
                direct: false,
            },
            options: OutboxOptions {
                batch_len: BATCH_LEN,
                linger: LINGER,
                linger_behind: LINGER_BEHIND,
                compression: Compression::None,
                in_flight_batches: PUBLISH_WINDOW_BATCHES as usize,
                in_flight_bytes: PUBLISH_WINDOW_BYTES as usize,
                deadline: DEADLINE,
                idempotent: true,
            },
        }
    }

    /// What acks wait for: `replicated` unless set.
    #[must_use]
    pub fn acks(mut self, acks: Acks) -> Self {
        self.open.acks = acks;
        self
    }

    /// Acks only with at least this many copies; while there are fewer, records wait for their deadline.
    #[must_use]
    pub fn require_copies(mut self, copies: u32) -> Self {
        self.open.require_copies = Some(copies);
        self
    }

    /// How batches are compressed: not at all unless set.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.options.compression = compression;
        self
    }

    /// Bytes at which a batch is full: unless set, as many as fit one row of the node's log, about 64 KB.
    /// At most 1 MiB. A larger record gets a batch of its own.
    #[must_use]
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.options.batch_len = bytes.min(BATCH_LEN_MAX);
        self
    }

    /// How long a batch waits to become full behind several that are under way: 1 ms unless set. With few under way it
    /// does not wait, because the node takes what has come since its last commit into the next.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.options.linger = linger;
        self
    }

    /// Batches and bytes that may be under way. Twice the bytes may be held; past that, [`Publisher::send`] waits.
    #[must_use]
    pub fn in_flight(mut self, batches: usize, bytes: usize) -> Self {
        self.options.in_flight_batches = batches.max(1);
        self.options.in_flight_bytes = bytes.max(1);
        self
    }

    /// How long a record may take, with all its tries, before it is reported as expired or unknown: 60 s unless set.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.options.deadline = deadline;
        self
    }

    /// Whether the node recognises what is sent again after a lost connection: yes unless set. If not, a record may be
    /// stored more than once.
    #[must_use]
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.options.idempotent = idempotent;
        if !idempotent {
            self.open.producer = ProducerId::NONE;
        }
        self
    }

    /// Opens the publisher, and waits until the node has agreed.
    ///
    /// # Errors
    /// [`PublishError::Fault`] if the node refuses, as when the topic does not exist; [`PublishError::Expired`] if no
    /// agreement comes before the deadline; [`PublishError::Connect`] if there is no connection to be had.
    pub async fn open(self) -> Result<Publisher, PublishError> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                outbox: Outbox::new(self.options.clone(), self.open.producer),
                receipts: Receipts::default(),
                first_error: None,
                closed: false,
            }),
            work: Notify::new(),
            progress: Notify::new(),
            done: CancellationToken::new(),
        });
        let link = Arc::clone(&self.link);
        let mut driver = Driver::new(Arc::clone(&shared), self.link, self.open);
        let stream = driver.open_first(self.options.deadline).await?;
        let work = link.publishing.spawn(driver.run(stream));
        Ok(Publisher { shared, _work: Arc::new(work) })
    }
}

/// Publishes to one topic. Clones share everything; when the last is dropped, what has no ack is given up.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = dunlin::cli::own_broker::BrokerHere::start().await;
/// # let client = dunlin::client::Client::connect(broker.profile()).await?;
/// # client.topics().create(&"plant/line3".parse()?, Default::default()).await?;
/// use dunlin::client::Record;
///
/// let publisher = client.publisher(&"plant/line3".parse()?).open().await?;
/// // Many under way: `send` waits for room alone, the ack comes later.
/// let mut acks = Vec::new();
/// for reading in ["21.5", "21.6", "21.4"] {
///     acks.push(publisher.send(Record::new(reading).with_key("temp")).await?);
/// }
/// for ack in acks {
///     println!("stored at offset {}", ack.await?.offset);
/// }
/// publisher.close().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
    /// Ends with the last publisher.
    _work: Arc<Member>,
}

impl Publisher {
    /// Takes a record as soon as there is room for it. What is returned then waits for the ack; who does not care may
    /// drop it, and hear of errors from [`Self::flush`].
    ///
    /// Records of one key are stored in the order of these calls. A record without timestamp gets the present time.
    ///
    /// # Errors
    /// [`PublishError::Record`] if the record breaks a limit; [`PublishError::Closed`] after [`Self::close`].
    pub async fn send(&self, record: Record) -> Result<AckFuture, PublishError> {
        loop {
            let progress = self.shared.progress.notified();
            tokio::pin!(progress);
            // From here on no progress is missed, even if it comes before the wait below.
            progress.as_mut().enable();
            if let Some(ack) = self.try_send(&record)? {
                return Ok(ack);
            }
            progress.await;
        }
    }

    /// Takes a record if there is room for it now.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn try_send(&self, record: &Record) -> Result<Option<AckFuture>, PublishError> {
        let stamped;
        let record = if record.timestamp == Timestamp::default() {
            stamped = Record { timestamp: now(), ..record.clone() };
            &stamped
        } else {
            record
        };
        let mut state = self.shared.lock();
        if state.closed {
            return Err(PublishError::Closed);
        }
        if !state.outbox.has_room() {
            return Ok(None);
        }
        let ticket = state.outbox.push(Instant::now().into_std(), record)?;
        let receipt = state.receipts.get(ticket.batch);
        drop(state);
        if ticket.wake {
            self.shared.work.notify_one();
        }
        Ok(Some(AckFuture::new(receipt, ticket.index)))
    }

    /// Sends a record and waits for its ack.
    ///
    /// # Errors
    /// Any [`PublishError`].
    pub async fn publish(&self, record: Record) -> Result<Delivery, PublishError> {
        self.send(record).await?.await
    }

    /// Waits until all that was sent before is acked, without lingering.
    ///
    /// # Errors
    /// The first error of any record since the last flush.
    pub async fn flush(&self) -> Result<(), PublishError> {
        let before = self.shared.lock().outbox.flush();
        self.shared.work.notify_one();
        loop {
            let progress = self.shared.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            {
                let mut state = self.shared.lock();
                if state.outbox.is_settled_before(before) {
                    return state.first_error.take().map_or(Ok(()), Err);
                }
            }
            progress.await;
        }
    }

    /// Flushes, takes no more, and ends the stream.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub async fn close(self) -> Result<(), PublishError> {
        {
            let mut state = self.shared.lock();
            state.closed = true;
            state.outbox.close();
        }
        self.shared.work.notify_one();
        self.shared.progress.notify_waiters();
        self.shared.done.cancelled().await;
        self.shared.lock().first_error.take().map_or(Ok(()), Err)
    }
}

/// What the publisher and its driver share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The driver has something to do.
    work: Notify,
    /// Batches were settled: there may be room, or nothing left.
    progress: Notify,
    /// The driver has ended.
    done: CancellationToken,
}

#[derive(Debug)]
struct State {
    outbox: Outbox,
    receipts: Receipts,
    first_error: Option<PublishError>,
    closed: bool,
}

impl Shared {
    /// A panic elsewhere leaves the state as it was between two calls: each call is whole or not begun.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the outbox decide, tells those who wait, and returns what is to be written.
    fn decide<T>(
        &self,
        out: &mut Vec<Effect>,
        f: impl FnOnce(&mut Outbox, &mut Vec<Effect>) -> T,
    ) -> T {
        let mut settled: Vec<(Arc<Receipt>, _)> = Vec::new();
        let result = {
            let mut state = self.lock();
            let result = f(&mut state.outbox, out);
            out.retain_mut(|effect| {
                let Effect::Settle { batch, outcome } = effect else { return true };
                if let Err(error) = outcome {
                    state.first_error.get_or_insert_with(|| error.clone());
                }
                let outcome = std::mem::replace(outcome, Err(PublishError::Closed));
                settled.extend(state.receipts.remove(*batch).map(|receipt| (receipt, outcome)));
                false
            });
            result
        };
        if !settled.is_empty() {
            for (receipt, outcome) in settled {
                receipt.settle(outcome);
            }
            self.progress.notify_waiters();
        }
        result
    }
}

#[expect(clippy::disallowed_methods, reason = "the time of an event is the wall clock's")]
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// With the header of a log entry a full batch still fits one row.
const BATCH_LEN: usize = ROW_LEN_MAX - 512;
const LINGER: Duration = Duration::from_millis(1);
/// Enough that the node always has some to commit while acks travel, few enough that batches fill when records are many.
const LINGER_BEHIND: usize = 8;
const DEADLINE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
