//! The I/O of a publisher: opens streams, writes what the outbox sends, reads what the node answers.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use quinn::SendStream;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use super::Shared;
use crate::{
    client::{
        dial::Session,
        error::{Obstacle, PublishError, StreamError},
        link::{DELAY_MIN, Link, delay_of},
        outbox::{Effect, NoSuchBatch},
        stream::{FrameReader, control, send_control, unexpected},
        turns::{Turn, Turns},
    },
    limits::{MOVE_ACKS_BLIND_MAX, MOVE_ACKS_MAX, MOVE_RETRY},
    wire::{Ack, Frame, FrameType, Nack, PublishOk, PublishOpen, put_frame_head},
};

pub(super) struct Driver {
    shared: Arc<Shared>,
    link: Arc<Link>,
    open: PublishOpen,
}

/// A publish stream that the node has agreed to.
pub(super) struct Stream {
    send: SendStream,
    reader: FrameReader,
    ok: PublishOk,
    /// Its connection lives as long as it does.
    session: Arc<Session>,
}

/// How the work on a stream ended.
enum Worked {
    /// The publisher is closed and all is settled.
    All,
    /// Another stream takes over.
    Moved(Stream),
    Lost(StreamError),
}

/// Why there is no stream.
enum NoStream {
    /// There may be one later.
    Later(Obstacle, Duration),
    /// There will be none without a change.
    Never(PublishError),
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>, link: Arc<Link>, open: PublishOpen) -> Self {
        Self { shared, link, open }
    }

    /// Opens the first stream, before anything was sent.
    pub(super) async fn open_first(&mut self, deadline: Duration) -> Result<Stream, PublishError> {
        let mut cause = Obstacle::default();
        let opened = async {
            loop {
                match self.open_stream().await {
                    Ok(stream) => return Ok(stream),
                    Err(NoStream::Never(error)) => return Err(error),
                    // One round of dials without any answer: the caller decides whether to go on.
                    Err(NoStream::Later(Obstacle::Connect(error), _)) => {
                        return Err(PublishError::Connect(error));
                    }
                    Err(NoStream::Later(obstacle, delay)) => {
                        cause = obstacle;
                        sleep_until(Instant::now() + delay).await;
                    }
                }
            }
        };
        let opened = timeout(deadline, opened).await;
        let stream = opened.unwrap_or(Err(PublishError::Expired { after: deadline, cause }))?;
        self.shared.lock().outbox.opened(&stream.ok);
        Ok(stream)
    }

    /// Keeps a stream open and works it, until the publisher is closed and all is settled.
    pub(super) async fn run(mut self, first: Stream) {
        let mut stream = Some(first);
        loop {
            let opened = match stream.take() {
                Some(stream) => stream,
                None => match self.reopen().await {
                    Some(stream) => stream,
                    None => break,
                },
            };
            match self.work(opened).await {
                Worked::All => break,
                Worked::Moved(next) => {
                    let mut state = self.shared.lock();
                    // What has no answer in spite of the wait is sent again, under its sequence.
                    state.outbox.lost(&Obstacle::Lost("moved to another node".into()));
                    state.outbox.opened(&next.ok);
                    drop(state);
                    stream = Some(next);
                }
                Worked::Lost(ended) => self.lost(ended).await,
            }
        }
        self.shared.done.cancel();
    }

    /// Works one stream until it ends, or another connection has taken the place of its own.
    async fn work(&self, stream: Stream) -> Worked {
        let Stream { mut send, mut reader, session, .. } = stream;
        let mut next = None;
        let ended = {
            let writing = write(&self.shared, &mut send, &session.turns);
            let reading = read(&self.shared, &mut reader);
            let moving = self.successor(&session);
            tokio::pin!(writing, reading, moving);
            let mut leave_at = None;
            loop {
                tokio::select! {
                    result = &mut writing => break result.map(Some),
                    Err(error) = &mut reading => break Err(error),
                    stream = &mut moving, if next.is_none() => {
                        next = Some(stream);
                        self.shared.lock().outbox.settle();
                        self.shared.work.notify_one();
                        leave_at = Some(Instant::now() + self.acks_max());
                    }
                    () = sleep_until(leave_at.unwrap_or_else(Instant::now)), if leave_at.is_some() => {
                        break Ok(None);
                    }
                }
            }
        };
        Worked::Lost(match (ended, next) {
            (Ok(Some(Written::Settled) | None), Some(next)) => return Worked::Moved(next),
            (Ok(Some(Written::Settled) | None), None) => {
                StreamError::Lost("the stream is left".into())
            }
            (Ok(Some(Written::TopicGone)), _) => StreamError::Lost("the topic is gone".into()),
            (Ok(Some(Written::All)), _) => {
                // The node has nothing left to answer; its own end says that it has seen ours.
                let _ = timeout(FINISH_MAX, reader.next()).await;
                return Worked::All;
            }
            (Err(StreamError::Lost(why)), _) => match reader.last_words().await {
                Some(error) => error,
                None => StreamError::Lost(why),
            },
            (Err(error), _) => error,
        })
    }

    /// Waits until another connection has taken the place of this one, and opens a stream there. The old stream is worked
    /// meanwhile, and until then no failure is worth anything.
    async fn successor(&self, session: &Session) -> Stream {
        session.moved().await;
        loop {
            if let Ok(stream) = self.open_stream().await {
                return stream;
            }
            sleep_until(Instant::now() + MOVE_RETRY).await;
        }
    }

    /// How long a stream that is left waits for its acks.
    fn acks_max(&self) -> Duration {
        if self.open.producer.is_some() { MOVE_ACKS_MAX } else { MOVE_ACKS_BLIND_MAX }
    }

    /// Settles what the end of a stream settles.
    async fn lost(&self, ended: StreamError) {
        debug!(topic = %self.open.topic, error = ?ended, "publish stream ended");
        let (obstacle, fault) = match ended {
            StreamError::Fault(fault) => (Obstacle::Fault(fault.clone()), Some(fault)),
            StreamError::Lost(why) | StreamError::Protocol(why) => (Obstacle::Lost(why), None),
        };
        let mut out = Vec::new();
        self.shared.decide(&mut out, |outbox, out| {
            outbox.lost(&obstacle);
            if let Some(fault) = fault.as_ref().filter(|fault| delay_of(fault).is_none()) {
                outbox.refuse_all(&PublishError::Fault(fault.clone()), out);
            }
        });
        if let Some(delay) = fault.as_deref().and_then(delay_of) {
            self.pass(delay.max(DELAY_MIN)).await;
        }
    }

    /// Opens a stream as soon as there is something to send. None when the publisher is closed and all is settled.
    async fn reopen(&mut self) -> Option<Stream> {
        loop {
            // After a refusal nothing is left to send, and the next record may ask again.
            loop {
                let (done, empty) = {
                    let state = self.shared.lock();
                    (state.outbox.is_done(), state.outbox.is_empty())
                };
                if done {
                    return None;
                }
                if !empty {
                    break;
                }
                self.shared.work.notified().await;
            }
            let shared = Arc::clone(&self.shared);
            let opened = tokio::select! {
                opened = self.open_stream() => opened,
                () = expire(&shared) => continue,
            };
            match opened {
                Ok(stream) => {
                    self.shared.lock().outbox.opened(&stream.ok);
                    return Some(stream);
                }
                Err(NoStream::Later(obstacle, delay)) => {
                    let mut out = Vec::new();
                    self.shared.decide(&mut out, |outbox, _| outbox.hindered(&obstacle));
                    self.pass(delay).await;
                }
                Err(NoStream::Never(error)) => {
                    let mut out = Vec::new();
                    self.shared.decide(&mut out, |outbox, out| outbox.refuse_all(&error, out));
                }
            }
        }
    }

    async fn open_stream(&self) -> Result<Stream, NoStream> {
        let session = self.link.session().await.map_err(|error| {
            if error.is_definite() {
                NoStream::Never(PublishError::Connect(error))
            } else {
                NoStream::Later(Obstacle::Connect(error), DELAY_MIN)
            }
        })?;
        let opened = async {
            let (mut send, recv) = session.connection.open_bi().await?;
            send_control(&mut send, FrameType::PublishOpen, &self.open).await?;
            let mut reader = FrameReader::new(recv);
            let ok = reader.expect(FrameType::PublishOk).await?;
            Ok(Stream { send, reader, ok, session: Arc::clone(&session) })
        };
        opened.await.map_err(|error| match error {
            StreamError::Fault(fault) => match delay_of(&fault) {
                Some(delay) => NoStream::Later(Obstacle::Fault(fault), delay.max(DELAY_MIN)),
                None => NoStream::Never(PublishError::Fault(fault)),
            },
            StreamError::Lost(why) | StreamError::Protocol(why) => {
                NoStream::Later(Obstacle::Lost(why), DELAY_MIN)
            }
        })
    }

    /// Lets time pass while there is no stream.
    async fn pass(&self, delay: Duration) {
        tokio::select! {
            () = sleep_until(Instant::now() + delay) => {}
            () = expire(&self.shared) => {}
        }
    }
}

/// Settles what is past its deadline while there is no stream. Ends when nothing is left.
async fn expire(shared: &Shared) {
    let mut out = Vec::new();
    loop {
        let now = Instant::now().into_std();
        let (wake, empty) = shared.decide(&mut out, |outbox, out| {
            outbox.poll(now, out);
            (outbox.next_wake(now), outbox.is_empty())
        });
        match wake {
            _ if empty => return,
            Some(at) => tokio::select! {
                () = sleep_until(at.into()) => {}
                () = shared.work.notified() => {}
            },
            None => shared.work.notified().await,
        }
    }
}

/// Why nothing more is written.
enum Written {
    /// The publisher is closed and all is settled.
    All,
    /// The topic that the stream leads to is no more, and all that was sent is answered.
    TopicGone,
    /// Another stream takes over, and all that was sent is answered.
    Settled,
}

/// Writes what is due.
async fn write(
    shared: &Shared,
    send: &mut SendStream,
    turns: &Turns,
) -> Result<Written, StreamError> {
    let mut turn = Turn::default();
    let mut out = Vec::new();
    let mut chunks: Vec<Bytes> = Vec::new();
    loop {
        let now = Instant::now().into_std();
        let (before, wake, done, gone, settled) = shared.decide(&mut out, |outbox, out| {
            let before = outbox.unanswered();
            outbox.poll(now, out);
            let (wake, done) = (outbox.next_wake(now), outbox.is_done());
            (before, wake, done, outbox.must_reopen(), outbox.is_settled())
        });
        let mut heads = BytesMut::new();
        for effect in out.drain(..) {
            let Effect::Send { partition, bytes } = effect else { continue };
            put_frame_head(FrameType::Publish, 4 + bytes.len(), &mut heads);
            heads.put_u32(partition);
            chunks.push(heads.split().freeze());
            chunks.push(bytes);
        }
        if !chunks.is_empty() {
            let bytes = chunks.iter().map(Bytes::len).sum();
            // Fails only on a stream that is over, and then writing says so.
            let _ = send.set_priority(turn.next(turns, bytes, chunks.len() / 2, before));
            send.write_all_chunks(&mut chunks).await?;
            chunks.clear();
            continue;
        }
        if done {
            // An error says that the node has ended the stream, and nothing waits for it any more.
            let _ = send.finish();
            return Ok(Written::All);
        }
        if gone {
            return Ok(Written::TopicGone);
        }
        if settled {
            return Ok(Written::Settled);
        }
        match wake {
            Some(at) => tokio::select! {
                () = sleep_until(at.into()) => {}
                () = shared.work.notified() => {}
            },
            None => shared.work.notified().await,
        }
    }
}

/// Hears what the node answers, for as long as it does.
async fn read(shared: &Shared, reader: &mut FrameReader) -> Result<Infallible, StreamError> {
    let mut out = Vec::new();
    loop {
        let Some(mut frame) = reader.next().await? else {
            return Err(StreamError::Lost("the node ended the stream".into()));
        };
        let now = Instant::now().into_std();
        shared.decide(&mut out, |outbox, out| {
            // All that came together is taken together: one lock, one wake.
            loop {
                answer(outbox, &frame, now, out)?;
                match reader.buffered()? {
                    Some(next) => frame = next,
                    None => return Ok::<(), StreamError>(()),
                }
            }
        })?;
        shared.work.notify_one();
    }
}

fn answer(
    outbox: &mut crate::client::outbox::Outbox,
    frame: &Frame,
    now: std::time::Instant,
    out: &mut Vec<Effect>,
) -> Result<(), StreamError> {
    let protocol = |error: NoSuchBatch| StreamError::Protocol(error.to_string());
    match frame.kind {
        FrameType::Ack => {
            let ack = Ack::decode(&frame.body)
                .map_err(|error| StreamError::Protocol(error.to_string()))?;
            outbox.acked(&ack, out).map_err(protocol)
        }
        FrameType::Nack => {
            let nack: Nack = control(frame)?;
            outbox.nacked(now, nack.index, &nack.fault, out).map_err(protocol)
        }
        _ => Err(unexpected(frame)),
    }
}

/// Nothing is waited for any more: a node that does not end its side is not worth more.
const FINISH_MAX: Duration = Duration::from_secs(1);
