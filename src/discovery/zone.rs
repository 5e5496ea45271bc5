//! The DNS records of a site's nodes (RFC 6763), for a zone that somebody keeps or that takes updates.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::announcement::{Announcement, CaPrefix};
use crate::types::{Address, NodeId};

/// A name below the zone's domain, label by label.
pub type Labels = Vec<String>;

/// A record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    /// Its name, without the domain.
    pub name: Labels,
    /// What it says.
    pub data: Data,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// An instance of the service.
    Ptr(Labels),
    /// Where an instance listens.
    Srv {
        /// Those with less come first: 0 in all that is made here.
        priority: u16,
        /// Share, beside the others.
        weight: u16,
        /// UDP port.
        port: u16,
        /// The machine.
        target: Target,
    },
    /// What an instance says of itself.
    Txt(Vec<String>),
    /// An address of a machine.
    A(Ipv4Addr),
    /// An address of a machine.
    Aaaa(Ipv6Addr),
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A name below the domain, whose addresses are records of ours.
    Ours(Labels),
    /// Another name, whole.
    Named(String),
}

/// The records of one node that listens at these addresses. Only those of one port go into one SRV record.
#[must_use]
pub fn records(node: &Announcement, addresses: &[Address]) -> Vec<Record> {
    let instance = instance(node.node.as_str());
    let ptr = |name| Record { name, data: Data::Ptr(instance.clone()) };
    let mut all = vec![ptr(service()), ptr(of_site(node.ca))];
    // An idle node is what readers take one to be that says nothing: a zone that somebody keeps by hand never does.
    let keys = node.to_txt().into_iter().filter(|(key, _)| *key != "load" || node.load > 0);
    let keys = keys.map(|(key, value)| format!("{key}={value}")).collect();
    all.push(Record { name: instance.clone(), data: Data::Txt(keys) });
    let weight = u16::try_from(node.weight).unwrap_or(u16::MAX);
    let srv = |port, target| {
        let data = Data::Srv { priority: 0, weight, port, target };
        Record { name: instance.clone(), data }
    };
    for (nth, address) in addresses.iter().enumerate() {
        let port = address.port();
        let Ok(ip) = address.host().parse::<IpAddr>() else {
            all.push(srv(port, Target::Named(address.host().to_owned())));
            continue;
        };
        let same_port = addresses
            .iter()
            .position(|other| other.port() == port && other.host().parse::<IpAddr>().is_ok());
        let first = same_port.unwrap_or(nth);
        let counter = if first == 0 { String::new() } else { format!("-{first}") };
        let host = vec![format!("{}{counter}", host_of(node.ca, node.id))];
        if first == nth {
            all.push(srv(port, Target::Ours(host.clone())));
        }
        let data = match ip.to_canonical() {
            IpAddr::V4(ip) => Data::A(ip),
            IpAddr::V6(ip) => Data::Aaaa(ip),
        };
        all.push(Record { name: host, data });
    }
    all
}

/// The name under which all nodes are listed.
#[must_use]
pub fn service() -> Labels {
    super::SERVICE_TYPE.split('.').map(str::to_owned).collect()
}

/// The name under which the nodes of one site are listed.
#[must_use]
pub fn of_site(ca: CaPrefix) -> Labels {
    [format!("_{ca}"), "_sub".to_owned()].into_iter().chain(service()).collect()
}

/// The name of a node.
#[must_use]
pub fn instance(node: &str) -> Labels {
    std::iter::once(node.to_owned()).chain(service()).collect()
}

/// The name of a node's machine. One that listens on several ports has further names, with `-` and a number behind.
#[must_use]
pub fn host_of(ca: CaPrefix, id: NodeId) -> String {
    format!("dunlin-{ca}-{id}")
}

/// Records as a zone file of this domain has them: relative to an `$ORIGIN` line, each once, in order.
#[must_use]
pub fn to_zone_file(domain: &str, mut records: Vec<Record>) -> String {
    records.sort();
    records.dedup();
    let mut text = format!("$ORIGIN {}.\n", domain.trim_end_matches('.'));
    for record in records {
        text.push_str(&format!("{} {ZONE_TTL} IN {}\n", relative(&record.name), record.data));
    }
    text
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ptr(name) => write!(f, "PTR {}", relative(name)),
            Self::Srv { priority, weight, port, target } => {
                write!(f, "SRV {priority} {weight} {port} ")?;
                match target {
                    Target::Ours(name) => f.write_str(&relative(name)),
                    Target::Named(name) => write!(f, "{}.", name.trim_end_matches('.')),
                }
            }
            Self::Txt(keys) => {
                f.write_str("TXT")?;
                // A release may be called anything.
                let quoted = |key: &String| key.replace('\\', "\\\\").replace('"', "\\\"");
                keys.iter().try_for_each(|key| write!(f, " \"{}\"", quoted(key)))
            }
            Self::A(ip) => write!(f, "A {ip}"),
            Self::Aaaa(ip) => write!(f, "AAAA {ip}"),
        }
    }
}

/// Labels as text, dots in them escaped.
fn relative(labels: &Labels) -> String {
    labels.iter().map(|label| label.replace('.', "\\.")).collect::<Vec<_>>().join(".")
}

/// How long others may keep a record, in seconds: a node that has moved is found again within it.
pub const ZONE_TTL: u32 = 120;

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64, name: &str) -> Announcement {
        Announcement::fixture(name, id)
    }

    fn addresses(all: &[&str]) -> Vec<Address> {
        all.iter().map(|address| address.parse().expect("address")).collect()
    }

    #[test]
    fn a_zone_file_names_every_node_under_the_service_and_its_site() {
        let mut all = records(&node(1, "edge.1"), &addresses(&["10.0.0.7", "[fd77::7]:7440"]));
        all.extend(records(&node(2, "edge-2"), &addresses(&["edge-2.plant.example:7000"])));
        let text = to_zone_file("plant.example.", all);
        assert_eq!(
            text,
            "$ORIGIN plant.example.\n\
             _a5a5a5a5a5a5a5a5._sub._dunlin._udp 120 IN PTR edge-2._dunlin._udp\n\
             _a5a5a5a5a5a5a5a5._sub._dunlin._udp 120 IN PTR edge\\.1._dunlin._udp\n\
             _dunlin._udp 120 IN PTR edge-2._dunlin._udp\n\
             _dunlin._udp 120 IN PTR edge\\.1._dunlin._udp\n\
             dunlin-a5a5a5a5a5a5a5a5-1 120 IN A 10.0.0.7\n\
             dunlin-a5a5a5a5a5a5a5a5-1 120 IN AAAA fd77::7\n\
             edge-2._dunlin._udp 120 IN SRV 0 100 7000 edge-2.plant.example.\n\
             edge-2._dunlin._udp 120 IN TXT \"v=0.1.0\" \"cluster=plant\" \"id=2\" \"role=data\" \"w=100\" \
             \"ca=a5a5a5a5a5a5a5a5\"\n\
             edge\\.1._dunlin._udp 120 IN SRV 0 100 7440 dunlin-a5a5a5a5a5a5a5a5-1\n\
             edge\\.1._dunlin._udp 120 IN TXT \"v=0.1.0\" \"cluster=plant\" \"id=1\" \"role=data\" \"w=100\" \
             \"ca=a5a5a5a5a5a5a5a5\"\n"
        );
    }

    #[test]
    fn addresses_of_two_ports_are_two_machines() {
        let all = records(&node(1, "n"), &addresses(&["10.0.0.7:1", "10.0.0.8:2", "10.0.0.9:2"]));
        let text = to_zone_file("x", all);
        for line in [
            "n._dunlin._udp 120 IN SRV 0 100 1 dunlin-a5a5a5a5a5a5a5a5-1\n",
            "n._dunlin._udp 120 IN SRV 0 100 2 dunlin-a5a5a5a5a5a5a5a5-1-1\n",
            "dunlin-a5a5a5a5a5a5a5a5-1 120 IN A 10.0.0.7\n",
            "dunlin-a5a5a5a5a5a5a5a5-1-1 120 IN A 10.0.0.8\n",
            "dunlin-a5a5a5a5a5a5a5a5-1-1 120 IN A 10.0.0.9\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn what_is_quoted_ends_where_it_should() {
        let odd = Announcement { version: "1\"\\2".into(), ..node(1, "n") };
        let text = to_zone_file("x", records(&odd, &addresses(&["10.0.0.7:1"])));
        assert!(text.contains(r#"TXT "v=1\"\\2" "cluster=plant""#), "{text}");
    }

    #[test]
    fn a_busy_node_says_so() {
        let busy = Announcement { load: 70, ..node(1, "n") };
        let text = to_zone_file("x", records(&busy, &addresses(&["10.0.0.7:1"])));
        assert!(text.contains("\"w=100\" \"load=70\" \"ca="), "{text}");
    }
}
