use std::sync::Arc;

use hickory_resolver::proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{
        Record,
        rdata::{A, AAAA, PTR, TXT},
    },
};
use tokio::net::UdpSocket;

use super::*;
use crate::{
    discovery::{CaPrefix, Candidates},
    types::NodeId,
};

const DOMAIN: &str = "plant.example";

/// A name server of one zone, on loopback.
pub(super) struct Zone {
    pub(super) address: SocketAddr,
    _task: JoinSet<()>,
}

impl Zone {
    pub(super) async fn of(records: Vec<Record>) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        let address = socket.local_addr().expect("bound");
        let records = Arc::new(records);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut buffer = [0; 2_048];
            while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                let Ok(question) = Message::from_vec(&buffer[..len]) else { continue };
                let answer = answer(&question, &records).to_vec().expect("encoded");
                let _ = socket.send_to(&answer, from).await;
            }
        });
        Self { address, _task: task }
    }
}

fn answer(question: &Message, records: &[Record]) -> Message {
    let mut answer = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    let known = question.queries.iter().any(|q| records.iter().any(|r| r.name == *q.name()));
    answer.metadata.response_code =
        if known { ResponseCode::NoError } else { ResponseCode::NXDomain };
    for query in &question.queries {
        answer.add_query(query.clone());
        let fits = |r: &&Record| r.name == *query.name() && r.record_type() == query.query_type();
        answer.add_answers(records.iter().filter(fits).cloned());
    }
    if answer.answers.is_empty() {
        let zone = records.iter().filter(|record| record.record_type() == RecordType::SOA);
        answer.add_authorities(zone.cloned());
    }
    answer
}

fn name(text: &str) -> Name {
    Name::from_ascii(format!("{text}.{DOMAIN}.")).expect("a name")
}

fn record(of: &str, data: RData) -> Record {
    Record::from_rdata(name(of), 60, data)
}

fn node(instance: &str, id: u64, srv: &[(u16, u16, &str)]) -> Vec<Record> {
    let service = format!("{instance}._dunlin._udp");
    let keys = ["cluster=plant", &format!("id={id}"), "w=30", "ca=a5a5a5a5a5a5a5a5"];
    let mut all = vec![
        record("_dunlin._udp", RData::PTR(PTR(name(&service)))),
        record(&service, RData::TXT(TXT::new(keys.iter().map(|key| (*key).to_owned()).collect()))),
    ];
    for (priority, weight, host) in srv {
        let srv = SRV::new(*priority, *weight, 7440, name(host));
        all.push(record(&service, RData::SRV(srv)));
    }
    all
}

async fn found(records: Vec<Record>) -> Candidates {
    let zone = Zone::of(records).await;
    let dns = Dns::at(DOMAIN, zone.address).expect("a resolver");
    let mut table = Candidates::of_site(Some(CaPrefix::of(&[0xa5; 32])));
    for sighting in dns.browse(Duration::ZERO).await.expect("an answer") {
        table.see(sighting, Duration::ZERO);
    }
    table
}

#[tokio::test]
async fn a_zone_is_read_with_its_priorities_and_weights() {
    let mut records = node("edge-1", 1, &[(0, 0, "host-1")]);
    records.extend(node("edge-2", 2, &[(10, 70, "host-2"), (20, 5, "host-3")]));
    records.push(record("host-1", RData::A(A::new(10, 0, 0, 1))));
    records.push(record("host-1", RData::AAAA(AAAA::new(0xfd77, 0, 0, 0, 0, 0, 0, 1))));
    records.push(record("host-2", RData::A(A::new(10, 0, 0, 2))));
    records.push(record("host-3", RData::A(A::new(10, 0, 0, 3))));
    // Named, and not there.
    records.extend(node("edge-9", 9, &[(0, 0, "host-9")]));
    records.push(record("_dunlin._udp", RData::PTR(PTR(name("rubbish._dunlin._udp")))));
    let table = found(records).await;
    let ids: Vec<NodeId> = table.nodes().map(|(key, _)| key.id).collect();
    assert_eq!(ids, [NodeId(1), NodeId(2)]);
    let weights: Vec<u32> = table.nodes().map(|(_, node)| node.announcement().weight).collect();
    assert_eq!(weights, [30, 70], "an SRV weight goes before what the node says, but for 0");
    for seed in 0..50 {
        let order = table.order(Duration::ZERO, seed);
        assert_eq!(order.len(), 4);
        assert!(
            order[0].to_string().contains(":1]") || order[0].to_string().contains(".1:"),
            "{order:?}"
        );
    }
    assert_eq!(table.order(DNS_LIFE_MAX, 1).len(), 4, "nobody has looked at the time yet");
    let mut table = table;
    assert!(table.expire(Duration::from_secs(61)), "a record lives as long as it says");
}

#[tokio::test]
async fn a_domain_without_the_service_and_one_that_is_none_say_so() {
    let zone = Zone::of(vec![record("www", RData::A(A::new(10, 0, 0, 1)))]).await;
    let dns = Dns::at(DOMAIN, zone.address).expect("a resolver");
    let error = dns.browse(Duration::ZERO).await.expect_err("nothing is there");
    assert!(error.to_string().starts_with("_dunlin._udp.plant.example."), "{error}");
    let long = "a".repeat(70);
    assert!(matches!(Dns::at(&long, zone.address), Err(DnsError::Domain { .. })));
}

#[tokio::test]
async fn the_records_that_are_printed_for_a_zone_read_back() {
    use crate::discovery::zone::{self, Data, Target};
    let said = Announcement::from_txt(
        "edge.1",
        [
            ("cluster", "plant"),
            ("id", "4"),
            ("w", "30"),
            ("ca", "a5a5a5a5a5a5a5a5"),
            ("v", "0.1.0"),
        ]
        .into_iter(),
    )
    .expect("sound");
    let addresses: Vec<crate::types::Address> =
        ["10.0.0.7", "[fd77::7]:7440"].iter().map(|a| a.parse().expect("address")).collect();
    let below = |labels: &[String]| {
        let all = labels.iter().map(String::as_str).chain(DOMAIN.split('.'));
        Name::from_labels(all.map(str::as_bytes)).expect("a name")
    };
    let records = zone::records(&said, &addresses).into_iter().map(|record| {
        let data = match record.data {
            Data::Ptr(name) => RData::PTR(PTR(below(&name))),
            Data::Srv { priority, weight, port, target: Target::Ours(host) } => {
                RData::SRV(SRV::new(priority, weight, port, below(&host)))
            }
            Data::Srv { target: Target::Named(name), .. } => panic!("{name} is none of ours"),
            Data::Txt(keys) => RData::TXT(TXT::new(keys)),
            Data::A(ip) => RData::A(A(ip)),
            Data::Aaaa(ip) => RData::AAAA(AAAA(ip)),
        };
        Record::from_rdata(below(&record.name), zone::ZONE_TTL, data)
    });
    let table = found(records.collect()).await;
    let (_, node) = table.nodes().next().expect("it is there");
    assert_eq!(*node.announcement(), said);
    assert_eq!(node.addresses().count(), 2);
}
