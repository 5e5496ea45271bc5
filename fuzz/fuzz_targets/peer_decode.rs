//! A message of a replica, and a heartbeat, from bytes that another node sent. What is accepted is written as the same bytes.
#![no_main]

use bytes::{Bytes, BytesMut};
use dunlin::{
    peer::{Heartbeat, message},
    wire::entry::ENTRY_HEADER_LEN,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    read(&mended(bytes));
    if let Ok(beat) = Heartbeat::decode(bytes) {
        assert_eq!(beat.encode(), [bytes]);
    }
});

fn read(bytes: &[u8]) {
    let Ok(envelope) = message::decode(Bytes::copy_from_slice(bytes)) else { return };
    let mut written = BytesMut::new();
    if message::encode(&envelope, &mut written).is_ok() {
        assert_eq!(message::encoded_len(&envelope), written.len());
        assert_eq!(message::decode(written.freeze()).as_ref(), Ok(&envelope));
    }
    for part in message::split(envelope) {
        let _ = message::encode(&part, &mut BytesMut::new());
    }
}

/// An append whose entries have the right checksums, shard, and flags, so that they are reached.
fn mended(bytes: &[u8]) -> Vec<u8> {
    const ENTRIES_AT: usize = message::ENVELOPE_HEADER_LEN + 24 + 8;
    let mut message = bytes.to_vec();
    if message.len() < ENTRIES_AT + ENTRY_HEADER_LEN {
        return message;
    }
    message[0] = 3;
    message[1] = 0;
    let (head, entry) = message.split_at_mut(ENTRIES_AT);
    let body_len = u32::try_from(entry.len() - ENTRY_HEADER_LEN).expect("inputs are small");
    entry[0..4].copy_from_slice(&body_len.to_be_bytes());
    entry[8] = 1;
    entry[10..12].copy_from_slice(&[1, 0]);
    entry[12..14].copy_from_slice(&head[2..4]);
    entry[14..16].fill(0);
    let crc = crc32c::crc32c(&entry[ENTRY_HEADER_LEN..]);
    entry[4..8].copy_from_slice(&crc.to_be_bytes());
    message
}
