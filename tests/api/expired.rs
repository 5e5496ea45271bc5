//! Certificates whose time is over, on either side: refused, with words that say so, and nobody else is harmed.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use dunlin::{
    client::{Client, ConnectError, Culprit},
    net::{
        SiteAuthority,
        authority::{IssuedCertificate, Validity},
        secret_file::{self, Access},
        tls::{NODE_CERTIFICATE_FILE, NODE_KEY_FILE},
    },
};
use tokio::time::{Instant, interval};

use super::{Site, node::metric};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const SOON: Duration = Duration::from_secs(10);

impl Site {
    fn authority(&self) -> SiteAuthority {
        SiteAuthority::load(&self.broker.data_dir().join("pki")).unwrap()
    }

    /// Gives the node another certificate, and starts it again.
    async fn certify(&mut self, own: &IssuedCertificate) {
        self.broker.stop().await.unwrap();
        let pki = self.broker.data_dir().join("pki");
        for (file, pem, access) in [
            (NODE_CERTIFICATE_FILE, &own.certificate_pem, Access::Public),
            (NODE_KEY_FILE, &own.key_pem, Access::Private),
        ] {
            fs::remove_file(pki.join(file)).unwrap();
            secret_file::write_new(&pki.join(file), pem.as_bytes(), access, None).unwrap();
        }
        self.broker.restart().await.unwrap();
    }
}

/// A day that was over nine days ago: far more than the slack for clocks.
fn over() -> Validity {
    Validity::lasting(SystemTime::now() - 10 * DAY, DAY)
}

#[tokio::test]
async fn an_expired_client_is_refused_and_told_why_and_the_node_counts_and_logs_it() {
    let mut site = Site::start().await;
    site.reconfigure(|config| config.replace("level = 'warn'", "level = 'info'")).await;
    let issued = site.authority().issue_client(&"late".parse().unwrap(), over()).unwrap();
    let mut profile = site.broker.profile().clone();
    profile.certificate = Some(issued.certificate_pem);
    profile.key = Some(issued.key_pem);
    let error = Client::connect(&profile).await.unwrap_err();
    let ConnectError::CertificateRefused { why, .. } = &error else { panic!("{error:?}") };
    assert!(why.contains("expired"), "{error}");
    assert_eq!(error.culprit(), Culprit::Client);
    assert!(error.hint().is_some_and(|hint| hint.contains("cert issue")), "{error}");

    let topic = site.topic("unharmed", 1).await;
    site.still_serves(&topic).await;
    let refused = "dunlin_connections_refused_total{reason=\"handshake\"}";
    let deadline = Instant::now() + SOON;
    let mut ticks = interval(Duration::from_millis(20));
    loop {
        ticks.tick().await;
        let page = site.get("/metrics").await;
        if page.contains(refused) && metric(&page, refused) >= 1.0 {
            break;
        }
        assert!(Instant::now() < deadline, "not counted: {page}");
    }
    let log = fs::read_to_string(site.broker.dir().join("log")).unwrap();
    let line = log.lines().find(|line| line.contains("handshake failed"));
    assert!(line.is_some_and(|line| line.to_lowercase().contains("expired")), "{log}");
}

#[tokio::test]
async fn an_expired_node_starts_with_a_warning_and_is_not_believed() {
    let mut site = Site::start().await;
    let issued = site.authority().issue_node(&"own".parse().unwrap(), &[], over()).unwrap();
    site.certify(&issued).await;
    let log = fs::read_to_string(site.broker.dir().join("log")).unwrap();
    assert!(log.contains("node certificate is not valid now"), "{log}");

    let error = Client::connect(site.broker.profile()).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotThisSite { .. }), "{error:?}");
    assert!(error.to_string().contains("expired"), "{error}");
}
