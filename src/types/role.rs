//! What a node is for.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What a node is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Holds shards, and votes.
    #[default]
    Data,
    /// Votes only.
    Witness,
}

impl NodeRole {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Witness => "witness",
        }
    }
}

impl fmt::Display for NodeRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for NodeRole {
    type Err = BadRole;

    fn from_str(s: &str) -> Result<Self, BadRole> {
        match s {
            "data" => Ok(Self::Data),
            "witness" => Ok(Self::Witness),
            _ => Err(BadRole(s.into())),
        }
    }
}

/// A word that is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no role of a node: data (holds records) or witness (votes only)")]
pub struct BadRole(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_survives_its_word() {
        for role in [NodeRole::Data, NodeRole::Witness] {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("Data".parse::<NodeRole>().is_err());
    }
}
