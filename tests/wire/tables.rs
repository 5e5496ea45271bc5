//! The tables of docs/protocol.md say what the code says.

use std::collections::BTreeSet;

use bytes::BytesMut;
use dunlin::{
    limits,
    net::{
        authority::NODE_SERVER_NAME,
        tls::{ALPN_CLIENT, ALPN_JOIN, ALPN_PEER},
    },
    peer::message,
    replication::{Append, Body, Chunk, Envelope, EpochHistory, FollowerState, LogEnd, Refusal},
    types::{Acks, Boot, Epoch, Lsn, ShardId, partition_of_key},
    wire::{
        BadFrame, CloseCode, Code, Compression, Culprit, Fault, FrameDecoder, Retry, VARINT_MAX,
    },
};

use super::document::{table, text};

fn protocol() -> String {
    text("docs/protocol.md")
}

/// What the decoder makes of a frame of this type without a body.
fn frame_type(code: u8) -> Option<String> {
    let mut decoder = FrameDecoder::new();
    decoder.push(&[1, code]);
    match decoder.next_frame() {
        Ok(frame) => frame.map(|frame| format!("{:?}", frame.kind)),
        Err(BadFrame::UnknownType(found)) => {
            assert_eq!(found, code);
            None
        }
        Err(error) => panic!("{code:#04x}: {error}"),
    }
}

#[test]
fn every_frame_type_is_in_the_table() {
    let known =
        (0..=u8::MAX).filter_map(|code| Some(vec![format!("0x{code:02x}"), frame_type(code)?]));
    let rows = table(&protocol(), "### Frame types");
    let written: Vec<Vec<String>> = rows.iter().map(|row| row[..2].to_vec()).collect();
    assert_eq!(written, known.collect::<Vec<_>>());
}

#[test]
fn every_fault_code_is_in_the_table_with_its_culprit_and_retry() {
    let known: Vec<[String; 3]> = Code::ALL
        .iter()
        .map(|&code| {
            let fault = Fault::new(code, "");
            let culprit = match fault.culprit {
                Culprit::Client => "client",
                Culprit::Site => "site",
                Culprit::Node => "node",
            };
            let retry = match fault.retry {
                Retry::Never => "never".to_owned(),
                Retry::After(ms) => format!("after {ms}"),
                Retry::SameSequence => "samesequence".to_owned(),
            };
            [code.name().to_owned(), culprit.to_owned(), retry]
        })
        .collect();
    let rows = table(&protocol(), "### Fault codes");
    let written: Vec<Vec<String>> = rows.iter().map(|row| row[..3].to_vec()).collect();
    assert_eq!(written, known);
}

#[test]
fn every_close_code_is_in_the_table() {
    let known =
        (0..1_000).filter_map(|n| Some([n.to_string(), format!("{:?}", CloseCode::from_code(n)?)]));
    let rows = table(&protocol(), "### Close codes");
    let written: Vec<Vec<String>> = rows.iter().map(|row| row[..2].to_vec()).collect();
    assert_eq!(written, known.collect::<Vec<_>>());
}

#[test]
fn levels_and_compressions_have_the_bytes_that_are_written() {
    for (heading, names) in [
        (
            "### Ack levels",
            [Acks::None, Acks::Local, Acks::Replicated].map(|l| (l.code(), l.to_string())),
        ),
        (
            "### Compression",
            [Compression::None, Compression::Lz4, Compression::Zstd]
                .map(|c| (c.code(), c.to_string())),
        ),
    ] {
        let rows = table(&protocol(), heading);
        let written: Vec<_> =
            rows.iter().map(|row| (row[0].parse().unwrap(), row[1].clone())).collect();
        assert_eq!(written, names, "{heading}");
    }
}

#[test]
fn keys_go_to_the_partitions_that_are_written() {
    let rows = table(&protocol(), "### Test vectors of the partitioner");
    assert!(rows.len() >= 8);
    for row in rows {
        let [key, partitions, partition] = &row[..] else { panic!("{row:?}") };
        let key = match key.strip_prefix("hex ") {
            Some(hex) => (0..hex.len())
                .step_by(2)
                .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
                .collect(),
            None => key.trim_matches('"').as_bytes().to_vec(),
        };
        let found = partition_of_key(&key, partitions.parse().unwrap());
        assert_eq!(found.to_string(), *partition, "{row:?}");
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}

#[test]
fn the_limits_are_those_of_the_code() {
    let known = [
        ("name of a node, client or site, bytes", limits::NAME_LEN_MAX as u64),
        ("topic name, bytes", limits::TOPIC_NAME_LEN_MAX as u64),
        ("partitions of a topic", limits::PARTITIONS_PER_TOPIC_MAX.into()),
        ("partitions of a site", limits::PARTITIONS_MAX.into()),
        ("topics of a site", limits::TOPICS_MAX as u64),
        ("body of a control frame, bytes", limits::CONTROL_FRAME_LEN_MAX as u64),
        ("body of a JoinRequest, bytes", limits::JOIN_FRAME_LEN_MAX as u64),
        ("addresses of an invite or of a joiner", limits::JOIN_ADDRESSES_MAX as u64),
        ("life of an invite, seconds", limits::INVITE_LIFETIME_MAX.as_secs()),
        ("body of a data frame, bytes", limits::DATA_FRAME_LEN_MAX as u64),
        ("batch with its header, bytes", limits::BATCH_LEN_MAX as u64),
        ("body of a batch once decompressed, bytes", limits::BATCH_BODY_LEN_MAX as u64),
        ("records of a batch", limits::BATCH_RECORDS_MAX.into()),
        ("encoded record, bytes", limits::RECORD_LEN_MAX as u64),
        ("key, bytes", limits::KEY_LEN_MAX as u64),
        ("headers of a record", limits::RECORD_HEADERS_MAX as u64),
        ("header name, bytes", limits::HEADER_NAME_LEN_MAX as u64),
        ("varint", VARINT_MAX),
        (
            "batches remembered of a producer in a partition",
            limits::PRODUCER_BATCHES_REMEMBERED as u64,
        ),
        ("producers remembered in a partition", limits::PRODUCERS_PER_PARTITION_MAX as u64),
        ("idle time of a producer, seconds", limits::PRODUCER_IDLE_MAX.as_secs()),
        ("topics of a page", limits::LIST_PAGE_MAX.into()),
        ("batches of a publish stream without an ack", limits::PUBLISH_WINDOW_BATCHES.into()),
        ("bytes of a publish stream without an ack", limits::PUBLISH_WINDOW_BYTES.into()),
        ("requests of a connection under way", limits::REQUESTS_PER_CONNECTION_MAX.into()),
        ("idle time of a connection, milliseconds", millis(limits::IDLE_TIMEOUT)),
        ("time for Hello, milliseconds", millis(limits::HELLO_TIMEOUT)),
        ("time for the first frame of a stream, milliseconds", millis(limits::REQUEST_TIMEOUT)),
    ];
    let known: BTreeSet<_> = known.map(|(what, most)| (what.to_owned(), most.to_string())).into();
    let rows = table(&protocol(), "### Table of limits");
    let written: BTreeSet<_> = rows.iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    assert_eq!(written, known);
}

#[test]
fn the_limits_between_nodes_are_those_of_the_code() {
    let known = [
        ("message of a replica, bytes", limits::PEER_MESSAGE_LEN_MAX as u64),
        ("rows of state in a chunk", limits::CHUNK_ROWS_MAX as u64),
        ("epochs of a history", limits::EPOCHS_REMEMBERED as u64),
        ("request or answer of a call, bytes", limits::CALL_LEN_MAX as u64),
        ("calls of a node under way", limits::CALLS_PER_PEER_MAX.into()),
        ("datagram, bytes", limits::PEER_DATAGRAM_LEN_MAX as u64),
        ("idle time of a connection, milliseconds", millis(limits::PEER_IDLE_TIMEOUT)),
    ];
    let known = known.map(|(what, most)| [what.to_owned(), most.to_string()]);
    assert_eq!(table(&protocol(), "### Limits between nodes"), known);
}

#[test]
fn the_kinds_of_messages_between_replicas_are_those_of_the_code() {
    let (end, history) = (LogEnd::default(), EpochHistory::default());
    let append = Append { prev: end, entries: vec![], high_watermark: Lsn(0) };
    let state =
        FollowerState { end, history: history.clone(), high_watermark: Lsn(0), installing: false };
    let chunk = Chunk { entries: vec![], state: vec![] };
    let bodies = [
        Body::StartEpoch,
        Body::Align(end),
        Body::Append(append),
        Body::InstallBegin { number: 0, base: end, history, chunks: 0 },
        Body::InstallChunk { number: 0, index: 0, chunk },
        Body::State(state),
        Body::Durable(Lsn(0)),
        Body::ChunkDurable { number: 0, next: 0 },
        Body::Refused(Refusal::NotAligned),
        Body::Barrier(0),
        Body::BarrierHeld(0),
    ];
    let known = bodies.map(|body| {
        let variant = format!("{body:?}");
        let name: String = variant.chars().take_while(char::is_ascii_alphanumeric).collect();
        let (from, to) = (Boot::default(), Boot::default());
        let envelope = Envelope { shard: ShardId(0), epoch: Epoch(0), from, to, body };
        let mut out = BytesMut::new();
        message::encode(&envelope, &mut out).unwrap();
        vec![out[0].to_string(), name]
    });
    let rows = table(&protocol(), "### Messages of replicas");
    let written: Vec<Vec<String>> = rows.iter().map(|row| row[..2].to_vec()).collect();
    assert_eq!(written, known);
}

#[test]
fn the_names_of_tls_are_those_of_the_code() {
    let protocol = protocol();
    for name in [ALPN_CLIENT, ALPN_PEER, ALPN_JOIN, NODE_SERVER_NAME.as_bytes()] {
        let name = format!("`{}`", std::str::from_utf8(name).unwrap());
        assert!(protocol.contains(&name), "{name}");
    }
    assert!(protocol.contains(&format!("UDP port {}", limits::PORT_DEFAULT)));
}
