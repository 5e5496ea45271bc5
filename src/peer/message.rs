//! Messages between replicas as bytes.
//!
//! ```text
//! offset  type  field
//!      0  u8    kind of the body
//!      1  u8    0
//!      2  u16   shard
//!      4  u64   epoch
//!     12  u64   from: node
//!     20  u64   from: incarnation
//!     28  u64   to: node
//!     36  u64   to: incarnation
//!     44        body
//! ```
//! All numbers are big-endian; counts and lengths are varints. Entries are in the layout of the log, which says how long
//! each is, and are checked against their checksums when they are read.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    limits::{APPEND_BYTES, CHUNK_ROWS_MAX, EPOCHS_REMEMBERED, PEER_MESSAGE_LEN_MAX},
    replication::{
        Append, Body, Chunk, Envelope, EpochHistory, FollowerState, LogEnd, LogEntry, Refusal,
        StateRow,
    },
    types::{Boot, Epoch, Incarnation, Lsn, NodeId, ShardId},
    wire::{BadEntry, Entry, get_varint, put_varint, varint_len},
};

/// Length of what stands before the body.
pub const ENVELOPE_HEADER_LEN: usize = 44;

const START_EPOCH: u8 = 1;
const ALIGN: u8 = 2;
const APPEND: u8 = 3;
const INSTALL_BEGIN: u8 = 4;
const INSTALL_CHUNK: u8 = 5;
const STATE: u8 = 6;
const DURABLE: u8 = 7;
const CHUNK_DURABLE: u8 = 8;
const REFUSED: u8 = 9;
const BARRIER: u8 = 10;
const BARRIER_HELD: u8 = 11;

const STALE_EPOCH: u8 = 1;
const NOT_ALIGNED: u8 = 2;
const GAP: u8 = 3;
const DIVERGED: u8 = 4;
const DISK_FULL: u8 = 5;

const END_LEN: usize = 24;
const EPOCH_START_LEN: usize = 16;

/// Why bytes are no message between replicas.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// They end inside a field.
    #[error("message ends in the middle of its {0}")]
    Truncated(&'static str),
    /// They go on behind the last field.
    #[error("message is followed by {0} bytes too many")]
    Trailing(usize),
    /// A kind of a newer version.
    #[error("message has unknown kind {0}")]
    Kind(u8),
    /// A refusal of a newer version.
    #[error("message has unknown refusal {0}")]
    Refusal(u8),
    /// A field holds what no writer of this version makes.
    #[error("message has a bad {0}")]
    Field(&'static str),
    /// An entry in it is bad.
    #[error(transparent)]
    Entry(#[from] BadEntry),
    /// An entry in it is of another shard.
    #[error("message of shard {shard} holds an entry of shard {found}")]
    OtherShard {
        /// Whose message.
        shard: ShardId,
        /// Whose entry.
        found: ShardId,
    },
}

/// A message that must not be sent: its reader would refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "message of {len} bytes and {rows} rows is over its limit of {PEER_MESSAGE_LEN_MAX} bytes and {CHUNK_ROWS_MAX} rows"
)]
pub struct TooLarge {
    /// Its bytes.
    pub len: usize,
    /// Its rows of derived state.
    pub rows: usize,
}

/// The bytes that a message takes.
#[must_use]
pub fn encoded_len(envelope: &Envelope<Entry>) -> usize {
    let body = match &envelope.body {
        Body::StartEpoch => 0,
        Body::Align(_) => END_LEN,
        Body::Append(append) => END_LEN + 8 + entries_len(&append.entries),
        Body::InstallBegin { history, .. } => 4 + END_LEN + 4 + history_len(history),
        Body::InstallChunk { chunk, .. } => 4 + 4 + chunk_len(chunk),
        Body::State(state) => END_LEN + 8 + 1 + history_len(&state.history),
        Body::Durable(_) | Body::Barrier(_) | Body::BarrierHeld(_) => 8,
        Body::ChunkDurable { .. } => 4 + 4,
        Body::Refused(Refusal::StaleEpoch(_) | Refusal::Gap(_)) => 9,
        Body::Refused(Refusal::NotAligned | Refusal::Diverged | Refusal::DiskFull) => 1,
    };
    ENVELOPE_HEADER_LEN + body
}

fn entries_len(entries: &[Entry]) -> usize {
    entries.iter().map(|entry| entry.header.entry_len()).sum()
}

fn history_len(history: &EpochHistory) -> usize {
    let count = history.starts().count();
    varint_len(count as u64) + count * EPOCH_START_LEN
}

fn chunk_len(chunk: &Chunk<Entry>) -> usize {
    let bytes = |bytes: &[u8]| varint_len(bytes.len() as u64) + bytes.len();
    let rows = chunk.state.iter().map(|row| 1 + bytes(&row.key) + bytes(&row.value));
    varint_len(chunk.entries.len() as u64)
        + entries_len(&chunk.entries)
        + varint_len(chunk.state.len() as u64)
        + rows.sum::<usize>()
}

/// Appends a message to `out`.
///
/// # Errors
/// [`TooLarge`]; nothing is appended then.
pub fn encode(envelope: &Envelope<Entry>, out: &mut BytesMut) -> Result<(), TooLarge> {
    let len = encoded_len(envelope);
    let rows = match &envelope.body {
        Body::InstallChunk { chunk, .. } => chunk.state.len(),
        _ => 0,
    };
    if len > PEER_MESSAGE_LEN_MAX || rows > CHUNK_ROWS_MAX {
        return Err(TooLarge { len, rows });
    }
    out.reserve(len);
    out.put_u8(kind(&envelope.body));
    out.put_u8(0);
    out.put_u16(envelope.shard.0);
    out.put_u64(envelope.epoch.0);
    put_boot(envelope.from, out);
    put_boot(envelope.to, out);
    match &envelope.body {
        Body::StartEpoch => {}
        Body::Align(end) => put_end(*end, out),
        Body::Append(append) => {
            put_end(append.prev, out);
            out.put_u64(append.high_watermark.0);
            append.entries.iter().for_each(|entry| entry.encode(out));
        }
        Body::InstallBegin { number, base, history, chunks } => {
            out.put_u32(*number);
            put_end(*base, out);
            out.put_u32(*chunks);
            put_history(history, out);
        }
        Body::InstallChunk { number, index, chunk } => {
            out.put_u32(*number);
            out.put_u32(*index);
            put_chunk(chunk, out);
        }
        Body::State(state) => {
            put_end(state.end, out);
            out.put_u64(state.high_watermark.0);
            out.put_u8(state.installing.into());
            put_history(&state.history, out);
        }
        Body::Durable(lsn) => out.put_u64(lsn.0),
        Body::ChunkDurable { number, next } => {
            out.put_u32(*number);
            out.put_u32(*next);
        }
        Body::Refused(refusal) => put_refusal(*refusal, out),
        Body::Barrier(number) | Body::BarrierHeld(number) => out.put_u64(*number),
    }
    Ok(())
}

fn kind<E>(body: &Body<E>) -> u8 {
    match body {
        Body::StartEpoch => START_EPOCH,
        Body::Align(_) => ALIGN,
        Body::Append(_) => APPEND,
        Body::InstallBegin { .. } => INSTALL_BEGIN,
        Body::InstallChunk { .. } => INSTALL_CHUNK,
        Body::State(_) => STATE,
        Body::Durable(_) => DURABLE,
        Body::ChunkDurable { .. } => CHUNK_DURABLE,
        Body::Refused(_) => REFUSED,
        Body::Barrier(_) => BARRIER,
        Body::BarrierHeld(_) => BARRIER_HELD,
    }
}

fn put_boot(boot: Boot, out: &mut BytesMut) {
    out.put_u64(boot.node.0);
    out.put_u64(boot.incarnation.0);
}

fn put_end(end: LogEnd, out: &mut BytesMut) {
    out.put_u64(end.lsn.0);
    out.put_u64(end.epoch.0);
    out.put_u64(end.chain);
}

fn put_history(history: &EpochHistory, out: &mut BytesMut) {
    put_varint(out, history.starts().count() as u64);
    for (epoch, start) in history.starts() {
        out.put_u64(epoch.0);
        out.put_u64(start.0);
    }
}

fn put_chunk(chunk: &Chunk<Entry>, out: &mut BytesMut) {
    put_varint(out, chunk.entries.len() as u64);
    chunk.entries.iter().for_each(|entry| entry.encode(out));
    put_varint(out, chunk.state.len() as u64);
    for row in &chunk.state {
        out.put_u8(row.kind);
        for bytes in [&row.key, &row.value] {
            put_varint(out, bytes.len() as u64);
            out.put_slice(bytes);
        }
    }
}

fn put_refusal(refusal: Refusal, out: &mut BytesMut) {
    match refusal {
        Refusal::StaleEpoch(epoch) => {
            out.put_u8(STALE_EPOCH);
            out.put_u64(epoch.0);
        }
        Refusal::NotAligned => out.put_u8(NOT_ALIGNED),
        Refusal::Gap(lsn) => {
            out.put_u8(GAP);
            out.put_u64(lsn.0);
        }
        Refusal::Diverged => out.put_u8(DIVERGED),
        Refusal::DiskFull => out.put_u8(DISK_FULL),
    }
}

/// Reads the message that takes the whole of `bytes`. Bodies of entries share the memory of `bytes`.
///
/// # Errors
/// [`BadMessage`], which names what is wrong.
pub fn decode(bytes: Bytes) -> Result<Envelope<Entry>, BadMessage> {
    let mut input = Input { bytes };
    let (kind, zero) = (input.u8("kind")?, input.u8("kind")?);
    if zero != 0 {
        return Err(BadMessage::Field("filler"));
    }
    let shard = ShardId(input.u16("shard")?);
    let epoch = Epoch(input.u64("epoch")?);
    let (from, to) = (input.boot()?, input.boot()?);
    let body = input.body(kind, shard)?;
    match input.bytes.len() {
        0 => Ok(Envelope { shard, epoch, from, to, body }),
        left => Err(BadMessage::Trailing(left)),
    }
}

/// What is left to read.
struct Input {
    bytes: Bytes,
}

macro_rules! number {
    ($name:ident, $type:ty, $get:ident) => {
        fn $name(&mut self, what: &'static str) -> Result<$type, BadMessage> {
            self.need(size_of::<$type>(), what)?;
            Ok(self.bytes.$get())
        }
    };
}

impl Input {
    number!(u8, u8, get_u8);
    number!(u16, u16, get_u16);
    number!(u32, u32, get_u32);
    number!(u64, u64, get_u64);

    fn need(&self, len: usize, what: &'static str) -> Result<(), BadMessage> {
        if self.bytes.len() < len { Err(BadMessage::Truncated(what)) } else { Ok(()) }
    }

    fn len(&mut self, what: &'static str) -> Result<usize, BadMessage> {
        let len = get_varint(&mut self.bytes).map_err(|_| BadMessage::Truncated(what))?;
        usize::try_from(len).map_err(|_| BadMessage::Field(what))
    }

    fn boot(&mut self) -> Result<Boot, BadMessage> {
        let node = NodeId(self.u64("boot")?);
        Ok(Boot { node, incarnation: Incarnation(self.u64("boot")?) })
    }

    fn end(&mut self) -> Result<LogEnd, BadMessage> {
        let (lsn, epoch) = (Lsn(self.u64("log end")?), Epoch(self.u64("log end")?));
        Ok(LogEnd { lsn, epoch, chain: self.u64("log end")? })
    }

    fn body(&mut self, kind: u8, shard: ShardId) -> Result<Body<Entry>, BadMessage> {
        Ok(match kind {
            START_EPOCH => Body::StartEpoch,
            ALIGN => Body::Align(self.end()?),
            APPEND => {
                let (prev, high_watermark) = (self.end()?, Lsn(self.u64("high watermark")?));
                let mut entries = Vec::new();
                while !self.bytes.is_empty() {
                    entries.push(self.entry(shard)?);
                }
                Body::Append(Append { prev, entries, high_watermark })
            }
            INSTALL_BEGIN => {
                let (number, base) = (self.u32("number of the install")?, self.end()?);
                let chunks = self.u32("number of chunks")?;
                Body::InstallBegin { number, base, history: self.history()?, chunks }
            }
            INSTALL_CHUNK => {
                let number = self.u32("number of the install")?;
                let index = self.u32("number of the chunk")?;
                Body::InstallChunk { number, index, chunk: self.chunk(shard)? }
            }
            STATE => {
                let (end, high_watermark) = (self.end()?, Lsn(self.u64("high watermark")?));
                let installing = match self.u8("install mark")? {
                    0 => false,
                    1 => true,
                    _ => return Err(BadMessage::Field("install mark")),
                };
                let history = self.history()?;
                Body::State(FollowerState { end, history, high_watermark, installing })
            }
            DURABLE => Body::Durable(Lsn(self.u64("durable end")?)),
            CHUNK_DURABLE => {
                let number = self.u32("number of the install")?;
                Body::ChunkDurable { number, next: self.u32("number of the chunk")? }
            }
            REFUSED => Body::Refused(self.refusal()?),
            BARRIER => Body::Barrier(self.u64("number of the question")?),
            BARRIER_HELD => Body::BarrierHeld(self.u64("number of the question")?),
            kind => return Err(BadMessage::Kind(kind)),
        })
    }

    fn entry(&mut self, shard: ShardId) -> Result<Entry, BadMessage> {
        let entry = Entry::decode(&self.bytes)?;
        if entry.header.shard != shard {
            return Err(BadMessage::OtherShard { shard, found: entry.header.shard });
        }
        self.bytes.advance(entry.header.entry_len());
        Ok(entry)
    }

    /// Epochs rise in a log, and in what is said of one.
    fn history(&mut self) -> Result<EpochHistory, BadMessage> {
        let count = self.len("epoch history")?;
        if count > EPOCHS_REMEMBERED {
            return Err(BadMessage::Field("epoch history"));
        }
        self.need(count * EPOCH_START_LEN, "epoch history")?;
        let mut history = EpochHistory::default();
        for _ in 0..count {
            let epoch = Epoch(self.u64("epoch history")?);
            if epoch <= history.last_epoch() {
                return Err(BadMessage::Field("epoch history"));
            }
            history.note(epoch, Lsn(self.u64("epoch history")?));
        }
        Ok(history)
    }

    fn chunk(&mut self, shard: ShardId) -> Result<Chunk<Entry>, BadMessage> {
        let mut chunk = Chunk { entries: Vec::new(), state: Vec::new() };
        for _ in 0..self.len("entries")? {
            chunk.entries.push(self.entry(shard)?);
        }
        let rows = self.len("state")?;
        if rows > CHUNK_ROWS_MAX {
            return Err(BadMessage::Field("state"));
        }
        for _ in 0..rows {
            let kind = self.u8("state")?;
            chunk.state.push(StateRow { kind, key: self.slice()?, value: self.slice()? });
        }
        Ok(chunk)
    }

    fn slice(&mut self) -> Result<Vec<u8>, BadMessage> {
        let len = self.len("state")?;
        self.need(len, "state")?;
        Ok(self.bytes.split_to(len).to_vec())
    }

    fn refusal(&mut self) -> Result<Refusal, BadMessage> {
        Ok(match self.u8("refusal")? {
            STALE_EPOCH => Refusal::StaleEpoch(Epoch(self.u64("refusal")?)),
            NOT_ALIGNED => Refusal::NotAligned,
            GAP => Refusal::Gap(Lsn(self.u64("refusal")?)),
            DIVERGED => Refusal::Diverged,
            DISK_FULL => Refusal::DiskFull,
            code => return Err(BadMessage::Refusal(code)),
        })
    }
}

/// Cuts an append into several of about [`APPEND_BYTES`]; other messages come back as they are.
#[must_use]
pub fn split(envelope: Envelope<Entry>) -> Vec<Envelope<Entry>> {
    if encoded_len(&envelope) <= APPEND_BYTES + ENVELOPE_HEADER_LEN {
        return vec![envelope];
    }
    let Envelope { shard, epoch, from, to, body } = envelope;
    let append = match body {
        Body::Append(append) => append,
        body => return vec![Envelope { shard, epoch, from, to, body }],
    };
    let high_watermark = append.high_watermark;
    let mut parts = Vec::new();
    let mut part: Append<Entry> = Append { prev: append.prev, entries: Vec::new(), high_watermark };
    let mut len = 0;
    for entry in append.entries {
        let entry_len = entry.header.entry_len();
        if len + entry_len > APPEND_BYTES
            && let Some(last) = part.entries.last()
        {
            let next = Append { prev: last.end(), entries: Vec::new(), high_watermark };
            parts.push(std::mem::replace(&mut part, next));
            len = 0;
        }
        len += entry_len;
        part.entries.push(entry);
    }
    parts.push(part);
    let whole = |append| Envelope { shard, epoch, from, to, body: Body::Append(append) };
    parts.into_iter().map(whole).collect()
}

#[cfg(test)]
mod tests;
