use std::time::SystemTime;

use super::*;
use crate::net::{
    authority::{IssuedCertificate, NODE_SERVER_NAME, SiteAuthority, Validity},
    identity::Identity,
    tls::{self, ALPN_CLIENT, ALPN_PEER, ClientAuth, Credentials},
};

struct Site {
    authority: SiteAuthority,
}

impl Site {
    fn new() -> Self {
        let authority = SiteAuthority::create("plant".parse().expect("name"), SystemTime::now());
        Self { authority: authority.expect("made") }
    }

    fn validity() -> Validity {
        Validity::as_long_as_the_authority(SystemTime::now())
    }

    fn node(&self) -> IssuedCertificate {
        self.authority.issue_node(&name("n-1"), &[], Self::validity()).expect("issued")
    }

    fn client(&self) -> IssuedCertificate {
        self.authority.issue_client(&name("press"), Self::validity()).expect("issued")
    }

    fn trusting(&self, own: Option<IssuedCertificate>) -> Credentials {
        Credentials { ca_pem: self.authority.certificate_pem().into(), own }
    }

    fn listen(&self, auth: ClientAuth, address: &str) -> Endpoint {
        let credentials = self.trusting(Some(self.node()));
        let tls = tls::server_config(&credentials, auth, &[ALPN_CLIENT], SystemTime::now());
        let tls = Arc::new(tls.expect("good credentials"));
        server(
            address.parse().expect("address"),
            tls,
            &ConnectionLimits::default(),
            &ResetSecret::derive(b"key"),
        )
        .expect("bound")
    }
}

fn name<T: std::str::FromStr<Err = crate::types::BadName>>(s: &str) -> T {
    s.parse().expect("a good name")
}

/// Dials, and returns what each side makes of it: the client's error, and whom the node sees.
async fn meet(
    node: &Endpoint,
    credentials: &Credentials,
    alpn: &'static [u8],
) -> (Result<(), quinn::ConnectionError>, Option<Option<Identity>>) {
    let port = node.local_addr().expect("bound").port();
    let tls = Arc::new(tls::client_config(credentials, &[alpn]).expect("good credentials"));
    let dialler = client(tls, &ConnectionLimits::default()).expect("bound");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let dial = async {
        let connection = dialler.connect(address, NODE_SERVER_NAME).expect("dialled").await?;
        // Only a byte from the node shows that it took our certificate.
        let (mut send, mut receive) = connection.open_bi().await?;
        send.write_all(b"?").await.map_err(|_| connection.close_reason().expect("closed"))?;
        let read = receive.read_to_end(1).await;
        read.map(drop).map_err(|_| connection.close_reason().expect("closed"))
    };
    let accept = async {
        let connection = node.accept().await.expect("open").await.ok()?;
        let identity = Identity::of_peer(&connection).expect("readable");
        let (mut send, _receive) = connection.accept_bi().await.ok()?;
        send.write_all(b"!").await.ok()?;
        send.finish().ok()?;
        connection.closed().await;
        Some(identity)
    };
    tokio::join!(
        async {
            let result = dial.await;
            dialler.close(VarInt::from_u32(0), b"");
            result
        },
        accept
    )
}

#[tokio::test]
async fn a_client_of_the_site_is_known_by_name() {
    let site = Site::new();
    let node = site.listen(ClientAuth::Required, "[::]:0");
    let (dialled, seen) = meet(&node, &site.trusting(Some(site.client())), ALPN_CLIENT).await;
    dialled.expect("accepted");
    let seen = seen.expect("connected").expect("named");
    assert_eq!(seen.to_uri(), "dunlin://plant/client/press");
}

#[tokio::test]
async fn a_client_of_another_site_is_refused() {
    let (site, other) = (Site::new(), Site::new());
    let node = site.listen(ClientAuth::Required, "127.0.0.1:0");
    let (dialled, seen) = meet(&node, &site.trusting(Some(other.client())), ALPN_CLIENT).await;
    assert!(dialled.is_err());
    assert_eq!(seen, None);
}

#[tokio::test]
async fn a_client_refuses_a_node_of_another_site() {
    let (site, other) = (Site::new(), Site::new());
    let node = other.listen(ClientAuth::Optional, "127.0.0.1:0");
    let (dialled, seen) = meet(&node, &site.trusting(None), ALPN_CLIENT).await;
    assert!(dialled.is_err());
    assert_eq!(seen, None);
}

#[tokio::test]
async fn an_expired_client_is_refused() {
    let site = Site::new();
    let node = site.listen(ClientAuth::Required, "127.0.0.1:0");
    let year = Duration::from_secs(365 * 24 * 3600);
    let past = Validity::lasting(SystemTime::now() - year, Duration::from_secs(60));
    let old = site.authority.issue_client(&name("press"), past).expect("issued");
    let (dialled, seen) = meet(&node, &site.trusting(Some(old)), ALPN_CLIENT).await;
    assert!(dialled.expect_err("refused").to_string().contains("expired"));
    assert_eq!(seen, None);
}

#[tokio::test]
async fn nobody_comes_in_without_a_name_unless_the_door_is_open() {
    let site = Site::new();
    let shut = site.listen(ClientAuth::Required, "127.0.0.1:0");
    let (dialled, seen) = meet(&shut, &site.trusting(None), ALPN_CLIENT).await;
    assert!(dialled.is_err());
    assert_eq!(seen, None);

    let open = site.listen(ClientAuth::Optional, "127.0.0.1:0");
    let (dialled, seen) = meet(&open, &site.trusting(None), ALPN_CLIENT).await;
    dialled.expect("accepted");
    assert_eq!(seen, Some(None));
}

#[tokio::test]
async fn an_unknown_protocol_is_refused() {
    let site = Site::new();
    let node = site.listen(ClientAuth::Required, "127.0.0.1:0");
    let (dialled, seen) = meet(&node, &site.trusting(Some(site.client())), ALPN_PEER).await;
    assert!(dialled.is_err());
    assert_eq!(seen, None);
}

#[tokio::test]
async fn a_taken_port_is_named_in_the_error() {
    let site = Site::new();
    let node = site.listen(ClientAuth::Required, "127.0.0.1:0");
    let address = node.local_addr().expect("bound");
    let credentials = site.trusting(Some(site.node()));
    let now = SystemTime::now();
    let tls = tls::server_config(&credentials, ClientAuth::Required, &[ALPN_CLIENT], now);
    let error = server(
        address,
        Arc::new(tls.expect("good")),
        &ConnectionLimits::default(),
        &ResetSecret::derive(b"key"),
    );
    let error = error.expect_err("taken").to_string();
    assert!(error.contains(&address.to_string()), "{error}");
}
