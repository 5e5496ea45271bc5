//! What `dunlin join` leaves for the first start: who this node is in the site that it has joined.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::types::{NodeId, SiteName};

/// This node's place in its site. A file in the data directory; the node that founds a site has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joined {
    /// The site.
    pub site: SiteName,
    /// The node's number there.
    pub node: NodeId,
    /// The identity that its disk has, or gets.
    #[serde(with = "hex")]
    pub disk_id: u128,
    /// Number of shards of the site.
    pub shards: u16,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {path}: {reason}; it is written by dunlin join, and says who this node is")]
pub struct BadJoined {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// Name of the file in the data directory.
pub const JOINED_FILE: &str = "joined.toml";

impl Joined {
    /// Reads the file in `data_dir`; none when there is none.
    ///
    /// # Errors
    /// [`BadJoined`]. A file that cannot be read is never taken for none: the node would found a site of its own.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, BadJoined> {
        let path = data_dir.join(JOINED_FILE);
        let bad = |reason: String| BadJoined { path: path.clone(), reason };
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map(Some).map_err(|error| bad(error.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(bad(error.to_string())),
        }
    }

    /// The text of the file.
    #[must_use]
    pub fn to_toml(&self) -> String {
        format!(
            "# Written by dunlin join: who this node is in its site. Not to be edited.\n\
             site = \"{}\"\nnode = {}\ndisk_id = \"{:032x}\"\nshards = {}\n",
            self.site, self.node, self.disk_id, self.shards
        )
    }
}

mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(id: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{id:032x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = String::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(Joined::load(dir.path()).expect("no file is no error"), None);
        let site = "plant".parse().expect("allowed");
        let joined = Joined { site, node: NodeId(7), disk_id: u128::MAX / 3, shards: 12 };
        let path = dir.path().join(JOINED_FILE);
        fs::write(&path, joined.to_toml()).expect("writable");
        assert_eq!(Joined::load(dir.path()).expect("own work"), Some(joined));
        for bad in ["", "site = 1", "nonsense"] {
            fs::write(&path, bad).expect("writable");
            assert!(Joined::load(dir.path()).is_err(), "{bad:?}");
        }
    }
}
