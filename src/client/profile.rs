//! A client profile: the one file that a client needs to reach a site and to be somebody there.

use std::{
    env, fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    net::{
        Address, Credentials,
        authority::IssuedCertificate,
        secret_file::{self, Access, FileError, Owner},
    },
    types::{ClientName, SiteName},
};

/// Environment variable that names a profile.
pub const PROFILE_VARIABLE: &str = "DUNLIN_PROFILE";
/// The profile of a machine, for root.
pub const SYSTEM_PROFILE: &str = "/etc/dunlin/client.toml";

/// Who a client is, where its site is, and how it knows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The client's name, as in its certificate.
    pub name: ClientName,
    /// The site.
    pub site: SiteName,
    /// Where nodes of the site listen. None: the site is looked for on this network.
    #[serde(default)]
    pub addresses: Vec<Address>,
    /// Whether the site is looked for on this network when no address answers. A profile that names an address of this
    /// machine itself never leads elsewhere.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub discovery: bool,
    /// A domain whose DNS names the nodes (DNS-SD): it is asked beside the network, with the same end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Certificate of the site's authority (PEM).
    pub ca: String,
    /// The client's certificate (PEM); without one it comes as nobody, where a node lets nobody in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The private key of the certificate (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl Profile {
    /// Reads the profile that the user means: `explicit` if given, else the one named by `DUNLIN_PROFILE`, else
    /// `dunlin/client.toml` in the user's configuration directory, else [`SYSTEM_PROFILE`].
    ///
    /// # Errors
    /// If there is none, or it cannot be used. A profile that is there and bad is never passed over for the next.
    pub fn discover(explicit: Option<&Path>) -> Result<Self, ProfileError> {
        let named = explicit.map(PathBuf::from).or_else(|| variable(PROFILE_VARIABLE));
        match named {
            Some(path) => Self::load(&path),
            None => Self::first_of(default_paths()),
        }
    }

    /// Reads a profile.
    ///
    /// # Errors
    /// If it cannot be read, is readable by others, or is no profile.
    pub fn load(path: &Path) -> Result<Self, ProfileError> {
        let text = secret_file::read_private(path)?;
        let bad = |problem: String| ProfileError::Bad { path: path.into(), problem };
        let profile: Self = toml::from_str(&text).map_err(|error| bad(one_line(&error, &text)))?;
        if profile.addresses.is_empty() && !profile.discovery {
            return Err(bad("key 'addresses' names no node, and 'discovery' is off".into()));
        }
        if profile.certificate.is_some() != profile.key.is_some() {
            return Err(bad("keys 'certificate' and 'key' go together".into()));
        }
        Ok(profile)
    }

    /// Writes the profile to a new file that only its owner can read.
    ///
    /// # Errors
    /// If the file exists already or cannot be written.
    pub fn save(&self, path: &Path, owner: Option<Owner>) -> Result<(), FileError> {
        let body = match toml::to_string(self) {
            Ok(body) => body,
            Err(error) => unreachable!("a profile is plain keys with text: {error}"),
        };
        let text = format!("{HEADING}{body}");
        secret_file::write_new(path, text.as_bytes(), Access::Private, owner)
    }

    /// What TLS needs of the profile.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        let own = self.certificate.clone().zip(self.key.clone());
        Credentials {
            ca_pem: self.ca.clone(),
            own: own
                .map(|(certificate_pem, key_pem)| IssuedCertificate { certificate_pem, key_pem }),
        }
    }

    fn first_of(paths: Vec<PathBuf>) -> Result<Self, ProfileError> {
        for path in &paths {
            match Self::load(path) {
                Err(ProfileError::File(error)) if error.is_not_found() => {}
                other => return other,
            }
        }
        Err(ProfileError::NotFound { looked: paths })
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("name", &self.name)
            .field("site", &self.site)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// The user's own profile: `dunlin/client.toml` in `$XDG_CONFIG_HOME`, or in `~/.config`.
#[must_use]
pub fn user_profile() -> Option<PathBuf> {
    // The XDG rules say to ignore a relative path.
    let config = variable("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
    let config = config.or_else(|| variable("HOME").map(|home| home.join(".config")))?;
    Some(config.join("dunlin/client.toml"))
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_yes(value: &bool) -> bool {
    *value
}

fn default_paths() -> Vec<PathBuf> {
    user_profile().into_iter().chain([SYSTEM_PROFILE.into()]).collect()
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The place and the reason alone: TOML's own report quotes the line, which may be one of a private key.
fn one_line(error: &toml::de::Error, text: &str) -> String {
    let reason = error.message().replace('\n', ", ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {reason}", before.matches('\n').count() + 1),
        None => reason,
    }
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// None in any of the usual places.
    #[error("no client profile found, looked for {}", list(looked))]
    NotFound {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is no profile.
    #[error("{} is no client profile: {problem}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl ProfileError {
    /// What the user may do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotFound { .. } => Some(HINT_MAKE),
            Self::File(error) if error.is_not_found() => Some(HINT_MAKE),
            Self::File(error) if error.is_denied() => {
                Some("run as its owner, or get a profile of your own with 'dunlin cert issue NAME'")
            }
            Self::File(_) | Self::Bad { .. } => None,
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ")
}

const HEADING: &str = "# A dunlin client profile. It holds a private key: keep it as one.\n";
const HINT_MAKE: &str = "run 'dunlin init' to make a site here, or 'dunlin cert issue NAME' on a node \
                         and copy the file it makes; --profile FILE names another place";

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn profile() -> Profile {
        Profile {
            name: "press".parse().expect("name"),
            site: "plant".parse().expect("name"),
            addresses: vec!["edge-1:7440".parse().expect("address")],
            discovery: true,
            domain: None,
            ca: "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".into(),
            certificate: Some("certificate\n".into()),
            key: Some("key\n".into()),
        }
    }

    #[test]
    fn a_saved_profile_reads_back_and_is_private() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("client.toml");
        profile().save(&path, None).expect("saved");
        assert_eq!(Profile::load(&path).expect("loaded"), profile());
        assert!(matches!(profile().save(&path, None), Err(FileError::Exists { .. })));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
        let error = Profile::load(&path).expect_err("refused").to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn the_first_profile_wins_and_a_bad_one_is_not_passed_over() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let [first, second] = ["first", "second"].map(|file| dir.path().join(file));
        profile().save(&second, None).expect("saved");
        let paths = vec![first.clone(), second.clone()];
        assert_eq!(Profile::first_of(paths.clone()).expect("found"), profile());

        secret_file::write_new(&first, b"name = 1", Access::Private, None).expect("written");
        let error = Profile::first_of(paths).expect_err("refused");
        assert!(matches!(error, ProfileError::Bad { .. }), "{error}");
    }

    #[test]
    fn a_missing_profile_says_where_it_was_looked_for() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("client.toml");
        let error = Profile::first_of(vec![path.clone(), "/none".into()]).expect_err("missing");
        assert!(error.to_string().contains(&format!("{} and /none", path.display())), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("dunlin init")));
    }

    #[test]
    fn a_bad_profile_is_refused_without_quoting_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (file, text) in [
            ("no-toml", "name = \"a\"\nSECRET\n"),
            ("no-address", "name='a'\nsite='s'\ndiscovery=false\nca='SECRET'\n"),
            ("half", "name='a'\nsite='s'\naddresses=['h']\nca='c'\nkey='SECRET'\n"),
            ("unknown", "name='a'\nsite='s'\naddresses=['h']\nca='SECRET'\ncolour='red'\n"),
        ] {
            let path = dir.path().join(file);
            secret_file::write_new(&path, text.as_bytes(), Access::Private, None).expect("written");
            let error = Profile::load(&path).expect_err(file).to_string();
            assert!(!error.contains("SECRET") && error.contains(file), "{error}");
        }
    }
}
