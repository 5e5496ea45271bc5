//! What `dunlin join` leaves for the first start: which node of which site this machine is.

use std::{io, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    net::secret_file::{self, Access, FileError, Owner},
    types::{NodeId, NodeRole, SiteName},
    wire::NodeInfo,
};

/// The file in the data directory.
pub const JOINED_FILE: &str = "joined";

/// What a machine has become by joining. The founder of a site has no such file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// The site.
    pub site: SiteName,
    /// The node's number, for ever.
    pub node: NodeId,
    /// The number that its disk must bear: the site knows no other.
    #[serde(with = "hex")]
    pub disk_id: u128,
    /// How many shards the site has, for ever.
    pub shards: u16,
    /// What the node is for.
    pub role: NodeRole,
    /// The other nodes when it joined: the first start has nobody else to ask.
    #[serde(default)]
    pub nodes: Vec<NodeInfo>,
}

impl Joined {
    /// Reads it from a data directory; none if the machine has not joined a site.
    ///
    /// # Errors
    /// If the file is there and cannot be used: it is never taken for a missing one.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, FileError> {
        let path = data_dir.join(JOINED_FILE);
        let text = match secret_file::read_public(&path) {
            Ok(text) => text,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        toml::from_str(&text).map(Some).map_err(|error| FileError::Io {
            verb: "understand",
            path,
            source: io::Error::new(io::ErrorKind::InvalidData, error.message().to_owned()),
        })
    }

    /// Writes it into a data directory, once.
    ///
    /// # Errors
    /// If there is one already, or it cannot be written.
    pub fn save(&self, data_dir: &Path, owner: Option<Owner>) -> Result<(), FileError> {
        let body = match toml::to_string(self) {
            Ok(body) => body,
            Err(error) => unreachable!("plain keys with text and numbers: {error}"),
        };
        let text = format!("{HEADING}{body}");
        // Whoever knows the number of the disk and the invite could be this node.
        secret_file::write_new(&data_dir.join(JOINED_FILE), text.as_bytes(), Access::Private, owner)
    }
}

const HEADING: &str =
    "# Made by 'dunlin join'. It says which node this is: it belongs to this machine's data.\n";

/// TOML has no numbers of 128 bits.
pub(crate) mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(number: &u128, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{number:032x}"))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u128, D::Error> {
        let text = String::deserialize(d)?;
        u128::from_str_radix(&text, 16).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn joined() -> Joined {
        Joined {
            site: "plant".parse().expect("name"),
            node: NodeId(7),
            disk_id: u128::MAX - 5,
            shards: 12,
            role: NodeRole::Witness,
            nodes: vec![NodeInfo {
                id: NodeId(1),
                name: "edge-1".into(),
                addresses: vec!["10.0.0.7:7440".into()],
            }],
        }
    }

    #[test]
    fn what_was_joined_reads_back_and_is_written_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(Joined::load(dir.path()).expect("readable"), None);
        joined().save(dir.path(), None).expect("written");
        assert_eq!(Joined::load(dir.path()).expect("readable"), Some(joined()));
        let again = joined().save(dir.path(), None);
        assert!(matches!(again, Err(FileError::Exists { .. })));
    }

    #[test]
    fn a_bad_file_is_no_missing_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join(JOINED_FILE), "site = 'plant'\n").expect("written");
        let error = Joined::load(dir.path()).expect_err("refused").to_string();
        assert!(error.contains("joined") && error.contains("missing field"), "{error}");
    }
}
