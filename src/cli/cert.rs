//! `dunlin cert`: certificates for clients.

use std::{path::PathBuf, time::Duration};

use clap::Subcommand;
use serde::Serialize;

use super::{ConfigFile, Global, exit::Failure, now, output::Table};
use crate::{
    client::profile::Profile,
    config::Config,
    limits::PORT_DEFAULT,
    net::{
        Address, SiteAuthority,
        authority::{AuthorityError, Validity},
        secret_file::{self, FileError},
    },
    types::ClientName,
};

/// `dunlin cert`
#[derive(Debug, clap::Args)]
pub struct Cert {
    #[command(subcommand)]
    command: CertCommand,
}

#[derive(Debug, Subcommand)]
enum CertCommand {
    /// Make a client profile: a new key, its certificate, and where the site is
    Issue(Issue),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Run it on the node that made the site, as a user that can read its ca.key.\n\n\
    Examples:\n  \
    dunlin cert issue press-7 --address edge-1.plant.example\n  \
    dunlin cert issue laptop --days 30 --out /tmp/laptop.toml"
)]
struct Issue {
    /// Name of the client, as access rules will speak of it
    name: ClientName,
    /// File to make [default: NAME.toml]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Where the client finds a node; give it again for more [default: where this node listens]
    #[arg(long = "address", value_name = "HOST:PORT")]
    addresses: Vec<Address>,
    /// Days that the certificate holds [default: as long as the site's authority]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
    days: Option<u32>,
    #[command(flatten)]
    config: ConfigFile,
}

#[derive(Serialize)]
struct Issued {
    name: ClientName,
    site: String,
    profile: PathBuf,
    addresses: Vec<Address>,
}

impl Cert {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        match self.command {
            CertCommand::Issue(issue) => issue.run(global),
        }
    }
}

impl Issue {
    fn run(self, global: &Global) -> Result<(), Failure> {
        let config = self.config.load()?;
        let out = self.out.unwrap_or_else(|| format!("{}.toml", self.name).into());
        if secret_file::exists(&out) {
            return Err(FileError::Exists { path: out }.into());
        }
        let authority = SiteAuthority::load(&config.pki_dir())?;
        let validity = match self.days {
            Some(days) => Validity::lasting(now(), Duration::from_secs(u64::from(days) * DAY_SECS)),
            None => Validity::as_long_as_the_authority(now()),
        };
        let addresses = addresses_or_own(self.addresses, &config);
        let profile = client_profile(&authority, self.name, addresses, validity)?;
        profile.save(&out, None)?;
        let Profile { name, addresses, .. } = profile;
        let issued = Issued { name, site: authority.site().to_string(), profile: out, addresses };
        global.output().show(&issued, Issued::in_words)
    }
}

impl Issued {
    fn in_words(&self) -> String {
        let mut table = Table::of_facts();
        table.row(["client", self.name.as_str()]).row(["site", &self.site]);
        table.row(["profile", &self.profile.display().to_string()]);
        for (i, address) in self.addresses.iter().enumerate() {
            table.row([if i == 0 { "goes to" } else { "" }, &address.to_string()]);
        }
        let mut text = table.to_text();
        text.push_str(
            "\nIt holds a private key: bring it to the client over a channel that you trust, as\n\
             ~/.config/dunlin/client.toml with mode 0600, or name it with --profile.\n",
        );
        if self.addresses.iter().all(is_loopback) {
            text.push_str("It works on this machine alone: for others give --address HOST:PORT.\n");
        }
        text
    }
}

/// A profile with a certificate of its own.
pub(super) fn client_profile(
    authority: &SiteAuthority,
    name: ClientName,
    addresses: Vec<Address>,
    validity: Validity,
) -> Result<Profile, AuthorityError> {
    let issued = authority.issue_client(&name, validity)?;
    Ok(Profile {
        name,
        site: authority.site().clone(),
        addresses,
        discovery: true,
        domain: None,
        ca: authority.certificate_pem().into(),
        certificate: Some(issued.certificate_pem),
        key: Some(issued.key_pem),
    })
}

/// The addresses that were given, or the one where this node listens, as seen from this machine.
pub(super) fn addresses_or_own(given: Vec<Address>, config: &Config) -> Vec<Address> {
    if !given.is_empty() {
        return given;
    }
    let listen = config.listen.address;
    let host =
        if listen.ip().is_unspecified() { "127.0.0.1".into() } else { listen.ip().to_string() };
    // Port 0 is one of the system's choice, which a profile cannot know.
    let port = if listen.port() == 0 { PORT_DEFAULT } else { listen.port() };
    match Address::new(&host, port) {
        Ok(address) => vec![address],
        Err(error) => unreachable!("a listening address can be dialled: {error}"),
    }
}

pub(super) fn is_loopback(address: &Address) -> bool {
    let ip = address.host().parse::<std::net::IpAddr>();
    address.host() == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

const DAY_SECS: u64 = 24 * 60 * 60;
/// The life of a site's authority.
const DAYS_MAX: i64 = 3_650;
