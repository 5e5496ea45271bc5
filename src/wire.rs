//! Bytes and values: frames, control messages, record batches, log entries.
//!
//! Layer 1. Nothing here reads a clock or a socket. Every length is checked against `limits` before memory is taken.

pub mod batch;
pub mod cbor;
mod compression;
pub mod entry;
mod record;
mod varint;

pub use batch::{BadBatch, Batch, BatchBuilder, BatchHeader, Pushed, stamp};
pub use compression::{BadCompression, Compression};
pub use entry::{BadEntry, Entry, EntryHeader, EntryKind};
pub use record::{BadRecord, Record, Records};
pub use varint::{VARINT_MAX, get_varint, put_varint, varint_len};
