//! The versions of the protocols that a program speaks.

use std::fmt;

/// The oldest and the newest version that are spoken, both with clients and between nodes. A release speaks its own
/// version and the one before, so that a site is upgraded a node at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

/// What is no range of versions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no range of versions like 1..2")]
pub struct BadVersions(String);

impl Default for Versions {
    fn default() -> Self {
        Self::SPOKEN
    }
}

impl Versions {
    /// What this program speaks.
    pub const SPOKEN: Self = Self { min: 1, max: 1 };

    /// The newest version that both speak.
    #[must_use]
    pub fn common(self, theirs: Self) -> Option<u16> {
        let version = self.max.min(theirs.max);
        (version >= self.min.max(theirs.min)).then_some(version)
    }

    /// Whether this version is spoken.
    #[must_use]
    pub fn contains(self, version: u16) -> bool {
        (self.min..=self.max).contains(&version)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

impl std::str::FromStr for Versions {
    type Err = BadVersions;

    fn from_str(text: &str) -> Result<Self, BadVersions> {
        let bad = || BadVersions(text.to_owned());
        let (min, max) = text.split_once("..").ok_or_else(bad)?;
        let (min, max) = (min.parse().map_err(|_| bad())?, max.parse().map_err(|_| bad())?);
        if min > max {
            return Err(bad());
        }
        Ok(Self { min, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_spoken() {
        let ours = Versions { min: 2, max: 3 };
        let common = |min, max| ours.common(Versions { min, max });
        assert_eq!(common(2, 3), Some(3));
        assert_eq!(common(1, 2), Some(2));
        assert_eq!(common(0, 9), Some(3));
        assert_eq!(common(0, 1), None);
        assert_eq!(common(4, 9), None);
        assert_eq!(common(3, 2), None, "upside down");
    }

    #[test]
    fn a_range_reads_as_it_is_written() {
        assert_eq!("1..2".parse(), Ok(Versions { min: 1, max: 2 }));
        for bad in ["", "1", "2..1", "a..b", "1..", "..", "1..70000"] {
            let error = bad.parse::<Versions>().expect_err(bad);
            assert!(error.to_string().contains("1..2"), "{error}");
        }
    }
}
