//! A log entry from bytes that a disk or another node gave, with lengths and checksum mended so that the body is reached too.
#![no_main]

use bytes::Bytes;
use dunlin::wire::{Entry, EntryHeader, entry::ENTRY_HEADER_LEN};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    read(Bytes::copy_from_slice(bytes));
    if bytes.len() >= ENTRY_HEADER_LEN {
        read(mended(bytes).into());
    }
});

fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut entry = bytes.to_vec();
    let body_len = u32::try_from(entry.len() - ENTRY_HEADER_LEN).expect("inputs are small");
    entry[0..4].copy_from_slice(&body_len.to_be_bytes());
    entry[8] = 1;
    entry[10..12].copy_from_slice(&[1, 0]);
    entry[14..16].fill(0);
    // Of a batch only the stamp is covered here; batch_decode mends batches.
    let crc = crc32c::crc32c(&entry[ENTRY_HEADER_LEN..]);
    entry[4..8].copy_from_slice(&crc.to_be_bytes());
    entry
}

fn read(bytes: Bytes) {
    drop(EntryHeader::decode(&bytes));
    let Ok(entry) = Entry::decode(&bytes) else { return };
    let mut written = Vec::new();
    entry.encode(&mut written);
    assert_eq!(written, bytes[..entry.header.entry_len()]);
    drop(entry.batch_header());
    drop(entry.trim_start());
    drop(entry.expired_producer());
}
