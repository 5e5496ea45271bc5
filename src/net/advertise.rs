//! Where others find this machine, when nobody has said it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::types::Address;

/// What was configured, else the address that is listened on, else (for a wildcard) those of the interfaces over which
/// packets leave this machine.
#[must_use]
pub fn advertised(configured: &[Address], listen: SocketAddr) -> Vec<Address> {
    if !configured.is_empty() {
        return configured.to_vec();
    }
    let hosts = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => outgoing(false).into_iter().collect(),
        IpAddr::V6(ip) if ip.is_unspecified() => {
            [outgoing(false), outgoing(true)].into_iter().flatten().collect()
        }
        ip => vec![ip],
    };
    hosts.iter().filter_map(|ip| Address::new(&ip.to_string(), listen.port()).ok()).collect()
}

/// The source address of packets that leave for elsewhere. None is sent: the kernel only looks for the way.
fn outgoing(v6: bool) -> Option<IpAddr> {
    let (any, elsewhere): (IpAddr, IpAddr) = match v6 {
        true => (Ipv6Addr::UNSPECIFIED.into(), ELSEWHERE_V6.into()),
        false => (Ipv4Addr::UNSPECIFIED.into(), ELSEWHERE_V4.into()),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((elsewhere, 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified() && !ip.is_loopback()).then_some(ip)
}

/// Addresses for documentation (RFC 5737 and RFC 3849): nobody has them, the default route leads there.
const ELSEWHERE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ELSEWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_wins_and_a_plain_address_speaks_for_itself() {
        let listen = "10.0.0.7:7000".parse().expect("address");
        let configured: Vec<Address> = vec!["edge-1:7001".parse().expect("address")];
        assert_eq!(advertised(&configured, listen), configured);
        let own: Vec<Address> = vec!["10.0.0.7:7000".parse().expect("address")];
        assert_eq!(advertised(&[], listen), own);
    }

    #[test]
    fn a_wildcard_is_never_told_to_others() {
        for listen in ["0.0.0.0:7000", "[::]:7000"] {
            let told = advertised(&[], listen.parse().expect("address"));
            // A machine without a network has none to tell.
            assert!(told.iter().all(|address| address.port() == 7_000), "{told:?}");
            assert!(!told.iter().any(|a| a.host() == "0.0.0.0" || a.host() == "::"), "{told:?}");
        }
    }
}
