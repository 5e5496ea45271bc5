//! A subscribe stream: stored batches out, as fast as the client takes them.
//!
//! Nothing is queued for a reader: the log is read when the stream has taken what was read before. A reader that
//! stands still costs its stream's send window and one chunk.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quinn::SendStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    engine::{Engine, soon},
    relay::{Relays, electing},
    remote::{FRAMES_MAX, Remote},
    streams::{self, StreamError},
    topics::{Partition, Topic},
};
use crate::{
    limits::READ_BYTES_MAX,
    net::frames::FrameReader,
    storage::{ReadError, Store},
    types::{Offset, Position},
    wire::{
        BatchHeader, CaughtUp, Code, Deliver, Detail, Fault, FrameType, ReadStart, SubscribeOk,
        SubscribeOpen, put_frame_head,
    },
};

/// What one subscribe stream works with.
pub(super) struct SubscribeStream<'a> {
    pub(super) engine: &'a Arc<Engine>,
    pub(super) relays: &'a Arc<Relays>,
    /// Cancelled when the client is to leave.
    pub(super) leave: &'a CancellationToken,
}

struct Cursor {
    partition: Arc<Partition>,
    next: Offset,
}

impl SubscribeStream<'_> {
    /// Serves the stream until the client or the node ends it.
    pub(super) async fn serve(
        &self,
        open: SubscribeOpen,
        input: FrameReader,
        output: &mut SendStream,
    ) -> Result<(), StreamError> {
        let topic = streams::topic(self.engine, &open.topic)?;
        // Watched before the ends are read: what is committed in between wakes the reader.
        let Some(changed) = topic.partitions.first().map(|p| p.watch()) else {
            return Err(streams::unknown_topic(&topic.name).into());
        };
        let mut metadata = self.engine.group.applied();
        metadata.mark_unchanged();
        let mut cursors = Vec::new();
        let mut starts = Vec::new();
        let chosen = chosen(&topic, open.partitions.as_deref())?;
        let (held, others): (Vec<_>, Vec<_>) =
            chosen.into_iter().partition(|partition| self.holds(partition));
        if let Some(partition) = others.first().filter(|_| open.direct) {
            return Err(not_held(partition).into());
        }
        let mut remote = Remote::open(self.engine, self.relays, &topic, &open, &others).await?;
        for partition in held {
            let resume = open.resume.iter().find(|(index, _)| *index == partition.id.index);
            let from = resume.map_or(open.from, |(_, offset)| Position::Offset(*offset));
            let next = find_offset(&self.engine.store, &partition, from).await?;
            let end = partition.end();
            starts.push(ReadStart { partition: partition.id.index, from: next, end });
            cursors.push(Cursor { partition, next });
        }
        starts.append(&mut remote.starts);
        starts.sort_unstable_by_key(|start| start.partition);
        let ok = SubscribeOk { topic_id: topic.id, partitions: starts };
        streams::send(output, FrameType::SubscribeOk, &ok).await?;
        self.deliver(&topic, (cursors, remote), (changed, metadata), input, output).await
    }

    async fn deliver(
        &self,
        topic: &Topic,
        (mut cursors, mut remote): (Vec<Cursor>, Remote),
        (mut changed, mut metadata): (watch::Receiver<()>, watch::Receiver<u64>),
        mut input: FrameReader,
        output: &mut SendStream,
    ) -> Result<(), StreamError> {
        let mut caught_up = false;
        loop {
            changed.mark_unchanged();
            let mut progress = false;
            for cursor in &mut cursors {
                progress |= self.advance(topic, cursor, output).await?;
            }
            // Other nodes may be faster than the reader: what is held here has its turn.
            for _ in 0..FRAMES_MAX {
                let Some(frame) = remote.ready() else { break };
                self.pass_on(frame?, output).await?;
                progress = true;
            }
            if self.leave.is_cancelled() {
                return Err(self.engine.goodbye().into());
            }
            if progress {
                continue;
            }
            if !caught_up && let Some(mut positions) = remote.caught_up() {
                caught_up = true;
                positions.extend(cursors.iter().map(|c| (c.partition.id.index, c.next)));
                positions.sort_unstable();
                streams::send(output, FrameType::CaughtUp, &CaughtUp { positions }).await?;
            }
            tokio::select! {
                // The sender lives in the partitions that this holds.
                _ = changed.changed() => {}
                // The sender lives in the group.
                _ = metadata.changed() => {
                    for cursor in &cursors {
                        self.check_held(&cursor.partition)?;
                    }
                }
                brought = remote.next() => {
                    if let Some(body) = brought? {
                        self.pass_on(body, output).await?;
                    }
                }
                () = self.leave.cancelled() => return Err(self.engine.goodbye().into()),
                ended = ended(&mut input) => {
                    ended?;
                    return streams::finish(output);
                }
                // The client wants no more: no error, and nobody to tell.
                _ = output.stopped() => return Ok(()),
            }
        }
    }

    /// Whether this node has all of a partition that is committed, as members of the commit set do. Of others it would
    /// show nothing, or what was long ago.
    fn holds(&self, partition: &Partition) -> bool {
        let core = self.engine.slot(partition.shard).lock();
        core.replica.config().set.contains(&self.engine.me.node)
            && !self.engine.damage.is_elsewhere(partition.shard)
    }

    /// Ends the stream when this node holds a partition no more: opened anew, it reads elsewhere.
    fn check_held(&self, partition: &Partition) -> Result<(), Fault> {
        let lost = || electing("this node holds a partition no more");
        self.holds(partition).then_some(()).ok_or_else(lost)
    }

    /// Sends on what another node has sent.
    async fn pass_on(&self, body: Bytes, output: &mut SendStream) -> Result<(), StreamError> {
        if let Ok(deliver) = Deliver::decode(body.clone())
            && let Ok(header) = BatchHeader::decode(&deliver.batch)
        {
            self.engine.metrics.delivered(u64::from(header.records), deliver.batch.len());
        }
        let mut head = BytesMut::new();
        put_frame_head(FrameType::Deliver, body.len(), &mut head);
        Ok(output.write_all_chunks(&mut [head.freeze(), body]).await?)
    }

    /// Sends one chunk of one partition, if there is one.
    async fn advance(
        &self,
        topic: &Topic,
        cursor: &mut Cursor,
        output: &mut SendStream,
    ) -> Result<bool, StreamError> {
        let end = cursor.partition.end();
        if cursor.partition.is_dropped() {
            return Err(streams::unknown_topic(&topic.name).into());
        }
        if cursor.next >= end {
            return Ok(false);
        }
        let recent = cursor.partition.recent_from(cursor.next, end, READ_BYTES_MAX);
        let (batches, next) = match recent {
            Some(found) => found,
            None => match read(self.engine, &cursor.partition, cursor.next, end).await {
                Ok(found) => found,
                Err(fault) => {
                    // Damage may be known by now: then another node has the records.
                    self.check_held(&cursor.partition)?;
                    return Err(fault.into());
                }
            },
        };
        let bytes = send_batches(cursor.partition.id.index, batches, output).await?;
        self.engine.metrics.delivered(next.0 - cursor.next.0, bytes);
        cursor.next = next;
        Ok(true)
    }
}

/// The refusal of a partition that this node does not hold.
pub(super) fn not_held(partition: &Partition) -> Fault {
    let index = partition.id.index;
    let message = format!("this node holds no whole copy of partition {index}, others do");
    let hint = "read from another node of the site: dunlin cluster status shows who holds what";
    let fault = Fault::new(Code::NotPrimary, message).with_hint(hint);
    Fault { retry: soon(), ..fault }
}

/// Ends when the client ends its side: it wants no more.
async fn ended(input: &mut FrameReader) -> Result<(), StreamError> {
    match input.next().await? {
        None => Ok(()),
        Some(frame) => Err(streams::unexpected(frame.kind).into()),
    }
}

fn chosen(topic: &Topic, wanted: Option<&[u32]>) -> Result<Vec<Arc<Partition>>, Fault> {
    let Some(wanted) = wanted else { return Ok(topic.partitions.clone()) };
    let mut wanted = wanted.to_vec();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        return Err(Fault::new(Code::Invalid, "the list of partitions is empty"));
    }
    wanted.into_iter().map(|index| streams::partition(topic, index).cloned()).collect()
}

/// The offset that a position means in a partition right now.
pub(super) async fn find_offset(
    store: &Store,
    partition: &Arc<Partition>,
    position: Position,
) -> Result<Offset, Fault> {
    let (start, end) = (partition.start(), partition.end());
    match position {
        Position::Earliest => Ok(start),
        Position::Latest => Ok(end),
        Position::Offset(offset) if offset < start => {
            let message = format!(
                "offset {offset} of partition {} is not kept any more, the oldest is {start}",
                partition.id.index
            );
            Err(Fault::new(Code::OutOfRange, message).with_detail(Detail {
                start: Some(start),
                end: Some(end),
                ..Detail::default()
            }))
        }
        Position::Offset(offset) => Ok(offset),
        Position::Time(time) => {
            let id = partition.id;
            blocking(store, move |store| store.offset_at_time(id, time, end)).await
        }
    }
}

async fn read(
    engine: &Engine,
    partition: &Arc<Partition>,
    from: Offset,
    end: Offset,
) -> Result<(Vec<Bytes>, Offset), Fault> {
    let id = partition.id;
    let (store, at) = (engine.store.clone(), partition.shard);
    let work = move || store.read(id, from, end, READ_BYTES_MAX);
    let chunk = match tokio::task::spawn_blocking(work).await {
        Ok(Ok(chunk)) => chunk,
        Ok(Err(error)) => {
            engine.suspect(at, &error);
            return Err(read_fault(&error));
        }
        // As below.
        Err(_) => return Err(Fault::new(Code::Internal, "the read did not end")),
    };
    if chunk.batches.is_empty() {
        // Committed, and not there: never to be skipped.
        tracing::error!(partition = %id, offset = %from, "committed records are missing from the log");
        return Err(Fault::new(Code::Corrupted, format!("offset {from} is missing from the log")));
    }
    Ok((chunk.batches, chunk.next))
}

async fn blocking<T: Send + 'static>(
    store: &Store,
    work: impl FnOnce(&Store) -> Result<T, ReadError> + Send + 'static,
) -> Result<T, Fault> {
    let store = store.clone();
    match tokio::task::spawn_blocking(move || work(&store)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(read_fault(&error)),
        // The runtime is going down, or the read panicked, which the panic hook has logged.
        Err(_) => Err(Fault::new(Code::Internal, "the read did not end")),
    }
}

fn read_fault(error: &ReadError) -> Fault {
    let message = error.to_string();
    match error {
        ReadError::OutOfRange { start, end } => Fault::new(Code::OutOfRange, message)
            .with_detail(Detail { start: Some(*start), end: Some(*end), ..Detail::default() }),
        ReadError::NotFound(_) => Fault::new(Code::UnknownTopic, message),
        ReadError::Corrupted { .. } => {
            tracing::error!(%error, "stored records are corrupted");
            Fault::new(Code::Corrupted, message)
        }
        ReadError::Store(_) | ReadError::LogCorrupted { .. } | ReadError::LogOutOfRange { .. } => {
            tracing::error!(%error, "the log cannot be read");
            Fault::new(Code::Internal, "the node cannot read its log")
                .with_hint("see the node's log")
        }
    }
}

async fn send_batches(
    partition: u32,
    batches: Vec<Bytes>,
    output: &mut SendStream,
) -> Result<usize, StreamError> {
    /// Below this, copying is cheaper than a piece of its own.
    const COPY_MAX: usize = 4_096;
    let mut pieces = Vec::new();
    let mut buffer = BytesMut::new();
    let mut bytes = 0;
    for batch in batches {
        bytes += batch.len();
        Deliver::encode_head(partition, batch.len(), &mut buffer);
        if batch.len() <= COPY_MAX {
            buffer.extend_from_slice(&batch);
        } else {
            pieces.push(buffer.split().freeze());
            pieces.push(batch);
        }
    }
    pieces.push(buffer.freeze());
    output.write_all_chunks(&mut pieces).await?;
    Ok(bytes)
}
