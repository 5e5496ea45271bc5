//! The journal: where small commits become durable, before they go into the database in bulk.
//!
//! A commit of a copy-on-write tree writes a dozen pages and flushes twice, however little it holds. A frame of the
//! journal is one write to blocks that the file has already, and one flush. The journal is bounded, so what it holds is
//! read at open in no time. It has two halves: one is written while the entries of the other move into the database.
//!
//! | at | type | field of the first page |
//! |---|---|---|
//! | 0 | 8 bytes | `dunlinJ1` |
//! | 8 | u64 | length of the file |
//! | 16 | u64 | checksum: XXH3-64 of the bytes before it, seeded by the disk id |
//!
//! | at | type | field of a frame |
//! |---|---|---|
//! | 0 | u64 | checksum: XXH3-64 of all that follows, seeded by the disk id |
//! | 8 | u64 | number, one more than that of the frame before |
//! | 16 | u32 | length of the entries |
//! | 20 | u32 | 0 |
//! | 24 | | log entries, whole, in the order in which they were committed; facts behind them |
//!
//! A frame begins on a page of its own: writing it never touches bytes of one that was acknowledged. Frames of a half
//! follow each other from its begin on. What moves into the database are all frames of a half, or of both.

use bytes::{BufMut, Bytes};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{backend::Backend, error::StoreError};
use crate::wire::Entry;

const MAGIC: &[u8; 8] = b"dunlinJ1";
pub(super) const PAGE: usize = 4096;
const FRAME_HEADER: usize = 24;
/// A larger commit goes straight into the database: the journal would have each byte written twice. Up to here one write and one
/// flush are worth that: the database takes two flushes and a dozen pages, which a wave of 64 producers waits for.
const COMMIT_MAX: usize = 128 * 1024;
/// The same as a part of a small journal.
const COMMIT_SHARE: usize = 32;
/// Bytes of entries with which a half is ripe to move, as a part of the journal: 2 MiB with the default size. Much less
/// would cost too many pages of the database, much more would keep readers' newest records in memory twice.
const RIPE_SHARE: usize = 4;
/// Smallest journal, in pages: one for the header, and one for a frame in each half.
const PAGES_MIN: usize = 3;

/// The journal of a store, open for writing.
#[derive(Debug)]
pub(super) struct Journal {
    file: Box<dyn Backend>,
    seed: u64,
    len: usize,
    /// The half that is written.
    half: usize,
    /// Where the next frame goes.
    at: usize,
    /// Bytes of entries in the half that is written.
    bytes: usize,
    /// The number of the next frame.
    next: u64,
    /// Where a frame is put together, on a page of memory: only from there can it go to the disk as it is.
    buffer: Vec<u8>,
}

impl Journal {
    /// Makes a journal of `len` bytes, all of them written: a frame must find its blocks.
    ///
    /// # Errors
    /// [`StoreError`] when the disk refuses.
    pub(super) fn create(
        file: Box<dyn Backend>,
        disk_id: u128,
        len: usize,
    ) -> Result<Self, StoreError> {
        const STRIDE: usize = 1024 * 1024;
        let len = len.next_multiple_of(PAGE).max(PAGES_MIN * PAGE);
        let seed = seed(disk_id);
        file.set_len(0)?;
        file.set_len(len as u64)?;
        let zeros = vec![0; STRIDE.min(len)];
        for at in (0..len).step_by(STRIDE) {
            file.write(at as u64, &zeros[..STRIDE.min(len - at)])?;
        }
        let mut head = Vec::with_capacity(24);
        head.extend_from_slice(MAGIC);
        head.put_u64(len as u64);
        head.put_u64(xxh3_64_with_seed(&head, seed));
        file.write(0, &head)?;
        file.sync_data()?;
        Ok(Self::at_start(file, seed, len, 0))
    }

    /// Opens a journal whose frames before `next` are in the database. Returns the entries of those that are not, frame
    /// by frame.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] when the file is not the journal of this store; [`StoreError::Corrupted`] when a frame
    /// that was acknowledged cannot be read.
    pub(super) fn open(
        file: Box<dyn Backend>,
        disk_id: u128,
        next: u64,
    ) -> Result<(Self, Vec<Bytes>), StoreError> {
        let seed = seed(disk_id);
        let foreign = |why: &str| StoreError::Foreign(format!("journal: {why}"));
        let len = usize::try_from(file.len()?).map_err(|_| foreign("too long"))?;
        if len == 0 {
            return Err(foreign("it is missing or empty, but the log needs it"));
        }
        let mut head = [0; 24];
        if len < PAGES_MIN * PAGE {
            return Err(foreign("it is cut short"));
        }
        file.read(0, &mut head)?;
        let word = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| head[at + i]));
        if &head[..8] != MAGIC {
            return Err(foreign("it is of another program, or of a newer version"));
        }
        if word(16) != xxh3_64_with_seed(&head[..16], seed) {
            return Err(foreign("it belongs to another store, or its first page is damaged"));
        }
        if word(8) != len as u64 {
            return Err(foreign("its length has changed"));
        }
        let mut journal = Self::at_start(file, seed, len, next);
        let mut frames = Vec::new();
        // Either half may be the older one.
        for half in [0, 1, 0] {
            let mut at = journal.begin(half);
            while let Some(entries) = journal.frame(at, half)? {
                at += frame_len(entries.len());
                journal.next += 1;
                frames.push(entries);
            }
        }
        journal.check_end()?;
        Ok((journal, frames))
    }

    fn at_start(file: Box<dyn Backend>, seed: u64, len: usize, next: u64) -> Self {
        Self { file, seed, len, half: 0, at: PAGE, bytes: 0, next, buffer: Vec::new() }
    }

    /// Tells whether a commit of `bytes` should go into the journal at all.
    pub(super) fn takes(&self, bytes: usize) -> bool {
        bytes <= COMMIT_MAX.min(self.len / COMMIT_SHARE)
            && self.begin(0) + frame_len(bytes) <= self.end(0)
    }

    /// Tells whether it fits into the half that is written.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.at + frame_len(bytes) <= self.end(self.half)
    }

    /// Tells whether the half that is written holds enough to be worth a move into the database.
    pub(super) fn is_ripe(&self) -> bool {
        self.bytes >= self.len / RIPE_SHARE
    }

    /// The number of the next frame: those before it are safe, here or in the database.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Writes entries and facts, `bytes` in all, and flushes them. Returns them as they lie in the log, one after the
    /// other.
    ///
    /// # Errors
    /// [`StoreError`]; nothing may be written after it.
    pub(super) fn append(
        &mut self,
        entries: &[Entry],
        facts: &[u8],
        bytes: usize,
    ) -> Result<Bytes, StoreError> {
        let padded = frame_len(bytes);
        let frame = page_aligned(&mut self.buffer, padded);
        let (mut header, mut body) = frame.split_at_mut(FRAME_HEADER);
        header.put_u64(0);
        header.put_u64(self.next);
        header.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
        header.put_u32(0);
        for entry in entries {
            entry.encode(&mut body);
        }
        body.put_slice(facts);
        body.fill(0);
        let checksum = xxh3_64_with_seed(&frame[8..FRAME_HEADER + bytes], self.seed);
        frame[..8].copy_from_slice(&checksum.to_be_bytes());
        let rows = Bytes::copy_from_slice(&frame[FRAME_HEADER..FRAME_HEADER + bytes]);
        self.file.write(self.at as u64, frame)?;
        self.file.sync_data()?;
        self.at += padded;
        self.bytes += bytes;
        self.next += 1;
        Ok(rows)
    }

    /// Goes on in the other half. All frames in that one must be in the database.
    pub(super) fn switch(&mut self) {
        self.half = 1 - self.half;
        self.restart();
    }

    /// Starts the half over: all frames are in the database.
    pub(super) fn restart(&mut self) {
        self.at = self.begin(self.half);
        self.bytes = 0;
    }

    fn begin(&self, half: usize) -> usize {
        let pages = self.len / PAGE - 1;
        PAGE + half * (pages / 2) * PAGE
    }

    fn end(&self, half: usize) -> usize {
        if half == 0 { self.begin(1) } else { self.len }
    }

    /// The entries of the next frame, if it lies at `at` of this half and is whole.
    fn frame(&self, at: usize, half: usize) -> Result<Option<Bytes>, StoreError> {
        match self.header(at)? {
            Some((found, len)) if found == self.next && at + frame_len(len) <= self.end(half) => {
                self.body(at, len)
            }
            _ => Ok(None),
        }
    }

    /// Number and length of what may be a frame at `at`.
    fn header(&self, at: usize) -> Result<Option<(u64, usize)>, StoreError> {
        if at + PAGE > self.len {
            return Ok(None);
        }
        let mut head = [0; FRAME_HEADER];
        self.file.read(at as u64, &mut head)?;
        let number = u64::from_be_bytes(std::array::from_fn(|i| head[8 + i]));
        let len = u32::from_be_bytes(std::array::from_fn(|i| head[16 + i])) as usize;
        let fits = len > 0 && at + frame_len(len) <= self.len;
        Ok(fits.then_some((number, len)))
    }

    fn body(&self, at: usize, len: usize) -> Result<Option<Bytes>, StoreError> {
        let mut frame = vec![0; FRAME_HEADER + len];
        self.file.read(at as u64, &mut frame)?;
        let checksum = u64::from_be_bytes(std::array::from_fn(|i| frame[i]));
        let whole = checksum == xxh3_64_with_seed(&frame[8..], self.seed);
        Ok(whole.then(|| Bytes::from(frame).slice(FRAME_HEADER..)))
    }

    /// A frame is written when the one before it is flushed: a later one behind what looks like the end shows that the
    /// end is damage.
    fn check_end(&self) -> Result<(), StoreError> {
        for at in (PAGE..self.len).step_by(PAGE) {
            if let Some((number, len)) = self.header(at)?
                && number > self.next
                && self.body(at, len)?.is_some()
            {
                let lost = self.next;
                let reason = format!(
                    "journal: frame {lost} cannot be read, but frame {number} is there: acknowledged \
                     records are damaged"
                );
                return Err(StoreError::Corrupted(reason));
            }
        }
        Ok(())
    }
}

/// So many bytes of a buffer that begin on a page of memory.
fn page_aligned(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    buffer.resize(buffer.len().max(len + PAGE), 0);
    let from = buffer.as_ptr().align_offset(PAGE).min(PAGE);
    &mut buffer[from..from + len]
}

/// Length of a frame in the file.
fn frame_len(bytes: usize) -> usize {
    (FRAME_HEADER + bytes).next_multiple_of(PAGE)
}

/// Frames of another store must not look like ours, and no client can make bytes that look like a frame.
fn seed(disk_id: u128) -> u64 {
    xxh3_64_with_seed(&disk_id.to_be_bytes(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_lies_on_pages_of_memory_whatever_came_before() {
        let mut buffer = Vec::new();
        for len in [PAGE, 5 * PAGE, PAGE, COMMIT_MAX + PAGE, 2 * PAGE] {
            let frame = page_aligned(&mut buffer, len);
            assert_eq!((frame.len(), frame.as_ptr().align_offset(PAGE)), (len, 0));
        }
        assert!(buffer.len() <= COMMIT_MAX + 2 * PAGE, "it grows to the largest frame, no further");
    }
}
