//! Who a peer is: the name that the site's authority has put into its certificate.

use std::fmt;

use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use crate::types::{BadName, ClientName, NodeName, SiteName};

/// A verified peer: its site and its name there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The site whose authority vouches for the name.
    pub site: SiteName,
    /// The name.
    pub who: Who,
}

/// A name in a site. Nodes and clients are named apart: a client called like a node is not that node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// A machine that runs `dunlin serve`.
    Node(NodeName),
    /// Anyone who publishes, reads or administers.
    Client(ClientName),
}

impl Identity {
    /// Reads the identity of the other side of a connection; none if it came without a certificate.
    ///
    /// # Errors
    /// If the certificate names nobody, or more than one.
    pub fn of_peer(connection: &quinn::Connection) -> Result<Option<Self>, BadIdentity> {
        let Some(any) = connection.peer_identity() else { return Ok(None) };
        let Ok(chain) = any.downcast::<Vec<CertificateDer<'static>>>() else {
            return Err(BadIdentity::Missing);
        };
        chain.first().map(Self::from_certificate).transpose()
    }

    /// Reads the identity in a certificate. Whether the certificate is to be trusted is TLS's matter.
    ///
    /// # Errors
    /// If the certificate names nobody, or more than one.
    pub fn from_certificate(der: &CertificateDer<'_>) -> Result<Self, BadIdentity> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| BadIdentity::Malformed)?;
        Self::from_uri(&only_uri(&certificate)?)
    }

    fn from_uri(uri: &str) -> Result<Self, BadIdentity> {
        let shape = || BadIdentity::Shape { uri: uri.into() };
        let mut parts = uri.strip_prefix(URI_PREFIX).ok_or_else(shape)?.split('/');
        let (Some(site), Some(kind), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(shape());
        };
        let site = site.parse()?;
        let who = match kind {
            "node" => Who::Node(name.parse()?),
            "client" => Who::Client(name.parse()?),
            _ => return Err(shape()),
        };
        Ok(Self { site, who })
    }

    /// The URI that stands for this identity in a certificate.
    #[must_use]
    pub fn to_uri(&self) -> String {
        format!("{URI_PREFIX}{}/{}", self.site, self.who)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Client(name) => write!(f, "client/{name}"),
        }
    }
}

/// Reads the site that an authority's certificate stands for.
pub(super) fn site_of_authority(der: &CertificateDer<'_>) -> Result<SiteName, BadIdentity> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| BadIdentity::Malformed)?;
    let uri = only_uri(&certificate)?;
    let site = uri.strip_prefix(URI_PREFIX).and_then(|rest| rest.strip_suffix(AUTHORITY_SUFFIX));
    Ok(site.ok_or_else(|| BadIdentity::Shape { uri: uri.clone() })?.parse()?)
}

/// The URI that stands for a site's authority in its own certificate.
pub(super) fn authority_uri(site: &SiteName) -> String {
    format!("{URI_PREFIX}{site}{AUTHORITY_SUFFIX}")
}

/// Two names in one certificate would let its holder be whichever suits: refused.
fn only_uri(certificate: &X509Certificate<'_>) -> Result<String, BadIdentity> {
    let names = certificate.subject_alternative_name().map_err(|_| BadIdentity::Malformed)?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri.into()),
        (None, _) => Err(BadIdentity::Missing),
        (Some(_), Some(_)) => Err(BadIdentity::Several),
    }
}

/// Why a certificate proves no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadIdentity {
    /// The bytes are no X.509 certificate, or its names cannot be read.
    #[error("the certificate cannot be parsed")]
    Malformed,
    /// No URI among its names.
    #[error("the certificate holds no dunlin identity (a URI name {URI_PREFIX}SITE/...)")]
    Missing,
    /// A URI of another shape.
    #[error("the certificate names {uri:?}, which is no dunlin identity")]
    Shape {
        /// What stands there instead.
        uri: String,
    },
    /// More than one URI.
    #[error("the certificate holds more than one identity")]
    Several,
    /// The shape is right and a name in it is not.
    #[error("the certificate names somebody impossible: {0}")]
    Name(#[from] BadName),
}

const URI_PREFIX: &str = "dunlin://";
const AUTHORITY_SUFFIX: &str = "/authority";

#[cfg(test)]
mod tests {
    use super::*;

    fn name<T: std::str::FromStr<Err = BadName>>(s: &str) -> T {
        s.parse().expect("a good name")
    }

    #[test]
    fn an_identity_survives_its_uri() {
        for who in [Who::Node(name("n-1")), Who::Client(name("press.7"))] {
            let identity = Identity { site: name("plant"), who };
            assert_eq!(Identity::from_uri(&identity.to_uri()), Ok(identity));
        }
    }

    #[test]
    fn other_uris_are_refused() {
        for uri in [
            "",
            "dunlin://",
            "dunlin://plant",
            "dunlin://plant/authority",
            "dunlin://plant/node/",
            "dunlin://plant/node/a/b",
            "dunlin://plant/root/a",
            "dunlin:///node/a",
            "https://plant/node/a",
            "dunlin://plant/node/ä",
        ] {
            assert!(Identity::from_uri(uri).is_err(), "{uri}");
        }
    }

    #[test]
    fn garbage_is_no_certificate() {
        for len in 0..64u8 {
            let der = CertificateDer::from(
                (0..len).map(|i| i.wrapping_mul(31) ^ 0x30).collect::<Vec<_>>(),
            );
            assert_eq!(Identity::from_certificate(&der), Err(BadIdentity::Malformed));
        }
    }
}
