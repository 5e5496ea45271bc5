//! What an operator decides about one node: a TOML file in which every key is optional.
//!
//! Unknown keys and bad values are refused with their place. What nobody can decide is a constant in [`crate::limits`].

mod error;
mod units;

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use error::ConfigError;

use crate::{
    limits::{
        BEATS_MISSED_MIN, CONNECTIONS_DEFAULT, FENCE_AFTER, HANDSHAKES_PER_ADDRESS_DEFAULT,
        HEARTBEAT, HTTP_PORT_DEFAULT, JOIN_ADDRESSES_MAX, PARTITIONS_PER_TOPIC_MAX, PORT_DEFAULT,
        STREAMS_PER_CONNECTION_DEFAULT,
    },
    types::{Address, NodeName, Retention, TopicSettings, Versions},
};

/// Where the configuration lies if nobody says otherwise. It may be missing: then every key has its default.
pub const DEFAULT_PATH: &str = "/etc/dunlin/dunlin.toml";

/// The whole configuration, every key with its effective value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The node itself.
    pub node: Node,
    /// Where it listens, and to whom.
    pub listen: Listen,
    /// What it may take of the disk and of memory for it.
    pub storage: Storage,
    /// How it is found, and finds others.
    pub discovery: Discovery,
    /// How it lives with the other nodes of its site.
    pub cluster: Cluster,
    /// What others may take of it.
    pub limits: Limits,
    /// What a new topic gets when its maker does not say.
    pub topic_defaults: TopicDefaults,
    /// What it tells of itself.
    pub log: Log,
    /// The versions of the protocols that it speaks: those that it was written for. Nothing that a file says.
    #[serde(skip)]
    pub speaks: Versions,
}

/// `[node]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// Its name, which must be the one in its certificate. Default: that one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<NodeName>,
    /// Where its databases lie.
    pub data_dir: PathBuf,
    /// Where its certificates and keys lie. Default: `pki` in the data directory.
    pub pki_dir: Option<PathBuf>,
}

/// `[listen]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// UDP address of the broker. `[::]` takes IPv4 too.
    #[serde(deserialize_with = "units::socket_address")]
    pub address: SocketAddr,
    /// Where others find the node, if not at that address.
    pub advertise: Vec<Address>,
    /// Loopback TCP address of metrics and health; none if off.
    #[serde(with = "units::loopback_or_off")]
    pub http: Option<SocketAddr>,
    /// Whether clients without a certificate are let in.
    pub allow_anonymous: bool,
}

/// `[storage]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// Logs that the node's partitions are spread over; fixed when the site is first started.
    #[serde(deserialize_with = "units::shards")]
    pub shards: u16,
    /// Memory for pages of the database, in bytes.
    #[serde(with = "units::cache")]
    pub cache: u64,
    /// Free bytes of the disk below which publishes are refused; reads go on.
    #[serde(with = "units::low_space")]
    pub low_space: u64,
    /// Bytes held back, let go when the disk is full so that old records can still be deleted.
    #[serde(with = "units::ballast")]
    pub ballast: u64,
}

/// `[discovery]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Discovery {
    /// Whether the node announces itself on the networks that it listens on, and hears of others there.
    pub mdns: bool,
    /// A domain whose DNS names the nodes of the site, for networks that multicast does not pass.
    #[serde(with = "units::domain_or_off")]
    pub domain: Option<String>,
    /// A file with the key under which the node puts its records into that domain, and takes them out; none if somebody else
    /// does so.
    #[serde(with = "units::path_or_off")]
    pub tsig_key_file: Option<PathBuf>,
    /// The name server that takes these updates; none if the zone says which.
    #[serde(with = "units::name_server_or_auto")]
    pub domain_server: Option<Address>,
}

/// `[cluster]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// How often it tells the others that it lives.
    #[serde(with = "units::heartbeat")]
    pub heartbeat: Duration,
    /// How long another may be silent before this node takes it to be down. On a line that loses or delays more, it waits
    /// longer by itself.
    #[serde(with = "units::fence")]
    pub fence_after: Duration,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections of the node; more are refused.
    #[serde(deserialize_with = "units::connections")]
    pub connections: u32,
    /// Streams of one connection; more wait.
    #[serde(deserialize_with = "units::streams")]
    pub streams_per_connection: u32,
    /// Bytes of one connection that have arrived and are not yet stored; more wait on the client.
    #[serde(with = "units::inflight")]
    pub inflight_bytes_per_connection: u64,
    /// Handshakes of one address in a second; more are refused.
    #[serde(deserialize_with = "units::handshakes")]
    pub handshakes_per_address: u32,
}

/// `[topic_defaults]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopicDefaults {
    /// How many partitions.
    #[serde(deserialize_with = "units::partitions")]
    pub partitions: u32,
    /// How long records are kept; none is forever.
    #[serde(with = "units::age_or_forever")]
    pub retention_age: Option<Duration>,
    /// How many stored bytes of a partition are kept; none is no limit.
    #[serde(with = "units::bytes_or_unlimited")]
    pub retention_bytes: Option<u64>,
    /// How many records of a partition are kept; none is no limit.
    #[serde(with = "units::count_or_unlimited")]
    pub retention_records: Option<u64>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The least important lines that are still written.
    pub level: LogLevel,
    /// How they look.
    pub format: LogFormat,
}

/// How important a log line must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// A human must act.
    Error,
    /// Something is wrong and goes on.
    Warn,
    /// What the node does, a few lines a day.
    Info,
    /// What every connection does.
    Debug,
    /// What every frame does.
    Trace,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Journal fields under systemd, text elsewhere.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// Straight to the journal, fields kept.
    Journald,
}

impl Config {
    /// Reads a configuration file; without one the file at [`DEFAULT_PATH`], which may be missing.
    ///
    /// # Errors
    /// If the file cannot be read, or says something that is not allowed.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        match fs::read_to_string(file) {
            Ok(text) => Self::parse(&text, file),
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Read { path: file.into(), source }),
        }
    }

    /// Reads a configuration from text; `path` is for errors.
    ///
    /// # Errors
    /// If it says something that is not allowed.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|error| ConfigError::from_toml(&error, text, path))?;
        match config.contradiction() {
            Some((key, problem)) => Err(ConfigError::of_key(key, problem, text, path)),
            None => Ok(config),
        }
    }

    /// The configuration as a file that says all of it.
    #[must_use]
    pub fn to_toml(&self) -> String {
        match toml::to_string(&self.effective()) {
            Ok(text) => text,
            Err(error) => {
                unreachable!("a configuration is plain tables of text and numbers: {error}")
            }
        }
    }

    /// The configuration with what follows from other keys filled in.
    #[must_use]
    pub fn effective(&self) -> Self {
        let mut effective = self.clone();
        effective.node.pki_dir = Some(self.pki_dir());
        effective
    }

    /// Where certificates and keys lie.
    #[must_use]
    pub fn pki_dir(&self) -> PathBuf {
        self.node.pki_dir.clone().unwrap_or_else(|| self.node.data_dir.join("pki"))
    }

    /// The first rule between keys that does not hold: a key and what is wrong with it.
    fn contradiction(&self) -> Option<(&'static str, String)> {
        let advertised = self.listen.advertise.len();
        if advertised > JOIN_ADDRESSES_MAX {
            let problem = format!("{advertised} addresses, limit is {JOIN_ADDRESSES_MAX}");
            return Some(("listen.advertise", problem));
        }
        let Cluster { heartbeat, fence_after } = self.cluster;
        if fence_after < heartbeat * BEATS_MISSED_MIN {
            let problem = format!(
                "{} is less than {BEATS_MISSED_MIN} times cluster.heartbeat, {}: a few lost datagrams \
                 would depose nodes that live",
                humantime::format_duration(fence_after),
                humantime::format_duration(heartbeat)
            );
            return Some(("cluster.fence_after", problem));
        }
        let Discovery { domain, tsig_key_file, domain_server, .. } = &self.discovery;
        if tsig_key_file.is_some() && domain.is_none() {
            let problem = "there is nothing to register in: set discovery.domain".to_owned();
            return Some(("discovery.tsig_key_file", problem));
        }
        if domain_server.is_some() && tsig_key_file.is_none() {
            let problem =
                "it would be told nothing: updates need a key, set discovery.tsig_key_file";
            return Some(("discovery.domain_server", problem.to_owned()));
        }
        let Storage { ballast, low_space, .. } = self.storage;
        (ballast >= low_space).then(|| {
            let (ballast, low_space) = (units::print_bytes(ballast), units::print_bytes(low_space));
            let problem = format!(
                "{ballast} is not less than storage.low_space, {low_space}: letting go of it \
                 would open a full disk for publishes again"
            );
            ("storage.ballast", problem)
        })
    }
}

impl TopicDefaults {
    /// The settings of a topic whose maker says nothing.
    #[must_use]
    pub fn settings(&self) -> TopicSettings {
        let millis = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        TopicSettings {
            partitions: self.partitions,
            retention: Retention {
                age_ms: self.retention_age.map(millis),
                bytes: self.retention_bytes,
                records: self.retention_records,
            },
        }
    }
}

impl LogLevel {
    /// The word for it, as `tracing` knows it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self { name: None, data_dir: "/var/lib/dunlin".into(), pki_dir: None }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            address: (std::net::Ipv6Addr::UNSPECIFIED, PORT_DEFAULT).into(),
            advertise: Vec::new(),
            http: Some((std::net::Ipv4Addr::LOCALHOST, HTTP_PORT_DEFAULT).into()),
            allow_anonymous: false,
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self { shards: SHARDS_DEFAULT, cache: 32 * MIB, low_space: 256 * MIB, ballast: 64 * MIB }
    }
}

impl Default for Discovery {
    fn default() -> Self {
        Self { mdns: true, domain: None, tsig_key_file: None, domain_server: None }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self { heartbeat: HEARTBEAT, fence_after: FENCE_AFTER }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS_DEFAULT,
            streams_per_connection: STREAMS_PER_CONNECTION_DEFAULT,
            inflight_bytes_per_connection: 8 * MIB,
            handshakes_per_address: HANDSHAKES_PER_ADDRESS_DEFAULT,
        }
    }
}

impl Default for TopicDefaults {
    fn default() -> Self {
        Self {
            partitions: 1,
            // A week: a topic that nobody thought about must not fill a small disk some day.
            retention_age: Some(Duration::from_secs(7 * 24 * 60 * 60)),
            retention_bytes: None,
            retention_records: None,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Auto }
    }
}

/// The host's name up to its first dot, as far as it can be a node's; a host with an impossible name is called `node`.
pub(crate) fn host_name() -> NodeName {
    let system = rustix::system::uname();
    let name = system.nodename().to_string_lossy();
    let first = name.split('.').next().unwrap_or_default();
    let fallback = || match "node".parse() {
        Ok(name) => name,
        Err(error) => unreachable!("a plain word is a name: {error}"),
    };
    first.parse().unwrap_or_else(|_| fallback())
}

const MIB: u64 = 1024 * 1024;
/// Measured (`cargo bench --bench storage`): 1, 4 and 12 cost the same, since all share rows and commits. Twelve can be
/// shared out evenly among one to four nodes, when a site grows.
const SHARDS_DEFAULT: u16 = 12;

#[cfg(test)]
mod tests;
