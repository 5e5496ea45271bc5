use proptest::prelude::*;

use super::*;

fn record(value: &'static str) -> Record {
    Record { timestamp: Timestamp(1_700_000_000_000), ..Record::new(value) }
}

fn build(records: &[Record], compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::new(BATCH_LEN_MAX);
    for record in records {
        assert_eq!(builder.push(record), Ok(Pushed::In));
    }
    builder.finish(compression, ProducerId(7), Sequence(9))
}

#[test]
fn golden_bytes() {
    let record = record("hi").with_key("k").with_header("h", "v");
    let mut bytes = build(&[record], Compression::None).to_vec();
    stamp(&mut bytes, Offset(5), Timestamp(6));
    let want = "0000000000000005" // base offset
        .to_owned()
        + "0000000000000006" // append time
        + "8bd9671e" // CRC-32C
        + "01000000" // version, flags, 0
        + "00000001" // records
        + "0000000b" // body length, decompressed
        + "00000000000000000000000000000007" // producer
        + "0000000000000009" // sequence
        + "0000018bcfe56800" // smallest timestamp
        + "0000018bcfe56800" // largest timestamp
        + "0000000b" // body length
        + "00" // timestamp
        + "026b" // key
        + "026869" // value
        + "01" // headers
        + "0168" // name
        + "0176"; // value
    let found: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(found, want);
}

#[test]
fn stamping_leaves_the_checksum_right() {
    let mut bytes = build(&[record("a"), record("b")], Compression::None).to_vec();
    stamp(&mut bytes, Offset(40), Timestamp(41));
    let batch = Batch::parse(bytes.into()).expect("right");
    assert_eq!(batch.header().base_offset, Offset(40));
    assert_eq!(batch.header().end_offset(), Offset(42));
    let offsets: Vec<_> = batch.records().expect("plain").map(|r| r.expect("right").0).collect();
    assert_eq!(offsets, [Offset(40), Offset(41)]);
}

#[test]
fn any_flipped_bit_behind_the_stamp_is_noticed() {
    let good = build(&[record("some value")], Compression::None);
    for at in 16..good.len() {
        for bit in 0..8 {
            let mut bad = good.to_vec();
            bad[at] ^= 1 << bit;
            assert!(Batch::parse(bad.into()).is_err(), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn records_behind_the_last_offset_are_refused() {
    // Found by fuzzing: both records had the offset 2^64 - 1, which was also the end of the batch.
    let mut bytes = build(&[record("a"), record("b")], Compression::None).to_vec();
    stamp(&mut bytes, Offset(u64::MAX - 1), Timestamp(0));
    let refused = BadBatch::Offsets(Offset(u64::MAX - 1));
    assert_eq!(Batch::parse(bytes.clone().into()), Err(refused));
    stamp(&mut bytes, Offset(u64::MAX - 2), Timestamp(0));
    let batch = Batch::parse(bytes.into()).expect("there is room for two");
    assert_eq!(batch.header().end_offset(), Offset(u64::MAX));
}

#[test]
fn a_full_builder_says_so_and_goes_on() {
    let mut builder = BatchBuilder::new(200);
    let big = Record::new(vec![1u8; 100]);
    assert_eq!(builder.push(&big), Ok(Pushed::In));
    assert_eq!(builder.push(&big), Ok(Pushed::Full));
    assert_eq!(builder.records(), 1);
    let _ = builder.finish(Compression::None, ProducerId::NONE, Sequence(0));
    assert!(builder.is_empty());
    assert_eq!(builder.push(&Record::new(vec![1u8; 1000])), Ok(Pushed::In), "larger than wanted");
    assert_eq!(
        BatchBuilder::new(200).push(&Record::new(vec![0; RECORD_LEN_MAX])),
        Err(BadRecord::TooLarge { len: RECORD_LEN_MAX + 7 })
    );
    let late = Record { timestamp: Timestamp(u64::MAX), ..Record::new("x") };
    assert_eq!(builder.push(&late), Err(BadRecord::Timestamp(Timestamp(u64::MAX))));
}

#[test]
fn a_body_that_decompresses_to_another_length_is_refused() {
    let batch = build(&[Record::new(vec![7u8; 1000])], Compression::Lz4);
    let mut bad = batch.to_vec();
    bad[28..32].copy_from_slice(&999u32.to_be_bytes());
    let crc = crc32c::crc32c(&bad[BATCH_STAMP_LEN..]);
    bad[16..20].copy_from_slice(&crc.to_be_bytes());
    let batch = Batch::parse(bad.into()).expect("the header alone is right");
    assert!(matches!(batch.records(), Err(BadBatch::Compression(_))));
}

fn any_record() -> impl Strategy<Value = Record> {
    let bytes = |max| proptest::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from);
    let header = ("[a-z]{1,8}", bytes(16));
    (
        proptest::option::of(bytes(32)),
        bytes(300),
        proptest::collection::vec(header, 0..4),
        0u64..1000,
    )
        .prop_map(|(key, value, headers, t)| Record {
            timestamp: Timestamp(t),
            key,
            value,
            headers,
        })
}

proptest! {
    #[test]
    fn records_survive_a_batch(
        mut records in proptest::collection::vec(any_record(), 1..40),
        compression in prop_oneof![
            Just(Compression::None), Just(Compression::Lz4), Just(Compression::Zstd)
        ],
    ) {
        records.sort_by_key(|r| r.timestamp);
        let batch = Batch::parse(build(&records, compression)).expect("own work");
        let read: Result<Vec<_>, _> = batch.records().expect("own work").collect();
        let read: Vec<_> = read.expect("own work").into_iter().map(|(_, record)| record).collect();
        prop_assert_eq!(read, records);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Batch::parse(bytes.into());
    }
}
