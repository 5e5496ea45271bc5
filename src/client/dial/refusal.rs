//! What the end of a connection says about the node, or about us.

use quinn::{ConnectionError, TransportErrorCode};

use crate::{client::error::ConnectError, net::Address, wire::CloseCode};

/// None means silence.
pub(super) fn refusal(address: &Address, error: &ConnectionError) -> Option<ConnectError> {
    let address = address.clone();
    Some(match error {
        ConnectionError::TimedOut | ConnectionError::LocallyClosed | ConnectionError::Reset => {
            return None;
        }
        // Found on this side: we do not believe the node's certificate.
        ConnectionError::TransportError(error) if alert(error.code).is_some() => {
            ConnectError::NotThisSite { address, why: error.reason.clone() }
        }
        ConnectionError::ConnectionClosed(close) => match alert(close.error_code) {
            Some(NO_APPLICATION_PROTOCOL) => {
                ConnectError::Protocol { address, why: "it is no node for clients".into() }
            }
            Some(alert) => {
                ConnectError::CertificateRefused { address, why: alert_text(alert).into() }
            }
            None if close.error_code == TransportErrorCode::CONNECTION_REFUSED => {
                ConnectError::Closed { address, why: CloseCode::Busy.to_string() }
            }
            None => ConnectError::Protocol { address, why: close.to_string() },
        },
        ConnectionError::ApplicationClosed(close) => {
            let code = CloseCode::from_code(close.error_code.into_inner());
            let mut why = String::from_utf8_lossy(&close.reason).into_owned();
            if why.is_empty() {
                why = code.map_or_else(|| close.to_string(), |code| code.to_string());
            }
            match code {
                Some(CloseCode::Version) => ConnectError::Version { address },
                Some(CloseCode::Forbidden) => ConnectError::CertificateRefused { address, why },
                _ => ConnectError::Closed { address, why },
            }
        }
        ConnectionError::TransportError(_)
        | ConnectionError::VersionMismatch
        | ConnectionError::CidsExhausted => {
            ConnectError::Protocol { address, why: error.to_string() }
        }
    })
}

/// The TLS alert inside a QUIC error code (RFC 9001 section 4.8).
fn alert(code: TransportErrorCode) -> Option<u8> {
    u8::try_from(u64::from(code).checked_sub(0x100)?).ok()
}

/// Alerts of RFC 8446 section 6 that a node sends about a client's certificate.
fn alert_text(alert: u8) -> &'static str {
    match alert {
        42 | 43 | 46 => "it is no client certificate",
        44 => "it has been revoked",
        45 => "it is expired, or a clock is wrong",
        48 | 51 => "it is of another site",
        49 => "it gives no access",
        116 => "the node lets nobody in without one",
        _ => "the TLS handshake failed",
    }
}

const NO_APPLICATION_PROTOCOL: u8 = 120;

#[cfg(test)]
mod tests {
    use quinn::{ApplicationClose, ConnectionClose};

    use super::*;

    fn address() -> Address {
        "node-1".parse().expect("an address")
    }

    fn closed_by_alert(alert: u8) -> Option<ConnectError> {
        let close = ConnectionClose {
            error_code: TransportErrorCode::crypto(alert),
            frame_type: None,
            reason: bytes::Bytes::new(),
        };
        refusal(&address(), &ConnectionError::ConnectionClosed(close))
    }

    #[test]
    fn silence_is_no_refusal() {
        assert!(refusal(&address(), &ConnectionError::TimedOut).is_none());
    }

    #[test]
    fn an_alert_about_our_certificate_says_what_is_wrong_with_it() {
        let error = closed_by_alert(48).expect("refused");
        assert!(error.to_string().contains("of another site"), "{error}");
        assert!(
            error.is_definite() && error.hint().is_some_and(|hint| hint.contains("cert issue"))
        );
        assert!(closed_by_alert(45).expect("refused").to_string().contains("expired"));
        assert!(matches!(closed_by_alert(120), Some(ConnectError::Protocol { .. })));
    }

    #[test]
    fn a_full_or_stopping_node_may_be_tried_again() {
        for code in [CloseCode::Busy, CloseCode::Stopping] {
            let close =
                ApplicationClose { error_code: code.code().into(), reason: bytes::Bytes::new() };
            let error = refusal(&address(), &ConnectionError::ApplicationClosed(close));
            assert!(error.is_some_and(|error| !error.is_definite()));
        }
    }
}
