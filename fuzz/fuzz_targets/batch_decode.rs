//! A record batch from bytes that a producer chose, with lengths and checksum mended so that the body is reached too.
#![no_main]

use bytes::Bytes;
use dunlin::{
    limits::BATCH_BODY_LEN_MAX,
    wire::{Batch, BatchHeader},
};
use libfuzzer_sys::fuzz_target;

const HEADER_LEN: usize = dunlin::wire::batch::BATCH_HEADER_LEN;

fuzz_target!(|bytes: &[u8]| {
    read(Bytes::copy_from_slice(bytes));
    if bytes.len() >= HEADER_LEN {
        read(mended(bytes).into());
    }
});

fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut batch = bytes.to_vec();
    let body_len = u32::try_from(batch.len() - HEADER_LEN).expect("inputs are small");
    batch[72..76].copy_from_slice(&body_len.to_be_bytes());
    batch[20] = 1;
    batch[22..24].fill(0);
    let crc = crc32c::crc32c(&batch[20..]);
    batch[16..20].copy_from_slice(&crc.to_be_bytes());
    batch
}

fn read(bytes: Bytes) {
    drop(BatchHeader::decode(&bytes));
    let Ok(batch) = Batch::parse(bytes) else { return };
    let Ok(records) = batch.records() else { return };
    let mut count = 0;
    let mut size = 0;
    for record in records {
        let Ok((offset, record)) = record else { return };
        assert!(offset < batch.header().end_offset());
        count += 1;
        size += record.value.len();
    }
    assert_eq!(count, batch.header().records);
    assert!(size <= BATCH_BODY_LEN_MAX);
}
