//! The site's certificate authority: made once at `dunlin init`, it says who is who.

use std::{
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::{
    identity::{self, BadIdentity, Identity, Who},
    secret_file::{self, FileError},
};
use crate::types::{ClientName, NodeName, SiteName};

/// The name that every node's certificate holds, and under which clients dial whatever address they dial.
///
/// So the ordinary check of a server's name proves "a node of this site", and a client's certificate, which
/// holds no such name, cannot pose as a node.
pub const NODE_SERVER_NAME: &str = "node.dunlin.internal";

/// File of the authority's certificate in the PKI directory.
pub const CA_CERTIFICATE_FILE: &str = "ca.pem";
/// File of the authority's private key in the PKI directory.
pub const CA_KEY_FILE: &str = "ca.key";

/// A site's authority with its private key.
pub struct SiteAuthority {
    site: SiteName,
    certificate_pem: String,
    fingerprint: Fingerprint,
    not_after: OffsetDateTime,
    issuer: Issuer<'static, KeyPair>,
}

impl SiteAuthority {
    /// Makes a new authority for a site. Nothing is written.
    ///
    /// # Errors
    /// If the machine gives no randomness.
    pub fn create(site: SiteName, now: SystemTime) -> Result<Self, AuthorityError> {
        let not_after = OffsetDateTime::from(now + CA_LIFETIME);
        let mut params = params(&format!("{site} site authority"), now, not_after);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.subject_alt_names = vec![uri(&identity::authority_uri(&site))?];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            site,
            certificate_pem: certificate.pem(),
            fingerprint: Fingerprint::of(certificate.der()),
            not_after,
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads the authority that lies in a PKI directory.
    ///
    /// # Errors
    /// If a file is missing, is readable by others, or does not belong to the other.
    pub fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let path = dir.join(CA_CERTIFICATE_FILE);
        let certificate_pem = secret_file::read_public(&path)?;
        let key_path = dir.join(CA_KEY_FILE);
        let key = KeyPair::from_pem(&secret_file::read_private(&key_path)?)
            .map_err(|_| AuthorityError::NoKey { path: key_path.clone() })?;
        let no_certificate = || AuthorityError::NoCertificate { path: path.clone() };
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| no_certificate())?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| no_certificate())?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(AuthorityError::KeyMismatch { key: key_path, certificate: path });
        }
        Ok(Self {
            site: identity::site_of_authority(&der)?,
            fingerprint: Fingerprint::of(&der),
            not_after: parsed.validity().not_after.to_datetime(),
            issuer: Issuer::from_ca_cert_der(&der, key)?,
            certificate_pem,
        })
    }

    /// Writes the authority into a PKI directory, the key readable by its owner alone: both files or none.
    ///
    /// # Errors
    /// If one of the files exists already or cannot be written.
    pub fn save(&self, dir: &Path, owner: Option<secret_file::Owner>) -> Result<(), FileError> {
        use secret_file::{Access, write_new};
        let key = self.issuer.key().serialize_pem();
        write_new(&dir.join(CA_KEY_FILE), key.as_bytes(), Access::Private, owner)?;
        let certificate = self.certificate_pem.as_bytes();
        let written = write_new(&dir.join(CA_CERTIFICATE_FILE), certificate, Access::Public, owner);
        if written.is_err() {
            // A key without its certificate would be in the way of the next try.
            let _ = fs::remove_file(dir.join(CA_KEY_FILE));
        }
        written
    }

    /// Issues the certificate of a node, good for both ends of a connection.
    ///
    /// `extra_names` are host names and IP addresses that it should be good for besides
    /// [`NODE_SERVER_NAME`], for tools that check the address they dialled.
    ///
    /// # Errors
    /// If an extra name is none, or the authority's own time is over.
    pub fn issue_node(
        &self,
        name: &NodeName,
        extra_names: &[String],
        validity: Validity,
    ) -> Result<IssuedCertificate, AuthorityError> {
        let mut names = vec![SanType::DnsName(NODE_SERVER_NAME.try_into()?)];
        for extra in extra_names {
            let bad = || AuthorityError::BadHost { host: extra.clone() };
            names.push(match extra.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) if extra.is_empty() => return Err(bad()),
                Err(_) => SanType::DnsName(extra.as_str().try_into().map_err(|_| bad())?),
            });
        }
        names.dedup();
        self.issue(Who::Node(name.clone()), names, node_usages(), validity)
    }

    /// Signs the key in a node's signing request (PKCS #10, DER). Name and uses are given here: whatever else the
    /// request asks for is not looked at.
    ///
    /// # Errors
    /// [`AuthorityError::Request`] if it is none, is not signed by its key, or the key is of another kind than ours.
    pub fn sign_node_request(
        &self,
        request: &[u8],
        name: &NodeName,
        validity: Validity,
    ) -> Result<String, AuthorityError> {
        let request = CertificateSigningRequestParams::from_der(&request.into())
            .map_err(|error| AuthorityError::Request { why: error.to_string() })?;
        let key = &request.public_key;
        // rcgen names the curve after the signature: the length tells whether it is so.
        let is_ours = *key.algorithm() == PKCS_ECDSA_P256_SHA256
            && key.der_bytes().len() == P256_POINT_LEN
            && key.der_bytes().first() == Some(&UNCOMPRESSED);
        if !is_ours {
            return Err(AuthorityError::Request {
                why: "its key is not one of ECDSA P-256".into(),
            });
        }
        let names = vec![SanType::DnsName(NODE_SERVER_NAME.try_into()?)];
        let who = Who::Node(name.clone());
        Ok(self.sign(who, names, node_usages(), validity, key)?.pem())
    }

    /// Issues the certificate of a client, good for nothing but being one.
    ///
    /// # Errors
    /// If the authority's own time is over.
    pub fn issue_client(
        &self,
        name: &ClientName,
        validity: Validity,
    ) -> Result<IssuedCertificate, AuthorityError> {
        let usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(Who::Client(name.clone()), Vec::new(), usages, validity)
    }

    /// The site that this authority speaks for.
    #[must_use]
    pub fn site(&self) -> &SiteName {
        &self.site
    }

    /// The authority's certificate.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The fingerprint of the authority's certificate.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    fn issue(
        &self,
        who: Who,
        names: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
        validity: Validity,
    ) -> Result<IssuedCertificate, AuthorityError> {
        let key = KeyPair::generate()?;
        let certificate = self.sign(who, names, usages, validity, &key)?;
        Ok(IssuedCertificate { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    fn sign(
        &self,
        who: Who,
        mut names: Vec<SanType>,
        usages: Vec<ExtendedKeyUsagePurpose>,
        validity: Validity,
        key: &impl PublicKeyData,
    ) -> Result<Certificate, AuthorityError> {
        if self.not_after <= OffsetDateTime::from(validity.now) {
            return Err(AuthorityError::Expired { site: self.site.clone() });
        }
        let not_after = match validity.lifetime {
            Some(lifetime) => OffsetDateTime::from(validity.now + lifetime).min(self.not_after),
            None => self.not_after,
        };
        let mut params = params(&who.to_string(), validity.now, not_after);
        names.push(uri(&Identity { site: self.site.clone(), who }.to_uri())?);
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer)?)
    }
}

impl fmt::Debug for SiteAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SiteAuthority").field("site", &self.site).finish_non_exhaustive()
    }
}

/// When a new certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    now: SystemTime,
    lifetime: Option<Duration>,
}

impl Validity {
    /// From now to the end of the authority's own time.
    ///
    /// The default: until certificates renew themselves, one that ends earlier is an outage with a date. A lost key
    /// is a matter for the list of denied certificates, which works at once.
    #[must_use]
    pub fn as_long_as_the_authority(now: SystemTime) -> Self {
        Self { now, lifetime: None }
    }

    /// From now for this long, but never longer than the authority.
    #[must_use]
    pub fn lasting(now: SystemTime, lifetime: Duration) -> Self {
        Self { now, lifetime: Some(lifetime) }
    }
}

/// A new certificate with its private key.
pub struct IssuedCertificate {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key: for a 0600 file and nowhere else.
    pub key_pem: String,
}

impl fmt::Debug for IssuedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedCertificate").finish_non_exhaustive()
    }
}

/// A new key, and the request that the site's authority may sign it.
pub struct NodeRequest {
    /// The private key: for a 0600 file and nowhere else.
    pub key_pem: String,
    /// The signing request (PKCS #10, DER).
    pub csr: Vec<u8>,
}

impl NodeRequest {
    /// Makes a key.
    ///
    /// # Errors
    /// If the machine gives no randomness.
    pub fn new() -> Result<Self, AuthorityError> {
        Self::of(KeyPair::generate()?)
    }

    /// Makes the request anew for a key that was kept.
    ///
    /// # Errors
    /// [`AuthorityError::Crypto`] if it is no key.
    pub fn of_key(key_pem: &str) -> Result<Self, AuthorityError> {
        Self::of(KeyPair::from_pem(key_pem)?)
    }

    fn of(key: KeyPair) -> Result<Self, AuthorityError> {
        // Nothing is asked for: the authority knows the name from the invite's holder.
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key)?;
        Ok(Self { key_pem: key.serialize_pem(), csr: csr.der().to_vec() })
    }
}

impl fmt::Debug for NodeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeRequest").finish_non_exhaustive()
    }
}

/// SHA-256 of a certificate, for people and tokens to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, certificate).as_ref());
        Self(bytes)
    }

    /// The fingerprint of the first certificate in a PEM file, if there is one.
    #[must_use]
    pub fn of_pem(pem: &str) -> Option<Self> {
        CertificateDer::from_pem_slice(pem.as_bytes()).ok().map(|der| Self::of(&der))
    }

    /// A fingerprint that was written down.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn params(common_name: &str, now: SystemTime, not_after: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = OffsetDateTime::from(now) - CLOCK_SLACK;
    params.not_after = not_after;
    // 16 random bytes with the top bit off: positive, as RFC 5280 wants it, and never given twice.
    let serial = rand::random::<u128>() >> 1;
    params.serial_number = Some(SerialNumber::from_slice(&serial.to_be_bytes()));
    params
}

fn node_usages() -> Vec<ExtendedKeyUsagePurpose> {
    vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
}

fn uri(text: &str) -> Result<SanType, AuthorityError> {
    Ok(SanType::URI(text.try_into()?))
}

/// Why the authority did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file of the authority.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file holds something else.
    #[error("{} holds no PEM certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The file holds something else.
    #[error("{} holds no usable PEM private key", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// Key and certificate are not a pair.
    #[error("{} is not the key of {}", key.display(), certificate.display())]
    KeyMismatch {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        certificate: PathBuf,
    },
    /// The authority's certificate was not made by dunlin.
    #[error("the site authority: {0}")]
    Identity(#[from] BadIdentity),
    /// Nothing that it signs now would be believed.
    #[error("the authority of site {site} has expired")]
    Expired {
        /// The site.
        site: SiteName,
    },
    /// Neither host name nor IP address.
    #[error("'{host}' is neither a host name nor an IP address")]
    BadHost {
        /// What was given.
        host: String,
    },
    /// The signing request cannot be used.
    #[error("the signing request is refused: {why}")]
    Request {
        /// What is wrong with it.
        why: String,
    },
    /// The machine gives no randomness, or cannot sign.
    #[error("cannot make a certificate: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// An uncompressed point of P-256: a byte that says so, and two numbers of 32 bytes.
const P256_POINT_LEN: usize = 65;
const UNCOMPRESSED: u8 = 4;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Longer than the machines of an edge site usually live. An authority that ends takes its whole site with it.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * DAY.as_secs());
/// A peer whose clock is behind by less than this still takes a certificate made a moment ago.
const CLOCK_SLACK: Duration = DAY;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::secret_file::Access;

    fn site() -> SiteName {
        "plant".parse().expect("a good name")
    }

    fn authority() -> SiteAuthority {
        SiteAuthority::create(site(), SystemTime::now()).expect("made")
    }

    fn identity_of(pem: &str) -> Identity {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        Identity::from_certificate(&der).expect("an identity")
    }

    #[test]
    fn issued_certificates_hold_the_names_they_were_issued_for() {
        let authority = authority();
        let validity = Validity::as_long_as_the_authority(SystemTime::now());
        let node = authority
            .issue_node(
                &"n-1".parse().expect("name"),
                &["10.0.0.7".into(), "edge-1".into()],
                validity,
            )
            .expect("issued");
        let client =
            authority.issue_client(&"press".parse().expect("name"), validity).expect("issued");
        assert_eq!(identity_of(&node.certificate_pem).to_uri(), "dunlin://plant/node/n-1");
        assert_eq!(identity_of(&client.certificate_pem).to_uri(), "dunlin://plant/client/press");
    }

    #[test]
    fn a_saved_authority_goes_on_as_the_same() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let made = authority();
        made.save(dir.path(), None).expect("saved");
        let loaded = SiteAuthority::load(dir.path()).expect("loaded");
        assert_eq!(loaded.site(), &site());
        assert_eq!(loaded.fingerprint(), made.fingerprint());
        assert_eq!(loaded.fingerprint().to_string().len(), 64);
        assert!(matches!(made.save(dir.path(), None), Err(FileError::Exists { .. })));
    }

    #[test]
    fn another_authoritys_key_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let key = authority().issuer.key().serialize_pem();
        let path = dir.path().join(CA_KEY_FILE);
        secret_file::write_new(&path, key.as_bytes(), Access::Private, None).expect("written");
        let certificate = authority().certificate_pem;
        let path = dir.path().join(CA_CERTIFICATE_FILE);
        secret_file::write_new(&path, certificate.as_bytes(), Access::Public, None)
            .expect("written");
        let error = SiteAuthority::load(dir.path()).expect_err("refused");
        assert!(matches!(error, AuthorityError::KeyMismatch { .. }), "{error}");
    }

    #[test]
    fn nothing_outlives_the_authority() {
        let authority = authority();
        let late = SystemTime::now() + CA_LIFETIME + DAY;
        let name = "press".parse().expect("name");
        let error = authority.issue_client(&name, Validity::as_long_as_the_authority(late));
        assert!(matches!(error, Err(AuthorityError::Expired { .. })));
        let long = Validity::lasting(SystemTime::now(), CA_LIFETIME * 2);
        let issued = authority.issue_client(&name, long).expect("issued");
        let der = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).expect("PEM");
        let (_, parsed) = X509Certificate::from_der(&der).expect("X.509");
        assert!(parsed.validity().not_after.timestamp() <= authority.not_after.unix_timestamp());
    }

    fn signed(request: &[u8]) -> Result<String, AuthorityError> {
        let validity = Validity::as_long_as_the_authority(SystemTime::now());
        authority().sign_node_request(request, &"n-2".parse().expect("name"), validity)
    }

    #[test]
    fn a_signed_request_is_the_node_that_was_allowed_with_the_key_that_asked() {
        let request = NodeRequest::new().expect("a key");
        let again = NodeRequest::of_key(&request.key_pem).expect("the same key");
        assert_eq!(request.key_pem, again.key_pem);
        let pem = signed(&request.csr).expect("signed");
        assert_eq!(identity_of(&pem).to_uri(), "dunlin://plant/node/n-2");
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        let (_, parsed) = X509Certificate::from_der(&der).expect("X.509");
        let key = KeyPair::from_pem(&request.key_pem).expect("a key");
        assert_eq!(parsed.public_key().raw, key.subject_public_key_info());
    }

    #[test]
    fn what_a_request_asks_for_is_not_looked_at() {
        let key = KeyPair::generate().expect("a key");
        let mut greedy = params("root", SystemTime::now(), OffsetDateTime::from(SystemTime::now()));
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        greedy.subject_alt_names = vec![uri("dunlin://plant/node/other").expect("a URI")];
        greedy.serial_number = None;
        let pem = signed(greedy.serialize_request(&key).expect("made").der()).expect("signed");
        assert_eq!(identity_of(&pem).to_uri(), "dunlin://plant/node/n-2");
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        let (_, parsed) = X509Certificate::from_der(&der).expect("X.509");
        assert!(!parsed.is_ca(), "a node signs nobody");
    }

    #[test]
    fn requests_of_other_keys_and_no_requests_are_refused() {
        for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).expect("a key");
            let request = CertificateParams::default().serialize_request(&key).expect("made");
            let error = signed(request.der()).expect_err("refused");
            assert!(error.to_string().contains("P-256"), "{error}");
        }
        let request = NodeRequest::new().expect("a key").csr;
        assert!(matches!(signed(&request[..40]), Err(AuthorityError::Request { .. })));
        for at in [request.len() - 1, request.len() / 2] {
            let mut changed = request.clone();
            changed[at] ^= 1;
            assert!(matches!(signed(&changed), Err(AuthorityError::Request { .. })), "{at}");
        }
        for len in 0..40 {
            assert!(signed(&vec![0x30; len]).is_err());
        }
    }

    #[test]
    fn a_bad_host_is_refused() {
        let validity = Validity::as_long_as_the_authority(SystemTime::now());
        let name = "n".parse().expect("name");
        for host in ["", "ä"] {
            let refused = authority().issue_node(&name, &[host.into()], validity);
            assert!(matches!(refused, Err(AuthorityError::BadHost { .. })), "{host}");
        }
    }
}
