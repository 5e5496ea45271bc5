//! TLS 1.3 with the site's authority as the only trust anchor, on both ends.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use quinn::crypto::rustls::HandshakeData;
use rustls::{
    CertificateError, ClientConfig, RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{
        ClientHello, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
};
use tracing::warn;

use super::{
    authority::{CA_CERTIFICATE_FILE, IssuedCertificate, NODE_SERVER_NAME},
    endpoint::ResetSecret,
    identity::{BadIdentity, Identity},
    secret_file::{self, FileError},
};

/// ALPN of clients.
pub const ALPN_CLIENT: &[u8] = b"dunlin/1";
/// ALPN of nodes among themselves.
pub const ALPN_PEER: &[u8] = b"dunlin-peer/1";
/// ALPN of machines that want to become nodes: they have no certificate yet.
pub const ALPN_JOIN: &[u8] = b"dunlin-join/1";

/// File of a node's certificate in the PKI directory.
pub const NODE_CERTIFICATE_FILE: &str = "node.pem";
/// File of a node's private key in the PKI directory.
pub const NODE_KEY_FILE: &str = "node.key";

/// What one side of a connection needs: whom to trust, and how to prove itself.
pub struct Credentials {
    /// The site's authority (PEM).
    pub ca_pem: String,
    /// Certificate and key of this side; none for an anonymous client.
    pub own: Option<IssuedCertificate>,
}

impl Credentials {
    /// Reads those of a node from its PKI directory.
    ///
    /// # Errors
    /// If a file is missing, or the key is readable by others.
    pub fn of_node(dir: &Path) -> Result<Self, TlsError> {
        Ok(Self {
            ca_pem: secret_file::read_public(&dir.join(CA_CERTIFICATE_FILE))?,
            own: Some(IssuedCertificate {
                certificate_pem: secret_file::read_public(&dir.join(NODE_CERTIFICATE_FILE))?,
                key_pem: secret_file::read_private(&dir.join(NODE_KEY_FILE))?,
            }),
        })
    }

    /// Who this side is; none for an anonymous client.
    ///
    /// # Errors
    /// If the certificate names nobody.
    pub fn identity(&self) -> Result<Option<Identity>, TlsError> {
        let Some(own) = &self.own else { return Ok(None) };
        let (chain, _) = Self::chain_and_key(own)?;
        Ok(chain.first().map(Identity::from_certificate).transpose()?)
    }

    /// What this side keeps over restarts and nobody else knows.
    ///
    /// # Errors
    /// If there is no private key.
    pub fn reset_secret(&self) -> Result<ResetSecret, TlsError> {
        let own = self.own.as_ref().ok_or(TlsError::NoCertificate)?;
        Ok(ResetSecret::derive(own.key_pem.as_bytes()))
    }

    fn authorities(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let certificates = CertificateDer::pem_slice_iter(self.ca_pem.as_bytes());
        let certificates: Result<Vec<_>, _> = certificates.collect();
        match certificates {
            Ok(certificates) if !certificates.is_empty() => Ok(certificates),
            Ok(_) | Err(_) => Err(TlsError::BadPem { what: CA }),
        }
    }

    fn trust(&self) -> Result<Arc<RootCertStore>, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.authorities()? {
            roots.add(certificate).map_err(|_| TlsError::BadPem { what: CA })?;
        }
        Ok(Arc::new(roots))
    }

    fn chain_and_key(
        own: &IssuedCertificate,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(own.certificate_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| TlsError::BadPem { what: "certificate" })?;
        if chain.is_empty() {
            return Err(TlsError::BadPem { what: "certificate" });
        }
        let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes())
            .map_err(|_| TlsError::BadPem { what: "private key" })?;
        Ok((chain, key))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("anonymous", &self.own.is_none()).finish()
    }
}

/// Whether a client must show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// Without one the handshake fails.
    #[default]
    Required,
    /// It may come without one; one that it shows must be the site's.
    Optional,
}

/// TLS of a node that listens.
///
/// # Errors
/// If the credentials are no pair, or clients would not believe them. A certificate that is merely out of its time
/// is only warned of: the clock of a machine without a battery is wrong until it has found a time server.
pub fn server_config(
    credentials: &Credentials,
    auth: ClientAuth,
    alpn: &[&[u8]],
    now: SystemTime,
) -> Result<ServerConfig, TlsError> {
    let roots = credentials.trust()?;
    let own = credentials.own.as_ref().ok_or(TlsError::NoCertificate)?;
    let (chain, key) = Credentials::chain_and_key(own)?;
    check_own(&chain, &roots, now)?;
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let verifier: Arc<dyn ClientCertVerifier> = match auth {
        ClientAuth::Required => builder.build()?,
        ClientAuth::Optional => builder.allow_unauthenticated().build()?,
    };
    let chains = Chains::new(chain, credentials.authorities()?, key)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(chains));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // A resumed session would skip the check of the client's certificate, which may have ended since.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What a node shows of itself: its own certificate, and to a joiner, which has no other way to know it, the
/// authority's too.
#[derive(Debug)]
struct Chains {
    own: Arc<CertifiedKey>,
    with_authority: Arc<CertifiedKey>,
}

impl Chains {
    fn new(
        chain: Vec<CertificateDer<'static>>,
        authorities: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, TlsError> {
        let own = CertifiedKey::from_der(chain, key, &provider())?;
        let whole = own.cert.iter().cloned().chain(authorities).collect();
        let with_authority = CertifiedKey::new(whole, Arc::clone(&own.key)).into();
        Ok(Self { own: own.into(), with_authority })
    }
}

impl ResolvesServerCert for Chains {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let joins = hello.alpn().is_some_and(|mut names| names.any(|name| name == ALPN_JOIN));
        Some(Arc::clone(if joins { &self.with_authority } else { &self.own }))
    }
}

/// TLS of a side that dials.
///
/// # Errors
/// If the credentials are no pair.
pub fn client_config(credentials: &Credentials, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(credentials.trust()?);
    let mut config = match &credentials.own {
        Some(own) => {
            let (chain, key) = Credentials::chain_and_key(own)?;
            builder.with_client_auth_cert(chain, key)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// The protocol that a connection was made for.
#[must_use]
pub fn alpn_of(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    data.protocol
}

/// A node's TLS that can be read again from its directory while it serves.
#[derive(Debug)]
pub struct ReloadableTls {
    dir: PathBuf,
    auth: ClientAuth,
    alpn: Vec<&'static [u8]>,
    current: Arc<ServerConfig>,
}

impl ReloadableTls {
    /// Reads the credentials in a PKI directory.
    ///
    /// # Errors
    /// As [`server_config`].
    pub fn load(
        dir: &Path,
        auth: ClientAuth,
        alpn: &[&'static [u8]],
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        let current = server_config(&Credentials::of_node(dir)?, auth, alpn, now)?.into();
        Ok(Self { dir: dir.into(), auth, alpn: alpn.to_vec(), current })
    }

    /// Reads the directory again. Give [`Self::current`] to the endpoint afterwards.
    ///
    /// # Errors
    /// As [`server_config`]; the last good set stays.
    pub fn reload(&mut self, now: SystemTime) -> Result<(), TlsError> {
        let credentials = Credentials::of_node(&self.dir)?;
        self.current = server_config(&credentials, self.auth, &self.alpn, now)?.into();
        Ok(())
    }

    /// The last good set.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current)
    }
}

/// Looks at our own certificate as a client would, so that a mix-up is found here and not by all of them.
fn check_own(
    chain: &[CertificateDer<'static>],
    roots: &Arc<RootCertStore>,
    now: SystemTime,
) -> Result<(), TlsError> {
    let Some((own, intermediates)) = chain.split_first() else {
        return Err(TlsError::NoCertificate);
    };
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider()).build()?;
    let name = ServerName::try_from(NODE_SERVER_NAME).map_err(|_| TlsError::NoCertificate)?;
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(since_1970);
    match verifier.verify_server_cert(own, intermediates, &name, &[], now) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InvalidCertificate(
            error @ (CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }),
        )) => {
            warn!(%error, "node certificate is not valid now: clients will refuse it");
            Ok(())
        }
        Err(rustls::Error::InvalidCertificate(why)) => Err(TlsError::NotOurs { why }),
        Err(other) => Err(other.into()),
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of the credentials.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something else stands where it should.
    #[error("the {what} is no usable PEM")]
    BadPem {
        /// Which part of the credentials.
        what: &'static str,
    },
    /// The certificate does not say whose it is.
    #[error(transparent)]
    Identity(#[from] BadIdentity),
    /// A node needs one.
    #[error("a node needs a certificate and its key")]
    NoCertificate,
    /// Signed by another authority, or made for something else.
    #[error("the certificate is not one of a node of this site: {why}")]
    NotOurs {
        /// What the check says.
        why: CertificateError,
    },
    /// The trust anchors cannot be used.
    #[error("the site authority cannot be used: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// Key and certificate are not a pair, or of a kind that TLS 1.3 does not know.
    #[error("certificate and key cannot be used: {0}")]
    Rustls(#[from] rustls::Error),
}

const CA: &str = "site authority (CA)";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::net::{
        authority::{CA_KEY_FILE, SiteAuthority, Validity},
        secret_file::{Access, write_new},
    };

    fn authority() -> SiteAuthority {
        SiteAuthority::create("plant".parse().expect("name"), SystemTime::now()).expect("made")
    }

    fn validity() -> Validity {
        Validity::as_long_as_the_authority(SystemTime::now())
    }

    fn node_of(authority: &SiteAuthority) -> IssuedCertificate {
        authority.issue_node(&"n-1".parse().expect("name"), &[], validity()).expect("issued")
    }

    fn save_node(dir: &Path, ca_pem: &str, node: &IssuedCertificate) {
        for file in [CA_CERTIFICATE_FILE, CA_KEY_FILE, NODE_CERTIFICATE_FILE, NODE_KEY_FILE] {
            let _ = fs::remove_file(dir.join(file));
        }
        let write = |file: &str, text: &str, access| {
            write_new(&dir.join(file), text.as_bytes(), access, None).expect("written");
        };
        write(CA_CERTIFICATE_FILE, ca_pem, Access::Public);
        write(NODE_CERTIFICATE_FILE, &node.certificate_pem, Access::Public);
        write(NODE_KEY_FILE, &node.key_pem, Access::Private);
    }

    fn refusal(ca_pem: &str, own: IssuedCertificate) -> TlsError {
        let credentials = Credentials { ca_pem: ca_pem.into(), own: Some(own) };
        server_config(&credentials, ClientAuth::Required, &[ALPN_CLIENT], SystemTime::now())
            .expect_err("refused")
    }

    #[test]
    fn another_sites_certificate_is_refused_at_the_start() {
        let error = refusal(authority().certificate_pem(), node_of(&authority()));
        assert!(matches!(error, TlsError::NotOurs { .. }), "{error}");
    }

    #[test]
    fn a_clients_certificate_does_not_make_a_node() {
        let authority = authority();
        let client =
            authority.issue_client(&"press".parse().expect("name"), validity()).expect("issued");
        let error = refusal(authority.certificate_pem(), client);
        assert!(matches!(error, TlsError::NotOurs { .. }), "{error}");
    }

    #[test]
    fn another_key_is_refused() {
        let authority = authority();
        let own = IssuedCertificate { key_pem: node_of(&authority).key_pem, ..node_of(&authority) };
        let error = refusal(authority.certificate_pem(), own);
        assert!(matches!(error, TlsError::Rustls(_)), "{error}");
    }

    #[test]
    fn a_wrong_clock_does_not_keep_a_node_down() {
        let authority = authority();
        let credentials = Credentials {
            ca_pem: authority.certificate_pem().into(),
            own: Some(node_of(&authority)),
        };
        let epoch = SystemTime::UNIX_EPOCH;
        assert!(server_config(&credentials, ClientAuth::Required, &[ALPN_CLIENT], epoch).is_ok());
    }

    #[test]
    fn a_bad_reload_keeps_the_last_good_set() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let authority = authority();
        save_node(dir.path(), authority.certificate_pem(), &node_of(&authority));
        let now = SystemTime::now();
        let mut tls = ReloadableTls::load(dir.path(), ClientAuth::Required, &[ALPN_CLIENT], now)
            .expect("loaded");
        let first = tls.current();

        fs::write(dir.path().join(NODE_CERTIFICATE_FILE), "rubbish").expect("written");
        assert!(tls.reload(now).is_err());
        assert!(Arc::ptr_eq(&first, &tls.current()));

        save_node(dir.path(), authority.certificate_pem(), &node_of(&authority));
        tls.reload(now).expect("reloaded");
        assert!(!Arc::ptr_eq(&first, &tls.current()));
    }
}
