//! A publish stream: batches in, acks out.

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use bytes::{Bytes, BytesMut};
use quinn::SendStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    acks::{AckHandle, AckQueue, Outcome, Permits},
    engine::Engine,
    metrics::Metrics,
    relay::{Passed, Relay, Relays, electing},
    streams::{self, StreamError},
    topics::{Partition, Topic},
};
use crate::{
    broker::{PublishInput, Waiter},
    limits::{BATCH_LEN_MAX, PUBLISH_WINDOW_BATCHES, PUBLISH_WINDOW_BYTES},
    net::frames::FrameReader,
    types::{Acks, NodeId},
    wire::{
        BadBatch, Batch, BatchHeader, Code, Compression, Detail, Fault, FrameType, Nack, Publish,
        PublishOk, PublishOpen, entry::ENTRY_HEADER_LEN, put_control,
    },
};

/// What one publish stream works with.
pub(super) struct PublishStream<'a> {
    pub(super) engine: &'a Arc<Engine>,
    /// The ways to the other nodes.
    pub(super) relays: &'a Arc<Relays>,
    /// Bytes that this connection may have waiting for acks.
    pub(super) connection_bytes: &'a Arc<Semaphore>,
    pub(super) connection_bytes_max: u32,
    /// Cancelled when the client is to leave.
    pub(super) leave: &'a CancellationToken,
}

struct Settings {
    topic: Arc<Topic>,
    acks: Acks,
    require_copies: u32,
    open: PublishOpen,
}

impl PublishStream<'_> {
    /// Serves the stream to its end.
    pub(super) async fn serve(
        &self,
        open: PublishOpen,
        mut input: FrameReader,
        output: &mut SendStream,
    ) -> Result<(), StreamError> {
        let topic = streams::topic(self.engine, &open.topic)?;
        let ok = PublishOk {
            topic_id: topic.id,
            partitions: topic.settings.partitions,
            window_batches: PUBLISH_WINDOW_BATCHES,
            window_bytes: PUBLISH_WINDOW_BYTES.min(self.connection_bytes_max),
        };
        let (acks, require_copies) = (open.acks, open.require_copies.unwrap_or(0));
        let settings = Settings { topic, acks, require_copies, open };
        streams::send(output, FrameType::PublishOk, &ok).await?;

        let outcomes = Arc::new(AckQueue::default());
        let window = Arc::new(Semaphore::new(PUBLISH_WINDOW_BATCHES as usize));
        let reading = self.read(&settings, &mut input, &outcomes, &window);
        let gone = output.stopped();
        let writing = write(&outcomes, output, &self.engine.metrics);
        match serve_both(reading, writing, &window, gone).await? {
            Ok(()) => streams::finish(output),
            Err(StreamError::Fault(fault)) => streams::fail(output, fault).await,
            Err(error) => Err(error),
        }
    }

    async fn read(
        &self,
        settings: &Settings,
        input: &mut FrameReader,
        outcomes: &Arc<AckQueue>,
        window: &Arc<Semaphore>,
    ) -> Result<(), StreamError> {
        let mut ways = HashMap::new();
        for index in 0.. {
            let frame = tokio::select! {
                biased;
                () = self.leave.cancelled() => return Err(self.engine.goodbye().into()),
                frame = input.next() => frame?,
            };
            let Some(frame) = frame else { return Ok(()) };
            if frame.kind != FrameType::Publish {
                return Err(streams::unexpected(frame.kind).into());
            }
            let publish = Publish::decode(frame.body).map_err(|e| streams::malformed(&e))?;
            let permits = tokio::select! {
                biased;
                // Room may never come: what was not taken is sent again elsewhere.
                () = self.leave.cancelled() => return Err(self.engine.goodbye().into()),
                permits = self.permits(publish.batch.len(), window) => permits?,
            };
            let handle = AckHandle { queue: Arc::clone(outcomes), permits };
            match self.admit(settings, &publish) {
                Ok((partition, header)) if let Some(node) = self.elsewhere(settings, partition) => {
                    let passed = Passed {
                        shard: partition.shard,
                        partition: publish.partition,
                        batch: publish.batch,
                        index,
                        handle,
                    };
                    self.engine.metrics.relayed(header.records);
                    self.pass_on(settings, &mut ways, node, passed);
                }
                Ok((partition, header)) => {
                    self.hand_over(settings, partition, header, publish.batch, index, handle).await;
                }
                Err(fault) => handle.refuse(index, fault),
            }
        }
        Ok(())
    }

    async fn permits(&self, len: usize, window: &Arc<Semaphore>) -> Result<Permits, StreamError> {
        let bytes = u32::try_from(len).unwrap_or(u32::MAX).min(self.connection_bytes_max);
        let window = Arc::clone(window).acquire_owned().await;
        let bytes = Arc::clone(self.connection_bytes).acquire_many_owned(bytes).await;
        match (window, bytes) {
            (Ok(window), Ok(bytes)) => Ok([window, bytes]),
            _ => Err(self.engine.goodbye().into()),
        }
    }

    /// Everything that can be said of a batch before its shard sees it.
    fn admit<'t>(
        &self,
        settings: &'t Settings,
        publish: &Publish,
    ) -> Result<(&'t Arc<Partition>, BatchHeader), Fault> {
        let topic = &settings.topic;
        let partition = streams::partition(topic, publish.partition)?;
        if partition.is_dropped() {
            return Err(streams::unknown_topic(&topic.name));
        }
        if self.engine.is_isolated() {
            return Err(electing("this node hears no majority of the site's nodes"));
        }
        if self.engine.is_disk_low() {
            return Err(Fault::new(
                Code::DiskFull,
                "the node's disk is low, publishes are refused",
            )
            .with_hint("free space on the node, or shorten retention: dunlin topic set"));
        }
        let header = check_batch(&publish.batch).map_err(|error| bad_batch(&error))?;
        Ok((partition, header))
    }

    /// The other node that leads a partition, if batches for it are to be passed on.
    fn elsewhere(&self, settings: &Settings, partition: &Partition) -> Option<NodeId> {
        let primary = self.engine.slot(partition.shard).primary()?;
        (primary != self.engine.me.node && !settings.open.direct).then_some(primary)
    }

    fn pass_on(
        &self,
        settings: &Settings,
        ways: &mut HashMap<NodeId, Relay>,
        node: NodeId,
        passed: Passed,
    ) {
        let open = || self.relays.open(self.engine, node, settings.open.clone());
        let way = ways.entry(node).or_insert_with(open);
        if let Err(passed) = way.send(passed) {
            // That way has ended: there may be a better one by now.
            *way = open();
            // A new way has room for a whole window.
            if let Err(passed) = way.send(passed) {
                passed.handle.refuse(passed.index, self.engine.goodbye());
            }
        }
    }

    async fn hand_over(
        &self,
        settings: &Settings,
        partition: &Partition,
        header: BatchHeader,
        bytes: Bytes,
        index: u64,
        handle: AckHandle,
    ) {
        let Ok(room) = self.engine.queue.reserve(bytes.len() + ENTRY_HEADER_LEN).await else {
            handle.refuse(index, self.engine.goodbye());
            return;
        };
        self.engine.metrics.published(header.records, bytes.len());
        let batch = own_buffer(bytes);
        let input = PublishInput {
            waiter: Waiter { handle, index },
            partition: partition.id,
            acks: settings.acks,
            require_copies: settings.require_copies,
            header,
            batch,
        };
        self.engine.publish(partition.shard, input, room);
    }
}

/// The batch in a buffer of its own: it must not keep the stream's whole buffer in memory. A large one has one already.
fn own_buffer(bytes: Bytes) -> BytesMut {
    /// Below this, several frames may have come in one buffer.
    const ALONE_MIN: usize = 16 * 1024;
    if bytes.len() < ALONE_MIN {
        return BytesMut::from(&bytes[..]);
    }
    bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]))
}

/// Reads to the end of what the client sends, and writes until all of it is answered, or nobody hears the answers.
async fn serve_both<T>(
    reading: impl Future<Output = Result<(), StreamError>>,
    writing: impl Future<Output = Result<Infallible, StreamError>>,
    window: &Semaphore,
    gone: impl Future<Output = T>,
) -> Result<Result<(), StreamError>, StreamError> {
    tokio::pin!(reading, writing);
    let ended = tokio::select! {
        ended = &mut reading => ended,
        // The writer ends by an error alone: the client reads no more, so nothing is to be read from it.
        Err(error) = &mut writing => return Err(error),
    };
    tokio::select! {
        _ = window.acquire_many(PUBLISH_WINDOW_BATCHES) => Ok(ended),
        _ = gone => Ok(ended),
        Err(error) = &mut writing => Err(error),
    }
}

/// Checks a batch. Records of a body that is not compressed are checked one by one, so that a broken producer is told at once. A
/// compressed body is left to its readers: the node does no work that the producer has chosen the size of.
fn check_batch(bytes: &Bytes) -> Result<BatchHeader, BadBatch> {
    let batch = Batch::parse(bytes.clone())?;
    if batch.header().compression == Compression::None {
        for record in batch.records()? {
            record?;
        }
    }
    Ok(*batch.header())
}

fn bad_batch(error: &BadBatch) -> Fault {
    let code = match error {
        BadBatch::TooLarge { .. } | BadBatch::BodyTooLarge(_) => Code::RecordTooLarge,
        _ => Code::BadBatch,
    };
    let detail = match code {
        Code::RecordTooLarge => Detail { limit: Some(BATCH_LEN_MAX as u64), ..Detail::default() },
        _ => Detail::default(),
    };
    Fault::new(code, error.to_string()).with_detail(detail)
}

/// Sends outcomes as they come, as many as there are in one write. Ends by an error alone.
async fn write(
    outcomes: &AckQueue,
    output: &mut SendStream,
    metrics: &Metrics,
) -> Result<Infallible, StreamError> {
    let mut buffer = BytesMut::new();
    loop {
        let ready = outcomes.take().await;
        for (outcome, _) in &ready {
            match outcome {
                Outcome::Stored(ack) => ack.encode(&mut buffer),
                Outcome::Refused { index, fault } => {
                    metrics.publish_refused(fault.code.name());
                    let nack = Nack { index: *index, fault: fault.clone() };
                    put_control(FrameType::Nack, &nack, &mut buffer);
                }
            }
        }
        output.write_all(&buffer).await?;
        buffer.clear();
        drop(ready);
    }
}
