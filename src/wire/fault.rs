//! Errors as they travel: who is at fault, whether to try again, and what to do.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::types::{Offset, Sequence};

/// Who has to change something for the request to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Culprit {
    /// Whoever asked.
    Client,
    /// The state of the site: its topics, its members, its load.
    Site,
    /// The node that answered: its disk, its software.
    Node,
}

/// Whether the same request can work later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Retry {
    /// Not without a change.
    Never,
    /// Yes, after this many milliseconds.
    After(u32),
    /// The outcome is not known: only under the same producer sequence, or the record may be stored twice.
    SameSequence,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident => $culprit:ident, $retry:expr;)*) => {
        /// What went wrong. On the wire it is its name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $code,)*
            /// A code of a newer version.
            Unrecognized,
        }

        impl Code {
            /// The name on the wire.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$code => stringify!($code),)*
                    Self::Unrecognized => "Unrecognized",
                }
            }

            fn from_name(name: &str) -> Self {
                match name {
                    $(stringify!($code) => Self::$code,)*
                    _ => Self::Unrecognized,
                }
            }

            fn culprit(self) -> Culprit {
                match self {
                    $(Self::$code => Culprit::$culprit,)*
                    Self::Unrecognized => Culprit::Node,
                }
            }

            fn retry(self) -> Retry {
                match self {
                    $(Self::$code => $retry,)*
                    Self::Unrecognized => Retry::Never,
                }
            }

            /// Every code that this version sends.
            pub const ALL: &'static [Self] = &[$(Self::$code,)*];
        }
    };
}

codes! {
    /// The bytes are no message of the protocol.
    Malformed => Client, Retry::Never;
    /// No version of the protocol that both sides know.
    VersionUnsupported => Client, Retry::Never;
    /// The frame, batch or record is over its limit (`limit`).
    RecordTooLarge => Client, Retry::Never;
    /// A record batch whose checksum or shape is wrong.
    BadBatch => Client, Retry::Never;
    /// A name or a value outside what is allowed.
    Invalid => Client, Retry::Never;
    /// The certificate does not give the right.
    Forbidden => Client, Retry::Never;
    /// There is no such topic.
    UnknownTopic => Client, Retry::Never;
    /// There is no such partition of the topic (`limit` is how many there are).
    UnknownPartition => Client, Retry::Never;
    /// There is a topic of this name with other settings.
    TopicExists => Client, Retry::Never;
    /// The offset lies before the oldest record that is kept (`start`, `end`).
    OutOfRange => Client, Retry::Never;
    /// The node does not know the producer, and the sequence is not its first: records may have been forgotten.
    UnknownProducer => Client, Retry::Never;
    /// A batch of the producer is missing before this one (`expected`).
    SequenceGap => Client, Retry::Never;
    /// The sequence is older than what the node remembers of the producer (`expected`).
    SequenceTooOld => Client, Retry::Never;
    /// The site has as many as it may have (`limit`).
    LimitReached => Site, Retry::Never;
    /// Not enough copies can be written (`have`, `need`).
    NotEnoughCopies => Site, Retry::After(1_000);
    /// No node leads this partition right now.
    Electing => Site, Retry::After(100);
    /// Another node leads this partition (`node`).
    NotPrimary => Site, Retry::After(0);
    /// Too much at once.
    Throttled => Site, Retry::After(100);
    /// The disk is low: publishes are refused, reads go on.
    DiskFull => Node, Retry::After(5_000);
    /// Stored bytes do not match their checksum.
    Corrupted => Node, Retry::Never;
    /// The node is stopping.
    Stopping => Node, Retry::After(1_000);
    /// The request did not arrive whole, or was not done, in time.
    Timeout => Node, Retry::After(1_000);
    /// Whether it was done is not known.
    Unknown => Node, Retry::SameSequence;
    /// The node failed; the detail is in its log.
    Internal => Node, Retry::After(1_000);
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_name(&String::deserialize(deserializer)?))
    }
}

/// Numbers and names that belong to a code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Detail {
    /// The limit that was passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// The sequence that the node waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<Sequence>,
    /// The oldest offset that is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Offset>,
    /// The offset behind the newest record that can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<Offset>,
    /// Copies that can be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub have: Option<u32>,
    /// Copies that are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub need: Option<u32>,
    /// The node to ask instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// An error on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What went wrong.
    pub code: Code,
    /// Who has to change something.
    pub culprit: Culprit,
    /// Whether to try again.
    pub retry: Retry,
    /// The thing, the value and the limit, for people.
    pub message: String,
    /// What to do, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// For programs.
    #[serde(default)]
    pub detail: Box<Detail>,
}

impl Fault {
    /// An error of this code.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            culprit: code.culprit(),
            retry: code.retry(),
            message: message.into(),
            hint: None,
            detail: Box::default(),
        }
    }

    /// Adds what to do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds numbers for programs.
    #[must_use]
    pub fn with_detail(mut self, detail: Detail) -> Self {
        *self.detail = detail;
        self
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::wire::cbor;

    #[test]
    fn a_fault_survives_its_bytes() {
        for &code in Code::ALL {
            let fault = Fault::new(code, "topic 'a' does not exist").with_hint("make it");
            let mut bytes = BytesMut::new();
            cbor::put(&fault, &mut bytes);
            assert_eq!(cbor::get::<Fault>(&bytes), Ok(fault));
        }
    }

    #[test]
    fn a_code_of_a_newer_version_is_read_as_unrecognized() {
        assert_eq!(Code::from_name("TooWindy"), Code::Unrecognized);
    }
}
