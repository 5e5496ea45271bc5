//! Every control message: what is written is read, what is unknown is skipped, and no bytes do harm.

use std::fmt::Debug;

use bytes::BytesMut;
use ciborium::Value;
use dunlin::{
    types::{
        Acks, Epoch, InviteSecret, InviteToken, Lsn, NodeId, NodeRole, Offset, Position,
        ProducerId, Retention, Sequence, Timestamp, TopicId, TopicName, TopicSettings,
    },
    wire::{
        Ack, Answer, BalanceNode, BalancePlan, CaughtUp, Change, ClientMove, ClusterNode,
        ClusterShard, ClusterStatus, Code, Deliver, Detail, Fault, FrameDecoder, FrameType, GoAway,
        Hello, Invited, JoinAnswer, JoinRequest, JoinWelcome, Lag, Leave, Liveness, Nack, NodeInfo,
        NodeStatus, Octets, PartitionStatus, PrimaryMove, Publish, PublishOk, PublishOpen,
        ReadStart, RecoveryPlan, Request, RetentionChange, StuckShard, SubscribeOk, SubscribeOpen,
        Survivor, TopicRequest, TopicStatus, Welcome, WireLimits, cbor, put_control,
    },
};
use proptest::{collection::vec, option, prelude::*};
use serde::{Serialize, de::DeserializeOwned};

/// What holds for every control message.
fn check<T>(message: &T) -> Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let mut bytes = BytesMut::new();
    cbor::put(message, &mut bytes);
    let read = cbor::get::<T>(&bytes);
    prop_assert_eq!(read.as_ref(), Ok(message));
    for cut in 0..bytes.len() {
        prop_assert!(cbor::get::<T>(&bytes[..cut]).is_err(), "{} of {} bytes", cut, bytes.len());
    }
    prop_assert!(cbor::get::<T>(&[&bytes[..], &[0]].concat()).is_err(), "a byte too many");

    let newer = with_unknown_fields(ciborium::from_reader(&bytes[..]).unwrap());
    let mut bytes = BytesMut::new();
    cbor::put(&newer, &mut bytes);
    let read = cbor::get::<T>(&bytes);
    prop_assert_eq!(read.as_ref(), Ok(message), "unknown fields");
    Ok(())
}

/// The message as a newer program could write it: a field more in each struct, before and behind the known ones.
fn with_unknown_fields(value: Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(with_unknown_fields).collect()),
        Value::Map(fields) => {
            let is_enum = is_enum(&fields);
            let mut fields: Vec<_> =
                fields.into_iter().map(|(key, value)| (key, with_unknown_fields(value))).collect();
            if !is_enum {
                let unknown = |name: &str| (name.into(), Value::Array(vec![1.into(), Value::Null]));
                fields.insert(0, unknown("aa_unknown"));
                fields.push(unknown("zz_unknown"));
            }
            Value::Map(fields)
        }
        value => value,
    }
}

/// A variant with content is a map of one entry, and is no place for fields.
fn is_enum(fields: &[(Value, Value)]) -> bool {
    let [(Value::Text(name), _)] = fields else { return false };
    name.starts_with(char::is_uppercase)
        || ["offset", "time", "set", "after"].contains(&name.as_str())
}

fn text() -> impl Strategy<Value = String> {
    "[ -~äß☃]{0,20}"
}

fn topic_name() -> impl Strategy<Value = TopicName> {
    "[a-zA-Z0-9][a-zA-Z0-9._-]{0,9}(/[a-zA-Z0-9._-]{1,9}){0,3}"
        .prop_map(|s| s.parse().expect("a good name"))
}

fn offset() -> impl Strategy<Value = Offset> {
    any::<u64>().prop_map(Offset)
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<u64>().prop_map(Timestamp)
}

fn position() -> impl Strategy<Value = Position> {
    prop_oneof![
        Just(Position::Earliest),
        Just(Position::Latest),
        offset().prop_map(Position::Offset),
        time().prop_map(Position::Time),
    ]
}

fn change() -> impl Strategy<Value = Change<u64>> {
    prop_oneof![Just(Change::Keep), Just(Change::Clear), any::<u64>().prop_map(Change::Set)]
}

fn retention_change() -> impl Strategy<Value = RetentionChange> {
    (change(), change(), change()).prop_map(|(age_ms, bytes, records)| RetentionChange {
        age_ms,
        bytes,
        records,
    })
}

fn acks() -> impl Strategy<Value = Acks> {
    prop_oneof![Just(Acks::Replicated), Just(Acks::Local), Just(Acks::None)]
}

fn node() -> impl Strategy<Value = NodeInfo> {
    (any::<u64>(), text(), vec(text(), 0..3)).prop_map(|(id, name, addresses)| NodeInfo {
        id: NodeId(id),
        name,
        addresses,
    })
}

fn fault() -> impl Strategy<Value = Fault> {
    let code = (0..Code::ALL.len()).prop_map(|at| Code::ALL[at]);
    let numbers = (
        option::of(any::<u64>()),
        option::of(any::<u64>()),
        option::of(offset()),
        option::of(offset()),
    );
    let copies = (option::of(any::<u32>()), option::of(any::<u32>()), option::of(text()));
    (code, text(), option::of(text()), numbers, copies).prop_map(
        |(code, message, hint, (limit, expected, start, end), (have, need, node))| {
            let expected = expected.map(Sequence);
            let detail = Detail { limit, expected, start, end, have, need, node };
            let fault = Fault::new(code, message).with_detail(detail);
            match hint {
                Some(hint) => fault.with_hint(hint),
                None => fault,
            }
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    let settings = (option::of(any::<u32>()), retention_change())
        .prop_map(|(partitions, retention)| TopicRequest { partitions, retention });
    prop_oneof![
        (topic_name(), settings)
            .prop_map(|(name, settings)| Request::CreateTopic { name, settings }),
        (option::of(topic_name()), any::<u32>())
            .prop_map(|(after, limit)| Request::ListTopics { after, limit }),
        topic_name().prop_map(|name| Request::ShowTopic { name }),
        (topic_name(), retention_change())
            .prop_map(|(name, change)| Request::SetTopic { name, change }),
        topic_name().prop_map(|name| Request::DeleteTopic { name }),
        (topic_name(), any::<u32>(), position()).prop_map(|(topic, partition, position)| {
            Request::FindOffset { topic, partition, position }
        }),
        Just(Request::NodeStatus),
        (role(), option::of(any::<u64>()), vec(text(), 0..3)).prop_map(
            |(role, lifetime_ms, addresses)| Request::Invite { role, lifetime_ms, addresses }
        ),
        Just(Request::ClusterStatus),
        (any::<u64>(), option::of(any::<u32>()), option::of(any::<bool>())).prop_map(
            |(node, weight, draining)| Request::SetNode { node: NodeId(node), weight, draining }
        ),
        (any::<u64>(), any::<u64>())
            .prop_map(|(old, new)| Request::ReplaceNode { old: NodeId(old), new: NodeId(new) }),
        Just(Request::RecoveryPlan),
        (any::<u16>(), any::<u64>(), any::<u64>()).prop_map(|(shard, version, node)| {
            Request::Recover { shard, version, node: NodeId(node) }
        }),
        option::of(any::<u64>()).prop_map(|node| Request::Scrub { node: node.map(NodeId) }),
        any::<u64>().prop_map(|node| Request::RemoveNode { node: NodeId(node) }),
        Just(Request::BalancePlan),
        Just(Request::Balance),
    ]
}

fn role() -> impl Strategy<Value = NodeRole> {
    prop_oneof![Just(NodeRole::Data), Just(NodeRole::Witness)]
}

fn node_ids() -> impl Strategy<Value = Vec<NodeId>> {
    vec(any::<u64>().prop_map(NodeId), 0..3)
}

fn invited() -> impl Strategy<Value = Invited> {
    (text(), any::<u64>(), role(), time(), vec(text(), 0..3)).prop_map(
        |(token, id, role, expires, addresses)| Invited {
            token: InviteToken::new(token),
            id,
            role,
            expires,
            addresses,
        },
    )
}

fn cluster_node() -> impl Strategy<Value = ClusterNode> {
    let liveness = (any::<bool>(), any::<u64>(), option::of(any::<u32>()))
        .prop_map(|(up, since_ms, clients)| Liveness { up, since_ms, clients });
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (node(), role(), text(), any::<u32>(), flags, option::of(liveness)).prop_map(
        |(node, role, software, weight, (draining, started, votes, damaged), liveness)| {
            ClusterNode {
                id: node.id,
                name: node.name,
                role,
                addresses: node.addresses,
                software,
                weight,
                draining,
                started,
                votes,
                liveness,
                damaged,
            }
        },
    )
}

fn cluster_shard() -> impl Strategy<Value = ClusterShard> {
    let lag = (any::<u64>(), option::of(any::<u64>()), text())
        .prop_map(|(node, entries, why)| Lag { node: NodeId(node), entries, why });
    let numbers = (any::<u16>(), any::<u64>(), option::of(any::<u64>()), any::<u32>());
    (numbers, node_ids(), node_ids(), node_ids(), any::<bool>(), vec(lag, 0..3)).prop_map(
        |((shard, epoch, primary, copies_min), set, pending, replicas, stalled, behind)| {
            let (epoch, primary) = (Epoch(epoch), primary.map(NodeId));
            ClusterShard {
                shard,
                epoch,
                primary,
                set,
                pending,
                replicas,
                copies_min,
                stalled,
                behind,
            }
        },
    )
}

fn recovery_plan() -> impl Strategy<Value = RecoveryPlan> {
    let end = option::of(any::<u64>());
    let survivor = (any::<u64>(), end, any::<u64>()).prop_map(|(node, end, epoch)| Survivor {
        node: NodeId(node),
        end: end.map(Lsn),
        epoch: Epoch(epoch),
    });
    let numbers = (any::<u16>(), any::<u64>(), any::<u32>(), option::of(any::<u64>()));
    let stuck = (numbers, text(), node_ids(), vec(survivor, 0..3)).prop_map(
        |((shard, version, partitions, floor), why, members, survivors)| StuckShard {
            shard,
            version,
            why,
            members,
            partitions,
            floor: floor.map(Lsn),
            survivors,
        },
    );
    (text(), vec(stuck, 0..3)).prop_map(|(site, shards)| RecoveryPlan { site, shards })
}

fn balance_plan() -> impl Strategy<Value = BalancePlan> {
    let numbers = (any::<u64>(), any::<u32>(), any::<u64>(), any::<u32>(), any::<u32>());
    let known = (option::of(any::<u8>()), option::of(any::<u64>()), any::<bool>(), any::<bool>());
    let node = (text(), numbers, known).prop_map(
        |(name, (id, weight, clients_wanted, primaries, primaries_wanted), known)| {
            let (load, clients, up, settled) = known;
            let id = NodeId(id);
            BalanceNode {
                id,
                name,
                weight,
                up,
                settled,
                load,
                clients,
                clients_wanted,
                primaries,
                primaries_wanted,
            }
        },
    );
    let nodes = || any::<(u64, u64)>().prop_map(|(from, to)| (NodeId(from), NodeId(to)));
    let clients =
        (nodes(), any::<u64>()).prop_map(|((from, to), clients)| ClientMove { from, to, clients });
    let primary = (nodes(), any::<u16>(), any::<bool>())
        .prop_map(|((from, to), shard, due)| PrimaryMove { shard, from, to, due });
    (text(), any::<u64>(), vec(node, 0..3), vec(clients, 0..3), vec(primary, 0..3)).prop_map(
        |(site, node, nodes, clients, primaries)| BalancePlan {
            site,
            node: NodeId(node),
            nodes,
            clients,
            primaries,
        },
    )
}

fn cluster() -> impl Strategy<Value = ClusterStatus> {
    let nodes = vec(cluster_node(), 0..3);
    let shards = vec(cluster_shard(), 0..3);
    (text(), any::<u64>(), option::of(any::<u64>()), any::<u16>(), nodes, shards, any::<u32>())
        .prop_map(|(site, node, leader, level, nodes, shards, invites)| ClusterStatus {
            site,
            node: NodeId(node),
            leader: leader.map(NodeId),
            level,
            nodes,
            shards,
            invites,
        })
}

fn join_answer() -> impl Strategy<Value = JoinAnswer> {
    let welcome = (any::<u64>(), any::<u16>(), role(), text(), text(), vec(node(), 0..3)).prop_map(
        |(node, shards, role, certificate_pem, ca_pem, nodes)| JoinWelcome {
            node: NodeId(node),
            site: "plant".parse().expect("a good name"),
            role,
            certificate_pem,
            ca_pem,
            shards,
            nodes,
        },
    );
    prop_oneof![welcome.prop_map(JoinAnswer::Welcome), fault().prop_map(JoinAnswer::Fault)]
}

fn topic_status() -> impl Strategy<Value = TopicStatus> {
    let retention = (option::of(any::<u64>()), option::of(any::<u64>()), option::of(any::<u64>()))
        .prop_map(|(age_ms, bytes, records)| Retention { age_ms, bytes, records });
    let settings = (any::<u32>(), retention)
        .prop_map(|(partitions, retention)| TopicSettings { partitions, retention });
    let partition = (any::<u32>(), offset(), offset(), any::<u64>()).prop_map(
        |(partition, start, end, bytes)| PartitionStatus { partition, start, end, bytes },
    );
    (topic_name(), any::<u64>(), settings, time(), vec(partition, 0..3)).prop_map(
        |(name, id, settings, created, partitions)| TopicStatus {
            name,
            id: TopicId(id),
            settings,
            created,
            partitions,
        },
    )
}

fn node_status() -> impl Strategy<Value = NodeStatus> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>());
    (text(), text(), numbers, any::<bool>()).prop_map(
        |(name, software, (id, uptime_ms, connections, topics, disk_free), disk_low)| NodeStatus {
            name,
            id: NodeId(id),
            software,
            uptime_ms,
            connections,
            topics,
            disk_free,
            disk_low,
        },
    )
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        Just(Answer::Done),
        topic_status().prop_map(Answer::Topic),
        (vec(topic_status(), 0..3), any::<bool>())
            .prop_map(|(topics, more)| Answer::Topics { topics, more }),
        offset().prop_map(Answer::Offset),
        node_status().prop_map(Answer::Node),
        fault().prop_map(Answer::Fault),
        invited().prop_map(Answer::Invited),
        cluster().prop_map(Answer::Cluster),
        recovery_plan().prop_map(Answer::RecoveryPlan),
        balance_plan().prop_map(Answer::BalancePlan),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn hello(
        (version_min, version_max, software) in (any::<u16>(), any::<u16>(), text()),
        features in vec(text(), 0..3),
        moved in any::<bool>(),
    ) {
        check(&Hello { version_min, version_max, software, features, moved })?;
    }

    #[test]
    fn welcome(
        (version, software, site, node_name, id) in (any::<u16>(), text(), text(), text(), any::<u64>()),
        you in option::of(text()),
        features in vec(text(), 0..3),
        (batch_len_max, control_len_max, streams_max) in (any::<u32>(), any::<u32>(), any::<u32>()),
        nodes in vec(node(), 0..3),
    ) {
        let limits = WireLimits { batch_len_max, control_len_max, streams_max };
        let node_id = NodeId(id);
        check(&Welcome { version, software, site, node: node_name, node_id, you, features, limits, nodes })?;
    }

    #[test]
    fn go_away(
        reason in text(),
        within_ms in any::<u32>(),
        nodes in vec(node(), 0..3),
        leave in prop_oneof![Just(Leave::Now), Just(Leave::Soon), Just(Leave::Please)],
    ) {
        check(&GoAway { reason, within_ms, nodes, leave })?;
    }

    #[test]
    fn requests(request in request()) {
        check(&request)?;
    }

    #[test]
    fn answers(answer in answer()) {
        check(&answer)?;
    }

    #[test]
    fn join_requests(
        (version_min, version_max, invite) in any::<(u16, u16, u64)>(),
        secret in any::<u128>().prop_map(InviteSecret::new),
        disk_id in prop_oneof![0..10u128, any::<u128>()],
        csr in vec(any::<u8>(), 0..40).prop_map(Octets),
        addresses in vec(text(), 0..3),
        software in text(),
    ) {
        let name = "n-2".parse().expect("a good name");
        check(&JoinRequest {
            version_min,
            version_max,
            invite,
            secret,
            name,
            disk_id,
            csr,
            addresses,
            software,
        })?;
    }

    #[test]
    fn join_answers(answer in join_answer()) {
        check(&answer)?;
    }

    #[test]
    fn publish_open(
        topic in topic_name(),
        acks in acks(),
        require_copies in option::of(any::<u32>()),
        producer in prop_oneof![0..10u128, any::<u128>()],
        direct in any::<bool>(),
    ) {
        let producer = ProducerId(producer);
        check(&PublishOpen { topic, acks, require_copies, producer, direct })?;
    }

    #[test]
    fn publish_ok(
        id in any::<u64>(),
        (partitions, window_batches, window_bytes) in any::<(u32, u32, u32)>(),
    ) {
        check(&PublishOk { topic_id: TopicId(id), partitions, window_batches, window_bytes })?;
    }

    #[test]
    fn nack(index in any::<u64>(), fault in fault()) {
        check(&Nack { index, fault })?;
    }

    #[test]
    fn subscribe_open(
        topic in topic_name(),
        partitions in option::of(vec(any::<u32>(), 0..4)),
        from in position(),
        resume in vec((any::<u32>(), offset()), 0..4),
        direct in any::<bool>(),
    ) {
        check(&SubscribeOpen { topic, partitions, from, resume, direct })?;
    }

    #[test]
    fn subscribe_ok(id in any::<u64>(), starts in vec((any::<u32>(), offset(), offset()), 0..4)) {
        let partitions =
            starts.into_iter().map(|(partition, from, end)| ReadStart { partition, from, end }).collect();
        check(&SubscribeOk { topic_id: TopicId(id), partitions })?;
    }

    #[test]
    fn caught_up(positions in vec((any::<u32>(), offset()), 0..4)) {
        check(&CaughtUp { positions })?;
    }

    #[test]
    fn faults(fault in fault()) {
        check(&fault)?;
    }

    #[test]
    fn acks_of_any_length(
        index in any::<u64>(),
        partition in any::<u32>(),
        base_offset in offset(),
        level in acks(),
        copies in any::<u8>(),
    ) {
        let ack = Ack { index, partition, base_offset, level, copies };
        let mut bytes = BytesMut::new();
        ack.encode(&mut bytes);
        let body = &bytes[2..];
        prop_assert_eq!(Ack::decode(body), Ok(ack));
        prop_assert_eq!(Ack::decode(&[body, &[7]].concat()), Ok(ack), "a newer ack is longer");
        for cut in 0..body.len() {
            prop_assert!(Ack::decode(&body[..cut]).is_err());
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in vec(any::<u8>(), 0..64)) {
        harmless(&bytes);
    }

    /// A flipped bit reaches deeper than noise, which most often fails at its first byte.
    #[test]
    fn no_flipped_bit_makes_a_decoder_panic(
        answer in answer(),
        at in any::<proptest::sample::Index>(),
        bit in 0..8,
    ) {
        let mut bytes = BytesMut::new();
        put_control(FrameType::Answer, &answer, &mut bytes);
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        let mut decoder = FrameDecoder::new();
        decoder.push(&bytes);
        if let Ok(Some(frame)) = decoder.next_frame() {
            harmless(&frame.body);
        }
    }
}

fn harmless(bytes: &[u8]) {
    let _ = cbor::get::<Hello>(bytes);
    let _ = cbor::get::<Welcome>(bytes);
    let _ = cbor::get::<GoAway>(bytes);
    let _ = cbor::get::<Request>(bytes);
    let _ = cbor::get::<Answer>(bytes);
    let _ = cbor::get::<PublishOpen>(bytes);
    let _ = cbor::get::<PublishOk>(bytes);
    let _ = cbor::get::<Nack>(bytes);
    let _ = cbor::get::<SubscribeOpen>(bytes);
    let _ = cbor::get::<SubscribeOk>(bytes);
    let _ = cbor::get::<CaughtUp>(bytes);
    let _ = cbor::get::<Fault>(bytes);
    let _ = cbor::get::<JoinRequest>(bytes);
    let _ = cbor::get::<JoinAnswer>(bytes);
    let _ = Ack::decode(bytes);
    let _ = Publish::decode(bytes.to_vec().into());
    let _ = Deliver::decode(bytes.to_vec().into());
}

/// What docs/protocol.md calls optional may be left out, and then has the default that stands there.
#[test]
fn what_is_left_out_has_its_default() {
    let map = |fields: &[(&str, Value)]| {
        Value::Map(fields.iter().map(|(key, value)| ((*key).into(), value.clone())).collect())
    };
    #[track_caller]
    fn reads<T: DeserializeOwned + PartialEq + Debug>(value: &Value, want: &T) {
        let mut bytes = BytesMut::new();
        cbor::put(value, &mut bytes);
        assert_eq!(cbor::get::<T>(&bytes).as_ref(), Ok(want));
    }
    let (one, topic) = (Value::from(1), Value::from("a/b"));
    let name: TopicName = "a/b".parse().unwrap();
    reads(
        &map(&[("version_min", one.clone()), ("version_max", one)]),
        &Hello {
            version_min: 1,
            version_max: 1,
            software: String::new(),
            features: vec![],
            moved: false,
        },
    );
    let open = PublishOpen {
        topic: name.clone(),
        acks: Acks::Replicated,
        require_copies: None,
        producer: ProducerId::NONE,
        direct: false,
    };
    reads(&map(&[("topic", topic.clone())]), &open);
    let open = SubscribeOpen {
        topic: name.clone(),
        partitions: None,
        from: Position::Latest,
        resume: vec![],
        direct: false,
    };
    reads(&map(&[("topic", topic.clone())]), &open);
    let create = map(&[("name", topic), ("settings", map(&[]))]);
    let settings = TopicRequest::default();
    reads(&map(&[("CreateTopic", create)]), &Request::CreateTopic { name, settings });
    let list = map(&[("ListTopics", map(&[("limit", 5.into())]))]);
    reads(&list, &Request::ListTopics { after: None, limit: 5 });
    let invite = Request::Invite { role: NodeRole::Data, lifetime_ms: None, addresses: vec![] };
    reads(&map(&[("Invite", map(&[]))]), &invite);
    let set = map(&[("SetNode", map(&[("node", 3.into())]))]);
    reads(&set, &Request::SetNode { node: NodeId(3), weight: None, draining: None });
}
