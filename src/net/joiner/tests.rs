use std::time::SystemTime;

use super::*;
use crate::{
    net::{
        authority::{NodeRequest, SiteAuthority, Validity},
        endpoint::ResetSecret,
    },
    types::{InviteSecret, NodeId, NodeRole, Timestamp},
    wire::{Code, Octets},
};

/// What a node does with whoever comes: it answers all that it gets with the same fault, and counts.
struct Node {
    endpoint: Endpoint,
    address: Address,
}

fn authority(site: &str) -> SiteAuthority {
    SiteAuthority::create(site.parse().expect("name"), SystemTime::now()).expect("made")
}

fn validity() -> Validity {
    Validity::as_long_as_the_authority(SystemTime::now())
}

fn node_of(authority: &SiteAuthority) -> IssuedCertificate {
    authority.issue_node(&"n-1".parse().expect("name"), &[], validity()).expect("issued")
}

impl Node {
    fn listening(tls: rustls::ServerConfig) -> Self {
        let any = "127.0.0.1:0".parse().expect("address");
        let limits = ConnectionLimits::default();
        let secret = ResetSecret::derive(b"key");
        let endpoint = endpoint::server(any, Arc::new(tls), &limits, &secret).expect("bound");
        let port = endpoint.local_addr().expect("bound").port();
        Self { endpoint, address: Address::new("127.0.0.1", port).expect("address") }
    }

    fn of(authority: &SiteAuthority) -> Self {
        let credentials = Credentials {
            ca_pem: authority.certificate_pem().into(),
            own: Some(node_of(authority)),
        };
        let alpn = [ALPN_CLIENT, ALPN_JOIN];
        let now = SystemTime::now();
        Self::listening(
            tls::server_config(&credentials, ClientAuth::Optional, &alpn, now).expect("sound"),
        )
    }

    /// With a chain of one's own choice, as somebody in the middle would.
    fn showing(chain: Vec<CertificateDer<'static>>, key_pem: &str) -> Self {
        use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).expect("a key");
        let provider = tls::provider();
        let key = provider.key_provider.load_private_key(key).expect("a key");
        let shown =
            rustls::sign::SingleCertAndKey::from(rustls::sign::CertifiedKey::new(chain, key));
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(shown));
        config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
        Self::listening(config)
    }

    /// Joins by this node, and returns the answer with the requests that the node has seen.
    async fn join(
        &self,
        site: &SiteAuthority,
        answer: JoinAnswer,
    ) -> (Result<JoinWelcome, JoinError>, usize) {
        let mut invite = invite(site);
        invite.addresses = vec![self.address.clone()];
        let joining = request(&invite);
        let mut seen = 0;
        let serve = async {
            while let Some(incoming) = self.endpoint.accept().await {
                let Ok(connection) = incoming.await else { continue };
                let Ok((mut output, input)) = connection.accept_bi().await else { continue };
                let Ok(Some(_)) = FrameReader::new(input).next().await else { continue };
                seen += 1;
                let mut frame = BytesMut::new();
                put_control(FrameType::JoinAnswer, &answer, &mut frame);
                output.write_all(&frame).await.expect("sent");
                output.finish().expect("ended");
                connection.closed().await;
            }
        };
        let result = tokio::select! {
            result = join(&invite, &joining, async { vec![] }) => result,
            () = serve => panic!("the node has no end"),
        };
        (result, seen)
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    use rustls::pki_types::pem::PemObject as _;
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")
}

fn invite(site: &SiteAuthority) -> Invite {
    Invite {
        site: site.site().clone(),
        ca: site.fingerprint(),
        addresses: vec!["127.0.0.1:1".parse().expect("address")],
        id: 3,
        secret: InviteSecret::new(5),
        role: NodeRole::Data,
        expires: Timestamp(u64::MAX),
    }
}

fn request(invite: &Invite) -> JoinRequest {
    JoinRequest {
        version_min: 1,
        version_max: 1,
        invite: invite.id,
        secret: invite.secret,
        name: "n-2".parse().expect("name"),
        disk_id: 9,
        csr: Octets(Vec::new()),
        addresses: vec![],
        software: String::new(),
    }
}

fn refused() -> JoinAnswer {
    JoinAnswer::Fault(Fault::new(Code::Forbidden, "no").with_hint("ask"))
}

#[tokio::test]
async fn a_node_of_the_site_gets_the_question_and_is_heard() {
    let site = authority("plant");
    let (result, seen) = Node::of(&site).join(&site, refused()).await;
    let error = result.expect_err("refused");
    assert!(matches!(&error, JoinError::Refused { fault, .. } if fault.code == Code::Forbidden));
    assert_eq!((error.hint().as_deref(), seen), (Some("ask"), 1));
}

#[tokio::test]
async fn a_node_of_another_authority_never_sees_the_secret() {
    let (site, namesake) = (authority("plant"), authority("plant"));
    let (result, seen) = Node::of(&namesake).join(&site, refused()).await;
    let error = result.expect_err("refused");
    assert!(matches!(error, JoinError::NotThisSite { .. }), "{error}");
    assert!(error.to_string().contains("secret was not sent"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("dunlin invite")), "{error}");
    assert_eq!(seen, 0);
}

#[tokio::test]
async fn whoever_only_shows_the_sites_authority_never_sees_the_secret() {
    let (site, own) = (authority("plant"), authority("plant"));
    let theirs = node_of(&own);
    let client = site.issue_client(&"press".parse().expect("name"), validity()).expect("issued");
    let ca = der(site.certificate_pem());
    for (what, chain, key) in [
        ("own node, site's authority", vec![der(&theirs.certificate_pem), ca.clone()], &theirs),
        (
            "own node, both authorities",
            vec![der(&theirs.certificate_pem), der(own.certificate_pem()), ca.clone()],
            &theirs,
        ),
        ("a chain without the authority", vec![der(&node_of(&site).certificate_pem)], &theirs),
        ("the authority alone", vec![ca.clone(), ca.clone()], &theirs),
        (
            "the node's certificate without its key",
            vec![der(&node_of(&site).certificate_pem), ca.clone()],
            &theirs,
        ),
        ("a client of the site", vec![der(&client.certificate_pem), ca.clone()], &client),
    ] {
        let (result, seen) = Node::showing(chain, &key.key_pem).join(&site, refused()).await;
        let error = result.expect_err(what);
        assert!(matches!(error, JoinError::NotThisSite { .. }), "{what}: {error}");
        assert_eq!(seen, 0, "{what}");
    }
}

#[tokio::test]
async fn a_site_of_another_name_under_the_same_authority_never_sees_the_secret() {
    let site = authority("plant");
    let node = Node::of(&site);
    let mut invite = invite(&site);
    invite.site = "other".parse().expect("name");
    invite.addresses = vec![node.address.clone()];
    let joining = request(&invite);
    let accept = async {
        while let Some(incoming) = node.endpoint.accept().await {
            if let Ok(connection) = incoming.await {
                assert!(connection.accept_bi().await.is_err(), "a stream was opened");
            }
        }
    };
    let error = tokio::select! {
        result = join(&invite, &joining, async { vec![] }) => result.expect_err("refused"),
        () = accept => panic!("the node has no end"),
    };
    assert!(matches!(error, JoinError::NotThisSite { .. }), "{error}");
}

#[test]
fn an_answer_is_believed_only_if_it_makes_us_the_node_that_we_asked_to_be() {
    let site = authority("plant");
    let (invite, now) = (invite(&site), SystemTime::now());
    let request = request(&invite);
    let key = NodeRequest::new().expect("a key");
    let signed = |name: &str, key: &NodeRequest, site: &SiteAuthority| JoinWelcome {
        node: NodeId(7),
        site: invite.site.clone(),
        role: NodeRole::Data,
        certificate_pem: site
            .sign_node_request(&key.csr, &name.parse().expect("name"), validity())
            .expect("signed"),
        ca_pem: site.certificate_pem().into(),
        shards: 12,
        nodes: vec![],
    };
    let checked = |welcome: &JoinWelcome| {
        let own = IssuedCertificate {
            certificate_pem: welcome.certificate_pem.clone(),
            key_pem: key.key_pem.clone(),
        };
        check(&invite, &request, own, welcome, now).map_err(|error| error.to_string())
    };
    let good = signed("n-2", &key, &site);
    assert_eq!(checked(&good), Ok(()));
    let says = |welcome: &JoinWelcome, what: &str| {
        let error = checked(welcome).expect_err(what);
        assert!(error.contains(what), "{error}");
    };
    says(&signed("n-3", &key, &site), "another node");
    says(&signed("n-2", &NodeRequest::new().expect("a key"), &site), "cannot be used");
    let other = authority("plant");
    says(&JoinWelcome { ca_pem: other.certificate_pem().into(), ..good.clone() }, "authority");
    let foreign = signed("n-2", &key, &other).certificate_pem;
    says(
        &JoinWelcome { certificate_pem: foreign, ..good.clone() },
        "not one of a node of this site",
    );
    says(&JoinWelcome { site: "else".parse().expect("name"), ..good }, "site 'else'");
}
