//! The I/O of a subscriber: opens streams, and reads one batch at a time.

use std::{pin::Pin, sync::Arc};

use quinn::SendStream;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::cursor::{Cursor, Take};
use crate::{
    client::{
        backoff::Backoff,
        dial::Session,
        error::{StreamError, SubscribeError},
        link::{DELAY_MIN, Link, delay_of},
        stream::{FrameReader, send_control, unexpected},
    },
    limits::MOVE_RETRY,
    types::{Offset, Position, TopicName},
    wire::{Batch, Code, Deliver, Frame, FrameType, SubscribeOk, SubscribeOpen},
};

pub(super) struct Source {
    link: Arc<Link>,
    topic: TopicName,
    partitions: Option<Vec<u32>>,
    from: Position,
    stream: Option<Stream>,
    backoff: Backoff,
    /// Damaged batches in a row.
    damaged: u32,
    /// The stream over a connection that has taken the place of the old one, while it is opened.
    opening: Option<Opening>,
}

type Opening = Pin<Box<dyn Future<Output = Result<(Stream, SubscribeOk), StreamError>> + Send>>;

#[derive(Debug)]
struct Stream {
    reader: FrameReader,
    /// Kept open: its end would end the subscription.
    _send: SendStream,
    /// Its connection lives as long as it does.
    session: Arc<Session>,
    /// When it is tried to follow to another connection.
    follow_at: Instant,
}

/// What happens to a stream.
enum Happened {
    Frame(Result<Option<Frame>, StreamError>),
    /// Another connection has taken the place of the stream's own.
    Moved,
    /// A stream over that one is open, or is not to be had.
    Opened(Result<(Stream, SubscribeOk), StreamError>),
}

/// What a stream brings.
#[derive(Debug)]
pub(super) enum Brought {
    /// Records to give out, from this offset on.
    Batch { partition: u32, from: Offset, batch: Batch },
    /// All that there is has been brought.
    CaughtUp,
}

impl Source {
    pub(super) fn new(
        link: Arc<Link>,
        topic: TopicName,
        partitions: Option<Vec<u32>>,
        from: Position,
    ) -> Self {
        let backoff = Backoff::default();
        Self { link, topic, partitions, from, stream: None, backoff, damaged: 0, opening: None }
    }

    pub(super) fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// Opens a stream, once.
    pub(super) async fn open(&mut self, cursor: &mut Cursor) -> Result<(), SubscribeError> {
        loop {
            let Err(error) = self.try_open(cursor).await? else { return Ok(()) };
            self.hold_back(error).await?;
        }
    }

    /// The next batch that brings something new. Opens streams as often as it takes.
    pub(super) async fn next(&mut self, cursor: &mut Cursor) -> Result<Brought, SubscribeError> {
        loop {
            let Some(stream) = &mut self.stream else {
                match self.try_open(cursor).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => self.hold_back(error).await?,
                    Err(SubscribeError::Connect(error)) if !error.is_definite() => {
                        debug!(topic = %self.topic, %error, "no connection to read from");
                    }
                    Err(error) => return Err(error),
                }
                continue;
            };
            let (session, follow_at) = (Arc::clone(&stream.session), stream.follow_at);
            let moved = async {
                session.moved().await;
                sleep_until(follow_at).await;
            };
            let happened = tokio::select! {
                frame = stream.reader.next() => Happened::Frame(frame),
                opened = opened(&mut self.opening), if self.opening.is_some() => Happened::Opened(opened),
                () = moved, if self.opening.is_none() => Happened::Moved,
            };
            let frame = match happened {
                Happened::Frame(frame) => frame,
                Happened::Moved => {
                    self.opening = Some(self.open_next(cursor));
                    continue;
                }
                Happened::Opened(opened) => {
                    self.take_over(opened, cursor);
                    continue;
                }
            };
            let frame = match frame {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    self.hold_back(StreamError::Lost("the node ended the stream".into())).await?;
                    continue;
                }
                Err(error) => {
                    self.hold_back(error).await?;
                    continue;
                }
            };
            match self.read(&frame, cursor) {
                Ok(Some(brought)) => {
                    self.backoff.reset();
                    return Ok(brought);
                }
                Ok(None) => {}
                Err(ReadError::Stream(error)) => self.hold_back(error).await?,
                Err(ReadError::Subscribe(error)) => return Err(error),
            }
        }
    }

    fn read(&mut self, frame: &Frame, cursor: &Cursor) -> Result<Option<Brought>, ReadError> {
        match frame.kind {
            FrameType::Deliver => {
                let deliver = Deliver::decode(frame.body.clone())
                    .map_err(|error| StreamError::Protocol(error.to_string()))?;
                self.check(deliver, cursor)
            }
            FrameType::CaughtUp => Ok(Some(Brought::CaughtUp)),
            _ => Err(unexpected(frame).into()),
        }
    }

    fn check(&mut self, deliver: Deliver, cursor: &Cursor) -> Result<Option<Brought>, ReadError> {
        let partition = deliver.partition;
        let batch = match Batch::parse(deliver.batch) {
            Ok(batch) => batch,
            Err(source) if self.damaged >= DAMAGED_MAX => {
                let offset = cursor.next(partition);
                return Err(SubscribeError::BadBatch { partition, offset, source }.into());
            }
            Err(source) => {
                // The node may read it again, and better.
                self.damaged += 1;
                return Err(StreamError::Lost(source.to_string()).into());
            }
        };
        self.damaged = 0;
        Ok(match cursor.take(partition, batch.header())? {
            Take::Nothing => None,
            Take::From(from) => Some(Brought::Batch { partition, from, batch }),
        })
    }

    /// Opens a stream. The outer error ends the subscription, the inner one may pass.
    async fn try_open(
        &mut self,
        cursor: &mut Cursor,
    ) -> Result<Result<(), StreamError>, SubscribeError> {
        let session = self.link.session().await?;
        match open_on(Arc::clone(&session), self.wanted(cursor)).await {
            Ok((stream, ok)) => {
                cursor.opened(&ok, &self.topic)?;
                self.stream = Some(stream);
                Ok(Ok(()))
            }
            Err(error) => {
                if matches!(&error, StreamError::Fault(fault) if fault.code == Code::NotPrimary) {
                    session.leave();
                }
                Ok(Err(error))
            }
        }
    }

    /// What a stream is opened with, to go on where this reader is.
    fn wanted(&self, cursor: &Cursor) -> SubscribeOpen {
        SubscribeOpen {
            topic: self.topic.clone(),
            partitions: self.partitions.clone(),
            from: self.from,
            resume: cursor.positions(),
            direct: false,
        }
    }

    /// Opens a stream over the new connection. The old one is read meanwhile; what both bring is taken once.
    fn open_next(&self, cursor: &Cursor) -> Opening {
        let (link, open) = (Arc::clone(&self.link), self.wanted(cursor));
        Box::pin(async move {
            let session = link.session().await.map_err(|e| StreamError::Lost(e.to_string()))?;
            open_on(session, open).await
        })
    }

    /// Goes on with the new stream. If it is not to be had, or not where the reader is, the old one stays for now.
    fn take_over(
        &mut self,
        opened: Result<(Stream, SubscribeOk), StreamError>,
        cursor: &mut Cursor,
    ) {
        self.opening = None;
        match opened {
            Ok((stream, ok)) if cursor.opened(&ok, &self.topic).is_ok() => {
                self.stream = Some(stream);
                return;
            }
            Ok(_) => debug!(topic = %self.topic, "the new node is not where this reader is"),
            Err(error) => {
                debug!(topic = %self.topic, ?error, "no stream over the new connection yet")
            }
        }
        if let Some(stream) = &mut self.stream {
            stream.follow_at = Instant::now() + MOVE_RETRY;
        }
    }

    /// Gives up the stream, and waits before there is another; or gives up.
    async fn hold_back(&mut self, error: StreamError) -> Result<(), SubscribeError> {
        debug!(topic = %self.topic, ?error, "subscribe stream ended");
        (self.stream, self.opening) = (None, None);
        let own = self.backoff.next(rand::random());
        let delay = match error {
            StreamError::Fault(fault) => {
                let asked = delay_of(&fault).ok_or(SubscribeError::Fault(fault))?;
                asked.max(own)
            }
            StreamError::Lost(_) => own,
            StreamError::Protocol(what) => return Err(SubscribeError::Protocol(what)),
        };
        sleep_until(Instant::now() + delay.max(DELAY_MIN)).await;
        Ok(())
    }
}

async fn open_on(
    session: Arc<Session>,
    open: SubscribeOpen,
) -> Result<(Stream, SubscribeOk), StreamError> {
    let (mut send, recv) = session.connection.open_bi().await?;
    send_control(&mut send, FrameType::SubscribeOpen, &open).await?;
    let mut reader = FrameReader::new(recv);
    let ok: SubscribeOk = reader.expect(FrameType::SubscribeOk).await?;
    Ok((Stream { reader, _send: send, session, follow_at: Instant::now() }, ok))
}

/// Waits for a stream that is being opened; for ever if there is none.
async fn opened(opening: &mut Option<Opening>) -> Result<(Stream, SubscribeOk), StreamError> {
    match opening {
        Some(opening) => opening.await,
        None => std::future::pending().await,
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.reader.stop();
    }
}

enum ReadError {
    Stream(StreamError),
    Subscribe(SubscribeError),
}

impl From<StreamError> for ReadError {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}

impl From<SubscribeError> for ReadError {
    fn from(error: SubscribeError) -> Self {
        Self::Subscribe(error)
    }
}

/// How often a damaged batch is asked for again.
const DAMAGED_MAX: u32 = 2;
