//! Where a node listens, as people write it: `HOST:PORT`, the port optional.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::limits::PORT_DEFAULT;

/// A host (name or IP address) and a UDP port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// An address of this host at this port.
    ///
    /// # Errors
    /// If the host is neither an IP address nor a name that DNS could hold.
    pub fn new(host: &str, port: u16) -> Result<Self, BadAddress> {
        let bad = |why| BadAddress { address: host.into(), why };
        if port == 0 {
            return Err(bad("the port must be 1 to 65535"));
        }
        if host.is_empty() {
            return Err(bad("the host is empty"));
        }
        let is_name = host.len() <= HOST_LEN_MAX
            && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
        if !is_name && host.parse::<Ipv6Addr>().is_err() {
            return Err(bad("the host must be a DNS name or an IP address"));
        }
        Ok(Self { host: host.into(), port })
    }

    /// The host: a DNS name or an IP address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The UDP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Address {
    type Err = BadAddress;

    /// Reads `host`, `host:port`, `::1`, `[::1]` and `[::1]:port`.
    fn from_str(s: &str) -> Result<Self, BadAddress> {
        let bad = |why| BadAddress { address: s.into(), why };
        let (host, port) = if let Some(rest) = s.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(|| bad("a ']' is missing"))?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(bad("after ']' only ':PORT' may stand")),
            }
        } else if s.parse::<Ipv6Addr>().is_ok() {
            (s, None)
        } else {
            match s.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (s, None),
            }
        };
        let port = match port {
            Some(port) => port.parse().map_err(|_| bad("the port must be 1 to 65535"))?,
            None => PORT_DEFAULT,
        };
        Self::new(host, port).map_err(|error| BadAddress { address: s.into(), ..error })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Text that names no host and port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad address '{address}': {why}")]
pub struct BadAddress {
    address: String,
    why: &'static str,
}

/// Longest name that DNS can hold, in bytes.
const HOST_LEN_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(text: &str, printed: &str) {
        assert_eq!(text.parse::<Address>().expect(text).to_string(), printed);
    }

    #[test]
    fn an_address_is_read_in_every_usual_spelling() {
        reads("edge-1", "edge-1:7440");
        reads("edge-1.plant.example:9", "edge-1.plant.example:9");
        reads("10.0.0.7:7440", "10.0.0.7:7440");
        reads("::1", "[::1]:7440");
        reads("[::1]", "[::1]:7440");
        reads("[fe80::2]:80", "[fe80::2]:80");
    }

    #[test]
    fn a_bad_address_is_refused() {
        for bad in
            ["", ":7440", "a:0", "a:70000", "a:b", "[::1", "[::1]x", "a b:1", "http://a:1", "[a]b"]
        {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
