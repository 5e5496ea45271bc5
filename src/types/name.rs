//! Names that people give: parsed once at the edge, so that no later code meets a bad one.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::limits::{NAME_LEN_MAX, TOPIC_NAME_LEN_MAX};

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// Nothing between the quotes.
    #[error("{noun} name is empty")]
    Empty {
        /// What was to be named.
        noun: &'static str,
    },
    /// Longer than the limit, in bytes.
    #[error("{noun} name is {len} bytes, limit is {max}")]
    TooLong {
        /// What was to be named.
        noun: &'static str,
        /// The length that was given.
        len: usize,
        /// The length that is allowed.
        max: usize,
    },
    /// A character outside the allowed ones.
    #[error("{noun} name '{name}' has the character {bad:?}, allowed are {allowed}")]
    Character {
        /// What was to be named.
        noun: &'static str,
        /// The whole name.
        name: String,
        /// The first character that is not allowed.
        bad: char,
        /// Those that are.
        allowed: &'static str,
    },
    /// A first character that would be taken for an option, a hidden file or a path.
    #[error("{noun} name '{name}' starts with {first:?}, it must start with a letter or a digit")]
    Start {
        /// What was to be named.
        noun: &'static str,
        /// The whole name.
        name: String,
        /// Its first character.
        first: char,
    },
    /// `a//b`, `/a` or `a/`.
    #[error("{noun} name '{name}' has an empty level: levels are parted by single slashes")]
    EmptyLevel {
        /// What was to be named.
        noun: &'static str,
        /// The whole name.
        name: String,
    },
}

struct Rule {
    noun: &'static str,
    len_max: usize,
    allowed: &'static str,
    levels: bool,
}

impl Rule {
    fn check(&self, name: &str) -> Result<(), BadName> {
        let noun = self.noun;
        let Some(first) = name.chars().next() else {
            return Err(BadName::Empty { noun });
        };
        if name.len() > self.len_max {
            return Err(BadName::TooLong { noun, len: name.len(), max: self.len_max });
        }
        if self.levels && name.split('/').any(str::is_empty) {
            return Err(BadName::EmptyLevel { noun, name: name.into() });
        }
        if !first.is_ascii_alphanumeric() {
            return Err(BadName::Start { noun, name: name.into(), first });
        }
        let fits = |c: char| {
            c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') || (self.levels && c == '/')
        };
        match name.chars().find(|&c| !fits(c)) {
            Some(bad) => {
                Err(BadName::Character { noun, name: name.into(), bad, allowed: self.allowed })
            }
            None => Ok(()),
        }
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(s: &str) -> Result<Self, BadName> {
                const RULE: Rule = $rule;
                RULE.check(s)?;
                Ok(Self(s.into()))
            }
        }

        impl TryFrom<&str> for $name {
            type Error = BadName;

            fn try_from(s: &str) -> Result<Self, BadName> {
                s.parse()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

const WORD: &str = "ASCII letters, digits, '.', '_' and '-'";

name! {
    /// Name of a client, as in its certificate and in access rules.
    ClientName, Rule { noun: "client", len_max: NAME_LEN_MAX, allowed: WORD, levels: false }
}
name! {
    /// Name of a node, unique in its site.
    NodeName, Rule { noun: "node", len_max: NAME_LEN_MAX, allowed: WORD, levels: false }
}
name! {
    /// Name of a site: the nodes under one certificate authority.
    SiteName, Rule { noun: "site", len_max: NAME_LEN_MAX, allowed: WORD, levels: false }
}
name! {
    /// Name of a topic: one or more levels parted by slashes, such as `plant/line3/temperature`.
    TopicName, Rule {
        noun: "topic",
        len_max: TOPIC_NAME_LEN_MAX,
        allowed: "ASCII letters, digits, '.', '_', '-' and '/'",
        levels: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(name: &str, part: &str) {
        let error = name.parse::<TopicName>().expect_err(name).to_string();
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn a_topic_name_has_levels() {
        let name: TopicName = "plant/line-3/temp_1.raw".parse().expect("allowed");
        assert_eq!(name.as_str(), "plant/line-3/temp_1.raw");
    }

    #[test]
    fn bad_topic_names_are_refused_with_the_reason() {
        refused("", "empty");
        refused("a//b", "empty level");
        refused("/a", "empty level");
        refused("a/", "empty level");
        refused("a/+", "'+'");
        refused("a b", "' '");
        refused("-a", "starts with '-'");
        refused("ä", "starts with");
        refused("aä", "'ä'");
        refused(&"a".repeat(TOPIC_NAME_LEN_MAX + 1), "limit is");
        assert!("a".repeat(TOPIC_NAME_LEN_MAX).parse::<TopicName>().is_ok());
    }

    #[test]
    fn a_node_name_has_no_levels() {
        assert!("a/b".parse::<NodeName>().is_err());
        assert!("node-1.site".parse::<NodeName>().is_ok());
    }
}
