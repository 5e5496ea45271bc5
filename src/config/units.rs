//! How values are written in the file: sizes, durations, addresses and numbers with their ranges.
//!
//! Each reader says in its error what is allowed.

use std::{
    fmt,
    net::{Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use bytesize::ByteSize;
use serde::{Deserializer, Serializer, de};

use super::{Address, MIB, PARTITIONS_PER_TOPIC_MAX};

/// What TOML has for a value that we read.
#[derive(Clone, Copy)]
enum Raw<'a> {
    Text(&'a str),
    Number(i64),
}

struct Reader<F> {
    expected: String,
    read: F,
}

impl<T, F: Fn(Raw<'_>) -> Option<T>> Reader<F> {
    fn take<'de, D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<T, F: Fn(Raw<'_>) -> Option<T>> de::Visitor<'_> for Reader<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.read)(Raw::Text(text))
            .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        (self.read)(Raw::Number(number))
            .ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
    }
}

fn number<'de, D: Deserializer<'de>, T: TryFrom<i64>>(
    deserializer: D,
    range: RangeInclusive<i64>,
) -> Result<T, D::Error> {
    let expected = format!("a whole number from {} to {}", range.start(), range.end());
    let read = |raw: Raw<'_>| match raw {
        Raw::Number(number) if range.contains(&number) => T::try_from(number).ok(),
        Raw::Number(_) | Raw::Text(_) => None,
    };
    Reader { expected, read }.take(deserializer)
}

macro_rules! numbers {
    ($($name:ident: $type:ty = $range:expr;)*) => {
        $(pub(super) fn $name<'de, D: Deserializer<'de>>(d: D) -> Result<$type, D::Error> {
            number(d, $range)
        })*
    };
}

numbers! {
    shards: u16 = 1..=64;
    connections: u32 = 1..=1_000_000;
    streams: u32 = 4..=65_536;
    handshakes: u32 = 1..=1_000_000;
    partitions: u32 = 1..=i64::from(PARTITIONS_PER_TOPIC_MAX);
}

fn read_bytes(raw: Raw<'_>) -> Option<u64> {
    match raw {
        Raw::Text(text) => text.parse::<ByteSize>().ok().map(|size| size.as_u64()),
        Raw::Number(number) => u64::try_from(number).ok(),
    }
}

fn bytes<'de, D: Deserializer<'de>>(
    deserializer: D,
    range: RangeInclusive<u64>,
) -> Result<u64, D::Error> {
    let (low, high) = (print_bytes(*range.start()), print_bytes(*range.end()));
    let expected = format!("a size from \"{low}\" to \"{high}\"");
    let read = |raw: Raw<'_>| read_bytes(raw).filter(|size| range.contains(size));
    Reader { expected, read }.take(deserializer)
}

/// Prints a size so that it reads back as the same.
pub(super) fn print_bytes(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

macro_rules! sizes {
    ($($name:ident = $range:expr;)*) => {
        $(pub(super) mod $name {
            use super::{Deserializer, MIB, Serializer, bytes, print_bytes};

            pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
                d: D,
            ) -> Result<u64, D::Error> {
                bytes(d, $range)
            }

            pub(in crate::config) fn serialize<S: Serializer>(
                size: &u64,
                s: S,
            ) -> Result<S::Ok, S::Error> {
                s.serialize_str(&print_bytes(*size))
            }
        })*
    };
}

sizes! {
    cache = MIB..=64 * 1024 * MIB;
    low_space = 16 * MIB..=1024 * 1024 * MIB;
    ballast = 0..=64 * 1024 * MIB;
    // Two of the largest batches fit, so that one can arrive while another is stored.
    inflight = 2 * MIB..=1024 * MIB;
}

fn duration<'de, D: Deserializer<'de>>(
    deserializer: D,
    range: RangeInclusive<Duration>,
) -> Result<Duration, D::Error> {
    let print = |duration: &Duration| humantime::format_duration(*duration).to_string();
    let (low, high) = (print(range.start()), print(range.end()));
    let expected = format!("a duration from \"{low}\" to \"{high}\"");
    let read = |raw: Raw<'_>| match raw {
        Raw::Text(text) => humantime::parse_duration(text).ok().filter(|time| range.contains(time)),
        Raw::Number(_) => None,
    };
    Reader { expected, read }.take(deserializer)
}

macro_rules! durations {
    ($($name:ident = $range:expr;)*) => {
        $(pub(super) mod $name {
            use super::{Deserializer, Duration, Serializer, duration};
            use crate::limits;

            pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
                d: D,
            ) -> Result<Duration, D::Error> {
                duration(d, $range)
            }

            pub(in crate::config) fn serialize<S: Serializer>(
                time: &Duration,
                s: S,
            ) -> Result<S::Ok, S::Error> {
                s.serialize_str(&humantime::format_duration(*time).to_string())
            }
        })*
    };
}

durations! {
    heartbeat = limits::HEARTBEAT..=limits::HEARTBEAT_MAX;
    fence = limits::FENCE_AFTER_MIN..=limits::FENCE_AFTER_MAX;
}

pub(super) fn socket_address<'de, D: Deserializer<'de>>(d: D) -> Result<SocketAddr, D::Error> {
    let expected = "an IP address and a port such as \"[::]:7440\" or \"10.0.0.7:7440\"".into();
    Reader { expected, read: read_address }.take(d)
}

fn read_address(raw: Raw<'_>) -> Option<SocketAddr> {
    match raw {
        Raw::Text(text) => text.parse().ok(),
        Raw::Number(_) => None,
    }
}

/// The same shape for all values that a word can turn off.
macro_rules! or_word {
    ($name:ident: $type:ty, $word:literal, $expected:literal, $read:expr, $print:expr) => {
        pub(super) mod $name {
            use super::*;

            pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
                d: D,
            ) -> Result<Option<$type>, D::Error> {
                let value: fn(Raw<'_>) -> Option<$type> = $read;
                let read = |raw: Raw<'_>| match raw {
                    Raw::Text($word | "") => Some(None),
                    raw => value(raw).map(Some),
                };
                Reader { expected: $expected.into(), read }.take(d)
            }

            pub(in crate::config) fn serialize<S: Serializer>(
                value: &Option<$type>,
                s: S,
            ) -> Result<S::Ok, S::Error> {
                let print: fn($type) -> String = $print;
                match value {
                    Some(value) => s.serialize_str(&print(*value)),
                    None => s.serialize_str($word),
                }
            }
        }
    };
}

or_word! {
    loopback_or_off: SocketAddr,
    "off",
    "\"off\" or a loopback address and a port such as \"127.0.0.1:7441\" (it has no access rules: put a proxy in front to open it)",
    |raw| read_address(raw).filter(|address| address.ip().is_loopback()),
    |address| address.to_string()
}
/// The same for values that are no more than text.
macro_rules! or_text {
    ($name:ident: $type:ty, $word:literal, $expected:literal, $read:expr, $print:expr) => {
        pub(super) mod $name {
            use super::*;

            pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
                d: D,
            ) -> Result<Option<$type>, D::Error> {
                let value: fn(&str) -> Option<$type> = $read;
                let read = |raw: Raw<'_>| match raw {
                    Raw::Text($word | "") => Some(None),
                    Raw::Text(text) => value(text).map(Some),
                    Raw::Number(_) => None,
                };
                Reader { expected: $expected.into(), read }.take(d)
            }

            pub(in crate::config) fn serialize<S: Serializer>(
                value: &Option<$type>,
                s: S,
            ) -> Result<S::Ok, S::Error> {
                let print: fn(&$type) -> String = $print;
                match value {
                    Some(value) => s.serialize_str(&print(value)),
                    None => s.serialize_str($word),
                }
            }
        }
    };
}

or_text! {
    domain_or_off: String,
    "off",
    "\"off\" or a domain such as \"plant.example\"",
    // A host's name has the same characters, and the same length.
    |text| Some(Address::new(text, 1).ok()?.host().trim_matches('.').to_owned()),
    Clone::clone
}
or_text! {
    path_or_off: PathBuf,
    "off",
    "\"off\" or a path such as \"/etc/dunlin/zone.key\"",
    |text| Some(text.into()),
    |path: &PathBuf| path.display().to_string()
}
or_text! {
    name_server_or_auto: Address,
    "auto",
    "\"auto\" or a name server such as \"ns1.plant.example\" or \"10.0.0.53:53\"",
    |text| {
        let address: Address = text.parse().ok()?;
        let is_said = text.parse::<Ipv6Addr>().is_err()
            && text.ends_with(&format!(":{}", address.port()));
        if is_said { Some(address) } else { Address::new(address.host(), DNS_PORT).ok() }
    },
    |server: &Address| server.to_string()
}

/// Where name servers listen if nobody says otherwise.
const DNS_PORT: u16 = 53;

or_word! {
    age_or_forever: Duration,
    "forever",
    "\"forever\" or a duration of at least a second such as \"7d\" or \"12h\"",
    |raw| match raw {
        Raw::Text(text) => {
            humantime::parse_duration(text).ok().filter(|age| *age >= Duration::from_secs(1))
        }
        Raw::Number(_) => None,
    },
    print_age
}
or_word! {
    bytes_or_unlimited: u64,
    "unlimited",
    "\"unlimited\" or a size of at least \"1MiB\"",
    |raw| read_bytes(raw).filter(|size| *size >= MIB),
    print_bytes
}
or_word! {
    count_or_unlimited: u64,
    "unlimited",
    "\"unlimited\" or a whole number of at least 1",
    |raw| match raw {
        Raw::Number(number) => u64::try_from(number).ok().filter(|count| *count >= 1),
        Raw::Text(text) => text.parse().ok().filter(|count| *count >= 1),
    },
    |count| count.to_string()
}

fn print_age(age: Duration) -> String {
    let seconds = age.as_secs();
    if age.subsec_nanos() != 0 {
        return humantime::format_duration(age).to_string();
    }
    let units = [(24 * 60 * 60, "d"), (60 * 60, "h"), (60, "m")];
    match units.iter().find(|(unit, _)| seconds.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", seconds / unit),
        None => format!("{seconds}s"),
    }
}
