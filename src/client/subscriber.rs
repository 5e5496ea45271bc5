//! Reading one topic.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;

mod cursor;
mod source;

use self::{
    cursor::Cursor,
    source::{Brought, Source},
};
use super::{error::SubscribeError, link::Link};
use crate::{
    types::{Offset, Position, Timestamp, TopicName},
    wire::{Record, Records},
};

/// What can be decided about a subscription.
#[derive(Clone, Debug)]
pub struct SubscriberBuilder {
    link: Arc<Link>,
    topic: TopicName,
    partitions: Option<Vec<u32>>,
    from: Position,
    resume: Vec<(u32, Offset)>,
}

impl SubscriberBuilder {
    pub(super) fn new(link: Arc<Link>, topic: TopicName) -> Self {
        Self { link, topic, partitions: None, from: Position::default(), resume: Vec::new() }
    }

    /// Where to start: at what comes from now on, unless set.
    #[must_use]
    pub fn from(mut self, position: Position) -> Self {
        self.from = position;
        self
    }

    /// Reads these partitions alone; all unless set.
    #[must_use]
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = u32>) -> Self {
        self.partitions = Some(partitions.into_iter().collect());
        self
    }

    /// Starts at these offsets in these partitions, whatever [`Self::from`] says: what [`Subscriber::positions`] gave.
    #[must_use]
    pub fn resume(mut self, positions: impl IntoIterator<Item = (u32, Offset)>) -> Self {
        self.resume = positions.into_iter().collect();
        self
    }

    /// Opens the subscription, and waits until the node has agreed. From then on a lost connection is made again, for
    /// as long as it takes.
    ///
    /// # Errors
    /// [`SubscribeError::Fault`] if the node refuses, as when the topic does not exist or the offset is not kept any
    /// more; [`SubscribeError::Connect`] if there is no connection to be had.
    pub async fn open(self) -> Result<Subscriber, SubscribeError> {
        let mut cursor = Cursor::resume(self.resume);
        let mut source = Source::new(self.link, self.topic, self.partitions, self.from);
        source.open(&mut cursor).await?;
        let topic = source.topic().clone();
        let state = State::Ready(Box::new(source));
        Ok(Subscriber { topic, cursor, current: None, state, caught_up: false })
    }
}

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedRecord {
    /// Its partition.
    pub partition: u32,
    /// Its offset there.
    pub offset: Offset,
    /// When the site took it. [`Record::timestamp`] is when the producer made it.
    pub append_time: Timestamp,
    /// What the producer wrote.
    pub record: Record,
}

/// What happens to a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A record came.
    Record(ReceivedRecord),
    /// All that there was has been read: said once, by the first time that it is so.
    CaughtUp,
}

/// Reads one topic, in order within each partition, without gap and without duplicate, also across lost connections.
///
/// It holds one batch. When its owner does not ask for more, nothing more is read, and QUIC slows the node down.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = dunlin::cli::own_broker::BrokerHere::start().await;
/// # let client = dunlin::client::Client::connect(broker.profile()).await?;
/// # client.topics().create(&"plant/line3".parse()?, Default::default()).await?;
/// use dunlin::client::{Event, Position};
///
/// let topic = "plant/line3".parse()?;
/// let mut subscriber = client.subscribe(&topic).from(Position::Earliest).open().await?;
/// while let Some(event) = subscriber.next_event().await {
///     match event? {
///         Event::Record(received) => println!("{} {:?}", received.offset, received.record.value),
///         Event::CaughtUp => break,
///     }
/// }
/// // Keep these with what was made of the records; `SubscriberBuilder::resume` goes on there.
/// let positions = subscriber.positions();
/// # Ok(())
/// # }
/// ```
pub struct Subscriber {
    topic: TopicName,
    cursor: Cursor,
    current: Option<Current>,
    state: State,
    caught_up: bool,
}

/// The batch whose records are being given out.
struct Current {
    partition: u32,
    from: Offset,
    append_time: Timestamp,
    records: Records,
}

enum State {
    Ready(Box<Source>),
    /// Waits for the next batch. It holds source and cursor, so that a caller may drop its own wait at any time.
    Reading(Pin<Box<dyn Future<Output = Read> + Send>>),
    /// It failed: there is no more.
    Ended,
}

type Read = (Box<Source>, Cursor, Result<Brought, SubscribeError>);

impl Subscriber {
    /// The topic that is read.
    #[must_use]
    pub fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// The next record. None after an error. May be dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> Option<Result<ReceivedRecord, SubscribeError>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The next record, or the news that all is read. None after an error. May be dropped while it waits.
    pub async fn next_event(&mut self) -> Option<Result<Event, SubscribeError>> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    /// The next record if it has been read from the network already.
    pub fn next_ready(&mut self) -> Option<Result<ReceivedRecord, SubscribeError>> {
        self.take_current().transpose()
    }

    /// Tells whether all that there was has been read at some time.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.caught_up
    }

    /// The offset behind the last record given out, by partition: where to go on.
    #[must_use]
    pub fn positions(&self) -> Vec<(u32, Offset)> {
        self.cursor.positions()
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Event, SubscribeError>>> {
        loop {
            match self.take_current() {
                Ok(Some(received)) => return Poll::Ready(Some(Ok(Event::Record(received)))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            if let State::Ready(_) = self.state {
                self.begin_read();
            }
            let State::Reading(reading) = &mut self.state else { return Poll::Ready(None) };
            let (source, cursor, brought) = ready!(reading.as_mut().poll(cx));
            self.cursor = cursor;
            self.state = State::Ready(source);
            match brought {
                Ok(Brought::Batch { partition, from, batch }) => match batch.records() {
                    Ok(records) => {
                        let append_time = batch.header().append_time;
                        self.current = Some(Current { partition, from, append_time, records });
                    }
                    Err(source) => {
                        return Poll::Ready(Some(Err(self.damaged(partition, source))));
                    }
                },
                Ok(Brought::CaughtUp) if self.caught_up => {}
                Ok(Brought::CaughtUp) => {
                    self.caught_up = true;
                    return Poll::Ready(Some(Ok(Event::CaughtUp)));
                }
                Err(error) => {
                    self.state = State::Ended;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    fn begin_read(&mut self) {
        let State::Ready(mut source) = std::mem::replace(&mut self.state, State::Ended) else {
            unreachable!("the caller has looked");
        };
        // A copy stays here, so that positions can be asked for meanwhile; reading moves none of them.
        let mut cursor = self.cursor.clone();
        self.state = State::Reading(Box::pin(async move {
            let brought = source.next(&mut cursor).await;
            (source, cursor, brought)
        }));
    }

    fn take_current(&mut self) -> Result<Option<ReceivedRecord>, SubscribeError> {
        while let Some(current) = &mut self.current {
            let (partition, append_time) = (current.partition, current.append_time);
            match current.records.next() {
                Some(Ok((offset, _))) if offset < current.from => {}
                Some(Ok((offset, record))) => {
                    self.cursor.passed(partition, offset);
                    return Ok(Some(ReceivedRecord { partition, offset, append_time, record }));
                }
                Some(Err(error)) => return Err(self.damaged(partition, error.into())),
                None => self.current = None,
            }
        }
        Ok(None)
    }

    /// The checksum held and the content does not: no other reading will be better.
    fn damaged(&mut self, partition: u32, source: crate::wire::BadBatch) -> SubscribeError {
        self.current = None;
        self.state = State::Ended;
        SubscribeError::BadBatch { partition, offset: self.cursor.next(partition), source }
    }
}

impl Stream for Subscriber {
    type Item = Result<ReceivedRecord, SubscribeError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(self.poll_event(cx)) {
                Some(Ok(Event::Record(received))) => return Poll::Ready(Some(Ok(received))),
                Some(Ok(Event::CaughtUp)) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber")
            .field("topic", &self.topic)
            .field("positions", &self.cursor.positions())
            .finish_non_exhaustive()
    }
}
