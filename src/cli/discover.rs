//! `dunlin discover`: the nodes that announce themselves, and the records for a zone that somebody keeps.

use std::time::Duration;

use super::{
    Global,
    exit::Failure,
    output::{self, Table},
    remote::block_on,
    units,
};
use crate::{
    client::{Client, ClusterStatus, DiscoverError, FoundNode, Profile, ProfileError, discover},
    discovery::{Announcement, CaPrefix, zone},
    net::{Address, authority::Fingerprint},
};

/// `dunlin discover`
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Trust: 'trusted' has proven to be that node by the authority of your profile; 'silent' says it is\n\
    and does not answer; 'false' says it is and is not; 'unknown' is of another site, or you have no\n\
    profile.\n\n\
    Examples:\n  \
    dunlin discover\n  \
    dunlin discover --json --wait 5s\n  \
    dunlin discover --zone plant.example >> plant.example.zone"
)]
pub struct Discover {
    /// How long to listen
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = units::duration)]
    wait: Duration,
    /// Ask the DNS of this domain, too [default: as the profile says]
    #[arg(long, value_name = "DOMAIN", value_parser = domain)]
    domain: Option<String>,
    /// Print the DNS records of your site's nodes for this domain instead, as a zone file has them
    #[arg(long, value_name = "DOMAIN", value_parser = domain, conflicts_with_all = ["wait", "domain"])]
    zone: Option<String>,
}

impl Discover {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        block_on(async {
            if let Some(domain) = &self.zone {
                return output::print(zone_of(&global.profile()?, domain).await?.as_bytes());
            }
            // Who has no profile sees who is there all the same.
            let profile = match Profile::discover(global.profile.as_deref()) {
                Ok(profile) => Some(profile),
                Err(ProfileError::NotFound { .. }) => None,
                Err(error) => return Err(error.into()),
            };
            let found = discover(profile.as_ref(), self.domain.as_deref(), self.wait).await?;
            global.output().show(&found, |found| in_words(found))
        })
    }
}

impl From<DiscoverError> for Failure {
    fn from(error: DiscoverError) -> Self {
        match error {
            DiscoverError::Connect(error) => error.into(),
            DiscoverError::Gather(error) => Self::runtime(error),
        }
    }
}

fn domain(text: &str) -> Result<String, String> {
    // A host's name has the same characters, and the same length.
    let address = Address::new(text, 1).map_err(|_| "it is no domain name".to_owned())?;
    Ok(address.host().trim_matches('.').to_owned())
}

fn in_words(found: &[FoundNode]) -> String {
    if found.is_empty() {
        return "no node announces itself on the networks of this machine\n".to_owned();
    }
    let mut table = Table::new(&[
        "site",
        "node",
        "name",
        "role",
        "weight",
        "load",
        "version",
        "round trip",
        "trust",
        "addresses",
    ]);
    for node in found {
        let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        table.row([
            node.site.clone(),
            node.id.to_string(),
            node.node.clone(),
            node.role.to_string(),
            node.weight.to_string(),
            format!("{}%", node.load),
            if node.version.is_empty() { "-".to_owned() } else { node.version.clone() },
            node.round_trip_us.map_or_else(|| "-".to_owned(), round_trip),
            node.trust.as_str().to_owned(),
            addresses.join(" "),
        ]);
    }
    table.to_text()
}

fn round_trip(us: u64) -> String {
    format!("{}.{:02} ms", us / 1_000, us % 1_000 / 10)
}

/// The zone comes from the site itself: where multicast does not pass, nobody hears its nodes.
async fn zone_of(profile: &Profile, domain: &str) -> Result<String, Failure> {
    let client = Client::connect(profile).await?;
    let status = client.cluster().status().await;
    client.close().await;
    let status = status?;
    let ca = Fingerprint::of_pem(&profile.ca).map(|ca| CaPrefix::of(ca.as_bytes()));
    let ca = ca.ok_or_else(|| Failure::runtime("the profile has no usable authority"))?;
    let (records, left_out) = records(&status, ca);
    let mut text = format!("; nodes of dunlin site '{}'\n", status.site);
    for name in left_out {
        text.push_str(&format!("; node {name} is left out: the site knows no address of it\n"));
    }
    text.push_str(&zone::to_zone_file(domain, records));
    Ok(text)
}

/// Those of nodes whose addresses are known, and the names of the others.
fn records(status: &ClusterStatus, ca: CaPrefix) -> (Vec<zone::Record>, Vec<String>) {
    let (mut records, mut left_out) = (Vec::new(), Vec::new());
    for node in &status.nodes {
        let addresses: Vec<Address> =
            node.addresses.iter().filter_map(|address| address.parse().ok()).collect();
        let (Ok(site), Ok(name)) = (status.site.parse(), node.name.parse()) else { continue };
        if addresses.is_empty() {
            left_out.push(node.name.clone());
            continue;
        }
        let version = node.software.rsplit('/').next().unwrap_or_default().to_owned();
        let weight = if node.draining { 0 } else { node.weight };
        let (id, role) = (node.id, node.role);
        let said = Announcement { site, node: name, id, role, weight, load: 0, version, ca };
        records.extend(zone::records(&said, &addresses));
    }
    (records, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::Trust,
        types::{NodeId, NodeRole},
    };

    #[test]
    fn a_table_says_who_is_there_and_whether_it_is_believed() {
        let node = FoundNode {
            site: "plant".into(),
            node: "edge-1".into(),
            id: NodeId(1),
            role: NodeRole::Data,
            weight: 100,
            load: 20,
            version: "0.1.0".into(),
            ca: "a5".into(),
            addresses: vec!["10.0.0.7:7440".parse().expect("address")],
            round_trip_us: Some(1_234),
            trust: Trust::Trusted,
        };
        let text = in_words(&[node]);
        assert!(
            text.contains("plant  1     edge-1  data  100     20%   0.1.0    1.23 ms     trusted"),
            "{text}"
        );
        assert!(in_words(&[]).contains("no node"));
    }

    #[test]
    fn only_a_domain_is_one() {
        assert_eq!(domain("plant.example."), Ok("plant.example".into()));
        assert!(domain("plant example").is_err() && domain("").is_err());
    }
}
