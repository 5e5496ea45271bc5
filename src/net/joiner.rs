//! The joining side: a machine that has nothing but an invite.
//!
//! Invariant: the secret leaves only on a connection whose other end has proven that the authority of the invite's
//! fingerprint signed it. TLS proves it before the first byte is sent, so that no node in the middle ever sees a secret.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use quinn::{Connection, ConnectionError, Endpoint, VarInt};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::time::timeout;

use super::{
    authority::{Fingerprint, IssuedCertificate, NODE_SERVER_NAME},
    endpoint::{self, ConnectionLimits, EndpointError},
    frames::FrameReader,
    identity::{Identity, Who},
    invite::Invite,
    tls::{self, ALPN_CLIENT, ALPN_JOIN, ClientAuth, Credentials, TlsError},
};
use crate::{
    limits::{JOIN_DIAL_MAX, JOIN_ROUNDS_MAX, JOIN_SERVE_MAX},
    types::{Address, SiteName},
    wire::{
        CloseCode, Fault, FrameType, JoinAnswer, JoinRequest, JoinWelcome, Retry, cbor, put_control,
    },
};

/// TLS of a joiner: it shows no certificate, and believes who is signed by the authority of this fingerprint. The node
/// sends the authority's certificate along with its own.
///
/// # Errors
/// If TLS 1.3 is not to be had.
pub fn client_config(ca: Fingerprint) -> Result<ClientConfig, TlsError> {
    let provider = tls::provider();
    let verifier = OnlyAuthority { ca, provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Asks the nodes of the invite, one after the other, to be let in. Done twice it has the effect of once. When none of them
/// answers, `more` says where else to ask: who answers there must prove the same.
///
/// # Errors
/// [`JoinError`] of the node that had most to say.
pub async fn join(
    invite: &Invite,
    request: &JoinRequest,
    more: impl Future<Output = Vec<Address>>,
) -> Result<JoinWelcome, JoinError> {
    let limits = ConnectionLimits { streams_max: 0, ..ConnectionLimits::default() };
    let endpoint = endpoint::client(Arc::new(client_config(invite.ca)?), &limits)?;
    let mut said: Option<JoinError> = None;
    let mut addresses = invite.addresses.clone();
    let mut more = Some(more);
    for _ in 0..JOIN_ROUNDS_MAX {
        for address in &addresses {
            let error = match ask(&endpoint, invite, address, request).await {
                Ok(welcome) => {
                    endpoint.close(VarInt::from_u32(CloseCode::Done.code()), b"");
                    // The node logs a lost connection otherwise; nothing else depends on it.
                    let _ = timeout(GOODBYE_MAX, endpoint.wait_idle()).await;
                    return Ok(welcome);
                }
                Err(error) => error,
            };
            if error.is_final() {
                return Err(error);
            }
            if said.as_ref().is_none_or(|said| said.weight() < error.weight()) {
                said = Some(error);
            }
        }
        if let Some(more) = more.take() {
            let mut found = more.await;
            found.append(&mut addresses);
            addresses = found;
        }
    }
    // An invite has at least one address.
    Err(said.unwrap_or(JoinError::NoAddress))
}

/// Checks that what the node has answered makes a node of this site of us.
///
/// # Errors
/// [`JoinError::BadWelcome`].
pub fn check(
    invite: &Invite,
    request: &JoinRequest,
    own: IssuedCertificate,
    welcome: &JoinWelcome,
    now: SystemTime,
) -> Result<(), JoinError> {
    let bad = |why: String| JoinError::BadWelcome { why };
    if welcome.site != invite.site {
        return Err(bad(format!("it is of site '{}', not '{}'", welcome.site, invite.site)));
    }
    if Fingerprint::of_pem(&welcome.ca_pem) != Some(invite.ca) {
        return Err(bad("its authority is not the one of the invite".into()));
    }
    let credentials = Credentials { ca_pem: welcome.ca_pem.clone(), own: Some(own) };
    let ours = Identity { site: invite.site.clone(), who: Who::Node(request.name.clone()) };
    let identity = credentials.identity().map_err(|error| bad(error.to_string()))?;
    if identity.as_ref() != Some(&ours) {
        return Err(bad("the certificate is of another node".into()));
    }
    tls::server_config(&credentials, ClientAuth::Required, &[ALPN_CLIENT], now)
        .map(drop)
        .map_err(|error| bad(error.to_string()))
}

async fn ask(
    endpoint: &Endpoint,
    invite: &Invite,
    address: &Address,
    request: &JoinRequest,
) -> Result<JoinWelcome, JoinError> {
    let resolve = |source| JoinError::Resolve { address: address.clone(), source };
    let sockets: Vec<SocketAddr> =
        tokio::net::lookup_host((address.host(), address.port())).await.map_err(resolve)?.collect();
    let mut last = JoinError::Unreachable { address: address.clone() };
    for socket in sockets {
        match dial(endpoint, invite, address, socket).await {
            Ok(connection) => {
                let exchange = timeout(JOIN_SERVE_MAX, exchange(&connection, address, request));
                return match exchange.await {
                    Ok(answer) => answer,
                    Err(_) => Err(JoinError::Lost {
                        address: address.clone(),
                        why: format!("no answer within {} s", JOIN_SERVE_MAX.as_secs()),
                    }),
                };
            }
            Err(error) if last.weight() <= error.weight() => last = error,
            Err(_) => {}
        }
    }
    Err(last)
}

/// A connection to a node that has proven to be of the site.
async fn dial(
    endpoint: &Endpoint,
    invite: &Invite,
    address: &Address,
    socket: SocketAddr,
) -> Result<Connection, JoinError> {
    let unreachable = || JoinError::Unreachable { address: address.clone() };
    let connecting = endpoint.connect(socket, NODE_SERVER_NAME).map_err(|_| unreachable())?;
    let connection = match timeout(JOIN_DIAL_MAX, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(refusal(invite, address, &error)),
        Err(_) => return Err(unreachable()),
    };
    match Identity::of_peer(&connection) {
        Ok(Some(Identity { site, who: Who::Node(_) })) if site == invite.site => Ok(connection),
        other => {
            connection.close(VarInt::from_u32(CloseCode::Forbidden.code()), b"not this site");
            let why = match other {
                Ok(Some(identity)) => format!("it is {}", identity.to_uri()),
                Ok(None) => "it has no name".into(),
                Err(error) => error.to_string(),
            };
            Err(JoinError::NotThisSite { address: address.clone(), site: invite.site.clone(), why })
        }
    }
}

async fn exchange(
    connection: &Connection,
    address: &Address,
    request: &JoinRequest,
) -> Result<JoinWelcome, JoinError> {
    let lost = |why: String| {
        // What the node said when it closed says more than what our stream makes of it.
        let said = connection.close_reason().map(|reason| match reason {
            ConnectionError::ApplicationClosed(close) if !close.reason.is_empty() => {
                String::from_utf8_lossy(&close.reason).into_owned()
            }
            other => other.to_string(),
        });
        JoinError::Lost { address: address.clone(), why: said.unwrap_or(why) }
    };
    let (mut output, input) = connection.open_bi().await.map_err(|e| lost(e.to_string()))?;
    let mut frame = BytesMut::new();
    put_control(FrameType::JoinRequest, request, &mut frame);
    output.write_all(&frame).await.map_err(|error| lost(error.to_string()))?;
    // An error says that the stream is over already; reading says why.
    let _ = output.finish();
    let frame = FrameReader::new(input).next().await.map_err(|error| lost(error.to_string()))?;
    let answer = match frame {
        Some(frame) if frame.kind == FrameType::JoinAnswer => cbor::get(&frame.body),
        Some(frame) if frame.kind == FrameType::Fault => {
            cbor::get(&frame.body).map(JoinAnswer::Fault)
        }
        _ => return Err(lost("it answered something else".into())),
    };
    match answer.map_err(|error| JoinError::BadWelcome { why: error.to_string() })? {
        JoinAnswer::Welcome(welcome) => Ok(welcome),
        JoinAnswer::Fault(fault) => {
            Err(JoinError::Refused { address: address.clone(), fault: Box::new(fault) })
        }
    }
}

fn refusal(invite: &Invite, address: &Address, error: &ConnectionError) -> JoinError {
    let address = address.clone();
    match error {
        // Found on this side: we do not believe the certificate.
        ConnectionError::TransportError(error) if is_alert(error.code) => {
            JoinError::NotThisSite { address, site: invite.site.clone(), why: error.reason.clone() }
        }
        ConnectionError::ConnectionClosed(close) if is_alert(close.error_code) => {
            JoinError::NoJoins { address }
        }
        ConnectionError::TimedOut => JoinError::Unreachable { address },
        ConnectionError::ApplicationClosed(close) => {
            let why = String::from_utf8_lossy(&close.reason).into_owned();
            JoinError::Lost { address, why }
        }
        other => JoinError::Lost { address, why: other.to_string() },
    }
}

/// Whether TLS ended the connection (RFC 9001 section 4.8).
fn is_alert(code: quinn::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

/// Believes whom the authority of one fingerprint has signed, wherever else that authority is not known.
#[derive(Debug)]
struct OnlyAuthority {
    ca: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OnlyAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Whoever can show a certificate of this hash shows the site's; what it signed is checked below.
        let Some(authority) = intermediates.iter().find(|shown| Fingerprint::of(shown) == self.ca)
        else {
            let why = OtherError(Arc::new(NoAuthority));
            return Err(CertificateError::Other(why).into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let provider = Arc::clone(&self.provider);
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            // The authority signs nodes itself: there is nothing in between.
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the authority of the invite's fingerprint did not sign it")]
struct NoAuthority;

/// Why a machine has not become a node.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No socket could be had.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The invite names nobody.
    #[error("the invite names no address")]
    NoAddress,
    /// The host has no address.
    #[error("cannot find host {host}: {source}", host = address.host())]
    Resolve {
        /// The address as the invite has it.
        address: Address,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nobody answered.
    #[error("no answer from {address} within {} s", JOIN_DIAL_MAX.as_secs())]
    Unreachable {
        /// Who.
        address: Address,
    },
    /// The other side is no node of the invite's site. The secret was not sent.
    #[error("{address} is no node of site '{site}', the secret was not sent: {why}")]
    NotThisSite {
        /// Who.
        address: Address,
        /// The site of the invite.
        site: SiteName,
        /// What is wrong with its certificate.
        why: String,
    },
    /// The other side does not know how to let anybody in.
    #[error("{address} does not let machines join")]
    NoJoins {
        /// Who.
        address: Address,
    },
    /// The connection ended before the answer: whether the site has the node now is not known.
    #[error("{address} has not answered whether this machine may join: {why}")]
    Lost {
        /// Who.
        address: Address,
        /// What is known.
        why: String,
    },
    /// The node said no.
    #[error("{address}: {fault}")]
    Refused {
        /// Who.
        address: Address,
        /// Why.
        fault: Box<Fault>,
    },
    /// The node's answer makes no node of us.
    #[error("the answer is of no use: {why}")]
    BadWelcome {
        /// What is wrong with it.
        why: String,
    },
}

impl JoinError {
    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Refused { fault, .. } => return fault.hint.clone(),
            Self::Endpoint(_) | Self::Tls(_) => return None,
            Self::NoAddress | Self::Resolve { .. } => {
                "make an invite with an address that this machine can reach: dunlin invite --address HOST:PORT"
            }
            Self::Unreachable { .. } => {
                "check that the node runs and that its UDP port is open in every firewall between; \
                 dunlin invite --address HOST:PORT names another address"
            }
            Self::NotThisSite { .. } => {
                "another site has this address now, or somebody stands in between: compare the clocks, and make \
                 a new invite on a node of the site: dunlin invite"
            }
            Self::NoJoins { .. } | Self::BadWelcome { .. } => {
                "use the same release of dunlin on both machines"
            }
            Self::Lost { .. } => "run the same command again: the invite still holds",
        };
        Some(hint.into())
    }

    /// Whether no other node would answer differently.
    fn is_final(&self) -> bool {
        match self {
            Self::Refused { fault, .. } => {
                fault.retry == Retry::Never && fault.detail.node.is_none()
            }
            Self::Endpoint(_) | Self::Tls(_) | Self::NoAddress | Self::BadWelcome { .. } => true,
            Self::Resolve { .. }
            | Self::Unreachable { .. }
            | Self::NotThisSite { .. }
            | Self::NoJoins { .. }
            | Self::Lost { .. } => false,
        }
    }

    /// How much it says about what is wrong: of several, the user sees the greatest.
    fn weight(&self) -> u8 {
        match self {
            Self::NoAddress | Self::Resolve { .. } => 0,
            Self::Unreachable { .. } => 1,
            Self::NoJoins { .. } => 2,
            Self::NotThisSite { .. } => 3,
            Self::Lost { .. } => 4,
            Self::Refused { .. } | Self::BadWelcome { .. } => 5,
            Self::Endpoint(_) | Self::Tls(_) => 6,
        }
    }
}

/// How long the last packets may take on their way.
const GOODBYE_MAX: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
