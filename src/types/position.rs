//! Where a reader starts.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Offset, Timestamp};

/// Where a reader starts in each partition that it reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Position {
    /// The oldest record that is still kept.
    Earliest,
    /// What is published from now on.
    #[default]
    Latest,
    /// This offset. Before the oldest kept record: refused. Past the end: waits for it.
    Offset(Offset),
    /// The first record that the site took at this time or later.
    Time(Timestamp),
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Earliest => f.pad("earliest"),
            Self::Latest => f.pad("latest"),
            Self::Offset(offset) => write!(f, "{offset}"),
            Self::Time(time) => write!(f, "@{time}"),
        }
    }
}

impl FromStr for Position {
    type Err = BadPosition;

    /// Reads `earliest`, `latest`, a number (an offset), or `@` and milliseconds since 1970.
    fn from_str(s: &str) -> Result<Self, BadPosition> {
        let bad = || BadPosition(s.into());
        match s {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => match s.strip_prefix('@') {
                Some(ms) => ms.parse().map(|ms| Self::Time(Timestamp(ms))).map_err(|_| bad()),
                None => s.parse().map(|n| Self::Offset(Offset(n))).map_err(|_| bad()),
            },
        }
    }
}

/// A word that names no position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown position '{0}': earliest, latest, an offset, or a time")]
pub struct BadPosition(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_survive_their_text() {
        for position in [
            Position::Earliest,
            Position::Latest,
            Position::Offset(Offset(17)),
            Position::Time(Timestamp(1_700_000_000_000)),
        ] {
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        assert!("newest".parse::<Position>().is_err());
        assert!("-1".parse::<Position>().is_err());
    }
}
