//! DNS-SD by multicast: one daemon thread of mdns-sd that announces this node and hears of others.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use mdns_sd::{
    DaemonEvent, IfKind, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent,
    ServiceInfo, VERIFY_TIMEOUT_DEFAULT,
};
use tokio::time::timeout;

use super::{
    SERVICE_TYPE,
    announcement::{Announcement, CaPrefix},
    candidates::{Sighting, Source},
};
use crate::limits::{GOODBYE_MAX, MDNS_RECORDS_MAX};

/// Which interfaces multicast goes to: those on which the node can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All but loopback; their addresses are followed.
    All,
    /// All but loopback, IPv4 alone.
    AllV4,
    /// The interface with this address, and this address alone.
    One(IpAddr),
}

impl Reach {
    /// Of a node that listens there. None on loopback: nobody else could come.
    #[must_use]
    pub fn of(listen: IpAddr) -> Option<Self> {
        match listen.to_canonical() {
            ip if ip.is_loopback() => None,
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Some(Self::AllV4),
            ip if ip.is_unspecified() => Some(Self::All),
            ip => Some(Self::One(ip)),
        }
    }
}

/// Why there is no multicast.
#[derive(Debug, thiserror::Error)]
#[error("multicast DNS: {0}")]
pub struct MdnsError(#[from] mdns_sd::Error);

/// A daemon. It says goodbye for what it has announced when it is dropped.
pub struct Mdns {
    daemon: ServiceDaemon,
    reach: Reach,
}

/// What was heard.
#[derive(Debug)]
pub enum MdnsEvent {
    /// A node announces itself.
    Seen(Box<Sighting>),
    /// An instance has said goodbye, or has not been heard for too long.
    Gone(String),
    /// Something is announced that is no node of ours; why.
    Strange(String),
}

/// Events of one search.
pub struct Browse {
    events: Receiver<ServiceEvent>,
}

/// What the daemon says of itself.
pub struct Troubles {
    events: Receiver<DaemonEvent>,
}

impl Mdns {
    /// Starts a daemon. Nothing is sent yet.
    ///
    /// # Errors
    /// If the system gives no thread for it.
    pub fn start(reach: Reach) -> Result<Self, MdnsError> {
        let daemon = ServiceDaemon::new()?;
        let begun = Self { daemon, reach };
        let daemon = &begun.daemon;
        match reach {
            Reach::One(ip) => {
                daemon.disable_interface(IfKind::All)?;
                daemon.enable_interface(ip)?;
            }
            Reach::All | Reach::AllV4 => {
                daemon.disable_interface(vec![IfKind::LoopbackV4, IfKind::LoopbackV6])?;
                if reach == Reach::AllV4 {
                    daemon.disable_interface(IfKind::IPv6)?;
                }
            }
        }
        Ok(begun)
    }

    /// Announces a node that listens at this port, or announces it anew.
    ///
    /// # Errors
    /// If the daemon has ended, or its queue is full.
    pub fn announce(&self, node: &Announcement, port: u16) -> Result<(), MdnsError> {
        let keys = node.to_txt();
        let ty = format!("{}.{SERVICE_TYPE}{LOCAL}", subtype(node.ca));
        // The machine's own name is left to whoever looks after it: with our addresses under that name, avahi would see a
        // conflict.
        let host = format!("dunlin-{}-{}{LOCAL}", node.ca, node.id);
        let name = node.instance();
        let info = match self.reach {
            Reach::One(ip) => ServiceInfo::new(&ty, &name, &host, ip, port, &keys[..])?,
            Reach::All | Reach::AllV4 => {
                ServiceInfo::new(&ty, &name, &host, "", port, &keys[..])?.enable_addr_auto()
            }
        };
        Ok(self.daemon.register(info)?)
    }

    /// Asks who is there, and goes on listening. A second search ends the first. All sites are asked for: mdns-sd does not hear
    /// the answers to a question for a subtype (0.21).
    ///
    /// # Errors
    /// If the daemon has ended, or its queue is full.
    pub fn browse(&self) -> Result<Browse, MdnsError> {
        Ok(Browse { events: self.daemon.browse(&format!("{SERVICE_TYPE}{LOCAL}"))? })
    }

    /// Asks whether an instance is still there: without an answer it is forgotten within ten seconds.
    ///
    /// # Errors
    /// If the daemon has ended, or its queue is full.
    pub fn verify(&self, instance: &str) -> Result<(), MdnsError> {
        Ok(self.daemon.verify(instance.to_owned(), VERIFY_TIMEOUT_DEFAULT)?)
    }

    /// What goes wrong from now on.
    ///
    /// # Errors
    /// If the daemon has ended, or its queue is full.
    pub fn troubles(&self) -> Result<Troubles, MdnsError> {
        Ok(Troubles { events: self.daemon.monitor()? })
    }

    /// Whether it holds more than a few sites could announce. It has no bound of its own: then it must be begun anew.
    pub async fn is_overfull(&self) -> bool {
        let Ok(asked) = self.daemon.get_metrics() else { return false };
        match timeout(ANSWER_MAX, asked.recv_async()).await {
            Ok(Ok(counters)) => {
                let cached = counters.iter().filter(|(name, _)| name.starts_with("cached-"));
                cached.map(|(_, count)| *count).sum::<i64>() > MDNS_RECORDS_MAX
            }
            // It does not come round: it has too much to do.
            _ => true,
        }
    }

    /// Says goodbye and ends.
    pub async fn stop(self) {
        if let Ok(stopped) = self.daemon.shutdown() {
            let _ = timeout(GOODBYE_MAX, stopped.recv_async()).await;
        }
    }
}

impl Drop for Mdns {
    fn drop(&mut self) {
        // Fails when it has ended before.
        let _ = self.daemon.shutdown();
    }
}

impl std::fmt::Debug for Mdns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mdns").field("reach", &self.reach).finish_non_exhaustive()
    }
}

impl Browse {
    /// The next event; none once the search is over, or has lost events because nobody read them.
    pub async fn next(&mut self) -> Option<MdnsEvent> {
        loop {
            match self.events.recv_async().await.ok()? {
                ServiceEvent::ServiceResolved(service) => return Some(heard(&service)),
                ServiceEvent::ServiceRemoved(_, instance) => {
                    return Some(MdnsEvent::Gone(instance));
                }
                ServiceEvent::SearchStopped(_) => return None,
                _ => {}
            }
        }
    }
}

impl Troubles {
    /// The next one, in words; none once the daemon has ended.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            match self.events.recv_async().await.ok()? {
                DaemonEvent::Error(error) => return Some(error.to_string()),
                DaemonEvent::NameChange(change) => {
                    return Some(format!(
                        "the name {} is taken, this node is {}",
                        change.original, change.new_name
                    ));
                }
                _ => {}
            }
        }
    }
}

fn heard(service: &ResolvedService) -> MdnsEvent {
    let keys = service.get_properties();
    let keys = keys.iter().map(|key| (key.key(), key.val_str()));
    match Announcement::from_txt(&instance_of(service.get_fullname()), keys) {
        Ok(announcement) => MdnsEvent::Seen(Box::new(Sighting {
            source: Source::Multicast,
            instance: service.get_fullname().to_owned(),
            announcement,
            addresses: service
                .get_addresses()
                .iter()
                .filter_map(|ip| socket(ip, service.get_port()))
                .collect(),
            priority: 0,
            // The daemon says when it is over.
            until: None,
        })),
        Err(error) => MdnsEvent::Strange(format!("{}: {error}", service.get_fullname())),
    }
}

/// The instance of a full name, which is its first label, with dots in it escaped.
fn instance_of(fullname: &str) -> String {
    let end = fullname.find(&format!(".{SERVICE_TYPE}")).unwrap_or(fullname.len());
    fullname[..end].replace("\\.", ".").replace("\\\\", "\\")
}

fn socket(ip: &ScopedIp, port: u16) -> Option<SocketAddr> {
    let address = match ip {
        ScopedIp::V6(v6) if v6.addr().is_unicast_link_local() => {
            SocketAddrV6::new(*v6.addr(), port, 0, v6.scope_id().index).into()
        }
        other => SocketAddr::new(other.to_ip_addr(), port),
    };
    // Who names another's loopback, or nobody's port, means no good.
    let ip = address.ip();
    (port > 0 && !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast()).then_some(address)
}

fn subtype(ca: CaPrefix) -> String {
    format!("_{ca}._sub")
}

const LOCAL: &str = ".local.";
/// How long the daemon may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_on_loopback_reaches_nobody() {
        let reach = |ip: &str| Reach::of(ip.parse().expect("an address"));
        assert_eq!([reach("127.0.0.1"), reach("::1"), reach("127.3.0.9")], [None; 3]);
        assert_eq!(reach("::ffff:127.0.0.1"), None);
        assert_eq!(reach("::"), Some(Reach::All));
        assert_eq!(reach("0.0.0.0"), Some(Reach::AllV4));
        let ip = "10.0.0.7".parse().expect("an address");
        assert_eq!(reach("10.0.0.7"), Some(Reach::One(ip)));
    }

    #[test]
    fn an_instance_may_hold_dots() {
        assert_eq!(instance_of("edge-1._dunlin._udp.local."), "edge-1");
        assert_eq!(instance_of("edge\\.1 (2)._dunlin._udp.local."), "edge.1 (2)");
        assert_eq!(instance_of("odd"), "odd");
    }

    #[test]
    fn addresses_that_lead_nowhere_are_not_taken() {
        let at = |ip: &str, port| socket(&ip.parse::<IpAddr>().expect("address").into(), port);
        for bad in ["127.0.0.1", "::1", "0.0.0.0", "224.0.0.251", "ff02::fb"] {
            assert_eq!(at(bad, 7440), None, "{bad}");
        }
        assert_eq!(at("10.0.0.7", 0), None);
        assert!(at("10.0.0.7", 7440).is_some() && at("fe80::1", 7440).is_some());
    }
}
