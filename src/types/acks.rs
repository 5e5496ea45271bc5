//! How far a batch must have come before its producer is told so.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What a producer waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acks {
    /// On the disk of every member of the commit set, flushed: every later primary has it.
    #[default]
    Replicated,
    /// On the disk of the primary alone, flushed.
    Local,
    /// Nothing: the primary has ordered the batch and may still lose it.
    None,
}

/// What an ack says was reached: never less than what was asked for.
pub type AckLevel = Acks;

impl Acks {
    /// The byte that stands for this level in data frames.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Local => 1,
            Self::Replicated => 2,
        }
    }

    /// The level that a byte of a data frame stands for.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Local),
            2 => Some(Self::Replicated),
            _ => None,
        }
    }
}

impl fmt::Display for Acks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Replicated => "replicated",
            Self::Local => "local",
            Self::None => "none",
        })
    }
}

impl FromStr for Acks {
    type Err = BadAcks;

    fn from_str(s: &str) -> Result<Self, BadAcks> {
        match s {
            "replicated" => Ok(Self::Replicated),
            "local" => Ok(Self::Local),
            "none" => Ok(Self::None),
            _ => Err(BadAcks(s.into())),
        }
    }
}

/// A word that names no ack level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown ack level '{0}': one of replicated, local, none")]
pub struct BadAcks(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_survives_its_code_and_its_word() {
        for level in [Acks::Replicated, Acks::Local, Acks::None] {
            assert_eq!(Acks::from_code(level.code()), Some(level));
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert_eq!(Acks::from_code(3), None);
        assert!("all".parse::<Acks>().is_err());
    }
}
