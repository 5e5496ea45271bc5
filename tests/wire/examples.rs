//! The worked examples of docs/protocol.md: the code makes exactly these bytes, and reads exactly these values from them.

use std::{collections::BTreeMap, fmt::Debug};

use bytes::{Bytes, BytesMut};
use dunlin::{
    peer::{Heartbeat, LinkKind, PeerHello, PeerWelcome, message},
    replication::{Append, Body, Envelope, LogEnd, ShardDigest},
    types::{
        Acks, Boot, Epoch, Incarnation, InviteSecret, InviteToken, Lsn, NodeId, NodeRole, Offset,
        PartitionId, Position, ProducerId, Retention, Sequence, ShardId, Timestamp, TopicId,
        TopicSettings,
    },
    wire::{
        Ack, Answer, BalanceNode, BalancePlan, Batch, BatchBuilder, CaughtUp, Change, ClientMove,
        ClusterNode, ClusterShard, ClusterStatus, Code, Compression, Deliver, Detail, Fault,
        FrameDecoder, FrameType, GoAway, Hello, Invited, JoinAnswer, JoinRequest, JoinWelcome, Lag,
        Leave, Liveness, Nack, NodeInfo, Octets, PartitionStatus, PrimaryMove, Publish, PublishOk,
        PublishOpen, Pushed, ReadStart, Record, RecoveryPlan, Request, RetentionChange, StuckShard,
        SubscribeOk, SubscribeOpen, Survivor, TopicRequest, TopicStatus, Welcome, WireLimits, cbor,
        entry::{Entry, EntryKind, Place, trim_body},
        get_varint, put_control, put_varint, stamp,
    },
};
use serde::{Serialize, de::DeserializeOwned};

use super::document::{hex, hex_blocks, text};

const DOCUMENT: &str = "docs/protocol.md";
const TIME: Timestamp = Timestamp(1_700_000_000_000);
const PRODUCER: ProducerId = ProducerId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);

/// Examples by name, each checked in both directions when it is added.
#[derive(Default)]
struct Examples {
    bytes: BTreeMap<String, Vec<u8>>,
}

impl Examples {
    fn raw(&mut self, name: &str, bytes: impl Into<Vec<u8>>) {
        assert!(self.bytes.insert(name.to_owned(), bytes.into()).is_none(), "two examples {name}");
    }

    #[track_caller]
    fn control<T>(&mut self, name: &str, kind: FrameType, message: &T)
    where
        T: Serialize + DeserializeOwned + PartialEq + Debug,
    {
        let mut out = BytesMut::new();
        put_control(kind, message, &mut out);
        assert_eq!(cbor::get::<T>(&body(kind, &out)).as_ref(), Ok(message), "{name}");
        self.raw(name, out);
    }
}

/// The body of the one frame in `bytes`.
#[track_caller]
fn body(kind: FrameType, bytes: &[u8]) -> Bytes {
    let mut decoder = FrameDecoder::new();
    decoder.push(bytes);
    let frame = decoder.next_frame().unwrap().unwrap();
    assert_eq!(frame.kind, kind);
    assert_eq!(decoder.finish(), Ok(()));
    frame.body
}

fn name<T: std::str::FromStr<Err: Debug>>(name: &str) -> T {
    name.parse().unwrap()
}

fn examples() -> Examples {
    let mut all = Examples::default();
    varints(&mut all);
    connection(&mut all);
    requests(&mut all);
    site(&mut all);
    balancing(&mut all);
    joining(&mut all);
    publishing(&mut all);
    reading(&mut all);
    between_nodes(&mut all);
    all
}

fn varints(all: &mut Examples) {
    for value in [37, 15_293, 494_878_333, 151_288_809_941_952_652] {
        let mut out = Vec::new();
        put_varint(&mut out, value);
        assert_eq!(get_varint(&mut &out[..]), Ok(value));
        all.raw(&format!("varint {value}"), out);
    }
}

fn connection(all: &mut Examples) {
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        software: "example/1.0".into(),
        features: vec![],
        moved: false,
    };
    all.control("hello", FrameType::Hello, &hello);
    let node =
        NodeInfo { id: NodeId(2), name: "edge-1".into(), addresses: vec!["10.0.0.7:7440".into()] };
    let welcome = Welcome {
        version: 1,
        software: "dunlin/0.1.0".into(),
        site: "plant".into(),
        node: "edge-1".into(),
        node_id: NodeId(2),
        you: Some("dunlin://plant/client/press-7".into()),
        features: vec![],
        limits: WireLimits { batch_len_max: 1_048_576, control_len_max: 262_144, streams_max: 256 },
        nodes: vec![node],
    };
    all.control("welcome", FrameType::Welcome, &welcome);
    let (reason, nodes) = ("the node is stopping".into(), vec![]);
    let away = GoAway { reason, within_ms: 5_000, nodes, leave: Leave::Now };
    all.control("goaway", FrameType::GoAway, &away);
    let node =
        NodeInfo { id: NodeId(9), name: "edge-2".into(), addresses: vec!["10.0.0.8:7440".into()] };
    let reason = "node edge-1 has more clients than its share".into();
    let ask = GoAway { reason, within_ms: 0, nodes: vec![node], leave: Leave::Please };
    all.control("goaway-please", FrameType::GoAway, &ask);
}

fn requests(all: &mut Examples) {
    let retention = RetentionChange {
        age_ms: Change::Set(86_400_000),
        bytes: Change::Keep,
        records: Change::Clear,
    };
    let settings = TopicRequest { partitions: Some(1), retention };
    let create = Request::CreateTopic { name: name("plant/line3"), settings };
    all.control("create-topic", FrameType::Request, &create);
    let retention = Retention { age_ms: Some(86_400_000), ..Retention::default() };
    let partition = PartitionStatus { partition: 0, start: Offset(0), end: Offset(0), bytes: 0 };
    let topic = TopicStatus {
        name: name("plant/line3"),
        id: TopicId(9),
        settings: TopicSettings { partitions: 1, retention },
        created: TIME,
        partitions: vec![partition],
    };
    all.control("topic", FrameType::Answer, &Answer::Topic(topic));
    let find = Request::FindOffset {
        topic: name("plant/line3"),
        partition: 0,
        position: Position::Time(TIME),
    };
    all.control("find-offset", FrameType::Request, &find);
    all.control("offset", FrameType::Answer, &Answer::Offset(Offset(42)));
    all.control("node-status", FrameType::Request, &Request::NodeStatus);
    all.control("done", FrameType::Answer, &Answer::Done);
    let fault = Fault::new(Code::UnknownTopic, "topic 'plant/line4' does not exist")
        .with_hint("make it: dunlin topic create plant/line4");
    all.control("answer-fault", FrameType::Answer, &Answer::Fault(fault.clone()));
    all.control("fault", FrameType::Fault, &fault);
}

fn site(all: &mut Examples) {
    let addresses = vec!["10.0.0.7:7440".to_owned()];
    let invite = Request::Invite {
        role: NodeRole::Data,
        lifetime_ms: Some(3_600_000),
        addresses: addresses.clone(),
    };
    all.control("invite", FrameType::Request, &invite);
    let invited = Invited {
        token: InviteToken::new("dunlin-invite-1.p2RzaXRl"),
        id: 77,
        role: NodeRole::Data,
        expires: TIME,
        addresses: addresses.clone(),
    };
    all.control("invited", FrameType::Answer, &Answer::Invited(invited));
    all.control("cluster-status", FrameType::Request, &Request::ClusterStatus);
    let node = ClusterNode {
        id: NodeId(1),
        name: "edge-1".into(),
        role: NodeRole::Data,
        addresses,
        software: "dunlin/0.1.0".into(),
        weight: 100,
        draining: false,
        started: true,
        votes: true,
        liveness: Some(Liveness { up: true, since_ms: 60_000, clients: Some(3) }),
        damaged: false,
    };
    let shard = ClusterShard {
        shard: 0,
        epoch: Epoch(4),
        primary: Some(NodeId(1)),
        set: vec![NodeId(1)],
        pending: vec![NodeId(9)],
        replicas: vec![NodeId(1), NodeId(9)],
        copies_min: 1,
        stalled: false,
        behind: vec![Lag { node: NodeId(9), entries: Some(12), why: "catching up".into() }],
    };
    let status = ClusterStatus {
        site: "plant".into(),
        node: NodeId(1),
        leader: Some(NodeId(1)),
        level: 1,
        nodes: vec![node],
        shards: vec![shard],
        invites: 0,
    };
    all.control("cluster", FrameType::Answer, &Answer::Cluster(status));
    let set = Request::SetNode { node: NodeId(9), weight: None, draining: Some(true) };
    all.control("set-node", FrameType::Request, &set);
    let replace = Request::ReplaceNode { old: NodeId(9), new: NodeId(12) };
    all.control("replace-node", FrameType::Request, &replace);
    let recover = Request::Recover { shard: 3, version: 9, node: NodeId(9) };
    all.control("recover", FrameType::Request, &recover);
    let stuck = StuckShard {
        shard: 3,
        version: 9,
        why: "no member of its set is up".into(),
        members: vec![NodeId(1)],
        partitions: 2,
        floor: Some(Lsn(50)),
        survivors: vec![Survivor { node: NodeId(9), end: Some(Lsn(20)), epoch: Epoch(4) }],
    };
    let plan = RecoveryPlan { site: "plant".into(), shards: vec![stuck] };
    all.control("recovery-plan", FrameType::Answer, &Answer::RecoveryPlan(plan));
    all.control("scrub", FrameType::Request, &Request::Scrub { node: Some(NodeId(9)) });
    all.control("remove-node", FrameType::Request, &Request::RemoveNode { node: NodeId(9) });
}

fn balancing(all: &mut Examples) {
    all.control("balance-plan", FrameType::Request, &Request::BalancePlan);
    let node = BalanceNode {
        id: NodeId(1),
        name: "edge-1".into(),
        weight: 100,
        up: true,
        settled: true,
        load: Some(4),
        clients: Some(180),
        clients_wanted: 120,
        primaries: 5,
        primaries_wanted: 4,
    };
    let (from, to) = (NodeId(1), NodeId(9));
    let plan = BalancePlan {
        site: "plant".into(),
        node: from,
        nodes: vec![node],
        clients: vec![ClientMove { from, to, clients: 60 }],
        primaries: vec![PrimaryMove { shard: 3, from, to, due: true }],
    };
    all.control("balance", FrameType::Answer, &Answer::BalancePlan(plan));
}

fn joining(all: &mut Examples) {
    let request = JoinRequest {
        version_min: 1,
        version_max: 1,
        invite: 77,
        secret: InviteSecret::new(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        name: name("edge-2"),
        disk_id: 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff,
        csr: Octets(vec![0x30, 0x82]),
        addresses: vec!["10.0.0.8:7440".into()],
        software: "dunlin/0.1.0".into(),
    };
    all.control("join-request", FrameType::JoinRequest, &request);
    let welcome = JoinWelcome {
        node: NodeId(9),
        site: name("plant"),
        role: NodeRole::Data,
        certificate_pem: "-----BEGIN CERTIFICATE-----".into(),
        ca_pem: "-----BEGIN CERTIFICATE-----".into(),
        shards: 12,
        nodes: vec![NodeInfo {
            id: NodeId(1),
            name: "edge-1".into(),
            addresses: vec!["10.0.0.7:7440".into()],
        }],
    };
    all.control("join-welcome", FrameType::JoinAnswer, &JoinAnswer::Welcome(welcome));
    let fault = Fault::new(Code::Forbidden, "the invite has expired")
        .with_hint("make a new one on a node of the site: dunlin invite");
    all.control("join-fault", FrameType::JoinAnswer, &JoinAnswer::Fault(fault));
}

/// A batch as a producer sends it.
fn batch() -> Bytes {
    let mut builder = BatchBuilder::new(1_000);
    let mut record = Record::new("21.5").with_key("sensor-7").with_header("unit", "C");
    record.timestamp = TIME;
    assert_eq!(builder.push(&record), Ok(Pushed::In));
    builder.finish(Compression::None, PRODUCER, Sequence(3))
}

/// The same batch as a reader gets it.
fn stored() -> Vec<u8> {
    let mut bytes = batch().to_vec();
    stamp(&mut bytes, Offset(42), Timestamp(TIME.0 + 250));
    bytes
}

fn publishing(all: &mut Examples) {
    let open = PublishOpen {
        topic: name("plant/line3"),
        acks: Acks::Replicated,
        require_copies: None,
        producer: PRODUCER,
        direct: false,
    };
    all.control("publish-open", FrameType::PublishOpen, &open);
    let ok = PublishOk {
        topic_id: TopicId(9),
        partitions: 1,
        window_batches: 4_096,
        window_bytes: 4_194_304,
    };
    all.control("publish-ok", FrameType::PublishOk, &ok);

    let parsed = Batch::parse(batch()).unwrap();
    let (_, record) = parsed.records().unwrap().next().unwrap().unwrap();
    assert_eq!((record.timestamp, &record.value[..]), (TIME, &b"21.5"[..]));
    assert_eq!((parsed.header().producer, parsed.header().sequence), (PRODUCER, Sequence(3)));
    all.raw("batch", batch());

    let mut out = BytesMut::new();
    Publish::encode(0, &batch(), &mut out);
    let read = Publish::decode(body(FrameType::Publish, &out)).unwrap();
    assert_eq!((read.partition, read.batch), (0, batch()));
    all.raw("publish", out);

    let ack =
        Ack { index: 0, partition: 0, base_offset: Offset(42), level: Acks::Replicated, copies: 1 };
    let mut out = BytesMut::new();
    ack.encode(&mut out);
    assert_eq!(Ack::decode(&body(FrameType::Ack, &out)), Ok(ack));
    all.raw("ack", out);

    let detail = Detail { expected: Some(Sequence(3)), ..Detail::default() };
    let gap = Fault::new(Code::SequenceGap, "producer sequence 5 leaves a gap, expected 3");
    let nack = Nack { index: 1, fault: gap.with_detail(detail) };
    all.control("nack", FrameType::Nack, &nack);
}

fn reading(all: &mut Examples) {
    let open = SubscribeOpen {
        topic: name("plant/line3"),
        partitions: None,
        from: Position::Earliest,
        resume: vec![(0, Offset(42))],
        direct: false,
    };
    all.control("subscribe-open", FrameType::SubscribeOpen, &open);
    let start = ReadStart { partition: 0, from: Offset(42), end: Offset(43) };
    let ok = SubscribeOk { topic_id: TopicId(9), partitions: vec![start] };
    all.control("subscribe-ok", FrameType::SubscribeOk, &ok);

    let mut out = BytesMut::new();
    Deliver::encode_head(0, stored().len(), &mut out);
    out.extend_from_slice(&stored());
    let read = Deliver::decode(body(FrameType::Deliver, &out)).unwrap();
    let parsed = Batch::parse(read.batch).unwrap();
    let (offset, record) = parsed.records().unwrap().next().unwrap().unwrap();
    assert_eq!((read.partition, offset, record.key), (0, Offset(42), Some("sensor-7".into())));
    all.raw("deliver", out);

    let caught_up = CaughtUp { positions: vec![(0, Offset(43))] };
    all.control("caught-up", FrameType::CaughtUp, &caught_up);
}

/// A message between nodes: its length, and it.
fn framed(body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap();
    [&len.to_be_bytes(), body].concat()
}

#[track_caller]
fn peer_control<T>(all: &mut Examples, name: &str, message: &T)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let mut out = BytesMut::new();
    cbor::put(message, &mut out);
    assert_eq!(cbor::get::<T>(&out).as_ref(), Ok(message), "{name}");
    all.raw(name, framed(&out));
}

fn between_nodes(all: &mut Examples) {
    let hello = PeerHello {
        version_min: 1,
        version_max: 1,
        site: name("plant"),
        node: NodeId(2),
        name: name("edge-2"),
        incarnation: Incarnation(17),
        kind: LinkKind::Control,
        software: "dunlin/0.1.0".into(),
        features: vec![],
    };
    peer_control(all, "peer-hello", &hello);
    let welcome = PeerWelcome {
        version: 1,
        site: name("plant"),
        node: NodeId(1),
        name: name("edge-1"),
        software: "dunlin/0.1.0".into(),
        features: vec![],
    };
    peer_control(all, "peer-welcome", &welcome);

    let shard = ShardId(3);
    let end = LogEnd { lsn: Lsn(4), epoch: Epoch(5), chain: 6 };
    let place = Place { shard, lsn: end.lsn, epoch: end.epoch, prev_chain: end.chain };
    let partition = PartitionId { topic: TopicId(7), index: 8 };
    let entry = Entry::seal(place, EntryKind::Trim, partition, trim_body(Offset(9)));
    let from = Boot { node: NodeId(1), incarnation: Incarnation(17) };
    let to = Boot { node: NodeId(2), incarnation: Incarnation(18) };
    let append = Append { prev: end, entries: vec![entry], high_watermark: Lsn(4) };
    let envelope = Envelope { shard, epoch: end.epoch, from, to, body: Body::Append(append) };
    let mut out = BytesMut::new();
    message::encode(&envelope, &mut out).unwrap();
    all.raw("peer-append", framed(&out));
    assert_eq!(message::decode(out.freeze()), Ok(envelope));

    let beat = Heartbeat {
        from,
        sent: 5,
        applied: 9,
        hears: vec![NodeId(1), NodeId(2)],
        digests: vec![ShardDigest { shard, end }],
        connections: 3,
        load: 4,
        draining: true,
        damaged: false,
    };
    let datagrams = beat.encode();
    assert_eq!(Heartbeat::decode(&datagrams[0]), Ok(beat));
    all.raw("peer-heartbeat", datagrams.concat());
}

#[test]
fn the_examples_of_the_protocol_are_what_the_code_does() {
    let written = hex_blocks(&text(DOCUMENT));
    let made = examples().bytes;
    let mut wrong = Vec::new();
    for (name, bytes) in &made {
        match written.get(name) {
            Some(found) if found == bytes => {}
            Some(found) => {
                wrong.push(format!("{name}\n  doc  {}\n  code {}", hex(found), hex(bytes)));
            }
            None => wrong.push(format!("{name} is missing\n  code {}", hex(bytes))),
        }
    }
    for name in written.keys().filter(|name| !made.contains_key(*name)) {
        wrong.push(format!("{name} is no example of this test"));
    }
    assert!(wrong.is_empty(), "{DOCUMENT} and the code differ:\n{}", wrong.join("\n"));
}
