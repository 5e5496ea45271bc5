//! What a node says of itself: an instance name and TXT keys (RFC 6763 section 6).
//!
//! Keys that a reader does not know are skipped, so that a later release can add some.

use std::{fmt, str::FromStr};

use crate::{
    limits::{NODE_WEIGHT_DEFAULT, NODE_WEIGHT_MAX, TXT_KEYS_MAX, TXT_VALUE_LEN_MAX},
    types::{BadName, NodeId, NodeName, NodeRole, SiteName},
};

/// A node in its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Its site: `cluster`.
    pub site: SiteName,
    /// Its name: the instance.
    pub node: NodeName,
    /// Its number: `id`.
    pub id: NodeId,
    /// What it is for: `role`.
    pub role: NodeRole,
    /// Its share of clients, beside those of the others: `w`.
    pub weight: u32,
    /// How busy it is, 0 to 100: `load`.
    pub load: u8,
    /// The release that it runs: `v`.
    pub version: String,
    /// Its authority: `ca`.
    pub ca: CaPrefix,
}

impl Announcement {
    /// The instance name, by multicast. The number in it tells sites apart whose nodes have the same names: without it the one
    /// that is announced last would hide the other.
    #[must_use]
    pub fn instance(&self) -> String {
        let counted =
            format!("{} ({})", self.node, u16::from_be_bytes([self.ca.0[0], self.ca.0[1]]));
        // Longer than a label may be: then responders have to notice that two are called alike.
        if counted.len() > LABEL_LEN_MAX { self.node.to_string() } else { counted }
    }

    /// The TXT keys.
    #[must_use]
    pub fn to_txt(&self) -> Vec<(&'static str, String)> {
        vec![
            ("v", self.version.clone()),
            ("cluster", self.site.to_string()),
            ("id", self.id.to_string()),
            ("role", self.role.to_string()),
            ("w", self.weight.to_string()),
            ("load", self.load.to_string()),
            ("ca", self.ca.to_string()),
        ]
    }

    /// Reads an instance name and its TXT keys. Of a key that comes twice the first counts.
    ///
    /// # Errors
    /// If it names no node, or what it says is no possible value.
    pub fn from_txt<'a>(
        instance: &str,
        keys: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, BadAnnouncement> {
        let keys: Vec<(&str, &str)> = keys.take(TXT_KEYS_MAX).collect();
        let get = |wanted: &'static str| {
            let found = keys.iter().find(|(key, _)| key.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| *value).filter(|value| value.len() <= TXT_VALUE_LEN_MAX)
        };
        let must = |wanted| get(wanted).ok_or(BadAnnouncement::Missing { key: wanted });
        let bad = |key| BadAnnouncement::Value { key };
        let number = |key, default: u64| match get(key) {
            Some(text) => text.parse::<u64>().map_err(|_| bad(key)),
            None => Ok(default),
        };
        let weight = number("w", NODE_WEIGHT_DEFAULT.into())?.min(NODE_WEIGHT_MAX.into());
        let load = number("load", 0)?.min(100);
        let version = get("v").unwrap_or_default();
        Ok(Self {
            site: must("cluster")?.parse()?,
            node: without_counter(instance).parse()?,
            id: NodeId(must("id")?.parse().map_err(|_| bad("id"))?),
            role: get("role").unwrap_or("data").parse().map_err(|_| bad("role"))?,
            weight: u32::try_from(weight).unwrap_or(NODE_WEIGHT_MAX),
            load: u8::try_from(load).unwrap_or(100),
            // It is printed: nothing that a terminal would obey.
            version: version.chars().filter(char::is_ascii_graphic).collect(),
            ca: must("ca")?.parse()?,
        })
    }

    /// How much of the clients it should be given: nothing of a node that gives its work away, little of a busy one.
    #[must_use]
    pub fn share(&self) -> u32 {
        self.weight * u32::from(100 - self.load.min(100))
    }
}

/// Two sites may have a node of the same name: each has a number behind it, its own or a counter (RFC 6762 section 9), which
/// avahi writes as ` #2`.
fn without_counter(instance: &str) -> &str {
    let in_brackets = instance.strip_suffix(')').and_then(|rest| rest.rsplit_once(" ("));
    match in_brackets.or_else(|| instance.rsplit_once(" #")) {
        Some((name, number)) if number.parse::<u32>().is_ok() => name,
        _ => instance,
    }
}

/// The first eight bytes of the SHA-256 of an authority's certificate: enough to know one's own site among others. It
/// proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CaPrefix([u8; 8]);

impl CaPrefix {
    /// The prefix of this fingerprint.
    #[must_use]
    pub fn of(fingerprint: &[u8; 32]) -> Self {
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&fingerprint[..8]);
        Self(prefix)
    }
}

impl fmt::Display for CaPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl FromStr for CaPrefix {
    type Err = BadAnnouncement;

    fn from_str(s: &str) -> Result<Self, BadAnnouncement> {
        let digits = s.len() == 16 && s.bytes().all(|b| b.is_ascii_hexdigit());
        let number = digits.then(|| u64::from_str_radix(s, 16).ok()).flatten();
        Ok(Self(number.ok_or(BadAnnouncement::Value { key: "ca" })?.to_be_bytes()))
    }
}

/// Bytes of one label of a name (RFC 1035 section 2.3.4).
const LABEL_LEN_MAX: usize = 63;

/// An announcement that names no node of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnnouncement {
    /// A key without which nobody is named.
    #[error("the TXT key '{key}' is missing")]
    Missing {
        /// Which.
        key: &'static str,
    },
    /// A key with an impossible value.
    #[error("the TXT key '{key}' has a bad value")]
    Value {
        /// Which.
        key: &'static str,
    },
    /// A name that nobody can have.
    #[error(transparent)]
    Name(#[from] BadName),
}

#[cfg(test)]
impl Announcement {
    /// What a data node of the site "plant" says.
    pub(crate) fn fixture(node: &str, id: u64) -> Self {
        Self {
            site: "plant".parse().expect("name"),
            node: node.parse().expect("name"),
            id: NodeId(id),
            role: NodeRole::Data,
            weight: 100,
            load: 0,
            version: "0.1.0".into(),
            ca: CaPrefix::of(&[0xa5; 32]),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn announcement() -> Announcement {
        let data = Announcement::fixture("edge-1", 7);
        Announcement { role: NodeRole::Witness, weight: 250, load: 40, ..data }
    }

    fn read(instance: &str, keys: &[(&str, &str)]) -> Result<Announcement, BadAnnouncement> {
        Announcement::from_txt(instance, keys.iter().copied())
    }

    fn with(key: &str, value: &str) -> Result<Announcement, BadAnnouncement> {
        let keys = announcement().to_txt();
        let changed = keys.iter().map(|(k, v)| (*k, if *k == key { value } else { v.as_str() }));
        Announcement::from_txt("edge-1", changed)
    }

    #[test]
    fn an_announcement_survives_its_keys_and_a_counted_name() {
        let keys = announcement().to_txt();
        let keys: Vec<(&str, &str)> = keys.iter().map(|(k, v)| (*k, v.as_str())).collect();
        assert_eq!(read("edge-1", &keys), Ok(announcement()));
        assert_eq!(read("edge-1 (2)", &keys), Ok(announcement()));
        assert_eq!(read("edge-1 #2", &keys), Ok(announcement()));
        assert!(read("edge-1 (x)", &keys).is_err() && read("", &keys).is_err());
        let bytes: usize = keys.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
        assert!(bytes < 200, "{bytes}: a packet holds several");
    }

    #[test]
    fn nodes_of_two_sites_may_have_the_same_name() {
        let ours = announcement();
        let theirs = Announcement { ca: CaPrefix::of(&[0xa6; 32]), ..announcement() };
        assert_eq!(ours.instance(), "edge-1 (42405)");
        assert_ne!(ours.instance(), theirs.instance());
        let longest =
            Announcement { node: "n".repeat(63).parse().expect("name"), ..announcement() };
        for said in [ours, theirs, longest] {
            let keys = said.to_txt();
            let keys = keys.iter().map(|(k, v)| (*k, v.as_str()));
            assert!(said.instance().len() <= LABEL_LEN_MAX);
            assert_eq!(Announcement::from_txt(&said.instance(), keys), Ok(said.clone()));
        }
    }

    #[test]
    fn few_keys_are_needed_and_unknown_ones_are_skipped() {
        let keys = [("zz", "1"), ("CLUSTER", "plant"), ("id", "3"), ("ca", "00000000000000ff")];
        let read = read("a", &keys).expect("enough");
        assert_eq!((read.weight, read.load, read.role), (100, 0, NodeRole::Data));
        assert_eq!(read.share(), 10_000);
    }

    #[test]
    fn bad_values_are_refused_and_great_ones_cut() {
        for (key, value) in [
            ("cluster", "a b"),
            ("cluster", ""),
            ("id", "-1"),
            ("role", "boss"),
            ("w", "many"),
            ("load", "1e3"),
            ("ca", "a5"),
            ("ca", "+5a5a5a5a5a5a5a5"),
        ] {
            assert!(with(key, value).is_err(), "{key}={value}");
        }
        assert_eq!(with("w", "4000000").map(|a| a.weight), Ok(NODE_WEIGHT_MAX));
        assert_eq!(with("load", "250").map(|a| a.share()), Ok(0));
        let long = "1".repeat(TXT_VALUE_LEN_MAX + 1);
        assert_eq!(with("id", &long), Err(BadAnnouncement::Missing { key: "id" }));
        assert_eq!(with("v", "1\u{1b}[2J é").map(|a| a.version), Ok("1[2J".into()));
    }

    proptest! {
        #[test]
        fn what_is_announced_is_read(
            names in ("[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}", "[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}"),
            (id, weight, load) in (any::<u64>(), 0..=NODE_WEIGHT_MAX, 0..=100_u8),
            version in "[!-~]{0,64}",
            ca in any::<[u8; 32]>(),
            is_witness in any::<bool>(),
        ) {
            let role = if is_witness { NodeRole::Witness } else { NodeRole::Data };
            let (site, node) = (names.0.parse().expect("name"), names.1.parse().expect("name"));
            let (id, ca) = (NodeId(id), CaPrefix::of(&ca));
            let said = Announcement { site, node, id, role, weight, load, version, ca };
            let keys = said.to_txt();
            let keys = keys.iter().map(|(key, value)| (*key, value.as_str()));
            prop_assert_eq!(Announcement::from_txt(said.node.as_str(), keys), Ok(said));
        }

        #[test]
        fn no_text_makes_the_reader_panic(
            instance in "\\PC{0,80}",
            keys in proptest::collection::vec(("[a-z]{0,8}|cluster|id|ca|w|load|role|v", "\\PC{0,80}"), 0..40),
        ) {
            let keys = keys.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            if let Ok(read) = Announcement::from_txt(&instance, keys) {
                prop_assert!(read.load <= 100 && read.weight <= NODE_WEIGHT_MAX);
            }
        }
    }
}
