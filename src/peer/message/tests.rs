use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    types::{Offset, PartitionId, TopicId},
    wire::entry::{EntryKind, Place, trim_body},
};

fn boot(node: u64, incarnation: u64) -> Boot {
    Boot { node: NodeId(node), incarnation: Incarnation(incarnation) }
}

fn end(lsn: u64, epoch: u64, chain: u64) -> LogEnd {
    LogEnd { lsn: Lsn(lsn), epoch: Epoch(epoch), chain }
}

fn envelope(body: Body<Entry>) -> Envelope<Entry> {
    Envelope { shard: ShardId(3), epoch: Epoch(5), from: boot(1, 17), to: boot(2, 18), body }
}

/// Entries with bodies of these lengths, that follow `prev`.
fn entries_behind(prev: LogEnd, lens: &[usize]) -> Vec<Entry> {
    let mut prev = prev;
    let mut made = Vec::new();
    for len in lens {
        let place =
            Place { shard: ShardId(3), lsn: prev.lsn, epoch: Epoch(5), prev_chain: prev.chain };
        let partition = PartitionId { topic: TopicId(7), index: 8 };
        let entry = Entry::seal(place, EntryKind::PartitionCreate, partition, vec![7; *len].into());
        prev = entry.end();
        made.push(entry);
    }
    made
}

fn encoded(envelope: &Envelope<Entry>) -> Bytes {
    let mut out = BytesMut::new();
    encode(envelope, &mut out).expect("within limits");
    out.freeze()
}

#[track_caller]
fn golden(body: Body<Entry>, want: &str) {
    let message = envelope(body);
    let found: String = encoded(&message).iter().map(|b| format!("{b:02x}")).collect();
    let (head, rest) = found.split_at(2 * ENVELOPE_HEADER_LEN);
    let address = "0003".to_owned() // shard
        + "0000000000000005" // epoch
        + "00000000000000010000000000000011" // from 1.17
        + "00000000000000020000000000000012"; // to 2.18
    assert_eq!(head[4..], address);
    assert_eq!(format!("{}{rest}", &head[..4]), want);
    assert_eq!(decode(encoded(&message)), Ok(message));
}

const END: &str = "000000000000000400000000000000020000000000000009";

#[test]
fn golden_bytes() {
    let base = end(4, 2, 9);
    let history = EpochHistory::new([(Epoch(1), Lsn(0)), (Epoch(2), Lsn(3))]);
    let starts = "02\
        00000000000000010000000000000000\
        00000000000000020000000000000003";
    golden(Body::StartEpoch, "0100");
    golden(Body::Align(base), &format!("0200{END}"));
    let append = Append { prev: base, entries: vec![], high_watermark: Lsn(3) };
    golden(Body::Append(append), &format!("0300{END}0000000000000003"));
    let begin = Body::InstallBegin { number: 5, base, history: history.clone(), chunks: 6 };
    golden(begin, &format!("040000000005{END}00000006{starts}"));
    let row = StateRow { kind: 1, key: b"k".to_vec(), value: b"vw".to_vec() };
    let chunk = Chunk { entries: vec![], state: vec![row] };
    golden(
        Body::InstallChunk { number: 5, index: 2, chunk },
        &"050000000005000000020001 01 016b 027677".replace(' ', ""),
    );
    let state = FollowerState { end: base, history, high_watermark: Lsn(3), installing: true };
    golden(Body::State(state), &format!("0600{END}000000000000000301{starts}"));
    golden(Body::Durable(Lsn(4)), "07000000000000000004");
    golden(Body::ChunkDurable { number: 5, next: 3 }, "08000000000500000003");
    golden(Body::Refused(Refusal::StaleEpoch(Epoch(6))), "0900010000000000000006");
    golden(Body::Refused(Refusal::NotAligned), "090002");
    golden(Body::Refused(Refusal::Gap(Lsn(4))), "0900030000000000000004");
    golden(Body::Refused(Refusal::Diverged), "090004");
    golden(Body::Refused(Refusal::DiskFull), "090005");
}

#[test]
fn an_entry_with_a_flipped_bit_is_refused() {
    let prev = end(4, 5, 9);
    let place = Place { shard: ShardId(3), lsn: Lsn(4), epoch: Epoch(5), prev_chain: 9 };
    let partition = PartitionId { topic: TopicId(7), index: 8 };
    let entry = Entry::seal(place, EntryKind::Trim, partition, trim_body(Offset(1)));
    let append = Append { prev, entries: vec![entry], high_watermark: Lsn(3) };
    let mut bytes = encoded(&envelope(Body::Append(append))).to_vec();
    *bytes.last_mut().expect("a body") ^= 1;
    assert_eq!(decode(bytes.into()), Err(BadMessage::Entry(BadEntry::Checksum)));
}

#[test]
fn an_entry_of_another_shard_is_refused() {
    let prev = end(4, 5, 9);
    let append = Append { prev, entries: entries_behind(prev, &[1]), high_watermark: Lsn(3) };
    let message = Envelope { shard: ShardId(4), ..envelope(Body::Append(append)) };
    let other = BadMessage::OtherShard { shard: ShardId(4), found: ShardId(3) };
    assert_eq!(decode(encoded(&message)), Err(other));
}

#[test]
fn what_the_reader_would_refuse_is_not_sent() {
    let rows = |count, len| {
        let row = StateRow { kind: 1, key: vec![], value: vec![0; len] };
        let chunk = Chunk { entries: vec![], state: vec![row; count] };
        encode(&envelope(Body::InstallChunk { number: 5, index: 0, chunk }), &mut BytesMut::new())
    };
    assert_eq!(rows(CHUNK_ROWS_MAX, 0), Ok(()));
    assert!(rows(CHUNK_ROWS_MAX + 1, 0).is_err());
    assert!(rows(1, PEER_MESSAGE_LEN_MAX).is_err());
}

#[test]
fn counts_that_lie_cost_nothing_and_are_refused() {
    let chunk = Chunk { entries: vec![], state: vec![] };
    let good = encoded(&envelope(Body::InstallChunk { number: 5, index: 0, chunk }));
    for (at, what) in [(good.len() - 2, "entries"), (good.len() - 1, "rows")] {
        let mut bytes = good[..at].to_vec();
        if what == "rows" {
            bytes.truncate(good.len() - 1);
        }
        put_varint(&mut bytes, 1 << 60);
        assert!(decode(bytes.into()).is_err(), "{what}");
    }
}

#[test]
fn a_history_that_falls_or_never_ends_is_refused() {
    let state = |history: Vec<u8>| {
        let state = FollowerState {
            end: end(4, 2, 9),
            history: EpochHistory::default(),
            high_watermark: Lsn(0),
            installing: false,
        };
        let good = encoded(&envelope(Body::State(state)));
        decode([&good[..good.len() - 1], &history].concat().into())
    };
    let starts = |epochs: &[u64]| {
        let mut out = BytesMut::new();
        put_varint(&mut out, epochs.len() as u64);
        for epoch in epochs {
            out.put_u64(*epoch);
            out.put_u64(0);
        }
        out.to_vec()
    };
    assert!(state(starts(&[1, 2])).is_ok());
    let bad = Err(BadMessage::Field("epoch history"));
    assert_eq!(state(starts(&[2, 1])), bad);
    assert_eq!(state(starts(&[0])), bad);
    let many: Vec<u64> = (1..=EPOCHS_REMEMBERED as u64 + 1).collect();
    assert!(state(starts(&many[1..])).is_ok());
    assert_eq!(state(starts(&many)), bad);
}

#[test]
fn a_long_append_is_split_so_that_each_part_follows_the_one_before() {
    let prev = end(4, 5, 9);
    let lens = [APPEND_BYTES / 2, APPEND_BYTES / 2, 10, BATCH, 10, 10];
    const BATCH: usize = crate::limits::BATCH_LEN_MAX;
    let entries = entries_behind(prev, &lens);
    let append = Append { prev, entries: entries.clone(), high_watermark: Lsn(3) };
    let parts = split(envelope(Body::Append(append)));
    let mut at = prev;
    let mut found = Vec::new();
    for part in &parts {
        assert!(encode(part, &mut BytesMut::new()).is_ok());
        let Body::Append(append) = &part.body else { panic!("{part:?}") };
        assert_eq!(append.prev, at);
        assert_eq!(append.high_watermark, Lsn(3));
        found.extend(append.entries.iter().cloned());
        at = append.entries.last().expect("none is empty").end();
    }
    assert_eq!(found, entries);
    assert_eq!(parts.len(), 4);
}

fn ends() -> impl Strategy<Value = LogEnd> {
    any::<(u64, u64, u64)>().prop_map(|(lsn, epoch, chain)| end(lsn, epoch, chain))
}

fn histories() -> impl Strategy<Value = EpochHistory> {
    proptest::collection::btree_map(1..u64::MAX, any::<u64>(), 0..20)
        .prop_map(|starts| EpochHistory::new(starts.into_iter().map(|(e, l)| (Epoch(e), Lsn(l)))))
}

fn some_entries() -> impl Strategy<Value = Vec<Entry>> {
    vec(0usize..300, 0..6).prop_map(|lens| entries_behind(end(4, 5, 9), &lens))
}

fn bodies() -> impl Strategy<Value = Body<Entry>> {
    let rows = vec(
        (any::<u8>(), vec(any::<u8>(), 0..80), vec(any::<u8>(), 0..80))
            .prop_map(|(kind, key, value)| StateRow { kind, key, value }),
        0..4,
    );
    prop_oneof![
        Just(Body::StartEpoch),
        ends().prop_map(Body::Align),
        (ends(), some_entries(), any::<u64>()).prop_map(|(prev, entries, high_watermark)| {
            Body::Append(Append { prev, entries, high_watermark: Lsn(high_watermark) })
        }),
        (any::<u32>(), ends(), histories(), any::<u32>()).prop_map(
            |(number, base, history, chunks)| Body::InstallBegin { number, base, history, chunks }
        ),
        (any::<u32>(), any::<u32>(), some_entries(), rows).prop_map(
            |(number, index, entries, state)| {
                Body::InstallChunk { number, index, chunk: Chunk { entries, state } }
            }
        ),
        (ends(), histories(), any::<u64>(), any::<bool>()).prop_map(
            |(end, history, high_watermark, installing)| Body::State(FollowerState {
                end,
                history,
                high_watermark: Lsn(high_watermark),
                installing,
            })
        ),
        any::<u64>().prop_map(|lsn| Body::Durable(Lsn(lsn))),
        any::<(u32, u32)>().prop_map(|(number, next)| Body::ChunkDurable { number, next }),
        any::<u64>().prop_map(|epoch| Body::Refused(Refusal::StaleEpoch(Epoch(epoch)))),
        any::<u64>().prop_map(|lsn| Body::Refused(Refusal::Gap(Lsn(lsn)))),
        Just(Body::Refused(Refusal::NotAligned)),
        Just(Body::Refused(Refusal::Diverged)),
        Just(Body::Refused(Refusal::DiskFull)),
    ]
}

proptest! {
    #[test]
    fn a_message_survives_its_bytes_and_no_part_of_them_is_one(
        epoch in any::<u64>(),
        boots in any::<[u64; 4]>(),
        body in bodies(),
    ) {
        let [a, b, c, d] = boots;
        let message = Envelope { epoch: Epoch(epoch), from: boot(a, b), to: boot(c, d), ..envelope(body) };
        let bytes = encoded(&message);
        prop_assert_eq!(bytes.len(), encoded_len(&message));
        prop_assert_eq!(decode(bytes.clone()), Ok(message.clone()));
        // An append is as long as it has entries: a part of it is a shorter one, or none.
        if !matches!(message.body, Body::Append(_)) {
            for cut in 0..bytes.len() {
                prop_assert!(decode(bytes.slice(..cut)).is_err(), "{} of {}", cut, bytes.len());
            }
        }
        prop_assert!(decode([&bytes[..], &[0]].concat().into()).is_err(), "a byte too many");
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(
        kind in 0u8..12,
        bytes in vec(any::<u8>(), 0..200),
    ) {
        let _ = decode(Bytes::from([&[kind, 0], &bytes[..]].concat()));
    }
}
