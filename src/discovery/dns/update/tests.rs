use hickory_proto::rr::rdata::{
    SOA, TSIG,
    tsig::{TsigError, make_tsig_record},
};
use tokio::{net::TcpListener, task::JoinSet};

use super::*;
use crate::discovery::{Announcement, dns::tests::Zone};

const DOMAIN: &str = "site.plant.example";
const NOW_S: u64 = 1_800_000_000;

fn soa() -> Rr {
    let name = |text| Name::from_ascii(text).expect("a name");
    let soa = SOA::new(name("ns1.plant.example."), name("a.plant.example."), 1, 60, 60, 60, 60);
    Rr::from_rdata(name("plant.example."), 60, RData::SOA(soa))
}

fn key() -> TsigKey {
    TsigKey::new("nodes", Algorithm::HmacSha256, vec![7; 32]).expect("sound")
}

fn wanted() -> Wanted {
    let said = Announcement::fixture("edge-1", 1);
    let addresses = vec!["10.0.0.7".parse().expect("address")];
    Wanted { said, addresses, serves: true, removed: BTreeSet::new() }
}

/// A server that holds an empty zone, and answers updates like this.
async fn register(
    authoritative: bool,
    answer: impl Fn(&Message, Message) -> Message + Send + 'static,
) -> Result<Registered, Trouble> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let server: Address = listener.local_addr().expect("bound").to_string().parse().expect("one");
    let mut task = JoinSet::new();
    task.spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        while let Ok(len) = stream.read_u16().await {
            let mut bytes = vec![0; len.into()];
            stream.read_exact(&mut bytes).await.expect("a message");
            let asked = Message::from_vec(&bytes).expect("a message");
            let mut reply = Message::response(asked.metadata.id, asked.metadata.op_code);
            reply.metadata.authoritative = authoritative;
            if asked.metadata.op_code == OpCode::Update {
                reply = answer(&asked, reply);
            } else {
                reply.metadata.response_code = ResponseCode::NXDomain;
                reply.add_authority(soa());
            }
            let bytes = reply.to_vec().expect("encoded");
            stream.write_u16(u16::try_from(bytes.len()).expect("short")).await.expect("sent");
            stream.write_all(&bytes).await.expect("sent");
        }
    });
    let (key, wanted) = (key(), wanted());
    let registry = Registry { domain: DOMAIN, server: Some(&server), key: &key, now_s: NOW_S };
    registry.register(&wanted, false).await
}

async fn refused(code: ResponseCode, tsig: Option<(TsigError, Vec<u8>)>) -> String {
    let answer = move |asked: &Message, mut reply: Message| {
        reply.metadata.response_code = code;
        if let Some((error, other)) = tsig.clone() {
            let id = asked.metadata.id;
            let algorithm = TsigAlgorithm::HmacSha256;
            let tsig = TSIG::new(algorithm, NOW_S, FUDGE_S, vec![], id, Some(error), other);
            let name = Name::from_ascii("nodes.").expect("a name");
            reply.set_signature(Box::new(make_tsig_record(name, tsig)));
        }
        reply
    };
    register(true, answer).await.expect_err("refused").to_string()
}

#[tokio::test]
async fn a_refusal_says_who_is_at_fault() {
    let tsig = |error| Some((error, vec![]));
    for (code, tsig, says) in [
        (ResponseCode::NotAuth, tsig(TsigError::BadKey), "does not know the key 'nodes' (BADKEY)"),
        (ResponseCode::NotAuth, tsig(TsigError::BadSig), "has another secret for the key 'nodes'"),
        (ResponseCode::NotAuth, tsig(TsigError::BadTime), "the clocks of the name server 127"),
        (
            ResponseCode::NotAuth,
            Some((TsigError::BadTime, (NOW_S - 900).to_be_bytes()[2..].to_vec())),
            "is 900 s behind this machine's (BADTIME)",
        ),
        (ResponseCode::NotAuth, None, "does not let the key 'nodes' change"),
        (ResponseCode::Refused, None, "change these names of the zone plant.example."),
        (ResponseCode::NotZone, None, "does not keep the zone of site.plant.example"),
        (ResponseCode::NXRRSet, None, "somebody else has changed the records"),
        (ResponseCode::NotImp, None, "says Not Implemented"),
        // Success that nobody has signed is none.
        (ResponseCode::NoError, None, "is not signed with the key 'nodes'"),
    ] {
        let error = refused(code, tsig).await;
        assert!(error.contains(says), "{code}: {error}");
    }
    let not_ours = register(false, |_, reply| reply).await.expect_err("it keeps no zone");
    assert!(matches!(not_ours, Trouble::NotPrimary { .. }), "{not_ours}");
    let nobody: Address = "127.0.0.1:1".parse().expect("address");
    let (key, wanted) = (key(), wanted());
    let registry = Registry { domain: DOMAIN, server: Some(&nobody), key: &key, now_s: NOW_S };
    let silent = registry.register(&wanted, false).await.expect_err("nobody");
    assert!(matches!(silent, Trouble::Silent { .. }), "{silent}");
}

#[tokio::test]
async fn an_update_is_signed_names_its_zone_and_holds_only_while_the_name_is_free() {
    let answer = |asked: &Message, mut reply: Message| {
        assert_eq!(asked.queries[0].name().to_string(), "plant.example.");
        let [condition] = &asked.answers[..] else { panic!("{:?}", asked.answers) };
        assert_eq!(condition.name.to_string(), "edge-1._dunlin._udp.site.plant.example.");
        let kind = (condition.dns_class, condition.record_type());
        assert_eq!(kind, (DNSClass::NONE, RecordType::TXT));
        assert_eq!(asked.authorities.len(), 5, "two PTR, SRV, TXT, A");
        let signer = signer(&key()).expect("sound");
        let bytes = asked.to_vec().expect("encoded");
        let (mac, time, _) = signer.verify_message_byte(&bytes, None, true).expect("signed");
        assert_eq!(time, NOW_S);
        let context = hickory_proto::rr::TSigResponseContext::new(
            asked.metadata.id,
            NOW_S,
            signer,
            mac,
            None,
        );
        reply.metadata.response_code = ResponseCode::NoError;
        let tsig = context.sign(&reply.to_vec().expect("encoded")).expect("signed");
        reply.set_signature(tsig);
        reply
    };
    let done = register(true, answer).await.expect("registered");
    assert!(done.proven);
}

#[tokio::test]
async fn the_zone_names_its_primary_server_also_for_a_name_within_it() {
    let name = Name::from_ascii("ns1.plant.example.").expect("a name");
    let zone =
        Zone::of(vec![soa(), Rr::from_rdata(name, 60, RData::A(A::new(10, 0, 0, 53)))]).await;
    for domain in ["plant.example", "a.site.plant.example"] {
        let dns = Dns::at(domain, zone.address).expect("a resolver");
        let found = primary_of(&dns, domain).await;
        assert_eq!(found, Ok(vec!["10.0.0.53:53".parse().expect("address")]), "{domain}");
    }
    let empty = Zone::of(vec![]).await;
    let dns = Dns::at("plant.example", empty.address).expect("a resolver");
    assert!(primary_of(&dns, "plant.example").await.is_err());
}
